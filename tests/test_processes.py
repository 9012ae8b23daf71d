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

PROGRAM = Path(__file__).parent / "distributed_program.py"
ROOT = PROGRAM.parent.parent
HEARTBEAT = 10

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def started(devices, *arguments, process=None, port=None, processes=2):
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
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def pair(devices, *arguments):
    port = free_port()
    return [started(devices, *arguments, process=process, port=port) for process in range(2)]


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


@pytest.mark.parametrize("victim", [0, 1])
def test_one_is_killed_the_other_ends_and_both_go_on(alone, victim, tmp_path):
    """Without a hang, with a line that says what to do; going on leads to the same losses."""
    checkpoint = str(tmp_path / "params.npz")
    arguments = ("--mesh", "data=2,model=2", "--save", checkpoint)
    both = pair(2, *arguments, "--pause", "0.5", "--steps", "1000", "--heartbeat", str(HEARTBEAT))
    try:
        for line in both[victim].stdout:
            if line.startswith('{"step": 1'):  # so what the step before left is saved
                break
        both[victim].send_signal(signal.SIGKILL)
        began = time.monotonic()
        _, err = both[1 - victim].communicate(timeout=5 * HEARTBEAT)
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert time.monotonic() - began < 4 * HEARTBEAT
    assert both[1 - victim].returncode not in (0, None)
    assert "start all again with --resume" in err and "Traceback" not in err
    with np.load(checkpoint) as file:
        reached = int(file["step"])
    assert 1 <= reached <= 5
    rest = {step: loss for step, loss in alone.items() if step >= reached}
    for losses in [finished(process) for process in pair(2, *arguments, "--resume", checkpoint)]:
        assert_same(losses, rest)
