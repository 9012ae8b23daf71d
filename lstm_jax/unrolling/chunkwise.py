"""Chunks of time as matrix products (``implementation="parallel"`` of :class:`lstm_jax.MLSTM`).

A cell whose gates do not read the carry, and whose state is a sum over the steps before, does not need a loop
over steps. Within a chunk of L steps the outputs are matrix products of queries, keys and values; only the
state at the end of a chunk enters the next one (Beck et al. 2024; Beck et al. 2025, "Tiled Flash Linear
Attention", arXiv:2503.14376). The loop is over T / L chunks, and the backward pass stores the state between
chunks alone: it computes each chunk again.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import label
from lstm_jax.unrolling.steps import Flags, mask_out
from lstm_jax.unrolling.windows import in_windows

#: The shortest sequence and the narrowest head for which chunks take less time than the fused scan on a CPU.
MIN_STEPS, MIN_HEAD = 16, 8


def chunk_length(head_size: int, T: int) -> int:
    """Steps in a chunk: about the units of a head, so that products within and between chunks cost the same.

    >>> [chunk_length(d, 1000) for d in (8, 64, 256)], chunk_length(64, 5)
    ([16, 32, 64], 5)
    """
    return min(T, 16 if head_size <= 32 else 32 if head_size <= 64 else 64)


def chunkwise_scan(
    cell: Any,
    options: Any,
    params: Params,
    key: Array | None,
    initial: Carry,
    carry: Carry,
    xs: Any,
    flags: Flags,
) -> tuple[Carry, Any]:
    """Compute one chunk of time at a time; ``xs`` is ``(xs, reset_to)``, ``key`` is unused."""
    T, batch = xs[0].shape[0], tuple(xs[0].shape[1:-1])

    def flip(tree: Any) -> Any:
        return jax.tree.map(lambda a: jnp.flip(a, 0), tree) if options.reverse else tree

    def chunk(params: Params, carry: Carry, at: Any, flags: Flags) -> tuple[Carry, Any]:
        (xs, stored), flags = flip((at, flags))
        z = cell.project(params, xs)
        carry, ys = cell.update_chunk(carry, z, flags.valid, flags.restart, stored)
        ys = ys if flags.valid is None else mask_out(flags.valid, ys)
        return carry, (flip(ys), None)

    if T == 0:
        dtype = jax.tree.leaves(cell.project(params, xs[0]))[0].dtype
        return carry, (jnp.zeros((0, *batch, cell.output_size), dtype), None)
    length = chunk_length(cell.head_size, T)
    return in_windows(chunk, length, options.reverse, True, batch, params, carry, xs, flags)


def chunkwise_unsupported(
    cell: Any, options: Any, params: Params, carry: Carry, xs: Any, flags: Flags
) -> str | None:
    """Why chunks cannot run this cell with these options, or None."""
    if flags.cut is not None:
        return "truncate stops gradients between steps, and a chunk computes all its steps at once"
    if options.return_carries:
        return "return_carries requires the carry of every step, which a chunk does not compute"
    if not isinstance(xs.shape[0], int):
        return f"{label(cell)} chooses the length of a chunk by the number of steps, got a symbolic one"
    return None


def chunks_slower(cell: Any, xs: Any) -> str | None:
    """Why the fused scan takes less time than chunks, or None."""
    if isinstance(xs.shape[0], int) and xs.shape[0] < MIN_STEPS:
        return f"chunks pay from {MIN_STEPS} steps on"
    return f"chunks pay from {MIN_HEAD} units a head on" if cell.head_size < MIN_HEAD else None
