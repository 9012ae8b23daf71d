"""Errors of bidirectional networks."""

import numpy as np
import pytest
from cell_case import D, H
from helpers import assert_raises, zero_params

import lstm_jax
from lstm_jax import LSTM, Bidirectional, Stack

LSTM_CELL = LSTM(D, H)
LSTM_PARAMS = zero_params(LSTM_CELL)
XS = np.zeros((5, 4, D), np.float32)
X = XS[0]
STATE = np.zeros((4, H), np.float32)
CARRY = (STATE, STATE)


def call(cell, params):
    return lambda: lstm_jax.unroll(cell, params, XS)


#: A call, and words of its error message: the given and the expected value.
ERRORS = {
    # cells
    "Bidirectional.step": (
        lambda: Bidirectional(LSTM_CELL).step((LSTM_PARAMS,) * 2, (CARRY,) * 2, X),
        "Bidirectional.step",
        "a whole sequence",
        "unroll",
    ),
    "a step of a stack with both directions": (
        lambda: Stack((Bidirectional(LSTM_CELL),)).step(((LSTM_PARAMS,) * 2,), ((CARRY,) * 2,), X),
        "Bidirectional.step",
        "a whole sequence",
    ),
    # params
    "one direction's params": (
        call(Bidirectional(LSTM_CELL), (LSTM_PARAMS,)),
        "Bidirectional",
        "1 entries",
        "tuple of 2",
    ),
    # constructors
    "init of both directions without a key": (
        lambda: Bidirectional(LSTM_CELL).init(1.0),
        "key=1.0",
        "one PRNG key",
    ),
    "a class in a Bidirectional": (lambda: Bidirectional(LSTM), "Bidirectional got <class", "a cell"),
    "None in a Bidirectional": (lambda: Bidirectional(None), "without init, initial_carry, step", "a cell"),
    "an unknown merge": (
        lambda: Bidirectional(LSTM_CELL, merge="max"),
        "merge='max'",
        "'concat', 'sum', 'mean', 'product'",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    assert_raises(*ERRORS[what])
