"""Prints the largest relative error of programs whose weights are filled with one value inside of them.

Run by ``test_fills.py`` in another process. With the argument ``unguarded`` the workaround is off, with
``few`` only some of the programs run.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax
from lstm_jax import _fills

if "unguarded" in sys.argv:
    _fills.AFFECTED = False

KEY = jax.random.key(0)
XS = jax.random.normal(KEY, (4, 32, 60))
ZEROS, ONES = jax.nn.initializers.zeros, jax.nn.initializers.ones


def outputs(cell, reduce):
    """A reduction of the outputs of a cell that is initialised inside the program."""
    return lambda xs: reduce(lstm_jax.unroll(cell, cell.init(KEY), xs)[1])


def step_outputs(cell, reduce):
    """The same reduction of the output of a single step."""
    return lambda xs: reduce(stepped(cell, cell.init(KEY), xs))


def tangents(cell, run):
    """The sum of squares of the derivative along the direction of ones in all parameters."""

    def f(xs):
        params = cell.init(KEY)
        along = jax.tree.map(jnp.ones_like, params)
        return jnp.sum(jax.jvp(lambda p: run(cell, p, xs), (params,), (along,))[1] ** 2)

    return f


def unrolled(cell, params, xs):
    return lstm_jax.unroll(cell, params, xs)[1]


def stepped(cell, params, xs):
    return cell.step(params, cell.initial_carry((128,)), xs.reshape(128, 60))[1]


def squares(y):
    return jnp.sum(y * y)


READOUT = lstm_jax.Readout(60, 60, w_init=ZEROS)
FILLED = lstm_jax.Readout(60, 60, w_init=ONES)
RNN = lstm_jax.RNN(60, 60, w_ih_init=ONES, w_hh_init=ZEROS, activation=jax.nn.relu)
HEADS = lstm_jax.LSTMVariant(60, 60, heads=2, w_ih_init=ZEROS, w_hh_init=ONES)
PROGRAMS = {
    "readout, max": outputs(READOUT, jnp.max),
    "readout, largest magnitude": outputs(FILLED, lambda y: jnp.max(jnp.abs(y))),
    "readout, squares": outputs(FILLED, squares),
    "readout, one step": step_outputs(READOUT, jnp.max),
    "rnn, squares": outputs(RNN, squares),
    "rnn, one step": step_outputs(RNN, squares),
    "indrnn": outputs(lstm_jax.IndRNN(60, 60, w_ih_init=ONES), squares),
    "heads": outputs(HEADS, squares),
    "residual": outputs(lstm_jax.Stack((READOUT, FILLED), residual=True), squares),
    "skip": outputs(lstm_jax.Stack((READOUT, lstm_jax.Readout(120, 60, w_init=ONES)), skip=True), squares),
    "tangents of a readout": tangents(READOUT, unrolled),
    "tangents of a readout's step": tangents(READOUT, stepped),
    "tangents of an rnn": tangents(RNN, unrolled),
    "tangents of an rnn's step": tangents(RNN, stepped),
    "tangents of an lstm": tangents(lstm_jax.LSTM(60, 60), unrolled),
    "under vmap": lambda xs: jax.vmap(lambda s: squares(unrolled(FILLED, FILLED.init(KEY), xs * s)))(
        jnp.ones(2)
    ),
    "gradients": lambda xs: jax.grad(lambda s: squares(unrolled(FILLED, FILLED.init(KEY), xs) * s))(1.0),
}

FEW = ("readout, squares", "rnn, one step", "tangents of a readout")

if __name__ == "__main__":
    for name, program in PROGRAMS.items():
        if "few" in sys.argv and name not in FEW:
            continue
        got = np.asarray(jax.jit(program)(XS))
        with jax.disable_jit():
            expected = np.asarray(program(XS))
        error = np.max(np.abs(got - expected) / np.maximum(np.abs(expected), 1))
        print(f"{error:.1e} {name}")
