"""What both walks of :mod:`lstm_jax.experimental.hopper_forward` and ``gpu_backward`` are made of.

Some blocks walk one slice of the batch from the first step to the last. Each block holds the
weights of its own units in shared memory for the whole walk, with the four gates of a unit side by
side, so that everything but the product is local to it. Arrays are transposed: the matrix unit
takes 64 rows at a time, so these are gates, and the batch, which may be small, lies in the columns.
With U units a block and R rows of the batch in a slice,

    forward   z (4U, R) = Wᵀ (4U, H) h (H, R): the block's gates from all units' h
    backward  h̄ (H, R) = W (H, 4U) z̄ (4U, R): the block's part of every unit's h̄

Forward, each block hands its h to all; backward, it fetches the parts that are its own from all,
and adds them up, always in the same order. In a cluster h is written into the shared memory of all
blocks, and the parts are read from there; in a grid, both pass through the main memory, which is to
say the L2 cache. What is handed over has two buffers, taken in turns: who writes one has heard from
all blocks that they read it, because none of them sends its next message before it has.

Where a block of a grid has too little shared memory, a part of its weights is in registers, from which
the matrix unit takes its first operand as well, and forward h comes in pieces: see ``gpu_plan``. What a
grid has no room for at once goes in several launches: see :func:`lstm_jax.experimental.hopper.in_launches`.

One warpgroup of each block does all of it. The compiler is told to add no synchronisation of its
own: ``commit_smem``, for which all threads wait, stands wherever one thread reads or overwrites
what another one wrote or reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lstm_jax._types import Array
from lstm_jax.experimental.hopper_names import COMPILER_PARAMS, load, store
from lstm_jax.experimental.hopper_plan import Plan

#: Elements of one accumulator: 64 registers of each thread.
ACCUMULATED = 8192


def layout(rows: int) -> Any:
    """How an array (units, rows) is spread over 128 threads: two neighbours in a row each.

    A warp writes 64 neighbours of 2 bytes: all 32 banks of shared memory once.
    """
    if rows == 64:
        tiles: Any = (4, 64), (2,)
        dims: Any = {"warp_dims": (-3,), "lane_dims": (-2,)}
    else:
        tiles = (256 // rows, rows), (64 // rows, rows), (2,)
        dims = {"warp_dims": (-5,), "lane_dims": (-3, -2)}
    return plgpu.Layout.TILED(plgpu.Tiling(tiles), **dims, vector_dim=-1)


def operand(shape: tuple[int, ...], dtype: Any, rows: int) -> Any:
    """Shared memory that the matrix unit reads; both of its operands are swizzled alike."""
    transforms = plgpu.TilingTransform((8, rows)), plgpu.SwizzleTransform(2 * rows)
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def runs(begin: int, end: int, rows: int) -> list[tuple[int, int]]:
    """As many rows of a product at a time as its accumulator holds: where they begin, and their count."""
    most = max(64, ACCUMULATED // rows)
    return [(at, min(most, end - at)) for at in range(begin, end, most)]


def multiply(a: Any, b: Any, out: Any, held: Sequence[Array] = ()) -> None:
    """out = a b, some rows at a time. The first rows of a may be in registers instead: ``held``."""
    rows, done = b.shape[-1], 0
    for part in *held, *(a.at[pl.ds(*run)] for run in runs(0, a.shape[0], rows)):

        def product(acc: Any, part: Any = part) -> Array:
            plgpu.wgmma(acc, part, b)
            return acc[...]

        count = part.shape[0]
        store(out.at[pl.ds(done, count)], pl.run_scoped(product, plgpu.ACC((count, rows), jnp.float32)))
        done += count


def multiply_pieces(
    parts: Sequence[Sequence[Any]], b: Any, out: Any, fetch: Callable[[int], None], fetched: Any
) -> None:
    """out = a b, where b comes in pieces, into its two buffers in turns.

    ``parts``: for each piece its columns of a, side by side, in registers or in shared memory. While a
    piece is multiplied, ``fetch`` has begun to copy the next one; ``fetched`` has a barrier for each buffer.
    """
    M, rows = parts[0][0].shape[0], b.shape[-1]

    def product(acc: Any) -> Array:
        for n, columns in enumerate(parts):
            plgpu.barrier_wait(fetched.at[n % 2])
            done = 0
            for part in columns:
                plgpu.wgmma(acc, part, b.at[n % 2, pl.ds(done, part.shape[1])])
                done += part.shape[1]
            if 0 < n < len(parts) - 1:  # the piece before has been multiplied: its buffer is free
                plgpu.wgmma_wait(len(columns))
                plgpu.commit_smem()
                fetch(n + 1)
        return acc[...]

    for n in range(min(2, len(parts))):
        fetch(n)
    store(out, pl.run_scoped(product, plgpu.ACC((M, rows), jnp.float32)))


def held_array(ref: Any) -> Array:
    """A part of the weights as the matrix unit takes it from registers."""
    return load(ref, plgpu.Layout.WGMMA)


class Meeting(NamedTuple):
    """Where all blocks of a slice wait for each other, once a step. The n-th meeting: 0, 1, ..."""

    place: Any  # two barriers, or a semaphore for each slice
    at: Any  # the slice
    blocks: int

    def arrive(self, n: Any) -> None:
        """What this block wrote is there for all; its threads have waited for each other."""
        if self.at is None:
            plgpu.barrier_arrive(self.place.at[lax.rem(n, 2)])
        else:
            plgpu.semaphore_signal(self.place.at[self.at], memory_scope="gpu")

    def wait(self, n: Any) -> None:
        """Until all are there."""
        if self.at is None:
            plgpu.barrier_wait(self.place.at[lax.rem(n, 2)])
        else:
            everybody = self.blocks * (n + 1)
            plgpu.semaphore_wait(self.place.at[self.at], everybody, decrement=False, memory_scope="gpu")


def meeting(plan: Plan, exchange: str, s: Any, barriers: Any) -> Meeting | None:
    """None: a block alone waits for nobody."""
    if plan.blocks == 1:
        return None
    if exchange == "semaphore":
        places = pl.get_global(plgpu.SemaphoreType.REGULAR((plan.slices,)))
        return Meeting(places, s, plan.blocks)
    return Meeting(barriers, None, plan.blocks)


def barriers(plan: Plan, exchange: str) -> Any:
    """The two barriers of a meeting."""
    if exchange in ("fence", "barrier") and plan.blocks > 1:
        return plgpu.ClusterBarrier(collective_axes=("block",), num_barriers=2)
    return plgpu.Barrier(num_arrivals=plan.blocks if exchange == "async" else 1, num_barriers=2)


def chosen(plan: Plan, exchange: str | None, ways: Mapping[str, Sequence[str]]) -> str:
    """The way to exchange that was asked for, or the first that the plan's form has."""
    fitting = ways[plan.form]
    assert exchange in (None, *fitting), (plan, exchange)
    return exchange or fitting[0]


def kernel(
    body: Callable[..., None], plan: Plan, exchange: str, out: Any, scratch: Any, interpret: Any
) -> Any:
    """``plan.blocks`` blocks for each slice of the batch: a cluster, where they do not meet at semaphores."""
    if exchange == "semaphore":
        mesh: Any = {"grid": (plan.slices, plan.blocks), "grid_names": ("slice", "block")}
    else:
        mesh = {"grid": (plan.slices,), "grid_names": ("slice",)}
        mesh |= {"cluster": (plan.blocks,), "cluster_names": ("block",)}
    return plgpu.kernel(
        body,
        out_type=out,
        scratch_types=scratch,
        compiler_params=COMPILER_PARAMS,
        **mesh,
        **({} if interpret is None else {"interpret": interpret}),
    )


def where(valid: Array | None, new: Array, old: Array) -> Array:
    """The new where a step is valid, where it is known; else the old."""
    return new if valid is None else jnp.where(valid, new, old)


def validity(valid_ref: Any, at: tuple[Any, ...], units: int, spread: Any) -> Array | None:
    """Whether a step is valid, for each unit and row."""
    if valid_ref is None:
        return None
    flags = load(valid_ref.at[at], spread.reduce(0))
    shape = (units, flags.shape[0])
    return plgpu.layout_cast(lax.broadcast_in_dim(flags, shape, (1,)), spread) > 0


def others(block: Any, count: int) -> Iterator[Any]:
    """All blocks, beginning with the own one, so that not all turn to the same one at once."""
    for n in range(count):
        yield lax.rem(block + n, jnp.int32(count))
