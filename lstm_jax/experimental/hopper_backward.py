"""The walk backward, as a kernel for Hopper GPUs: see :mod:`lstm_jax.experimental.hopper_blocks`."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lstm_jax._types import Array
from lstm_jax.experimental.hopper_blocks import (
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
from lstm_jax.experimental.hopper_names import load, store
from lstm_jax.experimental.hopper_plan import Plan
from lstm_jax.unrolling.kernels.engine import type_like
from lstm_jax.unrolling.kernels.formulas import Kind

#: Where blocks can meet, by the plan's form.
WAYS = {"cluster": ("barrier",), "grid": ("semaphore", "barrier")}


def backward(
    kind: Kind,
    weights: Array,  # (blocks, H, G) compute
    gates: Array,  # (T, slices, blocks, 4U, R) float32
    memory: Array,  # (T, slices, H, R) float32, of a GRU compute
    first: Array,  # (slices, H, R), the memory before
    valid: Array | None,  # (T, slices, R) float32
    wanted: tuple[Array, ...],  # of h compute and, of an LSTM, of c float32: (T, slices, H, R)
    plan: Plan,
    *,
    exchange: str | None = None,
    interpret: Any = None,
) -> list[Array]:
    """Cotangents of z, as ``gates``, compute; of the first states, (slices, H, R), float32.

    ``exchange``: where blocks meet, in a cluster at a ``"barrier"``, in a grid at a ``"semaphore"``, or at
    a ``"barrier"``, which makes them a cluster after all.
    """
    T, (blocks, U, R, slices) = gates.shape[0], plan[1:5]
    exchange = chosen(plan, exchange, WAYS)
    H, dtype, spread = plan.width, weights.dtype, layout(plan.rows)
    alone, in_grid = blocks == 1, plan.form == "grid"

    def body(*refs: Any) -> None:
        weights_ref, gates_ref, memory_ref, first_ref, *rest = refs
        wanted_refs, rest = rest[: kind.count], rest[kind.count :]
        valid_ref = None if valid is None else rest.pop(0)
        zs_ref, *out_refs, all_parts, weights_s, z_s, loaded, arrived = rest
        s, k = lax.axis_index("slice"), lax.axis_index("block")
        own = pl.ds(pl.multiple_of(k * U, 16), U)
        meet = meeting(plan, exchange, s, arrived)
        zero = plgpu.layout_cast(jnp.zeros((U, R), jnp.float32), spread)

        def inputs(t: Any) -> tuple[Any, ...]:
            """All that a step reads of the main memory."""
            of_gates = tuple(load(gates_ref.at[t, s, k, pl.ds(n * U, U)], spread) for n in range(4))
            after, *asked = (load(ref.at[t, s, own], spread) for ref in (memory_ref, *wanted_refs))
            return of_gates, after, tuple(asked)

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
            received, kept, (of_gates, after, asked) = carry
            t = T - 1 - n
            ahead = inputs(jnp.maximum(t - 1, 0))
            before = jnp.where(t > 0, ahead[1], load(first_ref.at[s, own], spread))
            is_valid = validity(valid_ref, (t, s), U, spread)
            bars = [a.astype(jnp.float32) + b for a, b in zip(asked, kept, strict=True)]
            bars[0] = bars[0] + received
            before, after = (a.astype(jnp.float32) for a in (before, after))
            z_bars, of_memory = kind.cotangent(of_gates, before, after, tuple(bars))
            zs = [where(is_valid, z, zero).astype(dtype) for z in z_bars]
            for at, column in enumerate(kind.of_h):
                store(z_s.at[pl.ds(at * U, U)], zs[column])
            plgpu.commit_smem()
            multiply(weights_s, z_s, parts(n, k), held)
            plgpu.commit_smem()  # also: all threads are here, done with z_s
            if meet:
                meet.arrive(n)
            for at, z in enumerate(zs):
                store(zs_ref.at[t, s, k, pl.ds(at * U, U)], z)
            by_itself = [zero] * (kind.count - 1) + [of_memory]
            kept = tuple(where(is_valid, a, b) for a, b in zip(by_itself, bars, strict=True))
            return fetch(n), kept, ahead

        shared = pl.ds(plan.held_back, H - plan.held_back)
        plgpu.copy_gmem_to_smem(weights_ref.at[k, shared], weights_s, loaded)
        held = [held_array(weights_ref.at[k, pl.ds(*run)]) for run in runs(0, plan.held_back, R)]
        if (filling := plan.gate_rows - len(kind.of_h) * U) > 0:  # zero for as long as the walk lasts
            nothing = plgpu.layout_cast(jnp.zeros((filling, R), dtype), spread)
            store(z_s.at[pl.ds(plan.gate_rows - filling, filling)], nothing)
            plgpu.commit_smem()
        plgpu.barrier_wait(loaded)
        received, kept, _ = lax.fori_loop(0, T, step, (zero, (zero,) * kind.count, inputs(T - 1)))
        for ref, bar in zip(out_refs, (received + kept[0], *kept[1:]), strict=True):
            store(ref.at[s, own], bar)
        if meet and exchange == "barrier":  # nobody leaves while others read of it
            plgpu.commit_smem()
            meet.arrive(T)
            meet.wait(T)

    state = type_like(memory, (slices, H, R), jnp.float32)
    out = [type_like(memory, gates.shape, dtype), *[state] * kind.count]
    scratch = [
        operand((H - plan.held_back, plan.gate_rows), dtype, R),
        operand((plan.gate_rows, R), dtype, R),
    ]
    if in_grid:  # the parts are the last result, or the first scratch
        out.append(type_like(memory, (2, slices, blocks, H, R), jnp.float32))
    else:
        scratch.insert(0, plgpu.SMEM((2, H, R), jnp.float32))
    scratch += [plgpu.Barrier(), barriers(plan, exchange)]
    args = [weights, gates, memory, first, *wanted, *([] if valid is None else [valid])]
    return kernel(body, plan, exchange, out, scratch, interpret)(*args)[: 1 + kind.count]
