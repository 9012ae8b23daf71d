"""What the classic cells share: the affine map, gate-by-gate initialisation, checks, carries."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.checks import check_float, check_function, check_key, check_size, normalised_dtype, refuse
from lstm_jax.notation import Array, DType, Initializer, promote, state_dtype
from lstm_jax.schedule import alone

# Module constants, because two calls of orthogonal() are two functions, and so two unequal cells.
GLOROT_UNIFORM: Initializer = jax.nn.initializers.glorot_uniform()
_ORTHOGONAL = jax.nn.initializers.orthogonal()


def ORTHOGONAL(key: Array, shape: Sequence[int], dtype: DType) -> Array:
    """``jax.nn.initializers.orthogonal()``, also where dtype is narrower than its decomposition can be."""
    return _ORTHOGONAL(key, shape, state_dtype(dtype)).astype(dtype)


ZEROS: Initializer = jax.nn.initializers.zeros


def affine(x: Array, w: Array, bias: Array | None, dtype: DType | None = None) -> Array:
    """``x w + bias`` in ``dtype`` (by default what x and w promote to), summed in float32 or wider."""
    dtype = promote(x.dtype, w.dtype) if dtype is None else dtype
    return add_bias(product(x, w, dtype), bias).astype(dtype)


def add_bias(total: Array, bias: Array | None) -> Array:
    """``total + bias`` over any leading axes, in the dtype of the total."""
    return total if bias is None else total + over(bias.astype(total.dtype), total)


def over(vector: Any, array: Array) -> Any:
    """``vector`` with leading axes to meet ``array`` (for users who forbid implicit broadcasting)."""
    return vector.reshape((1,) * (array.ndim - 1) + vector.shape)


def product(x: Array, w: Array, dtype: DType) -> Array:
    """``x w`` with factors in ``dtype`` and the sum kept in float32 or wider."""
    x, w = x.astype(dtype), w.astype(dtype)
    rows = x.shape[:-1]
    # XLA for CPUs copies before a weight's gradient is summed over two axes. Joining them would
    # gather what is spread over devices, and symbolic sizes do not join.
    if len(rows) > 1 and alone() and all(isinstance(n, int) for n in rows):
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


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), by way of tanh: half the time on CPUs."""
    return 0.5 * jnp.tanh(0.5 * z) + 0.5


# --- hyperparameters and initial values ---------------------------------------------------------


def normalise(cell: Any, *sizes: str) -> None:
    """Check the sizes and make equal hyperparameters equal objects, from a cell's ``__post_init__``."""
    owner = type(cell).__name__
    for name in sizes:
        check_size(owner, name, getattr(cell, name))
        object.__setattr__(cell, name, int(getattr(cell, name)))
    for field in dataclasses.fields(cell):
        if field.name.endswith("_init"):
            check_function(owner, field.name, getattr(cell, field.name))
    object.__setattr__(cell, "param_dtype", normalised_dtype(owner, "param_dtype", cell.param_dtype))
    if cell.dtype is not None:
        object.__setattr__(cell, "dtype", normalised_dtype(owner, "dtype", cell.dtype))


def init_gates(
    initializer: Initializer, key: Array, shape: tuple[int, ...], gates: int, dtype: DType
) -> Array:
    """One matrix (or vector) a gate, each from its own key, side by side on the last axis."""
    return jnp.concatenate([initializer(k, shape, dtype) for k in jax.random.split(key, gates)], axis=-1)


def init_weights(cell: Any, key: Array, gates: int) -> tuple[Array, Array, Array | None]:
    """``(w_ih, w_hh, bias)`` of a cell with ``gates`` gates, from its three initialisers."""
    check_key(f"{type(cell).__name__}.init", key)
    k_ih, k_hh, k_bias = jax.random.split(key, 3)
    D, H, dtype = cell.input_size, cell.hidden_size, cell.param_dtype
    return (
        init_gates(cell.w_ih_init, k_ih, (D, H), gates, dtype),
        init_gates(cell.w_hh_init, k_hh, (H, H), gates, dtype),
        init_gates(cell.bias_init, k_bias, (H,), gates, dtype) if cell.use_bias else None,
    )


def initial_state(cell: Any, batch_shape: Sequence[int], learned: Array | None, dtype: DType) -> Array:
    """The state before the first step: zeros, or the learned vector on every row of the batch."""
    if not isinstance(batch_shape, (tuple, list)):
        refuse(
            f"{type(cell).__name__}.initial_carry got batch_shape={batch_shape!r}",
            "a tuple of the batch axes",
            "Write initial_carry((batch,)), or initial_carry() for a single row.",
        )
    shape = (*batch_shape, cell.hidden_size)
    if learned is None:
        return jnp.zeros(shape, dtype)
    return jnp.broadcast_to(learned.astype(dtype), shape)


def learned_initial(cell: Any, params: Any | None) -> Any | None:
    """``params.initial`` where the cell learns its initial carry, which cannot be done without params."""
    if not cell.learn_initial_carry:
        return None
    if params is None:
        refuse(
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


# --- checks, from shapes alone ------------------------------------------------------------------


def check_step(owner: str, params: Any, states: str, carry: Any, x: Any, gates: int) -> None:
    """The arguments of a free step function fit each other. ``states`` names the carry's parts."""
    check_weights(owner, params, gates)
    check_input(owner, x, params.w_ih.shape[0])
    check_carry(owner, states, carry, x, params.w_hh.shape[0])


def check_cell(cell: Any, params: Any, x: Any, gates: int) -> None:
    """Parameters and input fit the cell's hyperparameters."""
    owner = type(cell).__name__
    check_weights(owner, params, gates, (cell.input_size, cell.hidden_size))
    if (params.bias is not None) != cell.use_bias:
        refuse(
            f"{owner} got {'a' if params.bias is not None else 'no'} bias with use_bias={cell.use_bias}",
            "a bias exactly where use_bias=True",
            "Build the cell with the use_bias of its parameters, or mend them: params._replace(bias=...).",
        )
    check_initial(cell, params)
    check_input(owner, x, cell.input_size)


def check_initial(cell: Any, params: Any) -> None:
    """The parameters hold a learned initial carry, of the right size, exactly where the cell learns one."""
    owner, shape = type(cell).__name__, (cell.hidden_size,)
    states = jax.tree.leaves(getattr(params, "initial", None))
    if bool(states) != cell.learn_initial_carry or any(tuple(state.shape) != shape for state in states):
        came = ", ".join(str(tuple(state.shape)) for state in states) or "None"
        refuse(
            f"{owner} got params.initial of shape {came} with learn_initial_carry={cell.learn_initial_carry}",
            f"states of shape {shape} exactly where learn_initial_carry=True",
            "Make parameters with cell.init(key), or mend them: params._replace(initial=...).",
        )


def check_input(owner: str, x: Any, size: int) -> None:
    """A float array whose last axis holds the input features."""
    check_float(owner, "x", x)
    if len(x.shape) < 1 or x.shape[-1] != size:
        refuse(
            f"{owner} got x of shape {tuple(x.shape)}",
            f"shape (..., {size}), the last axis being the {size} input features",
            "Change input_size, or the array (time and batch come first).",
        )


def check_carry(owner: str, states: str, carry: Any, x: Any, size: int) -> None:
    """Float arrays ``(*batch, H)`` over x's batch axes, one for each name in ``states``."""
    wanted = states.split(", ")
    parts = carry if isinstance(carry, (tuple, list)) else (carry,)
    if len(parts) != len(wanted):
        refuse(
            f"{owner} got a carry of {len(parts)} parts", f"({states})", "Make one with cell.initial_carry()."
        )
    shape = (*x.shape[:-1], size)
    for name, part in zip(wanted, parts, strict=True):
        check_float(owner, name, part)
        if tuple(part.shape) != shape:
            refuse(
                f"{owner} got {name} of shape {tuple(part.shape)} with x of shape {tuple(x.shape)}",
                f"{name} of shape {shape}: x's batch axes, then the {size} hidden units",
                "Make the carry with cell.initial_carry(batch_shape), or map over the batch with jax.vmap.",
            )


def check_fields(owner: str, params: Any) -> None:
    """The parameters have the three fields that every classic cell has."""
    missing = [name for name in ("w_ih", "w_hh", "bias") if not hasattr(params, name)]
    if missing:
        refuse(
            f"{owner} got parameters of type {type(params).__name__} without {', '.join(missing)}",
            "the NamedTuple that the cell's init returns",
            "Make parameters with cell.init(key).",
        )


def first_axis(a: Array) -> int:
    """The length of the first axis; a scalar has none."""
    return a.shape[0] if a.shape else 0


def check_weights(owner: str, params: Any, gates: int, sizes: tuple[int, int] | None = None) -> None:
    """w_ih (D, gates*H), w_hh (H, gates*H) and bias (gates*H,) agree, with each other or with ``sizes``."""
    check_fields(owner, params)
    given = {name: getattr(params, name) for name in ("w_ih", "w_hh", "bias")}
    if given["bias"] is None:
        del given["bias"]
    for name, value in given.items():
        check_float(owner, name, value)
    D, H = sizes or (first_axis(params.w_ih), first_axis(params.w_hh))
    expected = {"w_ih": (D, gates * H), "w_hh": (H, gates * H), "bias": (gates * H,)}
    wrong = {name: tuple(v.shape) for name, v in given.items() if tuple(v.shape) != expected[name]}
    if wrong:
        refuse(
            f"{owner} got " + ", ".join(f"{name} of shape {shape}" for name, shape in wrong.items()),
            ", ".join(f"{name} {expected[name]}" for name in wrong) + f" (D={D}, H={H}, {gates} gates)",
            "Build the cell with the sizes of its parameters, make parameters with cell.init(key), "
            "or map over stacked parameters with jax.vmap.",
        )
