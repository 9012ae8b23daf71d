"""The walk backward, as a kernel for Hopper GPUs: see :mod:`lstm_jax.kernels.gpu_blocks`."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lstm_jax.kernels.engine import type_like
from lstm_jax.kernels.gpu_blocks import (
    barriers,
    chosen,
    held_array,
    kernel,
    layout,
    meeting,
    multiply,
    operand,
    runs,
    validity,
    where,
)
from lstm_jax.kernels.gpu_names import load, store
from lstm_jax.kernels.gpu_plan import Plan
from lstm_jax.notation import Array

#: Where blocks can meet, by the plan's form.
WAYS = {"cluster": ("barrier",), "grid": ("semaphore", "barrier")}


def backward(
    weights: Array,  # (blocks, H, 4U) compute
    gates: Array,  # (T, slices, blocks, 4U, R) float32
    cs: Array,  # (T, slices, H, R) float32
    c0: Array,  # (slices, H, R) float32
    valid: Array | None,  # (T, slices, R) float32
    wanted_h: Array,  # (T, slices, H, R) compute
    wanted_c: Array,  # (T, slices, H, R) float32
    plan: Plan,
    *,
    exchange: str | None = None,
    interpret: Any = None,
) -> list[Array]:
    """Cotangents of z, as ``gates``, compute; of h_0 and of c_0, (slices, H, R), float32 both.

    ``exchange``: where blocks meet, in a cluster at a ``"barrier"``, in a grid at a ``"semaphore"``, or at
    a ``"barrier"``, which makes them a cluster after all.
    """
    T, (blocks, U, R, slices) = gates.shape[0], plan[1:5]
    exchange = chosen(plan, exchange, WAYS)
    H, dtype, spread = plan.width, weights.dtype, layout(plan.rows)
    alone, in_grid = blocks == 1, plan.form == "grid"

    def body(*refs: Any) -> None:
        weights_ref, gates_ref, cs_ref, c0_ref, wanted_h_ref, wanted_c_ref, *rest = refs
        valid_ref = None if valid is None else rest.pop(0)
        zs_ref, h0_ref, out_c0_ref, all_parts, weights_s, z_s, loaded, arrived = rest
        s, k = lax.axis_index("slice"), lax.axis_index("block")
        own = pl.ds(pl.multiple_of(k * U, 16), U)
        meet = meeting(plan, exchange, s, arrived)
        zero = plgpu.layout_cast(jnp.zeros((U, R), jnp.float32), spread)

        def inputs(t: Any) -> tuple[Any, ...]:
            """All that a step reads of the main memory."""
            of_gates = tuple(load(gates_ref.at[t, s, k, pl.ds(n * U, U)], spread) for n in range(4))
            return of_gates, *(
                load(ref.at[t, s, own], spread) for ref in (cs_ref, wanted_h_ref, wanted_c_ref)
            )

        def parts(n: Any, block: Any) -> Any:
            """A block's part of every unit's h̄."""
            of_turn = all_parts.at[lax.rem(n, 2)]
            return of_turn.at[s, block] if in_grid else of_turn

        def fetch(n: Any) -> Array:
            """The own units' h̄: the sum of all blocks' parts."""
            if meet:
                meet.wait(n)
            return functools.reduce(operator.add, (own_of(parts(n, block), block) for block in range(blocks)))

        def own_of(parts: Any, block: int) -> Array:
            part = parts.at[own]
            if not alone and not in_grid:
                part = plgpu.cluster_ref(part, {"block": block})
            return load(part, spread)

        def step(n: Any, carry: Any) -> Any:
            received, kept, dc, (of_gates, c, dh, wanted) = carry
            t = T - 1 - n
            ahead = inputs(jnp.maximum(t - 1, 0))
            c_before = jnp.where(t > 0, ahead[1], load(c0_ref.at[s, own], spread))
            is_valid = validity(valid_ref, (t, s), U, spread)
            i, f, g, o = of_gates
            dh = dh.astype(jnp.float32) + received + kept
            dc = dc + wanted
            shown = jnp.tanh(c)
            dc_in = dc + dh * o * (1 - shown * shown)
            zs = [
                dc_in * g * i * (1 - i),
                dc_in * c_before * f * (1 - f),
                dc_in * i * (1 - g * g),
                dh * shown * o * (1 - o),
            ]
            zs = [where(is_valid, z, zero).astype(dtype) for z in zs]
            for at, z in enumerate(zs):
                store(z_s.at[pl.ds(at * U, U)], z)
            plgpu.commit_smem()
            multiply(weights_s, z_s, parts(n, k), held)
            plgpu.commit_smem()  # also: all threads are here, done with z_s
            if meet:
                meet.arrive(n)
            for at, z in enumerate(zs):
                store(zs_ref.at[t, s, k, pl.ds(at * U, U)], z)
            kept = zero if is_valid is None else jnp.where(is_valid, zero, dh)
            return fetch(n), kept, where(is_valid, dc_in * f, dc), ahead

        shared = pl.ds(plan.held_back, H - plan.held_back)
        plgpu.copy_gmem_to_smem(weights_ref.at[k, shared], weights_s, loaded)
        held = [held_array(weights_ref.at[k, pl.ds(*run)]) for run in runs(0, plan.held_back, R)]
        plgpu.barrier_wait(loaded)
        received, kept, dc, _ = lax.fori_loop(0, T, step, (zero, zero, zero, inputs(T - 1)))
        store(h0_ref.at[s, own], received + kept)
        store(out_c0_ref.at[s, own], dc)
        if meet and exchange == "barrier":  # nobody leaves while others read of it
            plgpu.commit_smem()
            meet.arrive(T)
            meet.wait(T)

    state = type_like(cs, (slices, H, R), jnp.float32)
    out = [type_like(cs, gates.shape, dtype), state, state]
    scratch = [operand((H - plan.held_back, 4 * U), dtype, R), operand((4 * U, R), dtype, R)]
    if in_grid:  # the parts are the last result, or the first scratch
        out.append(type_like(cs, (2, slices, blocks, H, R), jnp.float32))
    else:
        scratch.insert(0, plgpu.SMEM((2, H, R), jnp.float32))
    scratch += [plgpu.Barrier(), barriers(plan, exchange)]
    args = [weights, gates, cs, c0, wanted_h, wanted_c, *([] if valid is None else [valid])]
    return kernel(body, plan, exchange, out, scratch, interpret)(*args)[:3]
