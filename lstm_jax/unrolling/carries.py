"""Initial carries with the type of the loop: dtype, sharding and varying axes."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from lstm_jax._devices import is_explicit, vary_over, varying_axes
from lstm_jax._errors import check_structure, value_error
from lstm_jax._types import Array, Carry, Params, is_float, promote
from lstm_jax.cells._base import label
from lstm_jax.unrolling.steps import one_step


def own_carry(cell: Any, params: Params, xs: Any, batch: tuple[int, ...]) -> Carry:
    """The cell's initial carry, promoted to the dtype of the projected input."""
    carry = cell.initial_carry(batch, params)
    if cell.splits:
        u = jax.tree.leaves(jax.eval_shape(cell.project, params, jax.eval_shape(one_step, xs)))[0]
        carry = jax.tree.map(lambda a: a.astype(promote(a.dtype, u.dtype)) if is_float(a.dtype) else a, carry)
    return match_carry_type(cell, params, xs, carry)


def given_carry(cell: Any, params: Params, xs: Any, batch: tuple[int, ...], carry: Carry) -> Carry:
    """A given carry, promoted to the dtype of the cell's initial carry."""
    own = jax.eval_shape(partial(cell.initial_carry, batch), params)
    carry = jax.tree.map(
        lambda a, like: a.astype(promote(a.dtype, like.dtype)) if is_float(like.dtype) else a, carry, own
    )
    return match_carry_type(cell, params, xs, carry, given=True)


def match_carry_type(cell: Any, params: Params, xs: Any, carry: Carry, *, given: bool = False) -> Carry:
    """The carry with the type that ``cell.step`` returns, because ``lax.scan`` requires a fixed type.

    New zeros are unsharded and have no varying axes. If the input is sharded over an explicit mesh, or varies
    over devices inside ``shard_map``, so does the carry that ``cell.step`` returns. The dtype of a ``given``
    carry does not change.
    """
    for _ in range(3):
        after = jax.eval_shape(lambda p, c, x: cell.step(p, c, one_step(x))[0], params, carry, xs)
        hint = "Return the carry first, then the output: (carry, y)."
        check_structure(f"{label(cell)}.step", after, carry, "the structure of the given carry", hint)
        matched = jax.tree.map(lambda a, like: _as_type_of(cell, a, like, given), carry, after)
        if all(a is b for a, b in zip(jax.tree.leaves(matched), jax.tree.leaves(carry), strict=True)):
            break
        carry = matched
    return carry


def _as_type_of(cell: Any, a: Array, like: jax.ShapeDtypeStruct, given: bool) -> Array:
    if a.shape != like.shape:
        raise value_error(
            f"{label(cell)}.step got a carry of shape {a.shape} and returned one of shape {like.shape}",
            "the same shape before and after a step",
            "Return the carry in the shape of the given one.",
        )
    if a.dtype != like.dtype:
        if given:
            raise value_error(
                f"{label(cell)}.step got a carry of dtype {a.dtype} and returned one of dtype {like.dtype}",
                "the same dtype before and after a step",
                f"Pass the carry as {like.dtype}, or return the carry in the dtype of the given one.",
            )
        a = a.astype(like.dtype)
    a = vary_over(a, varying_axes(like))
    if is_explicit(like) and jax.typeof(a).sharding.spec != like.sharding.spec:
        a = jax.sharding.reshard(a, like.sharding)
    return a
