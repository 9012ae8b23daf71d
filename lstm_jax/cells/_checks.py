"""Validation of a cell's hyperparameters, parameters, inputs and carries, from shapes alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lstm_jax._errors import check_float, check_function, check_size, normalised_dtype, value_error
from lstm_jax.cells._linear import dense, first_axis


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


def check_heads(owner: str, heads: int, sizes: dict[str, int]) -> None:
    """Heads divide each of the sizes."""
    for name, size in sizes.items():
        if size % heads:
            raise value_error(
                f"{owner} got heads={heads} with {name}={size}",
                "heads of equal size",
                f"Take a number of heads that divides {size}.",
            )


def check_batch_shape(cell: Any, batch_shape: Any) -> None:
    """A tuple of sizes."""
    if not isinstance(batch_shape, (tuple, list)):
        raise value_error(
            f"{type(cell).__name__}.initial_carry got batch_shape={batch_shape!r}",
            "a tuple of the batch axes",
            "Write initial_carry((batch,)), or initial_carry() for a single row.",
        )


def check_step(
    owner: str,
    params: Any,
    states: str,
    carry: Any,
    x: Any,
    gates: int,
    recurrent: Callable[[int], tuple[int, ...]] = dense,
    H: int | None = None,
) -> None:
    """The arguments of a free step function fit each other. ``states`` names the carry's parts.

    H is given where it is not the first axis of w_hh.
    """
    check_fields(owner, params)
    D, H = first_axis(params.w_ih), first_axis(params.w_hh) if H is None else H
    check_weights(owner, params, gates, (D, H), recurrent)
    check_input(owner, x, D)
    check_carry(owner, states, carry, x, H)


def check_cell(
    cell: Any, params: Any, x: Any, gates: int, recurrent: Callable[[int], tuple[int, ...]] = dense
) -> None:
    """Parameters and input fit the cell's hyperparameters."""
    owner = type(cell).__name__
    check_weights(owner, params, gates, (cell.input_size, cell.hidden_size), recurrent)
    check_bias(cell, params)
    check_initial(cell, params)
    check_input(owner, x, cell.input_size)


def check_bias(cell: Any, params: Any) -> None:
    """The parameters hold a bias exactly where the cell has one."""
    if (params.bias is not None) != cell.use_bias:
        raise value_error(
            f"{type(cell).__name__} got {'a' if params.bias is not None else 'no'} bias "
            f"with use_bias={cell.use_bias}",
            "a bias exactly where use_bias=True",
            "Build the cell with the use_bias of its parameters, or change them: params._replace(bias=...).",
        )


def check_initial(cell: Any, params: Any) -> None:
    """The parameters hold a learned initial carry, of the right size, exactly where the cell learns one."""
    owner, shape = type(cell).__name__, (cell.hidden_size,)
    states = jax.tree.leaves(getattr(params, "initial", None))
    # Where the cell projects h, that is the first of its states.
    shapes = [(getattr(cell, "proj_size", None) or cell.hidden_size,), *[shape] * len(states)]
    wrong = any(tuple(s.shape) != wanted for s, wanted in zip(states, shapes, strict=False))
    if bool(states) != cell.learn_initial_carry or wrong:
        got = ", ".join(str(tuple(state.shape)) for state in states) or "None"
        raise value_error(
            f"{owner} got params.initial of shape {got} with learn_initial_carry={cell.learn_initial_carry}",
            f"states of shape {', '.join(map(str, shapes[: max(1, len(states))]))} exactly where "
            "learn_initial_carry=True",
            "Make parameters with cell.init(key), or change them: params._replace(initial=...).",
        )


def check_input(owner: str, x: Any, size: int) -> None:
    """A float array whose last axis holds the input features."""
    check_float(owner, "x", x)
    if len(x.shape) < 1 or x.shape[-1] != size:
        raise value_error(
            f"{owner} got x of shape {tuple(x.shape)}",
            f"shape (..., {size}), the last axis being the {size} input features",
            "Change input_size, or the array (time and batch come first).",
        )


def check_carry(owner: str, states: str, carry: Any, x: Any, size: int | Sequence[int]) -> None:
    """Float arrays ``(*batch, H)`` over x's batch axes, one for each name in ``states``.

    ``size`` is one for all of them, or one for each.
    """
    wanted = states.split(", ")
    parts = carry if isinstance(carry, (tuple, list)) else (carry,)
    if len(parts) != len(wanted):
        raise value_error(
            f"{owner} got a carry of {len(parts)} parts", f"({states})", "Make one with cell.initial_carry()."
        )
    for name, part, units in zip(
        wanted, parts, [size] * len(parts) if isinstance(size, int) else size, strict=True
    ):
        shape = (*x.shape[:-1], units)
        check_float(owner, name, part)
        if tuple(part.shape) != shape:
            raise value_error(
                f"{owner} got {name} of shape {tuple(part.shape)} with x of shape {tuple(x.shape)}",
                f"{name} of shape {shape}: x's batch axes, then the {units} units",
                "Make the carry with cell.initial_carry(batch_shape), or map over the batch with jax.vmap.",
            )


def check_fields(owner: str, params: Any, names: Sequence[str] = ("w_ih", "w_hh", "bias")) -> None:
    """The parameters have these fields; by default the three that every classic cell has."""
    missing = [name for name in names if not hasattr(params, name)]
    if missing:
        raise value_error(
            f"{owner} got parameters of type {type(params).__name__} without {', '.join(missing)}",
            "the NamedTuple that the cell's init returns",
            "Make parameters with cell.init(key).",
        )


def check_weights(
    owner: str,
    params: Any,
    gates: int,
    sizes: tuple[int, int],
    recurrent: Callable[[int], tuple[int, ...]] = dense,
) -> None:
    """w_ih (D, gates*H), w_hh (H, gates*H) and bias (gates*H,) agree with ``sizes``, D and H.

    ``recurrent`` tells the shape of w_hh for one gate where it is another; gates lie on its last axis.
    """
    check_fields(owner, params)
    given = {name: getattr(params, name) for name in ("w_ih", "w_hh", "bias")}
    if given["bias"] is None:
        del given["bias"]
    for name, value in given.items():
        check_float(owner, name, value)
    D, H = sizes
    *rows, columns = recurrent(H)
    expected = {"w_ih": (D, gates * H), "w_hh": (*rows, gates * columns), "bias": (gates * H,)}
    wrong = {name: tuple(v.shape) for name, v in given.items() if tuple(v.shape) != expected[name]}
    if wrong:
        raise value_error(
            f"{owner} got " + ", ".join(f"{name} of shape {shape}" for name, shape in wrong.items()),
            ", ".join(f"{name} {expected[name]}" for name in wrong) + f" (D={D}, H={H}, {gates} gates)",
            "Build the cell with the sizes of its parameters, make parameters with cell.init(key), "
            "or map over stacked parameters with jax.vmap.",
        )
