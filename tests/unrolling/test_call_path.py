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


@pytest.mark.parametrize("which", daily(OPTIONS, "carry", "windows"))
@pytest.mark.parametrize("derivative", [False, True], ids=["forward", "gradient"])
def test_unroll(which, derivative):
    params = CELL.init(jax.random.key(0))

    def run(params):
        return jnp.sum(lstm_jax.unroll(CELL, params, jnp.ones((3, 2, 5)), **OPTIONS[which])[1])

    jax.clear_caches()
    found = deepest(lambda: jax.eval_shape(jax.grad(run) if derivative else run, params))
    assert "run" in found and len(found) <= 10, found


def test_lstm_step():
    params = CELL.init(jax.random.key(0))
    found = deepest(lambda: lstm_jax.lstm_step(params, CARRY, jnp.ones((2, 5))))
    assert found[0] == "lstm_step" and len(found) <= 3, found
