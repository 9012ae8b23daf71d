"""Networks of cells with the face of a cell: layers one upon the other, and both directions of time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.readout import Readout
from lstm_jax.checks import check_choice, check_key, check_member, is_number, refuse
from lstm_jax.fused import emit
from lstm_jax.loop import Flags, one_step
from lstm_jax.noise import bernoulli, is_noisy
from lstm_jax.notation import Array, Carry, Params, event_ndim, exportable, splits
from lstm_jax.unroll import Options, Run, Times, Unrolled, flags_of

MERGES: dict[str, Callable[[Array, Array], Array]] = {
    "concat": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "sum": jnp.add,
    "mean": lambda a, b: (a + b) / 2,
    "product": jnp.multiply,
}


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
        refuse(
            "Bidirectional.step was called, but its output at a step depends on all steps after it",
            "a whole sequence",
            "Use lstm_jax.unroll(network, params, xs), or a network without Bidirectional for streaming.",
        )

    def compose(
        self, run: Run, params: Any, xs: Array, carry: Any | None, options: Options, times: Times
    ) -> Unrolled:
        """Both directions; called by ``unroll``."""
        _check_params("Bidirectional", params, 2)
        noisy = times.key is not None and is_noisy(self.cell)  # each direction has noise of its own
        loops = splits(self.cell) and not hasattr(self.cell, "coefficients")  # or else all steps at once
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
                _for_member(times, index),
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


@dataclass(frozen=True)
class Stack:
    """Layers one upon the other: the outputs of each are the inputs of the next.

    Parameters and carry are tuples with one entry a layer. A stack steps where all its layers do.

    Args:
        layers: cells, :class:`Bidirectional`, :class:`Readout` or other stacks; a tuple.
        residual: every layer after the first adds its input to its output (He et al. 2016; for
            recurrent stacks Wu et al. 2016). A last layer of another width, a read-out for
            instance, belongs outside.
        skip: every layer after the first also reads the network's input, behind the output of the
            layer below it (Graves 2013); its ``input_size`` is the sum of both.
        dropout: share of the features between two layers that is set to zero, the others being
            scaled up by 1 / (1 - dropout), when ``unroll`` is given a ``key`` (Srivastava et al.
            2014; on the non-recurrent connections: Zaremba et al. 2014). With ``residual``, what
            the layer reads is dropped, what is added to its output is not.
        dropout_mask: ``"step"`` draws a fresh mask at every step, ``"sequence"`` one for all of them
            (Gal & Ghahramani 2016).

    Raises:
        ValueError: sizes of neighbours do not fit, or an option is out of range.

    >>> import lstm_jax
    >>> network = Stack((lstm_jax.LSTM(3, 8), lstm_jax.GRU(8, 8)), dropout=0.5)
    >>> params = network.init(jax.random.key(0))
    >>> carry, ys = lstm_jax.unroll(network, params, jnp.ones((5, 4, 3)), key=jax.random.key(1))
    >>> ys.shape
    (5, 4, 8)
    """

    layers: tuple[Any, ...]
    _: KW_ONLY
    residual: bool = False
    skip: bool = False
    dropout: float = 0.0
    dropout_mask: str = "step"

    def __post_init__(self) -> None:
        if not isinstance(self.layers, (tuple, list)) or not self.layers:
            refuse(
                f"Stack got layers={self.layers!r}",
                "a tuple of one cell or more",
                "Write Stack((cell, cell)).",
            )
        object.__setattr__(self, "layers", tuple(self.layers))
        for layer in self.layers:
            check_member("Stack", layer)
        check_choice("Stack", "dropout_mask", self.dropout_mask, ("step", "sequence"))
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            refuse(f"Stack got dropout={self.dropout!r}", "a share in [0, 1)", "0 switches it off.")
        object.__setattr__(self, "dropout", float(self.dropout))
        self._check_sizes()

    def _check_sizes(self) -> None:
        first = getattr(self.layers[0], "input_size", None)
        space = _space(self.layers[0], "output")
        for index in range(1, len(self.layers)):
            below, layer = self.layers[index - 1], self.layers[index]
            space = self._check_space(index, space)
            width = getattr(below, "output_size", None)
            size = getattr(layer, "input_size", None)
            if width is None or size is None or first is None:
                continue
            reads = width + (first if self.skip else 0)
            if size != reads:
                refuse(
                    f"Stack got layer {index} with input_size={size} over a layer with {width} outputs",
                    f"input_size={reads}"
                    + (f" ({width} outputs and, with skip, {first} inputs)" if self.skip else ""),
                    "Bring the two sizes into agreement (a Bidirectional that concatenates has 2H outputs).",
                )
            if self.residual and getattr(layer, "output_size", width) != width:
                refuse(
                    f"Stack(residual=True) got layer {index} with {layer.output_size} outputs over {width}",
                    "as many outputs as the layer below, since they are added",
                    "Make the widths equal, or put a read-out outside of the stack.",
                )

    def _check_space(self, index: int, below: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """The axes of space that come out of layer ``index``, over those of ``below``; () of vectors.

        None where they are not known: a cell may have event_ndim without saying the shape.
        """
        layer = self.layers[index]
        if isinstance(layer, Readout):  # it reads every pixel for itself
            return below
        reads, says = _space(layer, "input"), _space(layer, "output")
        if below is None or reads is None:
            return says
        first = _space(self.layers[0], "input")
        others = ([first] if self.skip else []) + ([says] if self.residual else [])
        if reads != below or any(other is not None and other != below for other in others):
            refuse(
                f"Stack got layer {index} with axes of space {reads} -> {says} over a layer with {below}",
                "the same axes of space, in all that is joined or added",
                "Bring input_shape, strides and padding into agreement.",
            )
        return says

    @property
    def input_size(self) -> int:
        """D of the first layer."""
        return self.layers[0].input_size

    @property
    def output_size(self) -> int:
        """Features of one output of the last layer."""
        return self.layers[-1].output_size

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, where the first layer's inputs are images."""
        return self.layers[0].input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of one output, where the layers' outputs are images."""
        images = [layer for layer in self.layers if not isinstance(layer, Readout)]
        return (*images[-1].output_shape[:-1], self.output_size)

    @property
    def event_ndim(self) -> int:
        """How many trailing axes of an input are features."""
        return event_ndim(self.layers[0])

    def init(self, key: Array) -> tuple[Params, ...]:
        """Fresh parameters, one entry a layer, from one PRNG key."""
        check_key("Stack.init", key)
        keys = jax.random.split(key, len(self.layers))
        return tuple(layer.init(k) for layer, k in zip(self.layers, keys, strict=True))

    def initial_carry(self, batch_shape: Sequence[int] = (), params: Any | None = None) -> tuple[Carry, ...]:
        """One carry a layer."""
        each = params if params is not None else (None,) * len(self.layers)
        return tuple(layer.initial_carry(batch_shape, p) for layer, p in zip(self.layers, each, strict=True))

    def step(self, params: Any, carry: Any, x: Array) -> tuple[tuple[Carry, ...], Array]:
        """One step through all layers, without noise."""
        _check_params("Stack", params, len(self.layers))
        _check_params("Stack", carry, len(self.layers), "a carry")

        def layer_step(index: int, y: Array) -> tuple[Carry, Array]:
            return self.layers[index].step(params[index], carry[index], y)

        after, y = self._through(x, layer_step, lambda index, y: y)
        return tuple(after), y

    def compose(
        self, run: Run, params: Any, xs: Array, carry: Any | None, options: Options, times: Times
    ) -> Unrolled:
        """Layer after layer, each over all of time; called by ``unroll``."""
        _check_params("Stack", params, len(self.layers))

        def layer_run(index: int, ys: Array) -> tuple[Unrolled, Array]:
            before = None if carry is None else carry[index]
            out = run(self.layers[index], params[index], ys, before, options, _for_member(times, index))
            return out, out.ys

        def drop(index: int, ys: Array) -> Array:
            return self._drop(ys, _for_member(times, len(self.layers) + index))

        outs, ys = self._through(xs, layer_run, drop)
        return Unrolled(tuple(out.carry for out in outs), ys, tuple(out.carries for out in outs))

    def _through(
        self, x: Array, layer: Callable[[int, Array], tuple[Any, Array]], drop: Callable[[int, Array], Array]
    ) -> tuple[list[Any], Array]:
        """How layers are wired, the same for one step and for a sequence."""
        results = []
        y = x
        for index in range(len(self.layers)):
            below = y
            if index > 0:
                y = drop(index, y)
                if self.skip:
                    y = jnp.concatenate([y, x.astype(y.dtype)], axis=-1)
            result, y = layer(index, y)
            results.append(result)
            if index > 0 and self.residual:
                y = y + below.astype(y.dtype)
        return results, y

    def _drop(self, ys: Array, times: Times) -> Array:
        key, keep = times.key, 1 - self.dropout
        if key is None or self.dropout == 0:
            return ys

        def mask(key: Array) -> Array:
            return bernoulli(key, keep, one_step(ys))

        if self.dropout_mask == "sequence":
            kept = mask(key)[None]
        else:
            steps = times.start + jnp.arange(ys.shape[0], dtype=jnp.int32)
            kept = jax.vmap(lambda t: mask(jax.random.fold_in(key, t)))(steps)
        return jnp.where(kept, ys / jnp.asarray(keep, ys.dtype), jnp.zeros((), ys.dtype))


def _for_member(times: Times, index: int) -> Times:
    """The same times with a key of the member's own."""
    return times if times.key is None else times._replace(key=jax.random.fold_in(times.key, index))


def _space(network: Any, side: str) -> tuple[int, ...] | None:
    """The axes of an input or output but for the last: () of vectors; None where a cell does not say."""
    shape = getattr(network, f"{side}_shape", None)
    if shape is None:
        return () if event_ndim(network) == 1 else None
    return tuple(shape[:-1])


def _check_params(owner: str, params: Any, count: int, what: str = "parameters") -> None:
    if not isinstance(params, (tuple, list)) or len(params) != count:
        came = (
            f"{len(params)} entries" if isinstance(params, (tuple, list)) else f"type {type(params).__name__}"
        )
        refuse(
            f"{owner} got {what} of {came}", f"a tuple of {count}, one a member", "Make it with init(key)."
        )
