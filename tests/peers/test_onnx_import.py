"""Import of ONNX models: the onnx package's cases, onnxruntime, PyTorch's exports, and this library's."""

import functools
import io
import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="reads ONNX's models")
runtime = pytest.importorskip("onnxruntime", reason="runs ONNX's models")

from onnx import helper, numpy_helper  # noqa: E402

from lstm_jax import GRU, LSTM, RNN, Bidirectional, GRUVariant, LSTMVariant, Readout, Stack, unroll  # noqa: E402
from lstm_jax.interop.onnx import OnnxActivation, from_onnx, from_onnx_node, save_onnx, to_onnx  # noqa: E402

pytestmark = pytest.mark.peers

T, B, D, H = 5, 3, 3, 4
FLOAT, INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32


def scanned(found, xs, lengths=None, carry=None):
    """Final states, each (directions, B, H), and outputs (T, directions, B, H)."""
    carry = found.carry if carry is None else carry
    after, ys = unroll(found.network, found.params, xs, carry, lengths=lengths, reverse=found.reverse)
    both = isinstance(found.network, Bidirectional)
    sides = after if both else (after,)
    sides = [side if isinstance(side, tuple) else (side,) for side in sides]
    states = [np.stack(state) for state in zip(*sides, strict=True)]
    return states, np.stack(np.split(np.asarray(ys), len(sides), axis=-1), axis=1)


# --- the cases of the onnx package --------------------------------------------------------------

CASES = [
    f"test_{kind}_{what}"
    for kind in ("gru", "lstm", "simple_rnn")
    for what in ("defaults", "with_initial_bias", "batchwise", "reverse", "bidirectional")
]
CASES += ["test_gru_seq_length", "test_rnn_seq_length", "test_lstm_with_peepholes"]


@functools.cache
def cases():
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cases of other operators
        every = collect_testcases(None)
    return {
        case.name: case
        for case in every
        if any(node.op_type in ("RNN", "LSTM", "GRU") for node in case.model.graph.node)
    }


def test_these_are_all_cases():
    assert sorted(cases()) == sorted(CASES) and len(CASES) == 18


@pytest.mark.parametrize("one", [False, True], ids=["model", "node"])
@pytest.mark.parametrize("name", CASES)
def test_the_cases_of_the_onnx_package(name, one):
    """Their weights are inputs of the graph."""
    case = cases()[name]
    (node,) = case.model.graph.node
    ((given, expected),) = case.data_sets
    inputs = dict(zip((info.name for info in case.model.graph.input), given, strict=True))
    xs = inputs.pop("X")
    batch_major = any(a.name == "layout" and a.i == 1 for a in node.attribute)
    found = (from_onnx_node if one else from_onnx)(case.model, inputs=inputs)
    states, ys = scanned(found, xs.swapaxes(0, 1) if batch_major else xs, inputs.get("sequence_lens"))
    if batch_major:
        states, ys = [state.swapaxes(0, 1) for state in states], ys.transpose(2, 0, 1, 3)
    found = dict(zip(("Y", "Y_h", "Y_c"), (ys, *states), strict=False))
    for output, value in zip(filter(None, node.output), expected, strict=True):
        assert found[output].shape == value.shape
        np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-6)


# --- there and back -----------------------------------------------------------------------------

NETWORKS = {
    "rnn": RNN(D, H, activation=jax.nn.relu),
    "rnn_bare": RNN(D, H, use_bias=False, activation=OnnxActivation("Affine", 0.3, 0.1)),
    "gru": GRU(D, H, learn_initial_carry=True),
    "gru_before": GRUVariant(D, H, reset_after=False),
    "lstm": LSTM(D, H, learn_initial_carry=True),
    "lstm_options": LSTMVariant(D, H, coupled=True, peepholes=True, clip=0.4),
    "both": Bidirectional(LSTMVariant(D, H, peepholes=True)),
    "both_product": Bidirectional(GRU(D, H, learn_initial_carry=True), merge="product"),
    "stack": Stack((LSTM(D, H), GRU(H, H), RNN(H, H, use_bias=False))),
    "residual": Stack((LSTM(D, H), GRU(H, H), RNN(H, H)), residual=True),
    "both_merged": Stack(
        (Bidirectional(LSTM(D, H), merge="product"), Bidirectional(GRU(H, H), merge="mean"))
    ),
    "skip": Stack((LSTM(D, H), GRU(H + D, H), RNN(H + D, H)), skip=True),
    "all": Stack(
        (
            Bidirectional(LSTM(D, H), merge="sum"),
            Bidirectional(GRU(H + D, H), merge="mean"),
            Readout(H + D, H, activation=jax.nn.softmax),
        ),
        residual=True,
        skip=True,
    ),
    "readouts": Stack(
        (
            LSTM(D, H),
            Readout(H, 5, activation=jnp.tanh),
            Bidirectional(GRU(5, 2)),
            Readout(4, 3, use_bias=False),
        )
    ),
}


def drawn(network):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), shapes)


def bits(params):
    leaves, structure = jax.tree.flatten(params)
    return str(structure), [np.asarray(leaf).tobytes() for leaf in leaves]


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name, lengths):
    """Hyperparameters are equal, and parameters are equal bit for bit."""
    network, params = NETWORKS[name], drawn(NETWORKS[name])
    found = from_onnx(to_onnx(network, params, lengths=lengths))
    assert found.network == network
    assert bits(found.params) == bits(params)
    assert found.carry is None and found.reverse is False


@pytest.mark.parametrize("name", ["rnn", "lstm_options", "both", "stack", "skip", "readouts"])
def test_there_and_back_in_reverse(name):
    network, params = NETWORKS[name], drawn(NETWORKS[name])
    found = from_onnx(to_onnx(network, params, reverse=True, carry=True))
    assert (found.network, found.carry, found.reverse) == (network, None, True)
    assert bits(found.params) == bits(params)


def test_symmetric_merges_are_read_as_forward_first():
    """The two models differ only in the order of the parameters."""
    network = Bidirectional(LSTM(D, H), merge="sum")
    params = drawn(network)
    found = from_onnx(to_onnx(network, params, reverse=True))
    assert (found.network, found.reverse) == (network, False)
    assert bits(found.params) == bits(params.__class__(params.backward, params.forward))


def test_negative_zeros_and_files(tmp_path):
    cell = GRU(D, H)
    params = jax.tree.map(lambda a: jnp.full_like(a, -0.0), drawn(cell))
    save_onnx(tmp_path / "gru.onnx", cell, params)
    for path in (tmp_path / "gru.onnx", str(tmp_path / "gru.onnx")):
        assert bits(from_onnx(path).params) == bits(params)


# --- nodes as others write them -----------------------------------------------------------------


def model(nodes, weights, inputs, outputs):
    """A model; ``inputs`` maps names to shapes, and weights are initializers."""
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(n, INT32 if n == "lengths" else FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def run(made, feeds):
    session = runtime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def one_node(op, rng, direction="forward", bias=True, peepholes=False, scale=0.7, **attributes):
    """A model of one node. Its weights come from all types of constants."""
    G, dirs, states = GATES[op], 1 + (direction == "bidirectional"), 1 + (op == "LSTM")
    values = {"R": (dirs, G * H, H), "W_there": (dirs, G * H, D)}
    values |= {"B": (dirs, 2 * G * H)} if bias else {}
    values |= {"P_T": (3 * H, dirs)} if peepholes else {}
    values = {name: rng.normal(size=shape) * scale for name, shape in values.items()}
    bias_tensor = numpy_helper.from_array(np.float32(values.pop("B", [])))
    nodes = [
        helper.make_node("Identity", ["W_there"], ["W"]),
        helper.make_node("Constant", [], ["B"], value=bias_tensor),
        helper.make_node("Transpose", ["P_T"], ["P"], perm=[1, 0]),
    ]
    nodes = [
        node for node in nodes if node.output[0] in ("W", "B" if bias else "W", "P" if peepholes else "W")
    ]
    starts = ["h_0", "c_0"][:states]
    names = ["X", "W", "R", "B" if bias else "", "lengths", *starts, *(["P"] if peepholes else [])]
    outs = ["Y", "Y_h", "Y_c"][: 1 + states]
    nodes.append(helper.make_node(op, names, outs, "it", direction=direction, hidden_size=H, **attributes))
    inputs = {"X": ("T", "B", D), "lengths": ("B",)} | dict.fromkeys(starts, (dirs, "B", H))
    outputs = {"Y": ("T", dirs, "B", H)} | dict.fromkeys(outs[1:], (dirs, "B", H))
    return model(nodes, values, inputs, outputs), dirs


#: ONNX activations with their parameters alpha and beta.
ACTIVATIONS = [
    ("Sigmoid",),
    ("Tanh",),
    ("Relu",),
    ("Softplus",),
    ("Softsign",),
    ("LeakyRelu", 0.25),
    ("ThresholdedRelu", 0.125),
    ("Elu", 0.5),
    ("Affine", 0.5, 0.125),
    ("ScaledTanh", 0.75, 1.5),
    ("HardSigmoid", 0.25, 0.375),
]


def activation_attributes(activations):
    """Attributes of a node: names of activations, and alpha and beta of those that have them."""
    attributes = {
        "activations": [name for name, *_ in activations],
        "activation_alpha": [numbers[0] for _, *numbers in activations if numbers],
        "activation_beta": [numbers[1] for _, *numbers in activations if len(numbers) > 1],
    }
    return {name: values for name, values in attributes.items() if values}


@st.composite
def nodes(draw):
    op = draw(st.sampled_from(sorted(GATES)))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    options = {"direction": direction, "bias": draw(st.booleans())}
    if op == "LSTM":
        options["peepholes"] = draw(st.booleans())
        options["input_forget"] = draw(st.integers(0, 1))
        options |= draw(st.sampled_from([{}, {"clip": 0.5}]))
    elif op == "GRU":
        options["linear_before_reset"] = draw(st.integers(0, 1))
    if draw(st.booleans()):
        activations = []
        for _ in range(1 + (direction == "bidirectional")):
            own = [draw(st.sampled_from(ACTIVATIONS)) for _ in range(1 if op == "RNN" else 2)]
            activations += [*own, own[-1]] if op == "LSTM" else own
        options |= activation_attributes(activations) | {"scale": 0.2}  # unbounded gates amplify rounding
    return op, options, draw(st.integers(0, 99))


def activated(op, *activations):
    """A bidirectional node whose activations all differ."""
    return op, {"direction": "bidirectional", "scale": 0.4} | activation_attributes(activations), 0


@hypothesis.given(nodes())
@hypothesis.example(activated("RNN", ("LeakyRelu", 0.25), ("HardSigmoid", 0.125, 0.375)))
@hypothesis.example(
    activated("GRU", ("HardSigmoid", 0.25, 0.5), ("Elu", 0.5), ("Sigmoid",), ("Affine", 2.0, 0.25))
)
@hypothesis.example(
    activated(
        "LSTM", ("HardSigmoid", 0.25, 0.5), *[("ScaledTanh", 0.75, 1.5)] * 2, ("Sigmoid",), *[("Relu",)] * 2
    )
)
@hypothesis.settings(max_examples=40)
def test_a_node_as_onnxruntime_computes_it(drawn_node):
    op, options, seed = drawn_node
    rng = np.random.default_rng(seed)
    made, dirs = one_node(op, rng, **options)
    names = ["h_0", "c_0"][: 1 + (op == "LSTM")]
    feeds = {name: rng.normal(size=(dirs, B, H)).astype(np.float32) for name in names}
    feeds |= {
        "X": rng.normal(size=(T, B, D)).astype(np.float32),
        "lengths": rng.integers(1, T + 1, B).astype(np.int32),
    }
    expected = run(made, feeds)
    found = from_onnx_node(made, "it")
    sides = [tuple(jnp.asarray(feeds[name][way]) for name in names) for way in range(dirs)]
    sides = [side if op == "LSTM" else side[0] for side in sides]
    carry = tuple(sides) if dirs == 2 else sides[0]
    states, ys = scanned(found, feeds["X"], feeds["lengths"], carry)
    for a, b in zip([ys, *states], expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def weights_of(op, D, H, *, name="", dirs=1, seed=0):
    rng, G = np.random.default_rng(seed), GATES[op]
    return {
        f"W{name}": rng.normal(size=(dirs, G * H, D)),
        f"R{name}": rng.normal(size=(dirs, G * H, H)),
    }


def test_both_layouts_in_one_chain():
    """The first node is batch-major, the second time-major."""
    weights = weights_of("GRU", D, H, name=1, dirs=2) | weights_of("LSTM", 2 * H, H, name=2)
    parts = [
        helper.make_node(
            "GRU", ["X", "W1", "R1"], ["Y1"], hidden_size=H, direction="bidirectional", layout=1
        ),
        helper.make_node("Transpose", ["Y1"], ["swapped"], perm=[1, 0, 2, 3]),
        helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array([0, 0, -1]))),
        helper.make_node("Reshape", ["swapped", "shape"], ["X2"]),
        helper.make_node("LSTM", ["X2", "W2", "R2"], ["Y2", "Y_h"], hidden_size=H),
    ]
    made = model(parts, weights, {"X": ("B", "T", D)}, {"Y2": ("T", 1, "B", H), "Y_h": (1, "B", H)})
    found = from_onnx(made)
    assert found.network == Stack(
        (
            Bidirectional(GRUVariant(D, H, reset_after=False, use_bias=False)),
            LSTM(2 * H, H, use_bias=False),
        )
    )
    xs = np.random.default_rng(3).normal(size=(T, B, D)).astype(np.float32)
    # The reference of onnx: onnxruntime has no layout 1.
    expected = onnx.reference.ReferenceEvaluator(made).run(None, {"X": xs.swapaxes(0, 1)})
    after, ys = unroll(found.network, found.params, xs)
    np.testing.assert_allclose(ys, expected[0][:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after[1][0], expected[1][0], rtol=1e-5, atol=1e-6)


def test_constant_initial_states():
    weights = weights_of("LSTM", D, H) | weights_of("RNN", H, H, name=2)
    c = np.random.default_rng(1).normal(size=(1, B, H)).astype(np.float32)
    parts = [
        helper.make_node("LSTM", ["X", "W", "R", "", "", "", "c"], ["Y", "", "Y_c"], hidden_size=H),
        helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.array([1]))),
        helper.make_node("Squeeze", ["Y", "one"], ["X2"]),
        helper.make_node("RNN", ["X2", "W2", "R2"], ["", "Y_h"], hidden_size=H),
    ]
    made = model(parts, weights | {"c": c}, {"X": ("T", B, D)}, {"Y_h": (1, B, H)})
    found = from_onnx(made)
    assert isinstance(found.network, Stack) and len(found.carry) == 2
    xs = np.random.default_rng(3).normal(size=(T, B, D)).astype(np.float32)
    (expected,) = run(made, {"X": xs})
    after, _ = unroll(found.network, found.params, xs, found.carry)
    np.testing.assert_allclose(after[1], expected[0], rtol=1e-5, atol=1e-6)
    h, c_0 = from_onnx_node(made, "Y").carry
    assert not h.any() and np.array_equal(c_0, c[0])


def test_constant_initial_states_with_the_batch_first():
    weights = weights_of("GRU", D, H, dirs=2)
    h = np.random.default_rng(1).normal(size=(B, 2, H)).astype(np.float32)
    options = {"hidden_size": H, "layout": 1, "direction": "bidirectional"}
    node = helper.make_node("GRU", ["X", "W", "R", "", "", "h"], ["Y", "Y_h"], **options)
    made = model([node], weights | {"h": h}, {"X": (B, "T", D)}, {"Y": (B, "T", 2, H), "Y_h": (B, 2, H)})
    found = from_onnx(made)
    np.testing.assert_array_equal(np.stack(found.carry, axis=1), h)
    xs = np.random.default_rng(3).normal(size=(T, B, D)).astype(np.float32)
    expected = onnx.reference.ReferenceEvaluator(made).run(None, {"X": xs.swapaxes(0, 1)})
    (h_T,), ys = scanned(found, xs)
    np.testing.assert_allclose(ys, expected[0].transpose(1, 2, 0, 3), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(h_T, expected[1].swapaxes(0, 1), rtol=1e-5, atol=1e-6)


def test_nodes_before_the_first_layer_are_not_part_of_the_network():
    """The model begins with an embedding. The initial state is zeros for each row."""
    weights = weights_of("RNN", D, H) | {"table": np.ones((7, D))}
    zero = numpy_helper.from_array(np.zeros(1, np.float32))
    parts = [
        helper.make_node("Cast", ["lengths"], ["ids"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Constant", [], ["zeroth"], value=numpy_helper.from_array(np.array([0]))),
        helper.make_node("Unsqueeze", ["rows", "zeroth"], ["X"]),
        helper.make_node("Shape", ["ids"], ["count"]),
        helper.make_node("Constant", [], ["ends"], value=numpy_helper.from_array(np.array([1, H], np.int64))),
        helper.make_node("Split", ["ends"], ["one", "H"]),
        helper.make_node("Concat", ["one", "count", "H"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["h"], value=zero),
        helper.make_node("RNN", ["X", "W", "R", "", "", "h"], ["Y"], hidden_size=H),
    ]
    made = model(parts, weights, {"lengths": ("B",)}, {"Y": (1, 1, "B", H)})
    found = from_onnx(made)
    assert (found.network, found.carry) == (RNN(D, H, use_bias=False), None)


def test_initial_states_that_are_computed_from_the_inputs():
    weights = weights_of("RNN", D, H) | {"V": np.ones((D, H))}
    parts = [
        helper.make_node("ReduceMax", ["X"], ["most"], axes=[0], keepdims=1),
        helper.make_node("MatMul", ["most", "V"], ["h"]),
        helper.make_node("RNN", ["X", "W", "R", "", "", "h"], ["Y"], hidden_size=H),
    ]
    made = model(parts, weights, {"X": ("T", "B", D)}, {"Y": ("T", 1, "B", H)})
    with pytest.raises(ValueError, match=r"initial state.*computed from the sequence"):
        from_onnx(made)


def test_nodes_after_the_last_layer_are_not_part_of_the_network():
    """The MatMul reads only the last step."""
    weights = weights_of("GRU", D, H) | {"V": np.ones((H, 2))}
    parts = [
        helper.make_node("GRU", ["X", "W", "R"], ["Y", "Y_h"], hidden_size=H),
        helper.make_node("MatMul", ["Y_h", "V"], ["read"]),
    ]
    made = model(parts, weights, {"X": ("T", "B", D)}, {"read": (1, "B", 2)})
    assert from_onnx(made).network == GRUVariant(D, H, reset_after=False, use_bias=False)


# --- errors -------------------------------------------------------------------------------------


def chain_of(*between, first="GRU", second="GRU", **options):
    weights = weights_of(first, D, H) | weights_of(second, H, H, name=2)
    weights["one"] = [1.0]
    parts = [
        helper.make_node(first, ["X", "W", "R"], ["Y", "Y_h"], "below", hidden_size=H),
        helper.make_node("Constant", [], ["axis"], value=numpy_helper.from_array(np.array([1]))),
        helper.make_node("Squeeze", ["Y", "axis"], ["between_0"]),
        *(helper.make_node(kind, [f"between_{i}"], [f"between_{i + 1}"]) for i, kind in enumerate(between)),
        helper.make_node(
            second, [f"between_{len(between)}", "W2", "R2"], ["Z"], "above", hidden_size=H, **options
        ),
    ]
    return model(parts, weights, {"X": ("T", "B", D)}, {"Z": ("T", 1, "B", H)})


def test_errors_name_the_operators_between_two_layers():
    assert isinstance(from_onnx(chain_of("Identity")).network, Stack)
    message = r"GRU above.*GRU below \(between them: Relu, Squeeze\).*from_onnx_node"
    with pytest.raises(ValueError, match=message):
        from_onnx(chain_of("Relu"))
    assert from_onnx_node(chain_of("Relu"), "above").network == GRUVariant(
        H, H, reset_after=False, use_bias=False
    )
    assert from_onnx_node(chain_of("Relu"), "Y").network.input_size == D


def test_transposed_features_raise():
    """The sizes fit, but time and batch are exchanged."""
    weights = weights_of("RNN", D, H) | weights_of("RNN", H, H, name=2)
    parts = [
        helper.make_node("RNN", ["X", "W", "R"], ["Y"], "below", hidden_size=H),
        helper.make_node("Transpose", ["Y"], ["swapped"], perm=[2, 0, 1, 3]),
        helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array([0, 0, H]))),
        helper.make_node("Reshape", ["swapped", "shape"], ["X2"]),
        helper.make_node("RNN", ["X2", "W2", "R2"], ["Z"], "above", hidden_size=H),
    ]
    made = model(parts, weights, {"X": ("T", "B", D)}, {"Z": ("B", 1, "T", H)})
    with pytest.raises(ValueError, match="does not read the output"):
        from_onnx(made)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: chain_of(direction="reverse"), r"forward and nodes that run in reverse.*from_onnx_node"),
        (lambda: chain_of(clip=1.0), r"GRU above with clip=1.0"),
        (
            lambda: chain_of(second="LSTM", activations=["Sigmoid", "Relu", "Tanh"]),
            r"activations Sigmoid, Relu and Tanh",
        ),
        (lambda: chain_of(second="RNN", activations=["ScaledTanh"]), r"ScaledTanh without activation_alpha"),
        (lambda: chain_of(second="RNN", activations=["Gelu"]), r"activation 'Gelu'; expected one of"),
        (
            lambda: model(
                [helper.make_node("Relu", ["X"], ["Y"])], {}, {"X": ("T", "B", D)}, {"Y": ("T", "B", D)}
            ),
            r"a model of Relu; expected a node RNN, LSTM or GRU",
        ),
        (lambda: cases()["test_gru_defaults"].model, r"W of node .* as 'W', which is not constant.*inputs="),
        (lambda: np.zeros(3), r"got ndarray; expected an onnx.ModelProto or a path"),
    ],
)
def test_errors_of_models(make, message):
    with pytest.raises(ValueError, match=message):
        from_onnx(make())


def test_missing_names():
    with pytest.raises(ValueError, match=r"name='other'.*GRU below -> Y, GRU above -> Z"):
        from_onnx_node(chain_of(), "other")
    with pytest.raises(ValueError, match="name=None"):
        from_onnx_node(chain_of())
    with pytest.raises(ValueError, match=r"inputs of the name 'V'"):
        from_onnx(chain_of(), inputs={"V": np.zeros(1)})


# --- what PyTorch writes ------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True},
        {"num_layers": 2, "bidirectional": True, "batch_first": True, "readout": True},
        {"num_layers": 3, "bias": False, "batch_first": True, "readout": True},
    ],
    ids=["plain", "both", "both_readout", "three"],
)
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_exports_of_torch(kind, options, dynamic):
    torch = pytest.importorskip("torch", reason="writes models")
    options = dict(options)
    read = options.pop("readout", False)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = getattr(torch.nn, kind)(D, H, **options)
            self.read = torch.nn.Linear(H * (1 + options.get("bidirectional", 0)), 2)

        def forward(self, x):
            y, _ = self.cells(x)
            return self.read(y) if read else y

    torch.manual_seed(0)
    network, x = Network().eval(), torch.randn(5, 2, D)
    file = io.BytesIO()
    axes = {"x": {0: "first", 1: "second"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a FutureWarning of the exporter
        torch.onnx.export(network, (x,), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
    found = from_onnx(onnx.load_from_string(file.getvalue()))
    assert found.carry is None and not found.reverse
    assert isinstance(found.network, Stack) == (options.get("num_layers", 1) > 1)
    first = (lambda a: a.swapaxes(0, 1)) if options.get("batch_first") else (lambda a: a)
    _, ys = unroll(found.network, found.params, first(x.numpy()))
    np.testing.assert_allclose(first(np.asarray(ys)), network(x).detach().numpy(), rtol=1e-5, atol=1e-6)
