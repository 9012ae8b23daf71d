"""Untrusted models: the importers return or raise ``ValueError``, in little memory."""

import os
import resource
import time

import numpy as np
import pytest
from helpers import slow

onnx = pytest.importorskip("onnx", reason="reads ONNX's models")

import jax  # noqa: E402
from onnx import helper, numpy_helper  # noqa: E402

from lstm_jax import GRU, LSTM, RNN, Bidirectional, Readout, Stack  # noqa: E402
from lstm_jax.interop.onnx import from_onnx, from_onnx_node, save_onnx, to_onnx  # noqa: E402

pytestmark = pytest.mark.peers

D, H = 3, 4
FLOAT = onnx.TensorProto.FLOAT


def model_of(nodes, tensors=None, inputs=(("X", FLOAT, ("T", "B", D)),), outputs=("Y",), **options):
    """A model of the given nodes and one RNN. Its weights W and R are inputs unless a node computes them."""
    arrays = {"W": np.ones((1, H, D), np.float32), "R": np.ones((1, H, H), np.float32)} | (tensors or {})
    made = {name for node in nodes for name in node.output}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*info) for info in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items() if name not in made],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], **options)


def rnn(W="W", R="R", h="", **attributes):
    return helper.make_node("RNN", ["X", W, R, "", "", h], ["Y"], hidden_size=H, **attributes)


def constant(name, value):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))


def op(kind, inputs, output="W", **attributes):
    return helper.make_node(kind, inputs, [output], **attributes)


def graph_of(kind):
    """A Loop or If whose result is a weight."""
    info = helper.make_tensor_value_info("w", FLOAT, (1, H, D))
    if kind == "If":
        body = helper.make_graph([constant("w", np.ones((1, H, D), np.float32))], "branch", [], [info])
        return [constant("c", True), op("If", ["c"], then_branch=body, else_branch=body)]
    inputs = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (("i", 7, ()), ("c", 9, ()), ("v", FLOAT, (1, H, D)))
    ]
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        inputs,
        [helper.make_tensor_value_info("c2", 9, ()), info],
    )
    return [
        constant("n", 10**12),
        constant("t", True),
        constant("v0", np.ones((1, H, D), np.float32)),
        op("Loop", ["n", "t", "v0"], body=body),
    ]


def big(dims, name="W"):
    """A tensor that declares sizes and has no bytes."""
    tensor = onnx.TensorProto(name=name, data_type=FLOAT, dims=dims)
    model = model_of([rnn()])
    for index, old in enumerate(model.graph.initializer):
        if old.name == name:
            model.graph.initializer[index].CopyFrom(tensor)
    return model


def external():
    model = big((1, H, D))
    tensor = next(t for t in model.graph.initializer if t.name == "W")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return model


def functions(count, body, name="f{}", **options):
    """A model that calls function 0 of ``count``; ``body(k, call)`` has the nodes of function k."""

    def call(k, x, y):
        node = op(name.format(k), [x], y, domain="own") if k < count else op("Identity", [x], y)
        if k < count and name == "f":
            node.overload = str(k)
        return node

    made = []
    for k in range(count):
        opsets = [helper.make_opsetid("", 14), helper.make_opsetid("own", 1)]
        made.append(helper.make_function("own", name.format(k), ["x"], ["y"], body(k, call), opsets))
        if name == "f":
            made[-1].overload = str(k)
    model = model_of([call(0, "W0", "W"), rnn()], {"W0": np.ones((1, H, D), np.float32)}, functions=made)
    model.opset_import.add(domain="own", version=1)
    model.ir_version = 10
    return model


def twice(k, call):
    return [call(k + 1, "x", "z"), call(k + 1, "z", "y")]


def with_constant(k, call):
    """Each call of the last function has a constant of 1 MB."""
    kept = [] if k < 9 else [constant("kept", np.zeros(250_000, np.float32))]
    return [*kept, *twice(k, call)]


def twice_in(part):
    """A model with a tensor, an input or an attribute twice."""
    model = model_of([rnn()])
    repeated = getattr(model.graph.node[0] if part == "attribute" else model.graph, part)
    repeated.append(repeated[0])
    return model


MANY = np.array([10**5, 10**5, 10])
HOSTILE = {
    "a loop": lambda: model_of([*graph_of("Loop"), rnn()]),
    "a branch": lambda: model_of([*graph_of("If"), rnn()]),
    "a random weight": lambda: model_of([op("RandomNormal", [], shape=[1, H, D]), rnn()]),
    "another domain": lambda: model_of([op("Ones", ["R"], domain="com.example"), rnn()]),
    "ConstantOfShape": lambda: model_of([constant("s", MANY), op("ConstantOfShape", ["s"]), rnn()]),
    "Expand": lambda: model_of([constant("s", [10**9, H, H]), op("Expand", ["R", "s"]), rnn()]),
    "Tile": lambda: model_of([constant("s", MANY), op("Tile", ["R", "s"]), rnn()]),
    "Pad": lambda: model_of([constant("s", np.r_[0, 0, 0, MANY]), op("Pad", ["R", "s"]), rnn()]),
    "Range": lambda: model_of(
        [constant("a", 0), constant("b", 10**12), constant("c", 1), op("Range", ["a", "b", "c"]), rnn()]
    ),
    "many products": lambda: model_of(
        [
            constant("s", np.array([1, 1000, 1000])),
            op("Expand", ["R0", "s"], "g0"),
            *(op("Add", [f"g{i}", f"g{i}"], f"g{i + 1}") for i in range(200)),
            op("Identity", ["g200"]),
            rnn(),
        ],
        {"R0": np.ones((1, 1, 1), np.float32)},
    ),
    "a declared size": lambda: big((1, 10**6, 10**6)),
    "a negative size": lambda: big((1, -4, 3)),
    "an enormous rank": lambda: big((1,) * 100),
    "another file": external,
    "no nodes": lambda: model_of([], outputs=("X",)),
    "an empty model": onnx.ModelProto,
    "weights of texts": lambda: model_of([rnn()], {"W": np.array([[["a"]]])}),
    "weights of several dtypes": lambda: model_of([rnn()], {"R": np.ones((1, H, H))}),
    "weights of integers": lambda: model_of([rnn()], {"W": np.ones((1, H, D), np.int64)}),
    "a hidden size": lambda: model_of([helper.make_node("RNN", ["X", "W", "R"], ["Y"], hidden_size=9)]),
    "no inputs": lambda: model_of([helper.make_node("RNN", [], ["Y"], hidden_size=H)]),
    "an unknown direction": lambda: model_of([rnn(direction="sideways")]),
    "an attribute of another type": lambda: model_of(
        [helper.make_node("RNN", ["X", "W", "R"], ["Y"], hidden_size=[4, 4])]
    ),
    "functions that double": lambda: functions(40, twice),
    "overloads that double": lambda: functions(40, twice, name="f"),
    "functions of constants": lambda: functions(10, with_constant),
    "functions inside one another": lambda: functions(3000, lambda k, call: [call(k + 1, "x", "y")]),
    "a function that calls itself": lambda: functions(1, lambda k, call: [call(0, "x", "y")]),
    "no sequence": lambda: model_of([helper.make_node("RNN", ["", "W", "R"], ["Y"], hidden_size=H)]),
    "a state of another dtype": lambda: model_of([rnn(h="h")], {"h": np.ones((1, 2, H))}),
    "a cycle": lambda: model_of([op("Identity", ["V"], "W"), op("Identity", ["W"], "V"), rnn()]),
    "one name twice": lambda: model_of([op("Identity", ["R"], "W"), op("Identity", ["R"], "W"), rnn()]),
    "one tensor twice": lambda: twice_in("initializer"),
    "one input twice": lambda: twice_in("input"),
    "one attribute twice": lambda: twice_in("attribute"),
    "a state of another shape": lambda: model_of([rnn(h="h")], {"h": np.ones((2, 1, H), np.float32)}),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("read", [from_onnx, from_onnx_node], ids=["model", "node"])
def test_crafted_models(name, read):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError) as error:
        read(HOSTILE[name]())
    assert len(str(error.value)) < 1100
    assert str(error.value).startswith(read.__name__)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


def test_functions_that_stay_small_are_expanded():
    model = functions(3, twice)
    assert from_onnx(model).network == from_onnx(model_of([rnn()])).network


PRODUCT = helper.make_node("MatMul", ["X2", "V"], ["Z"])
BEHIND = {
    "an output without a name": ([PRODUCT], (), ("",), Stack),
    "a product without an output": ([helper.make_node("MatMul", ["X2", "V"], [])], (), ("Y",), RNN),
    "a product": ([PRODUCT], (), ("Z",), Stack),
    "a product of another domain": (
        [helper.make_node("MatMul", ["X2", "V"], ["Z"], domain="own")], ("own",), ("Z",), RNN
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BEHIND)
def test_nodes_after_the_last_layer(name):
    """Only operators of ONNX's domain can be a readout."""
    nodes, domains, outputs, expected = BEHIND[name]
    tensors = {"V": np.ones((H, 2), np.float32), "one": np.array([1])}
    squeeze = helper.make_node("Squeeze", ["Y", "one"], ["X2"])
    model = model_of([rnn(), squeeze, *nodes], tensors, outputs=outputs)
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in domains)
    assert type(from_onnx(model).network) is expected


@pytest.mark.parametrize("count", [1000, slow(10_000)])
@pytest.mark.parametrize("start", ["Y", "Y_h"])
def test_time_grows_with_the_size_of_a_model(count, start):
    """A model with many outputs; those that depend on ``Y_h`` cannot be computed."""
    node = helper.make_node("RNN", ["X", "W", "R"], ["Y", "Y_h"], hidden_size=H)
    chain = [op("Identity", [f"v{i - 1}" if i else start], f"v{i}") for i in range(count)]
    model = model_of([node, *chain], outputs=[f"v{i}" for i in range(count)])
    start_time = time.process_time()
    try:
        assert isinstance(from_onnx(model).network, RNN)
    except ValueError as error:
        assert "too much has been computed" in str(error)
    assert time.process_time() - start_time < 15


def test_a_long_fixed_sequence_is_probed_with_few_steps():
    weights = {"W2": np.ones((1, H, H), np.float32), "one": np.array([1])}
    nodes = [
        rnn(),
        helper.make_node("Squeeze", ["Y", "one"], ["X2"]),
        helper.make_node("RNN", ["X2", "W2", "R"], ["Z"], hidden_size=H),
    ]
    fixed = model_of(nodes, weights, inputs=(("X", FLOAT, (2000, 64, D)),), outputs=("Z",))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(from_onnx(fixed).network.layers) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_files(tmp_path):
    for name, data in {"text": b"hello, world\n" * 20, "empty": b"", "zeros": bytes(100)}.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        with pytest.raises(ValueError) as error:
            from_onnx(path)
        assert f"{name}.onnx" in str(error.value)
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "missing.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ValueError, match="regular file"):
        from_onnx(tmp_path / "pipe.onnx")
    with pytest.raises(ValueError, match="regular file"):
        from_onnx("/dev/zero")


def mutated(data, rng):
    """Data with a few bytes changed, removed, doubled or moved."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 12))
        match rng.integers(4):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at : at + length] = rng.bytes(length)
            case 2:
                del data[at : at + length]
            case _:
                data[at:at] = data[int(rng.integers(len(data))) :][:length]
    return bytes(data)


@pytest.mark.parametrize("rounds", [150, slow(3000)])
def test_mutated_models_load_or_raise_one_error(tmp_path, rounds):
    rng = np.random.default_rng(rounds)
    networks = (
        LSTM(D, H, learn_initial_carry=True),
        Stack((Bidirectional(GRU(D, H)), Readout(2 * H, 2))),
    )
    models = [
        to_onnx(network, network.init(jax.random.key(0)), lengths=index == 1).SerializeToString()
        for index, network in enumerate(networks)
    ]
    save_onnx(tmp_path / "whole.onnx", networks[1], networks[1].init(jax.random.key(0)))
    assert from_onnx(tmp_path / "whole.onnx").network == networks[1]
    raised = 0
    path = tmp_path / "mutated.onnx"
    for index in range(rounds):
        path.write_bytes(mutated(models[index % 2], rng))
        try:
            (from_onnx if index % 3 else from_onnx_node)(path)
        except ValueError as error:  # no other exception
            raised += 1
            assert "mutated.onnx" in str(error) and len(str(error)) < 1100, str(error)
    assert raised > rounds // 10
