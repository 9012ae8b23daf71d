"""What ``unroll`` accepts; every error says what was given, what was expected and how to fix it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import check_choice, check_float, check_key, check_size, check_structure, value_error
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import event_ndim
from lstm_jax.unrolling.registry import IMPLEMENTATIONS


def check_network(owner: str, cell: Any) -> None:
    """A hashable object with the three methods, or a composition."""
    needed = ("init", "initial_carry", "compose" if hasattr(cell, "compose") else "step")
    missing = [name for name in needed if not callable(getattr(cell, name, None))]
    if missing or isinstance(cell, type):
        what = f"the class {cell.__name__}" if isinstance(cell, type) else f"a {type(cell).__name__}"
        raise value_error(
            f"{owner} got {what}" + (f" without {', '.join(missing)}" if missing else ""),
            "a cell: an object with init, initial_carry and step",
            "Pass for instance lstm_jax.LSTM(input_size, hidden_size).",
        )
    try:
        hash(cell)
    except TypeError:
        raise value_error(
            f"{owner} got a {type(cell).__name__} that cannot be hashed",
            "a hashable cell, since it is part of the key of the compiled loop",
            "Make it a @dataclass(frozen=True) whose fields are numbers, names, tuples and functions.",
        ) from None


def check_options(options: Any) -> None:
    """The options that are known when tracing."""
    check_choice("unroll", "implementation", options.implementation, IMPLEMENTATIONS)
    if options.checkpoint is not None and options.checkpoint != "sqrt":
        if isinstance(options.checkpoint, str):
            check_choice("unroll", "checkpoint", options.checkpoint, (None, "sqrt", "a window length (int)"))
        check_size("unroll", "checkpoint", options.checkpoint)
    if options.truncate is not None:
        check_size("unroll", "truncate", options.truncate)


def check_start(start: Any) -> None:
    """A whole number, traced or not."""
    if isinstance(start, (int, np.integer)) and not isinstance(start, bool):
        check_size("unroll", "start", start, least=0)
    elif not hasattr(start, "dtype") or not jnp.issubdtype(start.dtype, jnp.integer) or start.shape != ():
        raise value_error(
            f"unroll got start={start!r}",
            "one whole number",
            "Give the absolute index of xs[0], for instance 0.",
        )


def batch_shape(cell: Any, xs: Any) -> tuple[int, ...]:
    """The axes between time and features."""
    first = jax.tree.leaves(xs)[0]
    return tuple(first.shape[1 : first.ndim - event_ndim(cell)])


def check_sequence(cell: Any, xs: Any) -> tuple[int, ...]:
    """A time-major array of floats; returns its batch axes."""
    check_float("unroll", "xs", xs)
    events = event_ndim(cell)
    if xs.ndim < 1 + events:
        raise value_error(
            f"unroll got xs of shape {tuple(xs.shape)}",
            f"(T, *batch, {'D' if events == 1 else '*features'}): {1 + events} axes or more",
            "Put time first: xs[:, None] makes one feature of a series of numbers.",
        )
    size = getattr(cell, "input_size", None)
    if events == 1 and isinstance(size, int) and xs.shape[-1] != size:
        raise value_error(
            f"unroll got xs of shape {tuple(xs.shape)}",
            f"shape (T, *batch, {size}), {size} being the input features of {type(cell).__name__}",
            "Change input_size, or move the axes: time comes first, features last.",
        )
    return batch_shape(cell, xs)


def host_lengths(lengths: Any, xs: Any, owner: str = "unroll") -> Any:
    """Lengths as an array; those that the host knows are held against [0, T]."""
    if lengths is None or isinstance(lengths, (jax.Array, jax.ShapeDtypeStruct)):
        return lengths
    try:
        known = np.asarray(lengths)
    except (TypeError, ValueError):
        raise value_error(
            f"{owner} got lengths={lengths!r}", "an array of whole numbers", "Give one length a row."
        ) from None
    if not np.issubdtype(known.dtype, np.integer):
        raise value_error(
            f"{owner} got lengths of dtype {known.dtype}",
            "whole numbers",
            "Cast them: np.asarray(lengths, np.int32).",
        )
    T = np.shape(xs)[0] if np.ndim(xs) else 0
    if isinstance(T, (int, np.integer)) and known.size and (known.min() < 0 or known.max() > T):
        raise value_error(
            f"{owner} got lengths from {known.min()} to {known.max()} with {T} steps",
            f"lengths in [0, {T}]",
            "Clip them: np.clip(lengths, 0, len(xs)).",
        )
    return known.astype(np.int32)


def check_flags(
    xs: Array,
    batch: tuple[int, ...],
    lengths: Any,
    mask: Any,
    resets: Any,
    key: Any,
    owner: str = "unroll",
) -> None:
    """Lengths, mask, resets and key, by shape and dtype."""
    if lengths is not None:
        if not jnp.issubdtype(lengths.dtype, jnp.integer):
            raise value_error(
                f"{owner} got lengths of dtype {lengths.dtype}",
                "whole numbers",
                "Cast them: .astype(jnp.int32).",
            )
        if tuple(lengths.shape) != batch:
            raise value_error(
                f"{owner} got lengths of shape {tuple(lengths.shape)} with xs of shape {tuple(xs.shape)}",
                f"one length a row: shape {batch}",
                "Drop the time axis of lengths, or use jax.vmap for one length a call.",
            )
    for name, flags in (("mask", mask), ("resets", resets)):
        if flags is None:
            continue
        if not hasattr(flags, "dtype"):
            raise value_error(
                f"{owner} got {name} of type {type(flags).__name__}", "an array", f"Use np.asarray({name})."
            )
        if flags.dtype != jnp.bool_:
            raise value_error(f"{owner} got {name} of dtype {flags.dtype}", "bool", f"Use {name} != 0.")
        if tuple(flags.shape) != (xs.shape[0], *batch):
            raise value_error(
                f"{owner} got {name} of shape {tuple(flags.shape)} with xs of shape {tuple(xs.shape)}",
                f"one flag a step and row, time first: shape {(xs.shape[0], *batch)}",
                f"Transpose it, or broadcast it: jnp.broadcast_to({name}, ...).",
            )
    if key is not None:
        check_key(owner, key)


def check_carry(cell: Any, params: Params, carry: Carry, batch: tuple[int, ...]) -> None:
    """A given carry has the structure and the shapes of the cell's own."""
    expected = jax.eval_shape(lambda p: cell.initial_carry(batch, p), params)
    hint = "Make one with cell.initial_carry(batch_shape), or hand on what unroll returned."
    check_structure("unroll", carry, expected, f"that of {type(cell).__name__}", hint)
    for (path, want), have in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(carry), strict=True):
        name = "carry" + jax.tree_util.keystr(path)
        if tuple(have.shape) != tuple(want.shape):
            raise value_error(
                f"unroll got {name} of shape {tuple(have.shape)}", f"shape {tuple(want.shape)}", hint
            )
        if jnp.issubdtype(want.dtype, jnp.floating) != jnp.issubdtype(have.dtype, jnp.floating):
            raise value_error(f"unroll got {name} of dtype {have.dtype}", f"a dtype like {want.dtype}", hint)


def known_length(T: Any) -> int:
    """T as a number; a symbolic one cannot be rooted."""
    if isinstance(T, (int, np.integer)):
        return int(T)
    raise value_error(
        f"unroll got checkpoint='sqrt' with {T} steps",
        "a known number of steps",
        "Give a window length instead.",
    )
