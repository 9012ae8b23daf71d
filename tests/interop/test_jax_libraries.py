"""Conversions from and to Flax, Haiku and Equinox. tests/goldens has outputs of these libraries."""

import ast
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_peers import CASES, READ_ONLY, conv, filled, flat, nested, to_linen, without_bias_hn

import lstm_jax
from lstm_jax import (
    GRU,
    LSTM,
    RNN,
    SLSTM,
    Bidirectional,
    ConvLSTM,
    GRUVariant,
    LSTMVariant,
    Readout,
    Stack,
    Zoneout,
)
from lstm_jax.interop import from_equinox, from_flax, from_haiku, to_equinox, to_flax, to_haiku

GOLDENS = Path(__file__).parents[1] / "goldens"
D, H = 3, 4


def golden(name):
    safetensors = pytest.importorskip("safetensors.numpy", reason="reads tests/goldens")
    tensors = safetensors.load_file(GOLDENS / f"{name.replace(' ', '_')}.safetensors")
    weights = {
        key.removeprefix("weights/"): value for key, value in tensors.items() if key not in ("xs", "ys")
    }
    return nested(name, weights), tensors["xs"], tensors["ys"]


def random_params(network, seed=0):
    return jax.tree.map(jnp.asarray, filled(jax.eval_shape(network.init, jax.random.key(0)), seed))


def identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", [*CASES, *READ_ONLY])
def test_outputs_equal_those_of_the_library(name):
    weights, xs, ys = golden(name)
    network, params = (CASES | READ_ONLY)[name].read(weights, D)
    np.testing.assert_allclose(lstm_jax.unroll(network, params, xs)[1], ys, rtol=1e-5, atol=2e-6)
    assert jax.tree.all(jax.tree.map(lambda a: isinstance(a, jax.Array), params))


@pytest.mark.parametrize("name", CASES)
def test_written_and_read_again(name):
    """Parameters are equal bit for bit, except for the rounding of Haiku's forget bias."""
    case = CASES[name]
    network = case.network(D, H)
    params = case.change(random_params(network))
    written = case.write(network, params)
    again, back = case.read(written, D)
    assert again == network
    if name in ("haiku.LSTM", "haiku.DeepRNN"):
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2.0**-23)
    else:
        identical(back, params)
    weights, _, _ = golden(name)
    assert {path: np.shape(a) for path, a in flat(written)} == {
        path: np.shape(a) for path, a in flat(weights)
    }


@pytest.mark.parametrize("name", [name for name in CASES if "Conv" not in name])
def test_read_and_written_again(name):
    """The library's weights are equal, unless two of its biases were summed."""
    case, (weights, _, _) = CASES[name], golden(name)
    written = case.write(*case.read(weights, D))
    for path, expected in flat(weights):
        if name == "haiku.VanillaRNN" and path.endswith("b"):
            continue
        found = dict(flat(written))[path]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2.0**-23 * ("haiku" in name))


def test_haikus_forget_bias_is_exact_where_floats_allow_it():
    """b - 1 is representable from 0.5 on; below, it is the nearest float."""
    b_f = np.concatenate([np.linspace(-4, 20, 200), 2.0 ** np.arange(-30, 10)]).astype(np.float32)
    for b, exact in ((b_f[b_f >= 0.5], True), (b_f[b_f < 0.5], False)):
        cell = LSTM(1, b.size)
        params = random_params(cell)
        params = params._replace(bias=params.bias.at[b.size : 2 * b.size].set(b))
        written = to_haiku(cell, params)
        b_haiku = np.asarray(written["lstm/linear"]["b"])[2 * b.size : 3 * b.size]
        back = np.asarray(from_haiku(written)[1].bias)[b.size : 2 * b.size]
        true = b.astype(np.float64) - 1
        if exact:
            np.testing.assert_array_equal(b_haiku, true)
            np.testing.assert_array_equal(back, b)
        else:
            assert np.all(np.abs(b_haiku - true) <= np.spacing(np.abs(b_haiku)) / 2)
            assert np.all(np.abs(back - b) <= np.spacing(np.abs(b_haiku)) / 2)
            assert np.any(back != b)  # no b_haiku rounds to it


def test_the_second_bias_of_convolutions_subtracts_the_added_one():
    cell = conv(D, H)
    params = random_params(cell)
    for written in (to_flax(cell, params, api="linen")["hh"]["bias"],
                    to_haiku(cell, params)["conv2_dlstm/hidden_to_hidden"]["b"]):  # fmt: skip
        np.testing.assert_array_equal(written, np.repeat([0, 0, -1, 0], H))


def test_numpy_stays_numpy_and_dtypes_stay():
    cell = LSTM(D, H)
    fresh = cell.init(jax.random.key(0))
    for dtype in ("float16", "float64", jnp.bfloat16):
        params = jax.tree.map(lambda a, dtype=dtype: np.asarray(a).astype(dtype), fresh)
        for written in (to_flax(cell, params, api="nnx"), to_haiku(cell, params), to_equinox(cell, params)):
            for leaf in jax.tree.leaves(written):
                assert isinstance(leaf, np.ndarray) and leaf.dtype == dtype
    read, params = from_equinox(jax.tree.map(lambda a: a.astype("float16"), to_equinox(cell, params)))
    assert read.param_dtype == np.float16 == params.bias.dtype


def test_conversions_are_traced():
    """Gradients with respect to parameters, through the written weights; shapes without arrays."""
    cell = GRUVariant(D, H, reset_after=False)
    params = cell.init(jax.random.key(0))

    def total(params):
        return sum(jnp.sum(a**2) for a in jax.tree.leaves(to_haiku(cell, params)))

    identical(jax.grad(total)(params), jax.tree.map(lambda a: 2 * a, params))
    back = jax.eval_shape(lambda p: from_haiku(to_haiku(cell, p))[1], params)
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, params)


def test_zeros_are_written_for_cells_without_bias():
    for network in (LSTM(D, H, use_bias=False), RNN(D, H, use_bias=False, activation=jax.nn.relu)):
        params, xs = random_params(network), np.ones((3, D), np.float32)
        ys = lstm_jax.unroll(network, params, xs)[1]
        for read, written in (
            (from_haiku, to_haiku(network, params)),
            (lambda w: from_flax(w, **dict(activation="relu") if "i" in w else {}),
             to_flax(network, params, api="linen")),
        ):  # fmt: skip
            again, back = read(written)
            assert again.use_bias
            np.testing.assert_array_equal(lstm_jax.unroll(again, back, xs)[1], ys)


def test_zeros_are_written_for_a_gru_without_bias_hn():
    cell = GRU(D, H)
    params = random_params(cell)._replace(bias_hn=None)
    np.testing.assert_array_equal(to_equinox(cell, params)["bias_n"], np.zeros(H))
    np.testing.assert_array_equal(to_flax(cell, params, api="linen")["hn"]["bias"], np.zeros(H))


@pytest.mark.parametrize(
    "module",
    [
        "torch",
        "keras",
        "haste",
        "flax",
        "haiku",
        "equinox",
        "_convolutions",
        "_entries",
        "_gates",
        "_networks",
    ],
)
def test_no_peer_is_imported(module):
    source = (Path(lstm_jax.__file__).parent / "interop" / f"{module}.py").read_text()
    roots = set()
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        roots |= {name.split(".")[0] for name in names}
    assert roots <= {"jax", "numpy", "lstm_jax"} | set(sys.stdlib_module_names)


# --- nested parameters, and stacks ----------------------------------------------------------------


def test_mappings_around_the_parameters_in_flax():
    cell = LSTM(D, H)
    params = random_params(cell)
    written = to_flax(cell, params, api="linen")
    for given in ({"params": written}, {"cell": written}, {"params": {"cell": written}}):
        again, back = from_flax(given)
        assert again == cell
        identical(back, params)


def test_a_list_is_a_stack():
    network = Stack((Bidirectional(LSTM(D, H)), GRU(2 * H, 2), RNN(2, 2)))
    params = random_params(network)
    written = to_flax(network, params, api="linen")
    assert [sorted(each)[0] for each in written] == ["backward_rnn", "hn", "h"]
    again, back = from_flax(written, activation="tanh")
    assert again == network
    identical(back, params)


def test_input_shapes_of_convolutions_in_a_stack():
    network = Stack((ConvLSTM((8, D), 2, (3,)), ConvLSTM((8, 2), H, (2,))))
    params = random_params(network)
    again, back = from_flax(to_flax(network, params, api="linen"), input_shape=(8, D))
    assert again == network
    identical(back, params)
    again, back = from_haiku(
        to_haiku(network, params), layers=("conv1_dlstm", "conv1_dlstm_1"), input_shape=(8, D)
    )
    assert again == network


# --- errors ---------------------------------------------------------------------------------------


def linen(kind=LSTM, api="linen", **options):
    cell = kind(D, H)
    params = random_params(cell)
    if kind is GRU and api == "nnx":
        params = params._replace(bias_hn=None)
    return to_flax(cell, params, api=api, **options)


def written(write, cell, **options):
    return write(cell, random_params(cell), **options)


def haiku(cell):
    return written(to_haiku, cell)


def test_one_error_lists_all_faults():
    weights = linen()
    weights["ii"] = {"kernel": np.ones((D, H + 1), np.float32)}
    del weights["ho"]["bias"]
    weights["hg"]["scale"] = np.ones(2, np.float32)
    weights["io"] = {"kernel": np.ones((D, H), int)}
    with pytest.raises(ValueError) as caught:
        from_flax(weights)
    for part in ("wrong shape: ii/kernel (3, 5), expected (3, 4)", "missing: ho/bias (4,)",
                 "unexpected: hg/scale (2,)", "io/kernel of dtype int"):  # fmt: skip
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("read", "weights", "breaks", "words"),
    [
        (from_flax, lambda: linen(GRU), {"hn/bias": None, "ir/kernel": (9, 9)},
         ["missing: hn/bias (4,)", "ir/kernel (9, 9), expected (3, 4)"]),
        (from_flax, lambda: linen(GRU, "nnx"), {"dense_h/bias": (12,)}, ["unexpected: dense_h/bias (12,)"]),
        (from_flax, lambda: linen(LSTM, "nnx", optimized=True), {"dense_i/kernel": None},
         ["missing: dense_i/kernel (?, 16)"]),
        (from_flax, lambda: linen(LSTM, "nnx", optimized=True), {"dense_h/kernel": (4, 13)},
         ["dense_h/kernel (4, 13), expected (4, 16)"]),
        (from_flax, lambda: linen(LSTM, "nnx", optimized=True), {"dense_h/kernel": None},
         ["sizes cannot be read: dense_i/kernel (3, 16)", "(H, 4H)"]),
        (from_flax, lambda: {"i": {"weight": np.ones(2)}, "h": {}}, {}, ["unexpected: i/weight (2,)"]),
        (from_flax, lambda: {"ih": {"kernel": np.ones(2)}, "hh": {"kernel": np.ones(2)}}, {},
         ["ih/kernel (2,)", "(*kernel, C, 4F)"]),
        (from_haiku, lambda: haiku(LSTM(D, H)), {"lstm/linear/b": (15,)},
         ["linear/b (15,), expected (16,)"]),
        (from_haiku, lambda: haiku(LSTM(D, H)), {"lstm/linear/w": None}, ["missing: linear/w (?, 16)"]),
        (from_haiku, lambda: haiku(LSTM(D, H)), {"lstm/linear/w": (4, 16)}, ["(D + H, 4H)"]),
        (from_haiku, lambda: haiku(GRUVariant(D, H, reset_after=False)), {"gru/w_i": (3, 9), "gru/c": (2,)},
         ["w_i (3, 9), expected (3, 12)", "unexpected: c (2,)"]),
        (from_haiku, lambda: haiku(RNN(D, H, activation=jax.nn.relu)),
         {"vanilla_rnn/linear_1/w": (4, 5), "vanilla_rnn/linear/b": None},
         ["linear_1/w (4, 5), expected (4, 4)", "missing: linear/b (4,)"]),
        (from_equinox, lambda: written(to_equinox, GRU(D, H)), {"bias_n": None, "bias": (11,)},
         ["missing: bias_n (4,)", "bias (11,), expected (12,)"]),
        (from_equinox, lambda: written(to_equinox, LSTM(D, H)), {"bias_n": (4,)},
         ["unexpected: bias_n (4,)"]),
        (from_equinox, lambda: written(to_equinox, LSTM(D, H)), {"weight_hh": (17, 4)},
         ["weight_hh (17, 4), expected (16, 4)"]),
        (from_equinox, lambda: {"weight": np.ones((2, 2))}, {}, ["weight (2, 2)", "weight_hh (4H, H)"]),
    ],
)  # fmt: skip
def test_faults(read, weights, breaks, words):
    is_haiku = read is from_haiku
    tensors = dict(flat(weights()))
    for name, shape in breaks.items():
        if shape is None:
            tensors.pop(name, None)
        else:
            tensors[name] = np.ones(shape, np.float32)
    with pytest.raises(ValueError) as caught:
        read(nested("haiku" if is_haiku else "", tensors))
    for part in words:
        assert part in str(caught.value)


def test_one_error_lists_the_faults_of_all_layers():
    """The layers of a stack, and both directions."""
    good, bad = linen(), linen()
    del bad["ho"]["bias"]
    both = {"forward_rnn": bad, "backward_rnn": bad}
    with pytest.raises(ValueError) as caught:
        from_flax([bad, good, both])
    for part in (
        "missing: layer 0/ho/bias (4,)",
        "layer 2/forward_rnn/ho/bias",
        "layer 2/backward_rnn/ho/bias",
    ):
        assert part in str(caught.value)
    assert "layer 1" not in str(caught.value)
    stack = Stack((LSTM(D, H), LSTM(H, H)))
    weights = haiku(stack)
    for arrays in weights.values():
        del arrays["b"]
    with pytest.raises(ValueError, match=r"missing: lstm/linear/b \(16,\), lstm_1/linear/b \(16,\)"):
        from_haiku(weights, layers=("lstm", "lstm_1"))
    fields = written(to_equinox, stack)
    for arrays in fields:
        del arrays["weight_ih"]
    with pytest.raises(ValueError, match=r"layer 0/weight_ih \(16, \?\), layer 1/weight_ih"):
        from_equinox(fields)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: from_flax({"if": {}, "in": {}, "hf": {}, "hn": {}}), "got no names"),
        (lambda: from_flax({name: {"kernel": np.ones((2, 2))} for name in ("if", "in", "hf", "hn")}),
         "which are those of linen.MGUCell"),
        (lambda: from_flax({"Dense_0": {"kernel": np.ones((2, 2))}}), "got Dense_0; expected"),
        (lambda: from_flax(np.ones(2)), "expected a mapping"),
        (lambda: from_flax(linen(RNN)), "do not contain its activation"),
        (lambda: from_flax(linen(RNN, "nnx")), "nnx.SimpleCell, which do not contain its activation"),
        (lambda: from_flax(linen(RNN), activation="sin"), "from_flax got activation='sin'"),
        (lambda: from_flax(linen(), input_shape=(8, D)), "Leave out: input_shape"),
        (lambda: from_flax(written(to_flax, conv(D, H), api="linen")), "do not contain its input_shape"),
        (lambda: from_flax(written(to_flax, conv(D, H), api="linen"), input_shape=(8, D)),
         "(size, size, 3)"),
        (lambda: from_flax(
            {"forward_rnn": linen(), "backward_rnn": written(to_flax, LSTM(D + 1, H), api="linen")}
        ), f"input_size={D} forward and {D + 1} backward"),
        (lambda: from_haiku(haiku(conv(D, H))), "do not contain its input_shape"),
        (lambda: from_haiku(haiku(LSTM(D, H)), input_shape=(8, D)), "Leave out: input_shape"),
        (lambda: from_haiku(haiku(Stack((LSTM(D, H), LSTM(H, H))))), "layers=('lstm', 'lstm_1')"),
        (lambda: from_haiku(haiku(Stack((LSTM(D, H), LSTM(H, H)))), layers=("lstm",)),
         "the name of each core once"),
        (lambda: from_haiku(haiku(LSTM(D, H)), layers=("lstm", "gru")), "the name of each core once"),
        (lambda: from_haiku({}), "got no names"),
        (lambda: from_haiku({"batch_norm": {"scale": np.ones(2)}}), "got scale"),
        (lambda: from_haiku([1]), "expected a mapping"),
        (lambda: from_haiku({"lstm/linear": np.ones(2)}), "linear (2,); expected linear/w"),
        (lambda: to_flax(LSTM(D, H), random_params(LSTM(D, H)), api="jax"), "one of 'linen', 'nnx'"),
        (lambda: written(to_flax, conv(D, H), api="nnx"), "ConvLSTM, expected one of LSTM, GRU, RNN"),
        (lambda: written(to_flax, GRU(D, H), api="nnx"), "no bias inside the reset gate's product"),
        (lambda: to_flax(LSTM(D, H), random_params(GRU(D, H)), api="nnx"), "GRUParams, expected LSTMParams"),
        (lambda: to_flax(LSTM(D, H), random_params(LSTM(D, 5)), api="nnx"), "w_hh (5, 20), expected (4, 16)"),
        (lambda: written(to_flax, Stack((LSTM(D, H), Readout(H, 2))), api="nnx"), "layer 1: Readout"),
        (lambda: written(to_flax, Zoneout(LSTM(D, H), 0.1), api="nnx"), "pass its .cell"),
        (lambda: haiku(GRU(D, H)), "resets h before the product"),
        (lambda: haiku(RNN(D, H)), "RNN(activation=tanh)"),
        (lambda: haiku(SLSTM(D, H)), "SLSTM, expected one of LSTM, GRU, RNN, ConvLSTM"),
        (lambda: haiku(Bidirectional(LSTM(D, H))), "Bidirectional, expected one of"),
        (lambda: written(to_flax, Bidirectional(Stack((LSTM(D, H),))), api="linen"),
         "forward: Stack, expected one of"),
        (lambda: from_flax([]), "got no layers"),
        (lambda: written(to_equinox, RNN(D, H)), "RNN, expected one of LSTM, GRU"),
        (lambda: written(to_equinox, GRUVariant(D, H, reset_after=False)), "with reset_after=False"),
    ],
)  # fmt: skip
def test_errors(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value)


OPTIONS = [
    (LSTMVariant, {"proj_size": 2}), (LSTMVariant, {"peepholes": True}), (LSTMVariant, {"coupled": True}),
    (LSTMVariant, {"heads": 2}), (LSTMVariant, {"ablation": "no_input_gate"}), (LSTMVariant, {"clip":
    3.0}), (LSTMVariant, {"cell_clip": 3.0}), (LSTMVariant, {"layer_norm": "haste"}), (LSTM,
    {"learn_initial_carry": True}), (GRUVariant, {"heads": 2, "learn_initial_carry": True}),
]  # fmt: skip


@pytest.mark.parametrize(
    "cell",
    [
        LSTMVariant(D, H, activation="relu"),
        GRUVariant(D, H, recurrent_activation="hard_sigmoid"),
        GRUVariant(D, H, activation="elu", reset_after=False),
    ],
    ids=repr,
)
def test_activations_that_haiku_and_equinox_lack(cell):
    names = [name for name in ("activation", "recurrent_activation") if f" {name}=" in repr(cell)]
    for write in (to_haiku, to_equinox):
        with pytest.raises(ValueError, match=f"with {names[0]}="):
            write(cell, random_params(cell))


@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_activations_in_flax(api):
    cells = (
        LSTMVariant(D, H, activation="relu"),
        GRUVariant(H, H, recurrent_activation="hard_sigmoid"),
        RNN(H, D),
    )
    network = Stack(cells)
    params = random_params(network) if api == "linen" else without_bias_hn(random_params(network))
    again, back = from_flax(
        to_flax(network, params, api=api),
        activation=["relu", None, jnp.tanh],
        recurrent_activation=[None, jax.nn.hard_sigmoid, None],
    )
    assert again == network
    identical(back, params)
    lstm = to_flax(cells[0], params[0], api=api)
    assert from_flax(lstm, activation="tanh", recurrent_activation="sigmoid")[0] == LSTM(D, H)
    both = {"forward_rnn": lstm, "backward_rnn": lstm}
    assert from_flax(both, activation="relu")[0] == Bidirectional(cells[0])
    for given, words in (
        (dict(activation="relu"), "simple and gated layers"),
        (dict(activation=["relu"]), "1 entries of activation with 3 layers"),
        (dict(activation="tanh", recurrent_activation="sine"), "'sine'"),
        (dict(activation=[None, None, None]), "which do not contain its activation"),
    ):
        with pytest.raises(ValueError, match=words):
            from_flax(to_flax(network, params, api=api), **given)
    image = written(to_flax, conv(D, H), api="linen")
    with pytest.raises(ValueError, match="activation=relu with the weights of linen"):
        from_flax(image, activation="relu", input_shape=(6, 5, D))


def test_dtype_argument():
    """Rounded before two arrays are added; float64 is never rounded without a dtype."""
    for read, write, cell in (
        (from_flax, to_linen, GRU(D, H)),
        (from_haiku, to_haiku, LSTM(D, H)),
        (from_equinox, to_equinox, Stack((GRU(D, H), LSTM(H, H)))),
    ):
        options = {"layers": ("lstm",)} if read is from_haiku else {}
        params = random_params(cell)
        wide = jax.tree.map(lambda a: np.asarray(a, "float64"), params)
        with pytest.raises(ValueError, match="jax_enable_x64 is off"):
            read(write(cell, wide), **options)
        _, back = read(write(cell, wide), dtype="float32", **options)
        for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2.0**-23)
        network, half = read(write(cell, wide), dtype="bfloat16", **options)
        assert {a.dtype.name for a in jax.tree.leaves(half)} == {"bfloat16"}
        assert "bfloat16" in str(network)


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_options_that_these_libraries_lack(kind, options):
    cell = kind(D, H, **options)
    for write in (
        lambda: to_flax(cell, random_params(cell), api="linen"),
        lambda: to_flax(cell, random_params(cell), api="nnx", optimized=True),
        lambda: to_equinox(cell, random_params(cell)),
        lambda: to_haiku(cell, random_params(cell)),
    ):
        with pytest.raises(ValueError) as caught:
            write()
        for name, value in options.items():
            assert f"{name}={value!r}" in str(caught.value)


@pytest.mark.parametrize("options", [{"residual": True}, {"skip": True}, {"dropout": 0.5}], ids=str)
def test_stacks_that_these_libraries_lack(options):
    network = Stack((LSTM(D, D), LSTM(2 * D if "skip" in options else D, D)), **options)
    for write in (to_haiku, to_equinox, lambda *both: to_flax(*both, api="linen")):
        with pytest.raises(ValueError, match=f"{next(iter(options))}="):
            write(network, random_params(network))


@pytest.mark.parametrize("options", [{"strides": (2, 2)}, {"padding": "VALID"}], ids=str)
def test_convolutions_that_these_libraries_lack(options):
    cell = ConvLSTM((6, 5, D), H, (3, 2), **options)
    for write in (to_haiku, lambda *both: to_flax(*both, api="linen")):
        with pytest.raises(ValueError, match="the recurrent one must keep the size"):
            write(cell, random_params(cell))
