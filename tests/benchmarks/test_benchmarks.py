"""The CPU comparison: contestants, checks before timing, statistics and files. No test depends on a speed."""

import json
import os
import sys
import threading
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as benchmark, cases, contestants, files, report, summary, timing
from benchmarks.cases import MODES, QUICK, Case, Setting
from benchmarks.contestants import ALWAYS_MEASURED, LSTM_JAX, SCAN, keras_, layouts, lstm_jax_, torch_
from benchmarks.contestants.contestant import Built, Contestant, Form, build_jax, never
from benchmarks.contestants.lstm_jax_ import form as lstm_jax_form
from benchmarks.measure import Measurement, Row, farthest, measure
from lstm_jax.unrolling import tiling

TINY = Case(2, 3, 2, 3)
SETTING = Setting("cpu")


def contestant(name="somebody", form=lstm_jax_form, **changes):
    made = Contestant(name, "does the work", "jax", never, never, build_jax(form))
    return made._replace(**changes)


# --- a whole run --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The JSON file, its contents and the printed text of one run, for tests that only read them."""
    folder = tmp_path_factory.mktemp("results")
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        assert benchmark.main(["--quick", "--peers", "none", "--out", str(folder)]) == 0
    (path,) = folder.glob("*.json")
    return path, json.loads(path.read_text()), "\n".join(printed)


@pytest.mark.slow
def test_every_case_has_every_contestant_and_all_statistics(quick):
    _, tree, _ = quick
    assert [(m["case"], m["mode"]) for m in tree["cases"]] == [
        (case.as_json(), mode) for case in QUICK for mode in case.modes
    ]
    everything = [*tree["cases"], *tree["memory"], *(m for curve in tree["curves"].values() for m in curve)]
    for m in everything:
        for name, row in m["rows"].items():
            if row["status"] == "declines":
                assert name == "lstm_jax low memory" and m["mode"] == "forward" and row["note"]
                continue
            assert row["status"] == "timed" and 0 <= row["distance"] < 1e-4
            assert row["count"] == 3 and "rounds_s" not in row
            assert 0 < row["min_s"] <= row["q1_s"] <= row["median_s"] <= row["q3_s"]
            assert row["compile_s"] > 0 and row["temporary_bytes"] > 0 and row["matmul_fraction"] > 0
    for m in tree["cases"]:
        assert list(m["rows"]) == [contestant.name for contestant in ALWAYS_MEASURED]
        first = m["rows"]["lstm_jax"]
        assert first["ratio"] == 1
        assert m["rows"]["plain scan"]["ratio"] == m["rows"]["plain scan"]["median_s"] / first["median_s"]


@pytest.mark.slow
def test_curves_grow_one_size_and_memory_compares_policies(quick):
    _, tree, _ = quick
    for letter, curve in tree["curves"].items():
        sizes = [m["case"][letter] for m in curve]
        assert sizes == sorted(set(sizes)) and len(sizes) > 1
        assert [set(m["rows"]) for m in curve] == [{"lstm_jax", "plain scan"}] * len(curve)
    assert set(tree["curves"]) == set("TBH")
    (memory,) = tree["memory"]
    assert set(memory["rows"]) == {"checkpoint=None", "checkpoint='sqrt'", "checkpoint=6", "plain scan"}
    least = memory["rows"]["checkpoint='sqrt'"]["temporary_bytes"]
    assert least < memory["rows"]["checkpoint=None"]["temporary_bytes"]
    assert {(row["checkpoint"], row["loss"]) for row in tree["long"]} == {
        (how, loss) for how in ("sqrt", None) for loss in ("of all outputs", "of the last state")
    }
    assert all((row["call_s"] is None) == (row["checkpoint"] is None) for row in tree["long"])


@pytest.mark.slow
def test_the_files_contain_machine_versions_and_options(quick):
    path, tree, printed = quick
    about = tree["about"]
    assert about["versions"]["jax"] == jax.__version__ and about["versions"]["lstm_jax"]
    for name in ("device", "processor", "cores", "python", "date", "dtype", "options", "XLA_FLAGS"):
        assert name in about
    assert about["options"]["peers"] == "['none']"
    assert "cpu" in path.name and "float32" in path.name and about["date"][:10] in path.name
    suffixes = {other.name.removeprefix(path.stem) for other in path.parent.iterdir()}
    assert suffixes == {".json", ".md", "-ratios.png", "-curves.png", "-memory.png"}
    for picture in path.parent.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    for case in QUICK:
        assert f"| {case} |" in path.with_suffix(".md").read_text()
        assert str(case) in printed
    assert tree["matmul_rates"]["jax"] > 0 and "torch" not in tree["matmul_rates"]


@pytest.mark.slow
def test_a_report_is_read_back_and_drawn_again(quick, tmp_path):
    path, tree, _ = quick
    again = report.Report.from_json(tree)
    assert json.loads(json.dumps(again.as_json())) == tree
    copy = tmp_path / "copy.json"
    copy.write_bytes(path.read_bytes())
    assert benchmark.main(["--redraw", str(copy)]) == 0
    assert json.loads(copy.read_text()) == tree
    assert (tmp_path / "copy.md").read_text() == path.with_suffix(".md").read_text()
    assert (tmp_path / "copy-ratios.png").exists()


@pytest.mark.parametrize("name", ["cpu-*-float32-2*.json", "cpu-*-float32-malloc-2*.json"])
def test_the_committed_results_are_read_and_give_the_committed_tables(name):
    (path,) = (Path(benchmark.__file__).parent / "results").glob(name)
    read = report.Report.from_json(json.loads(path.read_text()))
    assert report.markdown(read) == path.with_suffix(".md").read_text()
    assert files.dumps(read.as_json()) + "\n" == path.read_text()


# --- contestants -----------------------------------------------------------------------------


def test_a_contestant_that_computes_something_else_is_not_timed():
    calls = []

    def shifted(case, setting):
        made = lstm_jax_form(case, setting)
        wrong = lambda params, xs, more: made.run(params._replace(bias=params.bias + 0.01), xs, more)  # noqa: E731
        return made._replace(run=lambda *args: calls.append(1) or wrong(*args))

    found = measure(TINY, "forward", (LSTM_JAX, contestant("wrong", shifted), SCAN), SETTING, 2)
    row = found.rows["wrong"]
    assert row.status == "differs" and "outputs differ" in row.note and row.distance > 1e-4
    assert row.count == 0 and row.median_s is None
    assert len(calls) == 1  # traced once, for the comparison
    assert found.rows["plain scan"].status == "timed"


def test_wrong_gradients_are_found():
    def without(case, setting):
        made = lstm_jax_form(case, setting)

        def run(params, xs, more):
            return made.run(params._replace(bias=jax.lax.stop_gradient(params.bias)), xs, more)

        return made._replace(run=run)

    contestants = (LSTM_JAX, contestant("half", without))
    row = measure(TINY, "forward+backward", contestants, SETTING, 1).rows["half"]
    assert row.status == "differs" and "gradients for weights differ" in row.note


def test_gradients_are_compared_in_our_layout():
    """The other library has transposed and doubled weights, and batch-major inputs."""

    def other(case, setting):
        def convert(layers):
            return {"w": layers[0][0].w_ih.T * 2, "r": layers[0][0].w_hh, "b": layers[0][0].bias}

        def run(tree, xs, more):
            params = ((cases.lstm_jax.LSTMParams(tree["w"].T / 2, tree["r"], tree["b"]),),)
            ys = lstm_jax_form(case, setting).run(
                cases.as_network(case, params), jnp.swapaxes(xs, 0, 1), more
            )
            return jnp.swapaxes(ys, 0, 1)

        return Form(convert, run, time_major=False)

    contestants = (LSTM_JAX, contestant("other", other))
    assert measure(TINY, "forward+backward", contestants, SETTING, 1).rows["other"].ratio


def test_contestants_that_are_absent_decline_or_fail_are_recorded_and_the_others_are_timed():
    def breaks(*_):
        raise RuntimeError("no such kernel\nmore")

    contestants = (
        LSTM_JAX,
        contestant("absent", absent=lambda: "No module named 'absent'", build=breaks),
        contestant("declining", declines=lambda case, mode, setting: f"not in {setting.dtype}", build=breaks),
        contestant("broken", build=breaks),
        SCAN,
    )
    rows = measure(TINY, "forward", contestants, SETTING, 1).rows
    assert {name: (row.status, row.note) for name, row in rows.items() if row.status != "timed"} == {
        "absent": ("absent", "No module named 'absent'"),
        "declining": ("declines", "not in float32"),
        "broken": ("fails", "RuntimeError: no such kernel"),
    }
    assert rows["plain scan"].ratio > 0
    with pytest.raises(RuntimeError, match="no such kernel"):
        measure(TINY, "forward", (contestant("a broken one", build=breaks),), SETTING, 1)


def test_a_run_reports_a_peer_whose_results_differ(monkeypatch, tmp_path, capsys):
    def zeros(case, setting):
        made = lstm_jax_form(case, setting)
        return made._replace(run=lambda *args: 0 * made.run(*args))

    liar, ghost = contestant("liar", zeros), contestant("ghost", absent=lambda: "not installed")
    monkeypatch.setattr(benchmark, "PEERS", {"liar": (liar, ghost)})
    monkeypatch.setattr(benchmark, "ALWAYS_MEASURED", (LSTM_JAX,))
    words = ["--cases", "2,3,2,3", "--rounds", "1", "--quick", "--out", str(tmp_path)]
    assert benchmark.main(words) == 1
    (path,) = tmp_path.glob("*.json")
    tree = json.loads(path.read_text())
    assert [m["rows"]["liar"]["status"] for m in tree["cases"]] == ["differs"] * 2
    assert tree["about"]["absent"] == {"ghost": "not installed"}
    assert not tree["curves"] and not tree["memory"]  # only the given case
    printed = capsys.readouterr().out
    assert "liar differs in 2,3,2,3, forward: its outputs differ" in printed
    assert "absent: ghost (not installed)" in printed
    assert "ghost is absent: not installed" in path.with_suffix(".md").read_text()


def test_nan_and_other_shapes_differ():
    good = {"outputs": np.ones((2, 2), np.float32)}
    assert farthest(good, good) == (0.0, "results")
    distance, where = farthest({"outputs": np.array([[1, 1], [1, np.nan]])}, good)
    assert np.isnan(distance) and where == "outputs"
    with pytest.raises(ValueError, match="outputs have other shapes"):
        farthest({"outputs": np.ones(4)}, good)
    with pytest.raises(ValueError, match="gives carry instead of outputs"):
        farthest({"carry": np.ones(4)}, good)


def test_nan_differs():
    def nan(case, setting):
        made = lstm_jax_form(case, setting)
        return made._replace(run=lambda *args: made.run(*args) * jnp.nan)

    found = measure(TINY, "forward", (LSTM_JAX, contestant("nan", nan)), SETTING, 1)
    assert found.rows["nan"].status == "differs"


def test_keras_with_another_backend_is_absent(monkeypatch):
    other = types.SimpleNamespace(backend=types.SimpleNamespace(backend=lambda: "torch"))
    monkeypatch.setitem(sys.modules, "keras", other)
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "torch")
    assert "KERAS_BACKEND=jax" in keras_.absent()
    monkeypatch.setitem(sys.modules, "keras", None)
    assert "keras" in keras_.absent()


@pytest.mark.parametrize(
    ("sizes", "dtype", "forward", "backward"),
    [
        ((32, 100, 128, 128), "float32", torch_.SMALL_H, torch_.SMALL_H),
        ((32, 100, 128, 192), "bfloat16", torch_.SMALL_H, torch_.STANDARD),
        ((32, 100, 128, 512), "float16", torch_.PERSISTENT, torch_.PERSISTENT),
        ((32, 100, 128, 512), "bfloat16", torch_.STANDARD, torch_.STANDARD),
        ((32, 100, 128, 512), "float32", torch_.STANDARD, torch_.STANDARD),
        ((20, 100, 128, 512), "float16", torch_.STANDARD, torch_.STANDARD),
        ((256, 100, 128, 512), "float16", torch_.STANDARD, torch_.STANDARD),
        ((32, 100, 100, 512), "float16", torch_.STANDARD, torch_.STANDARD),
        ((32, 100, 128, 1152), "float16", torch_.STANDARD, torch_.STANDARD),
        ((32, 100, 128, 512, 2), "float16", torch_.STANDARD, torch_.STANDARD),
        ((32, 100, 128, 512, 1, True), "float16", torch_.STANDARD, torch_.STANDARD),
        ((32, 100, 128, 128, 1, False, True), "float16", torch_.STANDARD, torch_.STANDARD),
    ],
)
def test_the_algorithm_that_pytorch_requests_of_cudnn(sizes, dtype, forward, backward):
    facts = (Case(*sizes), dtype, (9, 0), 132)
    assert torch_.algorithm(*facts) == forward
    assert torch_.algorithm(*facts, backward=True) == backward


# --- the clock ----------------------------------------------------------------------------------


def test_rounds_rotate():
    assert [timing.rotated("abc", turn) for turn in range(4)] == [[*"abc"], [*"bca"], [*"cab"], [*"abc"]]


def test_every_sample_follows_discarded_calls_and_the_end_of_spinning(monkeypatch):
    monkeypatch.setattr(timing, "repeats", lambda contestants, sample_s: 4)
    monkeypatch.setattr(timing, "sample", lambda call, times: (log.append((call(), times)), len(log))[1])
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: log.append("pause") if seconds else None)
    log = []
    contestants = {name: timing.Timed(lambda name=name: name, name == "t") for name in "atb"}
    seconds, times = timing.time_rounds(contestants, 3)
    a, t, b = ([(name, 4)] * 2 for name in "atb")
    assert log == [*a, *t, "pause", *b, *t, "pause", *b, *a, *b, *a, *t]
    assert times == 4
    assert seconds == {"a": [2, 14, 18], "t": [4, 9, 20], "b": [7, 12, 16]}  # the second of each two calls


def test_a_sample_is_the_mean_of_its_calls():
    now = iter([10.0, 16.0])
    log = []
    assert timing.sample(lambda: log.append(1), 3, lambda: next(now)) == 2.0 and len(log) == 3


@pytest.mark.parametrize(("fastest", "times"), [(1e-3, 5), (1.0, 1), (1e-9, timing.MAX_REPEATS)])
def test_all_contestants_have_as_many_calls_per_sample(monkeypatch, fastest, times):
    seconds = {"a": fastest, "b": 7.0}
    monkeypatch.setattr(timing, "sample", lambda call, _: seconds[call()])
    contestants = {name: timing.Timed(lambda name=name: name) for name in seconds}
    assert timing.repeats(contestants) == times


def test_no_round_begins_after_the_deadline():
    seconds, _ = timing.time_rounds(
        dict.fromkeys("ab", timing.Timed(int)), 5, 0.0, deadline=time.monotonic() - 1
    )
    assert {name: len(samples) for name, samples in seconds.items()} == {"a": 1, "b": 1}


@pytest.mark.parametrize("count", [1, 2, 7, 11])
def test_statistics_are_those_of_numpy(count):
    samples = np.random.default_rng(count).random(count)
    found = timing.summarize(samples)
    expected = (*np.quantile(samples, (0, 0.25, 0.5, 0.75)), count)
    np.testing.assert_allclose(found, expected)


# --- several settings in one measurement ----------------------------------------------------------


def test_contestants_with_settings_of_their_own_are_compared_with_the_first():
    narrow = lstm_jax_.named("fused")._replace(name="narrow", setting=Setting("cpu", "bfloat16"))
    contestants = (LSTM_JAX, narrow, lstm_jax_.with_steps_per_body(lstm_jax_.named("fused"), 2))
    found = measure(TINY, "forward", contestants, SETTING, 1, threads=2)
    assert [row.status for row in found.rows.values()] == ["timed"] * 3
    assert 1e-4 < found.rows["narrow"].distance < 0.1 and found.rows["narrow"].ratio > 0


def test_the_steps_per_body_are_set_while_tracing_only():
    """The constant is the library's; this fails when it is renamed."""
    before, seen = tiling.UNROLL, []

    def traced(case, setting):
        made = lstm_jax_form(case, setting)
        return made._replace(run=lambda *args: seen.append(tiling.UNROLL) or made.run(*args))

    traced_thrice = lstm_jax_.with_steps_per_body(contestant(form=traced), 3)
    assert (
        measure(TINY, "forward", (LSTM_JAX, traced_thrice), SETTING, 1).rows[traced_thrice.name].status
        == "timed"
    )
    assert seen == [3] and tiling.UNROLL == before


def test_a_program_that_is_not_compiled_in_time_is_skipped():
    release = threading.Event()

    def slow(*_):
        return lambda: release.wait(30) and None

    contestants = (LSTM_JAX, contestant("slow", build=slow), SCAN)
    try:
        rows = measure(
            TINY, "forward", contestants, SETTING, 9, threads=2, deadline=time.monotonic() + 0.2
        ).rows
    finally:
        release.set()
    assert rows["slow"].status == "skipped" and rows["slow"].note == "not compiled in time"
    assert rows["lstm_jax"].status == "timed"


@pytest.mark.parametrize(
    "case",
    [
        Case(2, 4, 3, 4, cell="GRU", resets=0.3),
        pytest.param(Case(2, 4, 3, 4, cell="GRU"), marks=pytest.mark.slow),
        pytest.param(Case(2, 4, 3, 4, resets=0.3), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_scan_by_hand_agrees_for_grus_and_resets(case):
    problem = cases.make_problem(case, SETTING)
    assert (problem.more is not None) == bool(case.resets)
    found = measure(case, "forward", (LSTM_JAX, SCAN), SETTING, 1).rows["plain scan"]
    assert found.status == "timed", found


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_loops_by_hand_compute_the_librarys_results(mode):
    with jax.numpy_rank_promotion("allow"):
        found = measure(Case(2, 4, 3, 4), mode, (LSTM_JAX, *layouts.LAYOUTS), SETTING, 1, threads=2)
    assert {row.status for row in found.rows.values()} == {"timed"}, found.rows


def test_implementations_run_or_decline_with_a_reason():
    case = Case(2, 3, 2, 3)
    assert lstm_jax_.named("fused").declines(case, MODES[0], SETTING) is None
    assert "NVIDIA GPU" in lstm_jax_.named("cudnn").declines(case, MODES[0], SETTING)
    assert lstm_jax_.named("cudnn").declines(case, MODES[0], Setting(dtype="bfloat16"))
    assert "vmap" in lstm_jax_.named("cudnn").declines(case._replace(ensemble=2), MODES[0], SETTING)
    assert lstm_jax_.named("scan").declines(case._replace(T=1, streaming=True), MODES[0], SETTING)


# --- problems and summaries --------------------------------------------------------------------------


def test_the_loss_ignores_padding():
    problem = cases.make_problem(Case(3, 5, 2, 4, ragged=True), SETTING)
    assert problem.more.tolist() == [5, 3, 1]  # longest first, as torch packs them
    weights = np.asarray(problem.weights)
    assert not weights[~np.broadcast_to(problem.valid, weights.shape)].any()
    assert problem.valid.sum() == 9 and weights[problem.valid[..., 0]].all()


def test_an_ensemble_has_weights_and_inputs_of_its_own():
    problem = cases.make_problem(Case(2, 5, 3, 4, ensemble=3), SETTING)
    ((params,),) = problem.params
    assert params.w_hh.shape == (3, 4, 16) and problem.xs.shape == (3, 5, 2, 3)
    assert len(np.unique(np.asarray(params.bias))) == 3 * 16  # biases differ, too
    assert not jnp.array_equal(problem.xs[0], problem.xs[1])


@pytest.mark.parametrize("case", [TINY, Case(2, 3, 2, 3, layers=3), Case(2, 3, 2, 3, 2, bidirectional=True)])
def test_parameters_by_layers_and_as_a_network(case):
    params = cases.make_network(case).init(jax.random.key(0))
    layers = cases.as_layers(case, params)
    assert [len(layer) for layer in layers] == [1 + case.bidirectional] * case.layers
    assert jax.tree.structure(cases.as_network(case, layers)) == jax.tree.structure(params)


def test_operations_are_those_of_the_matrix_products():
    """Counted by hand: two per weight, row and step, and three times as many with the backward pass."""
    assert cases.flops(Case(2, 3, 4, 5), "forward", 6) == 2 * 6 * (4 * 20 + 5 * 20)
    assert cases.flops(Case(2, 3, 4, 5), "forward+backward", 6) == 3 * cases.flops(
        Case(2, 3, 4, 5), "forward", 6
    )
    both = Case(2, 3, 4, 5, layers=2, bidirectional=True, ensemble=7)
    assert cases.flops(both, "forward", 6) == 7 * 2 * 6 * 2 * ((4 + 5) * 20 + (10 + 5) * 20)


def made_up(case, mode, **medians):
    rows = {
        name.replace("_", " ").replace("lstm jax", "lstm_jax"): Row(
            "timed", median_s=s, compile_s=s, temporary_bytes=100
        )
        for name, s in medians.items()
    }
    rows["equinox"] = Row("declines", "no lengths")
    return Measurement(case, mode, 1, 1, rows)


def test_geometric_means_are_over_the_plain_cases():
    measured = [
        made_up(
            TINY, "forward", lstm_jax=2.0, lstm_jax_again=2.2, plain_scan=4.0, torch=1.0, haiku=6, keras=8
        ),
        made_up(Case(1, 1, 1, 1), "forward", lstm_jax=1.0, lstm_jax_again=0.8, torch=4.0, haiku=5, keras=2),
        made_up(Case(1, 1, 1, 1, layers=2), "forward", lstm_jax=1.0, lstm_jax_again=9, torch=1.0, haiku=9),
    ]
    found = {mean.what: mean for mean in summary.means(measured)}
    torch = found["time, lstm_jax / torch, forward"]
    assert torch.value == pytest.approx(np.sqrt(2.0 * 0.25)) and torch.cases == 2
    best = found["time, best other JAX library / lstm_jax, forward"]
    assert best.value == pytest.approx(np.sqrt(3.0 * 2.0)) and best.cases == 2
    scan = found["time, lstm_jax / plain scan, forward"]
    assert scan.value == pytest.approx(0.5) and scan.cases == 1
    assert found["time, lstm_jax / itself (the noise), forward"].value == pytest.approx(np.sqrt(1.1 * 1.25))
    assert not any("forward+backward" in what for what in found)


def test_slower_than_the_best_by_more_than_the_noise():
    near = made_up(TINY, "forward", lstm_jax=1.0, lstm_jax_again=1.1, haiku=0.95, keras=3)
    far = made_up(TINY, "forward", lstm_jax=1.0, lstm_jax_again=1.1, haiku=3, keras=0.8)
    verdicts = summary.verdicts([near, far])
    assert [(v.best, v.slower) for v in verdicts] == [("haiku", False), ("keras", True)]
    assert verdicts[1].ratio == pytest.approx(1.25) and verdicts[1].noise == pytest.approx(1.1)


# --- files and arguments ------------------------------------------------------------------------


def test_files_are_written_atomically(tmp_path, monkeypatch):
    path = tmp_path / "there.json"
    files.write(path, "old")

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        files.write(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["there.json"] and path.read_text() == "old"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cases", "1,2,3"], "'1,2,3' is neither B,T,D,H nor one of core, stack"),
        (["--cases", "1,2,3,0"], "'1,2,3,0' contains a size below 1"),
        (["--rounds", "0"], "--rounds must be 1 or more"),
        (["--peers", "none", "torch"], "--peers: all and none cannot be combined"),
        (["--peers", "tensorflow"], "invalid choice: 'tensorflow'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--device", "tpu"], "--device tpu: "),
        (["--tf32", "on"], "--tf32 on: only GPUs"),
    ],
)
def test_invalid_arguments_raise(words, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(words)
    assert message in capsys.readouterr().err


def test_names_of_cases_and_peers():
    assert benchmark.parse_cases("core") == cases.CORE and len(cases.CORE) == 8
    assert benchmark.parse_cases("1,2,3,4") == (Case(1, 2, 3, 4),)
    kinds = [{name for name, value in case._asdict().items() if value} for case in cases.NAMED["all"]]
    for kind in ("bidirectional", "ragged", "ensemble", "streaming"):
        assert any(kind in kind_of for kind_of in kinds), kind
    assert {1, 2, 4} == {case.layers for case in cases.NAMED["all"]}
    assert benchmark.chosen_peers(["none"]) == ()
    assert benchmark.chosen_peers(["torch", "haiku"]) == (contestants.HAIKU, contestants.TORCH)
    assert len(benchmark.chosen_peers(["all"])) == 9


def test_built_is_what_measure_calls():
    """A contestant need not be a JAX program."""
    problem = cases.make_problem(TINY, SETTING)
    ys = np.asarray(LSTM_JAX.build(TINY, problem, "forward", SETTING)().call())
    other = contestant(
        "plain Python", build=lambda *_: lambda: Built(lambda: ys, lambda found: {"outputs": found})
    )
    row = measure(TINY, "forward", (LSTM_JAX, other), SETTING, 1).rows["plain Python"]
    assert row.status == "timed" and row.compile_s is None and row.temporary_bytes is None


@pytest.mark.parametrize(
    "words, folder", [(["--quick"], "runs/benchmarks"), ([], "benchmarks/results"), (["--out", "x"], "x")]
)
def test_the_default_folder_of_quick_runs_is_another(monkeypatch, words, folder):
    seen = []
    monkeypatch.setattr(benchmark, "run", lambda args, setting: seen.append(str(args.out)) or 0)
    assert benchmark.main(words) == 0 and seen == [folder]
