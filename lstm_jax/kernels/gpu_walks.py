"""The two walks over time as kernels for Hopper GPUs (Pallas, Mosaic GPU).

A cluster of blocks walks one slice of the batch from the first step to the last. Each block holds
the weights of its own units in shared memory for the whole walk, with the four gates of a unit side
by side, so that everything but the product is local to it. Arrays are transposed: the matrix unit
takes 64 rows at a time, so these are gates, and the batch, which may be small, lies in the columns.
With U units a block and R rows of the batch in a slice,

    forward   z (4U, R) = Wᵀ (4U, H) h (H, R): the block's gates from all units' h
    backward  h̄ (H, R) = W (H, 4U) z̄ (4U, R): the block's part of every unit's h̄

Forward, each block writes its h into the shared memory of all blocks; backward, it fetches the
parts that are its own from all, and adds them up, always in the same order. Both keep two buffers
and two barriers, taken in turns: who writes a buffer has heard from all blocks that they read it,
because no block sends its next message before it has. One warpgroup does all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lstm_jax.kernels.gpu_names import COMPILER_PARAMS, cluster_fence, load, store
from lstm_jax.kernels.gpu_plan import Plan
from lstm_jax.notation import Array

#: Elements of one accumulator: 64 registers of each thread.
ACCUMULATED = 8192


def layout(rows: int) -> Any:
    """How an array (units, rows) is spread over 128 threads: two neighbours in a row each.

    A warp writes 64 neighbours of 2 bytes: all 32 banks of shared memory once.
    """
    if rows == 64:
        tiling, dims = ((4, 64), (2,)), {"warp_dims": (-3,), "lane_dims": (-2,)}
    else:
        tiling = ((256 // rows, rows), (64 // rows, rows), (2,))
        dims = {"warp_dims": (-5,), "lane_dims": (-3, -2)}
    return plgpu.Layout.TILED(plgpu.Tiling(tiling), **dims, vector_dim=-1)


def operand(shape: tuple[int, ...], dtype: Any, rows: int) -> Any:
    """Shared memory that the matrix unit reads; both of its operands are swizzled alike."""
    transforms = plgpu.TilingTransform((8, rows)), plgpu.SwizzleTransform(2 * rows)
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def multiply(a: Any, b: Any, out: Any) -> None:
    """out = a b, as many rows at a time as the registers hold."""
    (M, _), rows = a.shape, b.shape[-1]
    most = max(64, ACCUMULATED // rows)

    def product(acc: Any, part: Any) -> Array:
        plgpu.wgmma(acc, part, b)
        return acc[...]

    for at in range(0, M, most):
        count = min(most, M - at)
        part = a.at[pl.ds(at, count)]
        value = pl.run_scoped(lambda acc, part=part: product(acc, part), plgpu.ACC((count, rows), jnp.float32))
        store(out.at[pl.ds(at, count)], value)


def kernel(body: Callable[..., None], plan: Plan, out: Any, scratch: Any, interpret: Any) -> Any:
    """One cluster of ``plan.blocks`` blocks for each slice of the batch."""
    return plgpu.kernel(
        body,
        out_type=out,
        scratch_types=scratch,
        grid=(plan.slices,),
        grid_names=("slice",),
        cluster=(plan.blocks,),
        cluster_names=("block",),
        compiler_params=COMPILER_PARAMS,
        **({} if interpret is None else {"interpret": interpret}),
    )


def where(valid: Array | None, new: Array, old: Array) -> Array:
    return new if valid is None else jnp.where(valid, new, old)


def validity(valid_ref: Any, at: tuple[Any, ...], units: int, spread: Any) -> Array | None:
    """Whether a step is valid, for each unit and row."""
    if valid_ref is None:
        return None
    flags = load(valid_ref.at[at], spread.reduce(0))
    shape = (units, flags.shape[0])
    return plgpu.layout_cast(lax.broadcast_in_dim(flags, shape, (1,)), spread) > 0


def others(block: Any, count: int) -> Iterator[Any]:
    """All blocks, beginning with the own one, so that not all turn to the same one at once."""
    for n in range(count):
        yield lax.rem(block + n, count)


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
    exchange: str = "async",
    interpret: Any = None,
) -> list[Array]:
    """hs (T, slices, H, R) compute, cs (T, slices, H, R) float32 and, to be saved, gates as ``us``, float32.

    ``exchange``: how h comes to the other blocks. ``"async"``: by asynchronous stores, which the
    barrier of who receives counts. ``"fence"``: by plain stores, a fence and one arrival a block.
    """
    T = us.shape[0]
    blocks, U, R, slices = plan
    H, dtype, spread = plan.width, us.dtype, layout(plan.rows)
    alone, sends = blocks == 1, exchange == "async"

    def body(*refs: Any) -> None:
        refs = list(refs)
        us_ref, weights_ref, bias_ref, h0_ref, c0_ref = refs[:5]
        valid_ref = None if valid is None else refs[5]
        hs_ref, cs_ref, *gates_ref, weights_s, h_s, z_s, loaded, arrived = refs[5 + (valid is not None) :]
        s, k = lax.axis_index("slice"), lax.axis_index("block")
        own = pl.ds(pl.multiple_of(k * U, 16), U)

        def four(ref: Any) -> tuple[Array, ...]:
            return tuple(load(ref.at[pl.ds(n * U, U)], spread) for n in range(4))

        plgpu.copy_gmem_to_smem(weights_ref.at[k], weights_s, loaded)
        plgpu.copy_gmem_to_smem(h0_ref.at[s], h_s.at[0], loaded)
        biases = four(bias_ref.at[k])
        c, h = load(c0_ref.at[s, k], spread), load(h0_ref.at[s, own], spread)
        plgpu.barrier_wait(loaded)

        def send(h: Array, buffer: Any) -> None:
            """h to all blocks, the own one included."""
            if alone:
                store(h_s.at[buffer], h)
            for block in () if alone else others(k, blocks):
                to = h_s.at[buffer, own]
                if sends:
                    plgpu.async_store_smem(
                        h, to, arrived.at[buffer], cluster_idx=block, cluster_dim="block", optimized=False
                    )
                else:
                    store(plgpu.cluster_ref(to, {"block": block}), h)
            if not alone and not sends:
                cluster_fence()
            plgpu.commit_smem()  # also: all threads are done with z_s
            if not alone and not sends:
                plgpu.barrier_arrive(arrived.at[buffer])

        def receive(buffer: Any) -> None:
            if not alone:
                plgpu.barrier_wait(arrived.at[buffer])
                plgpu.commit_smem()  # what others wrote here, the matrix unit reads

        def step(t: Any, carry: Any) -> Any:
            c, h, u = carry
            now, next_ = lax.rem(t, 2), lax.rem(t + 1, 2)
            if not alone:
                pl.when(t > 0)(lambda: receive(now))
            is_valid = validity(valid_ref, (t, s), U, spread)
            ahead = four(us_ref.at[jnp.minimum(t + 1, T - 1), s, k])
            multiply(weights_s, h_s.at[now], z_s)
            plgpu.commit_smem()
            z = [a + b.astype(jnp.float32) + bias for a, b, bias in zip(four(z_s), u, biases, strict=True)]
            gates = i, f, g, o = lax.logistic(z[0]), lax.logistic(z[1]), jnp.tanh(z[2]), lax.logistic(z[3])
            c = where(is_valid, f * c + i * g, c)
            h = where(is_valid, (o * jnp.tanh(c)).astype(dtype), h)
            send(h, next_)
            store(hs_ref.at[t, s, own], h)
            store(cs_ref.at[t, s, own], c)
            for ref in gates_ref:
                for n, gate in enumerate(gates):
                    store(ref.at[t, s, k, pl.ds(n * U, U)], gate)
            return c, h, ahead

        lax.fori_loop(0, T, step, (c, h, four(us_ref.at[0, s, k])))
        receive(T % 2)  # nobody leaves while others write to it

    out = [jax.ShapeDtypeStruct((T, slices, H, R), kind) for kind in (dtype, jnp.float32)]
    if save:
        out.append(jax.ShapeDtypeStruct(us.shape, jnp.float32))
    together = plgpu.ClusterBarrier(collective_axes=("block",), num_barriers=2)
    scratch = [
        operand((4 * U, H), dtype, R),
        operand((2, H, R), dtype, R),
        plgpu.SMEM((4 * U, R), jnp.float32),
        plgpu.Barrier(num_arrivals=2),
        plgpu.Barrier(num_arrivals=blocks, num_barriers=2) if alone or sends else together,
    ]
    args = [us, weights, bias, h0, c0, *([] if valid is None else [valid])]
    return kernel(body, plan, out, scratch, interpret)(*args)


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
    interpret: Any = None,
) -> list[Array]:
    """Cotangents of z, as ``gates``, compute; of h_0 and of c_0, (slices, H, R), float32 both."""
    T = gates.shape[0]
    blocks, U, R, slices = plan
    H, dtype, spread = plan.width, weights.dtype, layout(plan.rows)
    alone = blocks == 1

    def body(*refs: Any) -> None:
        refs = list(refs)
        weights_ref, gates_ref, cs_ref, c0_ref, wanted_h_ref, wanted_c_ref = refs[:6]
        valid_ref = None if valid is None else refs[6]
        zs_ref, h0_ref, out_c0_ref, weights_s, z_s, parts_s, loaded, ready = refs[6 + (valid is not None) :]
        s, k = lax.axis_index("slice"), lax.axis_index("block")
        own = pl.ds(pl.multiple_of(k * U, 16), U)

        zero = plgpu.layout_cast(jnp.zeros((U, R), jnp.float32), spread)

        plgpu.copy_gmem_to_smem(weights_ref.at[k], weights_s, loaded)
        plgpu.barrier_wait(loaded)

        def inputs(t: Any) -> tuple[Any, ...]:
            """All that a step reads of the main memory."""
            of_gates = tuple(load(gates_ref.at[t, s, k, pl.ds(n * U, U)], spread) for n in range(4))
            return of_gates, *(load(ref.at[t, s, own], spread) for ref in (cs_ref, wanted_h_ref, wanted_c_ref))

        def fetch(buffer: Any) -> Array:
            """The own units' h̄: the sum of all blocks' parts."""
            if not alone:
                plgpu.barrier_wait(ready.at[buffer])
            total = None
            for block in range(blocks):
                part = parts_s.at[buffer, own]
                value = load(part if alone else plgpu.cluster_ref(part, {"block": block}), spread)
                total = value if total is None else total + value
            return total

        def step(n: Any, carry: Any) -> Any:
            received, kept, dc, (of_gates, c, dh, wanted) = carry
            t = T - 1 - n
            before = jnp.maximum(t - 1, 0)
            ahead = inputs(before)
            # c_{t-1}: what the next step reads as its c_t, or c_0
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
            buffer = lax.rem(n, 2)
            multiply(weights_s, z_s, parts_s.at[buffer])
            plgpu.commit_smem()
            if not alone:
                plgpu.barrier_arrive(ready.at[buffer])
            for at, z in enumerate(zs):
                store(zs_ref.at[t, s, k, pl.ds(at * U, U)], z)
            kept = zero if is_valid is None else jnp.where(is_valid, zero, dh)
            return fetch(buffer), kept, where(is_valid, dc_in * f, dc), ahead

        received, kept, dc, _ = lax.fori_loop(0, T, step, (zero, zero, zero, inputs(T - 1)))
        store(h0_ref.at[s, own], received + kept)
        store(out_c0_ref.at[s, own], dc)
        if not alone:  # nobody leaves while others read of it
            plgpu.barrier_arrive(ready.at[T % 2])
            plgpu.barrier_wait(ready.at[T % 2])

    state = jax.ShapeDtypeStruct((slices, H, R), jnp.float32)
    out = [jax.ShapeDtypeStruct(gates.shape, dtype), state, state]
    together = plgpu.ClusterBarrier(collective_axes=("block",), num_barriers=2)
    scratch = [
        operand((H, 4 * U), dtype, R),
        operand((4 * U, R), dtype, R),
        plgpu.SMEM((2, H, R), jnp.float32),
        plgpu.Barrier(),
        plgpu.Barrier(num_barriers=2) if alone else together,
    ]
    args = [weights, gates, cs, c0, wanted_h, wanted_c, *([] if valid is None else [valid])]
    return kernel(body, plan, out, scratch, interpret)(*args)
