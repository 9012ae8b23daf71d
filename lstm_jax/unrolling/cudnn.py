"""cuDNN's LSTM, through ``jax.experimental.rnn``: all layers and both directions in one call.

It supports :class:`lstm_jax.LSTM`, stacks of LSTMs of one size, and both directions of these, in float32 on
NVIDIA GPUs, with lengths and first derivatives in reverse mode. Everything else raises, including forward
mode, second derivatives and ``vmap``, so ``"auto"`` never chooses it.

**Precision** is that of :func:`jax.default_matmul_precision`, as for XLA's products. ``None`` (JAX's
default), ``"high"`` and ``"tensorfloat32"`` let Ampere and later devices round the factors to TF32 (10 bits
of mantissa). ``"highest"`` and ``"float32"`` do not. cuDNN has no other precisions.

The weights are one flat vector: w_ih and w_hh of each layer and direction, transposed to (4H, D) and (4H, H),
and then the two biases (4H,) of each. The second bias is zero here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from lstm_jax._errors import value_error
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import MERGES, FlatLayers, flatten, label
from lstm_jax.cells.lstm import LSTM, LSTMParams
from lstm_jax.unrolling.carries import given_carry, own_carry
from lstm_jax.unrolling.steps import mask_out

# --- the vector of weights -----------------------------------------------------------------------


def flat_shapes(D: int, H: int, layers: int, directions: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """PyTorch's names and the shapes of the arrays in the vector, in order.

    >>> [name for name, _ in flat_shapes(3, 2, 1, 1)]
    ['weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0']
    """
    ends = [
        (f"_l{layer}{end}", directions * H if layer else D)
        for layer in range(layers)
        for end in ("", "_reverse")[:directions]
    ]
    for end, size in ends:
        yield f"weight_ih{end}", (4 * H, size)
        yield f"weight_hh{end}", (4 * H, H)
    for end, _ in ends:
        yield f"bias_ih{end}", (4 * H,)
        yield f"bias_hh{end}", (4 * H,)


def flat_weights(params_list: Sequence[LSTMParams]) -> Array:
    """The vector of weights from the parameters of each layer and direction; a missing bias is zeros."""
    matrices = [jnp.ravel(w.T) for params in params_list for w in (params.w_ih, params.w_hh)]
    biases = []
    for params in params_list:
        zeros = jnp.zeros(params.w_hh.shape[-1], params.w_hh.dtype)
        biases += [zeros if params.bias is None else params.bias, zeros]
    return jnp.concatenate([*matrices, *biases])


# --- what it can run -----------------------------------------------------------------------------


def cudnn_unsupported(
    network: Any, params: Params, xs: Any, carry: Carry | None, options: Any, steps: Any
) -> str | None:
    """Why cuDNN cannot run this network with these options, or None."""
    layers = flatten(network, steps.key is not None)
    reason = layers if isinstance(layers, str) else _unsupported_layers(layers)
    reason = reason or _unsupported_options(options, steps)
    reason = reason or _unsupported_arrays(layers, params, xs, carry)  # type: ignore[arg-type]
    return reason or no_device() or _precision()[1]


def _unsupported_layers(layers: FlatLayers) -> str | None:
    for cell in layers.cells:
        if type(cell) is not LSTM:
            return f"{label(cell)} is not an LSTM"
    sizes = {cell.hidden_size for cell in layers.cells}
    return f"cuDNN requires one hidden_size for all layers, got {sorted(sizes)}" if len(sizes) > 1 else None


def _unsupported_options(options: Any, steps: Any) -> str | None:
    if options.return_carries:
        return "cuDNN does not support return_carries"
    if options.truncate is not None:
        return "cuDNN does not support truncate"
    if options.checkpoint is not None:
        return "cuDNN does not support checkpoint (use jax.checkpoint around unroll)"
    if steps.resets is not None:
        return "cuDNN does not support resets"
    if steps.valid is not None and steps.lengths is None:
        return "cuDNN does not support mask, only lengths"
    return None


def _unsupported_arrays(layers: FlatLayers, params: Params, xs: Any, carry: Carry | None) -> str | None:
    if not all(isinstance(n, int) for n in xs.shape):
        return "cuDNN requires static numbers of steps and rows"
    if 0 in xs.shape:
        return f"cuDNN requires at least one step and one row, got xs of shape {tuple(xs.shape)}"
    params_list = _params_list(params)
    if len(params_list) != len(layers.cells) * layers.directions or not all(
        isinstance(p, LSTMParams) for p in params_list
    ):
        return "its parameters are not one LSTMParams for each layer and direction"
    arrays = [xs, *jax.tree.leaves(params_list), *jax.tree.leaves(carry)]
    dtypes = {str(a.dtype) for a in arrays} | {str(cell.dtype) for cell in layers.cells if cell.dtype}
    if dtypes != {"float32"}:
        return f"jax.experimental.rnn supports only float32, got {', '.join(sorted(dtypes))}"
    return None


def no_device() -> str | None:
    """Why this device has no cuDNN, or None."""
    if jax.default_backend() != "gpu":
        return f"cuDNN requires an NVIDIA GPU, got platform {jax.default_backend()!r}"
    if "rocm" in jax.devices()[0].client.platform_version:
        return "cuDNN requires an NVIDIA GPU, got an AMD one"
    return None


def _precision() -> tuple[jax.lax.Precision, str | None]:
    """The configured precision, and why cuDNN does not support it, or None."""
    setting = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009 (unknown to mypy)
    if setting in (None, "high", "tensorfloat32"):
        return jax.lax.Precision.HIGH, None
    if setting in ("highest", "float32"):
        return jax.lax.Precision.HIGHEST, None
    known = "None, 'high', 'tensorfloat32', 'highest' and 'float32'"
    reason = f"jax_default_matmul_precision is {setting!r}, and cuDNN supports {known}"
    return jax.lax.Precision.HIGHEST, reason


def cudnn_reason() -> str:
    """A description of the call and its precision."""
    tf32 = _precision()[0] == jax.lax.Precision.HIGH
    return f"one call of cuDNN, {'TF32 allowed' if tf32 else 'float32 without TF32'}"


# --- the run ------------------------------------------------------------------------------------


def cudnn_run(
    network: Any, params: Params, xs: Array, carry: Carry | None, options: Any, steps: Any
) -> tuple[Carry, Array]:
    """``(carry, ys)`` of a whole network that cuDNN supports."""
    layers = flatten(network, steps.key is not None)
    assert isinstance(layers, FlatLayers)
    T, batch, H = xs.shape[0], xs.shape[1:-1], layers.cells[0].hidden_size
    rows = math.prod(batch)
    initial = _initial_carries(layers, params, xs, carry)
    h, c = (jnp.stack([pair[index].reshape(rows, H) for pair in initial]) for index in (0, 1))
    lengths = None if steps.lengths is None else steps.lengths.reshape(rows)
    flat = xs.reshape(T, rows, xs.shape[-1])
    if options.reverse:
        flat = _flip(flat, lengths)
    # cuDNN requires at least one step in each row. The results of rows of length 0 are replaced below.
    counts = jnp.full(rows, T, jnp.int32) if lengths is None else jnp.maximum(lengths, 1)
    call = Call(xs.shape[-1], H, len(layers.cells), layers.directions, _precision()[0])
    ys, h_T, c_T = _lstm(call, jnp.swapaxes(flat, 0, 1), h, c, flat_weights(_params_list(params)), counts)
    ys = jnp.swapaxes(ys, 0, 1)
    if lengths is not None:
        has_steps = jax.lax.expand_dims(lengths > 0, (0, 2))  # (1, B, 1)
        h_T, c_T = jnp.where(has_steps, h_T, h), jnp.where(has_steps, c_T, c)
    if options.reverse:
        ys = _flip(ys, lengths)
    ys = ys.reshape(T, *batch, ys.shape[-1])
    if layers.merge is not None:
        ys = MERGES[layers.merge](*jnp.split(ys, 2, axis=-1))
    if steps.valid is not None:
        ys = mask_out(steps.valid, ys)
    states = [a.reshape(*batch, H) for pair in zip(h_T, c_T, strict=True) for a in pair]
    structure = jax.tree.structure(jax.eval_shape(lambda p: network.initial_carry(batch, p), params))
    return jax.tree.unflatten(structure, states), ys


def _initial_carries(layers: FlatLayers, params: Params, xs: Array, carry: Carry | None) -> list[Carry]:
    """(h, c) of each layer and direction: the given carry, or the cell's own. Also checks the parameters."""
    batch, carries = xs.shape[1:-1], []
    for index, cell_params in enumerate(_params_list(params)):
        cell = layers.cells[index // layers.directions]
        # Only the type of the layer's input is used.
        inputs = jnp.broadcast_to(xs[..., :1], (*xs.shape[:-1], cell.input_size))
        if carry is None:
            carries.append(own_carry(cell, cell_params, inputs, batch))
        else:
            given = tuple(jax.tree.leaves(carry)[2 * index : 2 * index + 2])
            carries.append(given_carry(cell, cell_params, inputs, batch, given))
    return carries


def _params_list(params: Params) -> list[Any]:
    """The parameters of each layer and direction. Their order in the tree is cuDNN's."""
    return jax.tree.leaves(params, is_leaf=lambda a: isinstance(a, LSTMParams))


def _flip(xs: Array, lengths: Array | None) -> Array:
    """Reverse the valid steps of each row; the other steps stay in place."""
    if lengths is None:
        return jnp.flip(xs, 0)
    t = jax.lax.broadcasted_iota(jnp.int32, xs.shape[:2], 0)
    source = jnp.where(t < lengths[None], lengths[None] - 1 - t, t)
    return jnp.take_along_axis(xs, jax.lax.expand_dims(source, (2,)), axis=0)


# --- the call, with derivatives ------------------------------------------------------------------


class Call(NamedTuple):
    """Static arguments of the call."""

    input_size: int
    hidden_size: int
    layers: int
    directions: int
    precision: jax.lax.Precision

    @property
    def options(self) -> tuple[Any, ...]:
        """Options of ``jax.experimental.rnn``: sizes, layers, dropout, bidirectional, precision."""
        return (*self[:3], 0.0, self.directions == 2, self.precision)


def _forward(call: Call, *arrays: Any) -> tuple[tuple[Array, ...], Any]:
    """``((ys, h, c), residuals)`` from batch-major xs, h, c, weights, lengths."""
    from jax.experimental import rnn

    return rnn.lstm_fwd(*arrays, *call.options)


def _backward(call: Call, residuals: Any, cotangents: tuple[Array, ...]) -> tuple[Array, ...]:
    """The cotangents of xs, h, c and weights."""
    from jax.experimental import rnn

    return rnn.lstm_bwd(*call.options, residuals, cotangents)[:4]  # type: ignore[call-arg]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _lstm(call: Call, xs: Array, h: Array, c: Array, weights: Array, lengths: Array) -> tuple[Array, ...]:
    return _without_transforms(partial(_forward, call), xs, h, c, weights, lengths)[0]


@_lstm.defjvp
def _lstm_jvp(call: Call, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Reverse mode uses this rule as well, and the transpose of the primitive of the tangents."""
    outs, residuals = _without_transforms(partial(_forward, call), *primals)
    leaves, structure = jax.tree.flatten(residuals)
    like = tuple((a.shape, a.dtype) for a in outs)
    douts = _tangents.bind(*leaves, *tangents[:4], call=call, structure=structure, like=like)
    return outs, tuple(douts)


def _without_transforms(function: Callable[..., Any], *arrays: Any) -> Any:
    """Call ``function``; vmap and differentiation of the call raise errors."""
    batched = custom_vmap(function)
    batched.def_vmap(lambda *_: _cannot("be mapped by jax.vmap", "Make the axis a batch axis"))
    guarded = jax.custom_jvp(batched)
    guarded.defjvp(lambda *_: _cannot_twice())
    return guarded(*arrays)


def _cannot(what: str, hint: str) -> NoReturn:
    raise value_error(
        f"unroll got implementation='cudnn', which cannot {what}",
        "the call itself, or its gradient (reverse mode, once)",
        f"{hint}, or use implementation='auto'.",
    )


def _cannot_twice(*_: Any, **__: Any) -> NoReturn:
    _cannot("be differentiated twice", "Compute first derivatives only")


def _cannot_forward(*_: Any, **__: Any) -> NoReturn:
    _cannot("be differentiated in forward mode (jax.jvp, jax.jacfwd)", "Use jax.grad or jax.vjp")


#: The derivative, linear in the tangents of xs, h, c and weights. Only its transpose is implemented.
_tangents = Primitive("cudnn_lstm_tangents")
_tangents.multiple_results = True
_tangents.def_impl(_cannot_forward)
_tangents.def_abstract_eval(
    lambda *_, like, **__: [jax.core.ShapedArray(shape, dtype) for shape, dtype in like]
)
mlir.register_lowering(_tangents, _cannot_forward)
ad.primitive_jvps[_tangents] = _cannot_twice
batching.primitive_batchers[_tangents] = lambda *_, **__: _cannot(
    "be mapped by jax.vmap", "Make the axis a batch axis"
)


def _transpose(cotangents: Any, *args: Any, call: Call, structure: Any, like: Any) -> list[Any]:
    leaves, tangents = args[:-4], args[-4:]

    def backward(*arrays: Any) -> tuple[Array, ...]:
        residuals = jax.tree.unflatten(structure, arrays[:-3])
        return _backward(call, residuals, arrays[-3:])

    results = _without_transforms(backward, *leaves, *map(ad.instantiate_zeros, cotangents))
    pairs = zip(results, tangents, strict=True)
    return [None] * len(leaves) + [a if ad.is_undefined_primal(t) else None for a, t in pairs]


ad.primitive_transposes[_tangents] = _transpose
