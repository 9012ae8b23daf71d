"""Conversions against Keras on JAX, in float32: outputs and gradients of weights, both ways."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax
from lstm_jax.interop import from_keras, to_keras
from lstm_jax.interop.keras import KERAS_ACTIVATIONS

keras = pytest.importorskip("keras", reason="compares with Keras")

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras' own
]


@pytest.fixture(autouse=True)
def keras_on_jax(default_promotion):
    if keras.backend.backend() != "jax":
        pytest.skip("keras runs on another backend: set KERAS_BACKEND=jax")


def layer_of(kind, *arguments, mode=None, **options):
    layer = getattr(keras.layers, kind)(*arguments, return_sequences=True, **options)
    return layer if mode is None else keras.layers.Bidirectional(layer, merge_mode=mode)


#: Layers, the shape of one input, and the arguments of from_keras.
CASES = {
    "simple_rnn": (lambda: layer_of("SimpleRNN", 4, activation="relu"), (3,), {"activation": "relu"}),
    "sine": (lambda: layer_of("SimpleRNN", 4, activation=jnp.sin), (3,), {"activation": jnp.sin}),
    "lstm": (lambda: layer_of("LSTM", 5), (2,), {}),
    "lstm_no_bias": (lambda: layer_of("LSTM", 1, use_bias=False), (4,), {}),
    "gru": (lambda: layer_of("GRU", 4), (3,), {}),
    "gru_before": (lambda: layer_of("GRU", 4, reset_after=False), (3,), {}),
    "gru_no_bias": (lambda: layer_of("GRU", 4, use_bias=False), (3,), {"reset_after": True}),
    "gru_before_no_bias": (
        lambda: layer_of("GRU", 4, use_bias=False, reset_after=False),
        (3,),
        {"reset_after": False},
    ),
    **{
        f"both_{mode}": (lambda mode=mode: layer_of("GRU", 3, mode=mode), (3,), {"merge": mode})
        for mode in ("concat", "sum", "ave", "mul")
    },
    "lstm_relu": (
        lambda: layer_of("LSTM", 4, activation="relu", recurrent_activation="hard_sigmoid"),
        (3,),
        {"activation": "relu", "recurrent_activation": "hard_sigmoid"},
    ),
    "gru_softsign": (
        lambda: layer_of("GRU", 4, activation="softsign", recurrent_activation="linear"),
        (3,),
        {"activation": "softsign", "recurrent_activation": "linear"},
    ),
    "gru_before_elu": (
        lambda: layer_of("GRU", 4, activation="elu", reset_after=False, mode="sum"),
        (3,),
        {"activation": "elu", "merge": "sum"},
    ),
    "both_no_bias": (lambda: layer_of("LSTM", 3, use_bias=False, mode="sum"), (3,), {"merge": "sum"}),
    "conv_1d": (
        lambda: layer_of("ConvLSTM1D", 2, 3, strides=2, padding="valid"),
        (8, 3),
        {"input_shape": (8, 3), "strides": (2,), "padding": "valid"},
    ),
    "conv_2d": (
        lambda: layer_of("ConvLSTM2D", 2, (3, 2), padding="same", use_bias=False),
        (5, 4, 3),
        {"input_shape": (5, 4, 3), "padding": "same"},
    ),
    "conv_3d": (
        lambda: layer_of("ConvLSTM3D", 2, (1, 2, 3), padding="same"),
        (3, 4, 2, 1),
        {"input_shape": (3, 4, 2, 1), "padding": "same"},
    ),
}


def built(make, shape, seed=0):
    """Layers with random weights and biases, and inputs (T, B, ...)."""
    rng = np.random.default_rng(seed)
    layers = make()
    layers = layers if isinstance(layers, list) else [layers]
    xs = rng.normal(size=(4, 2, *shape)).astype(np.float32)
    ys = jnp.swapaxes(xs, 0, 1)
    for layer in layers:
        ys = layer(ys)
        layer.set_weights([0.5 * rng.normal(size=w.shape) for w in layer.get_weights()])
    return layers, xs


def run(layers, weights, xs):
    ys = jnp.swapaxes(xs, 0, 1)
    for layer, own in zip(layers, weights, strict=True):
        frozen = [variable.value for variable in layer.non_trainable_variables]
        ys, _ = layer.stateless_call(own, frozen, ys)
    return jnp.swapaxes(ys, 0, 1)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_from_keras(name):
    make, shape, arguments = CASES[name]
    layers, xs = built(make, shape)
    weights = [[jnp.asarray(w) for w in layer.get_weights()] for layer in layers]

    def gradients(outputs):
        def loss(weights):
            ys = outputs(weights)
            return jnp.sum(ys * np.cos(np.arange(ys.size)).reshape(ys.shape)), ys

        return jax.jit(jax.grad(loss, has_aux=True))(weights)

    def outputs(weights):
        network, params = from_keras(weights[0], **arguments)
        return lstm_jax.unroll(network, params, jnp.asarray(xs))[1]

    expected = gradients(lambda weights: run(layers, weights, xs))
    found = gradients(outputs)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def same_bits(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


@pytest.mark.parametrize("name", CASES)
def test_weights_written_for_keras(name):
    """A layer with the written weights agrees with ``unroll``. Reading them returns equal parameters."""
    make, shape, arguments = CASES[name]
    (layer,), xs = built(make, shape)
    network, params = from_keras(layer.get_weights(), **arguments)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.5, a.dtype), params)
    layer.set_weights(to_keras(network, params))
    _, ys = lstm_jax.unroll(network, params, jnp.asarray(xs))
    np.testing.assert_allclose(ys, np.swapaxes(layer(np.swapaxes(xs, 0, 1)), 0, 1), rtol=2e-4, atol=2e-5)
    again, back = from_keras(layer.get_weights(), **arguments)
    assert again == network and same_bits(params, back)


@pytest.mark.parametrize("name", KERAS_ACTIVATIONS)
def test_activations_are_those_of_keras(name):
    x = jnp.linspace(-6, 6, 1001)
    expected = keras.activations.get(name)(x)
    np.testing.assert_allclose(KERAS_ACTIVATIONS[name](x), expected, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("activation", ["tanh", ["relu", None, "softplus"]], ids=str)
def test_a_stack_of_different_layers(activation):
    first, second, third = activation if isinstance(activation, list) else [activation] * 3

    def make():
        return [
            layer_of("LSTM", 3, mode="concat", activation=first),
            layer_of("GRU", 4, activation=second or "tanh"),
            layer_of("SimpleRNN", 2, activation=third),
        ]

    layers, xs = built(make, (5,))
    arguments = {"merge": "concat", "activation": activation}
    network, params = from_keras([layer.get_weights() for layer in layers], **arguments)
    _, ys = lstm_jax.unroll(network, params, jnp.asarray(xs))
    expected = run(layers, [layer.get_weights() for layer in layers], xs)
    np.testing.assert_allclose(ys, expected, rtol=2e-4, atol=2e-5)
    for layer, own in zip(layers, to_keras(network, params), strict=True):
        layer.set_weights(own)
    np.testing.assert_allclose(ys, run(layers, [layer.get_weights() for layer in layers], xs), atol=2e-5)


@pytest.mark.parametrize("mode", [None, "sum"])
def test_weights_by_the_paths_of_their_variables(mode):
    (layer,), _ = built(lambda: layer_of("GRU", 4, mode=mode), (3,))
    arguments = {} if mode is None else {"merge": mode}
    cell, params = from_keras({w.path: w.numpy() for w in layer.weights}, **arguments)
    other, same = from_keras(layer.get_weights(), **arguments)
    assert cell == other and same_bits(params, same)


def test_the_lines_that_convert_a_keras_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.LSTM(2, name="memory")])
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="load_model") as error:
        lstm_jax.interop.load(tmp_path / "model.keras")
    exec(str(error.value).split("\n\n")[1], {"keras": keras, "numpy": np, "name": "memory"})
    _, params = from_keras(lstm_jax.interop.load(tmp_path / "model.npz"))
    np.testing.assert_array_equal(params.w_hh, model.get_layer("memory").get_weights()[1])
