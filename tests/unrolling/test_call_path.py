"""The depth of the call path of ``unroll`` and ``lstm_step``."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers import daily

import lstm_jax

LIBRARY = str(Path(lstm_jax.__file__).parent)
CELL = lstm_jax.LSTM(5, 7)  # sizes that no other test compiles
CARRY = CELL.initial_carry((2,))
OPTIONS = {
    "plain": {},
    "carry": {"carry": CARRY},
    "lengths and resets": {"lengths": [3, 1], "resets": jnp.zeros((3, 2), bool)},
    "windows": {"checkpoint": 2},
    "plain scan": {"implementation": "scan"},
}
LONG = 200_000  # steps, whose projected inputs have more than 8 MiB


def deepest(call):
    """The names of the library's frames where the stack is deepest while ``call`` runs."""
    most = []

    def profile(frame, event, _):
        nonlocal most
        if event == "call" and frame.f_code.co_filename.startswith(LIBRARY):
            names = []
            while frame is not None:
                if frame.f_code.co_filename.startswith(LIBRARY):
                    names.append(frame.f_code.co_name)
                frame = frame.f_back
            most = max(most, names[::-1], key=len)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return most


def check(steps, derivative, options):
    """Check the depth of the call path of ``unroll``."""
    params = jax.eval_shape(CELL.init, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((steps, 2, 5), jnp.float32)

    def run(params, xs):
        return jnp.sum(lstm_jax.unroll(CELL, params, xs, **options)[1])

    jax.clear_caches()
    found = deepest(lambda: jax.eval_shape(jax.grad(run) if derivative else run, params, xs))
    assert "unroll" in found and len(found) <= 10, found


BOTH = pytest.mark.parametrize("derivative", [False, True], ids=["forward", "gradient"])


@pytest.mark.parametrize("which", daily(OPTIONS, "carry", "windows"))
@BOTH
def test_unroll(which, derivative):
    check(3, derivative, OPTIONS[which])


@pytest.mark.parametrize("which", daily(OPTIONS, "windows"))
@BOTH
def test_unroll_on_a_single_cpu_device(is_single_cpu_device, which, derivative):
    check(3, derivative, OPTIONS[which])


@pytest.mark.parametrize("options", [{}, {"lengths": [3, 1]}], ids=str)
@BOTH
def test_chunks_on_a_single_cpu_device(is_single_cpu_device, options, derivative):
    shapes = jax.eval_shape(CELL.init, jax.random.key(0)), jax.ShapeDtypeStruct((LONG, 2, 5), jnp.float32)
    assert "chunks" in lstm_jax.explain(CELL, *shapes, **options).layers[0].tiling
    check(LONG, derivative, options)


def test_lstm_step():
    params = CELL.init(jax.random.key(0))
    found = deepest(lambda: lstm_jax.lstm_step(params, CARRY, jnp.ones((2, 5))))
    assert found[0] == "lstm_step" and len(found) <= 3, found
