"""The same key gives the same noise and the same initial parameters with and without ``jax_enable_x64``."""

import cell_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_x64_changes_nothing, daily

import lstm_jax
from lstm_jax import _random

D, H = 3, 4
LSTM = lstm_jax.LSTM(D, H)

NOISY = {
    "inputs": lstm_jax.VariationalDropout(LSTM, inputs=0.3),
    "recurrent": lstm_jax.VariationalDropout(LSTM, recurrent=0.4),
    "candidate": lstm_jax.CandidateDropout(LSTM, 0.5),
    "candidate_sequence": lstm_jax.CandidateDropout(lstm_jax.GRU(D, H), 0.5, mask="sequence"),
    "weight_drop": lstm_jax.WeightDrop(LSTM, 0.5),
    "zoneout": lstm_jax.Zoneout(LSTM, rates=(0.3, 0.5)),
    "leaky": lstm_jax.LeakyRNN(D, H, noise=0.5),
    "stack": lstm_jax.Stack((LSTM, lstm_jax.GRU(H, H)), dropout=0.4),
    "stack_sequence": lstm_jax.Stack((LSTM, lstm_jax.GRU(H, H)), dropout=0.4, dropout_mask="sequence"),
}


@pytest.mark.parametrize(
    "name", daily(NOISY, "inputs", "candidate", "weight_drop", "zoneout", "leaky", "stack")
)
def test_noise(name):
    network = NOISY[name]
    xs = np.random.default_rng(0).normal(size=(9, 8, D)).astype(np.float32)

    def unrolled():
        params = network.init(jax.random.key(0))
        return lstm_jax.unroll(network, params, xs, key=jax.random.key(1))

    assert_x64_changes_nothing(unrolled)
    ys, quiet = unrolled()[1], lstm_jax.unroll(network, network.init(jax.random.key(0)), xs)[1]
    assert np.max(np.abs(ys - quiet)) > 1e-3


def test_draws():
    """So many entries that float64 draws would differ from float32 draws in every mask."""
    like = jax.ShapeDtypeStruct((1000,), jnp.float32)
    assert_x64_changes_nothing(lambda: _random.bernoulli(jax.random.key(0), 0.3, like))
    assert_x64_changes_nothing(lambda: _random.normal(jax.random.key(0), like))
    kept = _random.bernoulli(jax.random.key(0), 0.3, like)
    assert abs(float(kept.mean()) - 0.3) < 0.05


@pytest.mark.parametrize(
    "case", daily(cell_cases.table(), *map(cell_cases.BY_NAME.get, cell_cases.DAILY)), ids=cell_cases.name
)
def test_initial_parameters(case):
    assert_x64_changes_nothing(lambda: case.build(param_dtype=np.float32).init(jax.random.key(0)))


@pytest.mark.parametrize("init", daily([lstm_jax.torch_init, lstm_jax.keras_init]))
def test_initial_parameters_of_other_libraries(init):
    network = lstm_jax.Stack((LSTM, lstm_jax.GRU(H, H), lstm_jax.Readout(H, 2)))
    assert_x64_changes_nothing(lambda: init(network, jax.random.key(0)))
