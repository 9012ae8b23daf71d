"""VariationalDropout and CandidateDropout: which values are dropped, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import user_cells
from cell_case import D
from helpers import assert_raises

import lstm_jax
from lstm_jax import (
    GRU,
    LSTM,
    MLSTM,
    RNN,
    CandidateDropout,
    LSTMVariant,
    MinGRU,
    MinLSTM,
    VariationalDropout,
    WeightDrop,
    unroll,
)

pytestmark = pytest.mark.usefixtures("x64")

T, B, H = 6, 3, 4
KEY = jax.random.key(5)
WIDE = {"param_dtype": "float64"}
CELL = LSTM(D, H, **WIDE)


def identity_rnn(**weights):
    """An RNN h_t = x_t W + h_{t-1} R; W and R are zero by default."""
    cell = RNN(D, D, activation=jnp.positive, use_bias=False, **WIDE)
    return cell, lstm_jax.RNNParams(*(weights.get(name, np.zeros((D, D))) for name in ("w_ih", "w_hh")))


def test_variational_dropout_has_one_mask_for_all_steps():
    """Rows have different masks, and kept entries are scaled."""
    rows, ones = 400, np.ones((T, 400, D))
    cell, params = identity_rnn(w_ih=np.eye(D))
    _, ys = unroll(VariationalDropout(cell, inputs=0.25), params, ones, key=KEY)
    ys = np.asarray(ys)
    assert np.all(ys == ys[0])
    np.testing.assert_allclose(np.unique(ys), [0, 4 / 3])
    assert abs(np.mean(ys == 0) - 0.25) < 0.05 and len(np.unique(ys[0], axis=0)) > 4
    cell, params = identity_rnn(w_hh=np.eye(D))
    _, ys = unroll(VariationalDropout(cell, recurrent=0.5), params, 0 * ones, np.ones((rows, D)), key=KEY)
    ys = np.asarray(ys)
    assert np.all((ys == 0) | (ys == 2.0 ** np.arange(1, T + 1)[:, None, None]))
    assert abs(np.mean(ys[-1] == 0) - 0.5) < 0.05


def test_variational_dropout_applies_only_to_the_recurrent_product():
    """A GRU with update gate 1 keeps its state under any mask."""
    cell = GRU(D, H, **WIDE)
    params = jax.tree.map(jnp.zeros_like, cell.init(KEY))
    params = params._replace(bias=params.bias.at[H : 2 * H].set(1000.0))
    h = np.random.default_rng(0).normal(size=(B, H))
    after, _ = unroll(VariationalDropout(cell, recurrent=0.5), params, np.zeros((T, B, D)), h, key=KEY)
    np.testing.assert_array_equal(after, h)


@pytest.mark.parametrize("mask", ["step", "sequence"])
def test_candidate_dropout_does_not_drop_the_cell_state(mask):
    """With both gates 1, c grows by g / (1 - rate) or stays the same at each step."""
    units = 300
    cell = LSTMVariant(D, units, ablation="no_forget_gate", **WIDE)
    params = jax.tree.map(jnp.zeros_like, cell.init(KEY))
    params = params._replace(bias=params.bias.at[:units].set(1000.0).at[units : 2 * units].set(0.5))
    wrapped = CandidateDropout(cell, 0.25, mask=mask)
    _, (_, (_, c)) = unroll(wrapped, params, np.zeros((T, 1, D)), key=KEY, return_carries=True)
    growth = np.diff(np.asarray(c), axis=0, prepend=0)
    full = np.isclose(growth, np.tanh(0.5) / 0.75)
    assert np.all(full | (np.abs(growth) < 1e-12))
    assert abs(np.mean(~full) - 0.25) < 0.05
    assert np.all(full == full[0]) == (mask == "sequence")


ERRORS = {
    "rate below 0": (lambda: VariationalDropout(CELL, inputs=-0.1), "VariationalDropout got inputs=-0.1"),
    "cell that does not split": (
        lambda: VariationalDropout(user_cells.Leaky(), recurrent=0.5),
        "recurrent=0.5 for Leaky; expected a cell with project, recur and update",
    ),
    **{
        f"no recurrent product in {cell.__name__}": (
            lambda cell=cell: VariationalDropout(WeightDrop(cell(3, 4), 0.5), recurrent=0.5),
            f"recurrent=0.5 for WeightDrop({cell.__name__}(3 -> 4)); expected a cell with a product of h and",
        )
        for cell in (MinGRU, MinLSTM, MLSTM)
    },
    "cell without a candidate": (
        lambda: CandidateDropout(RNN(D, H), 0.5),
        "CandidateDropout got a RNN; expected a cell whose update",
    ),
    "mask": (
        lambda: CandidateDropout(CELL, 0.5, mask="row"),
        "mask='row'; expected one of 'step', 'sequence'",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    assert_raises(*ERRORS[what])
