"""WeightDrop: which weights are dropped, and errors."""

import jax
import numpy as np
import pytest
from cell_case import D
from helpers import assert_raises, assert_same, random_arrays, random_params, total

from lstm_jax import LSTM, WeightDrop, unroll

pytestmark = pytest.mark.usefixtures("x64")

T, B, H = 6, 3, 4
KEY = jax.random.key(5)
WIDE = {"param_dtype": "float64"}
CELL = LSTM(D, H, **WIDE)


def arguments(cell):
    """Random parameters and inputs."""
    return random_params(cell), *random_arrays((T, B, D), dtype=np.float64)


def test_weights_are_dropped_for_the_whole_sequence():
    """They are the same at all steps and in all rows, and their gradient is zero."""
    cell = WeightDrop(LSTM(D, 30, **WIDE), 0.25)
    params, xs = arguments(cell)
    noisy = cell.perturb(params, KEY, None, None).params
    left = np.asarray(noisy.w_hh) != 0
    assert abs(np.mean(~left) - 0.25) < 0.03
    np.testing.assert_allclose(noisy.w_hh[left], params.w_hh[left] / 0.75)
    for name in ("w_ih", "bias"):
        assert np.all(getattr(noisy, name) == getattr(params, name))
    grads = jax.grad(lambda p: total(unroll(cell, p, xs, key=KEY)))(params)
    dropped = np.asarray(grads.w_hh) == 0
    assert abs(np.mean(dropped) - 0.25) < 0.03
    by_hand = params._replace(w_hh=np.where(dropped, 0, params.w_hh / 0.75))
    assert_same(unroll(cell.cell, by_hand, xs), unroll(cell, params, xs, key=KEY))


def test_other_weights():
    cell = WeightDrop(CELL, 0.5, weights=("w_ih", "bias"))
    params, _ = arguments(cell)
    noisy = cell.perturb(params, KEY, None, None).params
    assert np.all(noisy.w_hh == params.w_hh)
    assert np.any(noisy.w_ih == 0) and np.any(noisy.bias == 0)


ERRORS = {
    "rate of 1": (lambda: WeightDrop(CELL, 1.0), "WeightDrop got rate=1.0; expected a rate in [0, 1)"),
    "weights": (lambda: WeightDrop(CELL, 0.5, weights="w_hh"), "a tuple of names"),
    "unknown weights": (
        lambda: unroll(WeightDrop(CELL, 0.5, weights=("w_xx",)), *arguments(CELL), key=KEY),
        "WeightDrop got weights=('w_xx',)",
        "names among w_ih, w_hh",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    assert_raises(*ERRORS[what])
