"""Conversions from and to PyTorch, Keras and jax.experimental.rnn: stored outputs, round trips, errors."""

import json
import re
from functools import partial
from pathlib import Path

import helpers
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from jax.experimental import rnn as cudnn

import lstm_jax
from lstm_jax import GRU, LSTM, RNN, Bidirectional, ConvLSTM, GRUVariant, LSTMVariant, Readout, Stack, Zoneout
from lstm_jax.interop import from_cudnn, from_keras, from_torch, load, to_cudnn, to_keras, to_torch
from lstm_jax.interop.keras import leaky_relu as keras_leaky_relu

GOLDENS = Path(__file__).parents[1] / "goldens"
READ = {"torch": from_torch, "keras": from_keras}


def goldens(peer):
    """The options and arrays of each case."""
    with safetensors.safe_open(GOLDENS / f"{peer}.safetensors", "np") as file:
        options = json.loads(file.metadata()["options"])
    arrays = load(GOLDENS / f"{peer}.safetensors")
    for case, given in options.items():
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        own = {n.removeprefix(f"{case}/"): a for n, a in arrays.items() if n.startswith(f"{case}/")}
        weights = {n.removeprefix("weights/"): a for n, a in own.items() if n.startswith("weights/")}
        if peer == "keras":
            count = 1 + max(int(name.split("/")[0]) for name in weights)
            lists = [
                [weights[f"{k}/{at}"] for at in range(6) if f"{k}/{at}" in weights] for k in range(count)
            ]
            weights = lists if count > 1 else lists[0]
        yield case, (weights, given, own["xs"], own["ys"])


CASES = {(peer, case): golden for peer in READ for case, golden in goldens(peer)}


@pytest.mark.parametrize(("peer", "case"), CASES)
def test_goldens(peer, case):
    weights, options, xs, ys = CASES[peer, case]
    network, params = READ[peer](weights, **options)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    _, found = lstm_jax.unroll(network, params, jnp.asarray(xs))
    np.testing.assert_allclose(found, ys, rtol=2e-5, atol=2e-6)


def test_goldens_have_the_versions_of_the_libraries():
    for peer in READ:
        with safetensors.safe_open(GOLDENS / f"{peer}.safetensors", "np") as file:
            assert {peer, "numpy"} <= file.metadata().keys()
        assert (GOLDENS / f"{peer}.safetensors").stat().st_size < 20_000


# --- round trips ----------------------------------------------------------------------------------


def same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def random_params(network, seed=0, tiny=1e-45):
    """Random parameters that include 0, -0 and the smallest positive float32."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        special = rng.choice(np.array([0.0, -0.0, tiny, np.pi], np.float32), leaf.shape)
        values = np.where(rng.random(leaf.shape) < 0.3, special, rng.normal(size=leaf.shape))
        return jnp.asarray(values.astype(leaf.dtype))

    return jax.tree.map(draw, jax.eval_shape(network.init, jax.random.key(0)))


def both_ways(cell):
    return Bidirectional(cell)


def stack_of(kind, D, H, layers, both=False, **options):
    kind, own = kind if isinstance(kind, tuple) else (kind, {})
    options |= own
    width = (options.get("proj_size") or H) * (2 if both else 1)
    cells = [kind(D if index == 0 else width, H, **options) for index in range(layers)]
    made = tuple(map(both_ways, cells)) if both else tuple(cells)
    return made[0] if layers == 1 else Stack(made)


NETWORKS = st.builds(
    stack_of,
    st.sampled_from([LSTM, GRU, RNN, (LSTMVariant, {"proj_size": 1})]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    use_bias=st.booleans(),
    param_dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
)


def has(network, kind):
    cells = network.layers if isinstance(network, Stack) else (network,)
    return isinstance(getattr(cells[0], "cell", cells[0]), kind)


@hypothesis.settings(max_examples=12)
@hypothesis.given(NETWORKS, st.integers(0, 9))
def test_to_torch_and_back_to_the_bit(network, seed):
    params = random_params(network, seed)
    state_dict = to_torch(network, params)
    assert all(
        type(a) is np.ndarray and a.flags.c_contiguous and a.flags.writeable for a in state_dict.values()
    )
    options = {"activation": "tanh"} if has(network, RNN) else {}
    again, back = from_torch(state_dict, **options)
    assert again == network
    same_bits(params, back)


@pytest.mark.parametrize(
    "network",
    [
        LSTM(3, 2),
        GRU(3, 2),
        GRUVariant(3, 2, reset_after=False),
        RNN(3, 2, activation=jax.nn.relu, use_bias=False),
        Bidirectional(LSTM(3, 2, use_bias=False), merge="mean"),
        Stack((Bidirectional(GRU(3, 2)), LSTM(4, 3), RNN(3, 1, activation=jax.nn.relu))),
        ConvLSTM((6, 5, 2), 3, (2, 3), strides=(2, 1), padding="VALID"),
        Stack((ConvLSTM((6, 2), 3, (2,)), ConvLSTM((6, 3), 1, (3,)))),
    ],
    ids=helpers.brief,
)
def test_to_keras_and_back_to_the_bit(network):
    params = random_params(network)
    text = str(network)
    options = {"activation": [None, None, "relu"]} if "Stack" in text and "RNN(" in text else {}
    options |= {"activation": "relu"} if isinstance(network, RNN) else {}
    if "Bidirectional" in text:
        options["merge"] = "ave" if "mean" in text else "concat"
    if "ConvLSTM" in text:
        first = network.layers[0] if isinstance(network, Stack) else network
        options |= {"input_shape": first.input_shape, "padding": first.padding.lower()}
        options |= {} if isinstance(network, Stack) else {"strides": first.strides}
    again, back = from_keras(to_keras(network, params), **options)
    assert again == network
    same_bits(params, back)


@pytest.mark.parametrize("both", helpers.daily([False, True], True))
@pytest.mark.parametrize("layers", helpers.daily([1, 2]))
def test_cudnn(layers, both):
    """Equal to jax.experimental.rnn's own reference; and written back bit for bit."""
    D, H, T, B = 3, 2, 4, 2
    sizes = (D, H, layers, both)
    count = cudnn.get_num_params_in_lstm(*sizes)
    vector = np.random.default_rng(0).normal(size=count).astype(np.float32)
    network, params = from_cudnn(vector, *sizes)
    xs = np.random.default_rng(1).normal(size=(T, B, D)).astype(np.float32)
    zeros = jnp.zeros((layers * (1 + both), B, H))
    unpacked = cudnn.unpack_lstm_weights(jnp.asarray(vector), *sizes)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        lengths = jnp.full(B, T, jnp.int32)
        batch_first = jnp.asarray(xs.swapaxes(0, 1))
        expected, *_ = cudnn.lstm_ref(batch_first, zeros, zeros, *unpacked, lengths, *sizes[:3], 0.0, both)
    _, found = lstm_jax.unroll(network, params, jnp.asarray(xs))
    np.testing.assert_allclose(found, expected.swapaxes(0, 1), rtol=1e-5, atol=1e-6)

    params = random_params(network)
    back = to_cudnn(network, params)
    assert back.shape == (count,)
    again, same = from_cudnn(back, *sizes)
    assert again == network
    same_bits(params, same)


def test_conversions_are_traced():
    """Conversions under jit, and gradients for both of PyTorch's biases."""
    network = Stack((Bidirectional(GRU(3, 2)), Bidirectional(GRU(4, 2))))
    params = random_params(network, tiny=1.0)  # XLA's sums flush the smallest numbers to zero
    there = jax.jit(partial(to_torch, network))(params)
    same_bits(params, jax.jit(lambda state_dict: from_torch(state_dict)[1])(there))
    same_bits(to_keras(network, params), jax.jit(partial(to_keras, network))(params))

    def loss(state_dict):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(from_torch(state_dict)[1]))

    gradients = jax.grad(loss)(there)
    assert all(np.all(np.asarray(gradient) == 1) for gradient in gradients.values())


# --- examples by hand -----------------------------------------------------------------------------


def arange(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_torch_gates_and_biases():
    H, D = 2, 3
    state_dict = {"weight_ih_l0": arange(6, D), "weight_hh_l0": arange(6, H)}
    state_dict |= {"bias_ih_l0": arange(6), "bias_hh_l0": 10 * arange(6)}
    _, params = from_torch(state_dict)
    np.testing.assert_array_equal(params.w_ih, arange(6, D).T)
    np.testing.assert_array_equal(params.bias, [0, 11, 22, 33, 4, 5])
    np.testing.assert_array_equal(params.bias_hn, [40, 50])


def test_biases_are_added_in_the_given_dtype():
    small, large = jnp.bfloat16(2.0**-9), jnp.bfloat16(1.0)
    state_dict = {"weight_ih_l0": np.ones((4, 1)), "weight_hh_l0": np.ones((4, 1))}
    state_dict |= {"bias_ih_l0": np.full(4, large), "bias_hh_l0": np.full(4, small)}
    cell, params = from_torch(state_dict, dtype="float32")
    assert cell.param_dtype == np.float32
    np.testing.assert_array_equal(params.bias, 1 + 2.0**-9)


def test_arrays_of_the_other_byte_order():
    state_dict = to_torch(LSTM(3, 2), random_params(LSTM(3, 2)))
    network, params = from_torch({name: array.astype(">f4") for name, array in state_dict.items()})
    assert network == LSTM(3, 2)
    same_bits(params, from_torch(state_dict)[1])


def test_keras_weights_by_name():
    arrays = [arange(3, 8), arange(2, 8), arange(8)]
    named = dict(zip(("kernel", "recurrent_kernel", "bias"), arrays, strict=True))
    _, expected = from_keras(arrays)
    same_bits(from_keras(named)[1], expected)
    deep = {f"lstm_3/lstm_cell/{name}": array for name, array in named.items()}
    same_bits(from_keras(deep)[1], expected)
    nested = {"backward": named, "forward": {name: array + 1 for name, array in named.items()}}
    _, both = from_keras(nested, merge="sum")
    same_bits(both.backward, expected)
    same_bits(both.forward.bias, expected.bias + 1)
    assert "in addition to the weights of two directions" in error_of(
        from_keras, {**nested, "kernel": arrays[0]}
    )
    _, layers = from_keras([named, [arange(2, 8), arange(2, 8), arange(8)]])
    same_bits(layers[0], expected)


def test_weights_of_a_gru_whose_second_bias_is_none():
    cell = GRU(3, 2)
    params = random_params(cell)._replace(bias_hn=None)
    zeros = params._replace(bias_hn=jnp.zeros(2))
    same_bits(from_torch(to_torch(cell, params))[1].bias_hn + 0, zeros.bias_hn)
    same_bits(from_keras(to_keras(cell, params))[1].bias_hn + 0, zeros.bias_hn)


# --- errors ---------------------------------------------------------------------------------------


def error_of(function, *arguments, **options):
    with pytest.raises(ValueError) as error:
        function(*arguments, **options)
    return str(error.value)


def test_one_error_lists_all_faulty_entries_of_torch():
    state_dict = to_torch(stack_of(LSTM, 3, 2, 2), random_params(stack_of(LSTM, 3, 2, 2)))
    del state_dict["weight_ih_l0"], state_dict["bias_hh_l1"]
    state_dict["weight_hh_l1"] = np.zeros((8, 3))
    state_dict["bias_ih_l0"] = np.zeros(8, int)
    state_dict["head.weight"] = np.zeros((1, 2))
    message = error_of(from_torch, state_dict)
    assert "wrong shape: weight_hh_l1 (8, 3), expected (8, 2)" in message
    assert "not an array of floats: bias_ih_l0 of dtype int64" in message
    assert "missing: weight_ih_l0 (8, ?), bias_hh_l1 (8,)" in message
    assert "unexpected: head.weight (1, 2)" in message


def test_a_missing_layer_or_direction_is_missing():
    state_dict = to_torch(stack_of(GRU, 3, 2, 3), random_params(stack_of(GRU, 3, 2, 3)))
    without = {name: array for name, array in state_dict.items() if not name.endswith("_l1")}
    assert "missing: weight_ih_l1 (6, 2), weight_hh_l1 (6, 2)" in error_of(from_torch, without)
    state_dict = to_torch(stack_of(GRU, 3, 2, 2, True), random_params(stack_of(GRU, 3, 2, 2, True)))
    del state_dict["weight_hh_l1_reverse"]
    assert "missing: weight_hh_l1_reverse (6, 2)" in error_of(from_torch, state_dict)


def test_names_of_very_many_layers():
    state_dict = to_torch(LSTM(3, 2), random_params(LSTM(3, 2)))
    state_dict[f"weight_ih_l{10**8}"] = state_dict[f"weight_ih_l{10**30}"] = np.zeros((8, 2))
    assert "unexpected: weight_ih_l1000" in error_of(from_torch, state_dict)


@pytest.mark.parametrize(
    ("state_dict", "words"),
    [
        ({}, "no entry weight_hh_l0"),
        ({"rnn.weight_hh_l0": np.zeros((2, 2))}, "prefix='rnn.'"),
        ({"weight_hh_l0": np.zeros((7, 2))}, r"weight_hh_l0 \(7, 2\)"),
        ({"weight_hh_l0": np.zeros(8)}, r"\(4H, H\) in nn.LSTM"),
        ([np.zeros(2)], "mapping"),
        ({"weight_hh_l0": object()}, "weight_hh_l0 of type object"),
    ],
)
def test_not_a_state_dict(state_dict, words):
    with pytest.raises(ValueError, match=words):
        from_torch(state_dict)


def test_activation_is_required_for_simple_networks_only():
    simple = {"weight_ih_l0": np.zeros((2, 3), np.float32), "weight_hh_l0": np.zeros((2, 2), np.float32)}
    assert "do not contain its activation" in error_of(from_torch, simple)
    assert "'sine'" in error_of(from_torch, simple, activation="sine")
    assert from_torch(simple, activation="relu")[0].activation is jax.nn.relu
    assert from_torch(simple, activation=jnp.sin)[0].activation is jnp.sin
    gated = to_torch(LSTM(3, 2), random_params(LSTM(3, 2)))
    assert "Leave out: activation" in error_of(from_torch, gated, activation="tanh")
    lists = [np.zeros((3, 2), np.float32), np.zeros((2, 2), np.float32)]
    assert "do not contain its activation" in error_of(from_keras, lists)
    assert from_keras(lists, activation="relu")[0].activation is jax.nn.relu


def keras_weights(network):
    return to_keras(network, random_params(network))


@pytest.mark.parametrize(
    ("cell", "given"),
    [
        (LSTM(3, 2), {"activation": "tanh", "recurrent_activation": jax.nn.sigmoid}),
        (LSTMVariant(3, 2, activation="relu"), {"activation": "relu"}),
        (GRUVariant(3, 2, recurrent_activation="hard_sigmoid"), {"recurrent_activation": "hard_sigmoid"}),
        (GRUVariant(3, 2, activation="linear", reset_after=False), {"activation": "linear"}),
        (LSTMVariant(3, 2, activation=keras_leaky_relu), {"activation": "leaky_relu"}),
        (Bidirectional(LSTMVariant(3, 2, activation="elu")), {"activation": "elu", "merge": "concat"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else repr(value),
)
def test_activations_of_keras(cell, given):
    again, back = from_keras(keras_weights(cell), **given)
    assert again == cell
    same_bits(back, random_params(cell))


@pytest.mark.parametrize(
    ("network", "given", "words"),
    [
        (ConvLSTM((6, 2), 3, (2,)), {"activation": "relu"}, "activation=relu with the weights of a ConvLSTM"),
        (LSTM(3, 2), {"activation": "sine"}, "'sine'; expected a function or one of 'tanh'"),
        (LSTM(3, 2), {"recurrent_activation": 1.0}, "recurrent_activation=1.0"),
        (
            RNN(3, 2),
            {"activation": "tanh", "recurrent_activation": "tanh"},
            "Leave out: recurrent_activation",
        ),
        (Stack((LSTM(3, 2), RNN(2, 2))), {"activation": "relu"}, "simple and gated layers"),
        (Stack((LSTM(3, 2), RNN(2, 2))), {"activation": ["relu"]}, "1 entries of activation with 2 layers"),
    ],
    ids=helpers.brief,
)
def test_activations_that_do_not_fit(network, given, words):
    options = {"input_shape": (6, 2), "padding": "same"} if isinstance(network, ConvLSTM) else {}
    assert words in error_of(from_keras, keras_weights(network), **given, **options)


@pytest.mark.parametrize("name", ["activation", "recurrent_activation"])
def test_activations_that_torch_lacks(name):
    for kind in (LSTMVariant, GRUVariant):
        cell = kind(3, 2, **{name: "softplus"})
        assert f"{kind.__name__} with {name}=softplus" in error_of(to_torch, cell, random_params(cell))


def test_weight_norm_and_weight_drop_of_torch():
    """Each row of v is scaled to the norm g; the raw weight of weight drop replaces a dropped one."""
    plain = to_torch(LSTM(3, 2), random_params(LSTM(3, 2), tiny=1.0))
    _, expected = from_torch(plain)
    v = plain["weight_hh_l0"]
    others = {name: array for name, array in plain.items() if name != "weight_hh_l0"}
    g = np.sqrt(np.sum(v.astype(float) ** 2, axis=1, keepdims=True)).astype(np.float32)
    new = {"parametrizations.weight_hh_l0.original0": 3 * g, "parametrizations.weight_hh_l0.original1": v}
    for names in (new, {"weight_hh_l0_g": 3 * g, "weight_hh_l0_v": v}):
        for given in (others | names, {f"a.{name}": a for name, a in (others | names).items()}):
            _, params = from_torch(given, prefix="" if given.keys() & names.keys() else "a")
            np.testing.assert_allclose(params.w_hh, 3 * v.T, rtol=1e-6)
            same_bits(params._replace(w_hh=expected.w_hh), expected)
    traced = jax.jit(lambda given: from_torch(given)[1].w_hh)(others | new)
    np.testing.assert_allclose(traced, 3 * v.T, rtol=1e-6)

    for given in (
        others | {"weight_hh_l0_raw": v},
        others | {"weight_hh_l0_raw": v, "weight_hh_l0": 0 * v},
        {f"module.{name}": a for name, a in others.items()}
        | {"weight_hh_l0_raw": v, "module.weight_hh_l0": 0 * v},
    ):
        same_bits(from_torch(given)[1], expected)

    for names in (
        {"weight_hh_l0_g": g.T, "weight_hh_l0_v": v},
        {"weight_hh_l0_v": v},
        {"weight_hh_l0_orig": v, "weight_hh_l0_mask": v},
        {"parametrizations.weight_hh_l0.original": v},
        {"weight_hh_l0_g": object(), "weight_hh_l0_v": v},
    ):
        message = error_of(from_torch, others | names)
        assert "Remove the reparametrization" in message and next(iter(names)) in message


def test_float64_is_rounded_only_where_a_dtype_is_given():
    state_dict = {
        name: a.astype(float) for name, a in to_torch(LSTM(3, 2), random_params(LSTM(3, 2))).items()
    }
    assert "jax_enable_x64 is off" in error_of(from_torch, state_dict)
    assert "jax_enable_x64 is off" in error_of(from_torch, state_dict, dtype="float64")
    assert from_torch(state_dict, dtype="float32")[1].w_ih.dtype == np.float32
    with jax.enable_x64(True):
        assert from_torch(state_dict)[1].w_ih.dtype == np.float64


LSTM_LISTS = [np.zeros((3, 8), np.float32), np.zeros((2, 8), np.float32), np.zeros(8, np.float32)]
GRU_LISTS = [np.zeros((3, 6), np.float32), np.zeros((2, 6), np.float32)]
CONV_LISTS = [np.zeros((3, 2, 8), np.float32), np.zeros((3, 2, 8), np.float32)]


@pytest.mark.parametrize(
    ("weights", "options", "words"),
    [
        (LSTM_LISTS, {"reset_after": True}, "reset_after=True"),
        (LSTM_LISTS, {"merge": "sum"}, "merge='sum'"),
        (LSTM_LISTS, {"padding": "same"}, "padding='same'"),
        (LSTM_LISTS * 2, {}, "merge_mode"),
        (LSTM_LISTS * 2, {"merge": "mean"}, "'ave'"),
        ([np.zeros((3, 2)), np.zeros((2, 2))] * 2, {"activation": "tanh"}, "merge_mode"),
        ([LSTM_LISTS, CONV_LISTS], {"padding": "same"}, "input_shape=None"),
        ([np.zeros((3, 2, 6)), np.zeros((3, 2, 6))], {}, r"recurrent_kernel \(3, 2, 6\); expected"),
        (GRU_LISTS, {}, "reset_after=None"),
        ([*GRU_LISTS, np.zeros((2, 6), np.float32)], {"reset_after": False}, "reset_after=False"),
        (CONV_LISTS, {"padding": "same"}, "input_shape=None"),
        (CONV_LISTS, {"input_shape": (7, 2)}, "padding=None"),
        (CONV_LISTS, {"input_shape": (2, 7), "padding": "same"}, "reads 2 channels"),
        (LSTM_LISTS[:1], {}, "1 arrays"),
        ([LSTM_LISTS, LSTM_LISTS[:1]], {}, "of layer 1"),
        ("weights.npz", {}, "str"),
        ([LSTM_LISTS[0], np.zeros((2, 7))], {}, r"recurrent_kernel \(2, 7\); expected"),
        ({"a/kernel": LSTM_LISTS[0], "b/kernel": LSTM_LISTS[0]}, {}, "names do not give their order"),
    ],
)
def test_not_a_keras_layer(weights, options, words):
    with pytest.raises(ValueError, match=words):
        from_keras(weights, **options)


def test_one_error_lists_all_faulty_entries_of_keras():
    named = dict(zip(("kernel", "recurrent_kernel", "bias"), LSTM_LISTS, strict=True))
    message = error_of(from_keras, [named, {**named, "bias": np.zeros(7), "gamma": np.zeros(1)}])
    assert "wrong shape: layer 1/bias (7,), expected (8,)" in message
    assert "unexpected: layer 1/gamma (1,)" in message
    both = {"forward": {**named, "recurrent_kernel": np.zeros((2, 7))}, "backward": named}
    assert "sizes cannot be read: forward/kernel (3, 8), recurrent_kernel (2, 7)" in error_of(
        from_keras, both, merge="sum"
    )
    del named["kernel"]
    assert "missing: kernel (?, 8)" in error_of(from_keras, named)


def test_layers_whose_sizes_differ():
    with pytest.raises(ValueError, match="layer 1 with input_size=3 over a layer with 2"):
        from_keras([LSTM_LISTS, LSTM_LISTS])


UNKNOWN = {
    "peepholes": LSTMVariant(3, 2, peepholes=True),
    "coupled": LSTMVariant(3, 2, coupled=True),
    "ablation": LSTMVariant(3, 2, ablation="no_output_gate"),
    "heads": LSTMVariant(3, 2, heads=2),
    "cell_clip": LSTMVariant(3, 2, cell_clip=1.0),
    "layer_norm": LSTMVariant(3, 2, layer_norm="haste"),
    "learn_initial_carry": LSTM(3, 2, learn_initial_carry=True),
    "residual": Stack((LSTM(3, 2), LSTM(2, 2)), residual=True),
    "skip": Stack((LSTM(3, 2), LSTM(5, 2)), skip=True),
    "dropout_mask": Stack((LSTM(3, 2), LSTM(2, 2)), dropout=0.5, dropout_mask="sequence"),
    "Readout": Stack((LSTM(3, 2), Readout(2, 1))),
    "Zoneout": Zoneout(LSTM(3, 2), 0.1),
    "SLSTM": lstm_jax.SLSTM(3, 2),
}


@pytest.mark.parametrize("write", [to_torch, to_keras, to_cudnn])
@pytest.mark.parametrize("name", UNKNOWN)
def test_networks_that_no_target_represents(write, name):
    network = UNKNOWN[name]
    assert name in error_of(write, network, random_params(network))


@pytest.mark.parametrize(
    ("write", "network", "word"),
    [
        (to_torch, GRUVariant(3, 2, reset_after=False), "reset_after=False"),
        (to_torch, RNN(3, 2, activation=jnp.sin), "activation=sin"),
        (to_torch, Bidirectional(LSTM(3, 2), merge="sum"), "merge='sum'"),
        (to_torch, Stack((LSTM(3, 2), LSTM(2, 3))), "layer 1: hidden_size=3 above 2; "),
        (to_torch, Stack((LSTM(3, 2), GRU(2, 2))), "layer 1: cell=GRU above LSTM; "),
        (to_torch, Stack((Bidirectional(LSTM(3, 2)), LSTM(4, 2))), "layer 1: directions=1 above 2; "),
        (to_torch, Stack((LSTM(3, 2), LSTM(2, 2, use_bias=False))), "use_bias=False above True"),
        (to_torch, Stack((RNN(3, 2), RNN(2, 2, activation="relu"))), "layer 1: activation=relu above tanh; "),
        (to_torch, ConvLSTM((4, 3), 2, (3,)), "ConvLSTM, expected one of"),
        (to_keras, LSTMVariant(3, 2, proj_size=1), "proj_size=1"),
        (to_cudnn, LSTMVariant(3, 2, proj_size=1), "proj_size=1"),
        (to_cudnn, LSTM(3, 2, use_bias=False), "without bias"),
        (to_cudnn, GRU(3, 2), "GRU, expected one of LSTM"),
    ],
)
def test_networks_that_one_target_does_not_represent(write, network, word):
    assert word in error_of(write, network, random_params(network))


def test_one_error_lists_all_that_is_not_represented():
    network = Stack((LSTMVariant(3, 2, peepholes=True, clip=1.0), Bidirectional(GRU(2, 2), merge="sum")))
    message = error_of(to_torch, network, random_params(network))
    for reason in (
        "layer 0: LSTMVariant with peepholes=True",
        "layer 0: LSTMVariant with clip=1.0",
        "layer 1: Bidirectional with merge='sum'",
    ):
        assert reason in message


@pytest.mark.parametrize("write", [to_torch, to_keras, to_cudnn])
def test_parameters_of_another_network(write):
    cell = LSTM(3, 2)
    params = random_params(cell)
    assert "w_ih (3, 8), expected (4, 8)" in error_of(write, LSTM(4, 2), params)
    assert "bias None, expected (8,)" in error_of(write, cell, params._replace(bias=None))
    assert "GRUParams" in error_of(write, cell, random_params(GRU(3, 2)))
    assert "tuple of 2 layers" in error_of(write, Stack((cell, LSTM(2, 2))), params)
    assert "tuple of 2 directions" in error_of(write, Bidirectional(cell), (params,))


def test_a_stack_inside_a_stack():
    cells = LSTM(3, 2), LSTM(2, 2), LSTM(2, 2)
    params = tuple(random_params(cell, seed) for seed, cell in enumerate(cells))
    nested = Stack((cells[0], Stack(cells[1:]))), (params[0], params[1:])
    same_bits(to_torch(*nested), to_torch(Stack(cells), params))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.zeros(55, np.float32), 3, 2), r"expected \(56,\)"),
        ((np.zeros(56, int), 3, 2), "float"),
        ((np.zeros(56, np.float32), 3, 0), "hidden_size"),
        (([0.0] * 56, 3, 2), "array"),
    ],
)
def test_not_a_flat_vector(arguments, words):
    assert re.search(words, error_of(from_cudnn, *arguments))
