"""Checkpoints: an interrupted run goes on to the very curve, and nothing damaged or foreign is loaded."""

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

pytest.importorskip("orbax.checkpoint", reason="an extra: examples")

from training_runs import EXAMPLES, Checkpoints, UserError, main, outcome, program, rows

RUN = ["--steps", 60, "--checkpoint-every", 7]


@pytest.fixture(scope="module", autouse=True)
def small_programs():
    """JAX as a user has it, but for quick compiles; and no pictures."""
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(program.plots, "learning_curve", lambda *args, **more: b"")
        with jax.numpy_rank_promotion("allow"):
            yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def whole(small_programs, tmp_path_factory):
    """What a run leaves that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(*RUN, "--out", folder) == 0
    return outcome(folder)


def interrupt(monkeypatch, step, how):
    """Let ``how`` happen when the batch of that step is made, once."""
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
    raise RuntimeError("the power is gone")


class TestGoingOn:
    @pytest.mark.slow
    def test_after_an_error(self, whole, tmp_path, monkeypatch, capsys):
        """In the middle of a group of losses, of an epoch, and of two checkpoints."""
        out = tmp_path / "out"
        interrupt(monkeypatch, 37, fail)
        with pytest.raises(RuntimeError, match="the power is gone"):
            main(*RUN, "--out", out)
        steps = sorted(int(path.stem) for path in (out / "checkpoints").glob("*.json"))
        assert steps == [28, 35]
        assert main("--out", out) == 2  # it is not lost by beginning anew in its folder
        assert "go on with --resume" in capsys.readouterr().err
        assert main("--resume", out) == 0
        assert outcome(out) == whole
        assert not (out / "checkpoints").exists()
        assert main("--resume", out) == 0
        assert "is finished" in capsys.readouterr().out

    def test_after_ctrl_c(self, whole, tmp_path, monkeypatch, capsys):
        interrupt(monkeypatch, 24, lambda: os.kill(os.getpid(), signal.SIGINT))
        before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
        assert main(*RUN, "--out", tmp_path) == 130
        said = capsys.readouterr().err
        assert "which is saved" in said and f"--resume {tmp_path}" in said
        assert signal.getsignal(signal.SIGINT) is before
        assert [row["step"] for row in rows(tmp_path)][:2] == [10, 16]  # an evaluation ends the second
        assert main("--resume", tmp_path) == 0
        assert outcome(tmp_path) == whole

    @pytest.mark.slow
    def test_a_last_line_that_was_not_written_to_its_end(self, whole, tmp_path, monkeypatch):
        interrupt(monkeypatch, 50, fail)
        with pytest.raises(RuntimeError):
            main(*RUN, "--out", tmp_path)
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"step": 51, "lo')
        assert main("--resume", tmp_path) == 0
        assert outcome(tmp_path) == whole

    def test_other_arguments_are_refused(self, tmp_path, monkeypatch, capsys):
        interrupt(monkeypatch, 20, fail)
        with pytest.raises(RuntimeError):
            main(*RUN, "--out", tmp_path)
        capsys.readouterr()
        assert main("--resume", tmp_path, "--lr", "0.5", "--hidden", "8") == 2
        assert "lr was 0.01, is 0.5" in capsys.readouterr().err
        # Not even by changing what the folder says of itself: the checkpoint knows.
        config = json.loads((tmp_path / "config.json").read_text())
        config["arguments"]["lr"] = 0.5
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert main("--resume", tmp_path) == 2
        assert "of another run: lr was 0.01, is 0.5" in capsys.readouterr().err


class State(NamedTuple):
    weights: jax.Array
    rest: tuple


IDENTITY = {"arguments": {"lr": 1.0}, "data": {"sha256": "abc"}}


class TestFolder:
    def state(self, value):
        # Large enough that its numbers lie in files of their own.
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

    def test_state_and_note_come_back(self, folder):
        assert sorted(path.name for path in folder.iterdir()) == ["2", "2.json", "3", "3.json"]
        step, state, note = self.restore(folder)
        assert step == 3 and note["seconds"] == 1.5 and type(state) is State
        jax.tree.map(np.testing.assert_array_equal, state, self.state(3))
        assert jax.tree.map(lambda a: a.dtype, state) == jax.tree.map(lambda a: a.dtype, self.state(3))

    def test_none_is_there(self, tmp_path):
        assert self.restore(tmp_path / "new") is None

    def truncate(self, path):
        largest = max((file for file in path.rglob("*") if file.is_file()), key=lambda f: f.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)

    def alter(self, path):
        """A byte of the numbers is another: orbax would not see it."""
        largest = max((file for file in path.rglob("*") if file.is_file()), key=lambda f: f.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)

    def unmark(self, path):
        """As it is until it was written to its end."""
        path.rename(path.with_name(path.name + ".orbax-checkpoint-tmp"))

    def unsummed(self, path):
        """As it is until its checksums are written."""
        path.with_suffix(".json").unlink()

    def empty(self, path):
        shutil.rmtree(path)
        path.mkdir()

    @pytest.mark.parametrize("damage", ["truncate", "alter", "empty", "unmark", "unsummed"])
    def test_the_one_before_is_taken(self, folder, capsys, damage):
        getattr(self, damage)(folder / "3")
        step, state, _ = self.restore(folder)
        assert step == 2
        jax.tree.map(np.testing.assert_array_equal, state, self.state(2))
        assert ("checkpoint 3 is damaged" in capsys.readouterr().err) == (not damage.startswith("un"))
        checkpoints = Checkpoints(folder, IDENTITY)  # and its step can be saved anew
        checkpoints.save(3, self.state(3), seconds=2)
        checkpoints.close()
        assert self.restore(folder)[0] == 3

    def test_none_is_whole(self, folder):
        for step in "23":
            self.truncate(folder / step)
        with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
            self.restore(folder)

    @pytest.mark.parametrize(
        "identity, said",
        [
            ({"arguments": {"lr": 0.5}, "data": {"sha256": "abc"}}, "lr was 1.0, is 0.5"),
            ({"arguments": {"lr": 1.0}, "data": {"sha256": "xyz"}}, "sha256 was abc, is xyz"),
        ],
        ids=["arguments", "data"],
    )
    def test_of_another_run(self, folder, identity, said):
        with pytest.raises(UserError, match=said):
            self.restore(folder, identity)
        assert self.restore(folder)[0] == 3  # it is not touched

    def test_of_another_shape(self, folder):
        checkpoints = Checkpoints(folder, IDENTITY)
        with pytest.raises(UserError, match=r"weights was float32\[200, 300\], is float32\[3, 3\]"):
            checkpoints.restore(State(jnp.zeros((3, 3)), (jnp.int32(0), (), jnp.bfloat16(0))))
        checkpoints.close()


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """SIGKILL and Ctrl-C, again and again, while it starts, trains, saves: the curve is that of one run."""
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
            if rng.random() < 0.8:  # most of them while it trains
                deadline = time.monotonic() + 3 * took
                while process.poll() is None and time.monotonic() < deadline:
                    if measured.exists() and measured.stat().st_size > before:
                        break
                    time.sleep(0.01)
            process.wait(rng.uniform(0, took / 5))
        except subprocess.TimeoutExpired:
            process.send_signal(kind)
        said = process.communicate()[1]
        assert "damaged" not in said
        ends.append(process.returncode)
        if process.returncode == 0:
            break
        if (broken / "config.json").exists():
            arguments = ["--resume", broken]
    else:
        subprocess.run([*command, "--resume", broken], env=environment, check=True, capture_output=True)
    assert -signal.SIGKILL in ends and len(ends) > 2, ends
    assert outcome(broken) == outcome(whole)
