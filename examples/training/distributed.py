"""Several processes as one program: connecting them, their device mesh, their rows, and peer failures.

The same program runs in one process or in many. The launcher's environment specifies their number:

    srun python program.py --mesh data=16,model=4               Slurm: one process a GPU
    mpirun -n 2 python program.py --mesh data=2                 Open MPI
    JAX_COORDINATOR_ADDRESS=10.0.0.1:9876 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0 \
        python program.py --mesh data=2                         manually; 1 on the other machine

Call :func:`initialise` before anything uses JAX's devices, and train inside
``with exit_on_peer_failure(...)``.
"""

from __future__ import annotations

import atexit
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from training import start
from training.errors import UserError

#: The exit status after the failure of another process (EX_TEMPFAIL in sysexits.h). If the runtime aborts
#: this process before Python receives the error, the process ends by SIGABRT instead.
PEER_FAILED = 75
#: Variables of launchers that contain the number of processes.
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
#: Variables that contain the hosts of a TPU slice, separated by commas.
HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
#: Words in the runtime's errors when another process failed.
PEER_WORDS = ("gloo", "nccl", "coordination", "heartbeat", "unavailable", "connection", "socket", "deadline")
AXES = ("data", "model")


# --- connecting ------------------------------------------------------------------------------------


def initialise(heartbeat: int = 30, patience: int = 300) -> None:
    """Connect the processes that the launcher started. With one process this does nothing.

    JAX reads the environment of Slurm, Open MPI and TPUs. For other launchers, set
    ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``.

    Args:
        heartbeat: seconds without a heartbeat after which a process counts as failed, and all others exit.
        patience: seconds to wait for the other processes at the start.

    Raises:
        UserError: the environment is contradictory or incomplete, or the other processes do not connect.
    """
    count = launched_processes(os.environ)
    if count == 1:
        return
    process = _number(os.environ, "JAX_PROCESS_ID")
    if signal.getsignal(signal.SIGINT) is start.stop:  # the watcher needs a regular exit
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _start_watcher()
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
            f"cannot connect to the other processes: {reason} (if the launcher does not provide their "
            "address, set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID)"
        ) from error


def launched_processes(environment: Mapping[str, str]) -> int:
    """The number of processes that the environment specifies.

    >>> launched_processes({}), launched_processes({"SLURM_STEP_NUM_TASKS": "16"})
    (1, 16)
    >>> launched_processes({"TPU_WORKER_HOSTNAMES": "a,b,c,d"})
    4
    """
    count, process = (_number(environment, name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    counts = [number for name in COUNTS if (number := _number(environment, name)) is not None]
    counts += [len(environment[name].split(",")) for name in HOSTS if environment.get(name)]
    if count is None and not counts and (process is not None or "JAX_COORDINATOR_ADDRESS" in environment):
        raise UserError("set JAX_NUM_PROCESSES as well as JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID")
    count = max(counts, default=1) if count is None else count
    if count < 1 or (process is not None and process >= count):
        raise UserError(
            f"JAX_PROCESS_ID={process}, JAX_NUM_PROCESSES={count}: expected 0 <= ID < NUM_PROCESSES"
        )
    return count


def _number(environment: Mapping[str, str], name: str) -> int | None:
    word = environment.get(name)
    if word is not None and not word.isdecimal():
        raise UserError(f"{name}={word} is not an integer >= 0")
    return None if word is None else int(word)


# --- failures of other processes -------------------------------------------------------------------


@contextmanager
def exit_on_peer_failure(resume: str) -> Iterator[None]:
    """Exit with one line and the status ``PEER_FAILED`` if another process fails inside this context.

    Args:
        resume: the options that resume the run, such as ``"--resume runs/mine"``.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if jax.process_count() == 1 or not any(word in reason.lower() for word in PEER_WORDS):
            raise
        message = f"process {jax.process_index()} of {jax.process_count()}: another process failed ({reason})"
        print(f"{message}; restart all processes with {resume}", file=sys.stderr, flush=True)
        os._exit(PEER_FAILED)  # a regular exit would wait for the failed process


def _start_watcher() -> None:
    """Start a small process that prints a message if the runtime aborts this process from another thread.

    It reads from a pipe, which is closed when this process ends for any reason.
    """
    line = (
        f"{os.path.basename(sys.argv[0])}: this process (pid {os.getpid()}) was aborted, probably because "
        "another process failed (see above); restart all processes with --resume RUNFOLDER"
    )
    code = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"
    command = [sys.executable, "-ISc", code, line]
    # Its own session protects it from Ctrl-C.
    watcher = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    atexit.register(lambda: watcher.communicate(b"regular exit"))


# --- devices and rows ------------------------------------------------------------------------------


def parse_mesh(text: str) -> Mesh:
    """The mesh of ``--mesh``, such as ``data=4,model=2``. Both axes exist; an omitted axis has size 1.

    The devices are those of all processes. Neighbouring devices are along ``model``, the axis with the most
    communication. A single process may leave some of its devices unused.

    Raises:
        UserError: an axis is unknown or repeated, a size is not a positive integer, the product exceeds the
            number of devices, or, with several processes, is less than it.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise UserError(f"--mesh {text}: {part!r} is not data=N or model=N, or is repeated")
        sizes[name] = int(size)
    shape = tuple(sizes.get(name, 1) for name in AXES)
    devices, count, processes = jax.devices(), math.prod(shape), jax.process_count()
    if count > len(devices) or (processes > 1 and count < len(devices)):
        where = f" in {processes} processes" if processes > 1 else ""
        raise UserError(f"--mesh {text} needs {count} devices, but there are {len(devices)}{where}")
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:count])


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process has reached this point. Files written before it are then readable by all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether the flag is True in any process. Every process must call this at the same point."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def to_host(tree: Any) -> Any:
    """Gather every array as a NumPy array. Every process must call this at the same point."""
    return jax.tree.map(
        lambda a: (
            np.asarray(multihost_utils.process_allgather(a, tiled=True))
            if isinstance(a, jax.Array) and not a.is_fully_addressable
            else np.asarray(a)
        ),
        tree,
    )


def global_batch(batch: Any, mesh: Mesh, batch_axis: int = 1, *, rows: int | None = None) -> Any:
    """Place a batch on all devices, with its rows split over the axis ``data``.

    Args:
        batch: a pytree of NumPy arrays. Arrays without a batch axis are replicated.
        mesh: see :func:`parse_mesh`.
        batch_axis: the axis of an array that indexes its rows.
        rows: the total number of rows if each process passes its own rows; None if each process passes
            the whole batch.

    Raises:
        UserError: the number of rows is not divisible by the number of devices.
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
            raise UserError(f"a batch of {shape[batch_axis]} rows is not divisible by --mesh data={devices}")
        sharding = NamedSharding(mesh, PartitionSpec(*[None] * batch_axis, "data"))
        return jax.make_array_from_process_local_data(sharding, leaf, tuple(shape))

    return jax.tree.map(place, batch)
