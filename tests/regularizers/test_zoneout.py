"""Zoneout: kept values and their rate, invalid steps, errors."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_case import D
from helpers import assert_raises, assert_same, random_arrays, random_params

from lstm_jax import LSTM, Readout, Stack, Zoneout, unroll

pytestmark = pytest.mark.usefixtures("x64")

T, B, H = 6, 3, 4
KEY = jax.random.key(5)
WIDE = {"param_dtype": "float64"}
CELL = LSTM(D, H, **WIDE)


def arguments(cell):
    """Random parameters and inputs."""
    return random_params(cell), *random_arrays((T, B, D), dtype=np.float64)


def test_rate_1_keeps_the_state_and_rate_0_has_no_effect():
    params, xs = arguments(CELL)
    carry = helpers.random_like(np.random.default_rng(2), CELL.initial_carry((B,)))
    for key in (None, KEY):
        after, ys = unroll(Zoneout(CELL, rates=1.0), params, xs, carry, key=key)
        assert_same(after, jax.tree.map(jnp.asarray, carry), rtol=0, atol=0)
        assert np.all(np.asarray(ys) == carry[0])
        assert_same(
            unroll(Zoneout(CELL, rates=(0.0, 0)), params, xs, key=key), unroll(CELL, params, xs), atol=0
        )


@pytest.mark.parametrize("rates", helpers.daily([(0.0, 0.5), (0.25, 0.0), (0.25, 0.5)], (0.25, 0.5)))
def test_each_state_is_kept_at_its_rate(rates):
    """Every entry is the old or the new one. The expectation is a weighted mean."""
    cell, rows = LSTM(D, 50, **WIDE), 100
    params = helpers.random_like(np.random.default_rng(0), jax.eval_shape(cell.init, KEY))
    old = helpers.random_like(np.random.default_rng(1), cell.initial_carry((rows,)))
    xs = np.random.default_rng(2).normal(size=(1, rows, D))
    new, _ = cell.step(params, old, xs[0])
    zoned, ys = unroll(Zoneout(cell, rates=rates), params, xs, old, key=KEY)
    mean, mean_ys = unroll(Zoneout(cell, rates=rates), params, xs, old)
    for a, b, drawn_, expected, rate in zip(old, new, zoned, mean, rates, strict=True):
        kept = np.asarray(drawn_ == a)
        assert np.all(kept | np.isclose(drawn_, b, rtol=1e-12))
        assert abs(np.mean(kept) - rate) < 0.03
        np.testing.assert_allclose(expected, rate * a + (1 - rate) * b)
    assert np.all(ys[0] == zoned[0]) and np.all(mean_ys[0] == mean[0])


def test_invalid_steps_have_no_zoneout():
    """The carry passes them unchanged, and the noise of later steps does not change."""
    cell = Zoneout(CELL, rates=0.5)
    params, xs = arguments(cell)
    mask = np.ones((T, B), bool)
    mask[2] = False
    with_nan = np.where(mask[..., None], xs, np.nan)
    _, (ys, (h, c)) = unroll(cell, params, with_nan, mask=mask, key=KEY, return_carries=True)
    assert np.all(h[2] == h[1]) and np.all(c[2] == c[1]) and np.all(ys[2] == 0)
    after, rest = unroll(cell, params, xs[3:], (h[1], c[1]), key=KEY, start=3)
    assert_same((after, rest), (jax.tree.map(lambda a: a[-1], (h, c)), ys[3:]))


ERRORS = {
    "rate above 1": (lambda: Zoneout(CELL, rates=1.5), "Zoneout got rates=1.5; expected a rate in [0, 1]"),
    "no rates": (lambda: Zoneout(CELL, rates=()), "Zoneout got rates=()"),
    "rate of True": (lambda: Zoneout(CELL, rates=(0.1, True)), "Zoneout got rates=(0.1, True)"),
    "class": (lambda: Zoneout(LSTM, rates=0.5), "a cell: an object with init"),
    "network": (lambda: Zoneout(Stack((CELL,)), rates=0.5), "Zoneout got a Stack; expected a cell."),
    "cell without a state": (
        lambda: unroll(Zoneout(Readout(D, H, **WIDE), rates=0.5), *arguments(Readout(D, H, **WIDE))),
        "Zoneout got rates=0.5 for Readout, whose carry is empty; expected a cell with a state",
    ),
    "number of rates": (
        lambda: unroll(Zoneout(CELL, rates=(0.1, 0.2, 0.3)), *arguments(CELL)),
        "Zoneout got 3 rates for a carry of 2 states",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    assert_raises(*ERRORS[what])
