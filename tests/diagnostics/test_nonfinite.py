"""The first NaN or infinity: the place where each test puts one."""

import cell_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_raises, finite, problem, random_arrays, random_params

import lstm_jax
from lstm_jax import GRU, LSTM, RNN, SLSTM, Bidirectional, Readout, Stack, diagnostics

NETWORK = Stack((LSTM(3, 2), Bidirectional(GRU(2, 2)), Readout(4, 1)))


def find(network, params, xs, *arguments, **options):
    found = diagnostics.first_nonfinite(network, params, xs, *arguments, **options)
    return found if found is None else (found.kind, found.name, found.layer, found.step, found.row)


def test_a_finite_run():
    params, (xs,) = random_params(NETWORK), random_arrays((5, 4, 3))
    assert diagnostics.first_nonfinite(NETWORK, params, xs) is None


@pytest.mark.parametrize("which", ["lstm", "leaky"])
def test_invalid_steps_are_not_searched(which):
    given = problem(cell_cases.BY_NAME[which], dtype=np.float32)
    arguments = given.network, given.params, given.xs, given.carry
    assert not np.all(np.isfinite(given.xs))
    assert find(*arguments, **given.flags) is None
    assert find(*arguments)[:2] == ("input", "")


def test_a_row_without_valid_steps_is_not_searched():
    params, (xs, h) = random_params(GRU(3, 2)), random_arrays((5, 4, 3), (4, 2))
    h[2] = np.nan
    assert find(GRU(3, 2), params, xs, h, lengths=jnp.array([5, 1, 0, 2])) is None
    assert find(GRU(3, 2), params, xs, h)[:2] == ("carry", "h")


def test_a_parameter():
    params = random_params(NETWORK)
    params[1].backward.bias[1] = -np.inf
    found = diagnostics.first_nonfinite(NETWORK, params, jnp.ones((5, 4, 3)))
    assert str(found) == "parameter 1.backward.bias is -inf"


@pytest.mark.parametrize("reverse", [False, True])
def test_an_input(reverse):
    params, (xs,) = random_params(NETWORK), random_arrays((5, 4, 3))
    xs[1, 3, 0], xs[3, 2, 1] = np.nan, np.inf
    found = diagnostics.first_nonfinite(NETWORK, params, xs, reverse=reverse)
    row, step, value = (2, 3, "inf") if reverse else (3, 1, "nan")
    assert str(found) == f"input is {value} (layer 0, step {step}, row {row})"


def test_the_initial_carry():
    cell = LSTM(3, 2)
    params, (xs, h, c) = random_params(cell), random_arrays((5, 4, 3), (4, 2), (4, 2))
    c[2, 1] = np.nan
    assert find(cell, params, xs, (h, c)) == ("carry", "c", "", 0, (2,))


def test_a_state_and_a_gate():
    """An activation that overflows; two products whose sum is inf - inf."""
    cell = RNN(1, 1, activation=jnp.exp, use_bias=False)
    params = lstm_jax.RNNParams(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))
    xs = np.zeros((6, 2, 1), np.float32)
    xs[:, 1] = 1
    assert find(cell, params, xs) == ("state", "h", "", 3, (1,))
    params, xs = random_params(GRU(3, 2)), np.zeros((4, 2, 3), np.float32)
    params.w_ih[0], params.w_hh[0] = 2, -2
    carry = np.zeros((2, 2), np.float32)
    xs[0, 1, 0] = carry[1, 0] = 3e38
    found = diagnostics.first_nonfinite(GRU(3, 2), params, xs, carry)
    assert found.kind == "preactivation" and found.name in ("r", "z", "n")
    assert (found.layer, found.step, found.row) == ("", 0, (1,)) and np.isnan(found.value)


def test_a_gate_that_overflows_without_effect_is_not_reported():
    """The sLSTM is stabilised, so exp of its input gate may overflow."""
    cell = SLSTM(3, 2)
    params, (xs,) = random_params(cell), random_arrays((4, 2, 3))
    params.bias[:2] = 200
    assert np.isinf(diagnostics.gates(cell, params, xs).gates.i).any()
    assert find(cell, params, xs) is None


def test_the_layer_that_runs_first():
    """A later layer has the earlier step, but layer 1 is where the values come from."""
    network = Stack((RNN(1, 1, use_bias=False), Bidirectional(RNN(1, 1, activation=jnp.exp, use_bias=False))))
    ones = lstm_jax.RNNParams(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32))
    params = (ones, lstm_jax.BidirectionalParams(ones._replace(w_hh=ones.w_hh * 0), ones))
    xs = np.ones((9, 2, 1), np.float32)
    kind, name, layer, step, row = find(network, params, xs)
    assert (kind, name, layer, row) == ("state", "h", "1.backward", (0,)) and step > 4


def test_a_user_cell_and_no_batch():
    cell = cell_cases.BY_NAME["leaky"].build(param_dtype="float32")
    given = finite(problem(cell_cases.BY_NAME["leaky"], batch=(), dtype=np.float32))
    xs = np.array(given.xs)
    assert find(cell, given.params, xs) is None
    xs[2, 1] = np.nan
    assert find(cell, given.params, xs) == ("input", "", "", 2, ())


def test_traced_arrays():
    params, xs = random_params(GRU(3, 2)), jnp.ones((4, 3))
    attempt = jax.jit(lambda xs: diagnostics.first_nonfinite(GRU(3, 2), params, xs))
    assert_raises(lambda: attempt(xs), "first_nonfinite got a traced array", "outside of jax.jit")


def test_an_output():
    network = Stack((RNN(3, 2), Readout(2, 1, activation=jnp.log)))
    params, (xs,) = random_params(network), random_arrays((3, 1, 3))
    params[1].w[:], params[1].bias[:] = 0, -1
    assert find(network, params, xs) == ("output", "", "1", 0, (0,))
    assert np.isnan(diagnostics.first_nonfinite(network, params, xs).value)
