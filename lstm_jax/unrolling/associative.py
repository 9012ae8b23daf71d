"""The parallel walk: all steps of a linear recurrence at once, in about 2 log2(T) rounds.

A cell whose state obeys h_t = a_t h_{t-1} + b_t, where a_t and b_t come of the input alone
(:class:`lstm_jax.ParallelCell`), need not be walked step by step. Two neighbouring stretches of
time, each of which turns the state h it meets into A h + B, make one stretch of the same kind:

    (A_1, B_1) then (A_2, B_2)  =  (A_2 A_1, A_2 B_1 + B_2)

and since it does not matter which neighbours are joined first, ``jax.lax.associative_scan`` joins
them as a tree. Nothing is left of time but an axis, and every transform is JAX's own. The tree's
levels stand in the program one by one: it is longer than a loop's, and grows with log(T).

A is kept as its logarithm, of which sums are taken; B is kept as it is. Gates that are nearly open
stay apart from 1 that way: after 20,000 steps of a = exp(-6e-7), float32 products are off by 2e-4,
this by 6e-7. Cumulative sums in log space, which would do without the tree (h_t = exp(S_t) times
the sum over s of exp(log b_s - S_s), S being the sum of log a), lose the digits of b in S as T
grows, and ask for a positive b and first state. Here any sign will do. To keep log B instead of
B, and add by ``logaddexp``, was measured as well: two to six times the time on a CPU, and digits
lost (2.6e-6 in the same case).

What the flags say is said in a and b. An invalid step is a = 1, b = 0. A step that begins anew
knows the state it reads, which goes into its b, and its a is 0: what came before is forgotten. The
first step of the walk reads the first carry in the same way.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax._types import Array, Carry, Params, is_float, promote
from lstm_jax.cells._base import ParallelCell
from lstm_jax.unrolling.steps import Flags, Scanned, mask_out

#: The logarithm of an a that is 0 in every dtype; finite, so that nothing made of it is NaN.
FORGET = -1e4


def associative_scan(
    cell: ParallelCell,
    params: Params,
    initial: Carry,
    carry: Carry,
    xs: Any,
    flags: Flags,
    key: Array | None = None,
    *,
    reverse: bool,
    carries: bool,
) -> Scanned:
    """``steps.walk`` of a linear recurrence, all steps at once; ``key`` is of no use to it."""
    log_a, b = cell.coefficients(params, xs)
    dtype = promote(log_a.dtype, b.dtype, carry.dtype)
    log_a, b = log_a.astype(dtype), b.astype(dtype)
    T = b.shape[0]
    if flags.valid is not None:
        log_a, b = mask_out(flags.valid, (log_a, b))

    anew = _meeting(jnp.arange(T) == (T - 1 if reverse else 0), b)
    reads = jnp.where(anew, carry[None].astype(dtype), jnp.zeros((), dtype))
    if flags.restart is not None:
        restart = _meeting(flags.restart, b)
        anew, reads = anew | restart, jnp.where(restart, initial[None].astype(dtype), reads)
    b = b + jnp.exp(log_a) * reads
    log_a = jnp.where(anew, jnp.asarray(FORGET, dtype), log_a)

    states = lax.associative_scan(_join, (log_a, b), reverse=reverse)[1].astype(carry.dtype)
    ys = states if flags.valid is None else mask_out(flags.valid, states)
    if T > 0:
        carry = states[0 if reverse else -1]
    return Scanned(carry, ys, states if carries else None, None)


def _join(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
    """Two stretches of time as one."""
    (log_a1, b1), (log_a2, b2) = first, then
    return log_a1 + log_a2, jnp.exp(log_a2) * b1 + b2


def _meeting(flag: Array, like: Array) -> Array:
    """The flag with axes of length 1 behind its own, as many as ``like`` has."""
    return lax.expand_dims(flag, range(flag.ndim, like.ndim))


def associative_unsupported(cell: Any, params: Params, carry: Carry, xs: Any, flags: Flags) -> str | None:
    """Why the parallel walk cannot take this cell or these options, or None."""
    name = type(cell).__name__
    if not hasattr(cell, "coefficients"):
        return f"{name} has no coefficients (see lstm_jax.ParallelCell)"
    if flags.cut is not None:
        return "truncate cuts gradients between two steps, and here no step follows another"
    if not isinstance(xs.shape[0], int):
        return "the tree over time is built while tracing, when the number of steps is not known"
    if not isinstance(carry, jax.Array) or not is_float(carry.dtype):
        return f"{name} carries something else than one array of floats"
    shapes = [tuple(a.shape) for a in jax.tree.leaves(jax.eval_shape(cell.coefficients, params, xs))]
    wanted = (xs.shape[0], *carry.shape)
    if shapes != [wanted, wanted]:
        return f"{name}.coefficients returned shapes {shapes}, not two of {wanted}"
    return None
