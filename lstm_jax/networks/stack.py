"""A stack of layers, with the interface of a cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_cell_methods, check_choice, check_key, check_tuple, is_number, value_error
from lstm_jax._random import bernoulli
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import FlatLayers, Network, as_base_cell, compute_form, flatten
from lstm_jax.cells.readout import Readout
from lstm_jax.unrolling.run import Options, Steps, Unrolled
from lstm_jax.unrolling.steps import one_step


@dataclass(frozen=True, repr=False)
class Stack(Network):
    """A stack of layers: the outputs of each layer are the inputs of the next.

    Dropout and layers with noise require a ``key`` in ``unroll``; without a key there is no noise.

    Parameters and carry are tuples with one entry per layer. ``step`` works if all layers have one.

    Args:
        layers: cells, :class:`Bidirectional`, :class:`Readout` or other stacks; a tuple.
        residual: every layer after the first adds its input to its output (He et al. 2016; for
            recurrent stacks Wu et al. 2016). Put a last layer of another width, for instance a readout,
            outside of the stack.
        skip: every layer after the first reads the output of the layer below, concatenated with the input of
            the network (Graves 2013); its ``input_size`` is the sum of both sizes.
        dropout: rate at which features between two layers are set to zero if ``unroll`` is given a ``key``;
            the others are multiplied by 1 / (1 - dropout) (Srivastava et al. 2014; on non-recurrent
            connections Zaremba et al. 2014). With ``residual``, dropout applies to the input that a layer
            reads, not to the one that is added to its output.
        dropout_mask: ``"step"`` draws a mask at every step, ``"sequence"`` one mask for all steps
            (Gal & Ghahramani 2016).

    Raises:
        ValueError: the sizes of adjacent layers do not fit, an option is out of range, or there is dropout
            with one layer, where it would have no effect.

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
                "Use Stack((cell, cell)).",
            )
        object.__setattr__(self, "layers", tuple(self.layers))
        for layer in self.layers:
            check_cell_methods("Stack", layer)
        check_choice("Stack", "dropout_mask", self.dropout_mask, ("step", "sequence"))
        if not is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise value_error(
                f"Stack got dropout={self.dropout!r}", "a rate in [0, 1)", "Use 0 for no dropout."
            )
        if self.dropout and len(self.layers) == 1:
            raise value_error(
                f"Stack got dropout={self.dropout!r} with one layer",
                "two layers or more, because dropout is between layers",
                "Omit it, or wrap the cell: lstm_jax.VariationalDropout(cell, inputs=...).",
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
                    "Change one of the sizes (a Bidirectional that concatenates has 2H outputs).",
                )
            if self.residual and getattr(layer, "output_size", width) != width:
                raise value_error(
                    f"Stack(residual=True) got layer {index} with {layer.output_size} outputs over {width}",
                    "as many outputs as the layer below, since they are added",
                    "Make the widths equal, or put a readout outside of the stack.",
                )

    def _check_space(self, index: int, below: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """The spatial axes of the output of layer ``index``, given those of the layer below; () for vectors.

        None if they are unknown, because a cell may have event_ndim without shapes.
        """
        layer = self.layers[index]
        if isinstance(layer, Readout):  # applies to every pixel separately
            return below
        input_space, output_space = _space(layer, "input"), _space(layer, "output")
        if below is None or input_space is None:
            return output_space
        first = _space(self.layers[0], "input")
        others = ([first] if self.skip else []) + ([output_space] if self.residual else [])
        if input_space != below or any(other is not None and other != below for other in others):
            raise value_error(
                f"Stack got layer {index} with spatial axes {input_space} -> {output_space} over {below}",
                "equal spatial axes of all arrays that are passed on, concatenated or added",
                "Change input_shape, strides or padding.",
            )
        return output_space

    layers_choose = True

    @property
    def input_size(self) -> int:
        """Features of one input of the first layer."""
        return self.layers[0].input_size

    @property
    def output_size(self) -> int:
        """Features of one output of the last layer."""
        return self.layers[-1].output_size

    @property
    def input_shape(self) -> Any:
        """The shape of one input, if it is an image."""
        return getattr(self.layers[0], "input_shape", None)

    @property
    def output_shape(self) -> Any:
        """The shape of one output, if it is an image."""
        images = [layer for layer in self.layers if not isinstance(layer, Readout)]
        shape = getattr(images[-1], "output_shape", None) if images else None
        return None if shape is None else (*shape[:-1], self.output_size)

    @property
    def event_ndim(self) -> int:  # type: ignore[override]
        """How many trailing axes of an input are features."""
        return as_base_cell(self.layers[0]).event_ndim

    @property
    def has_noise(self) -> bool:
        """Whether there is dropout or a layer with noise."""
        return self.dropout > 0 or any(as_base_cell(layer).has_noise for layer in self.layers)

    @property
    def optional_params(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the layers."""
        by_layer = (as_base_cell(layer).optional_params for layer in self.layers)
        return tuple(f"{index}.{name}" for index, names in enumerate(by_layer) for name in names)

    def compute_form(self) -> Stack:
        """The stack of the compute forms of the layers."""
        return dataclasses.replace(self, layers=tuple(map(compute_form, self.layers)))

    def init(self, key: Array) -> tuple[Params, ...]:
        """Fresh parameters, one entry per layer, from one PRNG key."""
        check_key("Stack.init", key)
        keys = jax.random.split(key, len(self.layers))
        return tuple(layer.init(k) for layer, k in zip(self.layers, keys, strict=True))

    def initial_carry(self, batch_shape: Sequence[int] = (), params: Any | None = None) -> tuple[Carry, ...]:
        """One carry per layer."""
        params = (None,) * len(self.layers) if params is None else params
        pairs = zip(self.layers, params, strict=True)
        return tuple(layer.initial_carry(batch_shape, p) for layer, p in pairs)

    def step(self, params: Any, carry: Any, x: Array, noise: None = None) -> tuple[tuple[Carry, ...], Array]:
        """One step through all layers, without noise."""
        check_tuple("Stack", params, len(self.layers))
        check_tuple("Stack", carry, len(self.layers), "a carry")
        carries, y = [], x
        for index, layer in enumerate(self.layers):
            below = y
            new, y = layer.step(params[index], carry[index], self._layer_input(index, y, x))
            carries.append(new)
            y = self._layer_output(index, y, below)
        return tuple(carries), y

    def flat_layers(self, noisy: bool) -> FlatLayers | str:
        """All layers as one chain of cells, or the reason why they are not one."""
        if len(self.layers) > 1:
            if self.residual or self.skip:
                option = "residual" if self.residual else "skip"
                return f"Stack({option}=True) is not a chain of cells"
            if self.dropout and noisy:
                return "Stack(dropout=...) has dropout between its layers"
        first: FlatLayers | None = None
        last: FlatLayers | None = None
        cells: tuple[Any, ...] = ()
        for index, layer in enumerate(self.layers):
            part = flatten(layer, noisy)
            if isinstance(part, str):
                return part
            first, last = first or part, part
            if part.directions != first.directions:
                return "some layers are unidirectional and some bidirectional"
            if part.merge not in (None, "concat") and index < len(self.layers) - 1:
                return f"a layer below another one merges its directions by {part.merge!r}"
            cells += part.cells
        assert last is not None
        return last._replace(cells=cells)

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
        """Run each layer over the whole sequence."""
        check_tuple("Stack", params, len(self.layers))
        carries, all_carries, ys = [], [], xs
        for index, layer in enumerate(self.layers):
            below = ys
            if index > 0:
                ys = self._drop(ys, steps.for_layer(len(self.layers) + index))
            first = None if carry is None else carry[index]
            target = None if reset_to is None else reset_to[index]
            inputs = self._layer_input(index, ys, xs)
            out = run(layer, options, params[index], inputs, first, target, steps.for_layer(index))
            carries.append(out.carry)
            all_carries.append(out.carries)
            ys = self._layer_output(index, out.ys, below)
        return Unrolled(tuple(carries), ys, tuple(all_carries) if options.return_carries else None)

    def _layer_input(self, index: int, below: Array, x: Array) -> Array:
        """The input of a layer: the output of the layer below and, with ``skip``, the network's input."""
        if index == 0 or not self.skip:
            return below
        return jnp.concatenate([below, x.astype(below.dtype)], axis=-1)

    def _layer_output(self, index: int, y: Array, below: Array) -> Array:
        """The output of a layer plus, with ``residual``, the output of the layer below."""
        return y + below.astype(y.dtype) if index > 0 and self.residual else y

    def _drop(self, ys: Array, steps: Steps) -> Array:
        key, keep = steps.key, 1 - self.dropout
        if key is None or self.dropout == 0:
            return ys

        def mask(key: Array) -> Array:
            return bernoulli(key, keep, one_step(ys))

        if self.dropout_mask == "sequence":
            kept = mask(key)[None]
        else:
            times = steps.start + jnp.arange(ys.shape[0], dtype=jnp.int32)
            kept = jax.vmap(lambda t: mask(jax.random.fold_in(key, t)))(times)
        return jnp.where(kept, ys / jnp.asarray(keep, ys.dtype), jnp.zeros((), ys.dtype))


def _space(network: Any, side: str) -> tuple[int, ...] | None:
    """The spatial axes of an input or output: () for vectors, None if they are unknown."""
    shape = getattr(network, f"{side}_shape", None)
    if shape is None:
        return () if as_base_cell(network).event_ndim == 1 else None
    return tuple(shape[:-1])
