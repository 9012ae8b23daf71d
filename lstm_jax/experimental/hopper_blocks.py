"""Building blocks that :mod:`lstm_jax.experimental.hopper_forward` and ``hopper_backward`` share.

A group of thread blocks processes one slice of the batch from the first step to the last. Each block
keeps the weights of its own units in shared memory throughout, with all columns of a unit in the same
block, so that everything except the product is local to the block. Arrays are transposed: the matrix
unit takes 64 rows at a time, so the rows are gates, and the columns are the batch, which may be small.
With U units per block and R batch rows per slice,

    forward   z (4U, R) = Wᵀ (4U, H) h (H, R): the block's gates from the h of all units
    backward  h̄ (H, R) = W (H, 4U) z̄ (4U, R): the block's contribution to the h̄ of all units

Forward, each block sends its h to all blocks. Backward, each block fetches the partial sums of its own
units from all blocks and adds them, always in the same order. In a cluster, h is written to the shared
memory of all blocks, and the partial sums are read from there. In a grid, both pass through global
memory, in practice the L2 cache. Exchanged data alternate between two buffers. A block may overwrite a
buffer once it has received the next message of every block, because each block reads the buffer before it
sends that message.

If a block of a grid has too little shared memory, a part of its weights is in registers, which the matrix
unit also accepts as its first operand, and forward h arrives in pieces: see ``hopper_plan``. Rows that a
grid cannot hold at once take several launches: see :func:`lstm_jax.experimental.hopper.in_launches`.

Each block has one warpgroup. The compiler adds no synchronization. ``commit_smem``, a barrier for all
threads of the block, stands wherever a thread reads or overwrites what another thread wrote or reads.
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
ACCUMULATOR_SIZE = 8192


def register_layout(rows: int) -> Any:
    """How an array (units, rows) is distributed over 128 threads: two neighbours of a row per thread.

    A warp writes 64 neighbours of 2 bytes, which are all 32 banks of shared memory once.
    """
    if rows == 64:
        tiles: Any = (4, 64), (2,)
        dims: Any = {"warp_dims": (-3,), "lane_dims": (-2,)}
    else:
        tiles = (256 // rows, rows), (64 // rows, rows), (2,)
        dims = {"warp_dims": (-5,), "lane_dims": (-3, -2)}
    return plgpu.Layout.TILED(plgpu.Tiling(tiles), **dims, vector_dim=-1)


def matmul_operand(shape: tuple[int, ...], dtype: Any, rows: int) -> Any:
    """Shared memory for the matrix unit, which requires the same swizzle for both operands."""
    transforms = plgpu.TilingTransform((8, rows)), plgpu.SwizzleTransform(2 * rows)
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def row_tiles(begin: int, end: int, rows: int) -> list[tuple[int, int]]:
    """Split rows of a product into tiles that fit one accumulator: (first row, number of rows) each."""
    most = max(64, ACCUMULATOR_SIZE // rows)
    return [(at, min(most, end - at)) for at in range(begin, end, most)]


def multiply(a: Any, b: Any, out: Any, in_registers: Sequence[Array] = ()) -> None:
    """out = a b, one tile of rows at a time. ``in_registers`` are the first rows of a."""
    rows, done = b.shape[-1], 0
    for tile in *in_registers, *(a.at[pl.ds(*tile)] for tile in row_tiles(0, a.shape[0], rows)):

        def product(acc: Any, tile: Any = tile) -> Array:
            plgpu.wgmma(acc, tile, b)
            return acc[...]

        count = tile.shape[0]
        store(out.at[pl.ds(done, count)], pl.run_scoped(product, plgpu.ACC((count, rows), jnp.float32)))
        done += count


def multiply_pieces(
    pieces: Sequence[Sequence[Any]], b: Any, out: Any, fetch: Callable[[int], None], fetched: Any
) -> None:
    """out = a b, where b arrives in pieces that alternate between its two buffers.

    Args:
        pieces: for each piece of b, the matching columns of a, as operands side by side. Each operand is in
            registers or in shared memory.
        b: the buffers.
        out: the product.
        fetch: starts to copy a piece, while the matrix unit multiplies the one before.
        fetched: a barrier for each buffer.
    """
    M, rows = pieces[0][0].shape[0], b.shape[-1]

    def product(acc: Any) -> Array:
        for n, operands in enumerate(pieces):
            plgpu.barrier_wait(fetched.at[n % 2])
            done = 0
            for operand in operands:
                plgpu.wgmma(acc, operand, b.at[n % 2, pl.ds(done, operand.shape[1])])
                done += operand.shape[1]
            if 0 < n < len(pieces) - 1:  # wait for the product of piece n - 1, which frees its buffer
                plgpu.wgmma_wait(len(operands))
                plgpu.commit_smem()
                fetch(n + 1)
        return acc[...]

    for n in range(min(2, len(pieces))):
        fetch(n)
    store(out, pl.run_scoped(product, plgpu.ACC((M, rows), jnp.float32)))


def load_to_registers(ref: Any) -> Array:
    """A part of the weights, in the register layout of a wgmma operand."""
    return load(ref, plgpu.Layout.WGMMA)


class SliceBarrier(NamedTuple):
    """Synchronizes all blocks of a slice once per step; n counts the rounds from 0."""

    refs: Any  # two barriers, or a semaphore for each slice
    slice_index: Any  # None for barriers
    blocks: int

    def arrive(self, n: Any) -> None:
        """Publish this block's writes. The block's threads must be synchronized already."""
        if self.slice_index is None:
            plgpu.barrier_arrive(self.refs.at[lax.rem(n, 2)])
        else:
            plgpu.semaphore_signal(self.refs.at[self.slice_index], memory_scope="gpu")

    def wait(self, n: Any) -> None:
        """Wait until all blocks have arrived."""
        if self.slice_index is None:
            plgpu.barrier_wait(self.refs.at[lax.rem(n, 2)])
        else:
            arrivals, semaphore = self.blocks * (n + 1), self.refs.at[self.slice_index]
            plgpu.semaphore_wait(semaphore, arrivals, decrement=False, memory_scope="gpu")


def slice_barrier(plan: Plan, exchange: str, slice_index: Any, barriers: Any) -> SliceBarrier | None:
    """The barrier of a slice; None if the slice has a single block."""
    if plan.blocks == 1:
        return None
    if exchange == "semaphore":
        semaphores = pl.get_global(plgpu.SemaphoreType.REGULAR((plan.slices,)))
        return SliceBarrier(semaphores, slice_index, plan.blocks)
    return SliceBarrier(barriers, None, plan.blocks)


def exchange_barriers(plan: Plan, exchange: str) -> Any:
    """The two barriers of a :class:`SliceBarrier`, as scratch."""
    if exchange in ("fence", "barrier") and plan.blocks > 1:
        return plgpu.ClusterBarrier(collective_axes=("block",), num_barriers=2)
    return plgpu.Barrier(num_arrivals=plan.blocks if exchange == "async" else 1, num_barriers=2)


def choose_exchange(plan: Plan, exchange: str | None, exchanges: Mapping[str, Sequence[str]]) -> str:
    """The given exchange, or the first one that the plan's form supports."""
    supported = exchanges[plan.form]
    assert exchange in (None, *supported), (plan, exchange)
    return exchange or supported[0]


def kernel(
    body: Callable[..., None], plan: Plan, exchange: str, out: Any, scratch: Any, interpret: Any
) -> Any:
    """A kernel with ``plan.blocks`` blocks per slice: a grid if they use semaphores, else a cluster."""
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


def select_valid(valid: Array | None, new: Array, old: Array) -> Array:
    """``new`` at valid steps, ``old`` at invalid ones."""
    return new if valid is None else jnp.where(valid, new, old)


def load_valid(valid_ref: Any, index: tuple[Any, ...], units: int, layout: Any) -> Array | None:
    """Whether a step is valid, (units, rows)."""
    if valid_ref is None:
        return None
    flags = load(valid_ref.at[index], layout.reduce(0))
    shape = (units, flags.shape[0])
    return plgpu.layout_cast(lax.broadcast_in_dim(flags, shape, (1,)), layout) > 0


def rotated_blocks(block: Any, count: int) -> Iterator[Any]:
    """All blocks, starting with this one, so that the blocks do not all access the same one at once."""
    for n in range(count):
        yield lax.rem(block + n, jnp.int32(count))
