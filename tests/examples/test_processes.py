"""Two processes on loopback, and eight devices in one: the losses of one device, and a clear end."""

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

PROGRAM = Path(__file__).parents[1] / "distributed_program.py"
ROOT = PROGRAM.parents[1]
WORD_LM = ROOT / "examples" / "word_lm.py"
HEARTBEAT = 30  # seconds, as the programs have it

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def started(devices, *arguments, process=None, port=None, processes=2, program=PROGRAM):
    """The program with so many virtual devices, as one process of several or by itself."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    env |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
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
    """Of each step; the runtime also prints here."""
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {row["step"]: row["loss"] for row in rows}


def finished(process, timeout=240):
    """The losses of a process that ends well."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, err
    return losses_of(out)


def assert_same(ours, expected):
    assert list(ours) == list(expected) and len(ours) > 0
    np.testing.assert_allclose(list(ours.values()), list(expected.values()), rtol=1e-5)


@pytest.fixture(scope="module")
def alone():
    """What one device computes."""
    return finished(started(1, "--mesh", "data=1"))


@pytest.mark.parametrize("mesh", ["data=4,model=2", "data=8", "model=4,data=2"])
def test_eight_devices_give_the_losses_of_one(alone, mesh):
    assert_same(finished(started(8, "--mesh", mesh)), alone)


@pytest.mark.parametrize("mesh", ["data=2,model=2", "model=4"])
def test_two_processes_give_the_losses_of_one(alone, mesh):
    """``data=2``: each process has its rows; ``model=4``: the units of one layer lie in both."""
    for losses in [finished(process) for process in pair(2, "--mesh", mesh)]:
        assert_same(losses, alone)


# --- a real program ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A text of eight words, again and again in another order."""
    rng = np.random.default_rng(0)
    words = "the a cat dog sat lay on under".split()
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text("".join(" ".join(rng.choice(words, 7)) + "\n" for _ in range(400)))
    return path


def word_lm(corpus, out):
    """What to train: so that it takes some seconds, and saves often."""
    sizes = "--hidden 8 --embedding 8 --window 5 --batch 4 --epochs 2 --checkpoint-every 20"
    return "--data", str(corpus), "--out", str(out), *sizes.split()


def curve(out):
    """Without what the clock said."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    """The curve of two processes, which is about that of one device."""
    alone, two = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("two")
    assert ended(started(1, *word_lm(corpus, alone), program=WORD_LM)) == [0]
    assert ended(*pair(2, *word_lm(corpus, two), "--mesh", "data=2,model=2", program=WORD_LM)) == [0, 0]
    for one, other in zip(curve(alone), curve(two), strict=True):
        for name, value in one.items():
            assert abs(value - other[name]) <= 2e-3 * abs(value), (name, one, other)
    return curve(two)


def ended(*processes, timeout=240):
    """Their exit codes; what was printed is shown if the test fails."""
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
def test_one_is_killed_the_other_ends_and_both_go_on(undisturbed, corpus, victim, tmp_path):
    """Without a hang, with a line that says what to do; going on leads to the very same curve."""
    out = tmp_path / "out"
    both = pair(2, *word_lm(corpus, out), "--mesh", "data=2,model=2", program=WORD_LM)
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob("checkpoints/*.json")):  # a checkpoint is whole
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
    assert "start all again with --resume" in err and "Traceback" not in err
    assert len(curve(out)) < len(undisturbed)
    assert ended(*pair(2, "--resume", str(out), program=WORD_LM)) == [0, 0]
    assert curve(out) == undisturbed
