"""The kernels for Hopper GPUs without one: run in an interpreter, and lowered.

Pallas interprets GPU kernels since jax 0.12, with threads for blocks, memory that nobody wrote as NaN, and
a detector of races; ``hopper_interpreter`` adds the shared memory of other blocks. On a device:
``python -m benchmarks.device``.
"""

import contextlib
import faulthandler
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import daily, slow
from oracle_kernels import problem, saved_for, walk, walk_back

import lstm_jax
from lstm_jax.experimental import hopper, hopper_blocks, hopper_names
from lstm_jax.experimental.hopper_plan import Plan
from lstm_jax.unrolling.kernels.engine import saved_of
from lstm_jax.unrolling.kernels.formulas import GRU_KIND, KINDS, LSTM_KIND
from lstm_jax.unrolling.kernels.reference import REFERENCES
from lstm_jax.unrolling.kernels.select import interpret

BOTH = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
EPS = {"bfloat16": 2.0**-8, "float16": 2.0**-11}

interpreted = pytest.mark.skipif(
    hopper_names.INTERPRETER is None, reason="Pallas interprets kernels for GPUs since jax 0.12"
)


@pytest.fixture(autouse=True)
def watchdog():
    """Blocks that wait for each other for ever end the process, with all its stacks."""
    faulthandler.dump_traceback_later(600, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


# --- against the oracle, float64 ----------------------------------------------------------------


def close(found, expected, dtype, factor=4):
    """Within some roundings to the compute dtype, of the largest."""
    for (name, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        a = np.asarray(a, np.float64)
        assert a.shape == b.shape and np.isfinite(a).all(), name
        error, scale = np.max(np.abs(a - b)), max(1, np.max(np.abs(b)))
        assert error < factor * EPS[dtype] * scale, (name, error, scale)


def check(kind, to, T, B, H, dtype, *, ways=(None, None), **options):
    """Both walks against the oracle, without races."""
    races = hopper_interpreter().races_found
    how = {"to": to._replace(hear=len(kind.of_h)), "interpret": hopper_names.interpreter()}
    inputs, wanted = problem(kind, T, B, H, dtype, **options)
    expected = walk(kind, inputs)
    close(hopper.forward(kind, inputs, True, exchange=ways[0], **how), expected, dtype)
    assert not races()
    saved = saved_for(inputs, expected)
    found = hopper.backward(kind, saved, wanted, exchange=ways[1], **how)
    close(found, walk_back(kind, saved, wanted), dtype)
    assert not races()


def hopper_interpreter():
    """Only where there is an interpreter to teach."""
    import hopper_interpreter

    return hopper_interpreter


@BOTH
def test_the_oracle_is_the_cell(kind):
    """Forward is the unroll's oracle, backward is forward's derivative."""
    inputs, wanted = problem(kind, 3, 2, 3, "float32", seed=1)
    zs, carry = walk_back(kind, saved_for(inputs, walk(kind, inputs)), wanted)
    u_bar = np.concatenate([np.split(zs, 4, axis=-1)[n] for n in kind.of_x], axis=-1)
    rng, step = np.random.default_rng(0), 1e-6

    def slope(at, gradient, put):
        base = np.asarray(at, np.float64)
        way = rng.normal(size=base.shape)

        def value(moved):
            states = walk(kind, put(moved)).states
            return sum(np.sum(a * np.asarray(b)) for a, b in zip(states, wanted, strict=True))

        found = (value(base + step * way) - value(base - step * way)) / (2 * step)
        assert np.isclose(found, np.sum(gradient * way), rtol=1e-5)

    slope(inputs.u, u_bar, lambda u: inputs._replace(u=u))
    for n, (first, bar) in enumerate(zip(inputs.carry, carry, strict=True)):
        others = list(inputs.carry)

        def put(moved, n=n, others=others):
            return inputs._replace(carry=(*others[:n], moved, *others[n + 1 :]))

        slope(first, bar, put)


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
@BOTH
def test_one_block(kind, T, B, H, dtype, options):
    check(kind, hopper.planned(kind, B, H, dtype), T, B, H, dtype, **options)


@interpreted
@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize("masked", [True, False])
def test_several_launches(masked):
    """Three of 16 rows, the last one with 5."""
    kind = LSTM_KIND if masked else GRU_KIND
    check(kind, Plan("cluster", 1, 64, 16, 1), 2, 37, 20, "float16", masked=masked)


#: Small ones of each form, and how their blocks exchange; a grid's blocks as those of a cluster, which is
#: what the interpreter runs at once.
FORMS = {
    "async": (Plan("cluster", 2, 32, 16, 1), "async", "barrier"),
    "fence": (Plan("cluster", 2, 32, 16, 2), "fence", "barrier"),
    "grid": (Plan("grid", 4, 16, 16, 1), "barrier", "barrier"),
    # some of the weights in registers, h whole; h in three pieces, the last one shorter, with and without the
    # weights of the first one in registers
    "registers": (Plan("grid", 2, 96, 16, 1, held=128, held_back=64), "barrier", "barrier"),
    "pieces": (Plan("grid", 2, 160, 16, 1, piece=128), "barrier", "barrier"),
    "both": (Plan("grid", 2, 160, 16, 1, piece=128, held=128, held_back=192), "barrier", "barrier"),
}


@interpreted
@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize("form", FORMS)
@BOTH
def test_several_blocks(kind, form):
    to, *ways = FORMS[form]
    with hopper_interpreter().clusters():
        check(kind, to, 3, to.slices * 16 - 5, to.width - 4, "bfloat16", ways=ways)


#: As many blocks as a cluster can have, or a grid's in its place, with the units that a grid's have.
BIG = {
    "async": (Plan("cluster", 16, 16, 16, 1), "async", "barrier"),
    "fence": (Plan("cluster", 8, 16, 16, 1), "fence", "barrier"),
    "pieces": (Plan("grid", 16, 16, 16, 1, piece=64, held=64, held_back=64), "barrier", "barrier"),
}


def check_big(form):
    to, *ways = BIG[form]
    with hopper_interpreter().clusters():
        check(LSTM_KIND, to, 2, 11, to.width - 3, "bfloat16", ways=ways)


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("form", BIG)
def test_many_blocks(form):
    """XLA has a thread for each processor, and each block that waits takes one: told of 32 processors."""
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here, here.parent, here.parents[1])))
    environment = os.environ | {"NPROC": "32", "PYTHONPATH": path}
    script = f"import test_hopper; test_hopper.check_big({form!r})"
    done = subprocess.run([sys.executable, "-c", script], env=environment, timeout=300)
    assert done.returncode == 0


@interpreted
@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize("rows", [32, 64])
@pytest.mark.parametrize("form", FORMS)
@BOTH
def test_more_rows_and_steps(kind, form, rows):
    to, *ways = FORMS[form]
    with hopper_interpreter().clusters():
        check(kind, to._replace(rows=rows, slices=2), 7, rows + 3, to.width, "float16", ways=ways)


@interpreted
@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiles")
def test_a_grid_in_launches():
    to, *ways = FORMS["grid"]
    with hopper_interpreter().clusters():
        check(GRU_KIND, to, 2, 37, to.width, "float16", ways=ways)


@interpreted
@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiles")
def test_same_bits():
    inputs, _ = problem(LSTM_KIND, 2, 3, 20, "bfloat16")
    found = [jax.tree.leaves(hopper.INTERPRETED[LSTM_KIND].forward(inputs, True)) for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@interpreted
@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize("form", FORMS)
def test_blocks_that_do_not_wait_are_found(form):
    """The interpreter sees what these tests are here for."""
    to, *ways = FORMS[form]
    inputs, _ = problem(LSTM_KIND, 3, 2, to.width, "bfloat16")
    expected, interpreter = walk(LSTM_KIND, inputs).states[0], hopper_interpreter()
    with interpreter.clusters(), mock.patch.object(hopper_blocks.Meeting, "wait", lambda self, n: None):
        try:
            how = {"to": to, "exchange": ways[0], "interpret": hopper_names.interpreter()}
            found = hopper.forward(LSTM_KIND, inputs, False, **how).states[0]
            right = np.allclose(found.astype(jnp.float32), expected, atol=0.02)
            assert interpreter.races_found() or not right
        except Exception as error:  # a barrier that is left with arrivals nobody waited for
            assert "arriv" in str(error) or "race" in str(error).lower(), error
            interpreter.reset()


@interpreted
@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize("cell", [lstm_jax.LSTM, lstm_jax.GRU], ids=["LSTM", "GRU"])
def test_through_unroll(cell):
    cell = cell(input_size=3, hidden_size=6, dtype="bfloat16")
    params = cell.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.normal(size=(4, 3, 3)), jnp.bfloat16)
    lengths = jnp.asarray([4, 2, 0])

    def loss(params, xs, implementation):
        options = {"lengths": lengths, "reverse": True, "implementation": implementation}
        out = lstm_jax.unroll(cell, params, xs, **options)
        return sum(jnp.sum(a.astype(jnp.float32) ** 2) for a in jax.tree.leaves(out))

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
        slow(20, 768, "bfloat16", None),
        slow(16, 1536, "bfloat16", None),
        slow(40, 1900, "float16", None),
    ],
)
def test_lowers_for_cuda(B, H, dtype, way):
    kind = LSTM_KIND
    given = problem(kind, 3, B, H, dtype)
    inputs, wanted = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), given)
    scanned = jax.eval_shape(partial(REFERENCES[kind].forward, save=True), inputs)
    forward, backward = (partial(walk, kind) for walk in (hopper.forward, hopper.backward))
    for text in (
        lowered(partial(forward, save=True, exchange=way), inputs),
        lowered(backward, saved_of(inputs, scanned), wanted),
    ):
        assert "mosaic_gpu" in text


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("H", daily([64, 250, 768]))
def test_lowers_where_x64_is_on(H):
    """Mosaic's indices have 32 bits. A GRU, whose rows of weights are filled up at 250 and 768."""
    given = problem(GRU_KIND, 3, 20, H, "bfloat16")
    inputs, wanted = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), given)
    scanned = jax.eval_shape(partial(REFERENCES[GRU_KIND].forward, save=True), inputs)
    ways = ("async", "fence") if H == 250 else (None,)
    for way in ways:
        assert "mosaic_gpu" in lowered(partial(hopper.forward, GRU_KIND, save=True, exchange=way), inputs)
    assert "mosaic_gpu" in lowered(partial(hopper.backward, GRU_KIND), saved_of(inputs, scanned), wanted)
