"""The LSTM's two walks as Pallas kernels for TPUs.

A TPU walks the grid of a kernel in order, and what one cell of the grid leaves in scratch memory the
next one finds there. So the grid (blocks of rows, chunks of time) is the time loop: W lies in VMEM
from the first cell to the last, h and c stay in scratch, and while one chunk is computed the next
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

from lstm_jax.cells.common import sigmoid
from lstm_jax.cells.lstm import pointwise_tangent
from lstm_jax.kernels.engine import Engine, Inputs, Saved, States, Tangents, Walk, four, type_like
from lstm_jax.notation import Array, DType
from lstm_jax.schedule import MiB

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


def vmem_bytes(rows: int, H: int, dtype: DType, chunk: int) -> int:
    r"""VMEM that the hungrier of the two kernels needs, in bytes.

    With :math:`H_p` the units filled up to a multiple of 128, e the bytes of the compute dtype, R the
    rows filled up to a multiple of 16, forward with gates saved streams, for each step and row,

    .. math:: 4 e H_p\ (u) + e H_p\ (h) + 4 H_p\ (c) + 16 H_p\ (gates) + 512\ (valid)

    and backward 16 (gates) + 4 (c) + e (h̄) + 4 (c̄) + 4e (z̄) times :math:`H_p`, + 512: the larger one. Each
    streamed block has two buffers, one that is computed with and one that is copied. Beside them lie W
    once, :math:`4 e H_p^2`; of h_0 and c_0, or their cotangents, and of c before the chunk, two buffers
    each; h and c; and what a step keeps for a while, about three times the gates of the rows.

    >>> vmem_bytes(16, 512, jnp.bfloat16, 8) // 1024  # kB
    5664
    """
    H, R, e = _up(H, LANES), _up(rows, TILE), jnp.dtype(dtype).itemsize
    streamed = max(5 * e + 20, 5 * e + 24) * H + 4 * LANES
    return 2 * chunk * R * streamed + 4 * e * H * H + R * H * 4 * (2 * 3 + 2 + 3 * 4)


def vmem() -> int:
    """VMEM that a kernel may take: three quarters of the device's, or ``VMEM`` where there is none."""
    if jax.default_backend() != "tpu":
        return VMEM
    return max(VMEM, pltpu.get_tpu_info().vmem_capacity_bytes * 3 // 4)


def blocks(T: int, B: int, H: int, dtype: DType) -> Blocks | None:
    """The largest blocks of rows, and then the longest chunks, for which the VMEM is enough."""
    rows, parts, enough = B, 1, vmem()
    while True:
        chunk = min(CHUNK, T)
        while chunk and vmem_bytes(rows, H, dtype, chunk) > enough:
            chunk //= 2
        if chunk:
            return Blocks(rows, chunk)
        if rows <= TILE:
            return None
        parts *= 2
        rows = _up(pl.cdiv(B, parts), TILE)


def obstacle(T: int, B: int, H: int, dtype: DType) -> str | None:
    """Why these kernels cannot take such a walk, or None."""
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"the TPU kernel computes in float32 or bfloat16, and this is {jnp.dtype(dtype)}"
    if T * B and blocks(T, B, H, dtype) is None:
        least = vmem_bytes(min(B, TILE), H, dtype, 1)
        return (
            f"{H} units in {jnp.dtype(dtype)} need {least / MiB:.1f} MiB of VMEM, W lying there whole, and "
            f"{vmem() / MiB:.0f} MiB are there"
        )
    return None


# --- forward ------------------------------------------------------------------------------------


def forward(inputs: Inputs, save: bool, *, interpret: Any = False) -> Walk:
    """:func:`lstm_jax.kernels.engine.forward` by a kernel."""
    T, (B, H) = len(inputs.u), inputs.h0.shape
    cut = blocks(T, B, H, inputs.u.dtype)
    assert cut is not None  # obstacle has been asked
    ins = Inputs(
        _wide(inputs.u, 4),
        _wide(_tall(inputs.w_hh), 4),
        None if inputs.bias is None else _wide(inputs.bias[None], 4),
        _wide(inputs.h0),
        _wide(inputs.c0),
        None if inputs.valid is None else inputs.valid[..., None].astype(jnp.int32),
    )
    spec = _Specs(cut, lambda i: i)
    step, row = spec.steps, spec.rows
    in_specs = Inputs(
        step(ins.u), _whole(ins.w_hh), _whole(ins.bias), row(ins.h0), row(ins.c0), step(ins.valid)
    )
    wide = ins.h0.shape[-1]
    like = partial(type_like, inputs.c0)
    outs = Walk(
        like((T, B, wide), inputs.u.dtype),
        like((T, B, wide), STATE),
        like((T, B, 4 * wide), STATE) if save else None,
    )
    states = [pltpu.VMEM((cut.rows, wide), dtype) for dtype in (inputs.u.dtype, STATE)]
    kernel = partial(_forward_kernel, T, cut.chunk)
    walked = _call(kernel, cut, (T, B), (ins, in_specs), (outs, jax.tree.map(step, outs)), states, interpret)
    gates = None if walked.gates is None else _narrow(walked.gates, H, 4)
    return Walk(_narrow(walked.hs, H), _narrow(walked.cs, H), gates)


def _forward_kernel(T: int, chunk: int, ins: Inputs, outs: Walk, h: Any, c: Any) -> None:
    index = pl.program_id(1)

    @pl.when(index == 0)
    def _begin() -> None:
        h[...] = ins.h0[...]
        c[...] = ins.c0[...]

    def step(t: Any, _: None) -> None:
        z = ins.u[t].astype(STATE) + _product(h[...], ins.w_hh[...], 0)
        if ins.bias is not None:
            z += jnp.broadcast_to(ins.bias[...], z.shape)
        i, f, g, o = four(z)
        i, f, g, o = gates = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
        c_t = f * c[...] + i * g
        h_t = (o * jnp.tanh(c_t)).astype(h.dtype)
        if ins.valid is not None:
            valid = jnp.broadcast_to(ins.valid[t], c_t.shape) != 0
            c_t, h_t = jnp.where(valid, c_t, c[...]), jnp.where(valid, h_t, h[...])
        outs.hs[t] = h[...] = h_t
        outs.cs[t] = c[...] = c_t
        if outs.gates is not None:
            outs.gates[t] = jnp.concatenate(gates, axis=-1)

    lax.fori_loop(0, jnp.minimum(chunk, T - index * chunk), step, None)


# --- backward -----------------------------------------------------------------------------------


class _Backward(NamedTuple):
    """What the backward kernel reads."""

    saved: Saved
    c_before: Any  # c_t of the step before the chunk
    wanted: States


def backward(saved: Saved, wanted: States, *, interpret: Any = False) -> Tangents:
    """:func:`lstm_jax.kernels.engine.backward` by a kernel."""
    (T, B, H), compute = saved.cs.shape, saved.w_hh.dtype
    cut = blocks(T, B, H, compute)
    assert cut is not None
    last = pl.cdiv(T, cut.chunk) - 1
    spec = _Specs(cut, lambda i: last - i)
    step, row = spec.steps, spec.rows
    cs = _wide(saved.cs)
    valid = None if saved.valid is None else saved.valid[..., None].astype(jnp.int32)
    saved = Saved(_wide(_tall(saved.w_hh), 4), _wide(saved.gates, 4), cs, _wide(saved.c0), valid)
    ins = _Backward(saved, cs, States(*map(_wide, wanted)))
    wide = cs.shape[-1]
    before = pl.BlockSpec(
        (1, cut.rows, wide), lambda b, i: (jnp.maximum((last - i) * cut.chunk - 1, 0), b, ZERO)
    )
    in_specs = _Backward(
        Saved(_whole(saved.w_hh), step(saved.gates), step(cs), row(saved.c0), step(valid)),
        before,
        States(*map(step, ins.wanted)),
    )
    like = partial(type_like, saved.cs)
    outs = Tangents(like((T, B, 4 * wide), compute), like((B, wide), compute), like((B, wide), STATE))
    out_specs = Tangents(step(outs.zs), row(outs.h0), row(outs.c0))
    states = [pltpu.VMEM((cut.rows, wide), STATE)] * 2
    kernel = partial(_backward_kernel, T, cut.chunk)
    d = _call(kernel, cut, (T, B), (ins, in_specs), (outs, out_specs), states, interpret)
    return Tangents(_narrow(d.zs, H, 4), _narrow(d.h0, H), _narrow(d.c0, H))


def _backward_kernel(T: int, chunk: int, ins: _Backward, outs: Tangents, dh: Any, dc: Any) -> None:
    (w_hh, gates, cs, c0, valid), c_before, wanted = ins
    last = pl.num_programs(1) - 1
    index = last - pl.program_id(1)

    @pl.when(index == last)
    def _begin() -> None:
        dh[...] = jnp.zeros_like(dh)
        dc[...] = jnp.zeros_like(dc)

    steps = jnp.minimum(chunk, T - index * chunk)

    def step(count: Any, _: None) -> None:
        t = steps - 1 - count
        dh_t, dc_t = dh[...] + wanted.hs[t].astype(STATE), dc[...] + wanted.cs[t]
        c = jnp.where(t > 0, cs[jnp.maximum(t - 1, 0)], jnp.where(index > 0, c_before[0], c0[...]))
        # What is linear in (dc, dz), at any point of the right type.
        of_step = partial(pointwise_tangent, four(gates[t]), c, jnp.tanh(cs[t]))
        dc_new, dz = jax.linear_transpose(of_step, c, gates[t])((dh_t, dc_t))
        if valid is not None:
            there = jnp.broadcast_to(valid[t], dz.shape) != 0
            dz = jnp.where(there, dz, jnp.zeros_like(dz))
        dz = dz.astype(w_hh.dtype)
        dh_new = _product(dz, w_hh[...], 1)
        if valid is not None:
            there = jnp.broadcast_to(valid[t], dc_t.shape) != 0
            dh_new, dc_new = jnp.where(there, dh_new, dh_t), jnp.where(there, dc_new, dc_t)
        outs.zs[t] = dz
        dh[...] = dh_new
        dc[...] = dc_new

    lax.fori_loop(0, steps, step, None)

    @pl.when(index == 0)
    def _end() -> None:
        outs.h0[...] = dh[...].astype(outs.h0.dtype)
        outs.c0[...] = dc[...]


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


ENGINE = Engine("TPU kernel", obstacle, forward, backward)
#: By the interpreter that is a program of XLA's: unlike Pallas' simulator of a TPU, it has no side effects,
#: which derivatives, vmap and remat would stumble over.
INTERPRETED = Engine(
    "TPU kernel, interpreted", obstacle, partial(forward, interpret=True), partial(backward, interpret=True)
)
