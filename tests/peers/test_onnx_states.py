"""Initial states, activations and directions of ONNX models, compared with PyTorch and onnxruntime."""

import io
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import daily

onnx = pytest.importorskip("onnx", reason="reads ONNX's models")
runtime = pytest.importorskip("onnxruntime", reason="runs ONNX's models")

from onnx import helper, numpy_helper  # noqa: E402

from lstm_jax import GRU, LSTM, RNN, Bidirectional, GRUVariant, LSTMVariant, Stack, unroll  # noqa: E402
from lstm_jax.interop.onnx import OnnxActivation, from_onnx, from_onnx_node, to_onnx  # noqa: E402

pytestmark = pytest.mark.peers

T, B, D, H = 5, 2, 3, 4
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def exported(kind, layers, both, dynamic, rows, state=None):
    """A PyTorch module whose initial states are inputs, and its ONNX export."""
    torch = pytest.importorskip("torch", reason="writes models")

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = getattr(torch.nn, kind)(D, H, layers, bidirectional=both)

        def forward(self, x, *states):
            given = state(x, states) if state is not None else states
            return self.cells(x, given[0] if len(given) == 1 else tuple(given))[0]

    torch.manual_seed(0)
    network = Network().eval()
    x = torch.randn(T, rows, D)
    count = 2 if kind == "LSTM" else 1
    states = [torch.randn(layers * (2 if both else 1), rows, H) for _ in range(count)]
    names = ["x", "h0", "c0"][: 1 + count]
    axes = {"x": {0: "T", 1: "B"}, **{name: {1: "B"} for name in names[1:]}} if dynamic else None
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a FutureWarning of the exporter
        torch.onnx.export(
            network, (x, *states), file, dynamo=False, input_names=names, dynamic_axes=axes,
            export_params=True,
        )  # fmt: skip
    return network, onnx.load_from_string(file.getvalue())


def carry_of(network, states):
    """The network's carry for PyTorch's states, each (layers * directions, B, H)."""
    rows = [tuple(np.asarray(s[at]) for s in states) for at in range(len(states[0]))]
    carries = [row if len(row) == 2 else row[0] for row in rows]
    layers = network.layers if isinstance(network, Stack) else (network,)
    found = []
    for layer in layers:
        count = 2 if isinstance(layer, Bidirectional) else 1
        own, carries = carries[:count], carries[count:]
        found.append(tuple(own) if count == 2 else own[0])
    return tuple(found) if isinstance(network, Stack) else found[0]


@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("rows", daily([2, 1, 5]))
def test_states_that_are_inputs_are_not_weights(kind, layers, both, dynamic, rows):
    """One input ``h0`` contains the states of all layers."""
    import torch

    module, model = exported(kind, layers, both, dynamic, rows)
    found = from_onnx(model)
    assert found.carry is None
    cells = [c for layer in getattr(found.network, "layers", (found.network,)) for c in (layer, layer)]
    cells = [cell for layer in cells for cell in getattr(layer, "cells", (layer,))]
    assert not any(cell.learn_initial_carry for cell in cells)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(T, rows, D)).astype(np.float32)
    shape = (layers * (1 + both), rows, H)
    states = [rng.normal(size=shape).astype(np.float32) for _ in range(2 if kind == "LSTM" else 1)]
    expected = module(torch.from_numpy(x), *map(torch.from_numpy, states)).detach().numpy()
    _, ys = unroll(found.network, found.params, x, carry_of(found.network, states))
    np.testing.assert_allclose(ys, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", daily(list(GATES), "LSTM"))
def test_single_nodes_with_states_that_are_inputs(kind):
    _, model = exported(kind, 2, False, True, 2)
    for node in (node for node in model.graph.node if node.op_type in GATES):
        found = from_onnx_node(model, node.output[0])
        assert found.carry is None and not found.network.learn_initial_carry


@pytest.mark.parametrize("kind", daily(list(GATES), "LSTM"))
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_states_computed_from_the_sequence_are_an_error(kind, dynamic):
    def first_frame(x, states):
        return [x[0, :, :1].expand(-1, H)[None] * (1 + s) for s in states]

    _, model = exported(kind, 1, False, dynamic, 2, first_frame)
    for read in (from_onnx, from_onnx_node):
        with pytest.raises(ValueError, match=r"initial state.*computed from the sequence"):
            read(model)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_states_computed_from_other_inputs_are_passed_by_the_caller(dynamic):
    _, model = exported("GRU", 1, False, dynamic, 2, lambda x, states: [s * 2 for s in states])
    assert from_onnx(model).carry is None and not from_onnx(model).network.learn_initial_carry


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_parameters_expanded_to_the_batch_are_learned(dynamic):
    import torch

    start = torch.linspace(-1, 1, H)

    _, model = exported(
        "GRU", 1, False, dynamic, 3, lambda x, states: [start.expand(1, x.shape[1], H) + 0 * x.shape[0]]
    )
    found = from_onnx(model)
    value = found.params.initial if found.network.learn_initial_carry else np.asarray(found.carry)[0]
    np.testing.assert_allclose(value, start, rtol=1e-6)


def lstm_model(states, initializers, B):
    """A model of one LSTM node. Its states are inputs or constants."""
    rng = np.random.default_rng(0)
    tensors = {"W": rng.normal(size=(1, 4 * H, D)), "R": rng.normal(size=(1, 4 * H, H))} | initializers
    node = helper.make_node("LSTM", ["X", "W", "R", "", "", *states], ["Y"], hidden_size=H)
    shapes = {"X": (T, B, D)} | {name: (1, B, H) for name in states if name not in tensors}
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        ],
        [helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, (T, 1, B, H))],
        [numpy_helper.from_array(np.float32(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("known", ["h", "c"])
def test_one_state_is_an_input_and_the_other_a_constant(known, rows):
    """The carry contains the constant, and zeros for the caller to replace. It is not learned."""
    rng = np.random.default_rng(1)
    states = {name: rng.normal(size=(1, rows, H)).astype(np.float32) for name in "hc"}
    model = lstm_model(["h", "c"], {known: states[known]}, rows)
    found = from_onnx(model)
    assert not found.network.learn_initial_carry
    given = "c" if known == "h" else "h"
    carry = dict(zip("hc", found.carry, strict=True))
    np.testing.assert_array_equal(carry[known], states[known][0])
    assert not carry[given].any()
    carry[given] = jnp.asarray(states[given][0])
    xs = rng.normal(size=(T, rows, D)).astype(np.float32)
    session = runtime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, {"X": xs, given: states[given]})
    _, ys = unroll(found.network, found.params, xs, (carry["h"], carry["c"]))
    np.testing.assert_allclose(ys, expected[:, 0], rtol=1e-4, atol=1e-5)


# --- activations --------------------------------------------------------------------------------

ACTIVATED = {
    "lstm_relu": LSTMVariant(D, H, activation="relu"),
    "lstm_hard": LSTMVariant(D, H, recurrent_activation="hard_sigmoid", activation="softsign"),
    "lstm_onnx": LSTMVariant(D, H, recurrent_activation=OnnxActivation("HardSigmoid", 0.2, 0.5)),
    "gru_relu": GRUVariant(D, H, activation="relu"),
    "gru_affine": GRUVariant(D, H, activation="linear", recurrent_activation="hard_sigmoid"),
    "gru_before": GRUVariant(D, H, activation="elu", reset_after=False),
    "rnn": RNN(D, H, activation=OnnxActivation("ThresholdedRelu", 0.1)),
    "two": Bidirectional(LSTMVariant(D, H, activation="relu"), backward=LSTM(D, H)),
    "two_merged": Bidirectional(GRU(D, H), merge="sum", backward=GRUVariant(D, H, activation="softplus")),
    "unlike": Bidirectional(LSTM(D, H), backward=GRU(D, H)),
}


def drawn(network, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), shapes)


@pytest.mark.parametrize("name", ACTIVATED)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_activations_there_and_back(name, reverse):
    network, params = ACTIVATED[name], drawn(ACTIVATED[name])
    model = to_onnx(network, params, reverse=reverse)
    xs = np.random.default_rng(2).normal(size=(T, B, D)).astype(np.float32)
    (ys, *_) = runtime.InferenceSession(model.SerializeToString()).run(None, {"xs": xs})
    np.testing.assert_allclose(ys, unroll(network, params, xs, reverse=reverse)[1], rtol=1e-4, atol=1e-5)
    if name == "unlike":  # two nodes that are not layers of a Stack
        return
    back = from_onnx(model)
    if not reverse:
        assert back.network == network
    np.testing.assert_allclose(
        unroll(back.network, back.params, xs, back.carry, reverse=back.reverse)[1], ys, rtol=1e-4, atol=1e-5
    )


def test_three_different_activations_are_an_error():
    rng = np.random.default_rng(0)
    weights = {
        "W": rng.normal(size=(1, 4 * H, D)).astype(np.float32),
        "R": rng.normal(size=(1, 4 * H, H)).astype(np.float32),
    }
    node = helper.make_node(
        "LSTM", ["X", "W", "R"], ["Y"], hidden_size=H, activations=["Sigmoid", "Relu", "Tanh"]
    )
    x = helper.make_tensor_value_info("X", onnx.TensorProto.FLOAT, ("T", "B", D))
    y = helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, ("T", 1, "B", H))
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    model = helper.make_model(helper.make_graph([node], "one", [x], [y], tensors))
    with pytest.raises(ValueError, match="the same activation for the candidate and the cell state"):
        from_onnx(model)
