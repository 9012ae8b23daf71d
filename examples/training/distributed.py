"""Several processes as one program: joining them, their mesh, their rows, and what is said when one dies.

A program is the same for one process and for many. The launcher's environment says how many there are:

    srun python program.py --mesh data=16,model=4               Slurm: one process a GPU
    mpirun -n 2 python program.py --mesh data=2                 Open MPI
    JAX_COORDINATOR_ADDRESS=10.0.0.1:9876 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0 \
        python program.py --mesh data=2                         by hand; 1 on the other machine

Call :func:`initialise` before anything asks jax for its devices, and train inside ``with together(...)``.
"""

from __future__ import annotations

import atexit
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from training.errors import UserError

#: The exit code after the end of another process: try again (sysexits.h has it as EX_TEMPFAIL). Where the
#: runtime ends this process before Python hears of it, that is SIGABRT.
GONE = 75
#: How many processes the launchers say there are.
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
#: The hosts of a TPU slice, with commas.
HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
#: What errors of the runtime speak of when it is another process that failed.
OF_PEERS = ("gloo", "nccl", "coordination", "heartbeat", "unavailable", "connection", "socket", "deadline")
AXES = ("data", "model")


# --- who is there ----------------------------------------------------------------------------------


def initialise(heartbeat: int = 30, patience: int = 300) -> None:
    """Join the processes that the launcher started; nothing happens where there is one.

    jax finds out by itself what Slurm, Open MPI and TPUs say; ``JAX_COORDINATOR_ADDRESS``,
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` say the same by hand.

    Args:
        heartbeat: seconds without a sign of life after which a process counts as dead, and all others end.
        patience: seconds to wait for the others at the start.

    Raises:
        UserError: the environment contradicts itself or is incomplete, or the others do not come.
    """
    count = launched(os.environ)
    if count == 1:
        return
    process = _number(os.environ, "JAX_PROCESS_ID")
    _witness()
    try:
        jax.distributed.initialize(
            coordinator_address=os.environ.get("JAX_COORDINATOR_ADDRESS"),
            num_processes=_number(os.environ, "JAX_NUM_PROCESSES"),
            process_id=process,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=heartbeat,
            initialization_timeout=patience,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot join the other processes: {reason} (JAX_COORDINATOR_ADDRESS=host:port, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID say where they are if the launcher does not)"
        ) from error


def launched(environment: Mapping[str, str]) -> int:
    """How many processes the environment speaks of.

    >>> launched({}), launched({"SLURM_STEP_NUM_TASKS": "16"}), launched({"TPU_WORKER_HOSTNAMES": "a,b,c,d"})
    (1, 16, 4)
    """
    count, process = (_number(environment, name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    counts = [number for name in COUNTS if (number := _number(environment, name)) is not None]
    counts += [len(environment[name].split(",")) for name in HOSTS if environment.get(name)]
    if count is None and not counts and (process is not None or "JAX_COORDINATOR_ADDRESS" in environment):
        raise UserError("JAX_NUM_PROCESSES is not set, and JAX_COORDINATOR_ADDRESS or JAX_PROCESS_ID is")
    count = max(counts, default=1) if count is None else count
    if count < 1 or (process is not None and process >= count):
        raise UserError(f"JAX_PROCESS_ID={process} and JAX_NUM_PROCESSES={count}: they count from 0")
    return count


def _number(environment: Mapping[str, str], name: str) -> int | None:
    word = environment.get(name)
    if word is not None and not word.isdecimal():
        raise UserError(f"{name}={word}: not a whole number")
    return None if word is None else int(word)


# --- who is gone -----------------------------------------------------------------------------------


@contextmanager
def together(go_on: str) -> Iterator[None]:
    """What runs inside ends in one line and with exit code ``GONE`` when another process has failed.

    Args:
        go_on: what to do then, ``"--resume runs/mine"``, say.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if jax.process_count() == 1 or not any(word in reason.lower() for word in OF_PEERS):
            raise
        me, all_ = jax.process_index(), jax.process_count()
        print(
            f"process {me} of {all_}: another process is gone ({reason}); start all again with {go_on}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(GONE)  # a proper end would wait for the dead


def _witness() -> None:
    """A small process that speaks for this one if it cannot: the runtime may end it from a thread of its own.

    It reads from a pipe, and this process's end, whatever the reason, closes the pipe.
    """
    line = (
        f"{os.path.basename(sys.argv[0])}: this process (pid {os.getpid()}) broke off, most likely because "
        "another one is gone, see above; start all again with --resume RUNFOLDER"
    )
    code = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"
    command = [sys.executable, "-ISc", code, line]
    # In a session of its own, so that Ctrl-C leaves it where it is.
    witness = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )

    def orderly() -> None:
        witness.communicate(b"ended")

    atexit.register(orderly)


# --- devices and rows ------------------------------------------------------------------------------


def parse_mesh(text: str) -> Mesh:
    """The mesh of ``--mesh``: ``data=4,model=2``. It always has both axes; one that is not named has 1.

    The devices are those of all processes; ``model`` goes over neighbours, which talk the most. One process
    by itself may leave some of its devices idle.

    Raises:
        UserError: an axis is unknown or comes twice, a size is no number, the product is more than the
            number of devices, or less where there are several processes.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise UserError(f"--mesh {text}: {part!r} is not data=N or model=N, each at most once")
        sizes[name] = int(size)
    shape = tuple(sizes.get(name, 1) for name in AXES)
    devices, count, processes = jax.devices(), math.prod(shape), jax.process_count()
    if count > len(devices) or (processes > 1 and count < len(devices)):
        where = f" in {processes} processes" if processes > 1 else ""
        raise UserError(f"--mesh {text} needs {count} devices, and there are {len(devices)}{where}")
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:count])


def first() -> bool:
    """Whether this process is the one that writes files and speaks to the user."""
    return jax.process_index() == 0


def meet(where: str) -> None:
    """Wait until every process has come here: what one wrote before, all can read after."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def any_of(flag: bool) -> bool:
    """Whether the flag is up in any process; all of them have to ask at the same time."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def on_host(tree: Any) -> Any:
    """Every array whole, as NumPy's; all processes have to ask at the same time."""
    return jax.tree.map(
        lambda a: (
            np.asarray(multihost_utils.process_allgather(a, tiled=True))
            if isinstance(a, jax.Array) and not a.is_fully_addressable
            else np.asarray(a)
        ),
        tree,
    )


def global_batch(batch: Any, mesh: Mesh, batch_axis: int = 1, *, rows: int | None = None) -> Any:
    """Arrays over all devices, their rows over the axis ``data``.

    Args:
        batch: a pytree of NumPy arrays. Arrays without a batch axis go to every device.
        mesh: see :func:`parse_mesh`.
        batch_axis: which axis of an array counts its rows.
        rows: how many rows all processes have together, where each brings its own; None where each has
            the whole batch (made of the same seed, say), of which every device takes its rows.

    Raises:
        UserError: the devices do not divide the rows.
    """
    devices = mesh.shape["data"]

    def place(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        if leaf.ndim <= batch_axis:
            return jax.make_array_from_process_local_data(
                NamedSharding(mesh, PartitionSpec()), leaf, leaf.shape
            )
        shape = list(leaf.shape)
        shape[batch_axis] = rows or shape[batch_axis]
        if shape[batch_axis] % devices:
            raise UserError(f"a batch of {shape[batch_axis]} rows does not divide over --mesh data={devices}")
        sharding = NamedSharding(mesh, PartitionSpec(*[None] * batch_axis, "data"))
        return jax.make_array_from_process_local_data(sharding, leaf, tuple(shape))

    return jax.tree.map(place, batch)
