"""The backward kernel for Hopper GPUs: see :mod:`lstm_jax.experimental.hopper_blocks`."""

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
    choose_exchange,
    exchange_barriers,
    kernel,
    load_to_registers,
    load_valid,
    matmul_operand,
    multiply,
    register_layout,
    row_tiles,
    select_valid,
    slice_barrier,
)
from lstm_jax.experimental.hopper_names import load, store
from lstm_jax.experimental.hopper_plan import Plan
from lstm_jax.unrolling.kernels.engine import type_like
from lstm_jax.unrolling.kernels.formulas import CellFormula

#: How the blocks synchronize, by the plan's form. The first one is the default.
EXCHANGES = {"cluster": ("barrier",), "grid": ("semaphore", "barrier")}


def backward(
    formula: CellFormula,
    weights: Array,  # (blocks, H, G) compute
    gates: Array,  # (T, slices, blocks, 4U, R) float32
    cell_states: Array,  # (T, slices, H, R) float32; for a GRU compute
    initial: Array,  # (slices, H, R): the cell state before the first step
    valid: Array | None,  # (T, slices, R) float32
    cotangents: tuple[Array, ...],  # of h compute and, for an LSTM, of c float32: (T, slices, H, R)
    plan: Plan,
    *,
    exchange: str | None = None,
    interpret: Any = None,
) -> list[Array]:
    """Cotangents of z, shaped like ``gates``, compute; of the first states, (slices, H, R), float32.

    ``exchange`` is how blocks synchronize. A cluster uses a ``"barrier"``. A grid uses a ``"semaphore"``, or
    a ``"barrier"``, which requires launching it as a cluster.
    """
    T, (blocks, U, R, slices) = gates.shape[0], plan[1:5]
    exchange = choose_exchange(plan, exchange, EXCHANGES)
    H, dtype, layout = plan.padded_H, weights.dtype, register_layout(plan.rows)
    single_block, in_grid = blocks == 1, plan.form == "grid"

    def body(*refs: Any) -> None:
        weights_ref, gates_ref, cell_states_ref, initial_ref, *rest = refs
        cotangent_refs, rest = rest[: formula.num_states], rest[formula.num_states :]
        valid_ref = None if valid is None else rest.pop(0)
        zs_ref, *out_refs, partial_sums, weights_s, z_s, loaded, arrived = rest
        s, k = lax.axis_index("slice"), lax.axis_index("block")
        own = pl.ds(pl.multiple_of(k * U, 16), U)  # this block's units
        barrier = slice_barrier(plan, exchange, s, arrived)
        zero = plgpu.layout_cast(jnp.zeros((U, R), jnp.float32), layout)

        def load_step(t: Any) -> tuple[Any, ...]:
            """Gates, cell state and output cotangents of step t, from global memory."""
            gates = tuple(load(gates_ref.at[t, s, k, pl.ds(n * U, U)], layout) for n in range(4))
            new, *outputs = (load(ref.at[t, s, own], layout) for ref in (cell_states_ref, *cotangent_refs))
            return gates, new, tuple(outputs)

        def partial_sum(n: Any, block: Any) -> Any:
            """A block's contribution to the h̄ of all units, in round n."""
            buffer = partial_sums.at[lax.rem(n, 2)]
            return buffer.at[s, block] if in_grid else buffer

        def fetch(n: Any) -> Array:
            """The h̄ of this block's units: the sum of all blocks' contributions."""
            if barrier:
                barrier.wait(n)
            terms = (load_own(partial_sum(n, block), block) for block in range(blocks))
            return functools.reduce(operator.add, terms)

        def load_own(ref: Any, block: int) -> Array:
            """A block's contribution to this block's units."""
            ref = ref.at[own]
            if not single_block and not in_grid:
                ref = plgpu.cluster_ref(ref, {"block": block})
            return load(ref, layout)

        def step(n: Any, carry: Any) -> Any:
            h_bar, passed, (gates, new, outputs) = carry
            t = T - 1 - n
            next_inputs = load_step(jnp.maximum(t - 1, 0))
            previous = jnp.where(t > 0, next_inputs[1], load(initial_ref.at[s, own], layout))
            is_valid = load_valid(valid_ref, (t, s), U, layout)
            state_cotangents = [a.astype(jnp.float32) + b for a, b in zip(outputs, passed, strict=True)]
            state_cotangents[0] = state_cotangents[0] + h_bar
            previous, new = (a.astype(jnp.float32) for a in (previous, new))
            z_bars, cell_state_bar = formula.cotangent(gates, previous, new, tuple(state_cotangents))
            zs = [select_valid(is_valid, z, zero).astype(dtype) for z in z_bars]
            for at, column in enumerate(formula.recurrent_columns):
                store(z_s.at[pl.ds(at * U, U)], zs[column])
            plgpu.commit_smem()
            multiply(weights_s, z_s, partial_sum(n, k), in_registers)
            plgpu.commit_smem()  # also waits until all threads have finished with z_s
            if barrier:
                barrier.arrive(n)
            for at, z in enumerate(zs):
                store(zs_ref.at[t, s, k, pl.ds(at * U, U)], z)
            direct = [zero] * (formula.num_states - 1) + [cell_state_bar]  # not by way of the product
            passed = tuple(
                select_valid(is_valid, a, b) for a, b in zip(direct, state_cotangents, strict=True)
            )
            return fetch(n), passed, next_inputs

        in_smem = pl.ds(plan.register_rows, H - plan.register_rows)
        plgpu.copy_gmem_to_smem(weights_ref.at[k, in_smem], weights_s, loaded)
        tiles = row_tiles(0, plan.register_rows, R)
        in_registers = [load_to_registers(weights_ref.at[k, pl.ds(*tile)]) for tile in tiles]
        if (padding := plan.gate_rows - len(formula.recurrent_columns) * U) > 0:  # stays 0 in all steps
            zeros = plgpu.layout_cast(jnp.zeros((padding, R), dtype), layout)
            store(z_s.at[pl.ds(plan.gate_rows - padding, padding)], zeros)
            plgpu.commit_smem()
        plgpu.barrier_wait(loaded)
        h_bar, passed, _ = lax.fori_loop(0, T, step, (zero, (zero,) * formula.num_states, load_step(T - 1)))
        for ref, cotangent in zip(out_refs, (h_bar + passed[0], *passed[1:]), strict=True):
            store(ref.at[s, own], cotangent)
        if barrier and exchange == "barrier":  # do not exit while other blocks still read from this one
            plgpu.commit_smem()
            barrier.arrive(T)
            barrier.wait(T)

    state = type_like(cell_states, (slices, H, R), jnp.float32)
    out = [type_like(cell_states, gates.shape, dtype), *[state] * formula.num_states]
    scratch = [
        matmul_operand((H - plan.register_rows, plan.gate_rows), dtype, R),
        matmul_operand((plan.gate_rows, R), dtype, R),
    ]
    if in_grid:  # the partial sums are the last output; in a cluster they are the first scratch
        out.append(type_like(cell_states, (2, slices, blocks, H, R), jnp.float32))
    else:
        scratch.insert(0, plgpu.SMEM((2, H, R), jnp.float32))
    scratch += [plgpu.Barrier(), exchange_barriers(plan, exchange)]
    args = [weights, gates, cell_states, initial, *cotangents, *([] if valid is None else [valid])]
    return kernel(body, plan, exchange, out, scratch, interpret)(*args)[: 1 + formula.num_states]
