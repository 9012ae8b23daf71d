"""The benchmark with all other libraries: each is measured and agrees, and the files are written."""

import json
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import pytest

from benchmarks import __main__ as benchmark
from benchmarks.cases import QUICK, Case, Setting
from benchmarks.contestants import ALWAYS_MEASURED, CUDNN, LSTM_JAX, PEERS
from benchmarks.contestants.contestant import never
from benchmarks.measure import measure

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("default_promotion")]


def test_all_peers_are_timed_and_agree(tmp_path):
    peers = [c for group in PEERS.values() for c in group]
    for contestant in peers:
        assert contestant.absent() is None, f"{contestant.name} is not installed: nothing is compared with it"
    assert benchmark.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0

    (path,) = tmp_path.glob("*.json")
    tree = json.loads(path.read_text())
    assert len(tree["cases"]) == sum(len(case.modes) for case in QUICK)
    for measured, case in zip(tree["cases"], (c for c in QUICK for _ in c.modes), strict=True):
        rows = measured["rows"]
        assert list(rows) == [c.name for c in (*ALWAYS_MEASURED, *peers)]
        for contestant in peers:
            declined = contestant.declines(case, measured["mode"], Setting("cpu"))
            row = rows[contestant.name]
            assert row["status"] == ("declines" if declined else "timed"), row
            assert row.get("count", 0) == (0 if declined else 3)
    timed = {name for m in tree["cases"] for name, row in m["rows"].items() if row["status"] == "timed"}
    assert timed == {c.name for c in (*ALWAYS_MEASURED, *peers)} - {"jax.experimental.rnn"}
    for curve in tree["curves"].values():
        assert all({"lstm_jax", "plain scan", "nnx optimized", "torch"} == set(m["rows"]) for m in curve)
    assert set(tree["matmul_rates"]) == {"jax", "torch"}
    assert {mean["what"] for mean in tree["geometric_means"]} >= {
        "time, lstm_jax / torch, forward",
        "time, lstm_jax / torch, forward+backward",
        "time, best other JAX library / lstm_jax, forward",
    }
    assert {other.suffix for other in tmp_path.iterdir()} == {".json", ".md", ".png"}


def test_torch_is_marked_as_spinning():
    assert {contestant.name for group in PEERS.values() for contestant in group if contestant.spins} == {
        "torch"
    }


@pytest.mark.parametrize(
    "case", [Case(2, 5, 3, 4, cell="GRU", resets=0.3), Case(2, 5, 3, 4, resets=0.3)], ids=str
)
def test_other_libraries_decline_resets(case):
    """They would read the flags as lengths."""
    assert all(c.declines(case, "forward", Setting("gpu")) for group in PEERS.values() for c in group)


CUDNN_CASES = [case for case in QUICK if not (case.ensemble or case.streaming) and case.cell == "LSTM"]


@pytest.mark.parametrize("case", CUDNN_CASES, ids=str)
def test_arguments_of_jax_experimental_rnn(monkeypatch, case):
    """Without a GPU, ``lstm_ref`` computes with the weights and lengths that cuDNN would get."""
    from jax.experimental import rnn

    def reference(x, h, c, flat, lengths, D, H, layers, dropout, bidirectional, precision):
        parts = rnn.unpack_lstm_weights(flat, D, H, layers, bidirectional)
        return rnn.lstm_ref(x, h, c, *parts, lengths, D, H, layers, dropout, bidirectional)

    monkeypatch.setattr(rnn, "lstm", reference)
    assert "GPUs" in CUDNN.declines(case, "forward", Setting("cpu"))
    assert CUDNN.declines(case, "forward", Setting("gpu")) is None
    assert "float32" in CUDNN.declines(case, "forward", Setting("gpu", "bfloat16"))
    assert "GRU" in CUDNN.declines(case._replace(cell="GRU"), "forward", Setting("gpu"))
    for mode in case.modes:
        found = measure(case, mode, (LSTM_JAX, CUDNN._replace(declines=never)), Setting("cpu"), 1)
        assert found.rows[CUDNN.name].status == "timed", found.rows[CUDNN.name]
