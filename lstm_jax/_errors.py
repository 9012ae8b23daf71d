"""Errors in one form: what was given, what was expected, how to fix it.

All of them are ``ValueError`` and are raised while tracing, from shapes and dtypes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._types import is_float


def value_error(got: str, expected: str, hint: str) -> ValueError:
    """A ``ValueError`` in the library's form: what was given, what was expected, how to fix it."""
    return ValueError(f"{shorten(got, 450)}; expected {shorten(expected, 300)}. {shorten(hint, 300)}")


def shorten(text: str, limit: int) -> str:
    """The text; if it is longer than ``limit``, its beginning and its end.

    >>> shorten("0123456789", 8), shorten("0123", 8)
    ('01 ... 9', '0123')
    """
    if len(text) <= limit:
        return text
    kept = limit - 5
    return f"{text[: kept - kept // 3]} ... {text[-(kept // 3) :]}"


def listing(items: Iterable[Any], limit: int = 6) -> str:
    """The first ``limit`` items separated by commas, and the number of the others.

    >>> listing("abcdef", limit=2)
    'a, b and 4 more'
    """
    texts = [shorten(str(item), 60) for item in items]
    more = len(texts) - limit
    return ", ".join(texts[:limit]) + (f" and {more} more" if more > 0 else "")


def check_size(owner: str, name: str, value: Any, *, least: int = 1) -> None:
    """Check that a value is a whole number, ``least`` or more."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise value_error(
            f"{owner} got {name}={value!r}",
            f"a whole number, {least} or more",
            f"Give {name} as a Python int.",
        )


def is_number(value: Any) -> bool:
    """Whether a value is a Python or NumPy number; a bool is not."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_choice(owner: str, name: str, value: Any, choices: Sequence[Any]) -> None:
    """Check that a value is one of the given names."""
    if value not in choices:
        raise value_error(
            f"{owner} got {name}={value!r}", f"one of {', '.join(map(repr, choices))}", "Choose one of these."
        )


def canonical_dtype(owner: str, name: str, value: Any) -> np.dtype:
    """``np.dtype(value)``, so that ``jnp.float32`` and ``"float32"`` are one hyperparameter."""
    try:
        dtype = np.dtype(value)
    except TypeError:
        raise value_error(
            f"{owner} got {name}={value!r}",
            "a floating dtype",
            'Give jnp.float32, jnp.bfloat16 or "float32".',
        ) from None
    if not is_float(dtype):
        raise value_error(
            f"{owner} got {name}={dtype.name}",
            "a floating dtype",
            f"Give {name}=jnp.float32 or another float.",
        )
    return dtype


def check_key(owner: str, key: Any) -> None:
    """Check that a value is one PRNG key: a typed scalar key, or an old-style ``uint32`` key."""
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key.shape == ():
            return
        raise value_error(
            f"{owner} got an array of keys of shape {key.shape}", "one key", "Use jax.vmap to map over keys."
        )
    if dtype == np.uint32 and len(key.shape) == 1 and key.shape[0] in (2, 4):
        return
    got = f"key={key!r}" if dtype is None else f"a key of dtype {dtype} and shape {key.shape}"
    raise value_error(f"{owner} got {got}", "one PRNG key", "Make one with jax.random.key(0).")


def float_error(owner: str, name: str, value: Any, hint: str = "") -> ValueError:
    """The error for a value that is not an array of floats. The default hint is for inputs."""
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        got, expected = f"type {type(value).__name__}", "an array"
        hint = hint or f"Use jnp.asarray({name})."
    else:
        got, expected = f"dtype {value.dtype}", "a floating dtype"
        hint = (
            hint or f"Embed or one-hot {name} first (jax.nn.one_hot), or cast it with .astype(jnp.float32)."
        )
    return value_error(f"{owner} got {name} of {got}", expected, hint)


def check_float(owner: str, name: str, value: Any) -> None:
    """Check that ``value`` is an array of floats."""
    if not hasattr(value, "dtype") or not hasattr(value, "shape") or not is_float(value.dtype):
        raise float_error(owner, name, value)


def check_function(owner: str, name: str, value: Any) -> None:
    """Check that a value is callable and hashable."""
    if not callable(value):
        example = "jax.nn.initializers.zeros" if name.endswith("_init") else "jnp.tanh"
        raise value_error(
            f"{owner} got {name}={value!r}",
            "a function",
            f"Give {name}={example}, or another function.",
        )


def check_cell_methods(owner: str, cell: Any) -> None:
    """Check that an object has the three methods of a cell."""
    needed = ("init", "initial_carry", "step")
    missing = [name for name in needed if not callable(getattr(cell, name, None))]
    if missing or isinstance(cell, type):
        raise value_error(
            f"{owner} got {cell!r}" + (f" without {', '.join(missing)}" if missing else ""),
            "a cell: an object with init, initial_carry and step",
            "Give for instance lstm_jax.LSTM(input_size, hidden_size).",
        )


def check_tuple(owner: str, params: Any, count: int, what: str = "parameters") -> None:
    """Check for a tuple with one entry for each layer or direction of a network."""
    if not isinstance(params, (tuple, list)) or len(params) != count:
        got = (
            f"{len(params)} entries" if isinstance(params, (tuple, list)) else f"type {type(params).__name__}"
        )
        raise value_error(f"{owner} got {what} of {got}", f"a tuple of {count}", "Make it with init(key).")


def tree_text(tree: Any) -> str:
    """The nesting, dtypes and shapes of a tree of arrays, as text.

    >>> tree_text((np.zeros((4, 2), np.float32), [np.zeros(3, np.int32)]))
    '(float32[4,2], [int32[3]])'
    """
    if isinstance(tree, list):
        return f"[{', '.join(map(tree_text, tree))}]"
    if isinstance(tree, tuple):
        return f"({', '.join(map(tree_text, tree))}{',' if len(tree) == 1 else ''})"
    if isinstance(tree, dict):
        return f"{{{', '.join(f'{key!r}: {tree_text(value)}' for key, value in tree.items())}}}"
    if hasattr(tree, "dtype") and hasattr(tree, "shape"):
        return f"{tree.dtype}[{','.join(map(str, tree.shape))}]"
    return "None" if tree is None else type(tree).__name__


def check_structure(owner: str, carry: Any, like: Any, expected: str, hint: str) -> None:
    """Check that two carries have the same tree structure."""
    if jax.tree.structure(carry) != jax.tree.structure(like):  # type: ignore[operator]
        raise value_error(
            f"{owner} got or returned a carry {tree_text(carry)}", f"{expected}, {tree_text(like)}", hint
        )
