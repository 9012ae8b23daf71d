"""The convolutional LSTM against those of Flax (linen), Haiku and Keras, with the same weights.

flax.nnx and Equinox have none.
"""

import os
from functools import partial

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax
from lstm_jax import ConvLSTM

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("x64", "default_promotion")]

T, B, C, F = 3, 2, 3, 4
SPACE = (7, 6, 5)


def required(name):
    return pytest.importorskip(name, reason=f"compares with {name}")


def cell_of(kernel, dtype="float64", **options):
    return ConvLSTM((*SPACE[: len(kernel)], C), F, kernel, param_dtype=dtype, **options)


def compare(cell, peer, *, tolerance=1e-10):
    """Compare values and gradients with those of ``peer(params, xs, carry) -> (carry, ys)``."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(cell.init, jax.random.key(0))
    carry = jax.eval_shape(lambda: cell.initial_carry((B,)))
    tree = (shapes, jnp.zeros((T, B, *cell.input_shape), cell.param_dtype), carry)
    given = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.4, a.dtype), tree)

    def gradients(run):
        def loss(params, xs, carry):
            out = run(params, xs, carry)
            return sum(jnp.mean(jnp.sin(a) + a**2) for a in jax.tree.leaves(out)), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*given)

    found = gradients(lambda params, xs, carry: lstm_jax.unroll(cell, params, xs, carry))
    expected = gradients(peer)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=10 * tolerance, atol=tolerance)


def in_order_igfo(array):
    i, f, g, o = jnp.split(array, 4, axis=-1)
    return jnp.concatenate([i, g, f, o], axis=-1)


def without_the_added_one(bias):
    """The bias for libraries that add 1 to the forget gate at every step."""
    return bias.at[..., F : 2 * F].add(-1)


# --- flax and haiku -----------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [(3,), (4,), (2, 3), (3, 2, 1)], ids=str)
def test_flax_linen(kernel):
    required("flax")
    from flax import linen

    flax = linen.ConvLSTMCell(F, kernel, param_dtype=jnp.float64)

    def peer(params, xs, carry):
        bias = in_order_igfo(without_the_added_one(params.bias))
        variables = {
            "ih": {"kernel": in_order_igfo(params.w_ih), "bias": bias - 0.25},
            "hh": {"kernel": in_order_igfo(params.w_hh), "bias": jnp.full(4 * F, 0.25)},
        }
        carry, ys = jax.lax.scan(partial(flax.apply, {"params": variables}), carry[::-1], xs)
        return carry[::-1], ys

    compare(cell_of(kernel), peer)


@pytest.mark.parametrize("kernel", [(3,), (2, 3), (3, 2, 1)], ids=str)
def test_haiku(kernel):
    hk = required("haiku")
    kind = getattr(hk, f"Conv{len(kernel)}DLSTM")

    def forward(x, state):
        return kind(SPACE[: len(kernel)], F, kernel if len(kernel) > 1 else kernel[0])(x, state)

    step = hk.without_apply_rng(hk.transform(forward))

    def peer(params, xs, carry):
        state = hk.LSTMState(*carry)
        empty = jax.eval_shape(step.init, jax.random.key(0), xs[0], state)
        inputs, hidden = sorted(empty, key=lambda path: "hidden_to" in path)
        bias = in_order_igfo(without_the_added_one(params.bias))
        weights = {
            inputs: {"w": in_order_igfo(params.w_ih), "b": bias + 0.25},
            hidden: {"w": in_order_igfo(params.w_hh), "b": jnp.full(4 * F, -0.25)},
        }
        assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, empty)

        def body(state, x):
            y, state = step.apply(weights, x, state)
            return state, y

        state, ys = jax.lax.scan(body, state, xs)
        return tuple(state), ys

    compare(cell_of(kernel), peer)


# --- keras --------------------------------------------------------------------------------------


@pytest.fixture
def keras():
    """Keras in float32, because parts of it ignore other dtypes."""
    keras = required("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("keras runs on another backend: set KERAS_BACKEND=jax")
    with jax.enable_x64(False):
        yield keras


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3,), {}),
        ((4,), {}),
        ((4,), {"strides": (3,)}),
        ((2,), {"strides": (2,), "padding": "VALID"}),
        ((2, 3), {"use_bias": False}),
        ((4, 2), {"strides": (2, 3)}),
        ((4, 2), {"strides": (2, 3), "padding": "VALID"}),
        ((2, 3, 1), {}),
        ((2, 1, 4), {"strides": (2, 2, 1), "padding": "VALID"}),
        ((2, 4, 2), {"strides": (3, 2, 2)}),
    ],
    ids=str,
)
def test_keras(keras, kernel, options):
    cell = cell_of(kernel, "float32", **options)
    layer_options = {**options, "padding": options.get("padding", "SAME").lower()}
    kind = getattr(keras.layers, f"ConvLSTM{len(kernel)}D")
    layer = kind(F, kernel, return_sequences=True, return_state=True, **layer_options)
    layer.build((B, T, *cell.input_shape))
    frozen = [variable.value for variable in layer.non_trainable_variables]

    def peer(params, xs, carry):
        weights = [params.w_ih, params.w_hh] + ([] if params.bias is None else [params.bias])
        xs = jnp.swapaxes(xs, 0, 1)  # Keras puts the batch first
        (ys, *last), _ = layer.stateless_call(weights, frozen, xs, initial_state=list(carry))
        return tuple(last), jnp.swapaxes(ys, 0, 1)

    compare(cell, peer, tolerance=2e-5)


def test_keras_shapes_and_first_values(keras):
    """Kernels have the same shapes as in Keras, and initial biases the same values."""
    layer = keras.layers.ConvLSTM2D(F, (3, 2), padding="same")
    layer.build((B, T, *SPACE[:2], C))
    params = cell_of((3, 2), "float32").init(jax.random.key(0))
    variables = [np.asarray(variable.value) for variable in layer.trainable_variables]
    assert [a.shape for a in variables] == [params.w_ih.shape, params.w_hh.shape, params.bias.shape]
    np.testing.assert_array_equal(variables[2], params.bias)
