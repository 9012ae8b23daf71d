"""The code around the Hopper kernels: the plan, the array layouts, and products in pieces."""

from argparse import Namespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle_kernels import problem

from lstm_jax.experimental import hopper, hopper_blocks, hopper_names
from lstm_jax.experimental.hopper_plan import (
    AVAILABLE_SMEM,
    MAX_IN_REGISTERS,
    NUM_SMS,
    SLICE_ROWS,
    Plan,
    grid_plan,
    make_plan,
    smem_bytes,
    units_per_block,
)
from lstm_jax.unrolling.kernels.formulas import FORMULAS, LSTM_FORMULA

# --- the plan ------------------------------------------------------------------------------------


@pytest.mark.parametrize("H", [1, 63, 64, 65, 200, 512, 513, 768, 1024, 1400, 1536, 1900, 1984])
@pytest.mark.parametrize("B", [0, 1, 16, 17, 64, 100, 700])
@pytest.mark.parametrize("recurrent_columns", [4, 3])
def test_plan_invariants(recurrent_columns, B, H):
    plan = make_plan(B, H, "float16", recurrent_columns)
    form, blocks, units, rows, slices, piece, register_columns, register_rows, _ = plan
    assert max(smem_bytes(plan)) <= AVAILABLE_SMEM
    assert H <= plan.padded_H and units % 16 == 0 and plan.padded_H % 64 == 0
    assert plan.gate_rows % 64 == 0 and 0 <= plan.gate_rows - recurrent_columns * units < 64
    assert rows in SLICE_ROWS and (form == "grid") == (H > 512)
    assert plan.recurrent_columns == recurrent_columns
    B = max(B, 1)  # kernels do not run with B = 0
    launches = -(-B // plan.launch_rows)
    assert (launches * slices - launches) * rows < B  # the fewest slices for this number of launches
    if form == "cluster":
        assert launches == 1 and not piece and not register_columns and not register_rows
        return
    assert blocks * slices <= NUM_SMS  # all blocks are resident, because they wait for each other
    assert launches == -(-B // (NUM_SMS // blocks * rows))
    assert launches == 1 or rows == 64 or grid_plan(blocks, 2 * rows) is None
    assert rows == 16 or -(-B // (rows // 2)) > NUM_SMS // blocks
    assert max(register_columns, register_rows) <= MAX_IN_REGISTERS[rows]
    assert register_columns % 64 == register_rows % 64 == 0
    begins, counts = zip(*plan.pieces, strict=True)
    assert begins == tuple(sum(counts[:n]) for n in range(len(counts))) and sum(counts) == plan.padded_H
    assert all(count % 64 == 0 for count in counts) and register_columns <= counts[0] and len(counts) != 2


def test_units_per_block_is_minimal():
    for H in (1, 64, 65, 512):
        for blocks in (1, 2, 4, 8, 16):
            units = units_per_block(H, blocks)
            assert (units - max(16, 64 // blocks)) * blocks < H <= units * blocks


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ((1, 64, "float32"), "got float32"),
        ((1, 1985, "float16"), "the largest supported H is 1984"),
    ],
)
def test_reasons(sizes, reason):
    assert reason in make_plan(*sizes)


def test_without_a_device_the_engines_give_a_reason():
    assert "Hopper" in hopper.ENGINES[LSTM_FORMULA].unsupported_reason(1, 1, 64, jnp.dtype("float16"))
    sizes = (1, 1, 512, jnp.dtype("float16"))
    reason = hopper.INTERPRETED[LSTM_FORMULA].unsupported_reason(*sizes)
    assert ("16 blocks" if hopper_names.INTERPRETER else "jax 0.12") in reason


def test_plans_for_devices_with_fewer_multiprocessors():
    device = Namespace(platform="gpu", compute_capability="9.0", device_kind="a GPU", core_count=NUM_SMS)
    with mock.patch.object(jax, "devices", lambda: [device]):
        assert hopper.ENGINES[LSTM_FORMULA].unsupported_reason(1, 700, 1024, jnp.dtype("float16")) is None
        assert hopper.supported_plan(LSTM_FORMULA, 64, 1024, "float16")[:5] == ("grid", 64, 16, 32, 2)
        device.core_count = 114  # room for one slice
        assert hopper.supported_plan(LSTM_FORMULA, 64, 1024, "float16")[:5] == ("grid", 64, 16, 64, 1)
        assert hopper.supported_plan(LSTM_FORMULA, 200, 1024, "float16").launch_rows == 64
        reason = hopper.ENGINES[LSTM_FORMULA].unsupported_reason(1, 16, 1900, jnp.dtype("float16"))
        assert "H=1900 requires 120 resident blocks" in reason and "114 at once" in reason
        device.core_count = 8  # a partition of a GPU: no cluster of 16
        reason = hopper.ENGINES[LSTM_FORMULA].unsupported_reason(1, 16, 512, jnp.dtype("float16"))
        assert "8 at once" in reason
        assert hopper.supported_plan(LSTM_FORMULA, 16, 256, "float16").blocks == 4


# --- layouts -------------------------------------------------------------------------------------

PLAN = Plan("cluster", 2, 32, 16, 2)


def test_layouts_round_trip():
    rng = np.random.default_rng(0)
    states, gates = jnp.asarray(rng.normal(size=(3, 17, 50))), jnp.asarray(rng.normal(size=(3, 17, 200)))
    assert np.array_equal(hopper.unpack_states(hopper.pack_states(states, PLAN), 17, 50), states)
    packed = hopper.pack_gates(gates, PLAN)
    assert packed.shape == (3, 2, 2, 128, 16)
    assert np.array_equal(hopper.unpack_gates(packed, 17, 50), gates)
    # Gate 2 of unit 40 (unit 8 of block 1), batch row 16 (row 0 of slice 1).
    assert np.array_equal(packed[:, 1, 1, 2 * 32 + 8, 0], gates[:, 16, 2 * 50 + 40])


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.name)
def test_the_product_of_packed_weights(formula):
    inputs, _ = problem(formula, 1, 5, 50, "bfloat16")
    num_columns = len(formula.recurrent_columns)
    plan, h0 = PLAN._replace(recurrent_columns=num_columns), inputs.carry[0].astype(jnp.float32)
    weights = hopper.pack_weights(inputs.w_hh, plan).astype(jnp.float32)
    assert weights.shape == (2, 128, 64)  # for a GRU 3 x 32 rows, padded to 128
    z = jnp.einsum("kgh,shr->skgr", weights, hopper.pack_states(h0, plan))[:, :, : num_columns * 32]
    expected = hopper.pack_gates((h0 @ inputs.w_hh.astype(jnp.float32))[None], plan, num_columns)[0]
    assert np.allclose(z, expected, atol=1e-5)


# --- products in pieces, with an asynchronous matrix unit and asynchronous copies -----------------


class Memory:
    """A NumPy array with the indexing of a kernel reference."""

    def __init__(self, array):
        self.array, self.shape, self.at = array, array.shape, self

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        return Memory(self.array[tuple(slice(*i) if isinstance(i, tuple) else i for i in index)])


class DeferredUnit:
    """Executes products when they are waited for and, if ``late``, copies, too.

    The interpreter executes both at once, so it cannot find a buffer that is overwritten too early.
    """

    def __init__(self, late):
        self.late, self.products, self.copies, self.accumulator = late, [], {0: [], 1: []}, None

    def wgmma(self, acc, a, b):
        self.products.append((a.array, b.array))

    def wgmma_wait(self, left):
        while len(self.products) > left:
            a, b = self.products.pop(0)
            self.accumulator += a @ b

    def copy(self, destination, array, barrier):
        self.copies[barrier].append((destination, array))
        if not self.late:
            destination[...] = array

    def barrier_wait(self, barrier):
        destination, array = self.copies[barrier].pop(0)
        if self.late:
            destination[...] = array

    def run_scoped(self, body, shape):
        self.accumulator, unit = np.zeros(shape), self

        class Accumulator:
            def __getitem__(self, _):
                unit.wgmma_wait(0)
                return unit.accumulator

        return body(Accumulator())


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("counts", [[5], [3, 3, 3], [3, 3, 3, 2], [2, 2, 2, 2, 1]])
def test_no_piece_is_overwritten_before_it_is_multiplied(counts, late):
    rng, unit = np.random.default_rng(0), DeferredUnit(late)
    a, b = rng.normal(size=(4, sum(counts))), rng.normal(size=(sum(counts), 2))
    begins = [sum(counts[:n]) for n in range(len(counts))]
    columns = [Memory(a[:, at : at + count]) for at, count in zip(begins, counts, strict=True)]
    # The first two pieces have two operands, as if a part of the weights were in registers.
    pieces = [[Memory(piece.array[:, :1]), Memory(piece.array[:, 1:])] for piece in columns[:2]]
    pieces += [[piece] for piece in columns[2:]]
    buffers, out = np.full((min(2, len(counts)), max(counts), 2), np.nan), []

    def fetch(n):
        begin, count = begins[n], counts[n]
        unit.copy(buffers[n % 2, :count], b[begin : begin + count], n % 2)

    plgpu = {name: getattr(unit, name) for name in ("wgmma", "wgmma_wait", "barrier_wait")}
    plgpu = Namespace(**plgpu, commit_smem=lambda: None, ACC=lambda shape, dtype: shape)
    pl = Namespace(run_scoped=unit.run_scoped, ds=lambda at, count: (at, at + count))
    with mock.patch.multiple(hopper_blocks, plgpu=plgpu, pl=pl, store=lambda _, value: out.append(value)):
        barriers = Namespace(at={0: 0, 1: 1})
        hopper_blocks.multiply_pieces(pieces, Memory(buffers), None, fetch, barriers)
    assert np.allclose(out[0], a @ b) and not any(unit.copies.values())
