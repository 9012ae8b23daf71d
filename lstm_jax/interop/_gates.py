"""Split, join and reorder gates along the last axis of NumPy, JAX or traced arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _numpy_of(*arrays: Any) -> ModuleType:
    """``jnp`` where an array is JAX's, else ``np``."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def split_gates(array: Any, names: Sequence[str]) -> dict[str, Any]:
    """The gates by their names.

    >>> split_gates(np.arange(4.0), "ifgo")["g"]
    array([2.])
    """
    size = array.shape[-1] // len(names)
    return {name: array[..., k * size : (k + 1) * size] for k, name in enumerate(names)}


def join_gates(gates: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The gates side by side in this order.

    >>> join_gates({"i": np.zeros(1), "f": np.ones(1)}, "fi")
    array([1., 0.])
    """
    arrays = [gates[name] for name in names]
    return _numpy_of(*arrays).concatenate(arrays, -1)


def reorder_gates(array: Any, given: Sequence[str], wanted: Sequence[str]) -> Any:
    """Gates from one order into another.

    >>> reorder_gates(np.arange(4.0), "ifgo", "igfo")
    array([0., 2., 1., 3.])
    """
    return join_gates(split_gates(array, given), wanted)


def add_to_gate(array: Any, names: Sequence[str], gate: str, number: float) -> Any:
    """Add a number to one of the gates, in the array's dtype.

    >>> add_to_gate(np.zeros(4), "ifgo", "f", 1)
    array([0., 1., 0., 0.])
    """
    gates = split_gates(array, names)
    return join_gates(gates | {gate: gates[gate] + gates[gate].dtype.type(number)}, names)


def zeros(shape: tuple[int, ...], like: Any) -> Any:
    """Zeros with the dtype of another array, as a NumPy or JAX array like that one."""
    return _numpy_of(like).zeros(shape, like.dtype)


def stack_rows(*arrays: Any) -> Any:
    """The arrays as rows of one array."""
    return _numpy_of(*arrays).stack(arrays)


def negative_zeros(bias: Any) -> Any:
    """The second of two biases that are summed: -0.0, because x + 0.0 would turn x = -0.0 into 0.0."""
    return _numpy_of(bias).full_like(bias, -0.0)


def to_numpy(tree: Any) -> Any:
    """Contiguous NumPy arrays that may be written to; traced arrays unchanged."""
    return jax.tree.map(lambda a: a if isinstance(a, jax.core.Tracer) else np.array(a, order="C"), tree)
