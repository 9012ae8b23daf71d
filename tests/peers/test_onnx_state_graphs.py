"""Initial states that ONNX graphs compute from constants, inputs, sizes and the sequence."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="reads ONNX's models")
runtime = pytest.importorskip("onnxruntime", reason="runs ONNX's models")

from onnx import helper, numpy_helper  # noqa: E402

from lstm_jax import unroll  # noqa: E402
from lstm_jax.interop.onnx import from_onnx, from_onnx_node  # noqa: E402

pytestmark = pytest.mark.peers

T, B, D, H = 5, 2, 3, 4
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FLOAT = onnx.TensorProto.FLOAT


def model_of(kind, between, *, states, inputs=(), tensors=None, dirs=1, batch_major=False, rows="B"):
    """A model of one recurrent node. The nodes ``between`` compute its initial states ``states``."""
    rng = np.random.default_rng(0)
    arrays = {
        "W": rng.normal(size=(dirs, GATES[kind] * H, D)).astype(np.float32),
        "R": rng.normal(size=(dirs, GATES[kind] * H, H)).astype(np.float32),
    }
    node = helper.make_node(
        kind,
        ["X", "W", "R", "", "", *states],
        ["Y"],
        "node",
        hidden_size=H,
        direction="bidirectional" if dirs == 2 else "forward",
        layout=int(batch_major),
    )
    shape = (rows, "T", D) if batch_major else ("T", rows, D)
    infos = [helper.make_tensor_value_info(*info) for info in (("X", FLOAT, shape), *inputs)]
    graph = helper.make_graph(
        [*between, node],
        "graph",
        infos,
        [helper.make_tensor_value_info("Y", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in (arrays | (tensors or {})).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def op(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], **attributes)


#: Nodes that expand ``start``, (dirs, 1, H), to the batch's size, read from X.
EXPANDED = [
    op("Shape", ["X"], "shape"),
    op("Gather", ["shape", "one"], "rows"),
    op("Concat", ["one", "rows", "one"], "sizes", axis=0),
    op("Expand", ["start", "sizes"], "state"),
]


def start_of(dirs=1):
    return np.random.default_rng(5).normal(size=(dirs, 1, H)).astype(np.float32)


@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("dirs", [1, 2])
def test_constants_expanded_to_the_batch_are_learned(kind, dirs):
    start = start_of(dirs)
    count = 2 if kind == "LSTM" else 1
    states = ["state"] * count
    model = model_of(kind, EXPANDED, states=states, tensors={"start": start, "one": np.array([1])}, dirs=dirs)
    for read in (from_onnx, from_onnx_node):
        found = read(model)
        assert found.carry is None
        cells = getattr(found.network, "cells", (found.network,))
        assert all(cell.learn_initial_carry for cell in cells)
        for rows in (1, 3):
            xs = np.random.default_rng(rows).normal(size=(T, rows, D)).astype(np.float32)
            (expected,) = runtime.InferenceSession(model.SerializeToString()).run(None, {"X": xs})
            _, ys = unroll(found.network, found.params, xs)
            expected = np.concatenate(list(expected.swapaxes(0, 1)), axis=-1)
            np.testing.assert_allclose(ys, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", list(GATES))
@pytest.mark.parametrize("batch_major", [False, True])
def test_states_computed_from_an_input_that_is_not_the_sequence(kind, batch_major):
    """Also if the value of the state does not depend on the input."""
    count = 2 if kind == "LSTM" else 1
    shape = ("B", 2, H) if batch_major else (2, "B", H)
    for between in (
        [op("Identity", ["h"], "state")],
        [op("Mul", ["h", "zero"], "state")],
        [op("Erf", ["h"], "state")],  # an operator that does not run while a model is read
    ):
        model = model_of(
            kind,
            between,
            states=["state"] * count,
            inputs=[("h", FLOAT, shape)],
            tensors={"zero": np.float32(0)},
            dirs=2,
            batch_major=batch_major,
        )
        for read in (from_onnx, from_onnx_node):
            found = read(model)
            assert found.carry is None
            assert not any(cell.learn_initial_carry for cell in found.network.cells)


@pytest.mark.parametrize("is_input", [False, True], ids=["zeros", "input"])
def test_one_state_is_zeros_or_an_input_and_the_other_is_learned(is_input):
    model = model_of(
        "LSTM",
        EXPANDED,
        states=["h", "state"],
        inputs=[("h", FLOAT, (1, "B", H))] if is_input else [],
        tensors={"start": start_of(), "one": np.array([1])}
        | ({} if is_input else {"h": np.zeros((1, B, H), np.float32)}),
    )
    found = from_onnx(model)
    assert found.carry is None and found.network.learn_initial_carry
    h_0, c_0 = found.params.initial
    np.testing.assert_array_equal(c_0, start_of()[0, 0])
    np.testing.assert_array_equal(h_0, np.zeros(H))


RNN_BELOW = op("RNN", ["X", "W_below", "R_below"], "Y_below", hidden_size=H)
SEQUENCE = {
    "the first frame": ([op("Gather", ["X", "zero"], "frame"), op("MatMul", ["frame", "V"], "state")], "'X'"),
    "the first frame, times zero": (
        [
            op("Gather", ["X", "zero"], "frame"),
            op("MatMul", ["frame", "V"], "product"),
            op("Mul", ["product", "nothing"], "state"),
        ],
        "'X'",
    ),
    "an output of another node": (
        [RNN_BELOW, op("Gather", ["Y_below", "zero"], "first"), op("Squeeze", ["first", "zero"], "state")],
        "another recurrent node",
    ),
}


@pytest.mark.parametrize("name", SEQUENCE)
def test_states_computed_from_the_sequence_by_hand(name):
    between, source = SEQUENCE[name]
    tensors = {
        "zero": np.array([0]),
        "nothing": np.float32(0),
        "V": np.ones((D, H), np.float32),
        "W_below": np.ones((1, H, D), np.float32),
        "R_below": np.ones((1, H, H), np.float32),
    }
    model = model_of("GRU", between, states=["state"], tensors=tensors)
    with pytest.raises(ValueError, match=rf"GRU node.*computed from the sequence \(by way of {source}\)"):
        from_onnx_node(model, "node")


#: States that depend on the number of steps, or on the row.
UNREADABLE = {
    "the number of steps": [
        op("Shape", ["X"], "shape"),
        op("Cast", ["shape"], "floats", to=1),
        op("Gather", ["floats", "zero"], "steps"),
        op("Gather", ["shape", "one"], "rows"),
        op("Concat", ["one", "rows", "H"], "sizes", axis=0),
        op("Expand", ["steps", "sizes"], "state"),
    ],
    "one number of rows": [
        op("Shape", ["X"], "shape"),
        op("Gather", ["shape", "one"], "rows"),
        op("Div", ["rows", "rows"], "single"),
        op("Add", ["single", "one"], "two"),
        op("Concat", ["one", "two", "H"], "sizes", axis=0),
        op("ConstantOfShape", ["sizes"], "zeros"),
        op("Add", ["zeros", "half"], "state"),
    ],
    "the number of the row": [
        op("Shape", ["X"], "shape"),
        op("Gather", ["shape", "first"], "rows"),
        op("Range", ["nought", "rows", "first"], "numbers"),
        op("Cast", ["numbers"], "floats", to=1),
        op("Unsqueeze", ["floats", "ends"], "column"),
        op("Concat", ["one", "one", "H"], "sizes", axis=0),
        op("Expand", ["column", "sizes"], "state"),
    ],
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_states_that_differ_with_the_sizes_are_an_error(name):
    tensors = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "first": np.array(1),
        "nought": np.array(0),
        "ends": np.array([0, 2]),
        "H": np.array([H]),
        "half": np.float32(0.5),
    }
    model = model_of("GRU", UNREADABLE[name], states=["state"], tensors=tensors)
    runtime.InferenceSession(model.SerializeToString()).run(None, {"X": np.ones((T, B, D), np.float32)})
    for read in (from_onnx, from_onnx_node):
        with pytest.raises(ValueError, match=r"initial state .state. that cannot be read.*rows differ"):
            read(model)
