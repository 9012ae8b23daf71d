"""Checkpoints by orbax: written atomically, and restored only if they are complete and of the same run.

A checkpoint is an orbax folder. It contains the state (any pytree of arrays, by the names of its leaves) and
a note: the identity of the run, its elapsed time, and the metrics that are not yet in a row. A file beside
the folder contains checksums of its files. The checksums are written last. A checkpoint without checksums is
incomplete and is ignored. If the checksums do not match, the previous checkpoint is used.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lstm_jax.interop.files import write_whole
from training.data import digest
from training.distributed import barrier, is_first
from training.errors import UserError
from training.runs import check_same_data, differences
from training.weights import by_name

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
        options = self._ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self._manager = self._ocp.CheckpointManager(
            self.folder, options=options, item_names=("state", "note")
        )

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in ascending order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, **note: Any) -> None:
        """Save the state after ``step``. The checkpoint is on disk when this returns."""
        arrays = by_name(state)
        note |= {"identity": self.identity, "shapes": _shapes(arrays)}
        items = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(arrays), note=self._ocp.args.JsonSave(note)
        )
        if is_first():  # invalidates the checkpoints that orbax deletes: a kill may interrupt the deletion
            for old in self.steps[: len(self.steps) - KEPT + 1]:
                self._checksums(old).unlink(missing_ok=True)
        self._manager.save(step, args=items, force=True)
        barrier("a checkpoint")
        if is_first():
            self._write_checksums(step)
        barrier("its checksums")

    def _write_checksums(self, step: int) -> None:
        """Write the checksums of a checkpoint, and delete those of deleted checkpoints."""
        write_whole(self._checksums(step), json.dumps(_checksums(self.folder / str(step))).encode())
        kept = {self._checksums(step) for step in self.steps}
        for old in set(self.folder.glob("*.json")) - kept:
            old.unlink()

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """``(step, state, note)`` of the last complete checkpoint; None if there is no checkpoint.

        Args:
            like: a state with the same structure, shapes, dtypes and shardings.

        Raises:
            UserError: the checkpoint is of another run, or every checkpoint is damaged.
        """
        finished = [step for step in self.steps if self._checksums(step).exists()]
        intact = [step for step in finished if self._is_intact(step)]
        if not finished:
            self._keep_only([])
            return None
        if not intact:
            raise UserError(
                f"every checkpoint in {self.folder} is damaged: start a new run with another --out"
            )
        for step in set(finished) - set(intact):
            print(f"checkpoint {step} is damaged and is skipped", file=sys.stderr)
        read = self._ocp.args
        note = dict(self._manager.restore(intact[-1], args=read.Composite(note=read.JsonRestore())).note)
        arrays = by_name(like)
        self._check_same_run(note, _shapes(arrays))
        self._keep_only(intact)
        targets = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), arrays)
        items = read.Composite(state=read.StandardRestore(targets))
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

    def _keep_only(self, steps: list[int]) -> None:
        """Rename the other checkpoints, so that their steps can be saved again."""
        others = set(self.steps) - set(steps)
        self._manager.close()
        barrier("closing")
        for step in others if is_first() else ():
            renamed = self.folder / f"damaged-{step}"
            shutil.rmtree(renamed, ignore_errors=True)
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


def _shapes(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in arrays.items()}


def _checksums(folder: Path) -> dict[str, str]:
    """A checksum for every file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in files}
