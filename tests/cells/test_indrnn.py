"""The independently recurrent network."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_raises, random_arrays, random_params

import lstm_jax
from lstm_jax import IndRNN

D, H = 3, 4
KEY = jax.random.key(0)
X = jnp.ones((2, D))


def test_a_unit_reads_only_its_own_state():
    cell = IndRNN(D, H, activation=jnp.tanh)
    params, (xs,) = random_params(cell), random_arrays((5, D))
    jacobian = jax.jacobian(lambda h: lstm_jax.unroll(cell, params, xs, h)[0])(jnp.full(H, 0.1))
    assert np.all((jacobian != 0) == np.eye(H, dtype=bool))


def test_recurrent_weights_are_uniform_below_one():
    w_hh = np.sort(IndRNN(D, 1000).init(KEY).w_hh)
    assert np.all((w_hh >= 0) & (w_hh < 1))
    assert np.max(np.abs(w_hh - np.linspace(0, 1, 1000))) < 0.07
    constant = IndRNN(D, H, w_hh_init=jax.nn.initializers.constant(0.5)).init(KEY)
    assert constant.w_hh.tolist() == [0.5] * H


def test_a_state_at_the_bound_of_the_paper_doubles_over_the_sequence():
    cell, steps = IndRNN(D, 1, use_bias=False), 50
    params = cell.init(KEY)._replace(w_hh=jnp.full(1, 2.0 ** (1 / steps)))
    h, _ = lstm_jax.unroll(cell, params, jnp.zeros((steps, D)), jnp.ones(1))
    np.testing.assert_allclose(h, 2, rtol=1e-5)


def test_equal_hyperparameters_are_equal_cells():
    cell = IndRNN(D, H, dtype=jnp.bfloat16)
    same = IndRNN(np.int32(D), H, dtype="bfloat16")
    assert cell == same and hash(cell) == hash(same)
    assert all(cell != replace(cell, **change) for change in ({"use_bias": False}, {"dtype": None}))


# --- errors -------------------------------------------------------------------------------------

#: A call, and a part of its error message.
ERRORS = {
    "indrnn: a matrix for the units": (
        lambda: lstm_jax.indrnn_step(
            lstm_jax.IndRNNParams(jnp.ones((D, H)), jnp.ones((H, H))),
            jnp.ones((2, H)),
            X,
            activation=jax.nn.relu,
        ),
        "indrnn_step got w_hh of shape (4, 4); expected w_hh (4,)",
    ),
    "indrnn: another size": (
        lambda: lstm_jax.unroll(IndRNN(D, 2), IndRNN(D, H).init(KEY), X),
        "IndRNN got w_ih of shape (3, 4), w_hh of shape (4,)",
    ),
    "indrnn: x": (
        lambda: IndRNN(D, H).step(IndRNN(D, H).init(KEY), jnp.ones((2, H)), jnp.ones((2, 5))),
        "IndRNN got x of shape (2, 5)",
    ),
    "indrnn: carry": (
        lambda: IndRNN(D, H).step(IndRNN(D, H).init(KEY), jnp.ones(H), X),
        "IndRNN.step got h of shape (4,)",
    ),
    "indrnn: activation": (lambda: IndRNN(D, H, activation="relux"), "IndRNN got activation='relux'"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    assert_raises(*ERRORS[what])
