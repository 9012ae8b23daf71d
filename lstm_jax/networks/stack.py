"""Layers one upon the other, with the face of a cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_choice, check_key, check_member, check_tuple, is_number, value_error
from lstm_jax._random import bernoulli
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import event_ndim
from lstm_jax.cells.readout import Readout
from lstm_jax.unrolling.layers import Layers, joined, layers_of
from lstm_jax.unrolling.run import Options, Run, Times, Unrolled
from lstm_jax.unrolling.steps import one_step


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
            raise value_error(
                f"Stack got layers={self.layers!r}",
                "a tuple of one cell or more",
                "Write Stack((cell, cell)).",
            )
        object.__setattr__(self, "layers", tuple(self.layers))
        for layer in self.layers:
            check_member("Stack", layer)
        check_choice("Stack", "dropout_mask", self.dropout_mask, ("step", "sequence"))
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise value_error(
                f"Stack got dropout={self.dropout!r}", "a share in [0, 1)", "0 switches it off."
            )
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
                raise value_error(
                    f"Stack got layer {index} with input_size={size} over a layer with {width} outputs",
                    f"input_size={reads}"
                    + (f" ({width} outputs and, with skip, {first} inputs)" if self.skip else ""),
                    "Bring the two sizes into agreement (a Bidirectional that concatenates has 2H outputs).",
                )
            if self.residual and getattr(layer, "output_size", width) != width:
                raise value_error(
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
            raise value_error(
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
        check_tuple("Stack", params, len(self.layers))
        check_tuple("Stack", carry, len(self.layers), "a carry")

        def layer_step(index: int, y: Array) -> tuple[Carry, Array]:
            return self.layers[index].step(params[index], carry[index], y)

        after, y = self._through(x, layer_step, lambda index, y: y)
        return tuple(after), y

    def as_layers(self, noisy: bool) -> Layers | str:
        """All layers as one network of equal ones, where they are (``lstm_jax.unrolling.layers``)."""
        if len(self.layers) > 1:
            if self.residual or self.skip:
                return f"Stack({'residual' if self.residual else 'skip'}=True) does more than hand outputs on"
            if self.dropout and noisy:
                return "Stack(dropout=...) drops features between its layers"
        return joined([layers_of(layer, noisy) for layer in self.layers])

    def compose(
        self, run: Run, params: Any, xs: Array, carry: Any | None, options: Options, times: Times
    ) -> Unrolled:
        """Layer after layer, each over all of time; called by ``unroll``."""
        check_tuple("Stack", params, len(self.layers))

        def layer_run(index: int, ys: Array) -> tuple[Unrolled, Array]:
            before = None if carry is None else carry[index]
            out = run(self.layers[index], params[index], ys, before, options, times.of(index))
            return out, out.ys

        def drop(index: int, ys: Array) -> Array:
            return self._drop(ys, times.of(len(self.layers) + index))

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


def _space(network: Any, side: str) -> tuple[int, ...] | None:
    """The axes of an input or output but for the last: () of vectors; None where a cell does not say."""
    shape = getattr(network, f"{side}_shape", None)
    if shape is None:
        return () if event_ndim(network) == 1 else None
    return tuple(shape[:-1])
