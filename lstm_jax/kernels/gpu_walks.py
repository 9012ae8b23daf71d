"""The two walks over time as kernels for Hopper GPUs (Pallas, Mosaic GPU).

Some blocks walk one slice of the batch from the first step to the last. Each block holds the
weights of its own units in shared memory for the whole walk, with the four gates of a unit side by
side, so that everything but the product is local to it. Arrays are transposed: the matrix unit
takes 64 rows at a time, so these are gates, and the batch, which may be small, lies in the columns.
With U units a block and R rows of the batch in a slice,

    forward   z (4U, R) = Wᵀ (4U, H) h (H, R): the block's gates from all units' h
    backward  h̄ (H, R) = W (H, 4U) z̄ (4U, R): the block's part of every unit's h̄

Forward, each block hands its h to all; backward, it fetches the parts that are its own from all,
and adds them up, always in the same order. In a cluster h is written into the shared memory of all
blocks, and the parts are read from there; in a grid, both pass through the main memory, which is to
say the L2 cache. What is handed over has two buffers, taken in turns: who writes one has heard from
all blocks that they read it, because none of them sends its next message before it has.

One warpgroup of each block does all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lstm_jax.kernels.gpu_names import COMPILER_PARAMS, cluster_fence, copy_fence, load, store
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


class Meeting(NamedTuple):
    """Where all blocks of a slice wait for each other, once a step. The n-th meeting: 0, 1, ..."""

    place: Any  # two barriers, or a semaphore for each slice
    at: Any  # the slice
    blocks: int

    def arrive(self, n: Any) -> None:
        """What this block wrote is there for all; its threads have waited for each other."""
        if self.at is None:
            plgpu.barrier_arrive(self.place.at[lax.rem(n, 2)])
        else:
            plgpu.semaphore_signal(self.place.at[self.at], memory_scope="gpu")

    def wait(self, n: Any) -> None:
        """Until all are there."""
        if self.at is None:
            plgpu.barrier_wait(self.place.at[lax.rem(n, 2)])
        else:
            everybody = self.blocks * (n + 1)
            plgpu.semaphore_wait(self.place.at[self.at], everybody, decrement=False, memory_scope="gpu")


def meeting(plan: Plan, exchange: str, s: Any, barriers: Any) -> Meeting | None:
    """None: a block alone waits for nobody."""
    if plan.blocks == 1:
        return None
    if exchange == "semaphore":
        places = pl.get_global(plgpu.SemaphoreType.REGULAR((plan.slices,)))
        return Meeting(places, s, plan.blocks)
    return Meeting(barriers, None, plan.blocks)


def barriers(plan: Plan, exchange: str) -> Any:
    """The two barriers of a meeting."""
    if exchange in ("fence", "barrier") and plan.blocks > 1:
        return plgpu.ClusterBarrier(collective_axes=("block",), num_barriers=2)
    return plgpu.Barrier(num_arrivals=plan.blocks if exchange == "async" else 1, num_barriers=2)


def chosen(plan: Plan, exchange: str | None, fitting: dict[str, tuple[str, ...]]) -> str:
    """The way to exchange that was asked for, or the first that the form has."""
    ways = fitting[plan.form]
    assert exchange in (None, *ways), (plan, exchange)
    return exchange or ways[0]


def kernel(
    body: Callable[..., None], plan: Plan, exchange: str, out: Any, scratch: Any, interpret: Any
) -> Any:
    """``plan.blocks`` blocks for each slice of the batch: a cluster, where they do not meet at semaphores."""
    if exchange == "semaphore":
        mesh: Any = {"grid": (plan.slices, plan.blocks), "grid_names": ("slice", "block")}
    else:
        mesh = {"grid": (plan.slices,), "grid_names": ("slice",)}
        mesh |= {"cluster": (plan.blocks,), "cluster_names": ("block",)}
    return plgpu.kernel(
        body,
        out_type=out,
        scratch_types=scratch,
        compiler_params=COMPILER_PARAMS,
        **mesh,
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
    exchange: str | None = None,
    interpret: Any = None,
) -> list[Array]:
    """hs (T, slices, H, R) compute, cs (T, slices, H, R) float32 and, to be saved, gates as ``us``, float32.

    ``exchange``: how h comes to the other blocks. In a cluster ``"async"``, by asynchronous stores, which
    the barrier of who receives counts, or ``"fence"``, by plain stores, a fence and one arrival a block.
    In a grid by way of hs; the blocks meet at a ``"semaphore"``, or at a ``"barrier"``, which makes them
    a cluster after all.
    """
    ways = {"cluster": ("async", "fence"), "grid": ("semaphore", "barrier")}
    T, (blocks, U, R, slices) = us.shape[0], plan[1:]
    exchange = chosen(plan, exchange, ways)
    H, dtype, spread = plan.width, us.dtype, layout(plan.rows)
    alone, in_grid = blocks == 1, plan.form == "grid"

    def body(*refs: Any) -> None:
        us_ref, weights_ref, bias_ref, h0_ref, c0_ref, *refs = refs
        valid_ref = None if valid is None else refs.pop(0)
        hs_ref, cs_ref, *gates_ref, weights_s, h_s, z_s, loaded, fetched, arrived = refs
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
                barrier, options = arrived.at[lax.rem(t, 2)], {"cluster_dim": "block", "optimized": False}
                for block in others(k, blocks):
                    plgpu.async_store_smem(h, to, barrier, cluster_idx=block, **options)
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

    out = [jax.ShapeDtypeStruct((T, slices, H, R), kind) for kind in (dtype, jnp.float32)]
    if save:
        out.append(jax.ShapeDtypeStruct(us.shape, jnp.float32))
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
    ways = {"cluster": ("barrier",), "grid": ("semaphore", "barrier")}
    T, (blocks, U, R, slices) = gates.shape[0], plan[1:]
    exchange = chosen(plan, exchange, ways)
    H, dtype, spread = plan.width, weights.dtype, layout(plan.rows)
    alone, in_grid = blocks == 1, plan.form == "grid"

    def body(*refs: Any) -> None:
        weights_ref, gates_ref, cs_ref, c0_ref, wanted_h_ref, wanted_c_ref, *refs = refs
        valid_ref = None if valid is None else refs.pop(0)
        zs_ref, h0_ref, out_c0_ref, *refs = refs
        parts_ref = refs.pop(0) if in_grid else None
        weights_s, z_s, *refs = refs
        parts_s = None if in_grid else refs.pop(0)
        loaded, arrived = refs
        s, k = lax.axis_index("slice"), lax.axis_index("block")
        own = pl.ds(pl.multiple_of(k * U, 16), U)
        meet = meeting(plan, exchange, s, arrived)
        zero = plgpu.layout_cast(jnp.zeros((U, R), jnp.float32), spread)

        def inputs(t: Any) -> tuple[Any, ...]:
            """All that a step reads of the main memory."""
            of_gates = tuple(load(gates_ref.at[t, s, k, pl.ds(n * U, U)], spread) for n in range(4))
            return of_gates, *(load(ref.at[t, s, own], spread) for ref in (cs_ref, wanted_h_ref, wanted_c_ref))

        def parts(n: Any, block: Any) -> Any:
            """A block's part of every unit's h̄."""
            buffer = lax.rem(n, 2)
            if parts_ref is not None:
                return parts_ref.at[buffer, s, block]
            return parts_s.at[buffer]

        def fetch(n: Any) -> Array:
            """The own units' h̄: the sum of all blocks' parts."""
            if meet:
                meet.wait(n)
            total = None
            for block in range(blocks):
                part = parts(n, block).at[own]
                if not alone and not in_grid:
                    part = plgpu.cluster_ref(part, {"block": block})
                value = load(part, spread)
                total = value if total is None else total + value
            return total

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
            multiply(weights_s, z_s, parts(n, k))
            plgpu.commit_smem()  # also: all threads are here, done with z_s
            if meet:
                meet.arrive(n)
            for at, z in enumerate(zs):
                store(zs_ref.at[t, s, k, pl.ds(at * U, U)], z)
            kept = zero if is_valid is None else jnp.where(is_valid, zero, dh)
            return fetch(n), kept, where(is_valid, dc_in * f, dc), ahead

        plgpu.copy_gmem_to_smem(weights_ref.at[k], weights_s, loaded)
        plgpu.barrier_wait(loaded)
        received, kept, dc, _ = lax.fori_loop(0, T, step, (zero, zero, zero, inputs(T - 1)))
        store(h0_ref.at[s, own], received + kept)
        store(out_c0_ref.at[s, own], dc)
        if meet and exchange == "barrier":  # nobody leaves while others read of it
            plgpu.commit_smem()
            meet.arrive(T)
            meet.wait(T)

    state = jax.ShapeDtypeStruct((slices, H, R), jnp.float32)
    out = [jax.ShapeDtypeStruct(gates.shape, dtype), state, state]
    scratch = [operand((H, 4 * U), dtype, R), operand((4 * U, R), dtype, R)]
    if in_grid:
        out.append(jax.ShapeDtypeStruct((2, slices, blocks, H, R), jnp.float32))
    else:
        scratch.append(plgpu.SMEM((2, H, R), jnp.float32))
    scratch += [plgpu.Barrier(), barriers(plan, exchange)]
    args = [weights, gates, cs, c0, wanted_h, wanted_c, *([] if valid is None else [valid])]
    return kernel(body, plan, exchange, out, scratch, interpret)(*args)[:3]
