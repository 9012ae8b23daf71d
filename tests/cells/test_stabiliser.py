"""The cells with exponential gates, sLSTM and mLSTM: long sequences and equality."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_case import D
from helpers import all_finite, daily, total

import lstm_jax
from lstm_jax import MLSTM, SLSTM

H = 4


@pytest.mark.parametrize("forget_gate", daily(["sigmoid", "exp"], "exp"))
@pytest.mark.parametrize("cell_class", [SLSTM, MLSTM])
def test_thousands_of_steps_stay_finite(cell_class, forget_gate):
    cell, steps = cell_class(D, H, forget_gate=forget_gate), 4000
    params = cell.init(jax.random.key(0))

    @jax.jit
    def run(params):
        out = lstm_jax.unroll(cell, params, jnp.ones((steps, 2, D)), checkpoint="sqrt")
        return total(out[1]), out

    grads, out = jax.grad(run, has_aux=True)(params)
    assert all_finite((grads, out))


@pytest.mark.parametrize("cell_class", [SLSTM, MLSTM])
def test_equal_hyperparameters_are_equal_cells(cell_class):
    cell = cell_class(D, H, dtype=jnp.bfloat16, heads=2)
    same = cell_class(np.int32(D), H, dtype="bfloat16", heads=np.int64(2))
    assert cell == same and hash(cell) == hash(same)
    assert all(cell != replace(cell, **change) for change in ({"use_bias": False}, {"dtype": None}))
