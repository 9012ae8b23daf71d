"""Linear recurrences by an associative scan, in about 2 log2(T) rounds (``implementation="parallel"``).

A cell whose state obeys h_t = a_t h_{t-1} + b_t, where a_t and b_t depend only on the input
(:class:`lstm_jax.ParallelCell`), does not need a loop. An interval of time maps the state h before it to
A h + B. Two adjacent intervals combine into one:

    (A_1, B_1) then (A_2, B_2)  =  (A_2 A_1, A_2 B_1 + B_2)

This operation is associative, so ``jax.lax.associative_scan`` combines the intervals as a tree, and JAX
differentiates it. The levels of the tree are separate instructions, so the program is longer than that of a
loop and grows with log(T).

The scan stores log A and B. Logarithms keep coefficients near 1 accurate: after 20,000 steps of
a = exp(-6e-7), the relative error of float32 products is 2e-4, that of sums of logarithms 6e-7. Two
alternatives were measured and rejected. Cumulative sums in log space (h_t = exp(S_t) times the sum over s of
exp(log b_s - S_s), with S the sum of log a) need no tree, but lose the digits of b in S as T grows, and
require b and the initial state to be positive. Storing log B and adding with ``logaddexp`` takes two to six
times the time on a CPU and is less accurate (2.6e-6 in the case above).

Masks and resets are encoded in a and b. An invalid step has a = 1 and b = 0. A step that restarts has
a = 0, and its b includes the state that it restarts from. The first step reads the initial carry in the
same way.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax._types import Array, Carry, Params, is_float, promote
from lstm_jax.cells._base import label
from lstm_jax.unrolling.steps import Flags, expand_flag, mask_out

#: The logarithm of the coefficient 0, finite to avoid NaN; its exponential is 0 in every dtype.
LOG_ZERO = -1e4


def associative_scan(
    cell: Any,
    options: Any,
    params: Params,
    key: Array | None,
    initial: Carry,
    carry: Carry,
    xs: Any,
    flags: Flags,
) -> tuple[Carry, Any]:
    """Compute all steps of a linear recurrence; ``xs`` is ``(xs, reset_to)``, ``key`` is unused."""
    xs, stored = xs
    log_a, b = cell.coefficients(params, xs)
    dtype = promote(log_a.dtype, b.dtype, carry.dtype)
    log_a, b = log_a.astype(dtype), b.astype(dtype)
    T, reverse = b.shape[0], options.reverse
    if flags.valid is not None:
        log_a, b = mask_out(flags.valid, (log_a, b))

    starts = expand_flag(jnp.arange(T) == (T - 1 if reverse else 0), b)
    read = jnp.where(starts, carry[None].astype(dtype), jnp.zeros((), dtype))
    if flags.restart is not None:
        restart = expand_flag(flags.restart, b)
        target = initial[None] if stored is None else stored
        starts, read = starts | restart, jnp.where(restart, target.astype(dtype), read)
    b = b + jnp.exp(log_a) * read
    log_a = jnp.where(starts, jnp.asarray(LOG_ZERO, dtype), log_a)

    states = lax.associative_scan(_join, (log_a, b), reverse=reverse)[1].astype(carry.dtype)
    ys = states if flags.valid is None else mask_out(flags.valid, states)
    if T > 0:
        carry = states[0 if reverse else -1]
    return carry, (ys, states if options.return_carries else None)


def _join(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
    """Combine two adjacent intervals of time."""
    (log_a1, b1), (log_a2, b2) = first, then
    return log_a1 + log_a2, jnp.exp(log_a2) * b1 + b2


def associative_unsupported(
    cell: Any, options: Any, params: Params, carry: Carry, xs: Any, flags: Flags
) -> str | None:
    """Why the associative scan cannot run this cell with these options, or None."""
    if not cell.linear_recurrence:
        return f"{label(cell)} has no coefficients (see lstm_jax.ParallelCell)"
    if flags.cut is not None:
        return "truncate stops gradients between steps, and the associative scan computes all steps at once"
    if not isinstance(xs.shape[0], int):
        return "the associative scan requires a static number of steps, got a symbolic one"
    if not isinstance(carry, jax.Array) or not is_float(carry.dtype):
        return f"{label(cell)} has a carry that is not one array of floats"
    shapes = [tuple(a.shape) for a in jax.tree.leaves(jax.eval_shape(cell.coefficients, params, xs))]
    wanted = (xs.shape[0], *carry.shape)
    if shapes != [wanted, wanted]:
        return f"{label(cell)}.coefficients returned shapes {shapes}, expected two arrays of shape {wanted}"
    return None


def slower_than_a_loop() -> str | None:
    """Why a loop is at least as fast on this machine, or None.

    On a two-core CPU, the fused scan takes between 0.2 and 1.4 times the time of the associative scan
    forward, between 0.35 and 1.4 times with gradients (MinGRU and MinLSTM, T 100 to 10,000, B 1 to 128, H 16
    to 128), and half the memory. It has not been measured on accelerators, where each of the T steps of a
    loop has a latency.
    """
    return "on CPUs a loop is as fast" if jax.default_backend() == "cpu" else None
