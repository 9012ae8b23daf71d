"""A mapping of arrays that is taken apart entry by entry, and whose faults are told all at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lstm_jax._types import is_float


class Entries:
    """The arrays of a (nested) mapping by their full names, each to be taken once.

    What is missing, misshapen or no array of floats is noted; :meth:`done` raises one
    ``ValueError`` with all of it, and with whatever was never taken.

    >>> entries = Entries("from_torch", {"weight": np.zeros((2, 3)), "scale": np.zeros(2)})
    >>> entries.take("weight", (3, 2)).shape
    (3, 2)
    >>> entries.take("bias", (2,)).shape
    (2,)
    >>> try:
    ...     entries.done("Pass the state_dict of one torch.nn.LSTM.")
    ... except ValueError as error:
    ...     print(error)
    from_torch got weights that do not fit.
      misshapen: weight (2, 3), expected (3, 2)
      missing: bias (2,)
      unexpected: scale (2,)
    Pass the state_dict of one torch.nn.LSTM.
    """

    def __init__(self, owner: str, mapping: Mapping[str, Any], separator: str = "/") -> None:
        self.owner = owner
        if not isinstance(mapping, Mapping):
            raise ValueError(
                f"{owner} got {type(mapping).__name__}; expected a mapping of names to arrays. "
                "Pass the weights as a (nested) dict."
            )
        self.left: dict[str, Any] = dict(_flat(mapping, separator))
        self.faults: dict[str, list[str]] = {"misshapen": [], "not floats": [], "missing": []}

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def names(self) -> list[str]:
        """The entries that were not taken yet."""
        return list(self.left)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an entry, () where it is missing."""
        return tuple(np.shape(self.left[name])) if name in self.left else ()

    def take(self, name: str, shape: tuple[int, ...]) -> Any:
        """The array of this name; zeros of the shape where it will not do, which is noted.

        A size of 0 is one that is not known, because no entry tells it.
        """
        if name not in self.left:
            self.faults["missing"].append(f"{name} {_shown(shape)}")
            return np.zeros(shape, np.float32)
        value = self.left.pop(name)
        array = value if isinstance(value, jax.Array) else _as_array(self.owner, name, value)
        if not is_float(array.dtype):
            self.faults["not floats"].append(f"{name} of dtype {array.dtype}")
        if tuple(array.shape) != tuple(shape):
            self.faults["misshapen"].append(f"{name} {tuple(array.shape)}, expected {_shown(shape)}")
            return np.zeros(shape, np.float32)
        return array

    def note(self, fault: str, what: str) -> None:
        """Something else that does not fit, told with the rest."""
        self.faults.setdefault(fault, []).append(what)

    def done(self, hint: str) -> None:
        """Raise ``ValueError`` with all faults, if there were any."""
        unexpected = [f"{name} {self.shape(name)}" for name in self.left]
        told = [f"  {fault}: {', '.join(what)}" for fault, what in self.faults.items() if what]
        if unexpected:
            told.append(f"  unexpected: {', '.join(unexpected)}")
        if told:
            raise ValueError("\n".join([f"{self.owner} got weights that do not fit.", *told, hint]))


def _shown(shape: tuple[int, ...]) -> str:
    sizes = ", ".join(str(size) if size else "?" for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"


def _flat(mapping: Mapping[str, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, separator, f"{prefix}{name}{separator}")
        else:
            yield f"{prefix}{name}", value


def _as_array(owner: str, name: str, value: Any) -> Any:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{owner} got {name} of type {type(value).__name__}, which NumPy cannot read ({error}). "
            "Convert it first: .detach().cpu().float().numpy() of a tensor."
        ) from error
    if array.dtype == object:
        raise ValueError(f"{owner} got {name} of type {type(value).__name__}; expected an array of floats.")
    return array
