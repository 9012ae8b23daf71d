"""The run folder: what was run, what was measured, the weights, the pictures.

Of several processes, the first one writes; the others only read.

config.json         arguments, data, versions, device, number of weights, date
metrics.jsonl       a line for each group of steps: {"step": ..., "loss": ..., "seconds": ...}
checkpoints/        while the run is not finished
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
from training.distributed import first, meet
from training.errors import UserError

Row = dict[str, float]

PACKAGES = ("lstm_jax", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "safetensors")
#: Arguments that may change when a run goes on: they do not change what it computes.
FREE = {"out", "resume", "mesh", "tensorboard", "checkpoint_every"}


class Run:
    """A run folder, made or gone on with. Use it as a context: leaving it without an error finishes the run.

    Args:
        args: of a parser that had :func:`training.add_run_arguments`.
        data: what the data are, in what JSON can hold: sizes, and a digest (:func:`training.digest`),
            by which a resumed run knows that its data are the same.
        weights: how many weights the model has.

    Raises:
        UserError: the folder cannot be made, or holds a run that is not finished and was not resumed.
    """

    def __init__(self, args: argparse.Namespace, *, data: Mapping[str, Any], weights: int):
        self.args = args
        self.folder: Path = args.out
        self.identity = {"arguments": plain(args), "data": dict(data)}
        self.rows: list[Row] = []
        self._metrics: Any = None
        self._tensorboard: Any = None
        if args.resume:
            config = read_config(self.folder)
            refuse_other_data(self.folder, config["data"], self.identity["data"])
        else:
            self._begin(weights)
        if args.tensorboard and first():
            self._tensorboard = _tensorboard_writer(self.folder / "tensorboard")

    def _begin(self, weights: int) -> None:
        """A folder for a new run: a finished one gives way, an unfinished one does not."""
        metrics = self.folder / "metrics.jsonl"
        begun = any(self.checkpoints.glob("*")) or (metrics.exists() and metrics.stat().st_size > 0)
        if begun and not read_config(self.folder).get("finished"):
            raise UserError(
                f"{self.folder} holds a run that is not finished: go on with --resume {self.folder}, "
                "name another folder with --out, or remove it"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the run folder {self.folder}: {error.strerror}") from None
        meet("a new run")  # all have looked, so that the folder may change
        if first():
            self._write_first(weights)
        meet("the run folder")

    def _write_first(self, weights: int) -> None:
        for old in (self.checkpoints, self.folder / "tensorboard"):
            shutil.rmtree(old, ignore_errors=True)
        about = {
            "weights": weights,
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.write("config.json", _json(self.identity | about))
        self.keep_rows([])

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def go_on(self) -> str:
        """The command that goes on with this run."""
        return f"python {shlex.quote(sys.argv[0])} --resume {shlex.quote(str(self.folder))}"

    def write(self, name: str, data: bytes) -> None:
        """A file of the run folder, whole or not at all."""
        if first():
            write_whole(self.folder / name, data)

    def log(self, row: Row) -> None:
        """Add a row to ``metrics.jsonl``: in one write, so that a kill leaves whole lines."""
        self.rows.append(row)
        if not first():
            return
        if self._metrics is None:
            self._metrics = open(self.folder / "metrics.jsonl", "ab", buffering=0)
        self._metrics.write((json.dumps(row) + "\n").encode())
        if self._tensorboard:
            for name, value in row.items():
                self._tensorboard.add_scalar(name, value, int(row["step"]))

    def keep_rows(self, rows: list[Row]) -> None:
        """Let ``metrics.jsonl`` hold these rows: what came after the checkpoint is measured once more."""
        self.rows = rows
        self.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def rows_until(self, step: int) -> list[Row]:
        """The rows of the file up to a step; a line that was not written to its end is left out."""
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
        if kind is None:  # the weights are what remains
            meet("the end of the run")
            if first():
                self.write("config.json", _json(read_config(self.folder) | {"finished": True}))
                shutil.rmtree(self.checkpoints, ignore_errors=True)


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments as JSON has them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a run folder."""
    path = folder / "config.json"
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; has a run begun there?") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is said of arguments that differ and matter: "lr was 1.0, is 0.5".

    A path may change: whether the data at its end are the same, their digest decides.
    """
    return [
        f"{name} was {was[name]}, is {value}"
        for name, value in now.items()
        if name in was and name not in FREE and not isinstance(value, Path) and was[name] != value
    ]


def refuse_other_data(place: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differ = [f"{name} was {was.get(name)}, is {now.get(name)}" for name in now if was.get(name) != now[name]]
    if differ:
        raise UserError(f"the data are not those that {place} was begun with: {'; '.join(differ)}")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


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
