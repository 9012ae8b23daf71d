"""Penalties on activations: values, padding, segments, errors."""

import itertools
from functools import partial

import helpers
import jax
import numpy as np
import pytest

from lstm_jax import activation_regularization, temporal_activation_regularization

pytestmark = pytest.mark.usefixtures("x64")

T, B, H = 6, 3, 4


def test_penalties_without_padding():
    ys = np.random.default_rng(0).normal(size=(T, B, H))
    np.testing.assert_allclose(activation_regularization(ys), np.mean(ys**2))
    np.testing.assert_allclose(temporal_activation_regularization(ys), np.mean(np.diff(ys, axis=0) ** 2))


def test_penalties_ignore_invalid_steps():
    """Comparison with a loop over valid steps; NaN at invalid steps reaches no value and no gradient."""
    rng = np.random.default_rng(3)
    ys, mask = rng.normal(size=(T, B, H)), rng.random((T, B)) < 0.6
    lengths, resets = np.array([T, 4, 0], np.int32), rng.random((T, B)) < 0.3
    valid = mask & (np.arange(T)[:, None] < lengths)
    squares, changes, unbroken = [], [], []
    for row in range(B):
        steps = np.flatnonzero(valid[:, row])
        squares += list(ys[steps, row] ** 2)
        for a, b in itertools.pairwise(steps):
            changes.append((ys[b, row] - ys[a, row]) ** 2)
            if not resets[b, row]:
                unbroken.append(changes[-1])
    assert len(changes) > len(unbroken) > 0
    with_nan = np.where(valid[..., None], ys, np.nan)
    flags = {"lengths": lengths, "mask": mask}
    for penalty, expected in (
        (partial(activation_regularization, **flags), squares),
        (partial(temporal_activation_regularization, **flags), changes),
        (partial(temporal_activation_regularization, resets=resets, **flags), unbroken),
    ):
        value, grad = jax.value_and_grad(penalty)(with_nan)
        np.testing.assert_allclose(value, np.mean(expected))
        assert np.all(np.isfinite(grad)) and np.all(grad[~valid] == 0) and np.any(grad != 0)


@pytest.mark.parametrize("steps", helpers.daily([0, 1, 2], 0, 2))
def test_penalties_without_valid_steps_are_zero(steps):
    ys = np.ones((steps, B, H))
    no_steps = {"mask": np.zeros((steps, B), bool)}
    for penalty in (activation_regularization, temporal_activation_regularization):
        assert penalty(ys, **no_steps) == 0
        assert np.all(jax.grad(lambda ys, penalty=penalty: penalty(ys, **no_steps))(ys) == 0)
    assert temporal_activation_regularization(ys) == 0
    assert temporal_activation_regularization(ys, resets=np.ones((steps, B), bool)) == 0


def test_errors():
    with pytest.raises(ValueError, match=r"activation_regularization got mask of shape \(3,\)"):
        activation_regularization(np.ones((T, B, H)), mask=np.ones(3, bool))
    with pytest.raises(ValueError, match="temporal_activation_regularization got lengths from 9 to 9"):
        temporal_activation_regularization(np.ones((T, B, H)), lengths=[9, 9, 9])
