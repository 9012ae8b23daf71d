"""Errors of cells: hyperparameters, parameters, inputs and carries that do not fit."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_raises, zero_params, zeros_like

import lstm_jax
from lstm_jax import GRU, LSTM, RNN, GRUVariant, Readout

T, B, D, H = 5, 4, 3, 2
KEY = jax.random.key(0)
LSTM_CELL, GRU_CELL = LSTM(D, H), GRU(D, H)
LSTM_PARAMS, GRU_PARAMS = zero_params(LSTM_CELL), zero_params(GRU_CELL)
XS = np.zeros((T, B, D), np.float32)
X = XS[0]
STATE = np.zeros((B, H), np.float32)
CARRY = (STATE, STATE)


def call(cell=LSTM_CELL, params=LSTM_PARAMS):
    return lambda: lstm_jax.unroll(cell, params, XS)


class OtherParams(NamedTuple):
    weights: object = None


#: A call, and words of its error message: the given and the expected value.
ERRORS = {
    # cells
    "learned initial carry without params": (
        lambda: LSTM(D, H, learn_initial_carry=True).initial_carry((B,)),
        "LSTM.initial_carry got no params",
        "learn_initial_carry=True",
    ),
    # params
    "params of another size": (call(params=zero_params(LSTM(D, 3))), "w_hh of shape (3, 12)", "w_hh (2, 8)"),
    "params of another cell": (call(params=GRU_PARAMS), "LSTM", "type GRUParams", "LSTMParams"),
    "params of a dict": (call(params={"w_ih": X}), "type dict", "LSTMParams, the NamedTuple"),
    "params of another tuple": (call(params=OtherParams()), "type OtherParams", "LSTMParams, the NamedTuple"),
    "params None": (call(params=None), "type NoneType", "LSTMParams, the NamedTuple"),
    "params of integers": (
        call(params=LSTM_PARAMS._replace(w_ih=LSTM_PARAMS.w_ih.astype(int))),
        "w_ih of dtype int",
        "floating",
    ),
    "an ensemble's params": (
        call(params=jax.tree.map(lambda a: np.stack([a, a]), LSTM_PARAMS)),
        "w_ih of shape (2, 3, 8)",
        "jax.vmap",
    ),
    "a missing bias": (call(params=LSTM_PARAMS._replace(bias=None)), "no params.bias", "use_bias=True"),
    "an unexpected bias": (
        call(LSTM(D, H, use_bias=False)),
        "params.bias with use_bias=False",
        "bias to be None",
    ),
    "a missing initial carry": (
        call(LSTM(D, H, learn_initial_carry=True), LSTM_PARAMS),
        "initial",
        "learn_initial_carry",
    ),
    "bias_hn before the reset gate": (
        call(GRUVariant(D, H, reset_after=False), zero_params(GRUVariant(D, H))),
        "params.bias_hn with reset_after=False",
        "bias_hn to be None",
    ),
    "bias_hn of integers": (
        call(GRU_CELL, GRU_PARAMS._replace(bias_hn=GRU_PARAMS.bias_hn.astype(int))),
        "bias_hn of dtype int",
        "floating",
    ),
    "bias_hn of another size": (
        call(GRU_CELL, GRU_PARAMS._replace(bias_hn=np.zeros(3, np.float32))),
        "bias_hn of shape (3,)",
        "bias_hn (2,)",
    ),
    "a readout without its bias": (
        lambda: Readout(H, 3)(zero_params(Readout(H, 3))._replace(bias=None), STATE),
        "Readout got no params.bias",
        "(3,)",
    ),
    # steps
    "a step on another size": (
        lambda: LSTM_CELL.step(LSTM_PARAMS, CARRY, STATE),
        "x of shape (4, 2)",
        "(..., 3)",
    ),
    "a step with a carry of another batch": (
        lambda: LSTM_CELL.step(LSTM_PARAMS, (STATE[0], STATE), X),
        "LSTM.step got h of shape (2,)",
        "(4, 2)",
    ),
    "a step with one state": (lambda: LSTM_CELL.step(LSTM_PARAMS, STATE, X), "carry of 1 parts", "(h, c)"),
    "a step with a carry of integers": (
        lambda: LSTM_CELL.step(LSTM_PARAMS, (STATE, STATE.astype(int)), X),
        "LSTM.step got c of dtype int",
        "floating",
    ),
    "an initial carry for a dict": (
        lambda: LSTM_CELL.initial_carry((B,), {"w_ih": X}),
        "LSTM.initial_carry got parameters of type dict",
        "LSTMParams, the NamedTuple",
    ),
    "a step on integers": (
        lambda: RNN(D, H).step(zero_params(RNN(D, H)), STATE, X.astype(np.int32)),
        "x of dtype int32",
        "floating",
    ),
    "lstm_step with a GRU's params": (
        lambda: lstm_jax.lstm_step(GRU_PARAMS, CARRY, X),
        "lstm_step got parameters of type GRUParams",
        "LSTMParams",
    ),
    "gru_step with an LSTM's carry": (
        lambda: lstm_jax.gru_step(GRU_PARAMS, CARRY, X),
        "carry of 2 parts",
        "(h)",
    ),
    "rnn_step on another size": (
        lambda: lstm_jax.rnn_step(zero_params(RNN(D, H)), STATE, STATE, activation=jnp.tanh),
        "rnn_step got x of shape (4, 2)",
        "(..., 3)",
    ),
    "lstm_gates without params": (lambda: lstm_jax.lstm_gates(None, CARRY, X), "lstm_gates", "NoneType"),
    # constructors
    "a size of 0": (lambda: LSTM(0, H), "LSTM got input_size=0", "1 or more"),
    "a fractional size": (lambda: GRU(D, 2.5), "GRU got hidden_size=2.5", "whole number"),
    "a size of True": (lambda: RNN(D, True), "RNN got hidden_size=True", "whole number"),
    "a size of type str": (lambda: Readout(D, "3"), "Readout got output_size='3'", "whole number"),
    "a dtype of integers": (lambda: LSTM(D, H, dtype="int8"), "dtype=int8", "floating"),
    "an unknown dtype": (lambda: LSTM(D, H, param_dtype="float33"), "param_dtype='float33'", "floating"),
    "the name of an initialiser": (
        lambda: LSTM(D, H, w_ih_init="glorot"),
        "w_ih_init='glorot'",
        "Give w_ih_init=jax.nn.initializers",
    ),
    "an unknown activation": (lambda: RNN(D, H, activation="tan"), "activation='tan'", "a function"),
    "an unknown activation of a readout": (
        lambda: Readout(D, H, activation="softmin"),
        "activation='softmin'",
        "a function",
    ),
    "init without a key": (lambda: LSTM_CELL.init(0), "LSTM.init got key=0", "one PRNG key"),
    "init with many keys": (lambda: GRU_CELL.init(jax.random.split(KEY, 2)), "keys of shape (2,)", "one key"),
    "torch_init without a key": (
        lambda: lstm_jax.torch_init(LSTM_CELL, 0),
        "torch_init got key=0",
        "one PRNG key",
    ),
    "a readout of another size": (
        lambda: Readout(H, 3)(zero_params(Readout(H, 3)), X),
        "Readout got x of shape (4, 3)",
        "(..., 2)",
    ),
    "a readout of integers": (
        lambda: Readout(H, 3)(zero_params(Readout(H, 3)), STATE.astype(int)),
        "Readout got x of dtype int",
        "floating",
    ),
    "a readout's init without a key": (
        lambda: Readout(H, 3).init(7),
        "Readout.init got key=7",
        "one PRNG key",
    ),
    "the name of a readout's initialiser": (
        lambda: Readout(H, 3, w_init="zeros"),
        "w_init='zeros'",
        "a function",
    ),
}


def _for_each_cell():
    """Errors that are raised by each cell."""
    steps = {
        RNN: partial(lstm_jax.rnn_step, activation=jnp.tanh),
        LSTM: lstm_jax.lstm_step,
        GRU: lstm_jax.gru_step,
    }
    for cell_class, step in steps.items():
        cell, name = cell_class(D, H), cell_class.__name__
        params, carry = zero_params(cell), zeros_like(cell.initial_carry((B,)))
        other = zero_params(cell_class(2, H))
        row = zeros_like(cell.initial_carry())
        yield (
            f"{name}: params of another size",
            (call(cell, zero_params(cell_class(D, 5))), name, "w_hh of shape (5, "),
        )
        yield (
            f"{name}: a step with another cell's params",
            (
                lambda cell=cell, carry=carry, other=other: cell.step(other, carry, X),
                "w_ih of shape (2, ",
            ),
        )
        yield (
            f"{name}: a step with another cell's carry",
            (
                lambda cell=cell, params=params, row=row: cell.step(params, row, X),
                f"{name}.step got h",
                "(4, 2)",
            ),
        )
        yield (
            f"{name}: a free step with another cell's carry",
            (
                lambda step=step, params=params, row=row: step(params, row, X),
                f"{name.lower()}_step got h",
                "(4, 2)",
            ),
        )
        yield (
            f"{name}: a free step on another size",
            (
                lambda step=step, params=params, carry=carry: step(params, carry, STATE),
                f"{name.lower()}_step got x of shape (4, 2)",
                "(..., 3)",
            ),
        )
        yield (
            f"{name}: init without a key",
            (lambda cell=cell: cell.init(7), f"{name}.init got key=7", "one PRNG key"),
        )


ERRORS |= dict(_for_each_cell())


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    assert_raises(*ERRORS[what])
