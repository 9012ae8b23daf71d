"""Checkpoints: a resumed run equals an uninterrupted one; damaged and foreign checkpoints are not loaded."""

import json
import os
import random
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
from helpers import slow
from training import UserError
from training.checkpoints import Checkpoints
from training_runs import ENVIRONMENT, change_arguments, outcome, rows, run

RUN = ["--steps", 60, "--checkpoint-every", 7]

pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture(scope="module")
def arguments():
    return RUN


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
        before = signal.getsignal(signal.SIGINT)  # the background jobs of a shell ignore SIGINT
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
        change_arguments(tmp_path, lr=0.5)
        assert run(program, "--resume", tmp_path) == 2
        assert "of another run: lr was 0.01, is 0.5" in capsys.readouterr().err


class State(NamedTuple):
    weights: jax.Array
    rest: tuple


IDENTITY = {"arguments": {"lr": 1.0}, "data": {"sha256": "abc"}}


class TestFolder:
    def state(self, value):
        noise = np.random.default_rng(0).normal(size=(200, 300)).astype(np.float32)
        return State(jnp.asarray(noise + value), (jnp.int32(value), (), jnp.bfloat16(0.5)))

    def save(self, folder, *steps):
        checkpoints = Checkpoints(folder, IDENTITY)
        for step in steps:
            checkpoints.save(step, self.state(step), seconds=step / 2)

    def restore(self, folder, identity=IDENTITY):
        return Checkpoints(folder, identity).restore(self.state(0))

    @pytest.fixture
    def folder(self, tmp_path):
        self.save(tmp_path, 1, 2, 3)
        return tmp_path

    def test_state_and_note_are_restored(self, folder):
        assert names(folder) == ["2.json", "2.safetensors", "3.json", "3.safetensors"]
        step, state, note = self.restore(folder)
        assert step == 3 and note["seconds"] == 1.5 and type(state) is State
        jax.tree.map(np.testing.assert_array_equal, state, self.state(3))
        assert jax.tree.map(lambda a: a.dtype, state) == jax.tree.map(lambda a: a.dtype, self.state(3))

    def test_no_checkpoint(self, tmp_path):
        assert self.restore(tmp_path / "new") is None

    def truncate(self, folder, step):
        path = folder / f"{step}.safetensors"
        os.truncate(path, path.stat().st_size // 2)

    def alter(self, folder, step):
        """Change one bit of the numbers."""
        path = folder / f"{step}.safetensors"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def delete(self, folder, step):
        (folder / f"{step}.safetensors").unlink()
        (folder / f"{step}.safetensors").touch()

    def alter_note(self, folder, step):
        (folder / f"{step}.json").write_bytes(b"{}")

    @pytest.mark.parametrize("damage", ["truncate", "alter", "delete", "alter_note"])
    def test_a_damaged_checkpoint_is_skipped(self, folder, capsys, damage):
        getattr(self, damage)(folder, 3)
        step, state, _ = self.restore(folder)
        assert step == 2 and "checkpoint 3 is damaged" in capsys.readouterr().err
        jax.tree.map(np.testing.assert_array_equal, state, self.state(2))
        assert names(folder) == ["2.json", "2.safetensors", "damaged-3.safetensors"]
        self.save(folder, 3)  # its step can be saved again
        assert self.restore(folder)[0] == 3

    def test_every_checkpoint_is_damaged(self, folder):
        for step in (2, 3):
            self.truncate(folder, step)
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
        state = State(jnp.zeros((3, 3)), (jnp.int32(0), (), jnp.bfloat16(0)))
        with pytest.raises(UserError, match=r"weights was float32\[200, 300\], is float32\[3, 3\]"):
            Checkpoints(folder, IDENTITY).restore(state)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- kills -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("moments", [["changes"], ["moments", "3"], slow(["moments", "100"])], ids="-".join)
def test_killed_during_a_save(tmp_path, moments):
    """The newest complete checkpoint is restored, and nothing counts as damaged."""
    command = [sys.executable, Path(__file__).parents[1] / "checkpoint_kills.py", tmp_path, *moments]
    output = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    kills = [json.loads(line) for line in output.stdout.splitlines()]
    for kill in kills:
        assert kill["saved"] <= kill["restored"] <= kill["saved"] + 1
        assert all(Path(name).suffix in (".json", ".safetensors") for name in kill["files"])
        assert {Path(name).stem for name in kill["files"]} <= {
            str(kill["restored"] - back) for back in range(3)
        }
    if moments == ["changes"]:  # 8 changes; the last save is not killed
        assert [kill["restored"] for kill in kills] == [2] * 5 + [3] * 4
    assert "damaged" not in output.stdout + output.stderr


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """Repeated SIGKILL and Ctrl-C during start, training and saving do not change the outcome."""
    command = [sys.executable, "-W", "error", Path(program.__file__)]
    options = ["--steps", "250", "--checkpoint-every", "7"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    began = time.monotonic()
    subprocess.run([*command, *options, "--out", whole], env=ENVIRONMENT, check=True, capture_output=True)
    took = time.monotonic() - began

    rng = random.Random(0)
    arguments = [*options, "--out", broken]
    ends = []
    for _ in range(8):
        process = subprocess.Popen([*command, *arguments], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
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
        subprocess.run([*command, "--resume", broken], env=ENVIRONMENT, check=True, capture_output=True)
    assert -signal.SIGKILL in ends and len(ends) > 2, ends
    assert outcome(broken) == outcome(whole)
