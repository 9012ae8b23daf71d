"""Validation of the arguments of ``unroll``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import check_choice, check_float, check_key, check_size, tree_text, value_error
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import as_base_cell, label
from lstm_jax.unrolling.registry import IMPLEMENTATIONS


def check_cell(owner: str, cell: Any) -> None:
    """Check for a hashable object with the three methods of a cell."""
    needed = ("init", "initial_carry", "step")
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
            "a hashable cell, since it is part of the key of the compiled program",
            "Make it a @dataclass(frozen=True) whose fields are numbers, names, tuples and functions.",
        ) from None


def check_static(owner: str, cell: Any, options: Any, xs: Any, lengths: Any, start: Any) -> Any:
    """Check the cell and the static arguments; returns the lengths as an array."""
    check_cell(owner, cell)
    check_choice("unroll", "implementation", options.implementation, IMPLEMENTATIONS)
    if options.checkpoint is not None and options.checkpoint != "sqrt":
        if isinstance(options.checkpoint, str):
            check_choice("unroll", "checkpoint", options.checkpoint, (None, "sqrt", "a window length (int)"))
        check_size("unroll", "checkpoint", options.checkpoint)
    if options.truncate is not None:
        check_size("unroll", "truncate", options.truncate)
    if isinstance(start, (int, np.integer)) and not isinstance(start, bool):
        check_size("unroll", "start", start, least=0)
    elif not hasattr(start, "dtype") or not jnp.issubdtype(start.dtype, jnp.integer) or start.shape != ():
        raise value_error(
            f"unroll got start={start!r}",
            "one whole number",
            "Give the absolute index of xs[0], for instance 0.",
        )
    return host_lengths(lengths, xs)


def check_sequence(cell: Any, xs: Any) -> tuple[int, ...]:
    """Check for a time-major array of floats; returns its batch axes."""
    check_inputs("unroll", "xs", cell, xs, "T, *batch")
    return tuple(xs.shape[1 : xs.ndim - as_base_cell(cell).event_ndim])


def check_inputs(owner: str, name: str, cell: Any, inputs: Any, axes: str) -> None:
    """Check for floats with ``axes`` (for instance ``"T, *batch"``), then the features of the cell."""
    check_float(owner, name, inputs)
    events = as_base_cell(cell).event_ndim
    least = events + axes.count("T")
    if inputs.ndim < least:
        raise value_error(
            f"{owner} got {name} of shape {tuple(inputs.shape)}",
            f"({axes}, {'D' if events == 1 else '*features'}): {least} axes or more",
            f"Put the features last: {name}[..., None] turns a series of numbers into one with one feature.",
        )
    size = getattr(cell, "input_size", None)
    if events == 1 and isinstance(size, int) and inputs.shape[-1] != size:
        raise value_error(
            f"{owner} got {name} of shape {tuple(inputs.shape)}",
            f"({axes}, {size}), {size} being the input features of {label(cell)}",
            "Build the cell with another input size, or move the axes so that the features are last.",
        )


def host_lengths(lengths: Any, xs: Any, owner: str = "unroll") -> Any:
    """Lengths as an array. Python and NumPy values must lie in [0, T]."""
    if lengths is None or isinstance(lengths, (jax.Array, jax.ShapeDtypeStruct)):
        return lengths
    try:
        known = np.asarray(lengths)
    except (TypeError, ValueError):
        raise value_error(
            f"{owner} got lengths={lengths!r}", "an array of whole numbers", "Give one length per row."
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
    """Check shapes and dtypes of lengths, mask, resets and key."""
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
                f"one length per row: shape {batch}",
                "Remove the time axis of lengths, or use jax.vmap for one length per call.",
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
                f"one flag per step and row, time first: shape {(xs.shape[0], *batch)}",
                f"Transpose it, or broadcast it: jnp.broadcast_to({name}, ...).",
            )
    if key is not None:
        check_key(owner, key)


def check_carries(
    cell: Any, params: Params, xs: Array, carry: Carry | None, reset_to: Carry | None, resets: Any
) -> tuple[Carry | None, Carry | None]:
    """``carry`` and ``reset_to`` in the structure of the cell's own carry, with their shapes checked."""
    if reset_to is not None and resets is None:
        raise value_error(
            "unroll got reset_to without resets",
            "both",
            "Pass resets, (T, *batch) bool, or omit reset_to.",
        )
    if carry is None and reset_to is None:
        return None, None
    batch = tuple(xs.shape[1 : xs.ndim - as_base_cell(cell).event_ndim])
    own = jax.eval_shape(lambda p: cell.initial_carry(batch, p), params)
    if carry is not None:
        carry = carry_like("unroll", cell, "carry", carry, own)
    if reset_to is not None:
        T = xs.shape[0]
        timed = jax.tree.map(lambda a: jax.ShapeDtypeStruct((T, *a.shape), a.dtype), own)
        reset_to = carry_like("unroll", cell, "reset_to", reset_to, timed)
    return carry, reset_to


def carry_like(owner: str, cell: Any, name: str, given: Carry, own: Carry, hint: str = "") -> Carry:
    """``given`` in the structure of ``own``; tuples, lists and NamedTuples are equivalent."""
    if not hint:
        hint = {
            "carry": "Make one with cell.initial_carry(batch_shape), or pass on what unroll returned.",
            "reset_to": "Give a carry with a leading time axis, as return_carries=True returns it.",
        }[name]
    if not _same_nesting(given, own):
        raise value_error(
            f"{owner} got {name} {tree_text(given)}", f"{tree_text(own)} for {label(cell)}", hint
        )
    leaves = jax.tree.leaves(given)
    for (path, want), have in zip(jax.tree.leaves_with_path(own), leaves, strict=True):
        where = name + jax.tree_util.keystr(path)
        if tuple(have.shape) != tuple(want.shape):
            raise value_error(
                f"{owner} got {where} of shape {tuple(have.shape)}", f"shape {tuple(want.shape)}", hint
            )
        if jnp.issubdtype(want.dtype, jnp.floating) != jnp.issubdtype(have.dtype, jnp.floating):
            raise value_error(
                f"{owner} got {where} of dtype {have.dtype}", f"a dtype like {want.dtype}", hint
            )
    return jax.tree.unflatten(jax.tree.structure(own), leaves)


def _same_nesting(given: Any, own: Any) -> bool:
    if isinstance(own, (tuple, list)):
        if not isinstance(given, (tuple, list)) or len(given) != len(own):
            return False
        return all(map(_same_nesting, given, own))
    if hasattr(own, "dtype"):
        return hasattr(given, "dtype") and hasattr(given, "shape")
    return bool(jax.tree.structure(given) == jax.tree.structure(own))  # type: ignore[operator]
