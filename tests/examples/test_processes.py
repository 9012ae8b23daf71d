"""Several processes and devices: the losses equal those of one device, and a failed process ends the run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from training_runs import rows

PROGRAM = Path(__file__).parents[1] / "distributed_program.py"
ROOT = PROGRAM.parents[1]
WORD_LM = ROOT / "examples" / "word_lm.py"
HEARTBEAT = 30  # seconds, as in the programs

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def started(devices, *arguments, process=None, port=None, processes=2, program=PROGRAM):
    """Start the program with virtual devices, as one of several processes or alone."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    env["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"  # the last one is used
    if process is not None:
        env |= {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(process),
        }
    command = [sys.executable, str(program), *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def pair(devices, *arguments, program=PROGRAM):
    port = free_port()
    return [started(devices, *arguments, process=i, port=port, program=program) for i in range(2)]


def losses_of(output):
    """The loss of each step. Lines of the runtime are ignored."""
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {row["step"]: row["loss"] for row in rows}


def finished(process, timeout=240):
    """The losses of a process, which must succeed."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, err
    return losses_of(out)


def assert_same(losses, expected):
    assert list(losses) == list(expected) and len(losses) > 0
    np.testing.assert_allclose(list(losses.values()), list(expected.values()), rtol=1e-5)


@pytest.fixture(scope="module")
def one_device():
    """The losses of one device."""
    return finished(started(1, "--mesh", "data=1"))


@pytest.mark.parametrize("mesh", ["data=4,model=2", "data=8", "model=4,data=2"])
def test_eight_devices_give_the_losses_of_one(one_device, mesh):
    assert_same(finished(started(8, "--mesh", mesh)), one_device)


@pytest.mark.parametrize("mesh", ["data=2,model=2", "model=4"])
def test_two_processes_give_the_losses_of_one(one_device, mesh):
    """``data=2`` gives each process its rows. ``model=4`` splits the units of a layer over both."""
    for losses in [finished(process) for process in pair(2, "--mesh", mesh)]:
        assert_same(losses, one_device)


# --- word_lm.py ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A text of eight words in random order."""
    rng = np.random.default_rng(0)
    words = "the a cat dog sat lay on under".split()
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text("".join(" ".join(rng.choice(words, 7)) + "\n" for _ in range(400)))
    return path


def word_lm(corpus, out):
    """Arguments of a training of some seconds with frequent checkpoints."""
    sizes = "--hidden 8 --embedding 8 --window 5 --batch 4 --epochs 2 --checkpoint-every 20"
    return "--data", str(corpus), "--out", str(out), *sizes.split()


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    """The metrics of two processes, which are close to those of one device."""
    alone, two = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("two")
    assert ended(started(1, *word_lm(corpus, alone), program=WORD_LM)) == [0]
    assert ended(*pair(2, *word_lm(corpus, two), "--mesh", "data=2,model=2", program=WORD_LM)) == [0, 0]
    for one, other in zip(rows(alone), rows(two), strict=True):
        for name, value in one.items():
            assert abs(value - other[name]) <= 2e-3 * abs(value), (name, one, other)
    return rows(two)


def ended(*processes, timeout=240):
    """The exit statuses. pytest shows the output of a failed test."""
    try:
        for process in processes:
            out, err = process.communicate(timeout=timeout)
            print(out[-2000:], err[-3000:])
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [process.returncode for process in processes]


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_process(uninterrupted, corpus, victim, tmp_path):
    """The other process exits with a one-line message. The resumed run has the same metrics."""
    out = tmp_path / "out"
    both = pair(2, *word_lm(corpus, out), "--mesh", "data=2,model=2", program=WORD_LM)
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob("checkpoints/*.json")):  # a complete checkpoint
            assert time.monotonic() < deadline and both[0].poll() is None and both[1].poll() is None
            time.sleep(0.05)
        both[victim].send_signal(signal.SIGKILL)
        began = time.monotonic()
        _, err = both[1 - victim].communicate(timeout=150)
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert time.monotonic() - began < 4 * HEARTBEAT
    assert both[1 - victim].returncode not in (0, None)
    assert "restart all processes with --resume" in err and "Traceback" not in err
    assert len(rows(out)) < len(uninterrupted)
    assert ended(*pair(2, "--resume", str(out), program=WORD_LM)) == [0, 0]
    assert rows(out) == uninterrupted
