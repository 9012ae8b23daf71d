"""The GRU and its variant: the same results without options, activations, types of parameters, repr."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same, daily, random_arrays, random_params, total

from lstm_jax import GRU, LSTM, GRUParams, GRUVariant, GRUVariantParams, gru_step, unroll

T, B, D, H = 6, 3, 3, 4
KEY = jax.random.key(0)


# --- the variant without options is the GRU -------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"learn_initial_carry": True}], ids=str)
def test_the_variant_without_options_draws_the_parameters_of_the_gru(options):
    plain, variant = GRU(D, H, **options).init(KEY), GRUVariant(D, H, **options).init(KEY)
    assert type(variant) is GRUVariantParams
    assert_same(GRUParams(*variant), plain, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_step_of_the_variant_without_options_is_a_step_of_the_gru(dtype):
    plain, variant = GRU(D, H, dtype=dtype), GRUVariant(D, H, dtype=dtype)
    params = random_params(plain)
    of_variant = GRUVariantParams(*params)
    x, h = random_arrays((B, D), (B, H))
    expected = jax.jit(plain.step)(params, h, x)
    assert_same(jax.jit(variant.step)(of_variant, h, x), expected, rtol=0, atol=0)
    if dtype is None:
        assert_same(jax.jit(gru_step)(params, h, x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("implementation", daily(["fused", "scan"]))
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_unroll_of_the_variant_without_options_is_that_of_the_gru(implementation, dtype):
    """Values and gradients, bit for bit."""
    plain, variant = GRU(D, H, dtype=dtype), GRUVariant(D, H, dtype=dtype)
    params = random_params(plain)
    (xs,) = random_arrays((T, B, D))

    def run(cell, params):
        def loss(params, xs):
            out = unroll(cell, params, xs, lengths=[T, 2, 0], implementation=implementation)
            return total(out[1]).astype(jnp.float32), out

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, xs)

    (dparams, dxs), out = run(plain, params)
    (of_variant, dxs_of_variant), out_of_variant = run(variant, GRUVariantParams(*params))
    assert np.any(dparams.w_hh != 0)
    found = GRUParams(*of_variant), dxs_of_variant, out_of_variant
    assert_same(found, (dparams, dxs, out), rtol=0, atol=0)


@pytest.mark.usefixtures("x64")
def test_gates_of_the_variant_without_options_are_those_of_the_gru():
    plain, variant = (cell_class(D, H, param_dtype="float64") for cell_class in (GRU, GRUVariant))
    params = random_params(plain)
    x, h = random_arrays((B, D), (B, H), dtype=np.float64)
    gates = plain.gates(params, h, x)
    assert_same(variant.gates(GRUVariantParams(*params), h, x), gates)
    new, _ = plain.step(params, h, x)
    np.testing.assert_allclose((1 - gates.z) * gates.n + gates.z * h, new, rtol=1e-12)


# --- activations ----------------------------------------------------------------------------------


def hard_sigmoid(a):
    return np.clip(a / 6 + 0.5, 0, 1)


def relu_gru(params, h, x, reset_after):
    """A GRU with relu in place of tanh and hard_sigmoid in place of sigmoid, in NumPy."""
    from_x = x @ params.w_ih + params.bias
    r, z = np.split(hard_sigmoid(from_x[..., : 2 * H] + h @ params.w_hh[:, : 2 * H]), 2, axis=-1)
    w_n = params.w_hh[:, 2 * H :]
    product = r * (h @ w_n + params.bias_hn) if reset_after else (r * h) @ w_n
    n = np.maximum(from_x[..., 2 * H :] + product, 0)
    h = (1 - z) * n + z * h
    return h, h


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reset_after", [True, False], ids=["reset after", "reset before"])
def test_activations_are_used_where_the_equations_have_them(reset_after):
    cell = GRUVariant(
        D,
        H,
        reset_after=reset_after,
        activation="relu",
        recurrent_activation="hard_sigmoid",
        param_dtype="float64",
    )
    params = random_params(cell)
    xs, first = random_arrays((T, B, D), (B, H), dtype=np.float64)
    xs = 4 * xs  # some gates are 0 or 1
    h, ys = first, []
    for x in xs:
        expected = relu_gru(params, h, x, reset_after)
        assert_same(jax.device_get(cell.step(params, h, x)), expected)
        h = expected[0]
        ys.append(h)
    for implementation in ("auto", "scan"):
        found = unroll(cell, params, xs, first, implementation=implementation)
        assert_same(jax.device_get(found), (h, np.stack(ys)))
    gates = jax.device_get(cell.gates(params, np.broadcast_to(first, (T, B, H)), xs))  # of all steps
    for gate in (gates.r, gates.z):
        assert np.any(gate == 0) and np.any(gate == 1) and np.any((gate > 0) & (gate < 1))
    assert np.any(gates.n == 0) and np.any(gates.n > 1)
    from_gates = (1 - gates.z) * gates.n + gates.z * first
    assert_same(from_gates, relu_gru(params, first, xs, reset_after)[0])


def test_a_name_and_its_function_make_equal_cells():
    assert GRUVariant(D, H, activation="tanh", recurrent_activation=jax.nn.sigmoid) == GRUVariant(D, H)
    by_name, by_function = GRUVariant(D, H, activation="relu"), GRUVariant(D, H, activation=jax.nn.relu)
    assert by_name == by_function and hash(by_name) == hash(by_function)
    assert by_name != GRUVariant(D, H)


@pytest.mark.parametrize("field", ["activation", "recurrent_activation"])
def test_unknown_activations_raise(field):
    with pytest.raises(ValueError, match=rf"GRUVariant got {field}='swish2'; expected a function or one of"):
        GRUVariant(D, H, **{field: "swish2"})


# --- types of parameters --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params, name",
    [
        (GRUVariant(D, H, reset_after=False).init(KEY), "GRUVariantParams"),
        (GRUVariant(D, H).init(KEY), "GRUVariantParams"),
        (LSTM(D, H).init(KEY), "LSTMParams"),
        (GRU(D, H).init(KEY)._asdict(), "dict"),
        (None, "NoneType"),
    ],
    ids=["reset before", "reset after", "LSTM", "dict", "None"],
)
def test_gru_step_raises_on_other_parameters(params, name):
    x, h = random_arrays((B, D), (B, H))
    with pytest.raises(ValueError, match=rf"gru_step got parameters of type {name}; expected GRUParams"):
        gru_step(params, h, x)


def test_cells_raise_on_the_parameters_of_one_another():
    x, h = random_arrays((B, D), (B, H))
    for cell, other in ((GRU(D, H), GRUVariant(D, H, reset_after=False)), (GRUVariant(D, H), GRU(D, H))):
        params = other.init(KEY)
        own = type(cell.init(KEY)).__name__
        message = rf"parameters of type {type(params).__name__}; expected {own}"
        for call in (
            lambda cell=cell, params=params: cell.step(params, h, x),
            lambda cell=cell, params=params: cell.gates(params, h, x),
            lambda cell=cell, params=params: cell.initial_carry((B,), params),
            lambda cell=cell, params=params: unroll(cell, params, x[None]),
        ):
            with pytest.raises(ValueError, match=message):
                call()


# --- repr -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell, text",
    [
        (GRU(3, 4), "GRU(input_size=3, hidden_size=4)"),
        (
            GRU(3, 4, use_bias=False, dtype="float16"),
            "GRU(input_size=3, hidden_size=4, use_bias=False, dtype=float16)",
        ),
        (GRUVariant(3, 4, reset_after=True), "GRUVariant(input_size=3, hidden_size=4)"),
        (
            GRUVariant(3, 4, reset_after=False, heads=2, activation="relu"),
            "GRUVariant(input_size=3, hidden_size=4, reset_after=False, heads=2, activation=relu)",
        ),
    ],
    ids=range(4),
)
def test_repr_shows_sizes_and_what_is_not_the_default(cell, text):
    assert repr(cell) == str(cell) == text
