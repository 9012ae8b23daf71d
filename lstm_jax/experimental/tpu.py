"""The forward and the backward kernel for TPUs, in Pallas.

A TPU executes the grid of a kernel in order, and scratch memory persists from one grid step to the next. The
grid (blocks of batch rows, chunks of time) therefore serves as the time loop. W stays in VMEM, and the states
stay in scratch. While one chunk is computed, the inputs of the next are copied in and the outputs of the
last are copied out. The backward kernel processes the chunks from the last to the first. Hidden units are
padded to a multiple of 128 lanes with units whose weights are 0, so their states stay 0. Rows and steps
beyond the end of the arrays affect no other rows or steps, and are not written back.

``jax_default_matmul_precision`` applies to the products. Mosaic does not support ``"high"``, so the kernels
use ``"highest"`` instead.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lstm_jax._types import Array, DType
from lstm_jax.unrolling.kernels.engine import Engine, ForwardOutput, Inputs, Residuals, Tangents, type_like
from lstm_jax.unrolling.kernels.formulas import (
    FORMULAS,
    LSTM_FORMULA,
    CellFormula,
    columns_by_index,
    split_columns,
    sum_terms,
)
from lstm_jax.unrolling.tiling import MiB

LANES = 128
#: With more than one block, the rows of a block are a multiple of this: a tile of bfloat16.
TILE = 16
#: VMEM if the device is unknown: what a kernel on the oldest TPUs may use.
DEFAULT_VMEM = 16 * MiB
#: Time steps per chunk, over which the overhead of a grid step is amortized.
CHUNK = 16
STATE_DTYPE = jnp.float32
#: A 32-bit index even if x64 is enabled: Mosaic supports no other width.
ZERO = np.int32(0)


class Blocks(NamedTuple):
    """Block sizes of the grid."""

    rows: int  # batch rows per block
    chunk: int  # time steps per chunk


def vmem_bytes(rows: int, H: int, dtype: DType, chunk: int, formula: CellFormula = LSTM_FORMULA) -> int:
    r"""Bytes of VMEM that the backward kernel needs; the forward kernel needs no more.

    Let :math:`H_p` be H padded to a multiple of 128, R the rows padded to a multiple of 16, and e the bytes
    per element of the compute dtype. The bytes streamed per step and row are

    .. math:: (16\ (gates) + 4\ (c_t) + e\ (\ref h_t) + 4\ (\ref c_t) + 4e\ (\ref z_t)) H_p + 512\ (valid)

    where a flag takes a row of 128 lanes. Each streamed block has two buffers: one is in use while the other
    is copied. In addition there are W once, :math:`4 e H_p^2`, and 20 times the size of a state of the rows,
    :math:`4 R H_p`: two buffers each for c_0, its cotangent and c before the chunk, scratch for h and c, and
    three times the gates for the intermediate values of a step. A GRU has three columns in W. It streams h
    of e bytes instead of c of 4 bytes, and no :math:`\ref c_t`.

    >>> vmem_bytes(16, 512, jnp.bfloat16, 8) // 1024  # kB
    7168
    """
    H, R, e = _round_up(H, LANES), _round_up(rows, TILE), jnp.dtype(dtype).itemsize
    of_states = e + 8 if formula.num_states == 2 else 2 * e
    streamed = (16 + of_states + 4 * e) * H + 4 * LANES
    weights = len(formula.recurrent_columns) * e * H * H
    return 2 * chunk * R * streamed + weights + 4 * R * H * (6 + 2 + 12)


def available_vmem() -> int:
    """VMEM that a kernel may use: three quarters of the device's, or ``DEFAULT_VMEM`` without a TPU."""
    if jax.default_backend() != "tpu":
        return DEFAULT_VMEM
    return max(DEFAULT_VMEM, pltpu.get_tpu_info().vmem_capacity_bytes * 3 // 4)


def choose_blocks(T: int, B: int, H: int, dtype: DType, formula: CellFormula = LSTM_FORMULA) -> Blocks | None:
    """The largest blocks of rows, and then the longest chunks, that fit into VMEM."""
    rows, num_blocks, available = B, 1, available_vmem()
    while True:
        chunk = min(CHUNK, T)
        while chunk and vmem_bytes(rows, H, dtype, chunk, formula) > available:
            chunk //= 2
        if chunk:
            return Blocks(rows, chunk)
        if rows <= TILE:
            return None
        num_blocks *= 2
        rows = _round_up(pl.cdiv(B, num_blocks), TILE)


def unsupported_reason(formula: CellFormula, T: int, B: int, H: int, dtype: DType) -> str | None:
    """Why the kernels cannot run with these sizes, or None."""
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"the TPU kernels compute in float32 or bfloat16, got {jnp.dtype(dtype)}"
    if T * B and choose_blocks(T, B, H, dtype, formula) is None:
        least = vmem_bytes(min(B, TILE), H, dtype, 1, formula)
        return (
            f"{H} units in {jnp.dtype(dtype)} need {least / MiB:.1f} MiB of VMEM to hold all of w_hh, and "
            f"{available_vmem() / MiB:.0f} MiB are available"
        )
    return None


# --- forward ------------------------------------------------------------------------------------


def forward(formula: CellFormula, inputs: Inputs, save: bool, *, interpret: Any = False) -> ForwardOutput:
    """:func:`lstm_jax.unrolling.kernels.reference.forward` by a kernel."""
    T, (B, H) = len(inputs.u), inputs.carry[0].shape
    blocks = choose_blocks(T, B, H, inputs.u.dtype, formula)
    assert blocks is not None  # unsupported_reason has returned None
    ins = Inputs(
        _pad_units(inputs.u, len(formula.input_columns)),
        _pad_units(_pad_rows(inputs.w_hh), len(formula.recurrent_columns)),
        None if inputs.bias is None else _pad_units(inputs.bias[None], 4),
        tuple(map(_pad_units, inputs.carry)),
        None if inputs.valid is None else inputs.valid[..., None].astype(jnp.int32),
    )
    specs = _BlockSpecs(blocks, lambda i: i)
    step, row = specs.steps, specs.rows
    in_specs = Inputs(
        step(ins.u), _full_spec(ins.w_hh), _full_spec(ins.bias), tuple(map(row, ins.carry)), step(ins.valid)
    )
    padded_H = ins.carry[0].shape[-1]
    out_type = partial(type_like, inputs.carry[0])
    outs = ForwardOutput(
        tuple(out_type((T, B, padded_H), a.dtype) for a in ins.carry),
        out_type((T, B, 4 * padded_H), STATE_DTYPE) if save else None,
    )
    scratch = [pltpu.VMEM((blocks.rows, padded_H), a.dtype) for a in ins.carry]
    kernel = partial(_forward_kernel, formula, T, blocks.chunk)
    out_specs = jax.tree.map(step, outs)
    scanned = _call(kernel, blocks, (T, B), (ins, in_specs), (outs, out_specs), scratch, interpret)
    gates = None if scanned.gates is None else _unpad_units(scanned.gates, H, 4)
    return ForwardOutput(tuple(_unpad_units(a, H) for a in scanned.states), gates)


def _forward_kernel(
    formula: CellFormula, T: int, chunk: int, ins: Inputs, outs: ForwardOutput, *states: Any
) -> None:
    index = pl.program_id(1)

    @pl.when(index == 0)
    def _initialize() -> None:
        for state, initial in zip(states, ins.carry, strict=True):
            state[...] = initial[...]

    def step(t: Any, _: None) -> None:
        recurrent = _product(states[0][...], ins.w_hh[...], 0)
        terms = [
            columns_by_index(ins.u[t].astype(STATE_DTYPE), formula.input_columns),
            columns_by_index(recurrent, formula.recurrent_columns),
        ]
        if ins.bias is not None:
            bias = jnp.broadcast_to(ins.bias[...], (recurrent.shape[0], ins.bias.shape[-1]))
            terms.append(columns_by_index(bias, range(4)))
        gates = formula.activate(sum_terms(*terms))
        new = formula.update(gates, states[-1][...].astype(STATE_DTYPE))
        for state, a, out in zip(states, new, outs.states, strict=True):
            a = a.astype(state.dtype)
            if ins.valid is not None:
                a = jnp.where(jnp.broadcast_to(ins.valid[t], a.shape) != 0, a, state[...])
            out[t] = state[...] = a
        if outs.gates is not None:
            outs.gates[t] = jnp.concatenate(gates, axis=-1)

    lax.fori_loop(0, jnp.minimum(chunk, T - index * chunk), step, None)


# --- backward -----------------------------------------------------------------------------------


class _BackwardInputs(NamedTuple):
    """Arguments of the backward kernel."""

    residuals: Residuals
    before_chunk: Any  # the cell state after the step before the chunk
    cotangents: Any


def backward(
    formula: CellFormula, residuals: Residuals, cotangents: Any, *, interpret: Any = False
) -> Tangents:
    """:func:`lstm_jax.unrolling.kernels.reference.backward` by a kernel."""
    (T, B, H), compute = residuals.cell_states.shape, residuals.w_hh.dtype
    blocks = choose_blocks(T, B, H, compute, formula)
    assert blocks is not None  # unsupported_reason has returned None
    last = pl.cdiv(T, blocks.chunk) - 1
    specs = _BlockSpecs(blocks, lambda i: last - i)
    step, row = specs.steps, specs.rows
    out_type = partial(type_like, residuals.cell_states)
    valid = None if residuals.valid is None else residuals.valid[..., None].astype(jnp.int32)
    residuals = Residuals(
        _pad_units(_pad_rows(residuals.w_hh), len(formula.recurrent_columns)),
        _pad_units(residuals.gates, 4),
        _pad_units(residuals.cell_states),
        _pad_units(residuals.initial),
        valid,
    )
    cell_states = residuals.cell_states
    ins = _BackwardInputs(residuals, cell_states, tuple(map(_pad_units, cotangents)))
    padded_H = cell_states.shape[-1]
    before_chunk = pl.BlockSpec(
        (1, blocks.rows, padded_H), lambda b, i: (jnp.maximum((last - i) * blocks.chunk - 1, 0), b, ZERO)
    )
    residuals_specs = Residuals(
        _full_spec(residuals.w_hh),
        step(residuals.gates),
        step(cell_states),
        row(residuals.initial),
        step(valid),
    )
    in_specs = _BackwardInputs(residuals_specs, before_chunk, tuple(map(step, ins.cotangents)))
    outs = Tangents(
        out_type((T, B, 4 * padded_H), compute), tuple(out_type((B, padded_H), a.dtype) for a in cotangents)
    )
    out_specs = Tangents(step(outs.zs), tuple(map(row, outs.carry)))
    scratch = [pltpu.VMEM((blocks.rows, padded_H), STATE_DTYPE) for _ in cotangents]
    kernel = partial(_backward_kernel, formula, T, blocks.chunk)
    result = _call(kernel, blocks, (T, B), (ins, in_specs), (outs, out_specs), scratch, interpret)
    return Tangents(_unpad_units(result.zs, H, 4), tuple(_unpad_units(a, H) for a in result.carry))


def _backward_kernel(
    formula: CellFormula, T: int, chunk: int, ins: _BackwardInputs, outs: Tangents, *carry_refs: Any
) -> None:
    (w_hh, gates, cell_states, initial, valid), before_chunk, cotangents = ins
    last = pl.num_programs(1) - 1
    index = last - pl.program_id(1)

    @pl.when(index == last)
    def _initialize() -> None:
        for ref in carry_refs:
            ref[...] = jnp.zeros_like(ref)

    steps = jnp.minimum(chunk, T - index * chunk)

    def step(n: Any, _: None) -> None:
        t = steps - 1 - n
        state_cotangents = tuple(
            ref[...] + a[t].astype(STATE_DTYPE) for ref, a in zip(carry_refs, cotangents, strict=True)
        )
        previous = jnp.where(index > 0, before_chunk[0], initial[...])
        previous = jnp.where(t > 0, cell_states[jnp.maximum(t - 1, 0)], previous).astype(STATE_DTYPE)
        gates_t, new = split_columns(gates[t]), cell_states[t].astype(STATE_DTYPE)
        zs, cell_state_bar = formula.cotangent(gates_t, previous, new, state_cotangents)
        z = jnp.concatenate(zs, axis=-1)
        is_valid = None if valid is None else jnp.broadcast_to(valid[t], z.shape) != 0
        if is_valid is not None:
            z = jnp.where(is_valid, z, jnp.zeros_like(z))
        z = z.astype(w_hh.dtype)
        outs.zs[t] = z
        padded_H = previous.shape[-1]
        h_bar = _product(z[:, : len(formula.recurrent_columns) * padded_H], w_hh[...], 1)
        new_cotangents = (h_bar, cell_state_bar) if formula.num_states == 2 else (h_bar + cell_state_bar,)
        for ref, a, unchanged in zip(carry_refs, new_cotangents, state_cotangents, strict=True):
            ref[...] = a if is_valid is None else jnp.where(is_valid[:, :padded_H], a, unchanged)

    lax.fori_loop(0, steps, step, None)

    @pl.when(index == 0)
    def _store_carry() -> None:
        for out, ref in zip(outs.carry, carry_refs, strict=True):
            out[...] = ref[...].astype(out.dtype)


# --- blocks -------------------------------------------------------------------------------------


class _BlockSpecs(NamedTuple):
    """Block specs for the grid (b, i): b is the block of rows, ``chunk_index(i)`` the chunk of time."""

    blocks: Blocks
    chunk_index: Any

    def steps(self, a: Any) -> Any:
        """For (T, B, ...): a chunk of time of a block of rows."""
        if a is None:
            return None
        shape = (self.blocks.chunk, self.blocks.rows, a.shape[-1])
        return pl.BlockSpec(shape, lambda b, i: (self.chunk_index(i), b, ZERO))

    def rows(self, a: Any) -> Any:
        """For (B, ...): a block of rows."""
        return pl.BlockSpec((self.blocks.rows, a.shape[-1]), lambda b, i: (b, ZERO))


def _full_spec(a: Any) -> Any:
    """The whole array in every grid step, which needs only one buffer."""
    if a is None:
        return None
    return pl.BlockSpec(a.shape, lambda b, i: (ZERO, ZERO), pipeline_mode=pl.Buffered(1))


def _call(
    kernel: Any,
    blocks: Blocks,
    sizes: tuple[int, int],
    ins: tuple[Any, Any],
    outs: tuple[Any, Any],
    scratch: Any,
    interpret: Any,
) -> Any:
    """Run the kernel on T steps and B rows. ``ins`` and ``outs`` are pairs: arrays or types, block specs."""
    T, B = sizes
    return pl.pallas_call(
        kernel,
        (outs[0],),
        grid=(pl.cdiv(B, blocks.rows), pl.cdiv(T, blocks.chunk)),
        in_specs=(ins[1],),
        out_specs=(outs[1],),
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=available_vmem()
        ),
        interpret=interpret,
    )(ins[0])[0]


def _product(x: Array, w: Array, axis: int) -> Array:
    """The product of x and w, summed over ``axis`` of w: 0 for x w, 1 for x wᵀ.

    Products of bfloat16 are exact at any precision, and Mosaic accepts only the default precision for them.
    """
    default = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    precision = lax.Precision.HIGHEST if default in ("high", "tensorfloat32", "bfloat16_3x") else None
    if x.dtype != STATE_DTYPE:
        precision = lax.Precision.DEFAULT
    dims = (((1,), (axis,)), ((), ()))
    return lax.dot_general(x, w, dims, precision=precision, preferred_element_type=STATE_DTYPE)


def _round_up(n: int, multiple: int) -> int:
    return pl.cdiv(n, multiple) * multiple


def _pad_units(a: Any, num_columns: int = 1) -> Any:
    """Pad the units of each column on the last axis to a multiple of 128 lanes."""
    size = a.shape[-1] // num_columns
    padding = _round_up(size, LANES) - size
    if not padding:
        return a
    a = a.reshape(*a.shape[:-1], num_columns, size)
    a = jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, padding)])
    return a.reshape(*a.shape[:-2], num_columns * (size + padding))


def _pad_rows(w: Any) -> Any:
    """Pad the rows of w with zeros to a multiple of 128."""
    return jnp.pad(w, [(0, _round_up(w.shape[0], LANES) - w.shape[0]), (0, 0)])


def _unpad_units(a: Any, size: int, num_columns: int = 1) -> Any:
    """The inverse of :func:`_pad_units`."""
    if a.shape[-1] == num_columns * size:
        return a
    return a.reshape(*a.shape[:-1], num_columns, -1)[..., :size].reshape(*a.shape[:-1], num_columns * size)


def _engine(formula: CellFormula, name: str, **options: Any) -> Engine:
    return Engine(
        formula,
        name,
        partial(unsupported_reason, formula),
        partial(forward, formula, **options),
        partial(backward, formula, **options),
    )


ENGINES = {formula: _engine(formula, "TPU kernel") for formula in FORMULAS}
#: Interpreted as an XLA program. Unlike Pallas' TPU simulator it has no side effects, which differentiation,
#: vmap and remat do not support.
INTERPRETED = {formula: _engine(formula, "TPU kernel, interpreted", interpret=True) for formula in FORMULAS}
