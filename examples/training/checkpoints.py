"""Checkpoints: a kill does them no harm, and only those that are complete and of the same run are restored.

The checkpoint after step 7 is two files:

7.safetensors    the state (any pytree of arrays), by the names of its leaves (``lstm_jax.flatten_params``)
7.json           the identity of the run, its elapsed time, the metrics that are not yet in a row, and the
                 checksum of all this and of 7.safetensors

The second file is written last and deleted first, so a checkpoint is complete if and only if it exists. Older
checkpoints are deleted after the new one is complete. A kill at any moment therefore leaves the newest
complete checkpoint unchanged. If a checksum does not match, the previous checkpoint is used.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lstm_jax import flatten_params, interop
from lstm_jax.interop._writing import write_whole
from training.data import digest
from training.distributed import barrier, is_first, to_host
from training.errors import UserError
from training.runs import check_same_data, differences

KEPT = 2  # checkpoints to keep: the last one and the one before it


class Checkpoints:
    """The checkpoints of one run.

    With several processes, every process calls every method. The first one writes the whole state, and all
    of them read it.

    Args:
        folder: contains nothing else; it is created if it does not exist.
        identity: ``{"arguments": ..., "data": ...}`` of the run. Checkpoints of another run raise an error.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder, self.identity = folder, dict(identity)
        if is_first():
            folder.mkdir(exist_ok=True)
            complete = {path for step in self.steps for path in (self._state(step), self._note(step))}
            for path in set(folder.iterdir()) - complete:
                if not path.name.startswith("damaged-"):
                    path.unlink()
        barrier("checkpoints")

    @property
    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, in ascending order."""
        return sorted(int(path.stem) for path in self.folder.glob("*.json") if path.stem.isdecimal())

    def save(self, step: int, state: Any, **note: Any) -> None:
        """Save the state after ``step``. The checkpoint is complete when this returns.

        Raises:
            OSError: the checkpoint cannot be written. The checkpoints before it are unchanged.
        """
        arrays = to_host(flatten_params(state))
        if is_first():
            path = self._state(step)
            interop.save(path, arrays)
            note |= {"identity": self.identity, "shapes": _shapes(arrays)}
            note["sha256"] = digest(path.read_bytes(), json.dumps(note))
            write_whole(self._note(step), json.dumps(note).encode())
            for old in self.steps[:-KEPT]:
                self._note(old).unlink()
                self._state(old).unlink()
        barrier("a checkpoint")

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """``(step, state, note)`` of the last complete checkpoint; None if there is no checkpoint.

        Args:
            like: a state with the same structure, shapes, dtypes and shardings.

        Raises:
            UserError: the checkpoint is of another run, or every checkpoint is damaged.
        """
        notes = {step: self._read_note(step) for step in self.steps}
        intact = {step: note for step, note in notes.items() if note is not None}
        if not notes:
            return None
        if not intact:
            raise UserError(
                f"every checkpoint in {self.folder} is damaged: start a new run with another --out"
            )
        step = max(intact)
        leaves = flatten_params(like)
        self._check_same_run(intact[step], _shapes(leaves))
        found = interop.load(self._state(step))
        state = [jax.device_put(found[name], leaf.sharding) for name, leaf in leaves.items()]
        barrier("a restored checkpoint")
        for damaged in notes.keys() - intact.keys() if is_first() else ():
            print(f"checkpoint {damaged} is damaged and is skipped", file=sys.stderr)
            self._note(damaged).unlink()
            self._state(damaged).rename(self.folder / f"damaged-{damaged}.safetensors")
        return step, jax.tree.unflatten(jax.tree.structure(like), state), intact[step]

    def _state(self, step: int) -> Path:
        return self.folder / f"{step}.safetensors"

    def _note(self, step: int) -> Path:
        return self.folder / f"{step}.json"

    def _read_note(self, step: int) -> dict[str, Any] | None:
        """The note of a checkpoint; None if the checkpoint is damaged."""
        try:
            note = json.loads(self._note(step).read_bytes())
            checksum = note.pop("sha256")
            intact = checksum == digest(self._state(step).read_bytes(), json.dumps(note))
        except (FileNotFoundError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
            return None
        return note if intact else None

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
