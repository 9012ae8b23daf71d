"""The run folder: the arguments of a run, its metrics, weights and plots.

With several processes, the first one writes and the others only read. The first one also locks the folder
until the run ends.

config.json         arguments, data and their checksum, versions, device, number of weights, date
metrics.jsonl       one line per group of steps: {"step": ..., "loss": ..., "seconds": ...}
checkpoints/        only while the run is unfinished
weights.safetensors, *.png, tensorboard/
.lock               empty; locked by the process that runs, and unlocked when it ends for any reason
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from lstm_jax.interop._writing import write_whole
from training import start
from training.data import digest
from training.distributed import any_process, barrier, is_first
from training.errors import Finished, UserError

try:
    import fcntl
except ImportError:  # Windows, where run folders are not locked
    fcntl = None  # type: ignore[assignment]

Row = dict[str, float]

PACKAGES = ("lstm_jax", "jax", "jaxlib", "numpy", "optax", "safetensors")
#: Arguments that do not affect the results, so a resumed run may change them.
CHANGEABLE = {"out", "resume", "mesh", "tensorboard", "checkpoint_every"}


class Run:
    """A new or resumed run folder. Use it as a context manager: leaving without an error finishes the run.

    Args:
        args: from a parser with :func:`training.add_run_arguments`.
        data: describes the data by values that JSON can represent, such as sizes and a
            :func:`training.digest`. A resumed run must have the same data.
        weights: the number of weights of the model.

    Raises:
        UserError: the folder cannot be created, it contains an unfinished run that is not resumed, or another
            process uses it.
        Finished: another process has finished the run that was to be resumed.
    """

    def __init__(self, args: argparse.Namespace, *, data: Mapping[str, Any], weights: int):
        self.args = args
        self.folder: Path = args.out
        self.identity = {"arguments": _to_json(args), "data": dict(data)}
        self.rows: list[Row] = []
        self._metrics: Any = None
        self._tensorboard: Any = None
        with ExitStack() as stack:
            stack.enter_context(_locked(self.folder))
            if args.resume:
                config = read_config(self.folder)
                if config.get("finished"):
                    raise Finished(f"the run in {self.folder} is already finished")
                check_same_data(self.folder, config["data"], self.identity["data"])
            else:
                self._begin(weights)
            if args.tensorboard and is_first():
                self._tensorboard = stack.enter_context(_tensorboard(self.folder / "tensorboard"))
            self._resources = stack.pop_all()
        start.resume_command = self.resume_command

    def _begin(self, weights: int) -> None:
        """Prepare the folder of a new run. A finished run in it is overwritten, an unfinished one is not."""
        metrics = self.folder / "metrics.jsonl"
        begun = any(self.checkpoints.glob("*")) or (metrics.exists() and metrics.stat().st_size > 0)
        if begun and not read_config(self.folder).get("finished"):
            raise UserError(
                f"{self.folder} contains an unfinished run: resume it with --resume {self.folder}, "
                "choose another folder with --out, or delete it"
            )
        barrier("a new run")  # every process has read the folder before it changes
        if is_first():
            self._write_first(weights)
        barrier("the run folder")

    def _write_first(self, weights: int) -> None:
        for old in (self.checkpoints, self.folder / "tensorboard"):
            if old.exists():
                shutil.rmtree(old)
        environment = {
            "weights": weights,
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "sha256": digest(json.dumps(self.identity)),
        }
        self.write_json("config.json", self.identity | environment)
        self.reset_rows([])

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def resume_command(self) -> str:
        """The command that resumes this run."""
        return f"python {shlex.quote(sys.argv[0])} --resume {shlex.quote(str(self.folder))}"

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the run folder atomically."""
        if is_first():
            write_whole(self.folder / name, data)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run folder atomically."""
        self.write(name, (json.dumps(value, indent=2) + "\n").encode())

    def log(self, row: Row) -> None:
        """Append a row to ``metrics.jsonl`` in one write, so that a kill leaves no partial line."""
        self.rows.append(row)
        if not is_first():
            return
        path, line = self.folder / "metrics.jsonl", (json.dumps(row) + "\n").encode()
        if self._metrics is None:
            self._metrics = self._resources.enter_context(open(path, "ab", buffering=0))
        with named_errors(path):
            if self._metrics.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._tensorboard:
            self._tensorboard(row)

    def values(self, name: str) -> list[float]:
        """The values of one metric so far, oldest first."""
        return [row[name] for row in self.rows if name in row]

    def reset_rows(self, rows: list[Row]) -> None:
        """Replace the rows of ``metrics.jsonl``. A resumed run drops the rows after its checkpoint."""
        self.rows = rows
        self.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def rows_until(self, step: int) -> list[Row]:
        """The rows of ``metrics.jsonl`` up to a step, without an incomplete last line.

        Raises:
            UserError: a line is damaged.
        """
        path = self.folder / "metrics.jsonl"
        try:
            lines = path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            lines = []
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if row["step"] <= step:
                    rows.append(row)
            except (ValueError, TypeError, LookupError):
                raise UserError(
                    f"line {number} of {path} is damaged: delete the line, then resume again"
                ) from None
        return rows

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        with self._resources:
            if kind is None:  # a finished run keeps its weights, not its checkpoints
                barrier("the end of the run")
                if is_first():
                    self.write_json("config.json", read_config(self.folder) | {"finished": True})
                    shutil.rmtree(self.checkpoints, ignore_errors=True)
                start.resume_command = ""


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a run folder."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict) or not all(
            isinstance(config.get(part), dict) for part in ("arguments", "data")
        ):
            raise ValueError("expected an object with the objects 'arguments' and 'data'")
        if config.get("sha256") != digest(json.dumps({part: config[part] for part in ("arguments", "data")})):
            raise ValueError("the checksum of 'arguments' and 'data' does not match")
        return config
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; is this a run folder?") from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}): restore it from a copy, or start a new run with another --out"
        ) from None


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Arguments that differ and affect the results, as texts like "lr was 1.0, is 0.5".

    Paths are not compared, because the digest of the data decides whether they are the same.
    """
    return [
        f"{name} was {was[name]}, is {value}"
        for name, value in now.items()
        if name in was and name not in CHANGEABLE and not isinstance(value, Path) and was[name] != value
    ]


def check_same_data(place: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise a UserError if the data of a resumed run have changed."""
    differ = [f"{name} was {was.get(name)}, is {now.get(name)}" for name in now if was.get(name) != now[name]]
    if differ:
        raise UserError(f"the data differ from those of the run in {place}: {'; '.join(differ)}")


def _to_json(args: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


# --- files -----------------------------------------------------------------------------------------


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Add the path to OSErrors: Python adds it only to those of functions that take a path."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Create a run folder and hold its lock. The operating system releases the lock when the process ends.

    Raises:
        UserError: another process holds the lock, or the folder cannot be created.
    """
    with ExitStack() as stack:
        free = True
        if is_first():
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot create the run folder {folder}: {error.strerror}") from None
            file = stack.enter_context(open(folder / ".lock", "ab"))
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
        if any_process(not free):
            raise UserError(
                f"another process is running in {folder}: wait until it ends or stop it, "
                "or choose another folder with --out"
            )
        yield


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Callable[[Row], None]]:
    """A function that writes a row for TensorBoard.

    ``tensorboardX.SummaryWriter`` writes on a thread, whose errors this process would not receive.
    """
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar
    except ImportError:
        raise UserError("--tensorboard needs a package: pip install 'lstm_jax[tensorboard]'") from None
    folder.mkdir(exist_ok=True)
    with named_errors(folder):
        writer = EventsWriter(str(folder / "events"))

    def write(row: Row) -> None:
        with named_errors(folder):
            for name, value in row.items():
                writer.write_event(
                    Event(wall_time=time.time(), step=int(row["step"]), summary=scalar(name, value))
                )
            writer.flush()

    try:
        yield write
    finally:
        with named_errors(folder):
            writer.close()
