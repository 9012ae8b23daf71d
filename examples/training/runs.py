"""The run folder: the arguments of a run, its metrics, weights and plots.

With several processes, the first one writes and the others only read.

config.json         arguments, data, versions, device, number of weights, date
metrics.jsonl       one line per group of steps: {"step": ..., "loss": ..., "seconds": ...}
checkpoints/        only while the run is unfinished
weights.safetensors, *.png, tensorboard/
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from lstm_jax.interop.files import write_whole
from training.distributed import barrier, is_first
from training.errors import UserError

Row = dict[str, float]

PACKAGES = ("lstm_jax", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "safetensors")
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
        UserError: the folder cannot be created, or it contains an unfinished run that is not resumed.
    """

    def __init__(self, args: argparse.Namespace, *, data: Mapping[str, Any], weights: int):
        self.args = args
        self.folder: Path = args.out
        self.identity = {"arguments": _to_json(args), "data": dict(data)}
        self.rows: list[Row] = []
        self._metrics: Any = None
        self._tensorboard: Any = None
        if args.resume:
            config = read_config(self.folder)
            check_same_data(self.folder, config["data"], self.identity["data"])
        else:
            self._begin(weights)
        if args.tensorboard and is_first():
            self._tensorboard = _tensorboard_writer(self.folder / "tensorboard")

    def _begin(self, weights: int) -> None:
        """Prepare the folder of a new run. A finished run in it is overwritten, an unfinished one is not."""
        metrics = self.folder / "metrics.jsonl"
        begun = any(self.checkpoints.glob("*")) or (metrics.exists() and metrics.stat().st_size > 0)
        if begun and not read_config(self.folder).get("finished"):
            raise UserError(
                f"{self.folder} contains an unfinished run: resume it with --resume {self.folder}, "
                "choose another folder with --out, or delete it"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create the run folder {self.folder}: {error.strerror}") from None
        barrier("a new run")  # every process has read the folder before it changes
        if is_first():
            self._write_first(weights)
        barrier("the run folder")

    def _write_first(self, weights: int) -> None:
        for old in (self.checkpoints, self.folder / "tensorboard"):
            shutil.rmtree(old, ignore_errors=True)
        environment = {
            "weights": weights,
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
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
        if self._metrics is None:
            self._metrics = open(self.folder / "metrics.jsonl", "ab", buffering=0)
        self._metrics.write((json.dumps(row) + "\n").encode())
        if self._tensorboard:
            for name, value in row.items():
                self._tensorboard.add_scalar(name, value, int(row["step"]))

    def values(self, name: str) -> list[float]:
        """The values of one metric so far, oldest first."""
        return [row[name] for row in self.rows if name in row]

    def reset_rows(self, rows: list[Row]) -> None:
        """Replace the rows of ``metrics.jsonl``. A resumed run drops the rows after its checkpoint."""
        self.rows = rows
        self.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def rows_until(self, step: int) -> list[Row]:
        """The rows of ``metrics.jsonl`` up to a step, without an incomplete last line."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text("utf-8").split("\n")[:-1]
        except FileNotFoundError:
            lines = []
        return [row for row in map(json.loads, lines) if row["step"] <= step]

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._metrics:
            self._metrics.close()
        if self._tensorboard:
            self._tensorboard.close()
        if kind is None:  # a finished run keeps its weights, not its checkpoints
            barrier("the end of the run")
            if is_first():
                self.write_json("config.json", read_config(self.folder) | {"finished": True})
                shutil.rmtree(self.checkpoints, ignore_errors=True)


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a run folder."""
    path = folder / "config.json"
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; is this a run folder?") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


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


def _tensorboard_writer(folder: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs a package: pip install 'lstm_jax[tensorboard]'") from None
    return SummaryWriter(str(folder))
