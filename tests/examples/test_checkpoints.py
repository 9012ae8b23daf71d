"""Checkpoints: a resumed run equals an uninterrupted one; damaged and foreign checkpoints are not loaded."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_program as program
from training import UserError
from training.checkpoints import Checkpoints
from training_runs import EXAMPLES, outcome, read_json, rows, run

RUN = ["--steps", 60, "--checkpoint-every", 7]


@pytest.fixture(scope="module", autouse=True)
def no_plots(jax_defaults):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program.plots, "learning_curve", lambda *args, **more: None)
        yield


@pytest.fixture(scope="module")
def arguments():
    return RUN


@pytest.fixture(scope="module")
def whole(finished):
    """The outcome of an uninterrupted run."""
    return outcome(finished)


def interrupt(monkeypatch, step, how):
    """Call ``how`` once, when the batch of a step is made."""
    shuffled, done = program.shuffled, []

    def wrapped(*args):
        batch_of, per_epoch = shuffled(*args)

        def interrupted(index):
            if index == step and not done:
                done.append(index)
                how()
            return batch_of(index)

        return interrupted, per_epoch

    monkeypatch.setattr(program, "shuffled", wrapped)


def fail():
    raise RuntimeError("power failure")


class TestResume:
    @pytest.mark.slow
    def test_after_an_error(self, whole, tmp_path, monkeypatch, capsys):
        """The error is in the middle of a row, of an epoch, and between two checkpoints."""
        out = tmp_path / "out"
        interrupt(monkeypatch, 37, fail)
        with pytest.raises(RuntimeError, match="power failure"):
            run(program, *RUN, "--out", out)
        steps = sorted(int(path.stem) for path in (out / "checkpoints").glob("*.json"))
        assert steps == [28, 35]
        assert run(program, "--out", out) == 2  # a new run does not overwrite an unfinished one
        assert "resume it with --resume" in capsys.readouterr().err
        assert run(program, "--resume", out) == 0
        assert outcome(out) == whole
        assert not (out / "checkpoints").exists()
        assert run(program, "--resume", out) == 0
        assert "already finished" in capsys.readouterr().out

    def test_after_ctrl_c(self, whole, tmp_path, monkeypatch, capsys):
        interrupt(monkeypatch, 24, lambda: os.kill(os.getpid(), signal.SIGINT))
        before = signal.getsignal(signal.SIGINT)  # background jobs of a shell ignore it
        assert run(program, *RUN, "--out", tmp_path) == 130
        error = capsys.readouterr().err
        assert "which is saved" in error and f"--resume {tmp_path}" in error
        assert signal.getsignal(signal.SIGINT) is before
        assert [row["step"] for row in rows(tmp_path)][:2] == [10, 16]  # the second ends with an evaluation
        assert run(program, "--resume", tmp_path) == 0
        assert outcome(tmp_path) == whole

    @pytest.mark.slow
    def test_an_incomplete_last_line(self, whole, tmp_path, monkeypatch):
        interrupt(monkeypatch, 50, fail)
        with pytest.raises(RuntimeError):
            run(program, *RUN, "--out", tmp_path)
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"step": 51, "lo')
        assert run(program, "--resume", tmp_path) == 0
        assert outcome(tmp_path) == whole

    def test_other_arguments(self, tmp_path, monkeypatch, capsys):
        interrupt(monkeypatch, 20, fail)
        with pytest.raises(RuntimeError):
            run(program, *RUN, "--out", tmp_path)
        capsys.readouterr()
        assert run(program, "--resume", tmp_path, "--lr", "0.5", "--hidden", "8") == 2
        assert "lr was 0.01, is 0.5" in capsys.readouterr().err
        # The checkpoint also contains the arguments, so changing config.json is not sufficient.
        config = read_json(tmp_path / "config.json")
        config["arguments"]["lr"] = 0.5
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert run(program, "--resume", tmp_path) == 2
        assert "of another run: lr was 0.01, is 0.5" in capsys.readouterr().err


class State(NamedTuple):
    weights: jax.Array
    rest: tuple


IDENTITY = {"arguments": {"lr": 1.0}, "data": {"sha256": "abc"}}


class TestFolder:
    def state(self, value):
        # Large enough that orbax stores its numbers in separate files.
        noise = np.random.default_rng(0).normal(size=(200, 300)).astype(np.float32)
        return State(jnp.asarray(noise + value), (jnp.int32(value), (), jnp.bfloat16(0.5)))

    @pytest.fixture
    def folder(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, IDENTITY)
        for step in (1, 2, 3):
            checkpoints.save(step, self.state(step), seconds=step / 2)
        checkpoints.close()
        return tmp_path

    def restore(self, folder, identity=IDENTITY):
        checkpoints = Checkpoints(folder, identity)
        try:
            return checkpoints.restore(self.state(0))
        finally:
            checkpoints.close()

    def test_state_and_note_are_restored(self, folder):
        assert sorted(path.name for path in folder.iterdir()) == ["2", "2.json", "3", "3.json"]
        step, state, note = self.restore(folder)
        assert step == 3 and note["seconds"] == 1.5 and type(state) is State
        jax.tree.map(np.testing.assert_array_equal, state, self.state(3))
        assert jax.tree.map(lambda a: a.dtype, state) == jax.tree.map(lambda a: a.dtype, self.state(3))

    def test_no_checkpoint(self, tmp_path):
        assert self.restore(tmp_path / "new") is None

    def truncate(self, path):
        largest = max((file for file in path.rglob("*") if file.is_file()), key=lambda f: f.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)

    def alter(self, path):
        """Change one byte of the numbers, which orbax does not detect."""
        largest = max((file for file in path.rglob("*") if file.is_file()), key=lambda f: f.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)

    def unmark(self, path):
        """The state of the folder before it is complete."""
        path.rename(path.with_name(path.name + ".orbax-checkpoint-tmp"))

    def unsummed(self, path):
        """The state of the folder before its checksums are written."""
        path.with_suffix(".json").unlink()

    def empty(self, path):
        shutil.rmtree(path)
        path.mkdir()

    @pytest.mark.parametrize("damage", ["truncate", "alter", "empty", "unmark", "unsummed"])
    def test_the_previous_checkpoint_is_restored(self, folder, capsys, damage):
        getattr(self, damage)(folder / "3")
        step, state, _ = self.restore(folder)
        assert step == 2
        jax.tree.map(np.testing.assert_array_equal, state, self.state(2))
        assert ("checkpoint 3 is damaged" in capsys.readouterr().err) == (not damage.startswith("un"))
        checkpoints = Checkpoints(folder, IDENTITY)  # its step can be saved again
        checkpoints.save(3, self.state(3), seconds=2)
        checkpoints.close()
        assert self.restore(folder)[0] == 3

    def test_every_checkpoint_is_damaged(self, folder):
        for step in "23":
            self.truncate(folder / step)
        with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
            self.restore(folder)

    @pytest.mark.parametrize(
        "identity, message",
        [
            ({"arguments": {"lr": 0.5}, "data": {"sha256": "abc"}}, "lr was 1.0, is 0.5"),
            ({"arguments": {"lr": 1.0}, "data": {"sha256": "xyz"}}, "sha256 was abc, is xyz"),
        ],
        ids=["arguments", "data"],
    )
    def test_of_another_run(self, folder, identity, message):
        with pytest.raises(UserError, match=message):
            self.restore(folder, identity)
        assert self.restore(folder)[0] == 3  # the checkpoint is unchanged

    def test_of_another_shape(self, folder):
        checkpoints = Checkpoints(folder, IDENTITY)
        with pytest.raises(UserError, match=r"weights was float32\[200, 300\], is float32\[3, 3\]"):
            checkpoints.restore(State(jnp.zeros((3, 3)), (jnp.int32(0), (), jnp.bfloat16(0))))
        checkpoints.close()


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """Repeated SIGKILL and Ctrl-C during start, training and saving do not change the outcome."""
    command = [sys.executable, "-W", "error", Path(program.__file__)]
    paths = [str(EXAMPLES), str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    options = ["--steps", "250", "--checkpoint-every", "7"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    began = time.monotonic()
    subprocess.run([*command, *options, "--out", whole], env=environment, check=True, capture_output=True)
    took = time.monotonic() - began

    rng = random.Random(0)
    arguments = [*options, "--out", broken]
    ends = []
    for _ in range(8):
        process = subprocess.Popen([*command, *arguments], env=environment, stderr=subprocess.PIPE, text=True)
        measured = broken / "metrics.jsonl"
        before = measured.stat().st_size if measured.exists() else 0
        kind = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT])
        try:
            if rng.random() < 0.8:  # most of them during training
                deadline = time.monotonic() + 3 * took
                while process.poll() is None and time.monotonic() < deadline:
                    if measured.exists() and measured.stat().st_size > before:
                        break
                    time.sleep(0.01)
            process.wait(rng.uniform(0, took / 5))
        except subprocess.TimeoutExpired:
            process.send_signal(kind)
        assert "damaged" not in process.communicate()[1]
        ends.append(process.returncode)
        if process.returncode == 0:
            break
        if (broken / "config.json").exists():
            arguments = ["--resume", broken]
    else:
        subprocess.run([*command, "--resume", broken], env=environment, check=True, capture_output=True)
    assert -signal.SIGKILL in ends and len(ends) > 2, ends
    assert outcome(broken) == outcome(whole)
