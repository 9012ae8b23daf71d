"""The device plan: processes and limits, the budget, results on disk, correctness checks, and each job."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import lstm_jax
from benchmarks import device, device_checks, device_jobs, reference, training
from benchmarks.cases import Setting
from benchmarks.contestants import TORCH
from benchmarks.device import Job, Outcome, Results
from benchmarks.device_checks import Check
from benchmarks.device_run import Run

MACHINE = {
    "device": "a GPU",
    "processor": "a CPU",
    "cores": 2,
    "python": "3",
    "versions": {},
    "date": "today",
}


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "device.json", 100.0)


def job(limit=20.0, name="loop"):
    return Job(name, limit, "a job")


def script(text, *words):
    """A command that prints what a job prints. ``emit`` is a function of its messages."""
    head = "import json, sys, time\ndef emit(**message): print(json.dumps(message), flush=True)\n"
    return [sys.executable, "-c", head + text, *words]


def gone(pid):
    """Whether a process ends within ten seconds."""
    state = Path(f"/proc/{pid}/stat")
    for _ in range(100):
        if not state.exists() or ") Z " in state.read_text():
            return True
        time.sleep(0.1)
    return False


# --- processes ------------------------------------------------------------------------------------

SLEEPER = """
import pathlib, subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
emit(machine=json.loads(sys.argv[2]))
emit(row={"status": "timed", "what": "first"})
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
emit(begin="the second measurement")
time.sleep(100)
"""


def test_a_job_is_killed_with_its_children_at_its_limit(results, tmp_path, monkeypatch):
    monkeypatch.setattr(device, "MIN_S", 0.1)
    pid = tmp_path / "pid"
    began = time.monotonic()
    outcome = device.run(job(0.6), script(SLEEPER, str(pid), json.dumps(MACHINE)), results, 100.0)
    assert outcome == Outcome("killed after 1 s in the second measurement") and time.monotonic() - began < 15
    assert gone(pid.read_text()), "its child still runs"
    tree = json.loads(results.path.read_text())
    assert [row["what"] for row in tree["rows"]] == ["first"]
    assert tree["jobs"][0]["outcome"] == outcome.text and tree["machine"] == MACHINE


def test_an_interrupted_plan_kills_its_job(tmp_path):
    """SIGTERM, as ``timeout`` and schedulers send it."""
    pid = tmp_path / "pid"
    text = f"""
import signal, sys
from pathlib import Path
from benchmarks import device
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
words = {script(SLEEPER, str(pid), json.dumps(MACHINE))!r}
device.run(device.JOBS[0], words, device.Results(Path({str(tmp_path / "device.json")!r}), 100.0), 100.0)
"""
    process = subprocess.Popen([sys.executable, "-c", text])
    for _ in range(100):
        if pid.exists() and pid.read_text():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 1
    assert gone(pid.read_text()), "its job's child still runs"


@pytest.mark.parametrize(
    ("text", "outcome", "stderr"),
    [
        ("", "completed", None),
        ("print('a message', file=sys.stderr); sys.exit(4)", "failed with exit code 4", "a message\n"),
        (
            "emit(begin='a kernel'); import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "died of SIGSEGV in a kernel",
            "",
        ),
    ],
    ids=["completed", "failed", "died"],
)
def test_the_end_of_a_process_is_recorded(results, text, outcome, stderr):
    assert device.run(job(), script(text), results, 100.0).text == outcome
    (entry,) = json.loads(results.path.read_text())["jobs"]
    assert entry["outcome"] == outcome and (entry.get("stderr") or None) == (stderr or None)
    assert f"| loop | {outcome} (" in results.path.with_suffix(".md").read_text()
    assert results.good == (outcome == "completed")


def test_what_libraries_print_is_ignored(results):
    text = "print('[1, 2]'); print('{'); print(3); emit(machine=json.loads(sys.argv[1]))"
    text += "; emit(row={'status': 'timed', 'what': 'a'}); print('null')"
    device.run(job(), script(text, json.dumps(MACHINE)), results, 100.0)
    assert [row["what"] for row in results.rows] == ["a"] and results.good


def test_rows_of_another_device_are_dropped(results):
    text = "emit(machine=json.loads(sys.argv[1])); emit(row={'status': 'timed', 'what': 'a'})"
    for name in ("a GPU", "a GPU", "another GPU"):
        device.run(job(name=name), script(text, json.dumps(MACHINE | {"device": name})), results, 100.0)
    assert [row["job"] for row in results.rows] == ["a GPU", "a GPU"] and not results.good
    assert "another device (another GPU)" in results.jobs[-1]["outcome"]


# --- the plan -------------------------------------------------------------------------------------


def test_the_whole_plan_fits_its_budget():
    assert sum(job.limit_s for job in device.JOBS) <= device.BUDGET_S == 400
    assert len(set(device.NAMES)) == len(device.NAMES) and device.NAMES[:2] == ("device", "correctness")
    assert {job.limit_s for job in device.JOBS if job.may_hang} == {25}


def test_a_larger_budget_extends_limits_except_those_of_kernels():
    jobs = [Job("loop", 40, ""), Job("pallas-grid", 25, ""), Job("training", 60, "")]
    assert [job.limit_s for job in device.stretched(jobs, 125)] == [40, 25, 60]
    assert [job.limit_s for job in device.stretched(jobs, 225)] == [80, 25, 120]
    assert [job.limit_s for job in device.stretched(jobs, 10)] == [40, 25, 60]
    assert device.stretched(jobs[1:2], 500) == jobs[1:2]


@pytest.fixture
def plan(monkeypatch, tmp_path):
    """Runs the command with jobs replaced by a script, and returns its exit code and its results."""

    def main(text, *words):
        monkeypatch.setattr(device, "command", lambda job, quick: script(text, job.name, json.dumps(MACHINE)))
        code = device.main(["--out", str(tmp_path), *words])
        found = sorted(tmp_path.iterdir())
        trees = [json.loads(path.read_text()) for path in found if path.suffix == ".json"]
        return code, trees, found

    return main


REPORT = """
emit(machine=json.loads(sys.argv[2]))
emit(row={"status": "timed", "case": "1,2,3,4", "what": sys.argv[1], "mode": "forward", "median_s": 0.001})
"""


def test_only_the_given_jobs_run_in_the_order_of_the_plan(plan, capsys):
    code, (tree,), found = plan(REPORT, "--only", "training,device")
    assert code == 0 and [job["name"] for job in tree["jobs"]] == ["device", "training"]
    assert [row["what"] for row in tree["rows"]] == ["device", "training"] and tree["budget_s"] == 180
    assert [path.suffix for path in found] == [".json", ".md"]
    printed = capsys.readouterr().out
    assert printed.index("a GPU, a CPU, 2 cores") < printed.index("1,2,3,4") < printed.index(str(found[0]))


def test_jobs_without_time_are_skipped_and_listed(plan, capsys, monkeypatch):
    monkeypatch.setattr(device, "MIN_S", 0.5)
    began = time.monotonic()
    code, (tree,), _ = plan(f"{REPORT}\ntime.sleep(100)", "--budget", "0.9")
    assert code == 1 and time.monotonic() - began < 15
    outcomes = [job["outcome"] for job in tree["jobs"]]
    assert [job["name"] for job in tree["jobs"]] == list(device.NAMES)
    assert outcomes[0].startswith("killed after 1 s")
    assert all(text.startswith("skipped: 0 s of the budget") for text in outcomes[1:])
    assert [row["what"] for row in tree["rows"]] == ["device"]
    assert "training        skipped: 0 s" in capsys.readouterr().out


def test_results_are_on_disk_after_each_job(plan, tmp_path):
    """Each job reads the file that the jobs before it left."""
    text = f"""
import pathlib
emit(machine=json.loads(sys.argv[2]))
rows = [len(json.loads(path.read_text())["jobs"]) for path in pathlib.Path({str(tmp_path)!r}).glob("*.json")]
emit(row={{"status": "timed", "what": str(rows)}})
"""
    _, (tree,), _ = plan(text, "--only", "device,correctness,loop")
    assert [row["what"] for row in tree["rows"][1:]] == ["[1]", "[2]"]


def test_wrong_results_are_listed_and_the_plan_continues(plan, capsys):
    text = REPORT.replace('"timed"', '"wrong" if sys.argv[1] == "loop" else "timed", "note": "error 3"')
    code, (tree,), _ = plan(text, "--only", "loop,training")
    assert code == 1 and [row["status"] for row in tree["rows"]] == ["wrong", "timed"]
    assert {job["outcome"] for job in tree["jobs"]} == {"completed"}
    assert "wrong: error 3" in capsys.readouterr().out


def test_without_a_device_nothing_is_written(plan, capsys):
    code, trees, _ = plan(f"sys.exit({device.NO_DEVICE})")
    assert code == 2 and not trees and "found only a CPU; use --quick" in capsys.readouterr().out


def test_a_job_needs_an_accelerator_or_quick(monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert device_jobs.main(["device"]) == device.NO_DEVICE and not capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["--only", "speed"], ["--only", ""], ["--budget", "0"], ["--budget", "-3"]]
)
def test_invalid_arguments_raise(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        device.main(words)
    assert stopped.value.code == 2
    assert "is not one of device, correctness" in (error := capsys.readouterr().err) or "positive" in error


def test_both_modes_share_a_line_of_the_table(results):
    same = {"case": "1,2,3,4", "what": "fused", "dtype": "bfloat16"}
    results.add("loop", same | {"status": "timed", "mode": "forward", "median_s": 0.002, "compile_s": 1.0})
    results.add(
        "loop", same | {"status": "differs", "mode": "forward+backward", "note": "by 2|3", "compile_s": 2.5}
    )
    (line,) = results.lines()
    assert line == ("loop", "1,2,3,4", "fused", "bfloat16", "2.000", "", "1.0+2.5", "differs: by 2|3")
    assert "| differs: by 2/3 |" in results.path.with_suffix(".md").read_text()


# --- correctness ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [
        Check(3, 4, 2, 3, lengths=True),
        Check(3, 4, 2, 3, resets=True),
        Check(3, 4, 2, 3, cell="GRU", lengths=True),
        Check(3, 4, 2, 3, cell="GRU", resets=True),
    ],
    ids=str,
)
def test_gradients_of_the_reference_are_those_of_finite_differences(check):
    problem, _ = device_checks.draw(check, getattr(lstm_jax, check.cell)(check.D, check.H))
    solution = reference.solve(problem)

    def loss(problem):
        found = reference.solve(problem)
        pairs = [(found.ys, problem.weights_ys), *zip(found.carry, problem.weights_carry, strict=True)]
        return sum(np.sum(a * w) for a, w in pairs)

    rng = np.random.default_rng(1)
    towards = problem._replace(
        params={name: rng.standard_normal(a.shape) for name, a in problem.params.items()},
        xs=rng.standard_normal(problem.xs.shape),
        carry=tuple(rng.standard_normal(a.shape) for a in problem.carry),
    )
    slope = sum(np.sum(solution.d_params[name] * a) for name, a in towards.params.items())
    slope += np.sum(solution.d_xs * towards.xs)
    slope += sum(np.sum(a * b) for a, b in zip(solution.d_carry, towards.carry, strict=True))

    def moved(step):
        return problem._replace(
            params={name: a + step * towards.params[name] for name, a in problem.params.items()},
            xs=problem.xs + step * towards.xs,
            carry=tuple(a + step * b for a, b in zip(problem.carry, towards.carry, strict=True)),
        )

    step = 1e-5
    assert np.isclose((loss(moved(step)) - loss(moved(-step))) / (2 * step), slope, rtol=1e-6)


def rows_of(capsys):
    messages = map(json.loads, capsys.readouterr().out.splitlines())
    return [message["row"] for message in messages if "row" in message]


def in_time(**changes):
    return Run("cpu", time.monotonic() + 100, quick=True)._replace(**changes)


def test_right_results_are_recorded_with_their_errors(capsys):
    todo = [(Check(2, 3, 2, 3, lengths=True), "fused"), (Check(2, 3, 2, 3), "cudnn")]
    assert device_checks.compare_all(in_time(), todo)
    right, declined = rows_of(capsys)
    assert right["status"] == "right" and right["dtype"] == "float32"
    assert {"ys", "last h", "last c", "gradient of xs", "gradient of w_hh"} <= right["errors"].keys()
    assert declined["status"] == "declines" and "NVIDIA GPU" in declined["note"]


@pytest.mark.slow
def test_transforms_are_compared_with_the_scan(capsys):
    device_checks.compare_transforms(in_time(), [Check(2, 3, 2, 3, lengths=True)])
    fused, cudnn = (rows[start::2] for rows in [rows_of(capsys)] for start in (0, 1))
    assert [row["what"] for row in fused] == [f"check of fused, {name}" for name in device_checks.TRANSFORMS]
    assert {row["status"] for row in fused} == {"right"}
    assert all(row["status"] == "declines" and "NVIDIA GPU" in row["note"] for row in cudnn)


def test_wrong_transforms_are_recorded(capsys, monkeypatch):
    def transform(run, check, name, implementation):
        if implementation == "cudnn" and name == "jvp":
            return "fails", "RuntimeError: no such call"
        error = {"scan": 0.0, "fused": np.nan, "cudnn": 1e-3}[implementation]
        return lambda: (np.ones(3), np.ones(2) + error)

    monkeypatch.setattr(device_checks, "TRANSFORMS", dict.fromkeys(["vmap", "jvp"]))
    monkeypatch.setattr(device_checks, "transform", transform)
    device_checks.compare_transforms(in_time(), [Check(2, 3, 2, 3)])
    rows = rows_of(capsys)
    assert [row["status"] for row in rows] == ["wrong", "wrong", "wrong", "fails"]
    assert "nan" in rows[0]["note"] and "1.0e-03" in rows[1]["note"] and "no such call" in rows[3]["note"]


@pytest.mark.parametrize("fault", ["values", "gradients", "nan", "repetitions", "shape"])
def test_wrong_results_are_recorded(capsys, fault):
    check = Check(2, 3, 2, 3)
    problem, _ = device_checks.draw(check, lstm_jax.LSTM(2, 3))
    solution, calls = reference.solve(problem), []

    def call():
        calls.append(1)
        a = solution
        ys, d_xs, last = a.ys.copy(), a.d_xs.copy(), a.carry
        if fault == "values":
            ys[0, 0, 0] += 0.01
        if fault == "gradients":
            d_xs *= 1.01
        if fault == "nan":
            d_xs[0] = np.nan
        if fault == "repetitions":
            ys += 1e-7 * len(calls)
        if fault == "shape":
            last = (last[0][None], last[1])
        arrays = ((ys, last), ((0.0, (ys, last)), (lstm_jax.LSTMParams(**a.d_params), d_xs, a.d_carry)))
        return jax.tree.map(lambda a: jax.numpy.asarray(a, np.float32), arrays)

    prepared = device_checks.Prepared(solution, call)
    assert not device_checks.judge(prepared, check, 2, {"what": "check"})
    (row,) = rows_of(capsys)
    expected = {"values": "ys", "gradients": "gradient of xs", "nan": "error nan in gradient of xs"}
    expected |= {"repetitions": "repetitions differ", "shape": "error inf in last h"}
    assert row["status"] == "wrong" and expected[fault] in row["note"], row


def test_a_kernel_that_fails_or_is_wrong_is_not_timed(capsys, monkeypatch):
    monkeypatch.setattr(device_jobs, "compete", lambda *_, **__: pytest.fail("timed"))
    monkeypatch.setattr(device_checks, "prepare", lambda *_: ("fails", "RuntimeError: no such kernel"))
    device_jobs.pallas(in_time(), "pallas-grid")
    assert [row["status"] for row in rows_of(capsys)] == ["fails", "skipped"]


def test_nothing_begins_after_the_deadline(capsys):
    late = in_time(deadline=time.monotonic() - 1)
    assert device_checks.compare_all(late, [(Check(2, 3, 2, 3), "fused")])
    device_jobs.compete(late, device_jobs.QUICK_CASES["cases-long"][0], (), until=0.0)
    assert {row["status"] for row in rows_of(capsys)} == {"skipped"}


# --- each job -------------------------------------------------------------------------------------


def test_every_form_of_kernel_has_three_checks_and_sizes_to_time():
    assert all(len(form.checks) == 3 and form.timed for form in device_jobs.PALLAS.values())
    timed = {case.H for form in device_jobs.PALLAS.values() for case in form.timed if case.cell == "LSTM"}
    assert timed >= {256, 512, 768, 1024}


def test_the_compilers_options_are_known_to_this_jax():
    """XLA knows its options without a device. An unknown option is an error."""
    for options in (device_jobs.OPTIONS | device_jobs.RISKY).values():
        assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2
    with pytest.raises(Exception, match="xla_gpu_nonsense"):
        jax.jit(lambda x: x + 1, compiler_options={"xla_gpu_nonsense": 1})(1)


@pytest.mark.slow
def test_training_reduces_the_loss():
    trainer = training.lstm_jax_trainer(training.TINY, Setting(), "auto")
    assert np.isclose(trainer.first_loss, np.log(training.TINY.words), rtol=0.1)
    assert 0 < trainer.steps(20) < trainer.first_loss  # the same words at every step


@pytest.mark.slow
@pytest.mark.parametrize("name", device.NAMES)
def test_the_quick_rehearsal_of_each_job(name, tmp_path):
    words = [sys.executable, "-m", "benchmarks.device", "--quick", "--only", name, "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.json")
    tree = json.loads(path.read_text())
    assert [job["outcome"] for job in tree["jobs"]] == ["completed"]
    states = {row["status"] for row in tree["rows"]}
    assert states & {"measured", "right", "timed"} and states.isdisjoint(
        ("wrong", "differs", "fails", "skipped")
    )
    if TORCH.absent() is None and name in ("cases-long", "training"):
        assert any("torch" in row["what"] and row["status"] == "timed" for row in tree["rows"])
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".md"}
