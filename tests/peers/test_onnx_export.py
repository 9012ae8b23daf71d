"""Networks exported to ONNX: onnxruntime and ``unroll`` agree to 1e-5 in float32."""

import errno
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="makes ONNX's models")
runtime = pytest.importorskip("onnxruntime", reason="runs ONNX's models")

import lstm_jax  # noqa: E402
from lstm_jax import (  # noqa: E402
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    CandidateDropout,
    GRUVariant,
    LSTMVariant,
    Readout,
    Stack,
    VariationalDropout,
    WeightDrop,
    unroll,
)
from lstm_jax.cells.readout import identity  # noqa: E402
from lstm_jax.interop.onnx import OnnxActivation, from_onnx, save_onnx, to_onnx  # noqa: E402

pytestmark = pytest.mark.peers

T, B, D, H = 6, 4, 3, 4
LENGTHS = np.array([0, T, 2, 5], np.int32)


def drawn(network, seed=0):
    """Random parameters, none of which is zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.7, jnp.float32), shapes)


def session(model):
    onnx.checker.check_model(model, full_check=True)
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def compare(network, params, run, steps, rows, lengths=None, *, carry=False, reverse=False, seed=0, xs=None):
    """The outputs and the final carries of a model equal those of ``unroll``."""
    rng = np.random.default_rng(seed)
    if xs is None:
        xs = rng.normal(size=(steps, rows, D)).astype(np.float32)
    feeds = {"xs": xs}
    start = None
    if carry:
        leaves, structure = jax.tree.flatten(network.initial_carry((rows,), params))
        states = [rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
        names = [given.name for given in run.get_inputs() if given.name.endswith("_0")]
        feeds |= dict(zip(names, states, strict=True))
        start = jax.tree.unflatten(structure, [jnp.asarray(state) for state in states])
    if lengths is not None:
        feeds["lengths"] = np.asarray(lengths, np.int32)
        lengths = jnp.asarray(lengths, jnp.int32)  # a JAX array is clipped
    expected = run.run(None, feeds)
    after, ys = unroll(network, params, jnp.asarray(xs), start, lengths=lengths, reverse=reverse)
    found = [ys, *jax.tree.leaves(after)]
    for a, b, about in zip(found, expected, run.get_outputs(), strict=True):
        assert a.shape == b.shape, about.name
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=about.name)
    return expected


CELLS = {
    "rnn": RNN(D, H),
    "rnn_bare": RNN(D, H, use_bias=False),
    "lstm": LSTM(D, H),
    "lstm_bare": LSTM(D, H, use_bias=False),
    "lstm_learned": LSTM(D, H, learn_initial_carry=True),
    "lstm_heads": LSTMVariant(D, H, heads=2, peepholes=True),
    "gru": GRU(D, H),
    "gru_learned": GRU(D, H, learn_initial_carry=True),
    "gru_before": GRUVariant(D, H, reset_after=False),
    "gru_before_heads": GRUVariant(D, H, reset_after=False, heads=2),
    "gru_bare": GRU(D, H, use_bias=False),
}
NETWORKS = CELLS | {
    **{
        f"both_{merge}": Bidirectional(LSTM(D, H), merge=merge)
        for merge in ("concat", "sum", "mean", "product")
    },
    "both_learned": Bidirectional(GRU(D, H, learn_initial_carry=True)),
    "both_rnn": Bidirectional(RNN(D, H, activation=jax.nn.leaky_relu)),
    "both_stacked": Bidirectional(Stack((LSTM(D, H), GRU(H, H)))),
    "stack": Stack((LSTM(D, H), GRU(H, 5), RNN(5, 2))),
    "residual": Stack((GRU(D, H), LSTM(H, H), Stack((RNN(H, 2), LSTM(2, H)))), residual=True),
    "skip": Stack((LSTM(D, H), Bidirectional(GRU(H + D, H)), RNN(2 * H + D, H)), skip=True),
    "all": Stack(
        (Bidirectional(LSTM(D, H), merge="mean"), GRU(H + D, H), Readout(H + D, H, activation=jnp.tanh)),
        residual=True,
        skip=True,
        dropout=0.5,
    ),
    "read_first": Stack((Readout(D, 5, activation=jax.nn.relu), LSTM(5, H), Readout(H, 2, use_bias=False))),
    "readout": Stack((LSTM(D, H), Readout(H, 5, activation=jax.nn.softmax))),
    "wrapped": Stack(
        (VariationalDropout(WeightDrop(LSTM(D, H), 0.5), inputs=0.5), CandidateDropout(GRU(H, H), 0.5))
    ),
}
#: All pairs of values of two options occur.
CONDITIONS = [(False, False, False), (True, True, False), (True, False, True), (False, True, True)]


@pytest.mark.parametrize(("carry", "ragged", "reverse"), CONDITIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_computes_what_unroll_does(name, carry, ragged, reverse):
    """The inputs are NaN at invalid steps."""
    network = NETWORKS[name]
    params = drawn(network)
    run = session(to_onnx(network, params, lengths=ragged, carry=carry, reverse=reverse))
    xs = np.random.default_rng(1).normal(size=(T, B, D)).astype(np.float32)
    if ragged:
        xs[np.arange(T)[:, None] >= LENGTHS] = np.nan
    lengths = LENGTHS if ragged else None
    compare(network, params, run, T, B, lengths, carry=carry, reverse=reverse, xs=xs)


@pytest.mark.parametrize(
    ("peepholes", "clip", "coupled"), list(itertools.product([False, True], [None, 0.4], [False, True]))
)
def test_options_of_the_lstm(peepholes, clip, coupled):
    cell = LSTMVariant(D, H, peepholes=peepholes, clip=clip, coupled=coupled)
    params = drawn(cell)
    ys, *_ = compare(cell, params, session(to_onnx(cell, params, carry=True)), T, B, carry=True)
    if clip:
        plain = LSTMVariant(D, H, peepholes=peepholes, coupled=coupled)
        run = session(to_onnx(plain, params, carry=True))
        other, *_ = compare(plain, params, run, T, B, carry=True)
        assert not np.allclose(ys, other, atol=1e-2)


ACTIVATIONS = [
    jnp.tanh,
    jax.nn.relu,
    jax.nn.sigmoid,
    jax.nn.softplus,
    jax.nn.soft_sign,
    jax.nn.leaky_relu,
    jax.nn.elu,
    jax.nn.hard_sigmoid,
    identity,
    OnnxActivation("Affine", 0.5, 0.1),
    OnnxActivation("ScaledTanh", 0.5, 2.0),
    OnnxActivation("ThresholdedRelu", 0.3),
    OnnxActivation("LeakyRelu", 0.25),
    OnnxActivation("Elu", 0.5),
    OnnxActivation("HardSigmoid", 0.3, 0.4),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda f: getattr(f, "__name__", str(f)))
def test_activations_of_the_rnn(activation):
    network = Bidirectional(RNN(D, H, activation=activation))
    params = jax.tree.map(lambda a: a * 0.5, drawn(network))  # some do not saturate
    model = to_onnx(network, params)
    compare(network, params, session(model), T, B)
    assert from_onnx(model).network == network


READOUTS = [
    identity,
    jnp.tanh,
    jax.nn.relu,
    jax.nn.sigmoid,
    jax.nn.softmax,
    jax.nn.log_softmax,
]


@pytest.mark.parametrize("activation", READOUTS, ids=lambda f: f.__name__)
def test_activations_of_the_readout(activation):
    """Outputs at invalid steps are zero in spite of a bias or a softmax."""
    network = Readout(D, 5, activation=activation)
    params = drawn(network)
    (ys,) = compare(network, params, session(to_onnx(network, params, lengths=True)), T, B, LENGTHS)
    assert not ys[:, 0].any() and ys[:2, 1:].any()


#: One model each for every size: free axes, and empty sequences and batches.
SIZES = [(6, 4), (1, 1), (0, 2), (3, 0), (0, 0), (9, 2)]


@pytest.mark.parametrize("name", ["rnn", "lstm_learned", "gru", "both_learned", "all"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("carry", [False, True])
def test_one_model_for_every_size(name, ragged, carry):
    network = NETWORKS[name]
    params = drawn(network)
    run = session(to_onnx(network, params, lengths=ragged, carry=carry))
    assert [dim for dim in run.get_inputs()[0].shape] == ["T", "B", D]
    for steps, rows in SIZES if carry else SIZES[:3]:
        lengths = np.random.default_rng(rows).integers(0, steps + 1, rows) if ragged else None
        compare(network, params, run, steps, rows, lengths, carry=carry)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "both_learned"])
def test_rows_without_steps_keep_their_carry(name):
    """ONNX's nodes return zeros for such rows; the model returns the initial state."""
    network = NETWORKS[name]
    params = drawn(network)
    run = session(to_onnx(network, params, lengths=True, carry=True))
    for lengths in (np.zeros(B), LENGTHS):
        _, *finals = compare(network, params, run, T, B, lengths, carry=True)
        assert all(np.abs(final[0]).min() > 0 for final in finals)


@hypothesis.given(lengths=st.lists(st.integers(-2, T + 3), min_size=B, max_size=B), seed=st.integers(0, 9))
@hypothesis.settings(max_examples=15)
def test_any_lengths(lengths, seed):
    """Lengths outside [0, T] are clipped, as JAX arrays are in ``unroll``."""
    network = NETWORKS["all"]
    if not hasattr(test_any_lengths, "run"):
        test_any_lengths.params = drawn(network)
        test_any_lengths.run = session(to_onnx(network, test_any_lengths.params, lengths=True, carry=True))
    compare(network, test_any_lengths.params, test_any_lengths.run, T, B, lengths, carry=True, seed=seed)


def test_names_and_shapes():
    network = Stack((Bidirectional(LSTM(D, H)), Readout(2 * H, 2), GRU(2, 5)))
    model = to_onnx(network, drawn(network), lengths=True, carry=True, name="mine")

    def shape(info):
        return [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]

    def shapes(infos):
        return {info.name: shape(info) for info in infos}

    states = [f"layer0_{way}_{state}" for way in ("forward", "backward") for state in "hc"]
    sizes = dict.fromkeys(states, H) | {"layer2_h": 5}
    starts = {f"{state}_0": ["B", size] for state, size in sizes.items()}
    assert shapes(model.graph.input) == {"xs": ["T", "B", D], "lengths": ["B"]} | starts
    finals = {f"{state}_T": ["B", size] for state, size in sizes.items()}
    assert shapes(model.graph.output) == {"ys": ["T", "B", 5]} | finals
    assert [info.name for info in model.graph.output] == ["ys", *finals]
    kinds = [node.op_type for node in model.graph.node if node.op_type in ("RNN", "LSTM", "GRU")]
    assert kinds == ["LSTM", "GRU"]
    assert model.graph.name == "mine" and model.producer_name == "lstm_jax"
    assert (model.opset_import[0].version, model.ir_version) == (14, 7)
    assert {prop.key: prop.value for prop in model.metadata_props} == {
        "lstm_jax_version": lstm_jax.__version__
    }


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    cell = CELLS["gru"]
    params = drawn(cell)
    path = tmp_path / "model.onnx"
    save_onnx(path, cell, params, lengths=True)
    assert onnx.load(path) == to_onnx(cell, params, lengths=True)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        save_onnx(path, cell, params)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("name", ["lstm", "skip", "readout"])
def test_no_layer_reads_what_is_invalid(name):
    """A runtime may read the inputs at invalid steps, unlike onnxruntime."""
    network = NETWORKS[name]
    masked, layers = set(), 0
    for node in to_onnx(network, drawn(network), lengths=True).graph.node:
        if node.op_type in ("RNN", "LSTM", "GRU", "MatMul"):
            assert node.input[0] in masked
            layers += 1
        where = node.op_type == "Where" and node.input[0] == "valid"
        if where or (node.op_type == "Concat" and set(node.input) <= masked):
            masked |= set(node.output)
    assert layers > 0


@pytest.mark.parametrize(("steps", "rows"), [(T, B), (0, 2), (3, 0)])
def test_nodes_get_at_least_one_step_and_one_row(steps, rows):
    """They get no row of length 0 either, because the specification does not define the result."""
    cell = CELLS["gru"]
    model = to_onnx(cell, drawn(cell), lengths=True)
    (node,) = (node for node in model.graph.node if node.op_type == "GRU")
    inside = {node.input[0]: onnx.TensorProto.FLOAT, node.input[4]: onnx.TensorProto.INT32}
    model.graph.output.extend(onnx.helper.make_tensor_value_info(n, t, None) for n, t in inside.items())
    run = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {"xs": np.ones((steps, rows, D), np.float32), "lengths": np.zeros(rows, np.int32)}
    x, lengths = run.run(list(inside), feeds)
    assert x.shape == (max(steps, 1), max(rows, 1), D)
    assert lengths.tolist() == [1] * max(rows, 1)
