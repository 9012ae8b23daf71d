"""Gates apart and together again, and sizes read from shapes: what several layouts need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import value_error
from lstm_jax.interop._entries import Entries

P = TypeVar("P")


def apart(array: Any, names: Sequence[str]) -> dict[str, Any]:
    """The gates that stand side by side on the last axis, by their names.

    >>> apart(np.arange(4.0), "ifgo")["g"]
    array([2.])
    """
    size = array.shape[-1] // len(names)
    return {name: array[..., k * size : (k + 1) * size] for k, name in enumerate(names)}


def together(gates: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The gates side by side in this order; NumPy's arrays stay NumPy's.

    >>> together({"i": np.zeros(1), "f": np.ones(1)}, "fi")
    array([1., 0.])
    """
    parts = [gates[name] for name in names]
    numpy = all(isinstance(part, np.ndarray) for part in parts)
    return np.concatenate(parts, -1) if numpy else jnp.concatenate(parts, -1)


def reordered(array: Any, given: Sequence[str], wanted: Sequence[str]) -> Any:
    """Gates from one order into another.

    >>> reordered(np.arange(4.0), "ifgo", "igfo")
    array([0., 2., 1., 3.])
    """
    return together(apart(array, given), wanted)


def zeros(shape: tuple[int, ...], like: Any) -> Any:
    """Zeros of another array's kind and dtype."""
    return np.zeros(shape, like.dtype) if isinstance(like, np.ndarray) else jnp.zeros(shape, like.dtype)


def plus(gates: dict[str, Any], name: str, number: int) -> dict[str, Any]:
    """The gates with a number added to one of them, in its own dtype.

    >>> plus({"i": np.zeros(1), "f": np.zeros(1)}, "f", 1)["f"]
    array([1.])
    """
    return gates | {name: gates[name] + gates[name].dtype.type(number)}


def size_of(entries: Entries, *votes: tuple[str, int]) -> int:
    """The size that most of ``(name, axis)`` have, so that one misshapen entry is blamed itself; else 0.

    >>> size_of(Entries("f", {"a": np.zeros((3, 2)), "b": np.zeros(3)}), ("a", 0), ("b", 0))
    3
    """
    shapes = [(entries.shape(name), axis) for name, axis in votes]
    found = Counter(shape[axis] for shape, axis in shapes if -len(shape) <= axis < len(shape))
    return found.most_common(1)[0][0] if found else 0


def unreadable_shapes(entries: Entries, expected: str, hint: str) -> NoReturn:
    """Refuse weights whose sizes cannot be read, telling all shapes."""
    shapes = ", ".join(f"{name} {entries.shape(name)}" for name in entries.names())
    raise value_error(f"{entries.owner} got {shapes}", expected, hint)


def each(parts: Mapping[str, Callable[[], P]]) -> list[P]:
    """What every part gives; of those that refuse, all are told in one ``ValueError``.

    >>> each({"layer 0": lambda: 1, "layer 1": lambda: int("two"), "layer 2": lambda: int("three")})
    Traceback (most recent call last):
    ...
    ValueError: layer 1: invalid literal for int() with base 10: 'two'
    layer 2: invalid literal for int() with base 10: 'three'
    """
    given, told = [], []
    for label, part in parts.items():
        try:
            given.append(part())
        except ValueError as error:
            told.append(f"{label}: {error}")
    if told:
        raise ValueError("\n".join(told))
    return given


def params_of(kind: type[P], **fields: Any) -> P:
    """Parameters of JAX's arrays."""
    return kind(**{name: None if value is None else jnp.asarray(value) for name, value in fields.items()})
