"""How the kernels for Hopper GPUs distribute a sequence over thread blocks, decided before compilation."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

#: Bytes of shared memory that one block can use on a Hopper GPU: 227 KiB.
SMEM = 227 * 1024
#: The part of it that barriers and alignment leave free.
AVAILABLE_SMEM = SMEM - 2048
#: Streaming multiprocessors (SMs) of an H100 SXM and of an H200. At the sizes here, one block fills one SM.
NUM_SMS = 132
#: Blocks per cluster. Hopper supports 16, but portable code may use only 8.
CLUSTER_SIZES = (1, 2, 4, 8, 16)
#: Batch rows per slice: the columns of a matrix product, which also set the width of its swizzle.
SLICE_ROWS = (16, 32, 64)

#: Units whose h and weights are processed together: a multiple of what the matrix unit and swizzles require.
TILE = 64
#: The largest number of pieces of h. Each piece waits for a copy: at least half a microsecond by estimate.
MAX_PIECES = 4
#: For each number of rows, the largest part of H whose weights a block may keep in registers: 64 columns
#: (forward) or rows (backward) of its weights take 16 of the 255 registers of each of 128 threads. The other
#: registers hold states, inputs and sums.
MAX_IN_REGISTERS = {16: 512, 32: 448, 64: 0}


class Plan(NamedTuple):
    """The distribution of hidden units and batch rows over thread blocks."""

    form: str  # "cluster": blocks access each other's shared memory; "grid": they exchange via global memory
    blocks: int  # blocks that share the units of one slice of the batch
    units: int  # units per block
    rows: int  # batch rows per slice
    slices: int  # slices of the batch per launch; slices are independent of each other
    piece: int = 0  # grid, forward: units of h per copy; 0: all
    register_columns: int = (
        0  # grid, forward: how many of the H columns of a block's weights are in registers
    )
    register_rows: int = 0  # grid, backward: how many of the H rows are in registers
    recurrent_columns: int = 4  # columns of a unit with recurrent weights: 4 for an LSTM, 3 for a GRU

    @property
    def padded_H(self) -> int:
        """H, padded to fill the last block."""
        return self.blocks * self.units

    @property
    def gate_rows(self) -> int:
        """Rows of a block's weights: the columns of its units, padded to a multiple of 64 for wgmma."""
        return 64 * math.ceil(self.recurrent_columns * self.units / 64)

    @property
    def launch_rows(self) -> int:
        """Batch rows per launch."""
        return self.slices * self.rows

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """The first unit and the number of units of each piece of h."""
        piece = self.piece or self.padded_H
        return [(begin, min(piece, self.padded_H - begin)) for begin in range(0, self.padded_H, piece)]


def units_per_block(H: int, blocks: int) -> int:
    """H / blocks, padded.

    The matrix unit takes 64 rows at a time. Forward, the rows are the 4 gates of a block's units.
    Backward, they are the units of all blocks. The result is a multiple of 16 and of 64 / blocks.
    """
    step = max(16, 64 // blocks)
    return step * math.ceil(H / blocks / step)


def smem_bytes(plan: Plan) -> tuple[int, int]:
    """Bytes of shared memory per block, forward and backward.

    With U units per block, G gate rows (4U; for a GRU 3U, padded to a multiple of 64), H = U blocks and
    R batch rows, each element of weights, h and z̄ takes 2 bytes and each element of sums 4. In a cluster::

        weights    2 · G · H       in both
        forward    2 · 2 · H · R   h, in two buffers
                   4 · G · R       the product, between the matrix unit's layout and that of the gates
        backward   2 · G · R       z̄
                   2 · 4 · H · R   the block's partial h̄, in two buffers

    In a grid, where h and the partial h̄ are in global memory::

        forward    2 · G · (H - register_columns)   weights
                   2 · H · R, or 4 · P · R          h, whole, or in pieces of P units in two buffers
                   4 · G · R                        the product
        backward   2 · G · (H - register_rows)      weights
                   2 · G · R                        z̄

    H 512 over 16 blocks with 16 rows: 131,072 + 69,632 = 200,704 bytes of 232,448. H 1024 over 64 blocks:
    131,072 + 36,864. H 1920 over 120 blocks, 512 columns in registers, 512 units per piece: 180,224 + 36,864.

    >>> smem_bytes(Plan("cluster", 16, 32, 16, 1)), smem_bytes(Plan("grid", 64, 16, 16, 1))
    ((172032, 200704), (167936, 133120))
    >>> smem_bytes(Plan("grid", 120, 16, 16, 1, piece=512, register_columns=512, register_rows=192))
    (217088, 223232)
    """
    H, G, R = plan.padded_H, plan.gate_rows, plan.rows
    product, z_bar = 4 * G * R, 2 * G * R
    if plan.form == "grid":
        h = 4 * plan.piece * R if plan.piece else 2 * H * R
        forward = 2 * G * (H - plan.register_columns) + h + product
        return forward, 2 * G * (H - plan.register_rows) + z_bar
    weights = 2 * G * H
    return weights + 2 * 2 * H * R + product, weights + z_bar + 2 * 4 * H * R


def make_plan(
    B: int,
    H: int,
    dtype: Any,
    recurrent_columns: int = 4,
    *,
    blocks: int | None = None,
    num_sms: int = NUM_SMS,
) -> Plan | str:
    """The plan for a sequence, or the reason why there is none.

    If the weights fit into one cluster, the plan is a cluster. It has the fewest blocks that hold the
    weights (or ``blocks`` of them), and the fewest rows with which all clusters are resident at once. If
    no number of rows achieves that, the remaining clusters wait for their turn.

    Otherwise the plan is a grid. The blocks of a grid wait for each other, so all of them must be resident
    at once. It also has the fewest rows with which they are. If no number of rows achieves that, it has
    the most rows that fit, and several launches of as many slices as ``num_sms`` multiprocessors hold.

    Args:
        B: batch rows.
        H: hidden units.
        dtype: the compute dtype, bfloat16 or float16.
        recurrent_columns: columns of a unit that have recurrent weights.
        blocks: the number of blocks of a cluster; chosen if None.
        num_sms: the streaming multiprocessors of the device.

    >>> make_plan(16, 512, "bfloat16")  # doctest: +NORMALIZE_WHITESPACE
    Plan(form='cluster', blocks=16, units=32, rows=16, slices=1, piece=0, register_columns=0,
         register_rows=0, recurrent_columns=4)
    >>> make_plan(64, 256, "float16")[:5]
    ('cluster', 4, 64, 16, 4)
    >>> make_plan(64, 1024, "bfloat16")[:8]
    ('grid', 64, 16, 32, 2, 0, 0, 0)
    >>> make_plan(16, 1900, "bfloat16")  # doctest: +NORMALIZE_WHITESPACE
    Plan(form='grid', blocks=120, units=16, rows=16, slices=1, piece=512, register_columns=512,
         register_rows=192, recurrent_columns=4)
    >>> make_plan(200, 1024, "bfloat16")[:8]  # two launches, of 128 and 72 rows
    ('grid', 64, 16, 64, 2, 256, 0, 0)
    >>> make_plan(16, 2000, "bfloat16")  # doctest: +NORMALIZE_WHITESPACE
    "H=2000 is too large: a block's part of w_hh takes 262,144 bytes of shared memory and leaves no room
    for h; the largest supported H is 1984"
    """
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.dtype("bfloat16"), jnp.dtype("float16")):
        return f"the kernels for Hopper GPUs compute in bfloat16 or float16, got {dtype.name}"
    B = max(B, 1)
    for count in [count for count in CLUSTER_SIZES if count <= num_sms] if blocks is None else [blocks]:
        units = units_per_block(H, count)
        clusters = [
            Plan("cluster", count, units, rows, 1, recurrent_columns=recurrent_columns) for rows in SLICE_ROWS
        ]
        fitting = [plan for plan in clusters if max(smem_bytes(plan)) <= AVAILABLE_SMEM]
        if fitting:
            plan = fewest_rows(fitting, B, num_sms)
            return plan._replace(slices=math.ceil(B / plan.rows))
    # Blocks of 16 units, the smallest possible, have the fewest weights each.
    tiles = math.ceil(H / TILE)
    grids = [grid_plan(4 * tiles, rows, recurrent_columns) for rows in SLICE_ROWS]
    fitting = [plan for plan in grids if plan is not None]
    if not fitting:
        most = next(n for n in range(tiles, 0, -1) if grid_plan(4 * n, SLICE_ROWS[0], recurrent_columns))
        weights = 2 * TILE * TILE * tiles
        return (
            f"H={H} is too large: a block's part of w_hh takes {weights:,} bytes of shared memory and leaves "
            f"no room for h; the largest supported H is {TILE * most}"
        )
    if 4 * tiles > num_sms:
        return f"H={H} requires {4 * tiles} resident blocks, and the GPU runs {num_sms} at once"
    plan = fewest_rows(fitting, B, num_sms)
    launches = math.ceil(B / plan.rows / (num_sms // plan.blocks))
    return plan._replace(slices=math.ceil(B / launches / plan.rows))


def fewest_rows(fitting: list[Plan], B: int, num_sms: int) -> Plan:
    """The plan with the fewest rows such that all slices are resident at once, or else with the most rows."""
    return next((plan for plan in fitting if math.ceil(B / plan.rows) * plan.blocks <= num_sms), fitting[-1])


def grid_plan(blocks: int, rows: int, recurrent_columns: int = 4) -> Plan | None:
    """A grid for one slice, with the fewest pieces and then the fewest registers that fit, or None.

    With 16 rows, 128 H bytes of weights and 32 H bytes of h fit into shared memory up to H 1408. Above
    that, part of the weights is in registers, which also saves reads of shared memory: with 512 columns in
    registers, h fits whole up to H 1792. Above that, h comes in pieces. There are at least three, because
    two pieces in two buffers would be all of h. The weights in registers are then those of the first
    piece, or none. Four pieces of 512 units reach H 1984. With 32 rows the limit is H 1728, with 64 rows
    it is 1024.

    >>> grid_plan(88, 16)[:8]  # the last three: piece, register_columns, register_rows
    ('grid', 88, 16, 16, 1, 0, 0, 0)
    >>> grid_plan(112, 16)[:8]
    ('grid', 112, 16, 16, 1, 0, 512, 64)
    >>> grid_plan(124, 16)[:8]
    ('grid', 124, 16, 16, 1, 512, 512, 256)
    >>> [H for H in (1024, 1728, 1984) for rows in (16, 32, 64) if grid_plan(H // 16, rows)]
    [1024, 1024, 1024, 1728, 1728, 1984]
    """
    base = Plan("grid", blocks, 16, rows, 1, recurrent_columns=recurrent_columns)
    tiles, in_registers = base.padded_H // TILE, range(0, MAX_IN_REGISTERS[rows] + 1, TILE)
    pieces = [TILE * math.ceil(tiles / count) for count in range(3, MAX_PIECES + 1)]
    forward = [(0, n) for n in in_registers]
    forward += [(piece, n) for piece in pieces for n in (0, piece) if n in in_registers]
    plans = (base._replace(piece=piece, register_columns=n) for piece, n in forward)
    plan = next((plan for plan in plans if smem_bytes(plan)[0] <= AVAILABLE_SMEM), None)
    backward = (n for n in in_registers if smem_bytes(base._replace(register_rows=n))[1] <= AVAILABLE_SMEM)
    register_rows = next(backward, None)
    return None if plan is None or register_rows is None else plan._replace(register_rows=register_rows)
