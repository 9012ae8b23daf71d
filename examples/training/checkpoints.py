"""Checkpoints by orbax: written whole or not at all, read only where they are whole and of the same run.

A checkpoint is the state (any pytree of arrays, by the names of its leaves) and a note: the identity of the
run, its clock, the losses that wait for their row, and a digest of all arrays. A folder that was not
written to its end is not seen; one that was damaged later is passed over for the one before.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from training.data import digest
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
        self._open()

    def _open(self) -> None:
        options = self._ocp.CheckpointManagerOptions(
            max_to_keep=KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
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
        note |= {"identity": self.identity, "digest": _digest(arrays)}
        save = self._ocp.args
        self._manager.save(
            step,
            args=save.Composite(state=save.StandardSave(arrays), note=save.JsonSave(note)),
            force=True,
        )
        self._manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """``(step, state, note)`` of the last checkpoint that is whole; None where there is none at all.

        Args:
            like: a state of the same structure, shapes, dtypes and places.

        Raises:
            UserError: the checkpoint is of another run, or not one of them is whole.
        """
        steps = self.steps
        for step in reversed(steps):
            try:
                note = self._read_note(step)
            except Exception as error:  # of a damaged file, orbax says this and that
                self._pass_over(step, error)
                continue
            self._refuse_other(note["identity"])
            try:
                return step, self._read_state(step, like, note), note
            except Exception as error:
                self._pass_over(step, error)
        if steps:
            raise UserError(f"no checkpoint in {self.folder} is whole: begin anew with another --out")
        return None

    def close(self) -> None:
        self._manager.close()

    def _read_note(self, step: int) -> dict[str, Any]:
        read = self._ocp.args
        note = dict(self._manager.restore(step, args=read.Composite(note=read.JsonRestore())).note)
        if not {"identity", "digest"} <= set(note):
            raise ValueError("its note is not whole")
        return note

    def _read_state(self, step: int, like: Any, note: Mapping[str, Any]) -> Any:
        read = self._ocp.args
        shapes = {
            name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
            for name, a in by_name(like).items()
        }
        arrays = self._manager.restore(step, args=read.Composite(state=read.StandardRestore(shapes))).state
        if _digest(arrays) != note["digest"]:
            raise ValueError("its arrays are not those that were written")
        return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in shapes])

    def _refuse_other(self, was: Mapping[str, Any]) -> None:
        differ = differences(was["arguments"], self.identity["arguments"])
        if differ:
            raise UserError(f"the checkpoints in {self.folder} are of another run: {'; '.join(differ)}")
        refuse_other_data(self.folder, was["data"], self.identity["data"])

    def _pass_over(self, step: int, error: Exception) -> None:
        said = str(error).strip().split("\n")[0][:200]
        print(f"checkpoint {step} is damaged and is passed over: {said}", file=sys.stderr)
        self._manager.close()
        aside = self.folder / f"damaged-{step}"  # its step will be saved anew
        shutil.rmtree(aside, ignore_errors=True)
        (self.folder / str(step)).rename(aside)
        self._open()


def _digest(arrays: Mapping[str, Any]) -> str:
    """Of all arrays; empty where other processes hold parts of them."""
    if not all(leaf.is_fully_addressable for leaf in arrays.values()):
        return ""
    return digest(*(part for name, leaf in sorted(arrays.items()) for part in (name, np.asarray(leaf))))
