"""Both directions of time, with the face of a cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_choice, check_key, check_member, check_tuple, value_error
from lstm_jax._random import is_noisy
from lstm_jax._types import Array, Carry, Params, exportable
from lstm_jax.cells._base import event_ndim, splits
from lstm_jax.unrolling.fused_scan import emit
from lstm_jax.unrolling.layers import MERGES, Layers
from lstm_jax.unrolling.run import Options, Run, Times, Unrolled, flags_of
from lstm_jax.unrolling.steps import Flags


@exportable
class BidirectionalParams(NamedTuple):
    """Parameters of a :class:`Bidirectional`: one set a direction."""

    forward: Params
    backward: Params


@dataclass(frozen=True)
class Bidirectional:
    """A cell that walks both ways over time, with its own parameters for each (Schuster & Paliwal 1997).

    Unroll it; it cannot ``step``, because half of every output comes from the future. Both
    directions of a cell that splits (:class:`lstm_jax.SplitCell`) go round in one loop. The carry
    is ``(forward, backward)``, the backward one being the carry after the first valid step.

    Args:
        cell: any cell.
        merge: how the two outputs become one: ``"concat"`` (2H features), ``"sum"``, ``"mean"`` or
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
        check_member("Bidirectional", self.cell)
        check_choice("Bidirectional", "merge", self.merge, tuple(MERGES))

    @property
    def input_size(self) -> int:
        """D of the cell."""
        return self.cell.input_size

    @property
    def output_size(self) -> int:
        """Features of one output after the merge."""
        return self.cell.output_size * (2 if self.merge == "concat" else 1)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, of cells whose inputs are images."""
        return self.cell.input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of one output, of cells whose outputs are images."""
        return (*self.cell.output_shape[:-1], self.output_size)

    @property
    def event_ndim(self) -> int:
        """How many trailing axes of an input are features."""
        return event_ndim(self.cell)

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

    def step(self, params: Any, carry: Any, x: Any) -> Any:
        """Refused: there is no single step in two directions."""
        raise value_error(
            "Bidirectional.step was called, but its output at a step depends on all steps after it",
            "a whole sequence",
            "Use lstm_jax.unroll(network, params, xs), or a network without Bidirectional for streaming.",
        )

    def as_layers(self, noisy: bool) -> Layers | str:
        """One layer in both directions (``lstm_jax.unrolling.layers``)."""
        return Layers((self.cell,), 2, self.merge)

    def compose(
        self, run: Run, params: Any, xs: Array, carry: Any | None, options: Options, times: Times
    ) -> Unrolled:
        """Both directions; called by ``unroll``."""
        check_tuple("Bidirectional", params, 2)
        noisy = times.key is not None and is_noisy(self.cell)  # each direction has noise of its own
        loops = splits(self.cell) and not hasattr(self.cell, "coefficients")  # or else all steps at once
        loops = loops and options.implementation != "pallas"  # a kernel walks one way
        both = _in_one_loop if loops and not noisy else _one_by_one
        forward, backward = both(self.cell, run, params, xs, carry, options, times)
        ys = MERGES[self.merge](forward.ys, backward.ys)
        return Unrolled((forward.carry, backward.carry), ys, (forward.carries, backward.carries))


def _one_by_one(
    cell: Any, run: Run, params: Any, xs: Array, carry: Any | None, options: Options, times: Times
) -> tuple[Unrolled, Unrolled]:
    results = []
    for index, reverse in enumerate((options.reverse, not options.reverse)):
        results.append(
            run(
                cell,
                params[index],
                xs,
                None if carry is None else carry[index],
                options._replace(reverse=reverse),
                times.of(index),
            )
        )
    return results[0], results[1]


def _in_one_loop(
    cell: Any, run: Run, params: Any, xs: Array, carry: Any | None, options: Options, times: Times
) -> tuple[Unrolled, Unrolled]:
    """Both directions as one cell that walks forward over pairs.

    The direction that walks backward is given time flipped, and what it returns is flipped back.
    """
    reverses = (options.reverse, not options.reverse)

    def flip(a: Any, reverse: bool) -> Any:
        return jax.tree.map(lambda a: jnp.flip(a, 0), a) if reverse else a

    each = [flip(flags_of(xs.shape[0], options._replace(reverse=r), times), r) for r in reverses]
    flags = Flags(*(None if pair[0] is None else pair for pair in zip(*each, strict=True)))
    both = run(
        Pair(cell),
        params,
        tuple(flip(xs, reverse) for reverse in reverses),
        carry,
        options._replace(reverse=False),
        times._replace(flags=flags),
    )
    carries = both.carries or (None, None)
    forward, backward = (
        Unrolled(both.carry[i], flip(both.ys[i], reverse), flip(carries[i], reverse))
        for i, reverse in enumerate(reverses)
    )
    return forward, backward


@dataclass(frozen=True)
class Pair:
    """Two walks of one cell as one: all that it is given and returns is a pair."""

    cell: Any

    @property
    def event_ndim(self) -> int:
        """How many trailing axes of an input are features."""
        return event_ndim(self.cell)

    def declines(self) -> str | None:
        """The cell's own reason."""
        declines = getattr(self.cell, "declines", None)
        return None if declines is None else declines()

    def initial_carry(self, batch_shape: Sequence[int] = (), params: Any | None = None) -> Any:
        """One carry for each of the two sets of parameters."""
        return tuple(self.cell.initial_carry(batch_shape, p) for p in params or (None, None))

    def step(self, params: Any, carry: Any, x: Any) -> Any:
        """One step of each."""
        return _unzip(map(self.cell.step, params, carry, x))

    def project(self, params: Any, x: Any) -> Any:
        """The projected input of each."""
        return tuple(map(self.cell.project, params, x))

    def recur(self, params: Any, carry: Any, u: Any) -> Any:
        """The pre-activation of each."""
        return tuple(map(self.cell.recur, params, carry, u))

    def update(self, params: Any, carry: Any, z: Any) -> Any:
        """The new carry and the output of each, before they are emitted."""
        return _unzip(map(self.cell.update, params, carry, z))

    def emit(self, params: Any, raw: Any) -> Any:
        """What leaves the step, of each."""
        return _unzip(emit(self.cell, p, r) for p, r in zip(params, zip(*raw, strict=True), strict=True))


def _unzip(results: Iterable[tuple[Carry, Array]]) -> Any:
    (c0, y0), (c1, y1) = results
    return (c0, c1), (y0, y1)
