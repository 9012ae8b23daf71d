"""The Hopper kernels without a Hopper GPU: run in an interpreter, and lowered.

Since jax 0.12, Pallas interprets GPU kernels. It runs blocks as threads, fills unwritten memory with NaN and
detects races. ``hopper_interpreter`` adds access to the shared memory of other blocks. On a device, use
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
from helpers import daily, slow
from oracle_kernels import problem, reference_backward, reference_forward, residuals_for

import lstm_jax
from lstm_jax.experimental import hopper, hopper_blocks, hopper_names
from lstm_jax.experimental.hopper_plan import Plan
from lstm_jax.unrolling.kernels.engine import residuals_of
from lstm_jax.unrolling.kernels.formulas import FORMULAS, GRU_FORMULA, LSTM_FORMULA
from lstm_jax.unrolling.kernels.reference import REFERENCES
from lstm_jax.unrolling.kernels.select import interpret

BOTH_CELLS = pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.name)
EPS = {"bfloat16": 2.0**-8, "float16": 2.0**-11}

interpreted = pytest.mark.skipif(
    hopper_names.INTERPRETER is None, reason="Pallas' interpreter for GPU kernels requires jax 0.12 or newer"
)


@pytest.fixture(autouse=True)
def watchdog():
    """If blocks deadlock, dump all stacks and end the process."""
    faulthandler.dump_traceback_later(600, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


# --- against the oracle, float64 ----------------------------------------------------------------


def assert_close(found, expected, dtype, factor=4):
    """Within ``factor`` roundings to the compute dtype, relative to the largest entry of each array."""
    for (name, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        a = np.asarray(a, np.float64)
        assert a.shape == b.shape and np.isfinite(a).all(), name
        error, scale = np.max(np.abs(a - b)), max(1, np.max(np.abs(b)))
        assert error < factor * EPS[dtype] * scale, (name, error, scale)


def check(formula, plan, T, B, H, dtype, *, exchanges=(None, None), **problem_options):
    """Forward and backward agree with the oracle and have no races."""
    races = hopper_interpreter().races_found
    plan = plan._replace(recurrent_columns=len(formula.recurrent_columns))
    options = {"plan": plan, "interpret": hopper_names.interpreter()}
    inputs, cotangents = problem(formula, T, B, H, dtype, **problem_options)
    expected = reference_forward(formula, inputs)
    found = hopper.forward(formula, inputs, True, exchange=exchanges[0], **options)
    assert_close(found, expected, dtype)
    assert not races()
    residuals = residuals_for(inputs, expected)
    found = hopper.backward(formula, residuals, cotangents, exchange=exchanges[1], **options)
    assert_close(found, reference_backward(formula, residuals, cotangents), dtype)
    assert not races()


def hopper_interpreter():
    """Import the module lazily, because older versions of JAX have no interpreter to extend."""
    import hopper_interpreter

    return hopper_interpreter


@BOTH_CELLS
def test_the_oracle_backward_is_the_derivative_of_its_forward(formula):
    """Finite differences with respect to the inputs and the initial states."""
    inputs, cotangents = problem(formula, 3, 2, 3, "float32", seed=1)
    residuals = residuals_for(inputs, reference_forward(formula, inputs))
    zs, carry = reference_backward(formula, residuals, cotangents)
    u_bar = np.concatenate([np.split(zs, 4, axis=-1)[n] for n in formula.input_columns], axis=-1)
    rng, step = np.random.default_rng(0), 1e-6

    def check_derivative(point, gradient, replace):
        point = np.asarray(point, np.float64)
        direction = rng.normal(size=point.shape)

        def value(a):
            states = reference_forward(formula, replace(a)).states
            return sum(np.sum(a * np.asarray(b)) for a, b in zip(states, cotangents, strict=True))

        found = (value(point + step * direction) - value(point - step * direction)) / (2 * step)
        assert np.isclose(found, np.sum(gradient * direction), rtol=1e-5)

    check_derivative(inputs.u, u_bar, lambda u: inputs._replace(u=u))
    for n, (initial, bar) in enumerate(zip(inputs.carry, carry, strict=True)):

        def replace(a, n=n):
            return inputs._replace(carry=(*inputs.carry[:n], a, *inputs.carry[n + 1 :]))

        check_derivative(initial, bar, replace)


# --- the kernels, interpreted --------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize(
    ("T", "B", "H", "dtype", "options"),
    [
        (3, 17, 20, "bfloat16", {}),
        (1, 1, 3, "float16", {"bias": False, "masked": False}),
    ],
)
@BOTH_CELLS
def test_one_block(formula, T, B, H, dtype, options):
    check(formula, hopper.supported_plan(formula, B, H, dtype), T, B, H, dtype, **options)


@interpreted
@pytest.mark.parametrize("masked", [True, False])
def test_several_launches(masked):
    """Three launches of 16 rows; the last one has 5."""
    formula = LSTM_FORMULA if masked else GRU_FORMULA
    check(formula, Plan("cluster", 1, 64, 16, 1), 2, 37, 20, "float16", masked=masked)


#: Small plans of each form, and the exchanges forward and backward. Grids use barriers, which launch them as
#: clusters, because the interpreter does not run the blocks of a grid concurrently.
FORMS = {
    "async": (Plan("cluster", 2, 32, 16, 1), "async", "barrier"),
    "fence": (Plan("cluster", 2, 32, 16, 2), "fence", "barrier"),
    "grid": (Plan("grid", 4, 16, 16, 1), "barrier", "barrier"),
    # A part of the weights in registers, and h whole.
    "registers": (Plan("grid", 2, 96, 16, 1, register_columns=128, register_rows=64), "barrier", "barrier"),
    # h in three pieces, the last one shorter, without and with the weights of the first one in registers.
    "pieces": (Plan("grid", 2, 160, 16, 1, piece=128), "barrier", "barrier"),
    "both": (
        Plan("grid", 2, 160, 16, 1, piece=128, register_columns=128, register_rows=192),
        "barrier",
        "barrier",
    ),
}


@interpreted
@pytest.mark.parametrize("form", FORMS)
@BOTH_CELLS
def test_several_blocks(formula, form):
    plan, *exchanges = FORMS[form]
    with hopper_interpreter().clusters():
        B, H = plan.slices * 16 - 5, plan.padded_H - 4
        check(formula, plan, 3, B, H, "bfloat16", exchanges=exchanges)


#: As many blocks as a cluster can have, of 16 units, as many as the blocks of a grid have.
BIG = {
    "async": (Plan("cluster", 16, 16, 16, 1), "async", "barrier"),
    "fence": (Plan("cluster", 8, 16, 16, 1), "fence", "barrier"),
    "pieces": (
        Plan("grid", 16, 16, 16, 1, piece=64, register_columns=64, register_rows=64),
        "barrier",
        "barrier",
    ),
}


def check_big(form):
    plan, *exchanges = BIG[form]
    with hopper_interpreter().clusters():
        check(LSTM_FORMULA, plan, 2, 11, plan.padded_H - 3, "bfloat16", exchanges=exchanges)


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("form", BIG)
def test_many_blocks(form):
    """Each waiting block occupies one of XLA's threads, so the process runs with NPROC=32 threads."""
    folder = Path(__file__).parent
    path = os.pathsep.join(map(str, (folder, folder.parent, folder.parents[1])))
    environment = os.environ | {"NPROC": "32", "PYTHONPATH": path}
    script = f"import test_hopper; test_hopper.check_big({form!r})"
    process = subprocess.run([sys.executable, "-c", script], env=environment, timeout=300)
    assert process.returncode == 0


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("rows", [32, 64])
@pytest.mark.parametrize("form", FORMS)
@BOTH_CELLS
def test_more_rows_and_steps(formula, form, rows):
    plan, *exchanges = FORMS[form]
    plan = plan._replace(rows=rows, slices=2)
    with hopper_interpreter().clusters():
        check(formula, plan, 7, rows + 3, plan.padded_H, "float16", exchanges=exchanges)


@interpreted
@pytest.mark.slow
def test_a_grid_in_launches():
    plan, *exchanges = FORMS["grid"]
    with hopper_interpreter().clusters():
        check(GRU_FORMULA, plan, 2, 37, plan.padded_H, "float16", exchanges=exchanges)


@interpreted
@pytest.mark.slow
def test_results_are_deterministic():
    inputs, _ = problem(LSTM_FORMULA, 2, 3, 20, "bfloat16")
    found = [jax.tree.leaves(hopper.INTERPRETED[LSTM_FORMULA].forward(inputs, True)) for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_missing_synchronization_is_detected(form):
    """The interpreter detects the errors that the other tests look for."""
    plan, *exchanges = FORMS[form]
    inputs, _ = problem(LSTM_FORMULA, 3, 2, plan.padded_H, "bfloat16")
    expected, interpreter = reference_forward(LSTM_FORMULA, inputs).states[0], hopper_interpreter()
    no_wait = mock.patch.object(hopper_blocks.SliceBarrier, "wait", lambda self, n: None)
    with interpreter.clusters(), no_wait:
        try:
            options = {"plan": plan, "exchange": exchanges[0], "interpret": hopper_names.interpreter()}
            found = hopper.forward(LSTM_FORMULA, inputs, False, **options).states[0]
            correct = np.allclose(found.astype(jnp.float32), expected, atol=0.02)
            assert interpreter.races_found() or not correct
        except Exception as error:  # the kernel ended with arrivals left at a barrier
            assert "arriv" in str(error) or "race" in str(error).lower(), error
            interpreter.reset()


@interpreted
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


# --- lowered without a GPU -------------------------------------------------------------------------


def lowered(f, *args):
    """The program for CUDA. This runs Mosaic's lowering, but not the driver's compiler."""
    context = contextlib.nullcontext()
    if hasattr(jax.sharding, "AbstractDevice"):  # newer JAX requires a device
        device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
        context = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))
    with context:
        return jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("B", "H", "dtype", "exchange"),
    [
        (5, 64, "bfloat16", None),
        (20, 512, "float16", "async"),
        (20, 512, "bfloat16", "fence"),
        slow(20, 768, "bfloat16", None),
        slow(16, 1536, "bfloat16", None),
        slow(40, 1900, "float16", None),
    ],
)
def test_lowers_for_cuda(B, H, dtype, exchange):
    inputs, residuals, cotangents = argument_types(LSTM_FORMULA, B, H, dtype)
    forward = partial(hopper.forward, LSTM_FORMULA, save=True, exchange=exchange)
    assert "mosaic_gpu" in lowered(forward, inputs)
    assert "mosaic_gpu" in lowered(partial(hopper.backward, LSTM_FORMULA), residuals, cotangents)


def argument_types(formula, B, H, dtype):
    """Types of the arguments of forward and of backward."""
    inputs, cotangents = jax.eval_shape(lambda: problem(formula, 3, B, H, dtype))
    output = jax.eval_shape(partial(REFERENCES[formula].forward, save=True), inputs)
    return inputs, residuals_of(inputs, output), cotangents


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("H", daily([64, 250, 768]))
def test_lowers_with_x64(H):
    """Mosaic's indices have 32 bits. The GRU's weight rows are padded at H 250 and 768."""
    inputs, residuals, cotangents = argument_types(GRU_FORMULA, 20, H, "bfloat16")
    for exchange in ("async", "fence") if H == 250 else (None,):
        forward = partial(hopper.forward, GRU_FORMULA, save=True, exchange=exchange)
        assert "mosaic_gpu" in lowered(forward, inputs)
    assert "mosaic_gpu" in lowered(partial(hopper.backward, GRU_FORMULA), residuals, cotangents)
