"""Windows of time, run one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax._devices import is_single_cpu_device
from lstm_jax._types import Array, Carry
from lstm_jax.unrolling.steps import Flags


def in_windows(
    run: Callable[[Carry, Any], tuple[Carry, Any]],
    carry: Carry,
    xs: Any,
    flags: Flags,
    window: int,
    *,
    batch: tuple[int, ...],
    reverse: bool,
    recompute: bool = True,
) -> tuple[Carry, Any]:
    """Run windows of time one after the other.

    With ``recompute`` the backward pass remembers the carries between windows alone, and runs each
    window once more. What is left over when ``window`` does not
    divide T is a shorter window at the end of time; where T is a symbolic dimension and nobody
    knows what is left over, invalid steps fill the last window.
    """
    T = jax.tree.leaves(xs)[0].shape[0]
    known = isinstance(T, int)
    if not known:
        xs, flags = _filled(xs, flags, (T, *batch), window)
    whole, rest = divmod(T, window) if known else ((T + window - 1) // window, 0)
    steps = xs, flags
    shapes: list[tuple[int, ...]] = []  # of the outputs of one step, known once ``run`` was traced
    # Batch and features joined: batches of one row lie in an order of axes that XLA for CPUs copies
    # everything to be rid of. Joining would gather what is spread over devices.
    flat = is_single_cpu_device()

    def split(a: Array) -> Array:
        return a[: whole * window].reshape(whole, window, *((-1,) if flat else a.shape[1:]))

    def inner(carry: Carry, at: Any) -> tuple[Carry, Any]:
        at = jax.tree.map(lambda a, like: a.reshape(window, *like.shape[1:]), at, steps)
        carry, outs = run(carry, at)
        shapes[:] = [a.shape[1:] for a in jax.tree.leaves(outs)]
        return carry, jax.tree.map(lambda a: a.reshape(window, -1), outs) if flat else outs

    def join(outs: Any) -> Any:
        leaves, structure = jax.tree.flatten(outs)
        joined = [a.reshape(whole * window, *shape) for a, shape in zip(leaves, shapes, strict=True)]
        return jax.tree.unflatten(structure, joined)

    def last(carry: Carry) -> tuple[Carry, Any]:
        remaining = jax.tree.map(lambda a: a[whole * window :], steps)
        return (jax.checkpoint(run) if recompute else run)(carry, remaining)

    if rest and reverse:
        carry, after = last(carry)
    # A scan's body cannot be merged with its backward pass, so nothing need be done to prevent it.
    body = jax.checkpoint(inner, prevent_cse=False) if recompute else inner
    carry, outs = lax.scan(body, carry, jax.tree.map(split, steps), reverse=reverse)
    outs = join(outs)
    if rest and not reverse:
        carry, after = last(carry)
    if rest:
        outs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outs, after)
    return carry, outs if known else jax.tree.map(lambda a: a[:T], outs)


def _filled(xs: Any, flags: Flags, steps: tuple[Any, ...], window: int) -> tuple[Any, Flags]:
    """Enough invalid steps behind the last one to fill its window."""
    valid = jnp.ones(steps, jnp.bool_) if flags.valid is None else flags.valid

    def more(a: Array) -> Array:
        return jnp.concatenate([a, jnp.zeros((window - 1, *a.shape[1:]), a.dtype)])

    return jax.tree.map(more, (xs, flags._replace(valid=valid)))
