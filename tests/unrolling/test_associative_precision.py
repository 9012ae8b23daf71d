"""The associative scan: accuracy and dtypes."""

from functools import partial

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_case import D, H
from cell_cases import BY_NAME
from helpers import all_finite

import lstm_jax
from lstm_jax import MinGRU, MinLSTM
from lstm_jax.unrolling.associative import LOG_ZERO, associative_scan
from lstm_jax.unrolling.run import Options
from lstm_jax.unrolling.steps import Flags

WHICH = pytest.mark.parametrize("which", ["min_gru", "min_lstm"])


@pytest.mark.parametrize("bias", [0.0, 6.0, 12.0])
@pytest.mark.parametrize("kind", helpers.daily([MinGRU, MinLSTM]))
@pytest.mark.slow
def test_long_sequences_in_float32(kind, bias):
    """20,000 steps. With the larger biases the cell remembers for thousands of steps."""
    rng = np.random.default_rng(0)
    cell = kind(D, 8)
    params = helpers.random_like(rng, jax.eval_shape(cell.init, jax.random.key(0)))
    shift = np.zeros_like(params.bias)
    shift[:8] = -bias if kind is MinGRU else bias
    params = params._replace(bias=params.bias + shift)
    xs, carry = rng.normal(size=(20_000, 1, D)).astype(np.float32), np.full((1, 8), -1.0, np.float32)
    ys = np.asarray(lstm_jax.unroll(cell, params, xs, carry, implementation="parallel")[1], np.float64)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, xs, carry))
        exact = np.asarray(lstm_jax.unroll(cell, *wide, implementation="scan")[1])
    assert np.max(np.abs(ys - exact) / np.maximum(np.abs(exact), 1)) < 1e-5


def scan_coefficients(log_a, b):
    """The associative scan of given coefficients."""

    class Coefficients:
        def coefficients(self, params, xs):
            return xs

    zero = jnp.zeros(b.shape[1:], b.dtype)
    return associative_scan(Coefficients(), Options(), (), None, None, zero, ((log_a, b), None), Flags())[1][
        0
    ]


@pytest.mark.slow
def test_coefficients_near_one_are_accurate():
    """a = exp(-6e-7) is about 10 float32 numbers below 1; the error of its products would be 2e-4."""
    steps, log_a = 20_000, np.float32(-6e-7)
    b = np.full((steps, 1), 1e-6, np.float32)
    exact = np.cumsum(np.exp(np.arange(steps) * np.float64(log_a))) * np.float64(b[0, 0])
    found = np.asarray(scan_coefficients(jnp.full((steps, 1), log_a), jnp.asarray(b)))[:, 0]
    np.testing.assert_allclose(found, exact, rtol=2e-6)
    by_products = np.zeros(steps, np.float32)
    for t in range(steps):
        by_products[t] = np.exp(log_a) * by_products[t - 1] + b[t, 0]
    assert np.max(np.abs(by_products - exact) / exact) > 2e-5


@pytest.mark.parametrize("compute", helpers.daily(["float32", "bfloat16", "float16"]))
@pytest.mark.parametrize("kind", [MinGRU, MinLSTM])
@pytest.mark.parametrize("implementation", helpers.daily(["parallel", "fused", "scan"]))
@pytest.mark.slow
def test_saturated_gates_give_finite_values_and_gradients(kind, compute, implementation):
    """All combinations of -100, 0 and 100, including both gates of a minimal LSTM closed."""
    gates = 2 if kind is MinGRU else 3
    extremes = np.stack(np.meshgrid(*[[-100.0, 0.0, 100.0]] * gates), -1).reshape(-1, 1, gates)
    cell = kind(gates, 1, dtype=compute)
    params = cell.init(jax.random.key(0))._replace(w_ih=np.eye(gates, dtype=np.float32))
    rng = np.random.default_rng(0)
    xs = rng.permutation(np.repeat(extremes, 3, axis=0)).astype(np.float32)
    resets = rng.random((len(xs), 1)) < 0.2

    def loss(params, xs, carry):
        carry, ys = lstm_jax.unroll(cell, params, xs, carry, resets=resets, implementation=implementation)
        return jnp.sum(ys.astype(jnp.float32)) + jnp.sum(carry.astype(jnp.float32))

    carry = jnp.full((1, 1), -3, compute)
    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(params, xs, carry)
    assert np.isfinite(value) and all_finite(grads)


@pytest.mark.usefixtures("x64")
def test_the_coefficient_zero_is_zero_in_every_dtype():
    assert np.exp(np.float64(LOG_ZERO)) == 0 and np.isfinite(np.float32(LOG_ZERO) * 2**31)


@pytest.mark.parametrize("compute", ["bfloat16", "float16", None])
@WHICH
def test_dtypes_agree_with_the_plain_scan(which, compute):
    cell = BY_NAME[which].build(param_dtype="float32", dtype=compute)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((4, 2, D))
    for carry in (None, cell.initial_carry((2,), params), jnp.zeros((2, H), "float16")):
        dtypes = [
            [a.dtype.name for a in jax.tree.leaves(jax.eval_shape(run, carry))]
            for how in ("parallel", "scan")
            for run in [partial(unrolled, cell, params, xs, how)]
        ]
        assert dtypes[0] == dtypes[1]


def unrolled(cell, params, xs, how, carry):
    return lstm_jax.unroll(cell, params, xs, carry, return_carries=True, implementation=how)
