"""Limits of the operators that run while an ONNX model is read. Sizes are checked before they run."""

import tracemalloc

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="runs ONNX's operators")

from onnx import helper, numpy_helper  # noqa: E402

from lstm_jax.interop.onnx import from_onnx_node  # noqa: E402
from lstm_jax.interop.onnx._evaluate import OUTPUT_SIZES, run_node  # noqa: E402

pytestmark = pytest.mark.peers

MIB = 1 << 20
N = 200_000


def ints(*values):
    return np.array(values, np.int64)


def floats(*shape):
    return np.ones(shape, np.float32)


ROW, COLUMN, SQUARE = floats(1, 400), floats(500, 1), floats(400, 500)
#: Inputs and attributes of every operator that may run. Results or intermediate values are large.
LARGE = [
    *((name, [SQUARE], {}) for name in ("Abs", "Ceil", "Flatten", "Floor", "Identity", "Neg", "Round")),
    *((name, [SQUARE], {}) for name in ("Shape", "Sign", "Size", "Transpose", "Squeeze")),
    *((name, [SQUARE], {"axes": [0]}) for name in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd")),
    *((name, [COLUMN, ROW], {}) for name in ("Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less")),
    *((name, [COLUMN, ROW], {}) for name in ("LessOrEqual", "Max", "Min", "Mul", "Sub", "Sum")),
    *((name, [COLUMN > 0, ROW > 0], {}) for name in ("And", "Or")),
    ("Mean", [SQUARE, SQUARE], {}),
    ("Div", [COLUMN.astype(np.int64), ROW.astype(np.int64)], {}),
    ("Not", [SQUARE > 0], {}),
    ("ReduceSum", [SQUARE, ints(0)], {}),
    ("Reshape", [SQUARE, ints(500, 400)], {}),
    ("Slice", [SQUARE, ints(0), ints(N), ints(0), ints(1)], {}),
    ("Unsqueeze", [SQUARE, ints(0)], {}),
    ("Where", [COLUMN > 0, ROW, COLUMN], {}),
    ("Cast", [SQUARE], {"to": onnx.TensorProto.DOUBLE}),
    ("Concat", [ROW] * 500, {"axis": 0}),
    ("ConstantOfShape", [ints(N)], {}),
    ("ConstantOfShape", [ints(N, 0)], {}),
    ("Dropout", [SQUARE], {}),
    ("Expand", [ROW, ints(500, 400)], {}),
    ("Expand", [ROW[:, :1], ints(N, 0)], {}),
    ("Gather", [ROW, ints(*[0] * 500)], {"axis": 0}),
    ("Pad", [COLUMN, ints(N, 0, 0, 0)], {}),
    ("Pad", [COLUMN, ints(N, 0, 0, 0)], {"mode": "edge"}),
    ("Pad", [COLUMN, ints(N, 0, 0, 0)], {"mode": "reflect"}),
    ("Range", [np.float32(0), np.float32(N), np.float32(1)], {}),
    ("Range", [np.int64(N), np.int64(0), np.int64(-1)], {}),
    ("Split", [SQUARE], {}),
    ("Tile", [ROW, ints(500, 1)], {}),
    ("Tile", [ROW[:, :1], ints(N, 0)], {}),
]


def test_every_operator_has_a_case():
    assert {name for name, _, _ in LARGE} == set(OUTPUT_SIZES)


@pytest.mark.parametrize(("name", "arrays", "attributes"), LARGE, ids=[case[0] for case in LARGE])
def test_the_bound_covers_what_is_computed(name, arrays, attributes):
    """The bound on elements holds for the outputs and, up to a small factor, for the memory used."""
    names = [f"input_{index}" for index in range(len(arrays))]
    node = helper.make_node(name, names, ["output"], **attributes)
    bound = OUTPUT_SIZES[name](arrays, node)
    tracemalloc.start()
    try:
        outputs = run_node(onnx, node, dict(zip(names, arrays, strict=True)), 14)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(output.size for output in outputs) <= bound
    assert peak <= 4 * 8 * bound + MIB // 2


HUGE = 10**11
#: The same operators with results or intermediate values that exceed every limit.
BEYOND = [
    ("Add", [floats(2**15, 1), floats(1, 2**15)], {}),
    ("Where", [floats(2**15, 1) > 0, floats(1, 2**15), floats(1)], {}),
    ("ConstantOfShape", [ints(HUGE)], {}),
    ("ConstantOfShape", [ints(2**62, 2**62)], {}),
    ("Expand", [floats(1, 1), ints(HUGE, 1)], {}),
    ("Gather", [floats(1, 2**15), np.zeros(2**15, np.int64)], {"axis": 0}),
    ("Gather", [floats(2**15, 1), np.zeros(2**15, np.int64)], {"axis": -1}),
    ("Pad", [floats(1, 1), ints(0, HUGE, 0, 0)], {}),
    ("Pad", [floats(1, 1), ints(0, 0, 0, HUGE)], {"mode": "edge"}),
    ("Range", [np.float32(0), np.float32(1), np.float32(1e-30)], {}),
    ("Range", [np.int64(0), np.int64(-(2**63)), np.int64(-1)], {}),
    ("Tile", [floats(1, 1), ints(HUGE, 1)], {}),
    ("Tile", [floats(1, 1), ints(HUGE, 0)], {}),
    ("Tile", [floats(1, 1), ints(HUGE, -1)], {}),
    # Intermediate values are large, although the result is empty or small.
    ("Expand", [floats(1, 0), ints(HUGE, 1)], {}),
    ("Sum", [floats(2**15, 1, 1), floats(1, 2**15, 1), floats(1, 1, 0)], {}),
    ("ReduceSum", [floats(HUGE, 0), ints(1)], {}),
    ("Pad", [floats(1), ints(-HUGE, HUGE, 0, 0), floats(), ints(0, 0)], {}),
]


@pytest.mark.parametrize(("name", "arrays", "attributes"), BEYOND, ids=[case[0] for case in BEYOND])
def test_too_large_values_are_not_computed(name, arrays, attributes):
    names = [f"input_{index}" for index in range(len(arrays))]
    nodes = [
        helper.make_node(name, names, ["W"], "growing", **attributes),
        helper.make_node("RNN", ["X", "W", "R"], ["Y"], hidden_size=1),
    ]
    x = helper.make_tensor_value_info("X", onnx.TensorProto.FLOAT, ("T", "B", 1))
    tensors = [
        numpy_helper.from_array(np.asarray(array), name) for name, array in zip(names, arrays, strict=True)
    ]
    tensors.append(numpy_helper.from_array(floats(1, 1, 1), "R"))
    graph = helper.make_graph(nodes, "graph", [x], [onnx.ValueInfoProto(name="Y")], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)])
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match=rf"node {name} growing, which computes [\d,]+ elements"
        ) as error:
            from_onnx_node(model)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 1000
    assert peak < 2 * MIB


@pytest.mark.parametrize(
    ("name", "arrays", "attribute", "value"),
    [
        ("Gather", [floats(1, 100), ints(*[0] * 9)], "axis", numpy_helper.from_array(ints(0)[0])),
        ("Pad", [floats(1)], "pads", numpy_helper.from_array(ints(HUGE, 0))),
        ("Cast", [floats(1)], "to", float(onnx.TensorProto.STRING)),
        ("Split", [floats(4)], "num_outputs", 1.0),
        ("Unsqueeze", [floats(1), np.arange(100)], "unused", 0),
    ],
)
def test_attributes_are_read_as_they_are_run(name, arrays, attribute, value):
    """The bound does not read another field of an attribute than the operator does."""
    node = helper.make_node(name, ["a"], ["output"], **{attribute: value})
    with pytest.raises(ValueError, match=r"of another type|100 axes"):
        OUTPUT_SIZES[name](arrays, node)


@pytest.mark.filterwarnings("error")
def test_a_division_by_zero_does_not_warn():
    node = helper.make_node("Div", ["a", "b"], ["c"])
    (quotient,) = run_node(onnx, node, {"a": floats(2), "b": np.zeros(2, np.float32)}, 14)
    assert np.isinf(quotient).all()
