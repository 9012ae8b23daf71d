"""The forward kernel for Hopper GPUs: see :mod:`lstm_jax.experimental.hopper_blocks`."""

from __future__ import annotations

from collections.abc import Sequence
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
    multiply_pieces,
    register_layout,
    rotated_blocks,
    select_valid,
    slice_barrier,
)
from lstm_jax.experimental.hopper_names import cluster_fence, copy_fence, load, store
from lstm_jax.experimental.hopper_plan import Plan
from lstm_jax.unrolling.kernels.engine import type_like
from lstm_jax.unrolling.kernels.formulas import CellFormula, sum_terms

#: How h reaches the other blocks, by the plan's form. The first one is the default.
EXCHANGES = {"cluster": ("async", "fence"), "grid": ("semaphore", "barrier")}


def forward(
    formula: CellFormula,
    us: Array,  # (T, slices, blocks, X U, R) compute: the columns with input weights
    weights: Array,  # (blocks, G, H) compute
    bias: Array,  # (blocks, 4U, R) float32
    carry: tuple[Array, ...],  # h compute and, for an LSTM, c float32: (slices, H, R)
    valid: Array | None,  # (T, slices, R) float32
    plan: Plan,
    *,
    save: bool,
    exchange: str | None = None,
    interpret: Any = None,
) -> list[Array]:
    """The states, (T, slices, H, R) each, and, if saved, the gates, (T, slices, blocks, 4U, R) float32.

    ``exchange`` is how h reaches the other blocks. In a cluster, ``"async"`` uses asynchronous stores, which
    the receiver's barrier counts; ``"fence"`` uses plain stores, a fence and one arrival per block. In a
    grid, h is stored to the output. The blocks synchronize by a ``"semaphore"``, or by a ``"barrier"``, which
    requires launching them as a cluster.
    """
    T, (blocks, U, R, slices) = us.shape[0], plan[1:5]
    exchange = choose_exchange(plan, exchange, EXCHANGES)
    H, dtype, layout = plan.padded_H, us.dtype, register_layout(plan.rows)
    single_block, in_grid = blocks == 1, plan.form == "grid"
    buffers = 2 if plan.piece or not in_grid else 1

    def body(*refs: Any) -> None:
        us_ref, weights_ref, bias_ref, *rest = refs
        carry_refs, rest = rest[: formula.num_states], rest[formula.num_states :]
        valid_ref = None if valid is None else rest.pop(0)
        states_refs, rest = rest[: formula.num_states], rest[formula.num_states :]
        *gates_ref, weights_s, h_s, z_s, loaded, fetched, arrived = rest
        h0_ref, hs_ref = carry_refs[0], states_refs[0]
        s, k = lax.axis_index("slice"), lax.axis_index("block")
        own = pl.ds(pl.multiple_of(k * U, 16), U)  # this block's units
        barrier = slice_barrier(plan, exchange, s, arrived)

        def weight_operands(begin: int, count: int) -> list[Any]:
            """The weights of a piece: the part in registers, then the part in shared memory."""
            in_registers = min(max(plan.register_columns - begin, 0), count)
            in_smem = pl.ds(begin + in_registers - plan.register_columns, count - in_registers)
            operands = []
            if in_registers:
                operands.append(load_to_registers(weights_ref.at[k, :, pl.ds(begin, in_registers)]))
            if in_registers < count:
                operands.append(weights_s.at[:, in_smem])
            return operands

        def load_columns(ref: Any, indices: Sequence[int] = range(4)) -> dict[int, Array]:
            """The columns with these indices, which are contiguous in ``ref``."""
            return {index: load(ref.at[pl.ds(n * U, U)], layout) for n, index in enumerate(indices)}

        def buffer(t: Any) -> Any:
            """The buffer of the h that step t reads, in a cluster."""
            return h_s.at[lax.rem(t, 2)]

        def send(h: Array, t: Any) -> None:
            """Send h_t to all blocks, including this one."""
            if in_grid:
                store(hs_ref.at[t, s, own], h)
                copy_fence()
            else:
                send_in_cluster(buffer(t + 1).at[own], h, arrived.at[lax.rem(t, 2)])
            plgpu.commit_smem()  # also waits until all threads have read z_s
            if barrier and exchange != "async":
                barrier.arrive(t)

        def send_in_cluster(ref: Any, h: Array, arrivals: Any) -> None:
            """Store h to the same place in all blocks of the cluster."""
            if single_block:
                store(ref, h)
            elif exchange == "fence":
                for block in rotated_blocks(k, blocks):
                    store(plgpu.cluster_ref(ref, {"block": block}), h)
                cluster_fence()
            else:
                for block in rotated_blocks(k, blocks):
                    plgpu.async_store_smem(
                        h, ref, arrivals, cluster_idx=block, cluster_dim="block", optimized=False
                    )

        def receive(t: Any) -> None:
            """Wait until the h that step t reads has arrived."""
            if barrier:
                barrier.wait(t - 1)
                plgpu.commit_smem()  # make the other blocks' writes visible to the matrix unit
            if in_grid:
                copy_fence()

        def multiply_h(t: Any) -> None:
            """Store the product of the weights and the h that step t reads in z_s."""

            def fetch(n: int) -> None:
                begin, count = plan.pieces[n]
                destination, arrivals = h_s.at[n % 2, pl.ds(0, count)], fetched.at[n % 2]

                def copy(h: Any) -> None:
                    plgpu.copy_gmem_to_smem(h.at[pl.ds(begin, count)], destination, arrivals)

                pl.when(t == 0)(lambda: copy(h0_ref.at[s]))
                pl.when(t > 0)(lambda: copy(hs_ref.at[t - 1, s]))

            if in_grid:
                multiply_pieces(pieces, h_s, z_s, fetch, fetched)
            else:
                multiply(weights_s, buffer(t), z_s)

        def step(t: Any, carry: Any) -> Any:
            states, u = carry
            if barrier:
                pl.when(t > 0)(lambda: receive(t))
            is_valid = load_valid(valid_ref, (t, s), U, layout)
            next_u = load_columns(us_ref.at[jnp.minimum(t + 1, T - 1), s, k], formula.input_columns)
            multiply_h(t)
            plgpu.commit_smem()
            u = {index: a.astype(jnp.float32) for index, a in u.items()}
            z = sum_terms(load_columns(z_s, formula.recurrent_columns), u, biases)
            gates = formula.activate(z, lax.logistic)
            updated = formula.update(gates, states[-1].astype(jnp.float32))
            new = [select_valid(is_valid, a.astype(b.dtype), b) for a, b in zip(updated, states, strict=True)]
            send(new[0], t)
            for n, (ref, state) in enumerate(zip(states_refs, new, strict=True)):
                if n > 0 or not in_grid:  # in a grid, send has stored h
                    store(ref.at[t, s, own], state)
            for ref in gates_ref:
                for n, gate in enumerate(gates):
                    store(ref.at[t, s, k, pl.ds(n * U, U)], gate)
            return tuple(new), next_u

        in_smem = pl.ds(plan.register_columns, H - plan.register_columns)
        plgpu.copy_gmem_to_smem(weights_ref.at[k, :, in_smem], weights_s, loaded)
        if not in_grid:
            plgpu.copy_gmem_to_smem(h0_ref.at[s], h_s.at[0], fetched.at[0])
        pieces = [weight_operands(*piece) for piece in plan.pieces] if in_grid else []
        biases = load_columns(bias_ref.at[k])
        states = tuple(load(ref.at[s, own], layout) for ref in carry_refs)
        initial = states, load_columns(us_ref.at[0, s, k], formula.input_columns)
        plgpu.barrier_wait(loaded)
        if not in_grid:
            plgpu.barrier_wait(fetched.at[0])
        lax.fori_loop(0, T, step, initial)
        if barrier:  # do not exit while other blocks still write to this one
            barrier.wait(T - 1)

    out = [type_like(a, (T, slices, H, R), a.dtype) for a in carry]
    if save:
        out.append(type_like(carry[0], (T, slices, blocks, 4 * U, R), jnp.float32))
    scratch = [
        matmul_operand((plan.gate_rows, H - plan.register_columns), dtype, R),
        matmul_operand((buffers, plan.piece or H, R), dtype, R),
        plgpu.SMEM((plan.gate_rows, R), jnp.float32),
        plgpu.Barrier(),
        plgpu.Barrier(num_barriers=2),
        exchange_barriers(plan, exchange),
    ]
    args = [us, weights, bias, *carry, *([] if valid is None else [valid])]
    return kernel(body, plan, exchange, out, scratch, interpret)(*args)
