"""Activations by name: equal to those by function, in every cell that has one."""

import jax
import jax.numpy as jnp
import pytest

from lstm_jax import RNN, GRUVariant, IndRNN, LeakyRNN, LSTMVariant, Readout
from lstm_jax.cells.activations import ACTIVATIONS

CELLS = (RNN, IndRNN, LeakyRNN, Readout, LSTMVariant, GRUVariant)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", ["relu", "relu6", "exponential"])
def test_a_name_and_its_function_make_equal_cells(cell, name):
    function = {"exponential": jnp.exp}.get(name) or getattr(jax.nn, name)
    by_name, by_function = cell(3, 2, activation=name), cell(3, 2, activation=function)
    assert by_name == by_function and hash(by_name) == hash(by_function)
    assert by_name.activation is function
    assert by_name != cell(3, 2, activation=jnp.sin)


@pytest.mark.parametrize("cell", CELLS)
def test_equal_functions_make_equal_cells(cell):
    """JAX has two functions for some activations."""
    for name in ("sigmoid", "tanh", "identity"):
        expected = ACTIVATIONS["linear" if name == "identity" else name]
        assert cell(3, 2, activation=getattr(jax.nn, name)).activation is expected
