"""Initial parameters and initial carries of cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_key, float_error, value_error
from lstm_jax._types import Array, DType, Initializer, is_float, promote, state_dtype
from lstm_jax.cells._checks import INIT_HINT, check_batch_shape, check_type
from lstm_jax.cells._linear import head_shape

# Module-level functions, because two calls of jax.nn.initializers.glorot_uniform() return closures, which
# are not equal and cannot be pickled.
_GLOROT_UNIFORM = jax.nn.initializers.glorot_uniform()
_ORTHOGONAL = jax.nn.initializers.orthogonal()


def glorot_uniform(key: Array, shape: Sequence[int], dtype: DType = jnp.float32) -> Array:
    """``jax.nn.initializers.glorot_uniform()``."""
    return _GLOROT_UNIFORM(key, tuple(shape), dtype)


def orthogonal(key: Array, shape: Sequence[int], dtype: DType = jnp.float32) -> Array:
    """``jax.nn.initializers.orthogonal()``, drawn in float32 where ``dtype`` is narrower."""
    return _ORTHOGONAL(key, tuple(shape), state_dtype(dtype)).astype(dtype)


zeros: Initializer = jax.nn.initializers.zeros


def init_gates(
    initializer: Initializer, key: Array, shape: tuple[int, ...], gates: int, dtype: DType
) -> Array:
    """Draw one array per gate, each from its own key, and concatenate them along the last axis."""
    return jnp.concatenate([initializer(k, shape, dtype) for k in jax.random.split(key, gates)], axis=-1)


def init_weights(
    cell: Any, key: Array, gates: int, heads: int = 1, rows: int | None = None
) -> tuple[Array, Array, Array | None]:
    """``(w_ih, w_hh, bias)`` of a cell with ``gates`` gates; w_hh has ``rows`` rows (default: H)."""
    check_key(f"{type(cell).__name__}.init", key)
    k_ih, k_hh, k_bias = jax.random.split(key, 3)
    D, H, dtype = cell.input_size, cell.hidden_size, cell.param_dtype
    shape = head_shape(heads, H if rows is None else rows, H)
    if heads > 1:  # one key per head
        keys = jax.random.split(k_hh, heads)
        w_hh = jnp.stack([init_gates(cell.w_hh_init, k, shape[1:], gates, dtype) for k in keys])
    else:
        w_hh = init_gates(cell.w_hh_init, k_hh, shape, gates, dtype)
    return (
        init_gates(cell.w_ih_init, k_ih, (D, H), gates, dtype),
        w_hh,
        init_gates(cell.bias_init, k_bias, (H,), gates, dtype) if cell.use_bias else None,
    )


def initial_state(
    cell: Any, batch_shape: Sequence[int], row: tuple[int, ...], dtype: DType, learned: Any = None
) -> Array:
    """A state before the first step, (*batch_shape, *row): zeros, or copies of the learned row."""
    check_batch_shape(cell, batch_shape)
    shape = (*batch_shape, *row)
    return jnp.zeros(shape, dtype) if learned is None else jnp.broadcast_to(learned.astype(dtype), shape)


def learned_initial(cell: Any, params: Any | None) -> Any | None:
    """``params.initial`` if the cell has ``learn_initial_carry=True``, else None; checks ``params``."""
    owner = f"{type(cell).__name__}.initial_carry"
    if params is not None:
        check_type(owner, params, type(cell.param_shapes))
    if not getattr(cell, "learn_initial_carry", False):
        return None
    if params is None:
        raise value_error(
            f"{owner} got no params",
            "the parameters, because learn_initial_carry=True keeps the initial carry among them",
            "Call cell.initial_carry(batch_shape, params).",
        )
    wanted = jax.tree.leaves(cell.param_shapes.initial, is_leaf=lambda node: isinstance(node[0], int))
    given = [tuple(state.shape) for state in jax.tree.leaves(params.initial)]
    if given != wanted:
        raise value_error(
            f"{owner} got params.initial of shape {', '.join(map(str, given)) or 'None'}",
            f"{', '.join(map(str, wanted))}, because learn_initial_carry=True",
            "Make parameters with cell.init(key), or use params._replace(initial=...).",
        )
    return params.initial


def state_dtypes(cell: Any, params: Any | None) -> tuple[Any, Any]:
    """The dtype of h (the cell's, or that of the weights), and that of states in float32 or wider."""
    weights = cell.param_dtype
    if params is not None:
        weights = getattr(params.w_ih, "dtype", None)
        if weights is None or not is_float(weights):
            raise float_error(f"{type(cell).__name__}.initial_carry", "w_ih", params.w_ih, INIT_HINT)
    dtype = weights if cell.dtype is None else cell.dtype
    return dtype, promote(state_dtype(dtype), weights)
