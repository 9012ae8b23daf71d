"""Parameters as a flat dict of names, for files and for tools without support for NamedTuples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import listing, value_error
from lstm_jax._types import Array, Params
from lstm_jax.cells._base import as_base_cell


def flatten_params(params: Params) -> dict[str, Any]:
    """Every array of the parameters under its dotted name.

    A name is the path to the array: fields of NamedTuples, keys of dicts, indices of tuples. The names of a
    cell are its parameters' fields (``w_ih``), those of a network say the layer and the direction
    (``1.forward.w_ih``). They do not depend on values and stay the same between versions.

    Args:
        params: the parameters of any cell or network, or any other tree of arrays.

    Returns:
        ``{name: array}``, in the order of ``jax.tree.leaves``. A bare array has the name ``value``.

    Raises:
        ValueError: two arrays have one name, because a key of a dict contains a dot.

    >>> import lstm_jax
    >>> network = lstm_jax.Stack((lstm_jax.MinGRU(3, 8), lstm_jax.RNN(8, 8)))
    >>> list(lstm_jax.flatten_params(network.init(jax.random.key(0))))
    ['0.w_ih', '0.bias', '1.w_ih', '1.w_hh', '1.bias']
    """
    leaves = jax.tree.leaves_with_path(params)
    named = {leaf_name(path): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        counts = Counter(leaf_name(path) for path, _ in leaves)
        twice = [name for name, count in counts.items() if count > 1]
        raise value_error(
            f"flatten_params got more than one array named {listing(twice)}",
            "one array for each dotted name",
            "Rename the keys that contain a dot.",
        )
    return named


def leaf_name(path: Any) -> str:
    """The dotted name of a path in a tree, such as ``1.forward.w_hh``."""
    return jax.tree_util.keystr(path, simple=True, separator=".") if path else "value"


def unflatten_params(like: Any, arrays: Mapping[str, Any]) -> Params:
    """The inverse of :func:`flatten_params`.

    Args:
        like: the cell or network, or parameters (or ``jax.ShapeDtypeStruct``) of the same structure.
        arrays: NumPy or JAX arrays by dotted name; their order does not matter.

    Returns:
        Parameters of JAX arrays in the dtypes of ``arrays``.

    Raises:
        ValueError: a name is missing or unexpected, a shape differs (all are listed), or an array has 64
            bits and ``jax_enable_x64`` is off.

    >>> import lstm_jax
    >>> cell = lstm_jax.LSTM(3, 8)
    >>> arrays = lstm_jax.flatten_params(cell.init(jax.random.key(0)))
    >>> type(lstm_jax.unflatten_params(cell, arrays)).__name__
    'LSTMParams'
    """
    if not isinstance(arrays, Mapping):
        raise value_error(
            f"unflatten_params got arrays of type {type(arrays).__name__}",
            "a mapping of names to arrays",
            "Pass what flatten_params or lstm_jax.interop.load returned.",
        )
    optional: tuple[str, ...] = ()
    if all(callable(getattr(like, name, None)) for name in ("init", "initial_carry", "step")):
        optional = as_base_cell(like).optional_params
        like = jax.eval_shape(like.init, jax.random.key(0))
    shapes = {name: tuple(np.shape(leaf)) for name, leaf in flatten_params(like).items()}
    faults = {
        "missing": [f"{n} {s}" for n, s in shapes.items() if n not in arrays and n not in optional],
        "unexpected": [f"{name!s}" for name in arrays if name not in shapes],
        "of another shape": [
            f"{name} {tuple(np.shape(arrays[name]))}, expected {shape}"
            for name, shape in shapes.items()
            if name in arrays and tuple(np.shape(arrays[name])) != shape
        ],
    }
    if any(faults.values()):
        raise value_error(
            "unflatten_params got arrays that do not fit: "
            + "; ".join(f"{fault}: {listing(names)}" for fault, names in faults.items() if names),
            "the names and shapes of the network's parameters",
            "Give the network that the arrays were made with.",
        )
    return jax.tree.map_with_path(lambda path, _: _as_jax(leaf_name(path), arrays), like)


def _as_jax(name: str, arrays: Mapping[str, Any]) -> Array | None:
    if name not in arrays:
        return None  # optional
    value = arrays[name]
    dtype = getattr(value, "dtype", None)
    if dtype is not None and jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise value_error(
            f"unflatten_params got {name} of dtype {dtype}",
            f"{jax.dtypes.canonicalize_dtype(dtype)} or narrower, because jax_enable_x64 is off",
            'Cast it, or switch 64 bits on: jax.config.update("jax_enable_x64", True).',
        )
    return jnp.asarray(value)
