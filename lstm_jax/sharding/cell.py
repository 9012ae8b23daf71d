"""Hidden units sharded over a mesh of devices, with one collective operation per step and direction.

Each of m devices computes the gates and states of H/m units of a layer. The recurrent product reads the h of
all units, so the devices exchange their parts of h at every step, and nothing else::

    h_{t-1} = all-gather of the parts                    forward
    z_t     = u_t + h_{t-1} R + b                        R: all rows, the columns of the device's units
    h_t,c_t = update(c_{t-1}, z_t)                       the device's units

The all-gather is linear, so it is part of ``recur``. The fused scan transposes it like any product: the
backward loop has one reduce-scatter of dh. Weight gradients are computed after the loop, on the device that
has the units.

The parameters contain the gates side by side, (D, 4H). Sharding this axis directly would put i and f on one
device and g and o on another, and every step would have to exchange them. Instead, the parameters are
reshaped to (D, 4, H) and sharded over the last axis. A device then has all gates of its units, (D, 4H/m),
which are the parameters of a cell with H/m units.
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

#: Every unit reads all units, so h is gathered at each step.
DENSE_RECURRENCE = (RNN, LSTM, LSTMVariant, GRU, GRUVariant)
#: Every unit reads only itself, so nothing is gathered.
ELEMENTWISE = (IndRNN, MinGRU, MinLSTM, Readout)


@dataclass(frozen=True, repr=False)
class CellShard(Wrapper):
    """One device's units of a cell, inside ``shard_map``.

    ``cell`` has the size of the part. In its parameters, w_hh has the rows of all units.
    """

    cell: Any
    axis: str

    def project(self, params: Params, x: Array) -> Any:
        """x W for this device's units."""
        # project reads only the shape of w_hh, which must have as many rows as the cell has units.
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
    """A cell with its units sharded over one axis of a mesh, and the batch over another.

    Parameters, carries and outputs have the shapes of the cell's; only their sharding differs.
    :func:`lstm_jax.shard` converts a network to such cells, :func:`lstm_jax.shardings` returns shardings for
    its parameters, and :func:`lstm_jax.communication` the number of bytes that devices exchange.

    At each step, and in each direction, there is one collective operation over ``model``: an all-gather of h
    forward, a reduce-scatter backward. The loop has no collective operation over ``data``; the gradients of
    the parameters are summed over it once, after the loop. A loop has no collective operation if the heads
    of a cell are on different devices, or if the recurrence is elementwise (IndRNN, MinGRU, MinLSTM). For a
    :class:`lstm_jax.Readout`, the outputs are sharded (for instance a vocabulary).

    Args:
        cell: RNN, LSTM, GRU, IndRNN, MinGRU, MinLSTM or Readout.
        mesh: the devices; its axes may be automatic or explicit.
        data: the mesh axis for the first batch axis; None: every device has all rows.
        model: the mesh axis for the units.

    Raises:
        ValueError: the mesh has no such axis, the axis does not divide the number of units (heads, rows), or
            the cell would need more than one collective operation per step.

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
                "a cell that needs at most one collective operation per step: "
                + ", ".join(kind.__name__ for kind in (*DENSE_RECURRENCE, *ELEMENTWISE)),
                "Do not shard this layer: Stack((Sharded(cell, mesh), cell)).",
            )
        names = ["output_size" if isinstance(self.cell, Readout) else "hidden_size"]
        for name in names + ["heads"] * (_heads(self.cell) > 1):
            size = getattr(self.cell, name)
            if size % self.parts:
                raise value_error(
                    f"Sharded got a {type(self.cell).__name__} with {name}={size} over "
                    f"{self.model}={self.parts} devices",
                    f"{name} divisible by {self.parts}",
                    f"Use {name}={-(-size // self.parts) * self.parts} or a mesh with fewer devices in "
                    f"{self.model!r}, or do not shard this layer: Stack((Sharded(cell, mesh), cell)).",
                )

    @property
    def parts(self) -> int:
        """m, the number of devices over which the units are sharded."""
        return self.mesh.shape[self.model]

    @property
    def shard_cell(self) -> Any:
        """The cell that one device runs, with the device's units."""
        if isinstance(self.cell, Readout):
            return replace(self.cell, output_size=self.cell.output_size // self.parts, activation=identity)
        size = {"hidden_size": self.cell.hidden_size // self.parts}
        if _heads(self.cell) > 1:
            return replace(self.cell, **size, heads=self.cell.heads // self.parts)
        part = replace(self.cell, **size)
        return CellShard(part, self.model) if isinstance(self.cell, DENSE_RECURRENCE) else part

    # --- the interface of a cell ---

    @property
    def input_size(self) -> int:
        """D."""
        return self.cell.input_size

    @property
    def output_size(self) -> int:
        """Features of one output."""
        return self.cell.output_size

    def init(self, key: Array) -> Params:
        """The parameters of the cell, unsharded."""
        return self.cell.init(key)

    def initial_carry(self, batch_shape: Sequence[int] = (), params: Params | None = None) -> Carry:
        """The carry of the cell."""
        return self.cell.initial_carry(batch_shape, params)

    def compute_form(self) -> Sharded:
        """The compute form of the cell, sharded."""
        return replace(self, cell=compute_form(self.cell))

    def step(self, params: Params, carry: Carry, x: Array, noise: None = None) -> tuple[Carry, Array]:
        """One step."""
        rows, units = self._specs(x.shape[:-1])
        states = jax.tree.map(lambda _: units, carry)
        specs, out_specs = (states, rows), (states, units)
        carry, y = self._shard_map(self.shard_cell.step, params, (carry, x), specs, out_specs)
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
        """Run the cell over the whole sequence, in one ``shard_map``."""

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
        arrays = (carry, xs, reset_to, steps._replace(key=None))  # these cells have no noise
        specs: Any = (
            None if carry is None else states,
            rows_t,
            None if reset_to is None else states_t,
            Steps(rows_t, rows_t, None, P(), rows),  # type: ignore[arg-type]
        )
        out_specs = Unrolled(states, units_t, states_t if options.return_carries else None)
        out = self._shard_map(run_shard, params, arrays, specs, out_specs)
        return out._replace(ys=self._activated(out.ys, steps.valid))

    def _activated(self, y: Array, valid: Array | None = None) -> Array:
        """Apply the activation of a readout, which may need all outputs of a row, outside ``shard_map``."""
        if not isinstance(self.cell, Readout) or self.cell.activation is identity:
            return y
        y = self.cell.activation(y)  # type: ignore[operator]
        return y if valid is None else mask_out(valid, y)

    # --- shardings ---

    def shardings(self, params: Params) -> Any:
        """Shardings for the parameters, as a tree of ``NamedSharding``; each device has 1/m of most arrays.

        Arrays with one column per unit are sharded over units. Matrices with several gates side by side are
        sharded over rows, because sharding their columns would separate the gates; one all-to-all per call
        collects the columns of each device's units. Biases of several gates, and w_ih if m does not divide D,
        are replicated.
        """
        return jax.tree.map(lambda a: NamedSharding(self.mesh, self._spec(self._layout(a), a.ndim)), params)

    def _layout(self, a: Any) -> str:
        """How a parameter is sharded: "blocks" (of heads), "columns", "rows" or "replicated"."""
        if a.ndim == 3:
            return "blocks"
        if a.shape[-1] == self._units:
            return "columns"
        return "rows" if a.ndim == 2 and a.shape[0] % self.parts == 0 else "replicated"

    def _spec(self, layout: str, ndim: int) -> P:
        """The partition of a parameter with this layout."""
        if layout == "columns":
            return P(*[None] * (ndim - 1), self.model)
        return P() if layout == "replicated" else P(self.model)

    @property
    def _units(self) -> int:
        return self.cell.output_size  # H, or O for a readout

    def _specs(self, batch: tuple[Any, ...]) -> tuple[P, P]:
        """Partitions of arrays of one step: with replicated features, and with sharded units."""
        d = 1 if self.data is None else self.mesh.shape[self.data]
        if batch and isinstance(batch[0], int) and batch[0] % d:
            raise value_error(
                f"{type(self.cell).__name__} over {self.data}={d} devices got a batch of {batch[0]} rows",
                f"a number of rows divisible by {d}",
                "Use another batch size, or Sharded(cell, mesh, data=None).",
            )
        rows = [self.data, *[None] * len(batch)][: len(batch)]
        return P(*rows), P(*rows, self.model)

    def _shard_map(
        self, function: Callable[..., Any], params: Params, arrays: Any, specs: Any, out_specs: Any
    ) -> Any:
        """Call ``function(params, *arrays)`` on each device, with the parameters of the device's units."""

        layouts, (_, rows, *_) = jax.tree.map(self._layout, params), specs
        gates_and_units = (-1, self._units)

        def split_gates(a: Array, layout: str) -> Array:
            return a.reshape(*a.shape[:-1], *gates_and_units) if layout == "replicated" else a

        def local(a: Array, layout: str) -> Array:
            # Rows differ between devices, so this is where gradients are summed over them, once per call.
            if self.data and self.data in rows:
                a = jax.lax.pcast(a, self.data, to="varying")
            if layout == "blocks" and len(a) == 1:
                return a[0]
            if layout == "rows":
                a = a.reshape(len(a), *gates_and_units)
                a = jax.lax.all_to_all(a, self.model, split_axis=2, concat_axis=0, tiled=True)
            return a.reshape(*a.shape[:-2], -1) if layout in ("rows", "replicated") else a

        def on_device(params: Params, *arrays: Any) -> Any:
            return function(jax.tree.map(local, params, layouts), *arrays)

        views = jax.tree.map(split_gates, params, layouts)
        view_specs = jax.tree.map(
            lambda a, layout: self._spec("columns" if layout == "replicated" else layout, a.ndim),
            views,
            layouts,
        )
        arrays, specs = (views, *arrays), (view_specs, *specs)
        if self.mesh.axis_types[0] is AxisType.Explicit:  # an explicit mesh does not reshard implicitly
            arrays = jax.tree.map(self._reshard, specs, arrays)
        return jax.shard_map(on_device, mesh=self.mesh, in_specs=specs, out_specs=out_specs)(*arrays)

    def _reshard(self, spec: P, tree: Any) -> Any:
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda a: jax.sharding.reshard(a, sharding), tree)


def _heads(cell: Any) -> int:
    return getattr(cell, "heads", 1)


def _unsupported_reason(cell: Any) -> str | None:
    """Why a cell cannot be sharded with one collective operation per step, or None."""
    if isinstance(cell, Wrapper):
        return f"{type(cell).__name__} draws its noise for all units together"
    if not isinstance(cell, (*DENSE_RECURRENCE, *ELEMENTWISE)):
        return "the layout of its units in its parameters is unknown"
    if isinstance(cell, LSTMVariant) and cell.layer_norm is not None:
        return f"layer_norm={cell.layer_norm!r} requires the mean over all units at every step"
    if isinstance(cell, LSTMVariant) and cell.proj_size is not None:
        return "with proj_size, the h of a unit depends on the states of all units"
    if isinstance(cell, GRUVariant) and not cell.reset_after:
        return "with reset_after=False, a step has two consecutive products, each with a collective operation"
    return None


def _check_mesh(mesh: Any, data: str | None, model: str) -> None:
    wanted = [name for name in (data, model) if name is not None]
    if not isinstance(mesh, Mesh) or any(name not in mesh.shape for name in wanted):
        got = f"axes {dict(mesh.shape)}" if isinstance(mesh, Mesh) else f"a {type(mesh).__name__}"
        raise value_error(
            f"Sharded got a mesh with {got}" if isinstance(mesh, Mesh) else f"Sharded got {got}",
            f"a jax.sharding.Mesh with the axes {', '.join(map(repr, wanted))}",
            "Use jax.make_mesh((4, 2), ('data', 'model')); an axis may have one device.",
        )
    types = set(mesh.axis_types)
    if len(types) > 1 or AxisType.Manual in types:
        raise value_error(
            f"Sharded got a mesh with axes of type {', '.join(axis.name for axis in mesh.axis_types)}",
            "axes that are all automatic or all explicit",
            f"Use jax.make_mesh({tuple(mesh.shape.values())}, {mesh.axis_names}).",
        )
