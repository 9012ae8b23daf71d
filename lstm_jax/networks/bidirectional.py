"""Both directions of time, with the interface of a cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_cell_methods, check_choice, check_key, check_tuple, value_error
from lstm_jax._types import Array, Carry, Params, exportable
from lstm_jax.cells._base import MERGES, BaseCell, FlatLayers, Network, as_base_cell, compute_form
from lstm_jax.unrolling.run import Options, Steps, Unrolled, step_flags
from lstm_jax.unrolling.steps import Flags


@exportable
class BidirectionalParams(NamedTuple):
    """Parameters of a :class:`Bidirectional`: one set for each direction."""

    forward: Params
    backward: Params


@dataclass(frozen=True, repr=False)
class Bidirectional(Network):
    """A cell in both directions of time, with parameters for each (Schuster & Paliwal 1997).

    Unroll it; it cannot ``step``, because half of every output depends on later inputs. Both directions of a
    cell that splits (:class:`lstm_jax.SplitCell`) run in one loop. The carry is ``(forward, backward)``, the
    backward one being the carry after the first valid step.

    Args:
        cell: any cell.
        merge: how the two outputs are combined: ``"concat"`` (2H features), ``"sum"``, ``"mean"`` or
            ``"product"``.

    Raises:
        ValueError: the merge is unknown, or ``cell`` is not a cell.

    >>> import lstm_jax
    >>> network = lstm_jax.Bidirectional(lstm_jax.LSTM(input_size=3, hidden_size=2))
    >>> params = network.init(jax.random.key(0))
    >>> (forward, backward), ys = lstm_jax.unroll(network, params, jnp.ones((5, 4, 3)))
    >>> ys.shape
    (5, 4, 4)
    """

    cell: Any
    _: KW_ONLY
    merge: str = "concat"

    def __post_init__(self) -> None:
        check_cell_methods("Bidirectional", self.cell)
        check_choice("Bidirectional", "merge", self.merge, tuple(MERGES))

    @property
    def input_size(self) -> int:
        """Features of one input."""
        return self.cell.input_size

    @property
    def output_size(self) -> int:
        """Features of one output after the merge."""
        return self.cell.output_size * (2 if self.merge == "concat" else 1)

    @property
    def input_shape(self) -> Any:
        """The shape of one input, of cells whose inputs are images."""
        return getattr(self.cell, "input_shape", None)

    @property
    def output_shape(self) -> Any:
        """The shape of one output, of cells whose outputs are images."""
        shape = getattr(self.cell, "output_shape", None)
        return None if shape is None else (*shape[:-1], self.output_size)

    @property
    def event_ndim(self) -> int:  # type: ignore[override]
        """How many trailing axes of an input are features."""
        return as_base_cell(self.cell).event_ndim

    @property
    def has_noise(self) -> bool:
        """Whether the cell draws anything."""
        return as_base_cell(self.cell).has_noise

    @property
    def optional_params(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of both directions."""
        names = as_base_cell(self.cell).optional_params
        return tuple(f"{way}.{name}" for way in BidirectionalParams._fields for name in names)

    def compute_form(self) -> Bidirectional:
        """The network of the cell's compute form."""
        return dataclasses.replace(self, cell=compute_form(self.cell))

    def init(self, key: Array) -> BidirectionalParams:
        """Fresh parameters for both directions from one PRNG key."""
        check_key("Bidirectional.init", key)
        forward, backward = jax.random.split(key)
        return BidirectionalParams(self.cell.init(forward), self.cell.init(backward))

    def initial_carry(
        self, batch_shape: Sequence[int] = (), params: Any | None = None
    ) -> tuple[Carry, Carry]:
        """``(forward, backward)``, each the cell's own."""
        forward, backward = params if params is not None else (None, None)
        return self.cell.initial_carry(batch_shape, forward), self.cell.initial_carry(batch_shape, backward)

    def step(self, params: Any, carry: Any, x: Any, noise: None = None) -> NoReturn:
        """Raises a ``ValueError``: there is no single step in two directions."""
        raise value_error(
            "Bidirectional.step was called, but its output at a step depends on all steps after it",
            "a whole sequence",
            "Use lstm_jax.unroll(network, params, xs), or a network without Bidirectional for streaming.",
        )

    def flat_layers(self, noisy: bool) -> FlatLayers | str:
        """One layer in both directions."""
        return FlatLayers((self.cell,), 2, self.merge)

    def run_layers(
        self,
        run: Any,
        options: Options,
        params: Any,
        xs: Array,
        carry: Any,
        reset_to: Any,
        steps: Steps,
    ) -> Unrolled:
        """Both directions, in one loop where the cell splits."""
        check_tuple("Bidirectional", params, 2)
        cell = as_base_cell(self.cell)
        noisy = steps.key is not None and cell.has_noise  # each direction draws its own noise
        in_one_loop = cell.splits and not cell.linear_recurrence and not noisy
        in_one_loop = in_one_loop and options.implementation != "pallas"  # a kernel has one direction
        reverses = (options.reverse, not options.reverse)
        if in_one_loop:
            forward, backward = _in_one_loop(cell, run, options, reverses, params, xs, carry, reset_to, steps)
        else:
            forward, backward = (
                run(
                    self.cell,
                    options._replace(reverse=reverse),
                    params[index],
                    xs,
                    None if carry is None else carry[index],
                    None if reset_to is None else reset_to[index],
                    steps.for_layer(index),
                )
                for index, reverse in enumerate(reverses)
            )
        ys = MERGES[self.merge](forward.ys, backward.ys)
        carries = (forward.carries, backward.carries) if options.return_carries else None
        return Unrolled((forward.carry, backward.carry), ys, carries)


def _in_one_loop(
    cell: Any,
    run: Any,
    options: Options,
    reverses: tuple[bool, bool],
    params: Any,
    xs: Array,
    carry: Any,
    reset_to: Any,
    steps: Steps,
) -> tuple[Unrolled, Unrolled]:
    """Both directions as one cell that runs forward over pairs.

    The backward direction is given time flipped, and what it returns is flipped back.
    """

    def flip(tree: Any, reverse: bool) -> Any:
        return jax.tree.map(lambda a: jnp.flip(a, 0), tree) if reverse else tree

    each = []
    for index, reverse in enumerate(reverses):
        own = None if reset_to is None else reset_to[index]
        found = step_flags(xs.shape[0], options._replace(reverse=reverse), steps, own)
        each.append(flip(found, reverse))
    (first, stored), (second, other) = each
    flags = Flags(*(None if a is None else (a, b) for a, b in zip(first, second, strict=True)))
    pair = run(
        Pair(cell),
        options._replace(reverse=False),
        params,
        tuple(flip(xs, reverse) for reverse in reverses),
        carry,
        None,
        steps._replace(flags=(flags, None if stored is None else (stored, other))),
    )
    carries = pair.carries or (None, None)
    forward, backward = (
        Unrolled(pair.carry[i], flip(pair.ys[i], reverse), flip(carries[i], reverse))
        for i, reverse in enumerate(reverses)
    )
    return forward, backward


@dataclass(frozen=True)
class Pair(BaseCell):
    """Two directions of one cell as one cell: its arguments and results are pairs."""

    cell: Any

    @property
    def event_ndim(self) -> int:  # type: ignore[override]
        """How many trailing axes of an input are features."""
        return self.cell.event_ndim

    @property
    def affine_recurrence(self) -> bool | None:  # type: ignore[override]
        """That of the cell."""
        return self.cell.affine_recurrence

    @property
    def update_reads_params(self) -> bool | None:  # type: ignore[override]
        """That of the cell."""
        return self.cell.update_reads_params

    def fused_unsupported(self) -> str | None:
        """The cell's own reason."""
        return self.cell.fused_unsupported()

    def describe(self) -> str:
        """The cell, for ``explain``."""
        return f"{self.cell.describe()}, both directions"

    def initial_carry(self, batch_shape: Sequence[int] = (), params: Any | None = None) -> Any:
        """One carry for each of the two sets of parameters."""
        return tuple(self.cell.initial_carry(batch_shape, p) for p in params or (None, None))

    def step(self, params: Any, carry: Any, x: Any, noise: None = None) -> Any:
        """One step of each."""
        return _unzip(map(self.cell.step, params, carry, x))

    def project(self, params: Any, x: Any) -> Any:
        """The projected input of each."""
        return tuple(map(self.cell.project, params, x))

    def recur(self, params: Any, carry: Any, u: Any) -> Any:
        """The pre-activation of each."""
        return tuple(map(self.cell.recur, params, carry, u))

    def update(self, params: Any, carry: Any, z: Any, noise: None = None) -> Any:
        """The new carry and the output of each."""
        return _unzip(map(self.cell.update, params, carry, z))

    def emit(self, params: Any, raw: Any) -> Any:
        """The new carry and the output of each from what ``update`` returns."""
        return _unzip(self.cell.emit(p, r) for p, r in zip(params, zip(*raw, strict=True), strict=True))


def _unzip(results: Iterable[tuple[Carry, Array]]) -> Any:
    (c0, y0), (c1, y1) = results
    return (c0, c1), (y0, y1)
