"""cuDNN's LSTM, through ``jax.experimental.rnn``: all layers and both directions in one call.

It supports :class:`lstm_jax.LSTM`, stacks of LSTMs of one size, and both directions of these, in float32 on
NVIDIA GPUs, with lengths. Values and gradients are one call of cuDNN each. Where cuDNN has no such call, for
forward mode, second derivatives and ``vmap`` over weights, the fused scan computes the same network.

**Precision** is that of :func:`jax.default_matmul_precision`, as for XLA's products. ``None`` (JAX's
default), ``"high"`` and ``"tensorfloat32"`` let Ampere and later devices round the factors to TF32 (10 bits
of mantissa). ``"highest"`` and ``"float32"`` do not. cuDNN has no other precisions.

The weights are one flat vector: w_ih and w_hh of each layer and direction, transposed to (4H, D) and (4H, H),
and then the two biases (4H,) of each. The second bias is zero here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from lstm_jax._devices import is_explicit, vary_over, varying_axes
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import MERGES, FlatLayers, flatten, label
from lstm_jax.cells.lstm import LSTM, LSTMParams
from lstm_jax.unrolling.carries import given_carry, own_carry
from lstm_jax.unrolling.fused_scan import fused_scan, tiling_of
from lstm_jax.unrolling.kernels.engine import NO_BATCH
from lstm_jax.unrolling.kernels.primitive import fold_rows, linear_jvp, mapped_size, unfold_rows
from lstm_jax.unrolling.steps import Flags, mask_out, valid_steps

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


def split_weights(weights: Array, D: int, H: int, layers: int, directions: int) -> dict[str, Array]:
    """The arrays in the vector by their names; views of it if it is a NumPy array."""
    arrays, start = {}, 0
    for name, shape in flat_shapes(D, H, layers, directions):
        size = math.prod(shape)
        arrays[name] = weights[start : start + size].reshape(shape)
        start += size
    return arrays


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
    if is_explicit(jax.typeof(xs)):
        return "cuDNN does not support arrays on an explicit mesh; use shard_map"
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
    arrays = [jnp.swapaxes(flat, 0, 1), h, c, flat_weights(_params_list(params)), counts]
    varying = frozenset().union(*(varying_axes(jax.typeof(a)) for a in arrays))
    arrays = [vary_over(a, varying) for a in arrays]
    call = Call(xs.shape[-1], H, len(layers.cells), layers.directions, _precision()[0], options)
    ys, h_T, c_T = cudnn_p.bind(*arrays, call=call, operation="forward", save=False)
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


# --- the call -------------------------------------------------------------------------------------


class Call(NamedTuple):
    """Static arguments of the call."""

    input_size: int
    hidden_size: int
    layers: int
    directions: int
    precision: jax.lax.Precision
    loop: Any  # options of ``unroll``, for the fused scan

    @property
    def options(self) -> tuple[Any, ...]:
        """Options of ``jax.experimental.rnn``: sizes, layers, dropout, bidirectional, precision."""
        return (*self[:3], 0.0, self.directions == 2, self.precision)


#: The number of residuals, the first arguments of tangents and backward: the five arguments of forward, ys
#: and the reserve space.
RESIDUALS = 7


def _forward(
    call: Call, xs: Array, h: Array, c: Array, weights: Array, lengths: Array
) -> tuple[Array, Array, Array, Array]:
    """``ys, h, c`` and cuDNN's reserve space."""
    from jax.experimental import rnn

    (ys, h, c), (*_, reserve) = rnn.lstm_fwd(xs, h, c, weights, lengths, *call.options)
    return ys, h, c, reserve


def _backward(call: Call, *arrays: Array) -> tuple[Array, ...]:
    """The cotangents of xs, h, c and weights, given the residuals and the cotangents of ys, h and c."""
    from jax.experimental import rnn

    return rnn.lstm_bwd(*call.options, arrays[:RESIDUALS], arrays[RESIDUALS:])[:4]  # type: ignore[call-arg]


def _fused(
    call: Call, xs: Array, h: Array, c: Array, weights: Array, lengths: Array
) -> tuple[Array, Array, Array]:
    """``ys, h, c`` by the fused scan."""
    ys = jnp.swapaxes(xs, 0, 1)
    flags = Flags(valid_steps(len(ys), h.shape[1:2], lengths, None))
    arrays = split_weights(weights, *call[:4])
    carries: list[Carry] = []
    for layer in range(call.layers):
        cell, outs = LSTM(ys.shape[-1], call.hidden_size), []
        for end in ("", "_reverse")[: call.directions]:
            names = [f"{name}_l{layer}{end}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            w_ih, w_hh, bias, second_bias = (arrays[name] for name in names)
            params = LSTMParams(w_ih.T, w_hh.T, bias + second_bias)
            carry = h[len(carries)], c[len(carries)]
            options = call.loop._replace(reverse=end == "_reverse")
            scan = fused_scan(cell, options, tiling_of(cell, params, carry, ys))
            carry, (out, *_) = scan(params, None, None, carry, (ys, None), flags)
            carries.append(carry)
            outs.append(out)
        ys = jnp.concatenate(outs, axis=-1)
    h, c = map(jnp.stack, zip(*carries, strict=True))
    return jnp.swapaxes(ys, 0, 1), h, c


# --- the primitive --------------------------------------------------------------------------------
#
# As in ``kernels.primitive``, there are three operations:
#
#     forward    xs, h_0, c_0, weights      ->  ys, h_T, c_T and, if saved, cuDNN's reserve space
#     tangents   dxs, dh_0, dc_0, dweights  ->  dys, dh_T, dc_T     linear, given the residuals of forward
#     backward   ȳs, h̄_T, c̄_T             ->  x̄s, h̄_0, c̄_0, w̄   the transpose of ``tangents``
#
# They differ from those of the kernels: an operation is the whole network, and the reserve space has a
# format that only cuDNN knows.
#
# - ``forward`` and ``backward`` are one call of cuDNN each. Reverse mode runs these two.
# - ``tangents``, which forward mode runs, is the derivative of the fused scan, and so are the derivatives of
#   ``tangents`` and ``backward`` in the arguments of ``forward``.
# - vmap of ``forward`` over anything but the weights makes more batch rows. All other mapped operations run
#   the fused scan: a call has one vector of weights, and ``backward`` sums its gradient over the batch.


def _run(*arrays: Array, call: Call, operation: str, save: bool) -> Sequence[Array]:
    """The operation on this device."""
    if operation == "forward":
        return _forward(call, *arrays)[: 4 if save else 3]
    if operation == "backward":
        return _backward(call, *arrays)
    return _reference(call, operation, *arrays)


def _reference(call: Call, operation: str, *arrays: Array) -> Sequence[Array]:
    """The operation by the fused scan, without the reserve space."""
    with jax.default_matmul_precision(call.precision.name.lower()):
        if operation == "forward":
            return _fused(call, *arrays)
        primals, lengths, linear = arrays[:4], arrays[4], arrays[RESIDUALS:]

        def fused(xs: Array, h: Array, c: Array, weights: Array) -> tuple[Array, ...]:
            return _fused(call, xs, h, c, weights, lengths)

        if operation == "tangents":
            return jax.jvp(fused, primals, linear)[1]
        return jax.vjp(fused, *primals)[1](linear)


def _result_types(
    xs: Any, h: Any, c: Any, weights: Any, *others: Any, call: Call, operation: str, save: bool
) -> list[Any]:
    if operation == "backward":
        return [xs, h, c, weights]
    ys = xs.update(shape=(*xs.shape[:2], call.directions * call.hidden_size), weak_type=False)
    if not save:
        return [ys, h, c]
    arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (xs, h, c, weights, *others)]
    reserve = jax.eval_shape(partial(_forward, call), *arguments)[3]
    return [ys, h, c, weights.update(shape=reserve.shape, weak_type=False)]


def _jvp(primals: Any, tangents: Any, *, call: Call, operation: str, save: bool) -> tuple[Any, Any]:
    bind = partial(cudnn_p.bind, call=call, save=False)
    if operation == "forward":
        *outs, reserve = bind(*primals, operation="forward", save=True)
        linear = map(ad.instantiate_zeros, tangents[:4])
        douts = bind(*primals, outs[0], reserve, *linear, operation="tangents")
        if save:
            return [*outs, reserve], [*douts, ad.Zero(jax.typeof(reserve).to_tangent_aval())]
        return outs, douts
    # The other residuals, ys and the reserve space, are functions of the arguments of forward.
    residuals, linear = primals[:RESIDUALS], primals[RESIDUALS:]
    outs = bind(*primals, operation=operation)

    def of_linear(linear: Any) -> Any:
        return bind(*residuals, *linear, operation=operation)

    def of_arguments(*arrays: Array) -> Sequence[Array]:
        return _reference(call, operation, *arrays, *residuals[4:], *linear)

    return outs, linear_jvp(outs, of_linear, tangents[RESIDUALS:], of_arguments, residuals[:4], tangents[:4])


def _transpose(cotangents: Any, *arrays: Any, call: Call, operation: str, save: bool) -> list[Any]:
    linear = arrays[RESIDUALS:]
    other = "backward" if operation == "tangents" else "tangents"
    instantiated = map(ad.instantiate_zeros, cotangents)
    outs = cudnn_p.bind(*arrays[:RESIDUALS], *instantiated, call=call, operation=other, save=False)
    pairs = zip(outs, linear, strict=True)
    return [None] * RESIDUALS + [out if ad.is_undefined_primal(a) else None for out, a in pairs]


def _batch(arrays: Any, dims: Any, *, call: Call, operation: str, save: bool) -> tuple[list[Any], list[int]]:
    size = mapped_size(arrays, dims)
    if operation == "forward" and dims[3] is None and size > 0:
        folded = map(partial(fold_rows, size), arrays, dims, (0, 1, 1, NO_BATCH, 0))
        outs = cudnn_p.bind(*folded, call=call, operation="forward", save=False)
        out_dims = [0, 1, 1]
        outs = list(map(partial(unfold_rows, size), outs, out_dims))
    else:
        outs = list(jax.vmap(partial(_reference, call, operation), dims)(*arrays))
        out_dims = [0] * len(outs)
    if save:
        outs.append(_reserve_spaces(call, arrays, dims))
        out_dims.append(0)
    return outs, out_dims


def _reserve_spaces(call: Call, arrays: Any, dims: Any) -> Array:
    """The reserve space of each example, because that of all rows cannot be divided.

    Mapped operations do not read it, so a jitted gradient does not run this loop. It is for functions that
    ``jax.vjp`` returns inside of ``vmap`` and that are called outside of it.
    """

    def reserve(mapped: dict[int, Array]) -> Array:
        example = [mapped.get(index, a) for index, a in enumerate(arrays)]
        return cudnn_p.bind(*example, call=call, operation="forward", save=True)[3]

    pairs = enumerate(zip(arrays, dims, strict=True))
    return jax.lax.map(reserve, {i: jnp.moveaxis(a, dim, 0) for i, (a, dim) in pairs if dim is not None})


cudnn_p = Primitive("cudnn_lstm")
cudnn_p.multiple_results = True
cudnn_p.def_impl(_run)
cudnn_p.def_abstract_eval(_result_types)
mlir.register_lowering(cudnn_p, mlir.lower_fun(_run, multiple_results=True))
ad.primitive_jvps[cudnn_p] = _jvp
ad.primitive_transposes[cudnn_p] = _transpose
batching.primitive_batchers[cudnn_p] = _batch
