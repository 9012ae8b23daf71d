"""Live against ONNX's LSTM as onnxruntime computes it: peepholes, clip, input_forget, in float32."""

import itertools

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="compares with ONNX")
runtime = pytest.importorskip("onnxruntime", reason="runs ONNX's models")

from lstm_jax import LSTM, LSTMParams, unroll  # noqa: E402

pytestmark = pytest.mark.peers

T, B, D, H = 7, 3, 4, 5
OURS, THEIRS = "ifgo", "iofg"  # the order of the gates; theirs calls g c


def reordered(w, order=THEIRS):
    """Columns gate by gate in our order, as ONNX's rows."""
    parts = dict(zip([gate for gate in OURS if gate in order], np.split(w, len(order), -1), strict=True))
    return np.concatenate([parts[gate] for gate in order], axis=-1).T


def session(params, *, clip, input_forget):
    """A model of one LSTM node whose inputs are X, initial_h and initial_c."""
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    weights = {
        "W": reordered(params.w_ih)[None],
        "R": reordered(params.w_hh)[None],
        "B": np.concatenate([reordered(params.bias), np.zeros(4 * H, np.float32)])[None],
    }
    if params.peepholes is not None:
        weights["P"] = reordered(params.peepholes, "iof")[None]
    names = ["X", "W", "R", "B", "", "initial_h", "initial_c", "P" if "P" in weights else ""]
    options = {"hidden_size": H, "input_forget": int(input_forget)} | ({"clip": clip} if clip else {})
    node = helper.make_node("LSTM", names, ["Y", "Y_h", "Y_c"], **options)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "lstm",
        [
            info("X", real, (T, B, D)),
            info("initial_h", real, (1, B, H)),
            info("initial_c", real, (1, B, H)),
        ],
        [info("Y", real, (T, 1, B, H)), info("Y_h", real, (1, B, H)), info("Y_c", real, (1, B, H))],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "peepholes, clip, coupled",
    list(itertools.product([False, True], [None, 0.4], [False, True])),
)
def test_onnxruntime(peepholes, clip, coupled):
    rng = np.random.default_rng(8)

    def drawn(*shape):
        return rng.normal(size=shape).astype(np.float32) * 0.7

    given = LSTMParams(drawn(D, 4 * H), drawn(H, 4 * H), drawn(4 * H))
    if peepholes:
        given = given._replace(peepholes=drawn(3 * H))
    xs, h, c = drawn(T, B, D), drawn(B, H), drawn(B, H)
    model = session(given, clip=clip, input_forget=coupled)
    theirs = model.run(None, {"X": xs, "initial_h": h[None], "initial_c": c[None]})

    def without_f(w, gates=OURS):
        """Coupled gates have no weights for f, which ONNX's node carries about unused."""
        parts = dict(zip(gates, np.split(w, len(gates), -1), strict=True))
        return np.concatenate([parts[gate] for gate in gates if gate != "f"], axis=-1)

    if coupled:
        given = given._replace(
            w_ih=without_f(given.w_ih), w_hh=without_f(given.w_hh), bias=without_f(given.bias)
        )
        if peepholes:
            given = given._replace(peepholes=without_f(given.peepholes, "ifo"))
    cell = LSTM(D, H, peepholes=peepholes, clip=clip, coupled=coupled)
    (h_T, c_T), ys = unroll(cell, given, xs, (h, c))
    for ours, other in ((ys, theirs[0][:, 0]), (h_T, theirs[1][0]), (c_T, theirs[2][0])):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)
    if clip:
        assert not np.allclose(
            unroll(LSTM(D, H, peepholes=peepholes, coupled=coupled), given, xs)[1], ys, atol=1e-2
        )
