"""Inputs, options and conversions of Flax's weights for the tests of both Flax modules."""

import doctest
import inspect

import jax
import jax.numpy as jnp
import numpy as np
from helpers import random_like

import lstm_jax

T, B, D, H = 6, 3, 4, 5
LENGTHS = [T, 1, 4]
F64 = {"param_dtype": "float64"}
CELL_CLASSES = {"lstm": lstm_jax.LSTM, "gru": lstm_jax.GRU, "rnn": lstm_jax.RNN}

rng = np.random.default_rng(0)
MASK = rng.random((B, T)) < 0.7
RESETS = rng.random((B, T)) < 0.3
XS = rng.normal(size=(B, T, D))

#: Options of the modules for whole sequences, batch first, and the same options of ``unroll``.
CALLS = {
    "plain": ({}, {}),
    "lengths": ({"seq_lengths": LENGTHS}, {"lengths": LENGTHS}),
    "length_0": ({"seq_lengths": [T, 0, 4]}, {"lengths": [T, 0, 4]}),
    "mask": ({"mask": MASK}, {"mask": MASK.T}),
    "resets": ({"resets": RESETS}, {"resets": RESETS.T}),
    "reverse": (
        {"reverse": True, "keep_order": True, "seq_lengths": LENGTHS, "resets": RESETS},
        {"reverse": True, "lengths": LENGTHS, "resets": RESETS.T},
    ),
    "checkpoint": ({"checkpoint": "sqrt"}, {"checkpoint": "sqrt"}),
    "truncate": ({"truncate": 2, "start": 1}, {"truncate": 2, "start": 1}),
    "scan": ({"implementation": "scan"}, {"implementation": "scan"}),
}


def fill(tree, seed=0):
    """A tree of random numbers in the shapes of ``tree``."""
    return jax.tree.map(jnp.asarray, random_like(np.random.default_rng(seed), tree))


def parameters(network, seed=0):
    """Random parameters of a network."""
    return fill(jax.eval_shape(network.init, jax.random.key(0)), seed)


def time_first(a):
    """Exchange the first two axes."""
    return jnp.swapaxes(a, 0, 1)


def assert_close(actual, expected, tolerance=1e-10):
    """Check that two trees have the same structure, and values equal up to rounding."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=10 * tolerance, atol=tolerance)


def valid(lengths=LENGTHS):
    """Whether each step is valid, (B, T)."""
    return np.arange(T) < np.asarray(lengths)[:, None]


def read_gates(flax, gates, bias_side):
    """The weights, or gradients, of one of Flax's cells with one kernel for each gate."""

    def joined(prefix, leaf, names=gates):
        arrays = [
            flax[prefix + name if prefix + name in flax else prefix + name + "_"][leaf] for name in names
        ]
        return jnp.concatenate(arrays, axis=-1)

    return joined("i", "kernel"), joined("h", "kernel"), joined(bias_side, "bias")


def read_lstm(flax):
    return lstm_jax.LSTMParams(*read_gates(flax, "ifgo", "h"))


def read_gru(flax):
    return lstm_jax.GRUParams(*read_gates(flax, "rzn", "i"), flax["hn"]["bias"])


def read_rnn(flax):
    return lstm_jax.RNNParams(flax["i"]["kernel"], flax["h"]["kernel"], flax["i"]["bias"])


def check_documentation(module, names):
    """Check that every public name has an example, and that the examples print what they show."""
    public = [getattr(module, name) for name in names]
    assert all(">>> " in inspect.getdoc(value) for value in public)
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0 and results.attempted >= 2 * len(names)
