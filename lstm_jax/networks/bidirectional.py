"""Both directions of time, with the interface of a cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_cell_methods, check_choice, check_key, check_tuple, value_error
from lstm_jax._types import Array, Carry, Params, exportable
from lstm_jax.cells._base import (
    MERGES,
    BaseCell,
    FlatLayers,
    Network,
    as_base_cell,
    compute_form,
    differences,
)
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

    Unroll it; it cannot ``step``, because half of every output depends on later inputs. Cells that split
    (:class:`lstm_jax.SplitCell`) run in one loop. The carry is ``(forward, backward)``, the backward one
    being the carry after the first valid step.

    Args:
        cell: any cell; it runs forward, and backward unless ``backward`` is given.
        merge: how the two outputs are combined: ``"concat"`` (2H features), ``"sum"``, ``"mean"`` or
            ``"product"``.
        backward: the cell that runs backward, with inputs of the same shape; None: ``cell``. A ``backward``
            that equals ``cell`` is replaced by None.

    Raises:
        ValueError: the merge is unknown, ``cell`` or ``backward`` is not a cell, or the inputs of the two
            cells differ, or their outputs differ and the merge is not ``"concat"``.

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
    backward: Any = None

    def __post_init__(self) -> None:
        check_cell_methods("Bidirectional", self.cell)
        check_choice("Bidirectional", "merge", self.merge, tuple(MERGES))
        if self.backward is None:
            return
        check_cell_methods("Bidirectional", self.backward)
        if self.backward == self.cell:
            object.__setattr__(self, "backward", None)
            return
        self._check_equal("input_size", "input_shape")
        if as_base_cell(self.cell).event_ndim != as_base_cell(self.backward).event_ndim:
            self._check_equal("event_ndim")
        if self.merge != "concat":
            self._check_equal("output_size", "output_shape")
        elif _space(self.cell) != _space(self.backward):
            self._check_equal("output_shape")

    def _check_equal(self, *names: str) -> None:
        """Check that attributes of the two cells are equal, if both cells have them."""
        for name in names:
            forward, backward = (getattr(cell, name, None) for cell in self.cells)
            if forward != backward and None not in (forward, backward):
                merged = "" if name.startswith("input") else f" with merge={self.merge!r}"
                raise value_error(
                    f"Bidirectional got cells with {name}={forward} forward and {backward} backward{merged}",
                    f"the same {name} in both directions",
                    "Give cell and backward equal sizes; merge='concat' joins outputs of different sizes.",
                )

    @property
    def cells(self) -> tuple[Any, Any]:
        """The forward and the backward cell."""
        return self.cell, self.cell if self.backward is None else self.backward

    @property
    def input_size(self) -> int:
        """Features of one input."""
        return self.cell.input_size

    @property
    def output_size(self) -> int:
        """Features of one output after the merge."""
        forward, backward = self.cells
        return forward.output_size + backward.output_size if self.merge == "concat" else forward.output_size

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
        """Whether a cell draws anything."""
        return any(as_base_cell(cell).has_noise for cell in self.cells)

    @property
    def optional_params(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of both directions."""
        pairs = zip(BidirectionalParams._fields, self.cells, strict=True)
        return tuple(f"{way}.{name}" for way, cell in pairs for name in as_base_cell(cell).optional_params)

    def replace_cells(self, function: Callable[[Any], Any]) -> Bidirectional:
        """The network with ``function(cell)`` in place of each cell."""
        backward = None if self.backward is None else function(self.backward)
        return dataclasses.replace(self, cell=function(self.cell), backward=backward)

    def compute_form(self) -> Bidirectional:
        """The network of the cells' compute forms."""
        return self.replace_cells(compute_form)

    def init(self, key: Array) -> BidirectionalParams:
        """Fresh parameters for both directions from one PRNG key."""
        check_key("Bidirectional.init", key)
        keys = jax.random.split(key)
        return BidirectionalParams(*(cell.init(k) for cell, k in zip(self.cells, keys, strict=True)))

    def initial_carry(
        self, batch_shape: Sequence[int] = (), params: Any | None = None
    ) -> tuple[Carry, Carry]:
        """``(forward, backward)``, each the cell's own."""
        return Pair(self.cells).initial_carry(batch_shape, params)

    def step(self, params: Any, carry: Any, x: Any, noise: None = None) -> NoReturn:
        """Raises a ``ValueError``: there is no single step in two directions."""
        raise value_error(
            "Bidirectional.step was called, but its output at a step depends on all steps after it",
            "a whole sequence",
            "Use lstm_jax.unroll(network, params, xs), or a network without Bidirectional for streaming.",
        )

    def flat_layers(self, noisy: bool) -> FlatLayers | str:
        """One layer in both directions, where both have the same cell."""
        if self.backward is not None:
            return f"its two directions have different cells: {differences(*self.cells)}"
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
        """Both directions, in one loop where both cells split."""
        check_tuple("Bidirectional", params, 2)
        noisy = steps.key is not None and self.has_noise  # each direction draws its own noise
        # A kernel has one direction.
        if not self._share_a_loop() or noisy or options.implementation == "pallas":
            return self.run_separately(run, options, params, xs, carry, reset_to, steps)
        pair = Pair(tuple(map(as_base_cell, self.cells)))
        reverses = (options.reverse, not options.reverse)
        return self._merged(
            options, *_in_one_loop(pair, run, options, reverses, params, xs, carry, reset_to, steps)
        )

    def run_separately(
        self,
        run: Any,
        options: Options,
        params: Any,
        xs: Array,
        carry: Any,
        reset_to: Any,
        steps: Steps,
    ) -> Unrolled:
        """Both directions, each in its own loop."""
        check_tuple("Bidirectional", params, 2)
        forward, backward = (
            run(
                cell,
                options._replace(reverse=reverse),
                params[index],
                xs,
                None if carry is None else carry[index],
                None if reset_to is None else reset_to[index],
                steps.for_layer(index),
            )
            for index, (cell, reverse) in enumerate(
                zip(self.cells, (options.reverse, not options.reverse), strict=True)
            )
        )
        return self._merged(options, forward, backward)

    def _merged(self, options: Options, forward: Unrolled, backward: Unrolled) -> Unrolled:
        ys = MERGES[self.merge](forward.ys, backward.ys)
        carries = (forward.carries, backward.carries) if options.return_carries else None
        return Unrolled((forward.carry, backward.carry), ys, carries)

    def _share_a_loop(self) -> bool:
        """Both cells run through the fused scan, or both split and run through the plain scan."""
        cells = tuple(map(as_base_cell, self.cells))
        split = all(cell.splits and not cell.linear_recurrence for cell in cells)
        return split and len({cell.fused_unsupported() is None for cell in cells}) == 1


def _in_one_loop(
    pair: Pair,
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
    result = run(
        pair,
        options._replace(reverse=False),
        params,
        tuple(flip(xs, reverse) for reverse in reverses),
        carry,
        None,
        steps._replace(flags=(flags, None if stored is None else (stored, other))),
    )
    carries = result.carries or (None, None)
    forward, backward = (
        Unrolled(result.carry[i], flip(result.ys[i], reverse), flip(carries[i], reverse))
        for i, reverse in enumerate(reverses)
    )
    return forward, backward


def _space(cell: Any) -> tuple[int, ...]:
    """The axes of an output in front of its features."""
    return tuple((getattr(cell, "output_shape", None) or (0,))[:-1])


@dataclass(frozen=True)
class Pair(BaseCell):
    """Two cells as one cell, the forward and the backward one: arguments and results are pairs."""

    cells: tuple[Any, Any]

    @property
    def event_ndim(self) -> int:  # type: ignore[override]
        """How many trailing axes of an input are features."""
        return self.cells[0].event_ndim

    @property
    def affine_recurrence(self) -> bool | None:  # type: ignore[override]
        """Whether it is True of both cells; None (probe both) if unknown."""
        facts = [cell.affine_recurrence for cell in self.cells]
        return False if False in facts else None if None in facts else True

    @property
    def update_reads_params(self) -> bool | None:  # type: ignore[override]
        """Whether it is True of one cell; None (probe both) if unknown."""
        facts = [cell.update_reads_params for cell in self.cells]
        return True if True in facts else None if None in facts else False

    def fused_unsupported(self) -> str | None:
        """The first reason of a cell."""
        return self.cells[0].fused_unsupported() or self.cells[1].fused_unsupported()

    def describe(self) -> str:
        """The cells, for ``explain``."""
        forward, backward = self.cells
        if forward == backward:
            return f"{forward.describe()}, both directions"
        return f"{forward.describe()} forward, {backward.describe()} backward"

    def initial_carry(self, batch_shape: Sequence[int] = (), params: Any | None = None) -> Any:
        """One carry for each cell."""
        pairs = zip(self.cells, params or (None, None), strict=True)
        return tuple(cell.initial_carry(batch_shape, p) for cell, p in pairs)

    def step(self, params: Any, carry: Any, x: Any, noise: None = None) -> Any:
        """One step of each."""
        return _unzip(cell.step(*args) for cell, *args in zip(self.cells, params, carry, x, strict=True))

    def project(self, params: Any, x: Any) -> Any:
        """The projected input of each."""
        return tuple(cell.project(*args) for cell, *args in zip(self.cells, params, x, strict=True))

    def recur(self, params: Any, carry: Any, u: Any) -> Any:
        """The pre-activation of each."""
        return tuple(cell.recur(*args) for cell, *args in zip(self.cells, params, carry, u, strict=True))

    def update(self, params: Any, carry: Any, z: Any, noise: None = None) -> Any:
        """The new carry and the output of each."""
        return _unzip(cell.update(*args) for cell, *args in zip(self.cells, params, carry, z, strict=True))

    def emit(self, params: Any, raw: Any) -> Any:
        """The new carry and the output of each from what ``update`` returns."""
        each = zip(self.cells, params, zip(*raw, strict=True), strict=True)
        return _unzip(cell.emit(p, r) for cell, p, r in each)


def _unzip(results: Iterable[tuple[Carry, Array]]) -> Any:
    (c0, y0), (c1, y1) = results
    return (c0, c1), (y0, y1)
