"""Checkpoints by orbax: written whole or not at all, read only where they are whole and of the same run.

A checkpoint is a folder of orbax's, with the state (any pytree of arrays, by the names of its leaves) and
a note: the identity of the run, its clock, the losses that wait for their row. Beside it stand the
checksums of its files. They are written last: without them a checkpoint was not finished and is not
seen, and one that does not agree with them is passed over for the one before.
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
from training.distributed import first, meet
from training.errors import UserError
from training.runs import differences, refuse_other_data
from training.weights import by_name

KEPT = 2  # the last one, and the one before it


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: theirs alone; it is made where it is not there.
        identity: ``{"arguments": ..., "data": ...}`` of the run; a checkpoint of another is refused.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        try:
            import orbax.checkpoint as ocp
        except ImportError:
            raise UserError("checkpoints need orbax: pip install 'lstm_jax[examples]'") from None
        # Its warnings are about settings of ours that suit a single folder.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._ocp, self.folder, self.identity = ocp, folder.absolute(), dict(identity)
        if first():
            for unfinished in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished)
        meet("checkpoints")
        self._open()

    def _open(self) -> None:
        options = self._ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self._manager = self._ocp.CheckpointManager(
            self.folder, options=options, item_names=("state", "note")
        )

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, **note: Any) -> None:
        """The state after ``step``; it is on the disk when this returns."""
        arrays = by_name(state)
        note |= {"identity": self.identity, "shapes": _shapes(arrays)}
        items = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(arrays), note=self._ocp.args.JsonSave(note)
        )
        if first():  # those that orbax will remove are none from here on: it may be killed while it does
            for old in self.steps[: len(self.steps) - KEPT + 1]:
                self._checksums(old).unlink(missing_ok=True)
        self._manager.save(step, args=items, force=True)
        meet("a checkpoint")
        if first():
            self._seal(step)
        meet("its checksums")

    def _seal(self, step: int) -> None:
        """Write the checksums; those of checkpoints that are gone go."""
        write_whole(self._checksums(step), json.dumps(_checksums(self.folder / str(step))).encode())
        kept = {self._checksums(step) for step in self.steps}
        for old in set(self.folder.glob("*.json")) - kept:
            old.unlink()

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """``(step, state, note)`` of the last checkpoint that is whole; None where there is none at all.

        Args:
            like: a state of the same structure, shapes, dtypes and places.

        Raises:
            UserError: the checkpoint is of another run, or not one of them is whole.
        """
        finished = [step for step in self.steps if self._checksums(step).exists()]
        whole = [step for step in finished if self._is_whole(step)]
        if not finished:
            self._keep_only([])
            return None
        if not whole:
            raise UserError(f"no checkpoint in {self.folder} is whole: begin anew with another --out")
        for step in set(finished) - set(whole):
            print(f"checkpoint {step} is damaged and is passed over", file=sys.stderr)
        read = self._ocp.args
        note = dict(self._manager.restore(whole[-1], args=read.Composite(note=read.JsonRestore())).note)
        arrays = by_name(like)
        self._refuse_other(note, _shapes(arrays))
        self._keep_only(whole)
        like_them = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), arrays
        )
        items = read.Composite(state=read.StandardRestore(like_them))
        found = self._manager.restore(whole[-1], args=items).state
        return whole[-1], jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in arrays]), note

    def close(self) -> None:
        self._manager.close()

    def _checksums(self, step: int) -> Path:
        return self.folder / f"{step}.json"

    def _is_whole(self, step: int) -> bool:
        try:
            said = json.loads(self._checksums(step).read_text("utf-8"))
        except ValueError:
            return False
        return bool(said == _checksums(self.folder / str(step)))

    def _keep_only(self, steps: list[int]) -> None:
        """Put the others aside: their steps will be saved anew."""
        others = set(self.steps) - set(steps)
        self._manager.close()
        meet("closing")
        for step in others if first() else ():
            aside = self.folder / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / str(step)).rename(aside)
        meet("what is whole")
        self._open()

    def _refuse_other(self, note: Mapping[str, Any], shapes: Mapping[str, str]) -> None:
        was = note["identity"]
        differ = differences(was["arguments"], self.identity["arguments"])
        if not differ:
            refuse_other_data(self.folder, was["data"], self.identity["data"])
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
    """Of every file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in files}
