"""How a walk is laid out on a Hopper GPU: by arithmetic, before anything is compiled."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

#: Bytes of shared memory that one block can have on a Hopper GPU: 227 KiB.
SMEM = 227 * 1024
#: Of these, what barriers and alignment may take.
SPARE = 2048
#: Streaming multiprocessors; at the sizes here one block fills one.
SMS = 132
#: Blocks of a cluster: more than 8 are allowed on Hopper, beyond what every device has to offer.
CLUSTERS = (1, 2, 4, 8, 16)
#: Rows of the batch that one cluster takes: columns of a matrix product, and of its swizzle.
ROWS = (16, 32, 64)


class Plan(NamedTuple):
    """Who holds what."""

    blocks: int  # that share the units of one slice of the batch: a cluster
    units: int  # of each block
    rows: int  # of the batch, in each slice
    slices: int  # of the batch: clusters that know nothing of each other

    @property
    def width(self) -> int:
        """H with the units that fill up the last block."""
        return self.blocks * self.units


def units_of(H: int, blocks: int) -> int:
    """Units of each block: H / blocks, filled up.

    The matrix unit takes 64 rows at a time. Forward they are the 4 gates of a block's units,
    backward they are the units of all blocks: multiples of 16, and of 64 / blocks.
    """
    step = max(16, 64 // blocks)
    return step * math.ceil(H / blocks / step)


def smem_bytes(units: int, blocks: int, rows: int) -> int:
    """Bytes of shared memory of one block, in the walk that needs more.

    With U units a block, H = U blocks, R rows; 2 bytes an element of weights, h and z̄, 4 of sums::

        weights    2 · 4U · H      in both
        forward    2 · 2 · H · R   h, in two buffers
                   4 · 4U · R      the product, on its way from the matrix unit's layout to the gates'
        backward   2 · 4U · R      z̄
                   2 · 4 · H · R   the block's part of h̄, in two buffers

    H 512 over 16 blocks with 16 rows: 131,072 + 69,632 = 200,704 bytes of 232,448.

    >>> smem_bytes(32, 16, 16)
    200704
    """
    H = units * blocks
    forward = 2 * 2 * H * rows + 4 * 4 * units * rows
    backward = 2 * 4 * units * rows + 2 * 4 * H * rows
    return 2 * 4 * units * H + max(forward, backward)


def plan(T: int, B: int, H: int, dtype: Any, *, blocks: int | None = None) -> Plan | str:
    """The layout of a walk, or the reason why there is none.

    The fewest blocks that hold the weights (or ``blocks`` of them), and the fewest rows a cluster with
    which all clusters find room at once, if any do: a step takes as long as its rows take.

    >>> plan(1024, 16, 512, "bfloat16")
    Plan(blocks=16, units=32, rows=16, slices=1)
    >>> plan(1024, 64, 256, "float16")
    Plan(blocks=4, units=64, rows=16, slices=4)
    >>> plan(1024, 16, 768, "bfloat16")
    'w_hh of H=768 takes 294,912 bytes of each of 16 blocks, where shared memory has 232,448'
    """
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.dtype("bfloat16"), jnp.dtype("float16")):
        return f"Hopper's matrix unit multiplies bfloat16 and float16, and this is {dtype.name}"
    for count in CLUSTERS if blocks is None else (blocks,):
        units = units_of(H, count)
        fitting = [rows for rows in ROWS if smem_bytes(units, count, rows) <= SMEM - SPARE]
        if fitting:
            at_once = [rows for rows in fitting if math.ceil(B / rows) * count <= SMS]
            rows = (at_once or fitting[-1:])[0]
            return Plan(count, units, rows, math.ceil(B / rows))
    needs = 8 * units * units * count
    return (
        f"w_hh of H={H} takes {needs:,} bytes of each of {count} blocks, where shared memory has {SMEM:,}"
    )
