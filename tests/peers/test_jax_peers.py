"""Comparison with the recurrent cells of Flax (linen and nnx), Haiku, Equinox and Keras on equal weights."""

import os
from functools import partial

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax
from benchmarks import weights
from lstm_jax import GRU, LSTM, RNN, GRUVariant

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("x64", "default_promotion")]

T, B, D, H = 6, 3, 4, 5


def required(name):
    return pytest.importorskip(name, reason=f"compares with {name}")


def problem(cell, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(cell.init, jax.random.key(0))
    carry = jax.eval_shape(lambda: cell.initial_carry((B,)))
    tree = (shapes, jnp.zeros((T, B, D)), carry)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.7, a.dtype), tree)


def swapped(carry):
    """Convert (h, c) to Flax's (c, h) or back. A single state is returned as it is."""
    return carry[::-1] if isinstance(carry, tuple) else carry


def compare(cell, peer, *, change=lambda params: params, tolerance=1e-10, **options):
    """Compare values and gradients with those of ``peer(params, xs, carry) -> (carry, ys)``."""
    params, xs, carry = problem(cell)
    params = change(params)

    def gradients(run):
        def loss(params, xs, carry):
            out = run(params, xs, carry)
            return sum(jnp.sum(jnp.sin(a) + a**2) for a in jax.tree.leaves(out)), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(params, xs, carry)

    found = gradients(lambda params, xs, carry: lstm_jax.unroll(cell, params, xs, carry, **options))
    expected = gradients(peer)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=10 * tolerance, atol=tolerance)


def cell_of(cell_class, param_dtype="float64", **options):
    return cell_class(D, H, param_dtype=param_dtype, **options)


def without_bias_hn(params):
    return params._replace(bias_hn=None) if isinstance(params, lstm_jax.GRUParams) else params


# --- flax ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell_class", "name", "convert"),
    [
        (LSTM, "LSTMCell", weights.to_linen_lstm),
        (LSTM, "OptimizedLSTMCell", weights.to_linen_lstm),
        (GRU, "GRUCell", weights.to_linen_gru),
        (RNN, "SimpleCell", weights.to_linen_rnn),
    ],
)
def test_flax_linen(cell_class, name, convert):
    required("flax")
    from flax import linen

    flax = getattr(linen, name)(H, param_dtype=jnp.float64)

    def peer(params, xs, carry):
        carry, ys = jax.lax.scan(partial(flax.apply, {"params": convert(params)}), swapped(carry), xs)
        return swapped(carry), ys

    compare(cell_of(cell_class), peer)


@pytest.mark.parametrize(
    ("cell_class", "name", "convert"),
    [
        (LSTM, "LSTMCell", weights.to_nnx_lstm),
        (LSTM, "OptimizedLSTMCell", weights.to_nnx_optimized_lstm),
        (GRU, "GRUCell", weights.to_nnx_gru),
        (RNN, "SimpleCell", weights.to_nnx_rnn),
    ],
)
def test_flax_nnx(cell_class, name, convert):
    required("flax")
    from flax import nnx

    options = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    graph, state = nnx.split(getattr(nnx, name)(D, H, rngs=nnx.Rngs(0), **options))

    def peer(params, xs, carry):
        filled = jax.tree.map(lambda a: a, state)
        nnx.replace_by_pure_dict(filled, convert(params))
        carry, ys = jax.lax.scan(lambda c, x: nnx.merge(graph, filled)(c, x), swapped(carry), xs)
        return swapped(carry), ys

    compare(cell_of(cell_class), peer, change=without_bias_hn)


def test_flax_reverse_with_lengths():
    """The carry and the outputs at valid steps are equal. Flax's outputs at the padding are arbitrary."""
    required("flax")
    from flax import linen

    cell = cell_of(LSTM)
    params, xs, _ = problem(cell)
    lengths = jnp.array([T, 1, 4])
    network = linen.RNN(
        linen.LSTMCell(H, param_dtype=jnp.float64), time_major=True, reverse=True, keep_order=True
    )
    variables = {"params": {"cell": weights.to_linen_lstm(params)}}
    carry, ys = network.apply(variables, xs, seq_lengths=lengths, return_carry=True)
    (h, c), found = lstm_jax.unroll(cell, params, xs, lengths=lengths, reverse=True)
    valid = np.arange(T)[:, None] < np.asarray(lengths)
    np.testing.assert_allclose(found[valid], ys[valid], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose((c, h), carry, rtol=1e-10, atol=1e-12)


# --- haiku --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell_class", "options", "name", "convert"),
    [
        (LSTM, {}, "LSTM", weights.to_haiku_lstm),
        (GRUVariant, {"reset_after": False}, "GRU", weights.to_haiku_gru),
        (RNN, {"activation": jax.nn.relu}, "VanillaRNN", weights.to_haiku_rnn),
    ],
)
def test_haiku(cell_class, options, name, convert):
    hk = required("haiku")
    step = hk.without_apply_rng(hk.transform(lambda x, state: getattr(hk, name)(H)(x, state)))

    def peer(params, xs, carry):
        state = hk.LSTMState(*carry) if name == "LSTM" else carry

        def body(state, x):
            y, state = step.apply(convert(params), x, state)
            return state, y

        state, ys = jax.lax.scan(body, state, xs)
        return (tuple(state) if name == "LSTM" else state), ys

    compare(cell_of(cell_class, **options), peer)


# --- equinox ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell_class", "name"), [(LSTM, "LSTMCell"), (GRU, "GRUCell")])
def test_equinox(cell_class, name):
    eqx = required("equinox")
    empty = getattr(eqx.nn, name)(D, H, key=jax.random.key(0))

    def peer(params, xs, carry):
        fields = weights.to_equinox(params)
        cell = eqx.tree_at(lambda c: [getattr(c, field) for field in fields], empty, list(fields.values()))

        def body(carry, x):
            carry = jax.vmap(cell)(x, carry)
            return carry, carry[0] if cell_class is LSTM else carry

        return jax.lax.scan(body, carry, xs)

    compare(cell_of(cell_class), peer)


# --- keras --------------------------------------------------------------------------------------


KERAS = {
    "lstm": (LSTM, "LSTM", {}),
    "gru": (GRU, "GRU", {}),
    "gru_reset_before": (GRUVariant, "GRU", {"reset_after": False}),
    "rnn": (RNN, "SimpleRNN", {}),
}


@pytest.fixture
def keras():
    """Keras in float32, because parts of it ignore other dtypes."""
    keras = required("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("keras runs on another backend: set KERAS_BACKEND=jax")
    with jax.enable_x64(False):
        yield keras


def keras_layer(keras, name, **more):
    _, layer, options = KERAS[name]
    layer = getattr(keras.layers, layer)(H, return_sequences=True, return_state=True, **options, **more)
    layer.build((B, T, D))
    return layer


def run_keras(layer, params, xs, carry, **flags):
    """Call a Keras layer, whose inputs and outputs are batch-major."""
    first = list(carry) if isinstance(carry, tuple) else [carry]
    frozen = [variable.value for variable in layer.non_trainable_variables]
    (ys, *last), _ = layer.stateless_call(
        weights.to_keras(params), frozen, jnp.swapaxes(xs, 0, 1), initial_state=first, **flags
    )
    return (tuple(last) if isinstance(carry, tuple) else last[0]), jnp.swapaxes(ys, 0, 1)


@pytest.mark.parametrize("name", KERAS)
def test_keras(keras, name):
    cell_class, _, options = KERAS[name]
    peer = partial(run_keras, keras_layer(keras, name))
    compare(cell_of(cell_class, "float32", **options), peer, tolerance=2e-5)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_keras_mask(keras, name):
    cell_class, _, options = KERAS[name]
    mask = np.random.default_rng(1).random((T, B)) < 0.7
    layer = keras_layer(keras, name, zero_output_for_mask=True)
    peer = partial(run_keras, layer, mask=jnp.asarray(mask.T))
    compare(cell_of(cell_class, "float32", **options), peer, mask=jnp.asarray(mask), tolerance=2e-5)
