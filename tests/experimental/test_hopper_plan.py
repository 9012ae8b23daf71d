"""What surrounds the kernels for Hopper GPUs: the plan, the layouts, products that come in pieces."""

from argparse import Namespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle_kernels import problem

from lstm_jax.experimental import hopper, hopper_blocks, hopper_names
from lstm_jax.experimental.hopper_plan import HELD, ROOM, ROWS, SMS, Plan, grid, plan, smem_bytes, units_of
from lstm_jax.unrolling.kernels.formulas import KINDS, LSTM_KIND

# --- the plan ------------------------------------------------------------------------------------


@pytest.mark.parametrize("H", [1, 63, 64, 65, 200, 512, 513, 768, 1024, 1400, 1536, 1900, 1984])
@pytest.mark.parametrize("B", [0, 1, 16, 17, 64, 100, 700])
@pytest.mark.parametrize("hear", [4, 3])
def test_a_plan_holds_what_it_promises(hear, B, H):
    found = plan(B, H, "float16", hear)
    form, blocks, units, rows, slices, piece, held, held_back, _ = found
    assert max(smem_bytes(found)) <= ROOM
    assert H <= found.width and units % 16 == 0 and found.width % 64 == 0
    assert found.gate_rows % 64 == 0 and 0 <= found.gate_rows - hear * units < 64
    assert rows in ROWS and (form == "grid") == (H > 512)
    assert found.hear == hear
    B = max(B, 1)  # no rows are not walked by a kernel
    launches = -(-B // found.launch)
    assert (launches * slices - launches) * rows < B  # as few slices as so many launches can have
    if form == "cluster":
        assert launches == 1 and not piece and not held and not held_back
        return
    assert blocks * slices <= SMS  # blocks that wait for each other
    assert launches == -(-B // (SMS // blocks * rows))
    assert launches == 1 or rows == 64 or grid(blocks, 2 * rows) is None
    assert rows == 16 or -(-B // (rows // 2)) > SMS // blocks
    assert max(held, held_back) <= HELD[rows] and held % 64 == held_back % 64 == 0
    begins, counts = zip(*found.pieces, strict=True)
    assert begins == tuple(sum(counts[:n]) for n in range(len(counts))) and sum(counts) == found.width
    assert all(count % 64 == 0 for count in counts) and held <= counts[0] and len(counts) != 2


def test_fewer_units_would_not_do():
    for H in (1, 64, 65, 512):
        for blocks in (1, 2, 4, 8, 16):
            units = units_of(H, blocks)
            assert (units - max(16, 64 // blocks)) * blocks < H <= units * blocks


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ((1, 64, "float32"), "this is float32"),
        ((1, 1985, "float16"), "the kernels end at H=1984"),
    ],
)
def test_reasons(sizes, reason):
    assert reason in plan(*sizes)


def test_no_device_no_kernel():
    assert "Hopper" in hopper.ENGINES[LSTM_KIND].unsupported_reason(1, 1, 64, jnp.dtype("float16"))
    sizes = (1, 1, 512, jnp.dtype("float16"))
    reason = hopper.INTERPRETED[LSTM_KIND].unsupported_reason(*sizes)
    assert ("16 blocks" if hopper_names.INTERPRETER else "jax 0.12") in reason


def test_what_a_device_has_room_for():
    device = Namespace(platform="gpu", compute_capability="9.0", device_kind="a GPU", core_count=SMS)
    with mock.patch.object(jax, "devices", lambda: [device]):
        assert hopper.ENGINES[LSTM_KIND].unsupported_reason(1, 700, 1024, jnp.dtype("float16")) is None
        assert hopper.planned(LSTM_KIND, 64, 1024, "float16")[:5] == ("grid", 64, 16, 32, 2)
        device.core_count = 114  # one slice at a time
        assert hopper.planned(LSTM_KIND, 64, 1024, "float16")[:5] == ("grid", 64, 16, 64, 1)
        assert hopper.planned(LSTM_KIND, 200, 1024, "float16").launch == 64
        reason = hopper.ENGINES[LSTM_KIND].unsupported_reason(1, 16, 1900, jnp.dtype("float16"))
        assert "H=1900 takes 120 blocks" in reason and "114 at once" in reason
        device.core_count = 8  # a part of a GPU: no cluster of 16
        reason = hopper.ENGINES[LSTM_KIND].unsupported_reason(1, 16, 512, jnp.dtype("float16"))
        assert "8 at once" in reason
        assert hopper.planned(LSTM_KIND, 16, 256, "float16").blocks == 4


# --- layouts -------------------------------------------------------------------------------------

TO = Plan("cluster", 2, 32, 16, 2)


def test_layouts_and_back():
    rng = np.random.default_rng(0)
    states, gates = jnp.asarray(rng.normal(size=(3, 17, 50))), jnp.asarray(rng.normal(size=(3, 17, 200)))
    assert np.array_equal(hopper.from_units(hopper.of_units(states, TO), 17, 50), states)
    rows = hopper.of_gate_rows(gates, TO)
    assert rows.shape == (3, 2, 2, 128, 16)
    assert np.array_equal(hopper.from_gate_rows(rows, 17, 50), gates)
    # gate 2 of unit 40, the second block's 8th, in row 16, the second slice's first
    assert np.array_equal(rows[:, 1, 1, 2 * 32 + 8, 0], gates[:, 16, 2 * 50 + 40])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_product_of_laid_out_weights(kind):
    inputs, _ = problem(kind, 1, 5, 50, "bfloat16")
    hear = len(kind.of_h)
    to, h0 = TO._replace(hear=hear), inputs.carry[0].astype(jnp.float32)
    weights = hopper.of_weights(inputs.w_hh, to).astype(jnp.float32)
    assert weights.shape == (2, 128, 64)  # 3 x 32 rows of a GRU filled up
    z = jnp.einsum("kgh,shr->skgr", weights, hopper.of_units(h0, to))[:, :, : hear * 32]
    expected = hopper.of_gate_rows((h0 @ inputs.w_hh.astype(jnp.float32))[None], to, hear)[0]
    assert np.allclose(z, expected, atol=1e-5)


# --- products of pieces, with a matrix unit and copies that take their time ------------------------


class Memory:
    """An array, and parts of it, as kernels name them."""

    def __init__(self, array):
        self.array, self.shape, self.at = array, array.shape, self

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        return Memory(self.array[tuple(slice(*i) if isinstance(i, tuple) else i for i in index)])


class Lazy:
    """What the interpreter does at once: here products wait until they are waited for, and copies, too."""

    def __init__(self, late):
        self.late, self.products, self.copies, self.total = late, [], {0: [], 1: []}, None

    def wgmma(self, acc, a, b):
        self.products.append((a.array, b.array))

    def wgmma_wait(self, left):
        while len(self.products) > left:
            a, b = self.products.pop(0)
            self.total += a @ b

    def copy(self, to, array, barrier):
        self.copies[barrier].append((to, array))
        if not self.late:
            to[...] = array

    def barrier_wait(self, barrier):
        to, array = self.copies[barrier].pop(0)
        if self.late:
            to[...] = array

    def run_scoped(self, body, shape):
        self.total, unit = np.zeros(shape), self

        class Accumulator:
            def __getitem__(self, _):
                unit.wgmma_wait(0)
                return unit.total

        return body(Accumulator())


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("counts", [[5], [3, 3, 3], [3, 3, 3, 2], [2, 2, 2, 2, 1]])
def test_no_piece_is_overwritten_before_it_is_multiplied(counts, late):
    rng, unit = np.random.default_rng(0), Lazy(late)
    a, b = rng.normal(size=(4, sum(counts))), rng.normal(size=(sum(counts), 2))
    begins = [sum(counts[:n]) for n in range(len(counts))]
    columns = [Memory(a[:, at : at + count]) for at, count in zip(begins, counts, strict=True)]
    parts = [[Memory(part.array[:, :1]), Memory(part.array[:, 1:])] for part in columns[:2]]
    parts += [[part] for part in columns[2:]]  # the first ones in two, as where some are in registers
    buffers, out = np.full((min(2, len(counts)), max(counts), 2), np.nan), []

    def fetch(n):
        at, count = begins[n], counts[n]
        unit.copy(buffers[n % 2, :count], b[at : at + count], n % 2)

    plgpu = {name: getattr(unit, name) for name in ("wgmma", "wgmma_wait", "barrier_wait")}
    plgpu = Namespace(**plgpu, commit_smem=lambda: None, ACC=lambda shape, dtype: shape)
    pl = Namespace(run_scoped=unit.run_scoped, ds=lambda at, count: (at, at + count))
    with mock.patch.multiple(hopper_blocks, plgpu=plgpu, pl=pl, store=lambda _, value: out.append(value)):
        barriers = Namespace(at={0: 0, 1: 1})
        hopper_blocks.multiply_pieces(parts, Memory(buffers), None, fetch, barriers)
    assert np.allclose(out[0], a @ b) and not any(unit.copies.values())
