"""Layer-normalised LSTMs of TensorFlow Addons and Haste, against NumPy transcriptions of their equations.

Neither package can be installed with current versions of NumPy and JAX.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax
from lstm_jax import Bidirectional, LSTMVariant
from lstm_jax.interop import from_haste, from_keras

T, B, D, H = 5, 2, 3, 4


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def normalise(x, gamma, beta, epsilon):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return gamma * (x - mean) / np.sqrt(variance + epsilon) + beta


def tfa_step(weights, h, c, x, epsilon=1e-3):
    """``LayerNormLSTMCell.call`` of tensorflow_addons.rnn: gates i, f, c, o; the carry c is normalised."""
    kernel, recurrent_kernel, bias, *norms = weights
    kernel_norm, recurrent_norm, state_norm = norms[0:2], norms[2:4], norms[4:6]
    z = normalise(x @ kernel, *kernel_norm, epsilon)
    z = z + normalise(h @ recurrent_kernel, *recurrent_norm, epsilon) + bias
    z0, z1, z2, z3 = np.split(z, 4, axis=-1)
    c = sigmoid(z1) * c + sigmoid(z0) * np.tanh(z2)
    c = normalise(c, *state_norm, epsilon)
    return sigmoid(z3) * np.tanh(c), c


def haste_step(w, h, c, x):
    """``LayerNormLSTMScript`` of haste_pytorch: gates i, g, f, o; only the argument of tanh is normalised."""
    v = normalise(x @ w["kernel"], w["gamma"][0], 0, 1e-5)
    v = normalise(h @ w["recurrent_kernel"], w["gamma"][1], 0, 1e-5) + v + w["bias"]
    i, g, f, o = np.split(v, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(normalise(c, w["gamma_h"], w["beta_h"], 1e-5)), c


def scan(step, weights, xs, **options):
    h = c = np.zeros((B, H))
    ys = []
    for x in xs:
        h, c = step(weights, h, c, x, **options)
        ys.append(h)
    return np.stack(ys), h, c


def tfa_weights(seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(D, 4 * H), (H, 4 * H), 4 * H, 4 * H, 4 * H, 4 * H, 4 * H, H, H]
    return [rng.normal(size=shape) for shape in shapes]


def haste_weights(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (D, 4 * H), "recurrent_kernel": (H, 4 * H), "bias": 4 * H}
    shapes |= {"gamma": (2, 4 * H), "gamma_h": H, "beta_h": H}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


XS = np.random.default_rng(9).normal(size=(T, B, D))
TFA_NAMES = ["kernel", "recurrent_kernel", "bias"] + [
    f"{norm}_norm/{name}" for norm in ("kernel", "recurrent", "state") for name in ("gamma", "beta")
]


def compare(cell, params, ys, h, c):
    (h_found, c_found), found = lstm_jax.unroll(cell, params, jnp.asarray(XS))
    for a, b in ((found, ys), (h_found, h), (c_found, c)):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_the_transcription_of_tfa_gives_the_values_of_its_own_test():
    """``test_cell_output`` of tensorflow_addons: all weights 0.5, epsilon 1e-12."""
    halves = [np.full(shape, 0.5) for shape in ((2, 8), (2, 8), 8)]
    weights = [*halves, np.ones(8), np.zeros(8), np.ones(8), np.zeros(8), np.ones(2), np.zeros(2)]
    h, c = tfa_step(weights, np.array([[0.2, 0.3]]), np.array([[0.0, 0.1]]), np.ones((1, 2)), epsilon=1e-12)
    np.testing.assert_allclose(h, [[-0.47406167, 0.47406143]], rtol=1e-5)
    np.testing.assert_allclose(c, [[-1.0, 1.0]], rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_tfa():
    weights = tfa_weights()
    cell, params = from_keras(weights)
    assert cell == LSTMVariant(D, H, layer_norm="tfa", param_dtype="float64")
    compare(cell, params, *scan(tfa_step, weights, XS))


@pytest.mark.usefixtures("x64")
def test_tfa_without_bias_by_name_and_in_both_directions():
    weights = tfa_weights()
    without = [*weights[:2], *weights[3:]]
    cell, params = from_keras(without)
    compare(cell, params, *scan(tfa_step, [*weights[:2], 0.0, *weights[3:]], XS))
    named = {f"rnn/layer_norm_lstm_cell/{n}:0": w for n, w in zip(TFA_NAMES, weights, strict=True)}
    cell, params = from_keras(weights)
    again, same = from_keras(named)
    assert again == cell
    jax.tree.map(np.testing.assert_array_equal, same, params)
    network, both = from_keras(weights + tfa_weights(1), merge="sum")
    assert network == Bidirectional(cell, merge="sum")
    jax.tree.map(np.testing.assert_array_equal, both.forward, params)


@pytest.mark.usefixtures("x64")
def test_haste():
    weights = haste_weights()
    cell, params = from_haste(weights)
    assert cell == LSTMVariant(D, H, layer_norm="haste", param_dtype="float64")
    compare(cell, params, *scan(haste_step, weights, XS))


@pytest.mark.usefixtures("x64")
def test_zoneout_of_haste_without_noise():
    """Haste applies zoneout to h only, and uses its expectation outside of training."""
    weights, rate = haste_weights(), 0.3

    def step(weights, h, c, x):
        new, c = haste_step(weights, h, c, x)
        return rate * h + (1 - rate) * new, c

    cell, params = from_haste(weights)
    compare(lstm_jax.Zoneout(cell, rates=(rate, 0)), params, *scan(step, weights, XS))


def error_of(function, *arguments, **options):
    with pytest.raises(ValueError) as error:
        function(*arguments, **options)
    assert len(str(error.value)) < 1000
    return str(error.value)


def test_faults():
    weights = {name: array.astype(np.float32) for name, array in haste_weights().items()}
    message = error_of(from_haste, {**weights, "gamma": np.ones((2, 15), np.float32), "beta": np.ones(2)})
    assert "wrong shape: gamma (2, 15), expected (2, 16)" in message
    assert "unexpected: beta (2,)" in message
    del weights["recurrent_kernel"]
    assert "missing: recurrent_kernel (4, 16)" in error_of(from_haste, weights)
    assert "missing: kernel (?, ?), recurrent_kernel" in error_of(from_haste, {})
    named = dict(zip(TFA_NAMES, tfa_weights(), strict=True))
    del named["state_norm/beta"]
    named["kernel_norm/gamma"] = np.ones(3)
    message = error_of(from_keras, named)
    assert "missing: state_norm/beta (4,)" in message
    assert "wrong shape: kernel_norm/gamma (3,), expected (16,)" in message
    gru = {"kernel": np.ones((D, 3 * H)), "recurrent_kernel": np.ones((H, 3 * H)), "bias": np.ones(3 * H)}
    assert "unexpected: state_norm/gamma (4,)" in error_of(from_keras, gru | {"state_norm/gamma": np.ones(H)})
    assert "5 arrays" in error_of(from_keras, tfa_weights()[:5])
