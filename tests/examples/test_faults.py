"""Damaged files, full disks, two processes in one folder, an early Ctrl-C: one line, and nothing is lost."""

import contextlib
import ctypes
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import training_program as program
from helpers import daily, slow
from training import Run, UserError, start
from training_runs import ENVIRONMENT, EXAMPLES, change_arguments, outcome, read_json, rows, run

ARGUMENTS = ["--steps", 30, "--checkpoint-every", 7]

pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture(scope="module")
def arguments():
    return ARGUMENTS


@pytest.fixture
def failed(capsys):
    """``failed(status, *arguments)`` runs the program, which must print one line. It returns the line."""

    def failed(status, *arguments):
        capsys.readouterr()
        assert run(program, *arguments) == status
        error = capsys.readouterr().err
        assert error.startswith("tiny: ") and error.count("\n") == 1
        return error

    return failed


def at_step(monkeypatch, step, action):
    """Call ``action`` once, when the batch of a step is made."""
    shuffled, actions = program.shuffled, [action]

    def wrapped(*args):
        batch_of, per_epoch = shuffled(*args)

        def acting(index):
            if index == step and actions:
                actions.pop()()
            return batch_of(index)

        return acting, per_epoch

    monkeypatch.setattr(program, "shuffled", wrapped)


def fail():
    raise UserError("a fault")


@pytest.fixture(scope="module")
def ended_early(jax_defaults, tmp_path_factory):
    """A run that ended by an error in step 20."""
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 20, fail)
        assert run(program, *ARGUMENTS, "--out", folder) == 2
    return folder


@pytest.fixture
def unfinished(ended_early, tmp_path):
    """A copy of that run."""
    return shutil.copytree(ended_early, tmp_path / "unfinished")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestDamagedFiles:
    def test_a_line_of_the_metrics(self, unfinished, failed, whole):
        path = unfinished / "metrics.jsonl"
        lines = path.read_bytes().splitlines()
        for damaged in (b'{"step": 10, "lo', b"[1]", b"3", b"{}", b"\xff", b'{"step": "x"}', b""):
            path.write_bytes(b"\n".join([lines[0], damaged, *lines[1:], b""]))
            before = contents(unfinished)
            assert f"line 2 of {path} is damaged: delete the line" in failed(2, "--resume", unfinished)
            assert contents(unfinished) == before
        path.write_bytes(b"\n".join([*lines, b""]))
        assert run(program, "--resume", unfinished) == 0
        assert outcome(unfinished) == whole

    @pytest.mark.parametrize(
        "config", ["{}", "", "not JSON", "[]", '{"arguments": {}}', '{"arguments": 3, "data": {}}']
    )
    def test_config(self, unfinished, failed, config):
        (unfinished / "config.json").write_text(config)
        before = contents(unfinished)
        for arguments in (["--resume", unfinished], ["--out", unfinished]):
            error = failed(2, *arguments)
            assert "config.json is damaged" in error and "start a new run with another --out" in error
        assert contents(unfinished) == before

    @pytest.mark.parametrize("value", [None, [], True, 9])
    def test_an_argument_in_the_config(self, unfinished, failed, value):
        config = read_json(unfinished / "config.json")
        config["arguments"]["hidden"] = value
        (unfinished / "config.json").write_text(json.dumps(config))
        assert "config.json is damaged (the checksum" in failed(2, "--resume", unfinished)

    def test_an_invalid_argument(self, unfinished, failed):
        change_arguments(unfinished, hidden=-1)
        assert "'-1' is not an integer >= 1" in failed(2, "--resume", unfinished)

    def test_a_run_of_another_program(self, unfinished, failed):
        change_arguments(unfinished, program="digits")
        assert "a run of another program, digits" in failed(2, "--resume", unfinished)

    @pytest.mark.parametrize(
        ("part", "new"),
        [
            ('"identity"', '"idEntity"'),
            ('"pending"', '"pendinG"'),
            ('"seconds": ', '"seconds": -'),
            ("{", "[{"),
        ],
    )
    def test_the_note_of_a_checkpoint(self, unfinished, whole, capsys, part, new):
        """A checkpoint whose note is damaged is skipped, and nothing is lost."""
        note = unfinished / "checkpoints" / "14.json"
        note.write_text(note.read_text().replace(part, new, 1))
        assert run(program, "--resume", unfinished) == 0
        assert "checkpoint 14 is damaged and is skipped" in capsys.readouterr().err
        assert outcome(unfinished) == whole


@contextlib.contextmanager
def file_size_limit(size):
    """Writing more than ``size`` bytes into a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestUnwritableFiles:
    @pytest.mark.parametrize(
        ("size", "file"), [(100, "config.json"), slow(4000, "checkpoints/7.safetensors")]
    )
    def test_a_new_run(self, tmp_path, failed, whole, size, file):
        with file_size_limit(size):
            assert f"{tmp_path / file}: File too large; correct this" in failed(
                1, *ARGUMENTS, "--out", tmp_path
            )
        again = ["--resume", tmp_path] if "checkpoints" in file else [*ARGUMENTS, "--out", tmp_path]
        assert run(program, *again) == 0
        assert outcome(tmp_path) == whole

    @pytest.mark.slow
    def test_the_checkpoints_before_remain(self, unfinished, failed, whole):
        saved = contents(unfinished / "checkpoints")
        with file_size_limit(4000):
            error = failed(1, "--resume", unfinished)
        assert "/21.safetensors: File too large; correct this, then resume with: python" in error
        assert error.endswith(f" --resume {unfinished}\n")
        assert contents(unfinished / "checkpoints") == saved
        assert run(program, "--resume", unfinished) == 0
        assert outcome(unfinished) == whole

    def test_a_line_that_does_not_fit(self, tmp_path):
        """The complete lines before it can be read."""
        given = {"out": tmp_path, "resume": None, "tensorboard": False}
        with Run(types.SimpleNamespace(**given), data={}, weights=0) as measured:
            with file_size_limit(60), pytest.raises(OSError) as caught:
                for step in range(3):  # of the third line, a part is written
                    measured.log({"step": step, "loss": 0.5})
            assert caught.value.filename == str(tmp_path / "metrics.jsonl")
            assert [row["step"] for row in measured.rows_until(100)] == [0, 1]

    def test_a_folder_in_the_place_of_a_file(self, tmp_path, failed):
        (tmp_path / "weights.safetensors").mkdir()
        assert "weights.safetensors: Is a directory" in failed(1, "--steps", 3, "--out", tmp_path)

    @pytest.mark.slow
    def test_tensorboard(self, tmp_path, failed, monkeypatch):
        """TensorBoard's files are written on this thread, so their errors end the run too."""

        class Writer:
            def __init__(self, prefix):
                self.file, self.rows = open(prefix, "wb", buffering=0), 0

            def write_event(self, event):
                self.rows += 1
                self.file.write(1000 * b"x")

            def flush(self):
                pass

            def close(self):
                self.file.close()

        modules = {
            "tensorboardX": {},
            "tensorboardX.event_file_writer": {"EventsWriter": Writer},
            "tensorboardX.proto": {},
            "tensorboardX.proto.event_pb2": {"Event": dict},
            "tensorboardX.summary": {"scalar": lambda name, value: (name, value)},
        }
        for name, contents in modules.items():
            module = types.ModuleType(name)
            vars(module).update(contents)
            monkeypatch.setitem(sys.modules, name, module)
        out = tmp_path / "out"
        assert run(program, "--steps", 20, "--tensorboard", "--out", out) == 0
        assert (out / "tensorboard" / "events").stat().st_size == 1000 * sum(map(len, rows_of(out)))
        with file_size_limit(10_000):
            assert "File too large" in failed(1, "--steps", 40, "--tensorboard", "--out", tmp_path / "full")

    @pytest.mark.slow
    def test_the_standard_output(self, tmp_path):
        command = [sys.executable, program.__file__, "--steps", "2", "--out", tmp_path]
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith("tiny: the output of this program: No space left on device; correct")
        assert done.stderr.count("\n") == 1


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class TestLock:
    def test_a_run_in_progress(self, tmp_path, failed, monkeypatch, whole):
        errors = []

        def start_others():
            errors.append(failed(2, "--resume", tmp_path))
            errors.append(failed(2, *ARGUMENTS, "--out", tmp_path))

        at_step(monkeypatch, 20, start_others)
        assert run(program, *ARGUMENTS, "--out", tmp_path) == 0
        assert len(errors) == 2
        assert all(f"another process is running in {tmp_path}" in error for error in errors)
        assert outcome(tmp_path) == whole

    def test_a_killed_process_releases_the_lock(self, unfinished, failed):
        code = """if True:
            import fcntl, sys
            file = open(sys.argv[1])
            fcntl.flock(file, fcntl.LOCK_EX)
            print(flush=True)
            input()
        """
        holder = subprocess.Popen(
            [sys.executable, "-c", code, unfinished / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            holder.stdout.readline()
            assert "another process is running" in failed(2, "--resume", unfinished)
        finally:
            holder.kill()
            holder.communicate()
        assert run(program, "--resume", unfinished) == 0

    def test_a_run_that_another_process_has_finished(self, unfinished, monkeypatch, capsys):
        """It is finished between reading the arguments and taking the lock."""
        learn = program.learn

        def late(args):
            if not late.called:
                late.called = True
                assert run(program, "--resume", unfinished) == 0
            learn(args)

        late.called = False
        monkeypatch.setattr(program, "learn", late)
        assert run(program, "--resume", unfinished) == 0
        assert "already finished" in capsys.readouterr().out
        assert rows(unfinished)[-1]["step"] == 30


@pytest.mark.parametrize("name", daily(["char_lm", "digits"]))
@pytest.mark.parametrize("seconds", daily([0.3, 0.5, 1, 2, 3, 4, 6], 0.3, 1))
def test_early_ctrl_c(name, seconds, tmp_path):
    """During the imports, reading, compiling, and the first steps."""
    # A shell's background jobs ignore SIGINT, and so would the program.
    code = "import os, signal, sys; signal.signal(2, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    program = [sys.executable, EXAMPLES / f"{name}.py", "--hidden", "8", "--out", tmp_path]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *program],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):  # until the second Python runs
        if Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")[1:2] == [str(program[1])]:
            break
        time.sleep(0.1)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.startswith(f"{name}: stopped") and error.count("\n") == 1


class TestFreedMemory:
    @pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="a setting of glibc")
    def test_pages_are_reused(self):
        """On the main thread, and on another one, where XLA computes."""
        code = """if True:
            import importlib.util, resource, sys, threading
            import numpy
            spec = importlib.util.spec_from_file_location("start", sys.argv[1])
            start = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(start)
            if sys.argv[2] == "keep":
                assert start.keep_freed_memory() is True

            def print_faults():
                def allocate():
                    numpy.ones(6_000_000), numpy.ones(6_000_000)  # 48 MB each

                allocate()
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                for _ in range(10):
                    allocate()
                print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

            print_faults()
            thread = threading.Thread(target=print_faults)
            thread.start()
            thread.join()
        """
        command = [sys.executable, "-c", code, EXAMPLES / "training" / "start.py"]
        without, kept = (
            [int(line) for line in subprocess.check_output([*command, how], text=True).splitlines()]
            for how in ("default", "keep")
        )
        assert all(few < many / 20 for few, many in zip(kept, without, strict=True)), (kept, without)

    @pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
    def test_another_c_library(self, monkeypatch, error):
        def library(name):
            if error is not AttributeError:
                raise error
            return object()

        monkeypatch.setattr(ctypes, "CDLL", library)
        assert start.keep_freed_memory() is False
