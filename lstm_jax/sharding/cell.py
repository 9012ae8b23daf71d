"""Hidden units and vocabularies over the devices of a mesh, with one exchange a step in each direction.

Over m devices, each computes H/m units of a layer: their gates, their states. What a unit hears is the
h of all units, so the devices hand each other their parts of h before the product with R, and that is
all that passes between them in a step::

    h_{t-1} = all-gather of the parts                    forward
    z_t     = u_t + h_{t-1} R + b                        R: all rows, the columns of the own units
    h_t,c_t = update(c_{t-1}, z_t)                       the own units

The gather is linear, so it belongs to ``recur``, and the fast path transposes it like any product: the
backward loop has one reduce-scatter of dh. Weight gradients are taken after the loop, on the device
that has the units.

Gates lie side by side in the parameters, (D, 4H). Cut into m parts as it stands, that axis would give
one device i and f, another g and o, and every step would have to bring them together. A part here has
its units of all four gates: parameters are seen as (D, 4, H), the last axis is cut, and what one device
holds, (D, 4H/m), is the ordinary parameter of a cell of H/m units. The cell's own text runs on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from lstm_jax._errors import value_error
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import Network, as_base_cell, compute_form
from lstm_jax.cells.activations import identity
from lstm_jax.cells.gru import GRU
from lstm_jax.cells.gru_variant import GRUVariant
from lstm_jax.cells.indrnn import IndRNN
from lstm_jax.cells.lstm import LSTM
from lstm_jax.cells.lstm_variant import LSTMVariant
from lstm_jax.cells.minimal import MinGRU, MinLSTM
from lstm_jax.cells.readout import Readout
from lstm_jax.cells.rnn import RNN
from lstm_jax.regularizers._wrapper import Noise, Wrapper
from lstm_jax.unrolling.run import Options, Steps, Unrolled
from lstm_jax.unrolling.steps import mask_out

#: Every unit reads every other: h is gathered at each step.
DENSE_RECURRENCE = (RNN, LSTM, LSTMVariant, GRU, GRUVariant)
#: Every unit reads itself only: nothing is gathered.
ELEMENTWISE = (IndRNN, MinGRU, MinLSTM, Readout)


@dataclass(frozen=True, repr=False)
class CellShard(Wrapper):
    """One device's units of a cell, inside ``shard_map``: they read the h of all units and compute their own.

    ``cell`` has the size of the part. Of its parameters, w_hh has the rows of all units.
    """

    cell: Any
    axis: str

    def project(self, params: Params, x: Array) -> Any:
        """x W for this device's units."""
        # The cell looks at w_hh's shape alone, and expects as many rows as it has units.
        w_hh = jax.ShapeDtypeStruct((self.cell.hidden_size, params.w_hh.shape[1]), params.w_hh.dtype)
        return self.cell.project(params._replace(w_hh=w_hh), x)

    def recur(self, params: Params, carry: Carry, u: Any) -> Any:
        """The pre-activations of this device's units, from the h of all units."""
        h, *others = carry if isinstance(carry, tuple) else (carry,)
        h = jax.lax.all_gather(h, self.axis, axis=h.ndim - 1, tiled=True)
        return self.cell.recur(params, (h, *others) if others else h, u)

    def step(self, params: Params, carry: Carry, x: Array, noise: Noise | None = None) -> tuple[Carry, Array]:
        """One step of this device's units."""
        return self.step_by_parts(params, carry, x, noise)


@dataclass(frozen=True, repr=False)
class Sharded(Network):
    """A cell whose units are spread over one axis of a mesh, and the rows of the batch over another.

    Parameters, carries and outputs are those of the cell, in the same shapes; what changes is where
    they lie. :func:`lstm_jax.shard` makes a network of such cells, :func:`lstm_jax.shardings` says
    where its parameters best lie, and :func:`lstm_jax.communication` what passes between devices.

    At each step and in each direction there is one exchange over ``model``, of the h of one device's
    rows: an all-gather forward, a reduce-scatter backward. The loop has none over ``data``; the
    gradients of the parameters are summed over it once, at the end. Where the heads of a cell lie on
    different devices, and in cells whose recurrence is elementwise (IndRNN, MinGRU, MinLSTM), the
    loop has none at all. Of a :class:`lstm_jax.Readout` the outputs (a vocabulary, say) are spread.

    Args:
        cell: RNN, LSTM, GRU, IndRNN, MinGRU, MinLSTM or Readout.
        mesh: the devices; its axes may be automatic or explicit.
        data: the axis for the first axis of the batch; None: no axis, every device has all rows.
        model: the axis for the units.

    Raises:
        ValueError: the mesh has no such axis, the axis does not divide the units (the heads, the
            rows), or the mathematics of the cell would need more than one exchange.

    >>> import lstm_jax
    >>> mesh = jax.make_mesh((1, 1), ("data", "model"))
    >>> cell = Sharded(lstm_jax.LSTM(input_size=3, hidden_size=8), mesh)
    >>> params = cell.init(jax.random.key(0))
    >>> carry, ys = lstm_jax.unroll(cell, params, jax.numpy.ones((5, 4, 3)))
    >>> ys.shape
    (5, 4, 8)
    """

    cell: Any
    mesh: Mesh
    _: KW_ONLY
    data: str | None = "data"
    model: str = "model"

    @property
    def optional_params(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the cell."""
        return as_base_cell(self.cell).optional_params

    def __post_init__(self) -> None:
        _check_mesh(self.mesh, self.data, self.model)
        unsupported_reason = _unsupported_reason(self.cell)
        if unsupported_reason is not None:
            raise value_error(
                f"Sharded got a {type(self.cell).__name__}: {unsupported_reason}",
                "a cell whose units go on with one exchange a step: "
                + ", ".join(kind.__name__ for kind in (*DENSE_RECURRENCE, *ELEMENTWISE)),
                "Leave this layer whole, on every device: Stack((Sharded(cell, mesh), whole)).",
            )
        names = ["output_size" if isinstance(self.cell, Readout) else "hidden_size"]
        for name in names + ["heads"] * (_heads(self.cell) > 1):
            size = getattr(self.cell, name)
            if size % self.parts:
                raise value_error(
                    f"Sharded got a {type(self.cell).__name__} with {name}={size} over "
                    f"{self.model}={self.parts} devices",
                    f"{name} that the axis divides",
                    f"Take {name}={-(-size // self.parts) * self.parts}, a mesh with fewer devices in "
                    f"{self.model!r}, or leave this layer whole: Stack((Sharded(cell, mesh), whole)).",
                )

    @property
    def parts(self) -> int:
        """m, the devices over which the units are spread."""
        return self.mesh.shape[self.model]

    @property
    def shard_cell(self) -> Any:
        """What one device computes: a cell of its units."""
        if isinstance(self.cell, Readout):
            return replace(self.cell, output_size=self.cell.output_size // self.parts, activation=identity)
        own = {"hidden_size": self.cell.hidden_size // self.parts}
        if _heads(self.cell) > 1:
            return replace(self.cell, **own, heads=self.cell.heads // self.parts)
        part = replace(self.cell, **own)
        return CellShard(part, self.model) if isinstance(self.cell, DENSE_RECURRENCE) else part

    # --- the cell's own face ---

    @property
    def input_size(self) -> int:
        """D."""
        return self.cell.input_size

    @property
    def output_size(self) -> int:
        """Features of one output."""
        return self.cell.output_size

    def init(self, key: Array) -> Params:
        """The parameters of the cell, not yet placed."""
        return self.cell.init(key)

    def initial_carry(self, batch_shape: Sequence[int] = (), params: Params | None = None) -> Carry:
        """The carry of the cell."""
        return self.cell.initial_carry(batch_shape, params)

    def compute_form(self) -> Sharded:
        """The sharded compute form of the cell."""
        return replace(self, cell=compute_form(self.cell))

    def step(self, params: Params, carry: Carry, x: Array, noise: None = None) -> tuple[Carry, Array]:
        """One step, each device its units and rows."""
        rows, units = self._specs(x.shape[:-1])
        states = jax.tree.map(lambda _: units, carry)
        specs, out_specs = (states, rows), (states, units)
        carry, y = self._spread(self.shard_cell.step, params, (carry, x), specs, out_specs)
        return carry, self._activated(y)

    def run_layers(
        self,
        run: Any,
        options: Options,
        params: Params,
        xs: Array,
        carry: Carry | None,
        reset_to: Carry | None,
        steps: Steps,
    ) -> Unrolled:
        """All of time, each device its units and rows."""

        def run_shard(
            params: Params, carry: Carry | None, xs: Array, reset_to: Carry | None, steps: Steps
        ) -> Unrolled:
            return run(self.shard_cell, options, params, xs, carry, reset_to, steps)

        batch = xs.shape[1:-1]
        rows, units = self._specs(batch)
        rows_t: Any = P(None, *rows)
        units_t: Any = P(None, *units)
        like = jax.eval_shape(lambda p: self.cell.initial_carry(batch, p), params)
        states, states_t = jax.tree.map(lambda _: units, like), jax.tree.map(lambda _: units_t, like)
        arrays = (carry, xs, reset_to, steps._replace(key=None))  # these cells draw nothing
        specs: Any = (
            None if carry is None else states,
            rows_t,
            None if reset_to is None else states_t,
            Steps(rows_t, rows_t, None, P(), rows),  # type: ignore[arg-type]
        )
        out_specs = Unrolled(states, units_t, states_t if options.return_carries else None)
        out = self._spread(run_shard, params, arrays, specs, out_specs)
        return out._replace(ys=self._activated(out.ys, steps.valid))

    def _activated(self, y: Array, valid: Array | None = None) -> Array:
        """A read-out's activation may look at all outputs of a row, so it comes after the devices' parts."""
        if not isinstance(self.cell, Readout) or self.cell.activation is identity:
            return y
        y = self.cell.activation(y)
        return y if valid is None else mask_out(valid, y)

    # --- where things lie ---

    def shardings(self, params: Params) -> Any:
        """Where the parameters best lie, as a tree of ``NamedSharding``; each device has 1/m of them.

        What has one column a unit lies where it is used. Of gates side by side each device keeps some
        of the rows, because their columns, cut into parts, would part the gates; one all-to-all a call
        brings the units together. Biases of several gates, and w_ih where the axis does not divide D,
        are on every device.
        """
        return jax.tree.map(lambda a: NamedSharding(self.mesh, self._spec(self._way(a), a.ndim)), params)

    def _way(self, a: Any) -> str:
        """How a parameter is cut."""
        if a.ndim == 3:  # a block for each head
            return "blocks"
        if a.shape[-1] == self._units:
            return "columns"
        return "rows" if a.ndim == 2 and a.shape[0] % self.parts == 0 else "whole"

    def _spec(self, way: str, ndim: int) -> P:
        """Where it then lies."""
        if way == "columns":
            return P(*[None] * (ndim - 1), self.model)
        return P() if way == "whole" else P(self.model)

    @property
    def _units(self) -> int:
        return self.cell.output_size  # of these cells, H; of a read-out, O

    def _specs(self, batch: tuple[Any, ...]) -> tuple[P, P]:
        """Of one step: of what has no units or has all of them, and of what has the device's own."""
        d = 1 if self.data is None else self.mesh.shape[self.data]
        if batch and isinstance(batch[0], int) and batch[0] % d:
            raise value_error(
                f"{type(self.cell).__name__} over {self.data}={d} devices got a batch of {batch[0]} rows",
                "rows that the devices divide",
                "Choose another batch size, or Sharded(cell, mesh, data=None).",
            )
        rows = [self.data, *[None] * len(batch)][: len(batch)]
        return P(*rows), P(*rows, self.model)

    def _spread(
        self, function: Callable[..., Any], params: Params, arrays: Any, specs: Any, out_specs: Any
    ) -> Any:
        """``function(share of params, carry, x)`` on each device, carry and x being the ``arrays``."""

        ways, (_, rows, *_) = jax.tree.map(self._way, params), specs
        by_unit = (-1, self._units)  # the last axis, as gates and units

        def seen(a: Array, way: str) -> Array:
            return a.reshape(*a.shape[:-1], *by_unit) if way == "whole" else a

        def own(a: Array, way: str) -> Array:
            # Used with other rows on other devices from here on: so gradients are summed here, once.
            if self.data and self.data in rows:
                a = jax.lax.pcast(a, self.data, to="varying")
            if way == "blocks" and len(a) == 1:
                return a[0]
            if way == "rows":
                a = a.reshape(len(a), *by_unit)
                a = jax.lax.all_to_all(a, self.model, split_axis=2, concat_axis=0, tiled=True)
            return a.reshape(*a.shape[:-2], -1) if way in ("rows", "whole") else a

        def on_device(params: Params, *arrays: Any) -> Any:
            return function(jax.tree.map(own, params, ways), *arrays)

        views = jax.tree.map(seen, params, ways)
        view_specs = jax.tree.map(
            lambda a, way: self._spec("columns" if way == "whole" else way, a.ndim), views, ways
        )
        arrays, specs = (views, *arrays), (view_specs, *specs)
        if (
            self.mesh.axis_types[0] is AxisType.Explicit
        ):  # explicit: arrays move only where the program says so
            arrays = jax.tree.map(self._moved, specs, arrays)
        return jax.shard_map(on_device, mesh=self.mesh, in_specs=specs, out_specs=out_specs)(*arrays)

    def _moved(self, spec: P, tree: Any) -> Any:
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda a: jax.sharding.reshard(a, sharding), tree)


def _heads(cell: Any) -> int:
    return getattr(cell, "heads", 1)


def _unsupported_reason(cell: Any) -> str | None:
    """Why a cell cannot be spread over devices with one exchange a step, or None."""
    if isinstance(cell, Wrapper):
        return f"{type(cell).__name__} draws its noise for all units together"
    if not isinstance(cell, (*DENSE_RECURRENCE, *ELEMENTWISE)):
        return "nothing is known of how its units lie in its parameters"
    if isinstance(cell, LSTMVariant) and cell.layer_norm is not None:
        return f"layer_norm={cell.layer_norm!r} needs the mean over all units at every step"
    if isinstance(cell, LSTMVariant) and cell.proj_size is not None:
        return "with proj_size a unit's h is made of all units' states"
    if isinstance(cell, GRUVariant) and not cell.reset_after:
        return (
            "with reset_after=False two products come one after the other, each with an exchange of its own"
        )
    return None


def _check_mesh(mesh: Any, data: str | None, model: str) -> None:
    wanted = [name for name in (data, model) if name is not None]
    if not isinstance(mesh, Mesh) or any(name not in mesh.shape for name in wanted):
        got = f"axes {dict(mesh.shape)}" if isinstance(mesh, Mesh) else f"a {type(mesh).__name__}"
        raise value_error(
            f"Sharded got a mesh with {got}" if isinstance(mesh, Mesh) else f"Sharded got {got}",
            f"a jax.sharding.Mesh with the axes {', '.join(map(repr, wanted))}",
            "Write jax.make_mesh((4, 2), ('data', 'model')); an axis may have one device.",
        )
    kinds = set(mesh.axis_types)
    if len(kinds) > 1 or AxisType.Manual in kinds:
        raise value_error(
            f"Sharded got a mesh with axes of type {', '.join(kind.name for kind in mesh.axis_types)}",
            "axes that are all automatic or all explicit",
            f"Write jax.make_mesh({tuple(mesh.shape.values())}, {mesh.axis_names}).",
        )
