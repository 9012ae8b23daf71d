"""The kernels for Hopper GPUs without one: their plan, their layouts, lowered, and run in an interpreter.

Pallas interprets GPU kernels since jax 0.12, with threads for blocks, memory that nobody wrote as NaN, and
a detector of races; ``hopper_interpreter`` adds the shared memory of other blocks. On a device:
``python -m benchmarks.hopper``.
"""

import contextlib
import faulthandler
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax
from benchmarks import hopper
from lstm_jax.kernels import gpu, gpu_blocks, gpu_names, interpret
from lstm_jax.kernels.engine import Inputs, Saved, States
from lstm_jax.kernels.gpu_plan import HELD, ROOM, ROWS, SMS, Plan, grid, plan, smem_bytes, units_of

SIXTEEN = ("bfloat16", "float16")
EPS = {"bfloat16": 2.0**-8, "float16": 2.0**-11}

interpreted = pytest.mark.skipif(
    gpu_names.INTERPRETER is None, reason="Pallas interprets kernels for GPUs since jax 0.12"
)


@pytest.fixture(autouse=True)
def watchdog():
    """Blocks that wait for each other for ever end the process, with all its stacks."""
    faulthandler.dump_traceback_later(600, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


# --- the oracle, float64 -------------------------------------------------------------------------


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def walk(inputs):
    """hs, cs, gates."""
    u, w, bias, h, c, valid = (None if a is None else np.asarray(a, np.float64) for a in inputs)
    out = []
    for t in range(len(u)):
        zs = np.split(u[t] + h @ w + (0 if bias is None else bias), 4, axis=-1)
        i, f, g, o = sigmoid(zs[0]), sigmoid(zs[1]), np.tanh(zs[2]), sigmoid(zs[3])
        there = True if valid is None else valid[t][:, None] > 0
        c = np.where(there, f * c + i * g, c)
        h = np.where(there, o * np.tanh(c), h)
        out.append((h, c, np.concatenate([i, f, g, o], axis=-1)))
    return tuple(map(np.stack, zip(*out, strict=True)))


def walk_back(saved, wanted):
    """Cotangents of z, h_0, c_0."""
    w, gates, cs, c0, valid = (None if a is None else np.asarray(a, np.float64) for a in saved)
    dhs, dcs = (np.asarray(a, np.float64) for a in wanted)
    dh, dc, dzs = np.zeros_like(c0), np.zeros_like(c0), np.zeros_like(gates)
    for t in reversed(range(len(cs))):
        (i, f, g, o), before = np.split(gates[t], 4, axis=-1), cs[t - 1] if t else c0
        dh, dc, shown = dh + dhs[t], dc + dcs[t], np.tanh(cs[t])
        inside = dc + dh * o * (1 - shown**2)
        dz = [inside * g * i * (1 - i), inside * before * f * (1 - f), inside * i * (1 - g**2)]
        dz = np.concatenate([*dz, dh * shown * o * (1 - o)], axis=-1)
        there = np.ones(c0.shape, bool) if valid is None else np.repeat(valid[t][:, None] > 0, dh.shape[1], 1)
        dzs[t] = np.where(there[:, :1], dz, 0)
        dh, dc = np.where(there, dzs[t] @ w.T, dh), np.where(there, inside * f, dc)
    return dzs, dh, dc


def problem(T, B, H, dtype, *, masked=True, bias=True, seed=0):
    """Inputs of forward, and what backward is asked for."""
    rng = np.random.default_rng([seed, T, B, H])
    valid = rng.random((T, B)) < 0.7 if masked else None

    def normal(*shape, dtype=dtype):
        return jnp.asarray(rng.normal(size=shape), dtype)

    u = normal(T, B, 4 * H)
    if valid is not None:
        u = jnp.where(jnp.asarray(valid)[..., None], u, jnp.zeros_like(u))
    b = normal(4 * H, dtype="float32") if bias else None
    w = jnp.asarray(rng.normal(size=(H, 4 * H)) / np.sqrt(H), dtype)
    c0 = normal(B, H, dtype="float32")
    inputs = Inputs(u, w, b, jnp.tanh(normal(B, H)), c0, None if valid is None else jnp.asarray(valid))
    return inputs, States(normal(T, B, H), normal(T, B, H, dtype="float32"))


def close(found, expected, dtype, names, factor=4):
    """Within some roundings to the compute dtype, of the largest."""
    for a, b, name in zip(found, expected, names, strict=True):
        a = np.asarray(a, np.float64)
        assert a.shape == b.shape and np.isfinite(a).all(), name
        error, scale = np.max(np.abs(a - b)), max(1, np.max(np.abs(b)))
        assert error < factor * EPS[dtype] * scale, (name, error, scale)


def check(to, T, B, H, dtype, *, ways=(None, None), **options):
    """Both walks against the oracle, without races."""
    races = hopper_interpreter().races_found
    how = {"to": to, "interpret": gpu_names.interpreter()}
    inputs, wanted = problem(T, B, H, dtype, **options)
    expected = walk(inputs)
    found = gpu.forward(inputs, True, exchange=ways[0], **how)
    close(found, expected, dtype, found._fields)
    assert not races()
    gates, cs = (jnp.asarray(a, jnp.float32) for a in (expected[2], expected[1]))
    saved = Saved(inputs.w_hh, gates, cs, inputs.c0, inputs.valid)
    found = gpu.backward(saved, wanted, exchange=ways[1], **how)
    close(found, walk_back(saved, wanted), dtype, found._fields)
    assert not races()


def hopper_interpreter():
    """Only where there is an interpreter to teach."""
    import hopper_interpreter

    return hopper_interpreter


def test_the_oracle_is_the_cell():
    """Backward is forward's derivative."""
    inputs, wanted = problem(3, 2, 3, "float32", seed=1)
    _, cs, gates = walk(inputs)
    saved = Saved(inputs.w_hh, gates, cs, inputs.c0, inputs.valid)
    gradients = dict(zip(("u", "h0", "c0"), walk_back(saved, wanted), strict=True))
    rng, step = np.random.default_rng(0), 1e-6

    def value(**moved):
        hs, cs, _ = walk(inputs._replace(**moved))
        return np.sum(hs * np.asarray(wanted.hs)) + np.sum(cs * np.asarray(wanted.cs))

    for name, gradient in gradients.items():
        base = np.asarray(getattr(inputs, name), np.float64)
        way = rng.normal(size=base.shape)
        up, down = (value(**{name: base + sign * step * way}) for sign in (1, -1))
        assert np.isclose((up - down) / (2 * step), np.sum(gradient * way), rtol=1e-6)


# --- the plan ------------------------------------------------------------------------------------


@pytest.mark.parametrize("H", [1, 63, 64, 65, 200, 512, 513, 768, 1024, 1400, 1536, 1900, 1984])
@pytest.mark.parametrize("B", [1, 16, 17, 64, 100, 700])
def test_a_plan_holds_what_it_promises(B, H):
    found = plan(100, B, H, "float16")
    form, blocks, units, rows, slices, piece, held, held_back = found
    assert max(smem_bytes(found)) <= ROOM
    assert H <= found.width and (4 * units) % 64 == 0 and found.width % 64 == 0
    assert rows in ROWS and (form == "grid") == (H > 512)
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
        ((1, 1, 64, "float32"), "this is float32"),
        ((1, 1, 1985, "float16"), "w_hh of H=1985 is too large"),
    ],
)
def test_reasons(sizes, reason):
    assert reason in plan(*sizes)


def test_no_device_no_kernel():
    assert "Hopper" in gpu.ENGINE.obstacle(1, 1, 64, jnp.dtype("float16"))
    sizes = (1, 1, 512, jnp.dtype("float16"))
    assert ("16 blocks" if gpu_names.INTERPRETER else "jax 0.12") in gpu.INTERPRETED.obstacle(*sizes)


def test_a_device_with_room_takes_any_batch():
    device = Namespace(compute_capability="9.0", device_kind="a Hopper GPU", core_count=SMS)
    with mock.patch.object(jax, "devices", lambda: [device]):
        assert gpu.ENGINE.obstacle(1, 700, 1024, jnp.dtype("float16")) is None
        device.core_count = 114
        assert "128 blocks" in gpu.ENGINE.obstacle(1, 64, 1024, jnp.dtype("float16"))
        assert gpu.ENGINE.obstacle(1, 16, 1536, jnp.dtype("float16")) is None


# --- layouts -------------------------------------------------------------------------------------

TO = Plan("cluster", 2, 32, 16, 2)


def test_layouts_and_back():
    rng = np.random.default_rng(0)
    states, gates = jnp.asarray(rng.normal(size=(3, 17, 50))), jnp.asarray(rng.normal(size=(3, 17, 200)))
    assert np.array_equal(gpu.from_units(gpu.of_units(states, TO), 17, 50), states)
    rows = gpu.of_gate_rows(gates, TO)
    assert rows.shape == (3, 2, 2, 128, 16)
    assert np.array_equal(gpu.from_gate_rows(rows, 17, 50), gates)
    # gate 2 of unit 40, the second block's 8th, in row 16, the second slice's first
    assert np.array_equal(rows[:, 1, 1, 2 * 32 + 8, 0], gates[:, 16, 2 * 50 + 40])


def test_the_product_of_laid_out_weights():
    inputs, _ = problem(1, 5, 50, "bfloat16")
    h = gpu.of_units(inputs.h0, TO).astype(jnp.float32)
    z = jnp.einsum("kgh,shr->skgr", gpu.of_weights(inputs.w_hh, TO).astype(jnp.float32), h)
    expected = inputs.h0.astype(jnp.float32) @ inputs.w_hh.astype(jnp.float32)
    assert np.allclose(gpu.from_gate_rows(z[None], 5, 50)[0], expected, atol=1e-5)


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
    with mock.patch.multiple(gpu_blocks, plgpu=plgpu, pl=pl, store=lambda _, value: out.append(value)):
        barriers = Namespace(at={0: 0, 1: 1})
        gpu_blocks.multiply_pieces(parts, Memory(buffers), None, fetch, barriers)
    assert np.allclose(out[0], a @ b) and not any(unit.copies.values())


# --- the kernels, interpreted --------------------------------------------------------------------


@interpreted
@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize(
    ("T", "B", "H", "dtype", "options"),
    [
        (3, 17, 20, "bfloat16", {}),
        (1, 1, 3, "float16", {"bias": False, "masked": False}),
    ],
)
def test_one_block(T, B, H, dtype, options):
    check(gpu.planned(T, B, H, dtype), T, B, H, dtype, **options)


@interpreted
@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize("masked", [True, False])
def test_several_launches(masked):
    """Three of 16 rows, the last one with 5."""
    check(Plan("cluster", 1, 64, 16, 1), 2, 37, 20, "float16", masked=masked)


#: Small ones of each form, and how their blocks exchange; a grid's blocks as those of a cluster, which is
#: what the interpreter runs at once.
FORMS = {
    "async": (Plan("cluster", 2, 32, 16, 1), "async", "barrier"),
    "fence": (Plan("cluster", 2, 32, 16, 2), "fence", "barrier"),
    "grid": (Plan("grid", 4, 16, 16, 1), "barrier", "barrier"),
    # h in three pieces, the last one shorter; weights in registers: all of the first piece, half of the next
    "pieces": (Plan("grid", 2, 160, 16, 1, piece=128, held=192, held_back=192), "barrier", "barrier"),
}


@interpreted
@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize("form", FORMS)
def test_several_blocks(form):
    to, *ways = FORMS[form]
    with hopper_interpreter().clusters():
        check(to, 3, to.slices * 16 - 5, to.width - 4, "bfloat16", ways=ways)


#: As many blocks as a cluster can have, or a grid's in its place, with the units that a grid's have.
BIG = {
    "async": (Plan("cluster", 16, 16, 16, 1), "async", "barrier"),
    "fence": (Plan("cluster", 8, 16, 16, 1), "fence", "barrier"),
    "pieces": (Plan("grid", 16, 16, 16, 1, piece=64, held=64, held_back=64), "barrier", "barrier"),
}


def check_big(form):
    to, *ways = BIG[form]
    with hopper_interpreter().clusters():
        check(to, 2, 11, to.width - 3, "bfloat16", ways=ways)


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("form", BIG)
def test_many_blocks(form):
    """XLA has a thread for each processor, and each block that waits takes one: told of 32 processors."""
    here = Path(__file__).parent
    environment = os.environ | {"NPROC": "32", "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    script = f"import test_hopper; test_hopper.check_big({form!r})"
    done = subprocess.run([sys.executable, "-c", script], env=environment, timeout=300)
    assert done.returncode == 0


@interpreted
@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize("rows", [32, 64])
@pytest.mark.parametrize("form", FORMS)
def test_more_rows_and_steps(form, rows):
    to, *ways = FORMS[form]
    with hopper_interpreter().clusters():
        check(to._replace(rows=rows, slices=2), 7, rows + 3, to.width, "float16", ways=ways)


@interpreted
@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiles")
def test_a_grid_in_launches():
    to, *ways = FORMS["grid"]
    with hopper_interpreter().clusters():
        check(to, 2, 37, to.width, "float16", ways=ways)


@interpreted
@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiles")
def test_same_bits():
    inputs, _ = problem(2, 3, 20, "bfloat16")
    found = [gpu.INTERPRETED.forward(inputs, True) for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@interpreted
@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize("form", FORMS)
def test_blocks_that_do_not_wait_are_found(form):
    """The interpreter sees what these tests are here for."""
    to, *ways = FORMS[form]
    inputs, _ = problem(3, 2, to.width, "bfloat16")
    expected, interpreter = walk(inputs), hopper_interpreter()
    with interpreter.clusters(), mock.patch.object(gpu_blocks.Meeting, "wait", lambda self, n: None):
        try:
            found = gpu.forward(inputs, False, to=to, exchange=ways[0], interpret=gpu_names.interpreter())
            right = np.allclose(found.hs.astype(jnp.float32), expected[0], atol=0.02)
            assert interpreter.races_found() or not right
        except Exception as error:  # a barrier that is left with arrivals nobody waited for
            assert "arriv" in str(error) or "race" in str(error).lower(), error
            interpreter.reset()


@interpreted
@pytest.mark.usefixtures("quick_compiles")
def test_through_unroll():
    cell = lstm_jax.LSTM(input_size=3, hidden_size=6, dtype="bfloat16")
    params = cell.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.normal(size=(4, 3, 3)), jnp.bfloat16)
    lengths = jnp.asarray([4, 2, 0])

    def loss(params, xs, implementation):
        options = {"lengths": lengths, "reverse": True, "implementation": implementation}
        (_, c), ys = lstm_jax.unroll(cell, params, xs, **options)
        return jnp.sum(ys.astype(jnp.float32) ** 2) + jnp.sum(c**2)

    expected = jax.value_and_grad(loss, (0, 1))(params, xs, "scan")
    with interpret("gpu"):
        found = jax.value_and_grad(loss, (0, 1))(params, xs, "pallas")
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=0.03, rtol=0.03)


# --- lowered for a GPU that is not there -----------------------------------------------------------


def lowered(f, *args):
    """The program for CUDA; Mosaic's lowering has passed, what the driver's compiler says is open."""
    where = contextlib.nullcontext()
    if hasattr(jax.sharding, "AbstractDevice"):  # newer jax asks for which device
        device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
        where = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))
    with where:
        return jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("B", "H", "dtype", "way"),
    [
        (5, 64, "bfloat16", None),
        (20, 512, "float16", "async"),
        (20, 512, "bfloat16", "fence"),
        (20, 768, "bfloat16", None),
        (16, 1536, "bfloat16", None),
        (40, 1900, "float16", None),
    ],
)
def test_lowers_for_cuda(B, H, dtype, way):
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), problem(3, B, H, dtype))
    (inputs, wanted), T = shapes, 3
    state = inputs.c0
    gates = jax.ShapeDtypeStruct((T, B, 4 * H), state.dtype)
    saved = Saved(inputs.w_hh, gates, wanted.cs, state, inputs.valid)
    for text in (
        lowered(lambda inputs: gpu.forward(inputs, True, exchange=way), inputs),
        lowered(gpu.backward, saved, wanted),
    ):
        assert "mosaic_gpu" in text


# --- the benchmark -------------------------------------------------------------------------------


def test_a_job_that_hangs_is_killed():
    args = Namespace(limit=0.01, smoke=True, compile=False)
    assert hopper.attempt(hopper.SMOKE[0], args)["status"] == "killed after 0.01 s"


def test_a_job_that_fails_is_told_and_the_rest_goes_on(tmp_path, capsys):
    args = Namespace(limit=100, total=1000, smoke=True, compile=False, device={"kind": "none"})
    out = tmp_path / "results.json"
    assert hopper.run([{"kind": "nothing"}], args, out) == 1
    (job,) = json.loads(out.read_text())["jobs"]
    assert job["status"] == "failed" and "KeyError: 'nothing'" in job["said"]
    assert "0 of 1 jobs done" in capsys.readouterr().out


@interpreted
@pytest.mark.slow
def test_the_smallest_of_each_job():
    assert hopper.main(["--smoke"]) == 0
