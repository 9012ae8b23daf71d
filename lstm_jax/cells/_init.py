"""Initial parameters and initial carries of cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_key, value_error
from lstm_jax._types import Array, DType, Initializer, state_dtype
from lstm_jax.cells._checks import check_batch_shape, check_fields, check_initial
from lstm_jax.cells._linear import dense

# Module constants, because two calls of orthogonal() are two functions, and so two unequal cells.
GLOROT_UNIFORM: Initializer = jax.nn.initializers.glorot_uniform()


_ORTHOGONAL = jax.nn.initializers.orthogonal()


def ORTHOGONAL(key: Array, shape: Sequence[int], dtype: DType) -> Array:
    """``jax.nn.initializers.orthogonal()``, also where dtype is narrower than its decomposition can be."""
    return _ORTHOGONAL(key, shape, state_dtype(dtype)).astype(dtype)


ZEROS: Initializer = jax.nn.initializers.zeros


def init_gates(
    initializer: Initializer, key: Array, shape: tuple[int, ...], gates: int, dtype: DType
) -> Array:
    """One matrix (or vector) a gate, each from its own key, side by side on the last axis."""
    return jnp.concatenate([initializer(k, shape, dtype) for k in jax.random.split(key, gates)], axis=-1)


def init_weights(
    cell: Any, key: Array, gates: int, recurrent: Callable[[int], tuple[int, ...]] = dense
) -> tuple[Array, Array, Array | None]:
    """``(w_ih, w_hh, bias)`` of a cell with ``gates`` gates, from its three initialisers."""
    check_key(f"{type(cell).__name__}.init", key)
    k_ih, k_hh, k_bias = jax.random.split(key, 3)
    D, H, dtype = cell.input_size, cell.hidden_size, cell.param_dtype
    shape = recurrent(H)
    if len(shape) == 3:  # each head is drawn for itself
        heads = [
            init_gates(cell.w_hh_init, k, shape[1:], gates, dtype) for k in jax.random.split(k_hh, shape[0])
        ]
        w_hh = jnp.stack(heads)
    else:
        w_hh = init_gates(cell.w_hh_init, k_hh, shape, gates, dtype)
    return (
        init_gates(cell.w_ih_init, k_ih, (D, H), gates, dtype),
        w_hh,
        init_gates(cell.bias_init, k_bias, (H,), gates, dtype) if cell.use_bias else None,
    )


def initial_state(
    cell: Any,
    batch_shape: Sequence[int],
    learned: Array | None,
    dtype: DType,
    *,
    row: tuple[int, ...] | None = None,
    fill: float = 0.0,
) -> Array:
    """The state before the first step: zeros, or the learned vector on every row of the batch.

    ``row`` is the shape of one row where it is not (H,), ``fill`` what stands there instead of zeros.
    """
    check_batch_shape(cell, batch_shape)
    shape = (*batch_shape, *((cell.hidden_size,) if row is None else row))
    if learned is None:
        return jnp.full(shape, fill, dtype)
    return jnp.broadcast_to(learned.astype(dtype), shape)


def learned_initial(cell: Any, params: Any | None) -> Any | None:
    """``params.initial`` where the cell learns its initial carry, which cannot be done without params."""
    if not cell.learn_initial_carry:
        return None
    if params is None:
        raise value_error(
            f"{type(cell).__name__}.initial_carry got no params",
            "the parameters, because learn_initial_carry=True keeps the initial carry among them",
            "Call cell.initial_carry(batch_shape, params).",
        )
    check_initial(cell, params)
    return params.initial


def compute_dtype(cell: Any, params: Any | None) -> Any:
    """The dtype of h: the cell's ``dtype``, else that of its parameters."""
    return weights_dtype(cell, params) if cell.dtype is None else cell.dtype


def weights_dtype(cell: Any, params: Any | None) -> Any:
    """The dtype of the weights; before there are any, what it will be."""
    if params is None:
        return cell.param_dtype
    if not hasattr(params, "w_ih"):
        check_fields(f"{type(cell).__name__}.initial_carry", params)
    return params.w_ih.dtype
