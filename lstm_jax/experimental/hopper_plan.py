"""How a walk is laid out on a Hopper GPU: by arithmetic, before anything is compiled."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

#: Bytes of shared memory that one block can have on a Hopper GPU: 227 KiB.
SMEM = 227 * 1024
#: What barriers and alignment leave of it.
ROOM = SMEM - 2048
#: Streaming multiprocessors of an H100 SXM and an H200; at the sizes here one block fills one.
SMS = 132
#: Blocks of a cluster: more than 8 are allowed on Hopper, beyond what every device has to offer.
CLUSTERS = (1, 2, 4, 8, 16)
#: Rows of the batch that one cluster takes: columns of a matrix product, and of its swizzle.
ROWS = (16, 32, 64)


#: Units whose h, and so whose weights, stay together: a multiple of what the matrix unit and swizzles take.
TILE = 64
#: Most pieces in which h may come: each waits for a copy, a good half microsecond by estimate.
PIECES = 4
#: For so many rows, most of H that a block may have in registers: 64 of its weights' columns (forward) or
#: rows (backward) are 16 of the 255 registers of each of 128 threads. The rest is for states, inputs, sums.
HELD = {16: 512, 32: 448, 64: 0}


class Plan(NamedTuple):
    """Who holds what."""

    form: str  # "cluster": blocks that reach each other's shared memory; "grid": they meet in the main memory
    blocks: int  # that share the units of one slice of the batch
    units: int  # of each block
    rows: int  # of the batch, in each slice
    slices: int  # of the batch, in each launch; they know nothing of each other
    piece: int = 0  # grid, forward: units whose h comes at a time; 0: all
    held: int = 0  # grid, forward: of the H columns of a block's weights, those in registers
    held_back: int = 0  # grid, backward: of the H rows, those in registers
    hear: int = 4  # columns of a unit that hear h; of a GRU 3

    @property
    def width(self) -> int:
        """H with the units that fill up the last block."""
        return self.blocks * self.units

    @property
    def gate_rows(self) -> int:
        """Rows of a block's weights: the columns of its units, filled up to the 64 of the matrix unit."""
        return 64 * math.ceil(self.hear * self.units / 64)

    @property
    def launch(self) -> int:
        """Rows of the batch that one launch takes."""
        return self.slices * self.rows

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Where each piece of h begins, and its units."""
        piece = self.piece or self.width
        return [(at, min(piece, self.width - at)) for at in range(0, self.width, piece)]


def units_of(H: int, blocks: int) -> int:
    """Units of each block: H / blocks, filled up.

    The matrix unit takes 64 rows at a time. Forward they are the 4 gates of a block's units,
    backward they are the units of all blocks: multiples of 16, and of 64 / blocks.
    """
    step = max(16, 64 // blocks)
    return step * math.ceil(H / blocks / step)


def smem_bytes(to: Plan) -> tuple[int, int]:
    """Bytes of shared memory of one block, forward and backward.

    With U units a block, G rows of gates (4U; for a GRU 3U, filled up to a multiple of 64), H = U blocks,
    R rows of the batch; 2 bytes an element of weights, h and z̄, 4 of sums. In a cluster::

        weights    2 · G · H       in both
        forward    2 · 2 · H · R   h, in two buffers
                   4 · G · R       the product, on its way from the matrix unit's layout to the gates'
        backward   2 · G · R       z̄
                   2 · 4 · H · R   the block's part of h̄, in two buffers

    In a grid, where h comes from the main memory and the parts go there::

        forward    2 · G · (H - held)         weights
                   2 · H · R, or 4 · P · R    h, whole, or in pieces of P units by way of two buffers
                   4 · G · R                  the product
        backward   2 · G · (H - held_back)    weights
                   2 · G · R                  z̄

    H 512 over 16 blocks with 16 rows: 131,072 + 69,632 = 200,704 bytes of 232,448. H 1024 over 64:
    131,072 + 36,864. H 1920 over 120, 512 columns in registers, 512 units a piece: 180,224 + 36,864.

    >>> smem_bytes(Plan("cluster", 16, 32, 16, 1)), smem_bytes(Plan("grid", 64, 16, 16, 1))
    ((172032, 200704), (167936, 133120))
    >>> smem_bytes(Plan("grid", 120, 16, 16, 1, piece=512, held=512, held_back=192))
    (217088, 223232)
    """
    H, G, R = to.width, to.gate_rows, to.rows
    product, z_bar = 4 * G * R, 2 * G * R
    if to.form == "grid":
        h = 4 * to.piece * R if to.piece else 2 * H * R
        forward = 2 * G * (H - to.held) + h + product
        return forward, 2 * G * (H - to.held_back) + z_bar
    weights = 2 * G * H
    return weights + 2 * 2 * H * R + product, weights + z_bar + 2 * 4 * H * R


def plan(
    B: int, H: int, dtype: Any, hear: int = 4, *, blocks: int | None = None, sms: int = SMS
) -> Plan | str:
    """The layout of a walk, or the reason why there is none; ``hear`` columns of a unit hear h.

    A cluster where one holds the weights: the fewest blocks that do (or ``blocks`` of them), and the
    fewest rows with which all clusters find room at once, if any do; those that do not wait for
    their turn. Else the grid, whose blocks wait for each other, so that all must find room at once:
    again the fewest rows with which they do; if there are none, the most rows that fit, in several
    launches of as many slices as ``sms`` multiprocessors have room for.

    >>> plan(16, 512, "bfloat16")
    Plan(form='cluster', blocks=16, units=32, rows=16, slices=1, piece=0, held=0, held_back=0, hear=4)
    >>> plan(64, 256, "float16")[:5]
    ('cluster', 4, 64, 16, 4)
    >>> plan(64, 1024, "bfloat16")
    Plan(form='grid', blocks=64, units=16, rows=32, slices=2, piece=0, held=0, held_back=0, hear=4)
    >>> plan(16, 1900, "bfloat16")
    Plan(form='grid', blocks=120, units=16, rows=16, slices=1, piece=512, held=512, held_back=192, hear=4)
    >>> plan(200, 1024, "bfloat16")  # two launches, of 128 and 72 rows
    Plan(form='grid', blocks=64, units=16, rows=64, slices=2, piece=256, held=0, held_back=0, hear=4)
    >>> plan(16, 2000, "bfloat16")  # doctest: +NORMALIZE_WHITESPACE
    "H=2000 is too large: a block's part of w_hh takes 262,144 bytes and leaves no room for h; the kernels
    end at H=1984"
    """
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.dtype("bfloat16"), jnp.dtype("float16")):
        return f"Hopper's matrix unit multiplies bfloat16 and float16, and this is {dtype.name}"
    B = max(B, 1)
    for count in [count for count in CLUSTERS if count <= sms] if blocks is None else [blocks]:
        clusters = [Plan("cluster", count, units_of(H, count), rows, 1, hear=hear) for rows in ROWS]
        fitting = [to for to in clusters if max(smem_bytes(to)) <= ROOM]
        if fitting:
            to = roomy(fitting, B, sms)
            return to._replace(slices=math.ceil(B / to.rows))
    # 16 units are the fewest there can be, so that each block's weights are the smallest.
    tiles = math.ceil(H / TILE)
    fitting = [found for rows in ROWS if (found := grid(4 * tiles, rows, hear)) is not None]
    if not fitting:
        most = next(n for n in range(tiles, 0, -1) if grid(4 * n, ROWS[0], hear) is not None)
        weights = 2 * TILE * TILE * tiles
        return (
            f"H={H} is too large: a block's part of w_hh takes {weights:,} bytes and leaves no room for h; "
            f"the kernels end at H={TILE * most}"
        )
    if 4 * tiles > sms:
        return f"H={H} takes {4 * tiles} blocks, which wait for each other, and the GPU runs {sms} at once"
    to = roomy(fitting, B, sms)
    launches = math.ceil(B / to.rows / (sms // to.blocks))
    return to._replace(slices=math.ceil(B / launches / to.rows))


def roomy(fitting: list[Plan], B: int, sms: int) -> Plan:
    """The fewest rows with which all slices find room at once, or else the most."""
    return next((to for to in fitting if math.ceil(B / to.rows) * to.blocks <= sms), fitting[-1])


def grid(blocks: int, rows: int, hear: int = 4) -> Plan | None:
    """A slice of so many rows: with the fewest pieces, and then the fewest registers, that make it fit.

    With 16 rows, 128 H bytes of weights and 32 H of h find room as they are up to H 1408. Then come
    registers, which also save reads of shared memory: with 512 columns there, h is whole up to H 1792.
    Then pieces, three at the least, because two would fill two buffers with all of h, and of the weights
    those of the first piece in registers, or none: four pieces of 512 carry up to H 1984. With 32 rows the
    end is H 1728, with 64 it is 1024.

    >>> grid(88, 16)
    Plan(form='grid', blocks=88, units=16, rows=16, slices=1, piece=0, held=0, held_back=0, hear=4)
    >>> grid(112, 16)
    Plan(form='grid', blocks=112, units=16, rows=16, slices=1, piece=0, held=512, held_back=64, hear=4)
    >>> grid(124, 16)
    Plan(form='grid', blocks=124, units=16, rows=16, slices=1, piece=512, held=512, held_back=256, hear=4)
    >>> [H for H in (1024, 1728, 1984) for rows in (16, 32, 64) if grid(H // 16, rows)]
    [1024, 1024, 1024, 1728, 1728, 1984]
    """
    whole = Plan("grid", blocks, 16, rows, 1, hear=hear)
    tiles, held = whole.width // TILE, range(0, HELD[rows] + 1, TILE)
    pieces = [TILE * math.ceil(tiles / count) for count in range(3, PIECES + 1)]
    forward = [(0, n) for n in held] + [(piece, n) for piece in pieces for n in (0, piece) if n in held]
    layouts = (whole._replace(piece=piece, held=n) for piece, n in forward)
    found = next((to for to in layouts if smem_bytes(to)[0] <= ROOM), None)
    back = next((n for n in held if smem_bytes(whole._replace(held_back=n))[1] <= ROOM), None)
    return None if found is None or back is None else found._replace(held_back=back)
