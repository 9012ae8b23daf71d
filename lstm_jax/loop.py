"""The one time loop. Masks, resets, direction, truncation and memory policy are its business alone.

:func:`walk` serves three masters: the plain scan of a cell's ``step``, the fast path, and the fast
path's tangents (which obey the same flags, because choosing is linear).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.notation import Array, Carry


class Flags(NamedTuple):
    """What the loop is told about each step; None where nothing is special about any."""

    valid: Array | None = None  # (T, *batch) bool: the step is there
    restart: Array | None = None  # (T, *batch) bool: the carry starts anew before the step is read
    cut: Array | None = None  # (T,) bool: no gradient enters the step through the carry


class Walked(NamedTuple):
    """What a walk over time returns."""

    carry: Carry  # after the last step walked
    ys: Any  # (T, *batch, ...) outputs, zero at invalid steps
    carries: Carry | None  # (T, ...) the carry after each step, where asked for
    saved: Any  # (T, ...) whatever the step function saved


def walk(
    step: Callable[[Carry, Any], tuple[Carry, Any, Any]],
    initial: Carry,
    carry: Carry,
    inputs: Any,
    flags: Flags,
    *,
    reverse: bool,
    carries: bool,
    sever: Callable[[Array], Array] = lax.stop_gradient,
) -> Walked:
    """Scan ``step(carry, input) -> (carry, y, saved)`` over time, minding the flags.

    ``initial`` is what a restart goes back to. ``sever`` takes the gradient out of a carry: it is
    ``stop_gradient`` for values and ``zeros_like`` for tangents.
    """

    def body(carry: Carry, at: tuple[Flags, Any]) -> tuple[Carry, Any]:
        here, x = at
        if here.cut is not None:
            carry = select(here.cut, jax.tree.map(sever, carry), carry)
        read = carry if here.restart is None else select(here.restart, initial, carry)
        new, y, saved = step(read, x)
        if here.valid is not None:
            new = select(here.valid, new, carry)
            y = blank(here.valid, y)
        return new, (y, new if carries else None, saved)

    carry, (ys, held, saved) = lax.scan(body, carry, (flags, inputs), reverse=reverse)
    return Walked(carry, ys, held, saved)


def select(flag: Array, on_true: Any, on_false: Any) -> Any:
    """``where`` over two trees, the flag's axes being the leaves' leading axes."""
    return jax.tree.map(lambda a, b: jnp.where(_over(flag, a), a, b), on_true, on_false)


def blank(valid: Array, tree: Any) -> Any:
    """Zero where not valid; what stood there (NaN, too) reaches neither a value nor a gradient."""
    return jax.tree.map(lambda a: jnp.where(_over(valid, a), a, jnp.zeros((), a.dtype)), tree)


def _over(flag: Array, leaf: Array) -> Array:
    return lax.expand_dims(flag, range(flag.ndim, leaf.ndim)) if leaf.ndim > flag.ndim else flag


def restarts(resets: Array, valid: Array | None, reverse: bool) -> Array:
    """At which steps the carry starts anew before the step is read, in walking order.

    A reset says that its step begins a segment. Forward that is where the carry restarts. In
    reverse the step that begins a segment is the last one read of it, so the restart waits for the
    next valid step of the walk: the one before it in time.
    """
    told = resets if valid is None else resets & valid
    if not reverse or resets.shape[0] == 0:
        return told
    if valid is None:
        return jnp.concatenate([told[1:], jnp.zeros_like(told[:1])])
    # The next valid step after t in time and its flag, packed into one number: 2 * step + flag.
    T = resets.shape[0]
    step = lax.broadcasted_iota(jnp.int32, resets.shape, 0)
    packed = jnp.where(valid, 2 * step + told.astype(jnp.int32), 2 * T)
    following = lax.cummin(packed, axis=0, reverse=True)
    return jnp.concatenate([following[1:] % 2 == 1, jnp.zeros_like(told[:1])]) & valid


def cuts(T: Any, start: Array, period: int, reverse: bool) -> Array:
    """Where truncation cuts: between inputs j*period - 1 and j*period, counted from the absolute start."""
    t = jnp.arange(T, dtype=jnp.int32)
    if reverse:
        return ((start + t + 1) % period == 0) & (t + 1 < T)
    return ((start + t) % period == 0) & (start + t > 0)


def in_windows(
    run: Callable[[Carry, Any], tuple[Carry, Any]],
    carry: Carry,
    inputs: Any,
    T: Any,
    window: int,
    reverse: bool,
) -> tuple[Carry, Any]:
    """Run windows of time one after the other; each is recomputed in the backward pass.

    Only the carries between windows are remembered. What is left over when ``window`` does not
    divide T is a shorter window at the end of time.
    """
    whole, rest = T // window, T % window
    head = jax.tree.map(lambda a: a[: whole * window].reshape(whole, window, *a.shape[1:]), inputs)
    tail = jax.tree.map(lambda a: a[whole * window :], inputs)
    in_scan = jax.checkpoint(run, prevent_cse=False)  # a scan's body cannot be merged with its backward
    alone = jax.checkpoint(run)
    has_tail = not (isinstance(rest, int) and rest == 0)
    after = None
    if has_tail and reverse:
        carry, after = alone(carry, tail)
    carry, outs = lax.scan(in_scan, carry, head, reverse=reverse)
    outs = jax.tree.map(lambda a: a.reshape(whole * window, *a.shape[2:]), outs)
    if has_tail and not reverse:
        carry, after = alone(carry, tail)
    if has_tail:
        outs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outs, after)
    return carry, outs
