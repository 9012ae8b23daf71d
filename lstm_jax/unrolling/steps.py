"""Masks, resets and truncation: what happens before and after each step of a loop over time.

The plain scan, the fused scan and the tangents of the fused scan call :func:`begin_step` and
:func:`end_step` in their loop bodies. Tangents may, because a selection is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax._types import Array, Carry

#: A time index after every step of a sequence; even, so that it is read as a step without a reset.
NEVER = np.int32(2**31 - 2)


class Flags(NamedTuple):
    """Flags of each step; None where no step has the flag (``valid``: where all steps have it)."""

    valid: Any = None  # (T, *batch) bool: the step exists
    restart: Any = None  # (T, *batch) bool: the carry restarts before the step is read
    cut: Any = None  # (T,) bool: no gradient enters the step through the carry
    time: Any = None  # (T,) int: absolute index of the step, from which its noise is drawn


def begin_step(
    flag: Flags, initial: Carry, carry: Carry, stop: Callable[[Array], Array] = lax.stop_gradient
) -> tuple[Carry, Carry]:
    """``(held, start)``: the carry after an invalid step, and the carry that a valid step reads.

    A restart goes back to ``initial``. ``stop`` removes the gradient of a carry: ``stop_gradient`` for
    values, ``zeros_like`` for tangents.
    """
    if flag.cut is not None:
        carry = select(flag.cut, jax.tree.map(stop, carry), carry)
    return carry, carry if flag.restart is None else select(flag.restart, initial, carry)


def end_step(flag: Flags, held: Carry, new: Carry, y: Any) -> tuple[Carry, Any]:
    """The carry after the step, and the output; ``held`` and zeros at an invalid step."""
    if flag.valid is None:
        return new, y
    return select(flag.valid, new, held), mask_out(flag.valid, y)


def select(flag: Any, on_true: Any, on_false: Any) -> Any:
    """``where`` for two trees; the axes of the flag are the leading axes of the leaves.

    A tuple of flags selects from tuples of trees: two directions in one loop have separate flags.
    """
    if isinstance(flag, tuple):
        return tuple(map(select, flag, on_true, on_false))
    return jax.tree.map(jnp.where, jax.tree.map(partial(expand_flag, flag), on_true), on_true, on_false)


def mask_out(valid: Any, tree: Any) -> Any:
    """Replace the entries of invalid steps by zeros, so that NaN in them reaches no value or gradient."""
    if isinstance(valid, tuple):
        return tuple(map(mask_out, valid, tree))
    flags = jax.tree.map(partial(expand_flag, valid), tree)
    return jax.tree.map(lambda flag, a: jnp.where(flag, a, jnp.zeros((), a.dtype)), flags, tree)


def expand_flag(flag: Array, like: Array) -> Array:
    """The flag with trailing axes of length 1 up to the rank of ``like``."""
    return lax.expand_dims(flag, range(flag.ndim, like.ndim)) if like.ndim > flag.ndim else flag


def one_step(xs: Any) -> Any:
    """A value with the type of one step: shape, dtype, sharding and varying axes; T may be 0.

    Only the type is used, so the sum is dead code.
    """
    return jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=x.dtype), xs)


def split_batch(bodies: Sequence[Callable[[Carry, Any], tuple[Carry, Any]]]) -> Any:
    """A scan body that runs each of ``bodies`` on one part of the batch (the first axis).

    The parts have separate matrix products. The carry is a list with one entry for each part; see
    :func:`batch_parts`.
    """

    def split_body(carries: list[Carry], at: Any) -> tuple[list[Carry], Any]:
        parts = zip(bodies, carries, batch_parts(at, len(bodies)), strict=True)
        results = [body(carry, part) for body, carry, part in parts]
        return [carry for carry, _ in results], join_batch([out for _, out in results])

    return split_body


def batch_parts(tree: Any, count: int) -> list[Any]:
    """Split the first axis of every leaf into ``count`` parts; every part contains the scalars."""

    def part(a: Array, index: int) -> Array:
        return a[len(a) * index // count : len(a) * (index + 1) // count] if a.ndim else a

    return [jax.tree.map(partial(part, index=index), tree) for index in range(count)]


def join_batch(parts: list[Any]) -> Any:
    """The inverse of :func:`batch_parts`."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


# --- from the arguments of unroll to flags -------------------------------------------------------


def valid_steps(T: Any, batch: tuple[int, ...], lengths: Array | None, mask: Array | None) -> Array | None:
    """Which steps are valid, (T, *batch) bool; None if all of them are."""
    if lengths is None:
        return mask
    if lengths.dtype.itemsize < 4:  # too narrow to count steps
        lengths = lengths.astype(jnp.int32)
    within = lax.broadcasted_iota(lengths.dtype, (T, *batch), 0) < lengths[None]
    return within if mask is None else within & mask


def restarts(
    resets: Array, valid: Array | None, reverse: bool, reset_to: Carry | None = None
) -> tuple[Array, Carry | None]:
    """The steps before which the carry restarts, and the carry that each restart goes back to.

    A reset at t means that x_t begins a segment. Forward, the carry restarts before step t. In reverse, step
    t is the last one of its segment, so the carry restarts before the next step of the loop: the last valid
    step before t.
    """
    starts = resets if valid is None else resets & valid
    if not reverse or resets.shape[0] == 0:
        return starts, reset_to
    if valid is None:
        moved = jnp.concatenate([starts[1:], jnp.zeros_like(starts[:1])])
        return moved, jax.tree.map(lambda a: jnp.concatenate([a[1:], a[-1:]]), reset_to)
    # The next valid step after t in time and its flag, packed into one number: 2 * step + flag.
    step = lax.broadcasted_iota(jnp.int32, resets.shape, 0)
    packed = jnp.where(valid, 2 * step + starts.astype(jnp.int32), NEVER)
    following = lax.cummin(packed, axis=0, reverse=True)
    moved = jnp.concatenate([following[1:] % 2 == 1, jnp.zeros_like(starts[:1])]) & valid
    if reset_to is None:
        return moved, None
    source = jnp.concatenate([following[1:], following[-1:]]) // 2
    source = jnp.minimum(source, resets.shape[0] - 1)

    def gather(a: Array) -> Array:
        return jnp.take_along_axis(a, lax.expand_dims(source, range(source.ndim, a.ndim)), axis=0)

    return moved, jax.tree.map(gather, reset_to)


def cuts(T: Any, start: Array, period: int, reverse: bool) -> Array:
    """The steps before which truncation stops gradients: between inputs j*period - 1 and j*period.

    The indices of inputs begin at ``start``.
    """
    t = jnp.arange(T, dtype=jnp.int32)
    if reverse:
        return ((start + t + 1) % period == 0) & (t + 1 < T)
    return ((start + t) % period == 0) & (start + t > 0)
