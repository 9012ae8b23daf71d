"""Programs that fill weights with one value give correct results in spite of an error in jaxlib."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers import slow

import lstm_jax
from lstm_jax import _fills

PROGRAM = Path(__file__).with_name("filled_weights_program.py")
ON_AFFECTED = pytest.mark.skipif(
    not _fills.AFFECTED or jax.default_backend() != "cpu", reason="this jaxlib or backend has no such error"
)


def errors(*modes):
    """The relative error of each program, compiled as for users."""
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(PROGRAM.parent.parent)}
    done = subprocess.run(
        [sys.executable, PROGRAM, *modes], env=env, check=True, capture_output=True, text=True, timeout=300
    )
    lines = (line.split(" ", 1) for line in done.stdout.splitlines())
    return {name: float(error) for error, name in lines}


@pytest.mark.parametrize("modes", [("few",), slow(())], ids=["few", "all"])
def test_filled_weights_give_correct_results(modes):
    wrong = {name: error for name, error in errors(*modes).items() if not error < 1e-5}
    assert not wrong


@ON_AFFECTED
@pytest.mark.slow
def test_the_workaround_is_still_needed():
    wrong = [name for name, error in errors("unguarded").items() if not error < 1e-5]
    assert wrong, "this jaxlib is correct: exclude its version from AFFECTED in lstm_jax/_fills.py"


@pytest.mark.slow
def test_arguments_of_the_program_are_unchanged(monkeypatch):
    """If weights are arguments, the workaround does not change the program."""
    cell = lstm_jax.LSTM(3, 4)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((5, 2, 3))

    def loss(params, xs):
        x, carry = xs[0], cell.initial_carry((2,))
        return jnp.sum(lstm_jax.unroll(cell, params, xs)[1]) + jnp.sum(cell.step(params, carry, x)[1])

    def program():
        jax.clear_caches()
        return jax.jit(jax.value_and_grad(loss)).lower(params, xs).as_text()

    monkeypatch.setattr(_fills, "AFFECTED", False)
    without = program()
    monkeypatch.setattr(_fills, "AFFECTED", True)
    assert program() == without
