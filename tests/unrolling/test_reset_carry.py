"""``reset_carry``: resets for loops that call ``cell.step``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_cases import BY_NAME
from helpers import assert_raises, assert_same, problem

import lstm_jax

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("which", ["lstm", "slstm", "stack_bidirectional"])
def test_reset_rows_have_the_initial_carry(which):
    """The initial carry may be learned. Other rows do not change."""
    case = BY_NAME[which]
    given = problem(case)
    batch = given.xs.shape[1:2]
    reset = np.arange(batch[0]) % 2 == 1
    initial = given.network.initial_carry(batch, given.params)
    found = lstm_jax.reset_carry(given.network, given.params, given.carry, reset)
    assert jax.tree.structure(found) == jax.tree.structure(initial)
    for after, before, first in zip(*map(jax.tree.leaves, (found, given.carry, initial)), strict=True):
        np.testing.assert_array_equal(after[reset], first[reset])
        np.testing.assert_array_equal(after[~reset], before[~reset])


def test_reset_carry_and_step_equal_unroll_with_resets():
    given = problem(BY_NAME["lstm"])
    rng = np.random.default_rng(0)
    xs, resets = rng.normal(size=given.xs.shape), rng.random(given.xs.shape[:2]) < 0.4
    carry, ys = given.carry, []
    for x, reset in zip(xs, resets, strict=True):
        carry = lstm_jax.reset_carry(given.network, given.params, carry, reset)
        carry, y = given.network.step(given.params, carry, x)
        ys.append(y)
    expected = lstm_jax.unroll(given.network, given.params, xs, given.carry, resets=resets)
    assert_same((carry, jnp.stack(ys)), expected)


@pytest.mark.parametrize(
    "carry, reset, words",
    [
        ((np.ones((4, 2)),) * 2, np.ones(4), "reset of dtype float64; expected bool"),
        (np.ones((4, 2)), np.ones(4, bool), "expected (float"),
        ((np.ones((4, 2)),) * 2, np.ones(3, bool), "carry[0] of shape (4, 2); expected shape (3, 2)"),
    ],
    ids=["numbers", "structure", "shape"],
)
def test_errors(carry, reset, words):
    cell = lstm_jax.LSTM(3, 2)
    params = cell.init(jax.random.key(0))
    assert_raises(lambda: lstm_jax.reset_carry(cell, params, carry, reset), "reset_carry got", words)
