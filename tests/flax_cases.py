"""What the tests of both Flax modules share: inputs, options, and how Flax's own weights are read."""

import doctest
import inspect

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax

T, B, D, H = 6, 3, 4, 5
LENGTHS = [T, 1, 4]
F64 = {"param_dtype": "float64"}
KINDS = {"lstm": lstm_jax.LSTM, "gru": lstm_jax.GRU, "rnn": lstm_jax.RNN}

rng = np.random.default_rng(0)
MASK = rng.random((B, T)) < 0.7
RESETS = rng.random((B, T)) < 0.3
XS = rng.normal(size=(B, T, D))

#: Options of the full-sequence modules, batch first, and what ``unroll`` is told instead.
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
    """Random numbers in the shapes of a tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.7, a.dtype), tree)


def parameters(network, seed=0):
    return fill(jax.eval_shape(network.init, jax.random.key(0)), seed)


def time_first(a):
    return jnp.swapaxes(a, 0, 1)


def same(ours, theirs, tolerance=1e-10):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=10 * tolerance, atol=tolerance)


def valid(lengths=LENGTHS):
    return np.arange(T) < np.asarray(lengths)[:, None]


def read_gates(flax, gates, bias_side):
    """One of Flax's cells with a kernel a gate, given as nested dicts, or its gradient."""

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
    """Every public name shows a call, and the calls give what is written."""
    public = [getattr(module, name) for name in names]
    assert all(">>> " in inspect.getdoc(value) for value in public)
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0 and results.attempted >= 2 * len(names)
