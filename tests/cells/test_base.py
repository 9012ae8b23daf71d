"""What all cells have in common: copies and pickles are equal to the original."""

import copy
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import members
import pytest

import lstm_jax

NETWORKS = {member.name: member.build(param_dtype="float32") for member in members.BY_NAME.values()} | {
    "several wrappers": lstm_jax.Zoneout(
        lstm_jax.WeightDrop(lstm_jax.VariationalDropout(lstm_jax.GRU(3, 2), inputs=0.1), 0.2), rates=0.1
    ),
    "a stack of activations": lstm_jax.Stack(
        (lstm_jax.RNN(3, 2, activation=jax.nn.softplus), lstm_jax.IndRNN(2, 2, activation=jnp.sin))
    ),
}


@pytest.mark.parametrize("how", [copy.deepcopy, copy.copy, lambda a: pickle.loads(pickle.dumps(a))])
@pytest.mark.parametrize("which", NETWORKS)
def test_a_copy_is_equal(which, how):
    network = NETWORKS[which]
    again = how(network)
    assert again == network and hash(again) == hash(network) and repr(again) == repr(network)
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert jax.tree.structure(how(params)) == jax.tree.structure(params)


def test_a_pickle_comes_back_from_another_process():
    """Another process reads the cells, finds its own functions in them, and sends them back."""
    program = (
        "import pickle, sys, jax, jax.numpy as jnp, lstm_jax\n"
        "cells = pickle.load(sys.stdin.buffer)\n"
        "assert cells == [lstm_jax.RNN(3, 2), lstm_jax.LSTMVariant(3, 2, activation=jax.nn.relu)], cells\n"
        "sys.stdout.buffer.write(pickle.dumps(cells))\n"
    )
    cells = [lstm_jax.RNN(3, 2), lstm_jax.LSTMVariant(3, 2, activation=jax.nn.relu)]
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(cells), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert pickle.loads(done.stdout) == cells
