"""The benchmark with every other library there is: all take part, all agree, and the files are written."""

import json
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import pytest

from benchmarks import __main__ as benchmark
from benchmarks.cases import QUICK, Setting
from benchmarks.contestants import ALWAYS_MEASURED, CUDNN, LSTM_JAX, PEERS
from benchmarks.contestants.contestant import never
from benchmarks.measure import measure

pytestmark = pytest.mark.peers


@pytest.fixture(autouse=True)
def the_peers_own_manners(quick_compiles):
    """The other libraries lean on promotion, which the tests of this one forbid."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_all_peers_take_part_and_agree(tmp_path):
    peers = [contestant for group in PEERS.values() for contestant in group]
    for contestant in peers:
        assert contestant.absent() is None, f"{contestant.name} is not installed: nothing is compared with it"
    assert benchmark.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0

    (path,) = tmp_path.glob("*.json")
    tree = json.loads(path.read_text())
    assert len(tree["cases"]) == sum(len(case.modes) for case in QUICK)
    for measured, case in zip(tree["cases"], (c for c in QUICK for _ in c.modes), strict=True):
        rows = measured["rows"]
        assert list(rows) == [contestant.name for contestant in (*ALWAYS_MEASURED, *peers)]
        for contestant in peers:
            declined = contestant.declines(case, measured["mode"], Setting("cpu"))
            assert rows[contestant.name]["status"] == ("declines" if declined else "timed"), rows[
                contestant.name
            ]
            assert rows[contestant.name].get("count", 0) == (0 if declined else 3)
    timed = {name for m in tree["cases"] for name, row in m["rows"].items() if row["status"] == "timed"}
    assert timed == {contestant.name for contestant in (*ALWAYS_MEASURED, *peers)} - {"jax.experimental.rnn"}
    for curve in tree["curves"].values():
        assert all(
            {"lstm_jax", "plain scan", "nnx OptimizedLSTMCell", "torch"} == set(m["rows"]) for m in curve
        )
    assert set(tree["matmul_rates"]) == {"jax", "torch"}
    assert {mean["what"] for mean in tree["geometric_means"]} >= {
        "time, lstm_jax / torch, forward",
        "time, lstm_jax / torch, forward+backward",
        "time, best other JAX library / lstm_jax, forward",
    }
    assert {other.suffix for other in tmp_path.iterdir()} == {".json", ".md", ".png"}


def test_torchs_idle_threads_are_known_to_spin():
    assert {contestant.name for group in PEERS.values() for contestant in group if contestant.spins} == {
        "torch"
    }


@pytest.mark.parametrize("case", [case for case in QUICK if not (case.ensemble or case.streaming)], ids=str)
def test_what_jax_experimental_rnn_is_given(monkeypatch, case):
    """Without a GPU: its own reference, for the weights and lengths that cuDNN would get."""
    from jax.experimental import rnn

    def reference(x, h, c, flat, lengths, D, H, layers, dropout, bidirectional, precision):
        parts = rnn.unpack_lstm_weights(flat, D, H, layers, bidirectional)
        return rnn.lstm_ref(x, h, c, *parts, lengths, D, H, layers, dropout, bidirectional)

    monkeypatch.setattr(rnn, "lstm", reference)
    assert "GPUs" in CUDNN.declines(case, "forward", Setting("cpu"))
    assert CUDNN.declines(case, "forward", Setting("gpu")) is None
    assert "float32" in CUDNN.declines(case, "forward", Setting("gpu", "bfloat16"))
    for mode in case.modes:
        found = measure(case, mode, (LSTM_JAX, CUDNN._replace(declines=never)), Setting("cpu"), 1)
        assert found.rows[CUDNN.name].status == "timed", found.rows[CUDNN.name]
