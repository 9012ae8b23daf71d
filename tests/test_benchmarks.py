"""The benchmark runs, compares before it times, and writes what it measured. No timing is judged."""

import json

import numpy as np
import pytest

from benchmarks import __main__ as benchmark, cases


def test_a_quick_run_writes_every_round(tmp_path, capsys):
    benchmark.main(["--quick", "--out", str(tmp_path)])
    (path,) = tmp_path.iterdir()
    report = json.loads(path.read_text())
    assert report["machine"]["jax"] and report["machine"]["date"]
    assert [(row["case"], row["work"]) for row in report["rounds"]] == [
        (case._asdict(), mode) for case in cases.QUICK for mode in cases.MODES
    ]
    for row in report["rounds"]:
        assert set(row["results"]) == set(cases.CONTESTANTS)
        for result in row["results"].values():
            assert len(result["rounds_s"]) == 3 and min(result["rounds_s"]) > 0
            assert result["median_s"] == np.median(result["rounds_s"])
    printed = capsys.readouterr().out
    assert str(path) in printed and all(str(case) in printed for case in cases.QUICK)


def test_a_contestant_that_computes_something_else_is_not_timed(monkeypatch):
    def wrong(case, problem, mode):
        params = problem.params._replace(bias=problem.params.bias + 1)
        return cases.ours("fused", case, problem._replace(params=params), mode)

    monkeypatch.setitem(cases.CONTESTANTS, "fused", wrong)
    with pytest.raises(AssertionError, match="fused disagrees"):
        benchmark.measure(cases.QUICK[0], "forward", rounds=1)


@pytest.mark.parametrize(
    "words, told",
    [
        (["--cases", "1,2,3"], "'1,2,3' is not B,T,D,H"),
        (["--cases", "1,2,3,0"], "'1,2,3,0' holds a size below 1"),
        (["--rounds", "0"], "--rounds must be 1 or more"),
    ],
)
def test_bad_arguments_are_refused(words, told, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(words)
    assert told in capsys.readouterr().err
