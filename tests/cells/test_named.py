"""Parameters as flat dicts of dotted names, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_cases import CELL_CASES

import lstm_jax
from lstm_jax import flatten_params, unflatten_params


@pytest.mark.parametrize("case", CELL_CASES, ids=lambda case: case.name)
def test_every_cell_and_network_there_and_back(case):
    network = case.build(param_dtype=np.float32)
    params = network.init(jax.random.key(0))
    arrays = flatten_params(params)
    assert [np.shape(a) for a in arrays.values()] == [np.shape(a) for a in jax.tree.leaves(params)]
    for like in (network, params, jax.eval_shape(network.init, jax.random.key(0))):
        again = unflatten_params(like, dict(reversed(arrays.items())))
        assert jax.tree.structure(again) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, again, params)


def test_names_are_paths():
    cell = lstm_jax.LSTM(3, 4, learn_initial_carry=True)
    assert list(flatten_params(cell.init(jax.random.key(0)))) == [
        *("w_ih", "w_hh", "bias"),
        *("initial.0", "initial.1"),
    ]
    network = lstm_jax.Stack((lstm_jax.Bidirectional(lstm_jax.GRU(3, 4)), lstm_jax.Readout(8, 2)))
    names = list(flatten_params(network.init(jax.random.key(0))))
    assert names[:4] == ["0.forward.w_ih", "0.forward.w_hh", "0.forward.bias", "0.forward.bias_hn"]
    assert names[-1].startswith("1.")
    assert list(flatten_params(jnp.ones(2))) == ["value"]
    assert list(flatten_params({"b": 1.0, "a": (2.0, None)})) == ["a.0", "b"]


def test_two_arrays_of_one_name_raise():
    with pytest.raises(ValueError, match=r"more than one array named a\.b"):
        flatten_params({"a.b": 1.0, "a": {"b": 2.0}})


def test_parameters_that_a_cell_may_lack():
    cell = lstm_jax.GRU(3, 4)
    without = cell.init(jax.random.key(0))._replace(bias_hn=None)
    assert unflatten_params(cell, flatten_params(without)).bias_hn is None
    wrapped = lstm_jax.Zoneout(cell, rates=0.1)
    for network in (lstm_jax.Stack((lstm_jax.Bidirectional(wrapped),)), lstm_jax.Bidirectional(wrapped)):
        arrays = flatten_params(network.init(jax.random.key(0)))
        fewer = {name: a for name, a in arrays.items() if not name.endswith("bias_hn")}
        assert len(fewer) == len(arrays) - 2
        assert list(flatten_params(unflatten_params(network, fewer))) == list(fewer)
    with pytest.raises(ValueError, match=r"missing: bias_hn \(4,\)"):  # the parameters have bias_hn
        unflatten_params(cell.init(jax.random.key(0)), flatten_params(without))


def test_all_faults_are_in_one_error():
    cell = lstm_jax.LSTM(3, 4)
    arrays = flatten_params(cell.init(jax.random.key(0)))
    arrays |= {"w_hh": np.zeros((5, 16), np.float32), "w_hr": np.zeros((4, 2), np.float32)}
    del arrays["bias"]
    with pytest.raises(ValueError) as error:
        unflatten_params(cell, arrays)
    for text in ("missing: bias (16,)", "unexpected: w_hr", "w_hh (5, 16), expected (4, 16)"):
        assert text in str(error.value)
    with pytest.raises(ValueError, match="a mapping of names to arrays"):
        unflatten_params(cell, [1.0])
    many = {f"name {index} {'x' * 200}": np.zeros(1, np.float32) for index in range(10_000)}
    with pytest.raises(ValueError) as error:
        unflatten_params(cell, many)
    assert len(str(error.value)) < 1000 and "and 9994 more" in str(error.value)


def test_float64_is_not_rounded_in_silence():
    cell = lstm_jax.RNN(3, 4)
    arrays = {n: np.asarray(a, np.float64) for n, a in flatten_params(cell.init(jax.random.key(0))).items()}
    with pytest.raises(ValueError, match="w_ih of dtype float64"):
        unflatten_params(cell, arrays)
    with jax.enable_x64(True):
        assert unflatten_params(cell, arrays).w_ih.dtype == jnp.float64
    half = {name: a.astype(jnp.bfloat16) for name, a in arrays.items()}
    assert unflatten_params(cell, half).w_ih.dtype == jnp.bfloat16
