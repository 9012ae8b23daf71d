"""Checkpoints by orbax: written atomically, and restored only if they are complete and of the same run.

A checkpoint is an orbax folder. It contains the state (any pytree of arrays, by the names of its leaves) and
a note: the identity of the run, its elapsed time, and the metrics that are not yet in a row. A file beside
the folder contains checksums of its files. They are written after the folder and deleted before it, so a
checkpoint is complete if and only if it has checksums. Older checkpoints are deleted after the new one is
complete, so a kill at any moment leaves the newest complete checkpoint unchanged. If the checksums do not
match the files, the previous checkpoint is used.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from lstm_jax import flatten_params
from training.data import digest
from training.distributed import barrier, is_first
from training.errors import UserError
from training.runs import check_same_data, differences, write_file

KEPT = 2  # checkpoints to keep: the last one and the one before it


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: contains nothing else; it is created if it does not exist.
        identity: ``{"arguments": ..., "data": ...}`` of the run. Checkpoints of another run raise an error.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        try:
            import orbax.checkpoint as ocp
        except ImportError:
            raise UserError("checkpoints need orbax: pip install 'lstm_jax[examples]'") from None
        # orbax warns about settings that are safe for a single folder.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._ocp, self.folder, self.identity = ocp, folder.absolute(), dict(identity)
        if is_first():
            for unfinished in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished)
        barrier("checkpoints")
        self._open()

    def _open(self) -> None:
        options = self._ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
        self._manager = self._ocp.CheckpointManager(
            self.folder, options=options, item_names=("state", "note")
        )

    @property
    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, in ascending order."""
        return [step for step in sorted(self._manager.all_steps()) if self._checksums(step).exists()]

    def save(self, step: int, state: Any, **note: Any) -> None:
        """Save the state after ``step``. The checkpoint is complete when this returns.

        Raises:
            OSError: the checkpoint cannot be written. The checkpoints before it are unchanged.
        """
        arrays = flatten_params(state)
        note |= {"identity": self.identity, "shapes": _shapes(arrays)}
        items = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(arrays), note=self._ocp.args.JsonSave(note)
        )
        with _os_errors(self.folder / str(step)):
            self._manager.save(step, args=items, force=True)
        barrier("a checkpoint")
        if is_first():
            checksums = json.dumps(_checksums(self.folder / str(step)))
            write_file(self._checksums(step), checksums.encode())
        barrier("its checksums")
        for old in self.steps[:-KEPT]:
            barrier("an old checkpoint")  # every process has read ``steps``
            if is_first():
                self._checksums(old).unlink()
            self._manager.delete(old)

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """``(step, state, note)`` of the last complete checkpoint; None if there is no checkpoint.

        Args:
            like: a state with the same structure, shapes, dtypes and shardings.

        Raises:
            UserError: the checkpoint is of another run, or every checkpoint is damaged.
        """
        complete = self.steps
        damaged = [step for step in complete if not self._is_intact(step)]
        intact = [step for step in complete if step not in damaged]
        if complete and not intact:
            raise UserError(
                f"every checkpoint in {self.folder} is damaged: start a new run with another --out"
            )
        if not complete:
            self._set_aside([])
            return None
        for step in damaged:
            print(f"checkpoint {step} is damaged and is skipped", file=sys.stderr)
        read = self._ocp.args
        arrays = flatten_params(like)
        with _os_errors(self.folder / str(intact[-1])):
            note = dict(self._manager.restore(intact[-1], args=read.Composite(note=read.JsonRestore())).note)
        self._check_same_run(note, _shapes(arrays))
        self._set_aside(damaged)
        targets = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), arrays)
        items = read.Composite(state=read.StandardRestore(targets))
        with _os_errors(self.folder / str(intact[-1])):
            found = self._manager.restore(intact[-1], args=items).state
        state = jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in arrays])
        return intact[-1], state, note

    def close(self) -> None:
        self._manager.close()

    def _checksums(self, step: int) -> Path:
        return self.folder / f"{step}.json"

    def _is_intact(self, step: int) -> bool:
        try:
            expected = json.loads(self._checksums(step).read_text("utf-8"))
        except ValueError:
            return False
        return bool(expected == _checksums(self.folder / str(step)))

    def _set_aside(self, damaged: list[int]) -> None:
        """Rename damaged checkpoints and delete incomplete ones, so that their steps can be saved again."""
        incomplete = set(self._manager.all_steps()) - set(self.steps)
        self._manager.close()
        barrier("closing")
        if is_first():
            for step in incomplete:
                shutil.rmtree(self.folder / str(step))
            for step in damaged:
                renamed = self.folder / f"damaged-{step}"
                shutil.rmtree(renamed, ignore_errors=True)
                self._checksums(step).unlink()
                (self.folder / str(step)).rename(renamed)
        barrier("intact checkpoints")
        self._open()

    def _check_same_run(self, note: Mapping[str, Any], shapes: Mapping[str, str]) -> None:
        was = note["identity"]
        differ = differences(was["arguments"], self.identity["arguments"])
        if not differ:
            check_same_data(self.folder, was["data"], self.identity["data"])
            names = sorted({*note["shapes"], *shapes})
            differ = [
                f"{name} was {note['shapes'].get(name)}, is {shapes.get(name)}"
                for name in names
                if note["shapes"].get(name) != shapes.get(name)
            ]
        if differ:
            raise UserError(f"the checkpoints in {self.folder} are of another run: {'; '.join(differ)}")


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Raise the errors of orbax as OSErrors. It raises many types, for example for a full disk."""
    try:
        yield
    except jax.errors.JaxRuntimeError:  # of several processes: another one failed
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".splitlines()[0]
        raise OSError(getattr(error, "errno", None) or errno.EIO, reason, str(path)) from error


def _shapes(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in arrays.items()}


def _checksums(folder: Path) -> dict[str, str]:
    """A checksum for every file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in files}
