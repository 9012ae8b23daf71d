"""Carries of the right type: dtype, sharding and varying axes, as the loop returns them."""

from __future__ import annotations

import jax

from lstm_jax._devices import _varying, is_explicit
from lstm_jax._errors import check_structure, value_error
from lstm_jax._types import Array, Carry, Params, is_float, promote
from lstm_jax.cells._base import Cell
from lstm_jax.unrolling.steps import one_step


def default_carry(cell: Cell, params: Params, xs: Array, batch: tuple[int, ...]) -> Carry:
    """The cell's own initial carry, in the type that the projected input asks for."""
    project = getattr(cell, "project", None)
    u = None if project is None else jax.tree.leaves(jax.eval_shape(project, params, xs))[0]
    carry = cell.initial_carry(batch, params)
    if u is not None:
        carry = jax.tree.map(lambda a: a.astype(promote(a.dtype, u.dtype)) if is_float(a.dtype) else a, carry)
    return match_carry_type(cell, params, xs, carry)


def match_carry_type(cell: Cell, params: Params, xs: Array, carry: Carry, *, given: bool = False) -> Carry:
    """Give the carry the type that ``cell.step`` returns it in.

    A loop wants what goes round to keep its type. Fresh zeros are the same on every device, but
    beside an input that differs from device to device (inside ``shard_map``), or that is sharded
    over an explicit mesh, the new carry differs or is sharded too. A ``given`` carry keeps its dtype.
    """
    for _ in range(3):
        after = jax.eval_shape(lambda p, c, x: cell.step(p, c, one_step(x))[0], params, carry, xs)
        hint = "Return the carry first, then the output: (carry, y)."
        check_structure(f"{type(cell).__name__}.step", after, carry, "the one it was handed", hint)
        matched = jax.tree.map(lambda a, like: _as_type_of(cell, a, like, given), carry, after)
        if all(a is b for a, b in zip(jax.tree.leaves(matched), jax.tree.leaves(carry), strict=True)):
            break
        carry = matched
    return carry


def _as_type_of(cell: Cell, a: Array, like: jax.ShapeDtypeStruct, given: bool) -> Array:
    if a.shape != like.shape:
        raise value_error(
            f"{type(cell).__name__}.step turned a carry of shape {a.shape} into one of shape {like.shape}",
            "the same shape before and after a step",
            "Let step return the carry in the shape it was handed.",
        )
    if a.dtype != like.dtype:
        if given:
            raise value_error(
                f"{type(cell).__name__}.step turned a carry of dtype {a.dtype} into {like.dtype}",
                "the same dtype before and after a step",
                f"Hand in the carry as {like.dtype}, or let step return the dtype it was handed.",
            )
        a = a.astype(like.dtype)
    missing = _varying(like) - _varying(jax.typeof(a))
    if missing:
        a = jax.lax.pcast(a, tuple(missing), to="varying")
    if is_explicit(like) and jax.typeof(a).sharding.spec != like.sharding.spec:
        a = jax.sharding.reshard(a, like.sharding)
    return a
