"""The walk forward, as a kernel for Hopper GPUs: see :mod:`lstm_jax.kernels.gpu_blocks`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lstm_jax.kernels.engine import type_like
from lstm_jax.kernels.gpu_blocks import (
    barriers,
    chosen,
    kernel,
    layout,
    meeting,
    multiply,
    operand,
    others,
    validity,
    where,
)
from lstm_jax.kernels.gpu_names import cluster_fence, copy_fence, load, store
from lstm_jax.kernels.gpu_plan import Plan
from lstm_jax.notation import Array

#: How h can come to the other blocks, by the plan's form.
WAYS = {"cluster": ("async", "fence"), "grid": ("semaphore", "barrier")}


def forward(
    us: Array,  # (T, slices, blocks, 4U, R) compute
    weights: Array,  # (blocks, 4U, H) compute
    bias: Array,  # (blocks, 4U, R) float32
    h0: Array,  # (slices, H, R) compute
    c0: Array,  # (slices, blocks, U, R) float32
    valid: Array | None,  # (T, slices, R) float32
    plan: Plan,
    *,
    save: bool,
    exchange: str | None = None,
    interpret: Any = None,
) -> list[Array]:
    """hs (T, slices, H, R) compute, cs (T, slices, H, R) float32 and, to be saved, gates as ``us``, float32.

    ``exchange``: how h comes to the other blocks. In a cluster ``"async"``, by asynchronous stores, which
    the barrier of who receives counts, or ``"fence"``, by plain stores, a fence and one arrival a block.
    In a grid by way of hs; the blocks meet at a ``"semaphore"``, or at a ``"barrier"``, which makes them
    a cluster after all.
    """
    T, (blocks, U, R, slices) = us.shape[0], plan[1:]
    exchange = chosen(plan, exchange, WAYS)
    H, dtype, spread = plan.width, us.dtype, layout(plan.rows)
    alone, in_grid = blocks == 1, plan.form == "grid"

    def body(*refs: Any) -> None:
        us_ref, weights_ref, bias_ref, h0_ref, c0_ref, *rest = refs
        valid_ref = None if valid is None else rest.pop(0)
        hs_ref, cs_ref, *gates_ref, weights_s, h_s, z_s, loaded, fetched, arrived = rest
        s, k = lax.axis_index("slice"), lax.axis_index("block")
        own = pl.ds(pl.multiple_of(k * U, 16), U)
        meet = meeting(plan, exchange, s, arrived)

        def four(ref: Any) -> tuple[Array, ...]:
            return tuple(load(ref.at[pl.ds(n * U, U)], spread) for n in range(4))

        def buffer(t: Any) -> Any:
            """Where the h is that step t reads."""
            return h_s.at[0 if in_grid else lax.rem(t, 2)]

        def send(h: Array, t: Any) -> None:
            """h_t to all blocks, the own one included."""
            to = buffer(t + 1).at[own]
            if in_grid:
                store(hs_ref.at[t, s, own], h)
                copy_fence()
            elif alone:
                store(to, h)
            elif exchange == "fence":
                for block in others(k, blocks):
                    store(plgpu.cluster_ref(to, {"block": block}), h)
                cluster_fence()
            else:
                counts = arrived.at[lax.rem(t, 2)]
                for block in others(k, blocks):
                    plgpu.async_store_smem(
                        h, to, counts, cluster_idx=block, cluster_dim="block", optimized=False
                    )
            plgpu.commit_smem()  # also: all threads are here, done with z_s
            if meet and exchange != "async":
                meet.arrive(t)

        def receive(t: Any) -> None:
            """All of what step t reads."""
            if meet:
                meet.wait(t - 1)
                plgpu.commit_smem()  # what others wrote here, the matrix unit reads
            if in_grid:
                copy_fence()
                plgpu.copy_gmem_to_smem(hs_ref.at[t - 1, s], buffer(t), fetched)
                plgpu.barrier_wait(fetched)

        def step(t: Any, carry: Any) -> Any:
            c, h, u = carry
            if meet:
                pl.when(t > 0)(lambda: receive(t))
            is_valid = validity(valid_ref, (t, s), U, spread)
            ahead = four(us_ref.at[jnp.minimum(t + 1, T - 1), s, k])
            multiply(weights_s, buffer(t), z_s)
            plgpu.commit_smem()
            z = [a + b.astype(jnp.float32) + bias for a, b, bias in zip(four(z_s), u, biases, strict=True)]
            gates = i, f, g, o = lax.logistic(z[0]), lax.logistic(z[1]), jnp.tanh(z[2]), lax.logistic(z[3])
            c = where(is_valid, f * c + i * g, c)
            h = where(is_valid, (o * jnp.tanh(c)).astype(dtype), h)
            send(h, t)
            if not in_grid:
                store(hs_ref.at[t, s, own], h)
            store(cs_ref.at[t, s, own], c)
            for ref in gates_ref:
                for n, gate in enumerate(gates):
                    store(ref.at[t, s, k, pl.ds(n * U, U)], gate)
            return c, h, ahead

        plgpu.copy_gmem_to_smem(weights_ref.at[k], weights_s, loaded)
        plgpu.copy_gmem_to_smem(h0_ref.at[s], h_s.at[0], fetched)
        biases = four(bias_ref.at[k])
        first = load(c0_ref.at[s, k], spread), load(h0_ref.at[s, own], spread), four(us_ref.at[0, s, k])
        plgpu.barrier_wait(loaded)
        plgpu.barrier_wait(fetched)
        lax.fori_loop(0, T, step, first)
        if meet:  # nobody leaves while others write to it
            meet.wait(T - 1)

    out = [type_like(c0, (T, slices, H, R), kind) for kind in (dtype, jnp.float32)]
    if save:
        out.append(type_like(c0, us.shape, jnp.float32))
    scratch = [
        operand((4 * U, H), dtype, R),
        operand((1 if in_grid else 2, H, R), dtype, R),
        plgpu.SMEM((4 * U, R), jnp.float32),
        plgpu.Barrier(),
        plgpu.Barrier(),
        barriers(plan, exchange),
    ]
    args = [us, weights, bias, h0, c0, *([] if valid is None else [valid])]
    return kernel(body, plan, exchange, out, scratch, interpret)(*args)
