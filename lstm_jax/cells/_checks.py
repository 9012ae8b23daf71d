"""Validation of hyperparameters, parameters, inputs and carries of cells, from shapes and dtypes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax._errors import canonical_dtype, check_function, check_size, float_error, value_error

INIT_HINT = "Make parameters with cell.init(key)."
#: The constructor field that decides whether a parameter exists.
FIELD_OF = {
    "bias": "use_bias",
    "initial": "learn_initial_carry",
    "log_tau": "learn_tau",
    "peepholes": "peepholes",
    "w_hr": "proj_size",
    "norm": "layer_norm",
    "bias_hn": "reset_after",
}


def normalise(cell: Any, *sizes: str) -> None:
    """Check the sizes, and convert equal hyperparameters to equal objects; for ``__post_init__``."""
    owner = type(cell).__name__
    for name in sizes:
        check_size(owner, name, getattr(cell, name))
        object.__setattr__(cell, name, int(getattr(cell, name)))
    for field in dataclasses.fields(cell):
        if field.name.endswith("_init"):
            check_function(owner, field.name, getattr(cell, field.name))
    object.__setattr__(cell, "param_dtype", canonical_dtype(owner, "param_dtype", cell.param_dtype))
    if cell.dtype is not None:
        object.__setattr__(cell, "dtype", canonical_dtype(owner, "dtype", cell.dtype))


def check_heads(owner: str, heads: int, sizes: Mapping[str, int]) -> None:
    """Check that the number of heads divides each of the sizes."""
    for name, size in sizes.items():
        if size % heads:
            raise value_error(
                f"{owner} got heads={heads} with {name}={size}",
                "heads of equal size",
                f"Choose a number of heads that divides {size}.",
            )


def check_batch_shape(cell: Any, batch_shape: Any) -> None:
    """Check that ``batch_shape`` is a tuple."""
    if not isinstance(batch_shape, (tuple, list)):
        raise value_error(
            f"{type(cell).__name__}.initial_carry got batch_shape={batch_shape!r}",
            "a tuple of the batch axes",
            "Write initial_carry((batch,)), or initial_carry() for a single row.",
        )


def check_type(owner: str, params: Any, params_type: type) -> None:
    """Check that the parameters have exactly the type that ``init`` of the cell returns."""
    if type(params) is not params_type:
        raise value_error(
            f"{owner} got parameters of type {type(params).__name__}",
            f"{params_type.__name__}, the NamedTuple that init returns",
            "Make parameters with cell.init(key), or use the step of the cell whose parameters these are.",
        )


def check_params(
    owner: str, params: Any, shapes: Any, sizes: str, optional: Sequence[str] = (), cell: Any = None
) -> None:
    """Check that the parameters are floats in these shapes.

    Args:
        owner: the function or class to name in messages.
        params: the parameters, a NamedTuple.
        shapes: the same NamedTuple with a shape in place of each array; None for no array.
        sizes: the sizes that determine the shapes, for messages: ``"D=3, H=2"``.
        optional: fields that may be None although they have a shape.
        cell: the cell whose fields determine which arrays exist, for messages.
    """
    if type(params) is not type(shapes):
        check_type(owner, params, type(shapes))
    wrong, right = [], []
    for name, array, shape in zip(params._fields, params, shapes, strict=True):
        if array is None and (shape is None or name in optional):
            continue
        if array is None or shape is None:
            raise _presence_error(owner, cell, name, array is None, shape)
        arrays, wanted = [array], [shape]
        if isinstance(shape, tuple) and shape and isinstance(shape[0], tuple):
            arrays, wanted = jax.tree.leaves(array), list(shape)
        if len(arrays) != len(wanted):
            raise value_error(
                f"{owner} got params.{name} of {len(arrays)} arrays", f"{len(wanted)}", INIT_HINT
            )
        for part, size in zip(arrays, wanted, strict=True):
            if not hasattr(part, "dtype") or not jnp.issubdtype(part.dtype, jnp.floating):
                raise float_error(owner, name, part, INIT_HINT)
            if tuple(part.shape) != size:
                wrong.append(f"{name} of shape {tuple(part.shape)}")
                right.append(f"{name} {size}")
    if wrong:
        raise value_error(
            f"{owner} got {', '.join(wrong)}",
            f"{', '.join(right)} ({sizes})",
            "Build the cell with the sizes of its parameters, make parameters with cell.init(key), "
            "or map over stacked parameters with jax.vmap.",
        )


def _presence_error(owner: str, cell: Any, name: str, missing: bool, shape: Any) -> ValueError:
    """The error for a missing parameter, or for one that the cell does not have."""
    field = next((field for field in (FIELD_OF.get(name, ""), "use_bias") if hasattr(cell, field)), None)
    optional = field is not None and name in FIELD_OF
    return value_error(
        f"{owner} got {'no ' if missing else ''}params.{name}"
        + (f" with {field}={getattr(cell, field or '')!r}" if optional else ""),
        f"{name} to be None" if shape is None else "an array" if 0 in shape else f"{name} of shape {shape}",
        INIT_HINT[:-1] + (f", or build the cell with another {field}." if optional else "."),
    )


def check_input(owner: str, x: Any, size: int) -> None:
    """Check for a float array whose last axis contains the input features."""
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        raise float_error(owner, "x", x)
    if len(x.shape) < 1 or x.shape[-1] != size:
        raise value_error(
            f"{owner} got x of shape {tuple(x.shape)}",
            f"shape (..., {size}) with {size} input features on the last axis",
            "Change input_size, or the array (time and batch come first).",
        )


def check_carry(owner: str, states: str, carry: Any, batch: Sequence[Any], *rows: tuple[int, ...]) -> None:
    """Check for float arrays ``(*batch, *row)``, one for each name in ``states`` and each of ``rows``."""
    names = states.split(", ")
    parts = carry if isinstance(carry, (tuple, list)) else (carry,)
    if len(parts) != len(names):
        raise value_error(
            f"{owner} got a carry of {len(parts)} parts", f"({states})", "Use cell.initial_carry()."
        )
    for name, part, row in zip(names, parts, rows, strict=True):
        if not hasattr(part, "dtype") or not jnp.issubdtype(part.dtype, jnp.floating):
            raise float_error(owner, name, part)
        if tuple(part.shape) != (*batch, *row):
            raise value_error(
                f"{owner} got {name} of shape {tuple(part.shape)} with x of batch axes {tuple(batch)}",
                f"{name} of shape {(*batch, *row)}: the batch axes of x, then {row}",
                "Make the carry with cell.initial_carry(batch_shape), or map over the batch with jax.vmap.",
            )


def axis_size(array: Any, axis: int) -> int:
    """The length of an axis, or 0 if the value has no such axis."""
    shape = getattr(array, "shape", ())
    return shape[axis] if -len(shape) <= axis < len(shape) else 0


def check_head_params(
    owner: str, params_type: type, params: Any, gates: int, **others: tuple[int, ...]
) -> tuple[int, int]:
    """Check the parameters of a free step whose recurrent weights may have heads; returns D and H."""
    check_type(owner, params, params_type)
    blocks = getattr(params.w_hh, "ndim", 0) == 3
    heads = params.w_hh.shape[0] if blocks else 1
    D, H = axis_size(params.w_ih, 0), heads * axis_size(params.w_hh, -2)
    shapes: dict[str, Any] = {name: None for name in params_type._fields}  # type: ignore[attr-defined]
    shapes |= {"w_ih": (D, gates * H), "w_hh": (heads, H // heads, gates * H // heads)}
    if not blocks:
        shapes["w_hh"] = (H, gates * H)
    shapes["bias"] = None if params.bias is None else (gates * H,)
    shapes["initial"] = None if params.initial is None else (H,)
    check_params(owner, params, params_type(**(shapes | others)), f"D={D}, H={H}, {gates} gates")
    return D, H
