"""The time loop: masks, resets, direction and truncation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax._types import Array, Carry


def valid_steps(T: Any, batch: tuple[int, ...], lengths: Array | None, mask: Array | None) -> Array | None:
    """Where a step is there, (T, *batch) bool; None where nothing is said about any."""
    if lengths is None:
        return mask
    if lengths.dtype.itemsize < 4:  # too narrow to count steps
        lengths = lengths.astype(jnp.int32)
    within = jax.lax.broadcasted_iota(lengths.dtype, (T, *batch), 0) < lengths[None]
    return within if mask is None else within & mask


NEVER = np.int32(2**31 - 2)  # a step that does not come, and is no reset


class Flags(NamedTuple):
    """What the loop is told about each step; None where nothing is special about any."""

    valid: Any = None  # (T, *batch) bool: the step is there
    restart: Any = None  # (T, *batch) bool: the carry starts anew before the step is read
    cut: Any = None  # (T,) bool: no gradient enters the step through the carry
    time: Any = None  # (T,) int: the absolute index of the step, where noise is drawn


class Scanned(NamedTuple):
    """What a walk over time returns."""

    carry: Carry  # after the last step walked
    ys: Any  # (T, *batch, ...) outputs, zero at invalid steps
    carries: Carry | None  # (T, ...) the carry after each step, where asked for
    saved: Any  # (T, ...) whatever the step function saved


def scan_steps(
    step: Callable[[Carry, Any], tuple[Carry, Any, Any]],
    initial: Carry,
    carry: Carry,
    inputs: Any,
    flags: Flags,
    *,
    reverse: bool,
    carries: bool,
    batch_splits: int = 1,
    unroll: int = 1,
    stop: Callable[[Array], Array] = lax.stop_gradient,
) -> Scanned:
    """Scan ``step(carry, input) -> (carry, y, saved)`` over time, minding the flags.

    ``initial`` is what a restart goes back to. ``stop`` takes the gradient out of a carry: it is
    ``stop_gradient`` for values and ``zeros_like`` for tangents. ``batch_splits`` parts of the batch (its
    first axis) walk side by side, each with its own products; ``unroll`` is ``lax.scan``'s.
    """

    def one(initial: Carry, carry: Carry, at: tuple[Flags, Any]) -> tuple[Carry, Any]:
        here, x = at
        if here.cut is not None:
            carry = select(here.cut, jax.tree.map(stop, carry), carry)
        read = carry if here.restart is None else select(here.restart, initial, carry)
        new, y, saved = step(read, x)
        if here.valid is not None:
            new = select(here.valid, new, carry)
            y = mask_out(here.valid, y)
        return new, (y, new if carries else None, saved)

    if batch_splits == 1:
        carry, outs = lax.scan(partial(one, initial), carry, (flags, inputs), reverse=reverse, unroll=unroll)
        return Scanned(carry, *outs)

    initials = split_batch(initial, batch_splits)

    def split_body(carries: list[Carry], at: tuple[Flags, Any]) -> tuple[list[Carry], Any]:
        results = list(map(one, initials, carries, split_batch(at, batch_splits)))
        return [new for new, _ in results], join_batch([out for _, out in results])

    carries_, outs = lax.scan(
        split_body, split_batch(carry, batch_splits), (flags, inputs), reverse=reverse, unroll=unroll
    )
    return Scanned(join_batch(carries_), *outs)


def split_batch(tree: Any, count: int) -> list[Any]:
    """``count`` trees, each with a part of every leaf's first axis; numbers are in all of them."""

    def part(a: Array, index: int) -> Array:
        return a[len(a) * index // count : len(a) * (index + 1) // count] if a.ndim else a

    return [jax.tree.map(partial(part, index=index), tree) for index in range(count)]


def join_batch(parts: list[Any]) -> Any:
    """The tree whose :func:`split_batch` these are."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def select(flag: Any, on_true: Any, on_false: Any) -> Any:
    """``where`` over two trees, the flag's axes being the leaves' leading axes.

    A tuple of flags goes with a tuple of trees: two directions in one loop have flags of their own.
    """

    def choose(flag: Array, a: Any, b: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(_expand_flag(flag, a), a, b), a, b)

    return jax.tree.map(choose, flag, on_true, on_false)


def mask_out(valid: Any, tree: Any) -> Any:
    """Zero where not valid; what stood there (NaN, too) reaches neither a value nor a gradient."""

    def zero(valid: Array, tree: Any) -> Any:
        return jax.tree.map(lambda a: jnp.where(_expand_flag(valid, a), a, jnp.zeros((), a.dtype)), tree)

    return jax.tree.map(zero, valid, tree)


def one_step(xs: Any) -> Any:
    """Something of the type of one step, sharding and varying axes included, also where T = 0.

    Only the type is meant; the sum itself is dead code.
    """
    return jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=x.dtype), xs)


def _expand_flag(flag: Array, leaf: Array) -> Array:
    return lax.expand_dims(flag, range(flag.ndim, leaf.ndim)) if leaf.ndim > flag.ndim else flag


def restarts(resets: Array, valid: Array | None, reverse: bool) -> Array:
    """At which steps the carry starts anew before the step is read, in walking order.

    A reset says that its step begins a segment. Forward that is where the carry restarts. In
    reverse the step that begins a segment is the last one read of it, so the restart waits for the
    next valid step of the walk: the one before it in time.
    """
    starts = resets if valid is None else resets & valid
    if not reverse or resets.shape[0] == 0:
        return starts
    if valid is None:
        return jnp.concatenate([starts[1:], jnp.zeros_like(starts[:1])])
    # The next valid step after t in time and its flag, packed into one number: 2 * step + flag.
    step = lax.broadcasted_iota(jnp.int32, resets.shape, 0)
    packed = jnp.where(valid, 2 * step + starts.astype(jnp.int32), NEVER)
    following = lax.cummin(packed, axis=0, reverse=True)
    return jnp.concatenate([following[1:] % 2 == 1, jnp.zeros_like(starts[:1])]) & valid


def cuts(T: Any, start: Array, period: int, reverse: bool) -> Array:
    """Where truncation cuts: between inputs j*period - 1 and j*period, counted from the absolute start."""
    t = jnp.arange(T, dtype=jnp.int32)
    if reverse:
        return ((start + t + 1) % period == 0) & (t + 1 < T)
    return ((start + t) % period == 0) & (start + t > 0)
