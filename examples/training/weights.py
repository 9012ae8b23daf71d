"""Weights in a safetensors file, with the metadata that is needed to rebuild their network.

``lstm_jax.interop.load`` reads these files too, but without the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import safetensors
import safetensors.numpy

from lstm_jax import flatten_params, unflatten_params
from lstm_jax.interop._writing import write_whole
from training.distributed import barrier, is_first, to_host
from training.errors import UserError

FILE = "weights.safetensors"


def count(params: Any) -> int:
    """The number of weights in a pytree of arrays or of shapes (``jax.eval_shape``)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def save_weights(folder: Path, format: str, model: Mapping[str, Any], params: Any) -> None:
    """Write ``weights.safetensors``. ``model`` describes the network by values that JSON can represent."""
    arrays = flatten_params(to_host(params))
    if is_first():
        metadata = {"format": format, "model": json.dumps(dict(model))}
        write_whole(folder / FILE, safetensors.numpy.save(arrays, metadata))
    barrier("weights")


def load_weights(folder: Path, format: str, shapes_of: Callable[[dict[str, Any]], Any]) -> tuple[Any, Any]:
    """Read ``(model, params)`` from the ``weights.safetensors`` of a run folder.

    ``shapes_of(model)`` returns the weights' shapes as a pytree, for example by ``jax.eval_shape``.
    """
    path = folder / FILE
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except OSError as error:
        reason = error.strerror or "no such file"
        raise UserError(f"cannot read {path}: {reason}; is this the folder of a finished run?") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if metadata.get("format") != format:
        raise UserError(f"{path} was not written by this program")
    try:
        model = json.loads(metadata["model"])
        expected = shapes_of(model)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: its metadata describe no network ({error})") from None
    try:
        return model, unflatten_params(expected, arrays)
    except ValueError as error:
        raise UserError(f"{path} is damaged: its arrays do not fit the network in its metadata") from error
