"""cuDNN's LSTM, through ``jax.experimental.rnn``: all layers and both directions in one call.

It runs :class:`lstm_jax.LSTM` without options, stacks of equal ones, and both directions of these, in
float32 on NVIDIA GPUs, with lengths, and gives first derivatives in reverse mode. What it cannot do
raises: forward mode, second derivatives and ``vmap`` too, which is why ``"auto"`` never takes it.

**Precision** is that of :func:`jax.default_matmul_precision`, as for XLA's products. ``None``, what JAX
begins with, lets Ampere and later devices round the factors to TF32 (10 bits of mantissa), and so do
``"high"`` and ``"tensorfloat32"``; ``"highest"`` and ``"float32"`` do not. cuDNN knows no other.

The vector of weights holds, flat, w_ih and w_hh of each layer and direction, transposed to (4H, D) and
(4H, H), and after all of these the two biases (4H,) of each, of which the second is zeros here.
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
    """The arrays of the vector in their order, by the names that torch has for them.

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


def flat_weights(each: Sequence[LSTMParams]) -> Array:
    """The vector, from the parameters of each layer and direction; a missing bias is zeros."""
    matrices = [jnp.ravel(w.T) for params in each for w in (params.w_ih, params.w_hh)]
    biases = []
    for params in each:
        nothing = jnp.zeros(params.w_hh.shape[-1], params.w_hh.dtype)
        biases += [nothing if params.bias is None else params.bias, nothing]
    return jnp.concatenate([*matrices, *biases])


# --- what it can run -----------------------------------------------------------------------------


def cudnn_unsupported(
    network: Any, params: Params, xs: Any, carry: Carry | None, options: Any, steps: Any
) -> str | None:
    """Why cuDNN cannot run this network with these options, or None; ``unroll``'s Options and Times."""
    layers = flatten(network, steps.key is not None)
    reason = layers if isinstance(layers, str) else _unexpected(layers)
    reason = reason or _declined(options, steps) or _misfit(layers, params, xs, carry)  # type: ignore[arg-type]
    return reason or no_device() or _precision()[1]


def _unexpected(layers: FlatLayers) -> str | None:
    for cell in layers.cells:
        if type(cell) is not LSTM:
            return f"{label(cell)} is not an LSTM"
    sizes = {cell.hidden_size for cell in layers.cells}
    return f"all layers of one call have one hidden_size, not {sorted(sizes)}" if len(sizes) > 1 else None


def _declined(options: Any, steps: Any) -> str | None:
    if options.return_carries:
        return "return_carries: cuDNN gives the last carry alone"
    if options.truncate is not None:
        return "truncate: cuDNN's backward pass covers all steps"
    if options.checkpoint is not None:
        return "checkpoint: cuDNN's reserve is for all steps (put jax.checkpoint around unroll)"
    if steps.resets is not None:
        return "resets: cuDNN's carry never begins anew"
    if steps.valid is not None and steps.lengths is None:
        return "mask: cuDNN knows lengths alone"
    return None


def _misfit(layers: FlatLayers, params: Params, xs: Any, carry: Carry | None) -> str | None:
    if not all(isinstance(n, int) for n in xs.shape):
        return "the numbers of steps and rows have to be known when tracing"
    if 0 in xs.shape:
        return f"no steps or rows in xs of shape {tuple(xs.shape)}"
    own = _each(params)
    if len(own) != len(layers.cells) * layers.directions or not all(isinstance(p, LSTMParams) for p in own):
        return "its parameters are not one LSTMParams for each layer and direction"
    arrays = [xs, *(leaf for p in own for leaf in jax.tree.leaves(p)), *jax.tree.leaves(carry)]
    dtypes = {str(a.dtype) for a in arrays} | {str(cell.dtype) for cell in layers.cells if cell.dtype}
    if dtypes != {"float32"}:
        return f"jax.experimental.rnn computes in float32 alone, not {', '.join(sorted(dtypes))}"
    return None


def no_device() -> str | None:
    """Why there is no cuDNN here, or None."""
    if jax.default_backend() != "gpu":
        return f"cuDNN needs an NVIDIA GPU, and jax runs on {jax.default_backend()} here"
    if "rocm" in jax.devices()[0].client.platform_version:
        return "cuDNN needs an NVIDIA GPU, not an AMD one"
    return None


def _precision() -> tuple[jax.lax.Precision, str | None]:
    """The precision that jax's configuration asks for, and why cuDNN has no such, if it has not."""
    setting = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009 (mypy knows no such)
    if setting in (None, "high", "tensorfloat32"):
        return jax.lax.Precision.HIGH, None
    if setting in ("highest", "float32"):
        return jax.lax.Precision.HIGHEST, None
    known = "None, 'high', 'tensorfloat32', 'highest' or 'float32'"
    return jax.lax.Precision.HIGHEST, f"jax_default_matmul_precision is {setting!r}, and cuDNN takes {known}"


def cudnn_reason() -> str:
    """What runs, with its precision."""
    tf32 = _precision()[0] == jax.lax.Precision.HIGH
    return f"one call of cuDNN, {'TF32 allowed' if tf32 else 'float32 without TF32'}"


# --- the run ------------------------------------------------------------------------------------


def cudnn_run(
    network: Any, params: Params, xs: Array, carry: Carry | None, options: Any, steps: Any
) -> tuple[Carry, Array]:
    """``(carry, ys)`` of a whole network that has no obstacle."""
    layers = flatten(network, steps.key is not None)
    assert isinstance(layers, FlatLayers)
    T, batch, H = xs.shape[0], xs.shape[1:-1], layers.cells[0].hidden_size
    rows = math.prod(batch)
    own = _each(params)
    first = _first_carry(layers, params, xs, carry)
    h, c = (jnp.stack([pair[index].reshape(rows, H) for pair in first]) for index in (0, 1))
    lengths = None if steps.lengths is None else steps.lengths.reshape(rows)
    flat = xs.reshape(T, rows, xs.shape[-1])
    if options.reverse:
        flat = _turned(flat, lengths)
    # cuDNN needs at least one step in each row; the result of a row of length 0 is replaced below.
    counts = jnp.full(rows, T, jnp.int32) if lengths is None else jnp.maximum(lengths, 1)
    call = Call(xs.shape[-1], H, len(layers.cells), layers.directions, _precision()[0])
    ys, h_T, c_T = _lstm(call, jnp.swapaxes(flat, 0, 1), h, c, flat_weights(own), counts)
    ys = jnp.swapaxes(ys, 0, 1)
    if lengths is not None:
        some = jax.lax.expand_dims(lengths > 0, (0, 2))  # (1, B, 1)
        h_T, c_T = jnp.where(some, h_T, h), jnp.where(some, c_T, c)
    if options.reverse:
        ys = _turned(ys, lengths)
    ys = ys.reshape(T, *batch, ys.shape[-1])
    if layers.merge is not None:
        ys = MERGES[layers.merge](*jnp.split(ys, 2, axis=-1))
    if steps.valid is not None:
        ys = mask_out(steps.valid, ys)
    states = [a.reshape(*batch, H) for pair in zip(h_T, c_T, strict=True) for a in pair]
    structure = jax.tree.structure(jax.eval_shape(lambda p: network.initial_carry(batch, p), params))
    return jax.tree.unflatten(structure, states), ys


def _first_carry(layers: FlatLayers, params: Params, xs: Array, carry: Carry | None) -> list[Carry]:
    """(h, c) of each layer and direction: given or the cell's own, once its parameters were looked at."""
    batch, found = xs.shape[1:-1], []
    for index, own in enumerate(_each(params)):
        cell = layers.cells[index // layers.directions]
        # Of what a layer reads, the type alone counts.
        reads = jnp.broadcast_to(xs[..., :1], (*xs.shape[:-1], cell.input_size))
        if carry is None:
            found.append(own_carry(cell, own, reads, batch))
        else:
            given = tuple(jax.tree.leaves(carry)[2 * index : 2 * index + 2])
            found.append(given_carry(cell, own, reads, batch, given))
    return found


def _each(params: Params) -> list[Any]:
    """The parameters of each layer and direction, in cuDNN's order, which is that of the nesting."""
    return jax.tree.leaves(params, is_leaf=lambda a: isinstance(a, LSTMParams))


def _turned(xs: Array, lengths: Array | None) -> Array:
    """The steps of each row that are there, last one first; the others stay where they are."""
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
        """As ``jax.experimental.rnn`` wants them: sizes, layers, dropout, both directions, precision."""
        return (*self[:3], 0.0, self.directions == 2, self.precision)


def _forward(call: Call, *arrays: Any) -> tuple[tuple[Array, ...], Any]:
    """``((ys, h, c), saved)`` of batch-major xs, h, c, weights, lengths."""
    from jax.experimental import rnn

    return rnn.lstm_fwd(*arrays, *call.options)


def _backward(call: Call, saved: Any, cotangents: tuple[Array, ...]) -> tuple[Array, ...]:
    """The cotangents of xs, h, c and weights."""
    from jax.experimental import rnn

    return rnn.lstm_bwd(*call.options, saved, cotangents)[:4]  # type: ignore[call-arg]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _lstm(call: Call, xs: Array, h: Array, c: Array, weights: Array, lengths: Array) -> tuple[Array, ...]:
    return _once(partial(_forward, call), xs, h, c, weights, lengths)[0]


@_lstm.defjvp
def _lstm_jvp(call: Call, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Reverse mode comes through here too: of what is linear in the tangents, JAX asks the transpose."""
    outs, saved = _once(partial(_forward, call), *primals)
    leaves, structure = jax.tree.flatten(saved)
    like = tuple((a.shape, a.dtype) for a in outs)
    douts = _tangents.bind(*leaves, *tangents[:4], call=call, structure=structure, like=like)
    return outs, tuple(douts)


def _once(function: Callable[..., Any], *arrays: Any) -> Any:
    """The function's value, of which no rule can make another batch or a derivative: both say so."""
    batched = custom_vmap(function)
    batched.def_vmap(lambda *_: _cannot("be mapped by jax.vmap", "Put the axis into the batch"))
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
    _cannot("be differentiated twice", "Take first derivatives alone")


def _cannot_forward(*_: Any, **__: Any) -> NoReturn:
    _cannot("be differentiated in forward mode (jax.jvp, jax.jacfwd)", "Use jax.grad or jax.vjp")


#: The derivative, linear in the tangents of xs, h, c and weights: cuDNN has nothing but its transpose.
_tangents = Primitive("cudnn_lstm_tangents")
_tangents.multiple_results = True
_tangents.def_impl(_cannot_forward)
_tangents.def_abstract_eval(
    lambda *_, like, **__: [jax.core.ShapedArray(shape, dtype) for shape, dtype in like]
)
mlir.register_lowering(_tangents, _cannot_forward)
ad.primitive_jvps[_tangents] = _cannot_twice
batching.primitive_batchers[_tangents] = lambda *_, **__: _cannot(
    "be mapped by jax.vmap", "Put the axis into the batch"
)


def _transpose(cotangents: Any, *args: Any, call: Call, structure: Any, like: Any) -> list[Any]:
    saved, wanted = args[:-4], args[-4:]
    given = tuple(map(ad.instantiate_zeros, cotangents))

    def backward(*arrays: Any) -> tuple[Array, ...]:
        saved = jax.tree.unflatten(structure, arrays[:-3])
        return _backward(call, saved, arrays[-3:])

    found = _once(backward, *saved, *given)
    some = [a if ad.is_undefined_primal(w) else None for a, w in zip(found, wanted, strict=True)]
    return [None] * len(saved) + some


ad.primitive_transposes[_tangents] = _transpose
