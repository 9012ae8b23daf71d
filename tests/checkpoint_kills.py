"""Kill processes while they save checkpoints, and print what is restored afterwards.

    python checkpoint_kills.py FOLDER changes          kill before each change of a file that a save makes
    python checkpoint_kills.py FOLDER moments 20       kill at 20 random moments of a series of saves

One line of JSON per kill: ``{"saved": the last step whose save returned, "restored": ..., "files": [...]}``.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import jax.numpy as jnp
import numpy as np
from training.checkpoints import Checkpoints

IDENTITY = {"arguments": {}, "data": {}}
SIZE = 300_000
WRITES = {"open", "os.rename", "os.remove", "os.truncate"}  # audit events of Python


def in_child(function):
    """Call a function in a forked process. This process never uses JAX's devices, so it has no threads."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return child


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def save(folder, steps, saved=None, kill_at=None):
    """Save checkpoints; note each in the file ``saved``; exit before the ``kill_at``-th change of a file."""
    checkpoints, changes = Checkpoints(folder, IDENTITY), 0

    def hook(event, arguments):
        nonlocal changes
        if event in WRITES and str(arguments[0]).startswith(str(folder)) and arguments[1] not in ("r", "rb"):
            changes += 1
            if changes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_at:
        sys.addaudithook(hook)
    for step in steps:
        checkpoints.save(step, {"w": np.full(SIZE, step, np.float32)})
        if saved:
            os.write(saved, bytes([step]))


def restore(folder, answer):
    found = Checkpoints(folder, IDENTITY).restore({"w": jnp.zeros(SIZE)})
    step = None if found is None else found[0]
    assert step is None or (found[1]["w"] == step).all()
    os.write(answer, json.dumps(step).encode())


def report(folder, saved):
    """Restore in a new process, as ``--resume`` does."""
    read, write = os.pipe()
    assert wait(in_child(lambda: restore(folder, write))) == 0
    step = json.loads(os.read(read, 100))
    print(json.dumps({"saved": saved, "restored": step, "files": os.listdir(folder)}), flush=True)


def before_each_change(folder):
    """The third save of a run, which deletes the first checkpoint."""
    assert wait(in_child(lambda: save(folder / "first", [1, 2]))) == 0
    for kill_at in range(1, 100):
        case = shutil.copytree(folder / "first", folder / str(kill_at))
        status = wait(in_child(lambda case=case, k=kill_at: save(case, [3], kill_at=k)))
        report(case, 2 if status else 3)
        if not status:
            break


def at_random_moments(folder, kills):
    rng = random.Random(0)
    for kill in range(kills):
        case = folder / str(kill)
        read, write = os.pipe()
        child = in_child(lambda case=case, write=write: save(case, range(1, 200), write))
        os.close(write)
        saved = os.read(read, 1)  # the first save has returned
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert wait(child) == -signal.SIGKILL
        report(case, max(saved + os.read(read, 1000)))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    if sys.argv[2] == "changes":
        before_each_change(folder)
    else:
        at_random_moments(folder, int(sys.argv[3]))
