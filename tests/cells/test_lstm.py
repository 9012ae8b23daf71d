"""The LSTM and its variant: the same results without options, activations, types of parameters, repr."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same, daily, random_arrays, random_params, total

import lstm_jax
from lstm_jax import GRU, LSTM, LSTMParams, LSTMVariant, LSTMVariantParams, lstm_gates, lstm_step, unroll

T, B, D, H = 6, 3, 3, 4
KEY = jax.random.key(0)


# --- the variant without options is the LSTM ------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"learn_initial_carry": True}], ids=str)
def test_the_variant_without_options_draws_the_parameters_of_the_lstm(options):
    plain, variant = LSTM(D, H, **options).init(KEY), LSTMVariant(D, H, **options).init(KEY)
    assert type(variant) is LSTMVariantParams and variant[len(plain) :] == (None,) * 3
    assert_same(LSTMParams(*variant[: len(plain)]), plain, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_step_of_the_variant_without_options_is_a_step_of_the_lstm(dtype):
    plain, variant = LSTM(D, H, dtype=dtype), LSTMVariant(D, H, dtype=dtype)
    params = random_params(plain)
    of_variant = LSTMVariantParams(*params)
    x, h, c = random_arrays((B, D), (B, H), (B, H))
    expected = jax.jit(plain.step)(params, (h, c), x)
    assert_same(jax.jit(variant.step)(of_variant, (h, c), x), expected, rtol=0, atol=0)
    if dtype is None:
        assert_same(jax.jit(lstm_step)(params, (h, c), x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("implementation", daily(["fused", "scan"]))
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_unroll_of_the_variant_without_options_is_that_of_the_lstm(implementation, dtype):
    """Values and gradients, bit for bit."""
    plain, variant = LSTM(D, H, dtype=dtype), LSTMVariant(D, H, dtype=dtype)
    params = random_params(plain)
    (xs,) = random_arrays((T, B, D))

    def run(cell, params):
        def loss(params, xs):
            out = unroll(cell, params, xs, lengths=[T, 2, 0], implementation=implementation)
            return total(out[1]).astype(jnp.float32), out

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, xs)

    (dparams, dxs), out = run(plain, params)
    (of_variant, dxs_of_variant), out_of_variant = run(variant, LSTMVariantParams(*params))
    assert np.any(dparams.w_hh != 0)
    found = LSTMParams(*of_variant[: len(dparams)]), dxs_of_variant, out_of_variant
    assert_same(found, (dparams, dxs, out), rtol=0, atol=0)


@pytest.mark.usefixtures("x64")
def test_gates_of_the_variant_without_options_are_those_of_the_lstm():
    plain, variant = (cell_class(D, H, param_dtype="float64") for cell_class in (LSTM, LSTMVariant))
    params = random_params(plain)
    x, h, c = random_arrays((B, D), (B, H), (B, H), dtype=np.float64)
    expected = lstm_gates(params, (h, c), x)
    assert_same(plain.gates(params, (h, c), x), expected)
    assert_same(variant.gates(LSTMVariantParams(*params), (h, c), x), expected)


# --- activations ----------------------------------------------------------------------------------


def hard_sigmoid(a):
    return np.clip(a / 6 + 0.5, 0, 1)


def relu_lstm(params, carry, x):
    """An LSTM with relu in place of tanh and hard_sigmoid in place of sigmoid, in NumPy."""
    h, c = carry
    i, f, g, o = np.split(x @ params.w_ih + h @ params.w_hh + params.bias, 4, axis=-1)
    c = hard_sigmoid(f) * c + hard_sigmoid(i) * np.maximum(g, 0)
    h = hard_sigmoid(o) * np.maximum(c, 0)
    return (h, c), h


@pytest.mark.usefixtures("x64")
def test_activations_are_used_where_the_equations_have_them():
    cell = LSTMVariant(D, H, activation="relu", recurrent_activation="hard_sigmoid", param_dtype="float64")
    params = random_params(cell)
    xs, h, c = random_arrays((T, B, D), (B, H), (B, H), dtype=np.float64)
    xs = 4 * xs  # some gates are 0 or 1
    carry, ys = (h, c), []
    for x in xs:
        expected = relu_lstm(params, carry, x)
        assert_same(jax.device_get(cell.step(params, carry, x)), expected)
        carry = expected[0]
        ys.append(carry[0])
    for implementation in ("fused", "scan"):
        found = unroll(cell, params, xs, (h, c), implementation=implementation)
        assert_same(jax.device_get(found), (carry, np.stack(ys)))
    carry = np.broadcast_to(h, (T, B, H)), np.broadcast_to(c, (T, B, H))
    gates = jax.device_get(cell.gates(params, carry, xs))  # of all steps
    for gate in (gates.i, gates.f, gates.o):
        assert np.any(gate == 0) and np.any(gate == 1) and np.any((gate > 0) & (gate < 1))
    assert np.any(gates.g == 0) and np.any(gates.g > 1)
    assert_same(gates.f * c + gates.i * gates.g, relu_lstm(params, (h, c), xs)[0][1])


def test_a_name_and_its_function_make_equal_cells():
    assert LSTMVariant(D, H, activation="tanh", recurrent_activation="sigmoid") == LSTMVariant(D, H)
    assert LSTMVariant(D, H, recurrent_activation=jax.nn.sigmoid) == LSTMVariant(D, H)
    by_name, by_function = LSTMVariant(D, H, activation="relu"), LSTMVariant(D, H, activation=jax.nn.relu)
    assert by_name == by_function and hash(by_name) == hash(by_function)
    assert by_name != LSTMVariant(D, H)


@pytest.mark.parametrize("field", ["activation", "recurrent_activation"])
def test_unknown_activations_raise(field):
    with pytest.raises(ValueError, match=rf"LSTMVariant got {field}='swish2'; expected a function or one of"):
        LSTMVariant(D, H, **{field: "swish2"})
    with pytest.raises(ValueError, match=rf"LSTMVariant got {field}=None; expected a function"):
        LSTMVariant(D, H, **{field: None})


# --- types of parameters --------------------------------------------------------------------------


@pytest.mark.parametrize("function", [lstm_step, lstm_gates])
@pytest.mark.parametrize(
    "params, name",
    [
        (GRU(D, H).init(KEY), "GRUParams"),
        (LSTMVariant(D, H).init(KEY), "LSTMVariantParams"),
        (LSTM(D, H).init(KEY)._asdict(), "dict"),
        (tuple(LSTM(D, H).init(KEY)), "tuple"),
        (None, "NoneType"),
    ],
    ids=["GRU", "LSTMVariant", "dict", "tuple", "None"],
)
def test_lstm_step_raises_on_other_parameters(function, params, name):
    x, h, c = random_arrays((B, D), (B, H), (B, H))
    message = rf"{function.__name__} got parameters of type {name}; expected LSTMParams"
    with pytest.raises(ValueError, match=message):
        function(params, (h, c), x)


def test_cells_raise_on_the_parameters_of_one_another():
    x, h, c = random_arrays((B, D), (B, H), (B, H))
    for cell, other in ((LSTM(D, H), LSTMVariant(D, H)), (LSTMVariant(D, H), LSTM(D, H))):
        params = other.init(KEY)
        own = type(cell.init(KEY)).__name__
        message = rf"parameters of type {type(params).__name__}; expected {own}"
        for call in (
            lambda cell=cell, params=params: cell.step(params, (h, c), x),
            lambda cell=cell, params=params: cell.gates(params, (h, c), x),
            lambda cell=cell, params=params: cell.initial_carry((B,), params),
            lambda cell=cell, params=params: unroll(cell, params, x[None]),
        ):
            with pytest.raises(ValueError, match=message):
                call()


# --- repr -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell, text",
    [
        (LSTM(3, 4), "LSTM(input_size=3, hidden_size=4)"),
        (LSTM(3, 4, param_dtype="float32", forget_bias=1.0), "LSTM(input_size=3, hidden_size=4)"),
        (
            LSTM(3, 4, use_bias=False, dtype=jnp.bfloat16),
            "LSTM(input_size=3, hidden_size=4, use_bias=False, dtype=bfloat16)",
        ),
        (
            LSTM(3, 4, w_hh_init=jax.nn.initializers.zeros, param_dtype="float16"),
            "LSTM(input_size=3, hidden_size=4, w_hh_init=zeros, param_dtype=float16)",
        ),
        (LSTMVariant(3, 4), "LSTMVariant(input_size=3, hidden_size=4)"),
        (
            LSTMVariant(3, 4, proj_size=2, peepholes=True, layer_norm="tfa", clip=3),
            "LSTMVariant(input_size=3, hidden_size=4, proj_size=2, peepholes=True, clip=3.0, "
            "layer_norm='tfa')",
        ),
        (
            LSTMVariant(3, 4, activation="relu", recurrent_activation="hard_sigmoid"),
            "LSTMVariant(input_size=3, hidden_size=4, activation=relu, recurrent_activation=hard_sigmoid)",
        ),
    ],
    ids=range(7),
)
def test_repr_shows_sizes_and_what_is_not_the_default(cell, text):
    assert repr(cell) == str(cell) == text


def test_repr_of_a_network_shows_its_cells():
    network = lstm_jax.Stack((LSTM(3, 4), LSTMVariant(4, 4, coupled=True)))
    text = repr(network)
    assert "LSTM(input_size=3, hidden_size=4)" in text
    assert "LSTMVariant(input_size=4, hidden_size=4, coupled=True)" in text
