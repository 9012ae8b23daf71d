"""The walk forward, as a kernel for Hopper GPUs: see :mod:`lstm_jax.experimental.hopper_blocks`."""

from __future__ import annotations

from collections.abc import Sequence
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
    multiply_pieces,
    operand,
    others,
    validity,
    where,
)
from lstm_jax.experimental.hopper_names import cluster_fence, copy_fence, load, store
from lstm_jax.experimental.hopper_plan import Plan
from lstm_jax.unrolling.kernels.engine import type_like
from lstm_jax.unrolling.kernels.formulas import Kind

#: How h can come to the other blocks, by the plan's form.
WAYS = {"cluster": ("async", "fence"), "grid": ("semaphore", "barrier")}


def forward(
    kind: Kind,
    us: Array,  # (T, slices, blocks, X U, R) compute: the columns that hear the input
    weights: Array,  # (blocks, G, H) compute
    bias: Array,  # (blocks, 4U, R) float32
    carry: tuple[Array, ...],  # h compute and, of an LSTM, c float32: (slices, H, R)
    valid: Array | None,  # (T, slices, R) float32
    plan: Plan,
    *,
    save: bool,
    exchange: str | None = None,
    interpret: Any = None,
) -> list[Array]:
    """The states, (T, slices, H, R) each, and, to be saved, gates (T, slices, blocks, 4U, R) float32.

    ``exchange``: how h comes to the other blocks. In a cluster ``"async"``, by asynchronous stores, which
    the barrier of who receives counts, or ``"fence"``, by plain stores, a fence and one arrival a block.
    In a grid by way of hs; the blocks meet at a ``"semaphore"``, or at a ``"barrier"``, which makes them
    a cluster after all.
    """
    T, (blocks, U, R, slices) = us.shape[0], plan[1:5]
    exchange = chosen(plan, exchange, WAYS)
    H, dtype, spread = plan.width, us.dtype, layout(plan.rows)
    alone, in_grid = blocks == 1, plan.form == "grid"
    buffers = 2 if plan.piece or not in_grid else 1

    def body(*refs: Any) -> None:
        us_ref, weights_ref, bias_ref, *rest = refs
        carry_refs, rest = rest[: kind.count], rest[kind.count :]
        valid_ref = None if valid is None else rest.pop(0)
        states_refs, rest = rest[: kind.count], rest[kind.count :]
        *gates_ref, weights_s, h_s, z_s, loaded, fetched, arrived = rest
        h0_ref, hs_ref = carry_refs[0], states_refs[0]
        s, k = lax.axis_index("slice"), lax.axis_index("block")
        own = pl.ds(pl.multiple_of(k * U, 16), U)
        meet = meeting(plan, exchange, s, arrived)

        def columns(begin: int, count: int) -> list[Any]:
            """The weights of a piece: their part in registers, then that in shared memory."""
            of_held = min(max(plan.held - begin, 0), count)
            after = pl.ds(begin + of_held - plan.held, count - of_held)
            return [
                *([held_array(weights_ref.at[k, :, pl.ds(begin, of_held)])] if of_held else []),
                *([weights_s.at[:, after]] if of_held < count else []),
            ]

        def parts(ref: Any, columns: Sequence[int] = range(4)) -> dict[int, Array]:
            """Columns that lie one after the other."""
            return {at: load(ref.at[pl.ds(n * U, U)], spread) for n, at in enumerate(columns)}

        def buffer(t: Any) -> Any:
            """Where the h is that step t reads, in a cluster."""
            return h_s.at[lax.rem(t, 2)]

        def send(h: Array, t: Any) -> None:
            """h_t to all blocks, the own one included."""
            if in_grid:
                store(hs_ref.at[t, s, own], h)
                copy_fence()
            else:
                send_within(buffer(t + 1).at[own], h, arrived.at[lax.rem(t, 2)])
            plgpu.commit_smem()  # also: all threads are here, done with z_s
            if meet and exchange != "async":
                meet.arrive(t)

        def send_within(to: Any, h: Array, counts: Any) -> None:
            """h to the same place of all blocks of the cluster."""
            if alone:
                store(to, h)
            elif exchange == "fence":
                for block in others(k, blocks):
                    store(plgpu.cluster_ref(to, {"block": block}), h)
                cluster_fence()
            else:
                for block in others(k, blocks):
                    plgpu.async_store_smem(
                        h, to, counts, cluster_idx=block, cluster_dim="block", optimized=False
                    )

        def receive(t: Any) -> None:
            """All of what step t reads is there."""
            if meet:
                meet.wait(t - 1)
                plgpu.commit_smem()  # what others wrote here, the matrix unit reads
            if in_grid:
                copy_fence()

        def product(t: Any) -> None:
            """The weights times the h that step t reads."""

            def fetch(n: int) -> None:
                at, count = plan.pieces[n]
                to, counts = h_s.at[n % 2, pl.ds(0, count)], fetched.at[n % 2]

                def copy(h: Any) -> None:
                    plgpu.copy_gmem_to_smem(h.at[pl.ds(at, count)], to, counts)

                pl.when(t == 0)(lambda: copy(h0_ref.at[s]))
                pl.when(t > 0)(lambda: copy(hs_ref.at[t - 1, s]))

            if in_grid:
                multiply_pieces(pieces, h_s, z_s, fetch, fetched)
            else:
                multiply(weights_s, buffer(t), z_s)

        def step(t: Any, carry: Any) -> Any:
            states, u = carry
            if meet:
                pl.when(t > 0)(lambda: receive(t))
            is_valid = validity(valid_ref, (t, s), U, spread)
            ahead = parts(us_ref.at[jnp.minimum(t + 1, T - 1), s, k], kind.of_x)
            product(t)
            plgpu.commit_smem()
            u = {at: a.astype(jnp.float32) for at, a in u.items()}
            gates = kind.activate(kind.total(parts(z_s, kind.of_h), u, biases), lax.logistic)
            updated = kind.update(gates, states[-1].astype(jnp.float32))
            new = [where(is_valid, a.astype(b.dtype), b) for a, b in zip(updated, states, strict=True)]
            send(new[0], t)
            for at, (ref, state) in enumerate(zip(states_refs, new, strict=True)):
                if at > 0 or not in_grid:  # there h has been sent by way of its reference
                    store(ref.at[t, s, own], state)
            for ref in gates_ref:
                for n, gate in enumerate(gates):
                    store(ref.at[t, s, k, pl.ds(n * U, U)], gate)
            return tuple(new), ahead

        shared = pl.ds(plan.held, H - plan.held)
        plgpu.copy_gmem_to_smem(weights_ref.at[k, :, shared], weights_s, loaded)
        if not in_grid:
            plgpu.copy_gmem_to_smem(h0_ref.at[s], h_s.at[0], fetched.at[0])
        pieces = [columns(*piece) for piece in plan.pieces] if in_grid else []
        biases = parts(bias_ref.at[k])
        states = tuple(load(ref.at[s, own], spread) for ref in carry_refs)
        first = states, parts(us_ref.at[0, s, k], kind.of_x)
        plgpu.barrier_wait(loaded)
        if not in_grid:
            plgpu.barrier_wait(fetched.at[0])
        lax.fori_loop(0, T, step, first)
        if meet:  # nobody leaves while others write to it
            meet.wait(T - 1)

    out = [type_like(a, (T, slices, H, R), a.dtype) for a in carry]
    if save:
        out.append(type_like(carry[0], (T, slices, blocks, 4 * U, R), jnp.float32))
    scratch = [
        operand((plan.gate_rows, H - plan.held), dtype, R),
        operand((buffers, plan.piece or H, R), dtype, R),
        plgpu.SMEM((plan.gate_rows, R), jnp.float32),
        plgpu.Barrier(),
        plgpu.Barrier(num_barriers=2),
        barriers(plan, exchange),
    ]
    args = [us, weights, bias, *carry, *([] if valid is None else [valid])]
    return kernel(body, plan, exchange, out, scratch, interpret)(*args)
