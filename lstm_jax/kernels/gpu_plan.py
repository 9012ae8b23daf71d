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

    form: str  # "cluster": blocks that reach each other's shared memory; "grid": they meet in the main memory
    blocks: int  # that share the units of one slice of the batch
    units: int  # of each block
    rows: int  # of the batch, in each slice
    slices: int  # of the batch, which know nothing of each other

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


def gate_rows(hear: int, units: int) -> int:
    """Rows of a block's weights: ``hear`` columns of each unit, filled up to the 64 of the matrix unit."""
    return 64 * math.ceil(hear * units / 64)


def smem_bytes(form: str, blocks: int, units: int, rows: int, hear: int = 4) -> int:
    """Bytes of shared memory of one block, in the walk that needs more.

    With U units a block, G rows of gates (4U, for a GRU 3U filled up to a multiple of 64), H = U blocks,
    R rows of the batch; 2 bytes an element of weights, h and z̄, 4 of sums::

        weights    2 · G · H       in both
        forward    2 · 2 · H · R   h, in two buffers (grid: one)
                   4 · G · R       the product, on its way from the matrix unit's layout to the gates'
        backward   2 · G · R       z̄
                   2 · 4 · H · R   the block's part of h̄, in two buffers (grid: in the main memory)

    H 512 over 16 blocks with 16 rows: 131,072 + 69,632 = 200,704 bytes of 232,448. H 1024 over 64:
    131,072 + 36,864.

    >>> smem_bytes("cluster", 16, 32, 16), smem_bytes("grid", 64, 16, 16)
    (200704, 167936)
    """
    G, H, buffers = gate_rows(hear, units), units * blocks, 1 if form == "grid" else 2
    forward = buffers * 2 * H * rows + 4 * G * rows
    backward = 2 * G * rows + (0 if form == "grid" else 2 * 4 * H * rows)
    return 2 * G * H + max(forward, backward)


def plan(T: int, B: int, H: int, dtype: Any, hear: int = 4, *, blocks: int | None = None) -> Plan | str:
    """The layout of a walk, or the reason why there is none; ``hear`` columns of a unit hear h.

    A cluster where one holds the weights: the fewest blocks that do (or ``blocks`` of them), and the
    fewest rows with which all clusters find room at once, if any do; those that do not wait for
    their turn. Else the grid, whose blocks wait for each other, so that all must find room at once.

    >>> plan(1024, 16, 512, "bfloat16")
    Plan(form='cluster', blocks=16, units=32, rows=16, slices=1)
    >>> plan(1024, 64, 256, "float16")
    Plan(form='cluster', blocks=4, units=64, rows=16, slices=4)
    >>> plan(1024, 64, 1024, "bfloat16")
    Plan(form='grid', blocks=64, units=16, rows=32, slices=2)
    >>> plan(1024, 16, 2048, "bfloat16")
    'w_hh of H=2048 is too large: with h, it takes 331,776 bytes of each of 128 blocks, which have 230,400'
    """
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.dtype("bfloat16"), jnp.dtype("float16")):
        return f"Hopper's matrix unit multiplies bfloat16 and float16, and this is {dtype.name}"
    for count in CLUSTERS if blocks is None else (blocks,):
        units = units_of(H, count)
        fitting = fitting_rows("cluster", count, units, hear)
        if fitting:
            at_once = [rows for rows in fitting if math.ceil(B / rows) * count <= SMS]
            rows = (at_once or fitting[-1:])[0]
            return Plan("cluster", count, units, rows, math.ceil(B / rows))
    units = 16  # the fewest there can be, so that each block's weights are the smallest
    count = 4 * math.ceil(H / 64)
    fitting = fitting_rows("grid", count, units, hear)
    if not fitting:
        needs = smem_bytes("grid", count, units, ROWS[0], hear)
        return (
            f"w_hh of H={H} is too large: with h, it takes {needs:,} bytes of each of {count} blocks, "
            f"which have {SMEM - SPARE:,}"
        )
    at_once = [rows for rows in fitting if math.ceil(B / rows) * count <= SMS]
    if not at_once:
        most = SMS // count * fitting[-1]
        return f"with H={H} the device has room for {most} rows of the batch at once, and B={B}"
    return Plan("grid", count, units, at_once[0], math.ceil(B / at_once[0]))


def fitting_rows(form: str, blocks: int, units: int, hear: int) -> list[int]:
    """With how many rows a block has enough shared memory."""
    return [rows for rows in ROWS if smem_bytes(form, blocks, units, rows, hear) <= SMEM - SPARE]
