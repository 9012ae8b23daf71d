"""Run a sequence in windows of time, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax._devices import is_single_cpu_device
from lstm_jax._errors import value_error
from lstm_jax._types import Array, Carry
from lstm_jax.unrolling.steps import Flags
from lstm_jax.unrolling.tiling import even_divisor


def window_length(T: Any, checkpoint: str | int | None) -> int | None:
    """Steps per window for ``checkpoint``; None if the whole sequence is one window."""
    if checkpoint is None or (isinstance(T, int) and T == 0):
        return None
    if checkpoint == "sqrt":
        if not isinstance(T, int):
            raise value_error(
                f"unroll got checkpoint='sqrt' with {T} steps",
                "a static number of steps",
                "Give a window length instead.",
            )
        return even_divisor(T, round(math.sqrt(T))) or T
    window = int(checkpoint)
    return min(window, T) if isinstance(T, int) else window


def in_windows(
    run: Callable[..., tuple[Carry, Any]],
    window: int,
    reverse: bool,
    recompute: bool,
    batch: tuple[int, ...],
    *arguments: Any,
) -> tuple[Carry, Any]:
    """Call ``run(*constants, carry, xs, flags)`` for each window of time in turn.

    ``arguments`` are those of ``run``: the constants, the first carry, and the inputs and flags of all steps.
    ``batch`` is only read if the number of steps is symbolic.
    With ``recompute``, the backward pass stores only the carries between windows and runs each window again.
    If ``window`` does not divide T, the last window in time is shorter. If T is symbolic, invalid steps fill
    the last window.
    """
    *constants, carry, xs, flags = arguments
    run = partial(run, *constants)
    T = jax.tree.leaves(xs)[0].shape[0]
    known = isinstance(T, int)
    window = min(window, T) if known else window
    if not known:
        xs, flags = _fill_last_window(xs, flags, (T, *batch), window)
    count, rest = divmod(T, window) if known else ((T + window - 1) // window, 0)
    steps = xs, flags
    shapes: list[tuple[int, ...]] = []  # of the outputs of one step, set when ``run`` is traced
    # XLA for CPUs copies arrays with one batch row to change the order of their axes, unless batch and
    # features are one axis. Joining the axes of a sharded array would gather it.
    flat = is_single_cpu_device()

    def split(a: Array) -> Array:
        return a[: count * window].reshape(count, window, *((-1,) if flat else a.shape[1:]))

    def one_window(carry: Carry, at: Any) -> tuple[Carry, Any]:
        at = jax.tree.map(lambda a, like: a.reshape(window, *like.shape[1:]), at, steps)
        carry, outs = run(carry, *at)
        shapes[:] = [a.shape[1:] for a in jax.tree.leaves(outs)]
        return carry, jax.tree.map(lambda a: a.reshape(window, -1), outs) if flat else outs

    def join(outs: Any) -> Any:
        leaves, structure = jax.tree.flatten(outs)
        joined = [a.reshape(count * window, *shape) for a, shape in zip(leaves, shapes, strict=True)]
        return jax.tree.unflatten(structure, joined)

    def last(carry: Carry) -> tuple[Carry, Any]:
        remaining = jax.tree.map(lambda a: a[count * window :], steps)
        return (jax.checkpoint(run) if recompute else run)(carry, *remaining)

    if rest and reverse:
        carry, after = last(carry)
    # prevent_cse=False, because XLA does not merge the body of a scan with its backward pass.
    body = jax.checkpoint(one_window, prevent_cse=False) if recompute else one_window
    carry, outs = lax.scan(body, carry, jax.tree.map(split, steps), reverse=reverse)
    outs = join(outs)
    if rest and not reverse:
        carry, after = last(carry)
    if rest:
        outs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outs, after)
    return carry, outs if known else jax.tree.map(lambda a: a[:T], outs)


def _fill_last_window(xs: Any, flags: Flags, steps: tuple[Any, ...], window: int) -> tuple[Any, Flags]:
    """Append enough invalid steps to fill the last window."""
    valid = jnp.ones(steps, jnp.bool_) if flags.valid is None else flags.valid

    def extend(a: Array) -> Array:
        return jnp.concatenate([a, jnp.zeros((window - 1, *a.shape[1:]), a.dtype)])

    return jax.tree.map(extend, (xs, flags._replace(valid=valid)))
