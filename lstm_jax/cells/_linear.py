"""Matrix products, biases, diagonal blocks and layer normalisation for cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._devices import is_single_cpu_device
from lstm_jax._fills import times_ones
from lstm_jax._types import Array, DType, promote, state_dtype


def matmul(x: Array, w: Array, dtype: DType | None = None) -> Array:
    """``x w`` with factors in ``dtype`` (default: the promoted dtype) and sums in float32 or wider."""
    dtype = promote(x.dtype, w.dtype) if dtype is None else dtype
    x, w = x.astype(dtype), w.astype(dtype)
    rows = x.shape[:-1]
    # XLA for CPUs copies a weight gradient's factors before it sums over two axes, but not over one. Joining
    # the axes of a sharded array would gather it, and symbolic sizes cannot be joined.
    if len(rows) > 1 and is_single_cpu_device() and all(isinstance(n, int) for n in rows):
        x = x.reshape(math.prod(rows), x.shape[-1])
    return _matmul(x, times_ones(w)).reshape(*rows, w.shape[-1])


@jax.custom_jvp
def _matmul(x: Array, w: Array) -> Array:
    return jnp.matmul(x, w, preferred_element_type=np.promote_types(x.dtype, np.float32))


@partial(_matmul.defjvp, symbolic_zeros=True)
def _matmul_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """The term dx w is a product with w transposed, of which a loop stores one copy.

    The backward pass then reads the copy in memory order. On CPUs, a product that reads w against its memory
    order takes up to twice as long.
    """
    (x, w), (dx, dw) = primals, tangents
    total, zero = _matmul(x, w), jax.custom_derivatives.SymbolicZero
    terms = []
    if not isinstance(dx, zero):
        dims = (((dx.ndim - 1,), (1,)), ((), ()))
        terms.append(jax.lax.dot_general(dx, w.T, dims, preferred_element_type=total.dtype))
    if not isinstance(dw, zero):
        terms.append(_matmul(x, times_ones(dw)))
    return total, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(total)


def head_matmul(h: Array, w: Array, gates: int, dtype: DType) -> Array:
    """``h R``: (..., gates*H). R is ``w``, or has ``w`` (heads, P/heads, gates*H/heads) as diagonal blocks.

    Each block contains the gates of one head side by side. The result contains the heads of each gate side by
    side.
    """
    if w.ndim == 2:
        return matmul(h, w, dtype)
    heads, rows, columns = w.shape
    parts = h.astype(dtype).reshape(*h.shape[:-1], heads, rows)
    blocks = times_ones(w).astype(dtype).reshape(heads, rows, gates, columns // gates)
    product = jnp.einsum("...nr,nrgc->...gnc", parts, blocks, preferred_element_type=state_dtype(dtype))
    return product.reshape(*h.shape[:-1], heads * columns)


def head_shape(heads: int, rows: int, columns: int) -> tuple[int, ...]:
    """The shape of recurrent weights (rows, columns), or of their diagonal blocks if heads > 1."""
    return (rows, columns) if heads == 1 else (heads, rows // heads, columns // heads)


def add_bias(total: Array, bias: Array | None) -> Array:
    """``total + bias`` for any leading axes, in the dtype of the total."""
    return total if bias is None else total + expand_rank(bias.astype(total.dtype), total)


def join_sums(parts: Sequence[Array], bias: Array | None) -> Array:
    """The concatenation of ``parts`` plus ``bias``, from which gates are computed on a single CPU device.

    XLA for CPUs does not vectorise an operation on several slices of the array that a loop reads, but it
    stores a concatenation to which something is added. Without a bias it stores nothing.
    """
    return add_bias(jnp.concatenate(parts, axis=-1), bias)


def expand_rank(vector: Any, array: Array) -> Any:
    """``vector`` with leading axes of length 1 up to the rank of ``array``."""
    return vector.reshape((1,) * (array.ndim - 1) + vector.shape)


def layer_norm(z: Array, scale: Array, epsilon: float) -> Array:
    """Mean 0 and variance 1 over the last axis, then scaled (Ba et al. 2016), in float32 or wider."""
    z = z.astype(state_dtype(z.dtype))
    centred = z - jnp.mean(z, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + epsilon)
    return expand_rank(scale.astype(z.dtype), z) * (centred * inverse)


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), computed by tanh, which takes half the time on CPUs."""
    return 0.5 * jnp.tanh(0.5 * z) + 0.5
