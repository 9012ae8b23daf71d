"""Matrix products, biases, diagonal blocks and layer normalisation for cells."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax._devices import is_single_cpu_device
from lstm_jax._types import Array, DType, promote, state_dtype


def affine(x: Array, w: Array, bias: Array | None, dtype: DType | None = None) -> Array:
    """``x w + bias`` in ``dtype`` (by default what x and w promote to), summed in float32 or wider."""
    dtype = promote(x.dtype, w.dtype) if dtype is None else dtype
    return add_bias(product(x, w, dtype), bias).astype(dtype)


def add_bias(total: Array, bias: Array | None) -> Array:
    """``total + bias`` over any leading axes, in the dtype of the total."""
    return total if bias is None else total + expand_rank(bias.astype(total.dtype), total)


def expand_rank(vector: Any, array: Array) -> Any:
    """``vector`` with leading axes to meet ``array`` (for users who forbid implicit broadcasting)."""
    return vector.reshape((1,) * (array.ndim - 1) + vector.shape)


def product(x: Array, w: Array, dtype: DType) -> Array:
    """``x w`` with factors in ``dtype`` and the sum kept in float32 or wider."""
    x, w = x.astype(dtype), w.astype(dtype)
    rows = x.shape[:-1]
    # XLA for CPUs copies before a weight's gradient is summed over two axes. Joining them would
    # gather what is spread over devices, and symbolic sizes do not join.
    if len(rows) > 1 and is_single_cpu_device() and all(isinstance(n, int) for n in rows):
        x = x.reshape(math.prod(rows), x.shape[-1])
    return _product(x, w).reshape(*rows, w.shape[-1])


@jax.custom_jvp
def _product(x: Array, w: Array) -> Array:
    return jnp.matmul(x, w, preferred_element_type=state_dtype(x.dtype))


@partial(_product.defjvp, symbolic_zeros=True)
def _product_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """dx w is written as a product with w transposed, of which a loop keeps one copy.

    The backward pass then multiplies by that copy as it lies, where a product against the grain
    of w takes up to twice as long.
    """
    (x, w), (dx, dw) = primals, tangents
    total, kind = _product(x, w), jax.custom_derivatives.SymbolicZero
    terms = []
    if not isinstance(dx, kind):
        dims = (((dx.ndim - 1,), (1,)), ((), ()))
        terms.append(jax.lax.dot_general(dx, w.T, dims, preferred_element_type=total.dtype))
    if not isinstance(dw, kind):
        terms.append(_product(x, dw))
    return total, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(total)


def recurrent_product(h: Array, w: Array, gates: int, dtype: DType) -> Array:
    """``h R``: (..., gates*H). R is ``w``, or has the blocks ``w`` (heads, P/heads, gates*H/heads).

    Each head's gates lie side by side in its block; heads lie side by side in each gate of the result.
    """
    if w.ndim == 2:
        return product(h, w, dtype)
    heads, rows, columns = w.shape
    parts = h.astype(dtype).reshape(*h.shape[:-1], heads, rows)
    blocks = w.astype(dtype).reshape(heads, rows, gates, columns // gates)
    recurrent = jnp.einsum("...nr,nrgc->...gnc", parts, blocks, preferred_element_type=state_dtype(dtype))
    return recurrent.reshape(*h.shape[:-1], heads * columns)


def layer_norm(z: Array, scale: Array, epsilon: float) -> Array:
    """Mean 0 and variance 1 over the last axis, then scaled (Ba et al. 2016), in float32 or wider."""
    z = z.astype(state_dtype(z.dtype))
    centred = z - jnp.mean(z, axis=-1, keepdims=True)
    spread = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + epsilon)
    return expand_rank(scale.astype(z.dtype), z) * (centred * spread)


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), by way of tanh: half the time on CPUs."""
    return 0.5 * jnp.tanh(0.5 * z) + 0.5


def dense(H: int) -> tuple[int, ...]:
    """The shape of one gate's recurrent weights where every unit hears every other."""
    return (H, H)


def blocks(heads: int, rows: int | None = None) -> Callable[[int], tuple[int, ...]]:
    """The shape of one gate's recurrent weights: ``heads`` blocks, reading ``rows`` units (H if None)."""

    def shape(H: int) -> tuple[int, ...]:
        reads = H if rows is None else rows
        return (reads, H) if heads == 1 else (heads, reads // heads, H // heads)

    return shape


def blocks_of(w_hh: Any) -> tuple[int, int, int]:
    """Heads, rows and columns over all heads, of recurrent weights with blocks or without."""
    shape: tuple[int, ...] = tuple(getattr(w_hh, "shape", ()))
    if len(shape) == 3:
        return shape[0], shape[0] * shape[1], shape[0] * shape[2]
    return 1, first_axis(w_hh), shape[-1] if shape else 0


def first_axis(a: Any) -> int:
    """The length of the first axis; what is no array, or a scalar, has none."""
    shape = getattr(a, "shape", ())
    return shape[0] if shape else 0
