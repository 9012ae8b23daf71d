"""ONNX conversions without the onnx package: layouts of one node, activations, errors."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import (
    GRU,
    LSTM,
    MLSTM,
    RNN,
    SLSTM,
    Bidirectional,
    CandidateDropout,
    ConvLSTM,
    GRUVariant,
    IndRNN,
    LSTMVariant,
    MinGRU,
    Readout,
    Stack,
    VariationalDropout,
    WeightDrop,
    Zoneout,
)
from lstm_jax.interop.onnx import OnnxActivation, from_onnx, from_onnx_node, save_onnx, to_onnx
from lstm_jax.interop.onnx._activations import FORMULAS, JAX_ACTIVATIONS, read_activations
from lstm_jax.interop.onnx._nodes import Node, cell_of, node_of

D, H = 3, 2


def counted(cell):
    """Parameters whose entries are 1, 2, 3 ... along the last axis."""
    shapes = jax.eval_shape(cell.init, jax.random.key(0))
    return jax.tree.map(lambda a: jnp.broadcast_to(jnp.arange(1.0, a.shape[-1] + 1), a.shape), shapes)


# --- one node -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "field", "expected"),
    [
        (LSTM(1, 1), "W", [1, 4, 2, 3]),  # i f g o as i o f c
        (LSTM(1, 1), "R", [1, 4, 2, 3]),
        (LSTM(1, 1), "B", [1, 4, 2, 3, 0, 0, 0, 0]),
        (LSTMVariant(1, 1, peepholes=True), "P", [1, 3, 2]),  # i f o as i o f
        (LSTMVariant(1, 1, coupled=True), "W", [1, 3, 0, 2]),  # i g o; f has no weights
        (LSTMVariant(1, 1, coupled=True, peepholes=True), "P", [1, 2, 0]),
        (GRU(1, 1), "W", [2, 1, 3]),  # r z n as z r h
        (GRU(1, 1), "B", [2, 1, 3, 0, 0, 1]),  # b_hn is the candidate's second bias
        (GRUVariant(1, 1, reset_after=False), "B", [2, 1, 3, 0, 0, 0]),
        (RNN(1, 1), "B", [1, 0]),
        (LSTM(1, 1, use_bias=False), "B", None),
        (GRU(1, 2), "W", [3, 4, 1, 2, 5, 6]),
    ],
)
def test_the_order_of_the_gates(cell, field, expected):
    found = getattr(node_of(cell, counted(cell)), field)
    assert found is None if expected is None else found.ravel().tolist() == expected


def test_heads_become_one_matrix():
    cell = GRUVariant(D, 4, heads=2)
    w = cell.init(jax.random.key(0)).w_hh
    node = node_of(cell, cell.init(jax.random.key(0)))
    blocks = node.R.reshape(3, 2, 2, 2, 2)  # gate, head, unit, head of h, unit of h
    assert not blocks[:, 0, :, 1].any() and not blocks[:, 1, :, 0].any()
    r_of_head_1 = np.asarray(w[1, :, :2])
    np.testing.assert_array_equal(blocks[1, 1, :, 1].T, r_of_head_1)


CELLS = {
    "rnn": RNN(D, H, activation=jax.nn.relu),
    "rnn_affine": RNN(D, H, activation=OnnxActivation("Affine", 0.1, 0.2), use_bias=False),
    "lstm": LSTM(D, H, learn_initial_carry=True),
    "lstm_options": LSTMVariant(D, H, peepholes=True, coupled=True, clip=0.3),
    "lstm_bare": LSTMVariant(D, H, peepholes=True, use_bias=False),
    "lstm_relu": LSTMVariant(D, H, activation="relu", recurrent_activation="hard_sigmoid"),
    "lstm_affine": LSTMVariant(D, H, recurrent_activation=OnnxActivation("Affine", 0.2, 0.5)),
    "gru": GRU(D, H, learn_initial_carry=True),
    "gru_elu": GRUVariant(D, H, activation="elu"),
    "gru_before": GRUVariant(D, H, reset_after=False),
}


@pytest.mark.parametrize("name", CELLS)
def test_round_trip_is_exact(name):
    cell = CELLS[name]
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(cell.init, jax.random.key(0))
    special = np.float32([-0.0, 0.0, 1e-40, -3.5, 7e30, np.inf])
    params = jax.tree.map(lambda a: jnp.asarray(rng.choice(special, a.shape)), shapes)
    back, found = cell_of(node_of(cell, params))
    assert back == cell
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_two_biases_are_summed_except_for_the_candidate():
    rng = np.random.default_rng(0)
    W, R, B = (rng.normal(size=shape).astype(np.float32) for shape in ((6, D), (6, H), (12,)))
    z, r, h, z_2, r_2, h_2 = np.split(B, 6)
    _, after = cell_of(Node("GRU", W, R, B, linear_before_reset=True))
    np.testing.assert_array_equal(after.bias, np.concatenate([r + r_2, z + z_2, h]))
    np.testing.assert_array_equal(after.bias_hn, h_2)
    _, before = cell_of(Node("GRU", W, R, B))
    np.testing.assert_array_equal(before.bias, np.concatenate([r + r_2, z + z_2, h + h_2]))
    assert before.bias_hn is None


def test_other_float_types_come_in():
    W, R = np.ones((H, D), np.float16), np.ones((H, H), np.float16)
    cell, params = cell_of(Node("RNN", W, R))
    assert cell.param_dtype == np.float16 and params.w_ih.dtype == np.float16
    cell, params = cell_of(Node("RNN", W.astype(np.float64), R.astype(np.float64)))
    assert cell.param_dtype == params.w_ih.dtype == np.float32
    with jax.enable_x64(True):
        assert cell_of(Node("RNN", W.astype(np.float64), R.astype(np.float64)))[1].w_ih.dtype == np.float64


def test_weights_of_several_dtypes():
    W, R = np.ones((H, D), np.float32), np.ones((H, H), np.float64)
    with pytest.raises(ValueError, match="weights of W float32, R float64; expected weights of one floating"):
        cell_of(Node("RNN", W, R))
    with pytest.raises(ValueError, match="initial_h float16"):
        cell_of(Node("RNN", W, R.astype(np.float32), initial=(np.ones(H, np.float16),)))
    with pytest.raises(ValueError, match="one floating dtype"):
        cell_of(Node("RNN", W.astype(int), R.astype(int)))


def test_shapes_that_contradict_each_other():
    W, R = np.ones((4 * H, D), np.float32), np.ones((4 * H, H), np.float32)
    with pytest.raises(ValueError, match=r"W of shape \(6, 3\)"):
        cell_of(Node("LSTM", W[:6], R))
    with pytest.raises(ValueError, match=r"B of shape \(8,\)"):
        cell_of(Node("LSTM", W, R, W[:, 0]))


# --- activations --------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "name"), JAX_ACTIVATIONS, ids=lambda f: getattr(f, "name", ""))
def test_functions_of_jax_and_of_onnx_are_equal(function, name):
    x = jnp.linspace(-4, 4, 33)
    np.testing.assert_allclose(name(x), function(x), rtol=1e-6, atol=1e-6)


def test_names_and_numbers_in_three_lists():
    """Each function takes as many numbers as it has; a missing one takes its default."""
    names = ["Tanh", "leakyrelu", "AFFINE", "HardSigmoid", "Elu"]
    found = read_activations(names, [0.5, 2.0, 0.25], [1.0], "from_onnx got a node")
    assert found == [
        OnnxActivation("Tanh"),
        OnnxActivation("LeakyRelu", 0.5),
        OnnxActivation("Affine", 2.0, 1.0),
        OnnxActivation("HardSigmoid", 0.25, 0.5),
        OnnxActivation("Elu", 1.0),
    ]
    with pytest.raises(ValueError, match="ScaledTanh without activation_beta"):
        read_activations(["ScaledTanh"], [1.0], [], "from_onnx got a node")
    with pytest.raises(ValueError, match="1 numbers too many in activation_alpha"):
        read_activations(["Tanh"], [1.0], [], "from_onnx got a node")
    with pytest.raises(ValueError, match="name='Gelu'"):
        OnnxActivation("Gelu")
    with pytest.raises(ValueError, match=r"alpha=1\.0 for Tanh"):
        OnnxActivation("Tanh", 1.0)
    assert {activation.name for _, activation in JAX_ACTIVATIONS} <= set(FORMULAS)


def test_numbers_are_those_of_float32():
    assert OnnxActivation("Affine", np.float32(0.1), 1 / 3) == OnnxActivation(
        "Affine", 0.1, np.float32(1 / 3)
    )
    assert hash(OnnxActivation("Elu", 0.1)) == hash(OnnxActivation("Elu", float(np.float32(0.1))))


# --- errors, raised before onnx is imported -----------------------------------------------------


@pytest.fixture
def no_onnx(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)


UNSUPPORTED = {
    "projection": (LSTMVariant(D, 4, proj_size=2), r"LSTM\(proj_size=2\).*jax.export"),
    "ablation": (LSTMVariant(D, H, ablation="no_input_gate"), r"LSTM\(ablation='no_input_gate'\)"),
    "layer_norm": (LSTMVariant(D, H, layer_norm="tfa"), r"LSTM\(layer_norm='tfa'\)"),
    "cell_clip": (LSTMVariant(D, H, cell_clip=1.0), r"LSTM\(cell_clip=1.0\)"),
    "dtype": (GRU(D, H, dtype="bfloat16"), r"GRU\(dtype=bfloat16\)"),
    "activation": (RNN(D, H, activation=jnp.sin), r"activation=.*sin.*leaky_relu.*OnnxActivation"),
    "lstm_activation": (LSTMVariant(D, H, activation="gelu"), r"LSTM with activation=gelu.*OnnxActivation"),
    "mlstm": (MLSTM(D, 4, heads=2), "got MLSTM; expected RNN, LSTM or GRU.*jax.export"),
    "slstm": (SLSTM(D, 4, heads=2), "got SLSTM"),
    "indrnn": (IndRNN(D, H), "got IndRNN"),
    "mingru": (MinGRU(D, H), "got MinGRU"),
    "zoneout": (Zoneout(LSTM(D, H), 0.1), "got Zoneout"),
    "inside": (WeightDrop(Zoneout(LSTM(D, H), 0.1), 0.5), "got Zoneout"),
    "in_a_network": (Stack((GRU(D, H), Bidirectional(IndRNN(H, H)))), "IndRNN at layer1_forward"),
    "readout": (Readout(D, H, activation=jnp.sin), r"Readout\(activation=.*sin.*the identity, Tanh"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_onnx_cannot_represent(name, no_onnx, tmp_path):
    network, message = UNSUPPORTED[name]
    params = network.init(jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        to_onnx(network, params)
    with pytest.raises(ValueError, match=message):
        save_onnx(tmp_path / "model.onnx", network, params)
    assert not list(tmp_path.iterdir())


def test_images(no_onnx):
    network = ConvLSTM((4, 4, D), H, (3, 3))
    with pytest.raises(ValueError, match="got ConvLSTM"):
        to_onnx(network, network.init(jax.random.key(0)))


def test_parameters_that_do_not_fit(no_onnx):
    cell = GRU(D, H)
    params = cell.init(jax.random.key(0))
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    with pytest.raises(ValueError, match=r"w_ih of dtype bfloat16.*astype\(jnp.float32\)"):
        to_onnx(cell, half)
    with pytest.raises(ValueError, match=r"w_hh of shape \(2, 3\).*\(2, 6\)"):
        to_onnx(cell, params._replace(w_hh=params.w_hh[:, :3]))
    with pytest.raises(ValueError, match=r"bias of shape None"):
        to_onnx(cell, params._replace(bias=None))
    with pytest.raises(ValueError, match=r"1 entries.*tuple of 2"):
        to_onnx(Stack((cell, GRU(H, H))), (params,))
    readout = Readout(D, H)
    with pytest.raises(ValueError, match=r"w of shape \(3, 5\)"):
        to_onnx(readout, Readout(D, 5).init(jax.random.key(0)))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("to_onnx", lambda: to_onnx(GRU(D, H), GRU(D, H).init(jax.random.key(0)))),
        ("from_onnx", lambda: from_onnx("model.onnx")),
        ("from_onnx_node", lambda: from_onnx_node("model.onnx")),
    ],
)
def test_errors_without_the_package(name, call, no_onnx):
    with pytest.raises(ImportError, match=rf'^{name} needs onnx. Install it: pip install "lstm_jax\[onnx\]"'):
        call()


@pytest.mark.parametrize("read", [from_onnx, from_onnx_node])
@pytest.mark.parametrize("inputs", [3, [1.0], "W"])
def test_inputs_that_are_not_a_mapping(read, inputs, no_onnx):
    with pytest.raises(ValueError, match=f"^{read.__name__} got inputs of type.*name: array"):
        read("model.onnx", inputs=inputs)


def test_wrappers_without_noise_are_the_wrapped_cell():
    cell = LSTM(D, H)
    params = cell.init(jax.random.key(0))
    wrapped = VariationalDropout(WeightDrop(CandidateDropout(cell, 0.5), 0.5), inputs=0.5)
    for a, b in zip(node_of(wrapped, params), node_of(cell, params), strict=True):
        np.testing.assert_array_equal(a, b)
