"""The command for a device: nothing hangs it, nothing measured is lost, and each part runs on a CPU."""

import gzip
import json
import sys
import time
from importlib import import_module
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import __main__ as benchmark, device, experiments, profiling, report, suite, training
from benchmarks.cases import DEVICE, MODES, Case, Setting
from benchmarks.contestants import NAMES, named
from benchmarks.device import Job
from benchmarks.sheet import Sheet
from lstm_jax.unrolling import tiling


@pytest.fixture(autouse=True)
def small_programs(quick_compiles):
    """Nothing here looks at speed."""


def sheet(folder, columns=("a", "b")):
    return Sheet(folder, "part", "A title", columns, report.machine(Setting("cpu"), (), {}))


# --- processes ------------------------------------------------------------------------------------

SLEEPER = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(100)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module that ``python -m`` finds."""

    def write(text):
        (tmp_path / "a_job.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return "a_job"

    return write


def test_what_hangs_is_killed_with_its_children(module, tmp_path):
    told = tmp_path / "pid"
    began = time.monotonic()
    outcome = device.run(Job("suite", "suite", (module(SLEEPER), str(told)), 3.0))
    assert outcome.startswith("killed after 3 s") and time.monotonic() - began < 30
    state = Path(f"/proc/{told.read_text()}/stat")
    for _ in range(100):  # until init has taken it
        if not state.exists() or ") Z " in state.read_text():
            return
        time.sleep(0.1)
    pytest.fail("its child lives on")


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("", "done in"),
        ("import sys; sys.exit(3)", "failed with exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV"),
    ],
    ids=["done", "failed", "died"],
)
def test_how_a_process_ended_is_told(module, text, outcome):
    assert device.run(Job("suite", "suite", (module(text),), 30.0)).startswith(outcome)


def test_the_next_job_runs_after_one_that_died(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(device, "device", lambda: ("cpu", "a CPU"))
    monkeypatch.setattr(
        device, "run", lambda job: "died of SIGSEGV" if job.part == "suite" else "done in 1 s"
    )
    assert device.main(["--quick", "--parts", "suite,profile", "--out", str(tmp_path)]) == 1
    assert "suite: died of SIGSEGV\nprofile: done in 1 s" in capsys.readouterr().out


def test_every_job_is_a_command_that_its_module_takes(monkeypatch):
    """Those for a GPU, without running any: the words are parsed, cases and dtypes are complete."""
    jobs = list(device.jobs(device.PARTS, "gpu", False, Path("out")))
    assert [job.part for job in jobs] == ["suite", *["cases"] * 4, "experiments", "profile", "training"]
    assert sum(job.limit_s for job in jobs) <= 25 * 60
    assert {case[:2] + case[3:4] for case in DEVICE} == {(B, 1024, H) for B in (16, 64) for H in (768, 1024)}
    seen = []
    monkeypatch.setattr(benchmark, "run", lambda args, setting: seen.append((args, setting)) or 0)
    monkeypatch.setattr(jax, "devices", lambda *_: [type("Device", (), {"platform": "gpu"})])
    monkeypatch.setattr(jax, "default_device", lambda _: benchmark.contextlib.nullcontext())
    for job in jobs[1:5]:
        assert job.words[0] == "benchmarks" and benchmark.main(job.words[1:]) == 0
    assert [(s.dtype, s.tf32) for _, s in seen] == [
        ("float32", False),
        ("float32", True),
        ("bfloat16", False),
        ("float16", False),
    ]
    assert all(args.cases == [DEVICE] and "torch" in args.peers for args, _ in seen)
    for job in (jobs[0], *jobs[5:]):
        with pytest.raises(SystemExit) as stopped:
            import_module(job.words[0]).main([*job.words[1:], "--help"])
        assert stopped.value.code == 0


def test_without_a_device_it_says_so_in_a_line(monkeypatch, capsys):
    for found, words in ((None, "finds no device"), (("cpu", "a CPU"), "a CPU alone; --quick runs there")):
        monkeypatch.setattr(device, "device", lambda found=found: found)
        with pytest.raises(SystemExit) as stopped:
            device.main([])
        assert stopped.value.code == 2 and words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        device.main(["--parts", "suite,speed"])
    assert "'speed' is none of suite, cases" in capsys.readouterr().err


# --- files ----------------------------------------------------------------------------------------


def test_a_row_is_written_before_it_is_measured_and_after(tmp_path, capsys):
    table = sheet(tmp_path)
    table.begin(a="one")
    assert json.loads(table.path.read_text())["rows"] == [{"a": "one", "note": "began, and did not end"}]
    table.end(b=0.5)
    table.begin(a="two")
    rows = json.loads(table.path.read_text())["rows"]
    assert rows[0] == {"a": "one", "b": 0.5, "note": ""} and "did not end" in rows[1]["note"]
    assert "| one | 0.5 |" in table.path.with_suffix(".md").read_text()
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md"}


def test_the_suite_writes_how_each_test_went(tmp_path):
    recorder = suite.Recorder(tmp_path, "cpu")

    def log(when, outcome, longrepr=None):
        told = pytest.TestReport("a/test", ("a", 1, "t"), {}, outcome, longrepr, when, duration=0.5)
        recorder.pytest_runtest_logreport(told)

    log("setup", "passed")
    log("call", "passed")
    log("setup", "skipped", ("a", 1, "Skipped: no GPU"))
    log("call", "failed", "lines\nE  1 | 2")
    (path,) = tmp_path.glob("*.json")
    assert [(row["outcome"], row["why"]) for row in json.loads(path.read_text())["rows"]] == [
        ("passed", ""),
        ("skipped", "Skipped: no GPU"),
        ("failed", "E  1 / 2"),
    ]


# --- profile --------------------------------------------------------------------------------------


def event(pid, tid, start, length, name):
    return {"ph": "X", "pid": pid, "tid": tid, "ts": start, "dur": length, "name": name}


def name(pid, text, tid=None):
    kind = "process_name" if tid is None else "thread_name"
    return {"ph": "M", "pid": pid, "name": kind, "args": {"name": text}} | (
        {} if tid is None else {"tid": tid}
    )


TRACE = [
    name(1, "/device:GPU:0"),
    name(1, "Stream #13(Compute)", 7),
    name(1, "Stream #14(MemcpyD2D)", 8),
    name(1, "XLA Ops", 9),
    name(2, "/host:CPU"),
    name(2, "python", 7),
    event(1, 7, 100.0, 2.0, "gemm"),
    event(1, 7, 105.0, 1.0, "gates"),
    event(1, 7, 106.0, 2.0, "gemm"),
    event(1, 8, 100.0, 1.0, "copy"),
    event(1, 9, 0.0, 1000.0, "a whole module"),
    event(2, 7, 0.0, 1000.0, "python"),
]


def test_a_profile_counts_kernels_and_the_time_between(tmp_path):
    with gzip.open(tmp_path / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": TRACE}, file)
    found = profiling.read(tmp_path)
    assert found.kernels == [("gemm", 2, 4.0, 0.5), ("gates", 1, 1.0, 0.125)]
    assert (found.span_us, found.between_us) == (8.0, 3.0)


def test_what_only_encloses_is_no_kernel():
    line = [(0.0, 9.0, "loop"), (1.0, 3.0, "a"), (3.0, 4.0, "b"), (10.0, 11.0, "c")]
    assert [kernel for _, _, kernel in profiling.leaves(line)] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="no kernel"):
        profiling.profile(TRACE[:6])


def test_a_real_trace_is_read():
    if jax.default_backend() != "cpu":
        pytest.skip("of a CPU's threads")
    found, seconds = profiling.trace(Case(2, 8, 3, 4), MODES[0], Setting(), "scan")
    assert seconds > 0 and found.span_us > found.between_us > 0
    assert any(kernel.count >= 8 * profiling.CALLS for kernel in found.kernels)  # what is done at every step


# --- each part ------------------------------------------------------------------------------------


def test_every_idea_gives_the_librarys_results():
    """Those that are loops of their own: outputs here, gradients in the whole run of make test-slow."""
    case, references = Case(2, 3, 3, 4), {}
    for idea in experiments.ideas(case, "float32"):
        if idea.group not in ("unroll", "compiler"):
            with jax.numpy_rank_promotion("allow"):
                ys = jax.jit(idea.function)(*idea.args)
            np.testing.assert_allclose(
                ys, references.setdefault(idea.group, ys), atol=1e-6, err_msg=idea.name
            )
    assert set(references) == {"layout", "both directions", "two layers"}


def test_the_steps_of_a_body_are_an_ideas_own(monkeypatch):
    idea = next(i for i in experiments.ideas(Case(2, 3, 3, 4), "float32") if i.unroll == 2)
    seen = []

    def function(params, xs):
        seen.append(tiling.UNROLL)
        return xs * params.bias[0]

    experiments.measured(idea._replace(function=function), Setting(), None, 1)
    assert set(seen) == {2} and tiling.UNROLL == 1


def test_an_idea_with_other_results_is_told():
    idea = next(experiments.ideas(Case(2, 3, 3, 4), "float32"))
    wrong = idea._replace(function=lambda params, xs: 2 * idea.function(params, xs))
    reference = experiments.measured(idea, Setting(), None, 1)[1]
    assert "other results" in experiments.measured(wrong, Setting(), reference, 1)[0]["note"]


def test_the_compilers_options_are_known_to_this_jax():
    """XLA knows its options without a device; an unknown one is an error."""
    program = jax.jit(lambda x: x + 1).lower(np.float32(1))
    for options in (experiments.OPTIONS | experiments.RISKY).values():
        program.compile(compiler_options=options)
    with pytest.raises(Exception, match="xla_gpu_nonsense"):
        program.compile(compiler_options={"xla_gpu_nonsense": 1})


def test_training_counts_words_and_learns():
    size = training.QUICK_SIZES[0]
    values = training.words_per_second(size, "float32", "auto", 0.0)
    assert np.isclose(values["words/s"] * values["ms a step"] / 1e3, size.T * size.B)
    assert 0 < values["loss"] < np.log(size.words)  # the same words again and again


def test_what_is_named_takes_part_or_says_why_not():
    assert NAMES == ("scan", "fused", "pallas", "cudnn")
    case, setting = Case(2, 3, 2, 3), Setting()
    assert named("fused").declines(case, MODES[0], setting) is None
    assert "NVIDIA GPU" in named("cudnn").declines(case, MODES[0], setting)
    assert "float32 alone" in named("cudnn").declines(case, MODES[0], Setting(dtype="bfloat16"))
    assert "vmap" in named("cudnn").declines(case._replace(ensemble=2), MODES[0], setting)


@pytest.mark.slow
def test_the_whole_command_runs_on_a_cpu(tmp_path):
    words = (sys.executable, "-m", "benchmarks.device", "--quick", "--out", str(tmp_path))
    import subprocess

    done = subprocess.run(words, capture_output=True, text=True, env=None)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    written = {path.name.split("-")[-1] for path in tmp_path.glob("*.md")}
    assert {"suite.md", "experiments.md", "profile.md", "training.md"} <= written
    assert len(list(tmp_path.glob("*.json"))) == 7
    for path in tmp_path.glob("*.json"):
        assert "did not end" not in path.read_text() and "other results" not in path.read_text()
