"""The two walks as Pallas kernels for TPUs.

A TPU walks the grid of a kernel in order, and what one cell of the grid leaves in scratch memory the
next one finds there. So the grid (blocks of rows, chunks of time) is the time loop: W lies in VMEM
from the first cell to the last, the states stay in scratch, and while one chunk is computed the next
one's inputs are copied in and the last one's outputs out. The backward walk takes the chunks from the
last to the first. Units are filled up to whole lanes of 128 with units whose weights are 0, and which
stay 0; rows and steps behind the last one are neither read by others nor written.

``jax_default_matmul_precision`` holds for the products, too; ``"high"``, which Mosaic does not know, is
``"highest"``.
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
from lstm_jax.unrolling.kernels.engine import Engine, Inputs, Saved, Tangents, Walk, type_like
from lstm_jax.unrolling.kernels.formulas import KINDS, LSTM_KIND, Kind, four, parts
from lstm_jax.unrolling.tiling import MiB

LANES = 128
#: Rows of a block are a multiple of this where there is more than one block: a tile of bfloat16.
TILE = 16
#: VMEM where the device does not tell: what a kernel of the oldest ones may have.
VMEM = 16 * MiB
#: Steps of a chunk. What a cell of the grid costs beside its work is shared by so many steps.
CHUNK = 16
STATE = jnp.float32
#: An index of 32 bits also where x64 is on: Mosaic knows no others.
ZERO = np.int32(0)


class Blocks(NamedTuple):
    """How the grid is cut."""

    rows: int  # of the batch in a block
    chunk: int  # steps of a chunk


def vmem_bytes(rows: int, H: int, dtype: DType, chunk: int, kind: Kind = LSTM_KIND) -> int:
    r"""VMEM that backward needs, in bytes; forward streams no more.

    Let :math:`H_p` be the units filled up to a multiple of 128, R the rows filled up to a multiple of 16, and
    e the bytes of one number of the compute dtype. For each step and row, there stream in and out

    .. math:: (16\ (gates) + 4\ (c_t) + e\ (\bar h_t) + 4\ (\bar c_t) + 4e\ (\bar z_t)) H_p + 512\ (valid)

    bytes, a flag taking a row of 128 lanes. Of a streamed block there are two buffers: one is computed
    with while the other is copied. Beside them lie W once, :math:`4 e H_p^2`, and 20 times a state of the
    rows, :math:`4 R H_p`: c_0, its cotangent and c before the chunk in two buffers each, h and c in scratch,
    and three times the gates for what a step keeps for a while. A GRU has three columns in W, and h in the
    place of c: e bytes where c has 4, and no :math:`\bar c_t`.

    >>> vmem_bytes(16, 512, jnp.bfloat16, 8) // 1024  # kB
    7168
    """
    H, R, e = _up(H, LANES), _up(rows, TILE), jnp.dtype(dtype).itemsize
    of_states = e + 8 if kind.count == 2 else 2 * e
    streamed = (16 + of_states + 4 * e) * H + 4 * LANES
    return 2 * chunk * R * streamed + len(kind.of_h) * e * H * H + 4 * R * H * (6 + 2 + 12)


def vmem() -> int:
    """VMEM that a kernel may take: three quarters of the device's, or ``VMEM`` where there is none."""
    if jax.default_backend() != "tpu":
        return VMEM
    return max(VMEM, pltpu.get_tpu_info().vmem_capacity_bytes * 3 // 4)


def blocks(T: int, B: int, H: int, dtype: DType, kind: Kind = LSTM_KIND) -> Blocks | None:
    """The largest blocks of rows, and then the longest chunks, for which the VMEM is enough."""
    rows, parts, enough = B, 1, vmem()
    while True:
        chunk = min(CHUNK, T)
        while chunk and vmem_bytes(rows, H, dtype, chunk, kind) > enough:
            chunk //= 2
        if chunk:
            return Blocks(rows, chunk)
        if rows <= TILE:
            return None
        parts *= 2
        rows = _up(pl.cdiv(B, parts), TILE)


def unsupported_reason(kind: Kind, T: int, B: int, H: int, dtype: DType) -> str | None:
    """Why these kernels cannot take such a walk, or None."""
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"the TPU kernel computes in float32 or bfloat16, and this is {jnp.dtype(dtype)}"
    if T * B and blocks(T, B, H, dtype, kind) is None:
        least = vmem_bytes(min(B, TILE), H, dtype, 1, kind)
        return (
            f"{H} units in {jnp.dtype(dtype)} need {least / MiB:.1f} MiB of VMEM, W lying there whole, and "
            f"{vmem() / MiB:.0f} MiB are there"
        )
    return None


# --- forward ------------------------------------------------------------------------------------


def forward(kind: Kind, inputs: Inputs, save: bool, *, interpret: Any = False) -> Walk:
    """:func:`lstm_jax.unrolling.kernels.reference.forward` by a kernel."""
    T, (B, H) = len(inputs.u), inputs.carry[0].shape
    cut = blocks(T, B, H, inputs.u.dtype, kind)
    assert cut is not None  # obstacle has been asked
    ins = Inputs(
        _wide(inputs.u, len(kind.of_x)),
        _wide(_tall(inputs.w_hh), len(kind.of_h)),
        None if inputs.bias is None else _wide(inputs.bias[None], 4),
        tuple(map(_wide, inputs.carry)),
        None if inputs.valid is None else inputs.valid[..., None].astype(jnp.int32),
    )
    spec = _Specs(cut, lambda i: i)
    step = spec.steps
    first = tuple(map(spec.rows, ins.carry))
    in_specs = Inputs(step(ins.u), _whole(ins.w_hh), _whole(ins.bias), first, step(ins.valid))
    wide = ins.carry[0].shape[-1]
    like = partial(type_like, inputs.carry[0])
    outs = Walk(
        tuple(like((T, B, wide), a.dtype) for a in ins.carry),
        like((T, B, 4 * wide), STATE) if save else None,
    )
    states = [pltpu.VMEM((cut.rows, wide), a.dtype) for a in ins.carry]
    kernel = partial(_forward_kernel, kind, T, cut.chunk)
    scanned = _call(kernel, cut, (T, B), (ins, in_specs), (outs, jax.tree.map(step, outs)), states, interpret)
    gates = None if scanned.gates is None else _narrow(scanned.gates, H, 4)
    return Walk(tuple(_narrow(a, H) for a in scanned.states), gates)


def _forward_kernel(kind: Kind, T: int, chunk: int, ins: Inputs, outs: Walk, *states: Any) -> None:
    index = pl.program_id(1)

    @pl.when(index == 0)
    def _begin() -> None:
        for state, first in zip(states, ins.carry, strict=True):
            state[...] = first[...]

    def step(t: Any, _: None) -> None:
        heard = _product(states[0][...], ins.w_hh[...], 0)
        terms = [parts(ins.u[t].astype(STATE), kind.of_x), parts(heard, kind.of_h)]
        if ins.bias is not None:
            bias = jnp.broadcast_to(ins.bias[...], (heard.shape[0], ins.bias.shape[-1]))
            terms.append(parts(bias, range(4)))
        gates = kind.activate(kind.total(*terms))
        new = kind.update(gates, states[-1][...].astype(STATE))
        for state, a, out in zip(states, new, outs.states, strict=True):
            a = a.astype(state.dtype)
            if ins.valid is not None:
                a = jnp.where(jnp.broadcast_to(ins.valid[t], a.shape) != 0, a, state[...])
            out[t] = state[...] = a
        if outs.gates is not None:
            outs.gates[t] = jnp.concatenate(gates, axis=-1)

    lax.fori_loop(0, jnp.minimum(chunk, T - index * chunk), step, None)


# --- backward -----------------------------------------------------------------------------------


class _Backward(NamedTuple):
    """What the backward kernel reads."""

    saved: Saved
    before: Any  # the memory after the step before the chunk
    wanted: Any


def backward(kind: Kind, saved: Saved, wanted: Any, *, interpret: Any = False) -> Tangents:
    """:func:`lstm_jax.unrolling.kernels.reference.backward` by a kernel."""
    (T, B, H), compute = saved.memory.shape, saved.w_hh.dtype
    cut = blocks(T, B, H, compute, kind)
    assert cut is not None
    last = pl.cdiv(T, cut.chunk) - 1
    spec = _Specs(cut, lambda i: last - i)
    step, row = spec.steps, spec.rows
    memory = _wide(saved.memory)
    valid = None if saved.valid is None else saved.valid[..., None].astype(jnp.int32)
    weights = _wide(_tall(saved.w_hh), len(kind.of_h))
    saved = Saved(weights, _wide(saved.gates, 4), memory, _wide(saved.first), valid)
    ins = _Backward(saved, memory, tuple(map(_wide, wanted)))
    wide = memory.shape[-1]
    before = pl.BlockSpec(
        (1, cut.rows, wide), lambda b, i: (jnp.maximum((last - i) * cut.chunk - 1, 0), b, ZERO)
    )
    in_specs = _Backward(
        Saved(_whole(saved.w_hh), step(saved.gates), step(memory), row(saved.first), step(valid)),
        before,
        tuple(map(step, ins.wanted)),
    )
    like = partial(type_like, saved.memory)
    outs = Tangents(like((T, B, 4 * wide), compute), tuple(like((B, wide), a.dtype) for a in wanted))
    out_specs = Tangents(step(outs.zs), tuple(map(row, outs.carry)))
    states = [pltpu.VMEM((cut.rows, wide), STATE) for _ in wanted]
    kernel = partial(_backward_kernel, kind, T, cut.chunk)
    d = _call(kernel, cut, (T, B), (ins, in_specs), (outs, out_specs), states, interpret)
    return Tangents(_narrow(d.zs, H, 4), tuple(_narrow(a, H) for a in d.carry))


def _backward_kernel(kind: Kind, T: int, chunk: int, ins: _Backward, outs: Tangents, *bars: Any) -> None:
    (w_hh, gates, memory, first, valid), before_chunk, wanted = ins
    last = pl.num_programs(1) - 1
    index = last - pl.program_id(1)

    @pl.when(index == last)
    def _begin() -> None:
        for bar in bars:
            bar[...] = jnp.zeros_like(bar)

    steps = jnp.minimum(chunk, T - index * chunk)

    def step(count: Any, _: None) -> None:
        t = steps - 1 - count
        asked = tuple(bar[...] + a[t].astype(STATE) for bar, a in zip(bars, wanted, strict=True))
        before = jnp.where(index > 0, before_chunk[0], first[...])
        before = jnp.where(t > 0, memory[jnp.maximum(t - 1, 0)], before).astype(STATE)
        zs, of_memory = kind.cotangent(four(gates[t]), before, memory[t].astype(STATE), asked)
        z = jnp.concatenate(zs, axis=-1)
        there = None if valid is None else jnp.broadcast_to(valid[t], z.shape) != 0
        if there is not None:
            z = jnp.where(there, z, jnp.zeros_like(z))
        z = z.astype(w_hh.dtype)
        outs.zs[t] = z
        units = before.shape[-1]
        of_h = _product(z[:, : len(kind.of_h) * units], w_hh[...], 1)
        new = (of_h, of_memory) if kind.count == 2 else (of_h + of_memory,)
        for bar, a, old in zip(bars, new, asked, strict=True):
            bar[...] = a if there is None else jnp.where(there[:, :units], a, old)

    lax.fori_loop(0, steps, step, None)

    @pl.when(index == 0)
    def _end() -> None:
        for out, bar in zip(outs.carry, bars, strict=True):
            out[...] = bar[...].astype(out.dtype)


# --- blocks -------------------------------------------------------------------------------------


class _Specs(NamedTuple):
    """Which blocks of an array the cell (b, i) of the grid works on; ``at`` tells the chunk."""

    cut: Blocks
    at: Any

    def steps(self, a: Any) -> Any:
        """Of (T, B, ...): a chunk of time of a block of rows."""
        if a is None:
            return None
        return pl.BlockSpec((self.cut.chunk, self.cut.rows, a.shape[-1]), lambda b, i: (self.at(i), b, ZERO))

    def rows(self, a: Any) -> Any:
        """Of (B, ...): a block of rows."""
        return pl.BlockSpec((self.cut.rows, a.shape[-1]), lambda b, i: (b, ZERO))


def _whole(a: Any) -> Any:
    """All of it, always, and so in one buffer."""
    if a is None:
        return None
    return pl.BlockSpec(a.shape, lambda b, i: (ZERO, ZERO), pipeline_mode=pl.Buffered(1))


def _call(
    kernel: Any,
    cut: Blocks,
    sizes: tuple[int, int],
    ins: tuple[Any, Any],
    outs: tuple[Any, Any],
    scratch: Any,
    interpret: Any,
) -> Any:
    """The kernel on T steps and B rows; what goes in and comes out, each with its blocks."""
    T, B = sizes
    return pl.pallas_call(
        kernel,
        (outs[0],),
        grid=(pl.cdiv(B, cut.rows), pl.cdiv(T, cut.chunk)),
        in_specs=(ins[1],),
        out_specs=(outs[1],),
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem()
        ),
        interpret=interpret,
    )(ins[0])[0]


def _product(x: Array, w: Array, axis: int) -> Array:
    """x times w or, summed over the other axis of w, times w transposed.

    Products of bfloat16 are exact at any precision, and Mosaic takes no other than the default for them.
    """
    told = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    precision = lax.Precision.HIGHEST if told in ("high", "tensorfloat32", "bfloat16_3x") else None
    if x.dtype != STATE:
        precision = lax.Precision.DEFAULT
    dims = (((1,), (axis,)), ((), ()))
    return lax.dot_general(x, w, dims, precision=precision, preferred_element_type=STATE)


def _up(n: int, multiple: int) -> int:
    return pl.cdiv(n, multiple) * multiple


def _wide(a: Any, parts: int = 1) -> Any:
    """Each of the parts that lie side by side on the last axis, filled up to whole lanes."""
    size = a.shape[-1] // parts
    more = _up(size, LANES) - size
    if not more:
        return a
    a = a.reshape(*a.shape[:-1], parts, size)
    a = jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, more)])
    return a.reshape(*a.shape[:-2], parts * (size + more))


def _tall(w: Any) -> Any:
    """Rows of zeros for the units that fill up the lanes."""
    return jnp.pad(w, [(0, _up(w.shape[0], LANES) - w.shape[0]), (0, 0)])


def _narrow(a: Any, size: int, parts: int = 1) -> Any:
    """The parts without what filled them up."""
    if a.shape[-1] == parts * size:
        return a
    return a.reshape(*a.shape[:-1], parts, -1)[..., :size].reshape(*a.shape[:-1], parts * size)


def _engine(kind: Kind, name: str, **how: Any) -> Engine:
    return Engine(
        kind,
        name,
        partial(unsupported_reason, kind),
        partial(forward, kind, **how),
        partial(backward, kind, **how),
    )


ENGINES = {kind: _engine(kind, "TPU kernel") for kind in KINDS}
#: By the interpreter that is a program of XLA's: unlike Pallas' simulator of a TPU, it has no side effects,
#: which derivatives, vmap and remat would stumble over.
INTERPRETED = {kind: _engine(kind, "TPU kernel, interpreted", interpret=True) for kind in KINDS}
