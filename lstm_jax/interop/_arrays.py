"""The few operations that conversions are made of, alike for NumPy arrays, jax arrays and tracers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import canonical_dtype, value_error
from lstm_jax._types import DType, promote


def _traced(array: Any) -> bool:
    return isinstance(array, jax.core.Tracer)


def plain(tree: Any) -> Any:
    """NumPy arrays, but for what is traced.

    NumPy keeps the numbers next to 0 that XLA's sums flush to it, and has nothing to compile.
    """
    return jax.tree.map(lambda a: a if _traced(a) else np.asarray(a), tree)


def common_dtype(owner: str, arrays: Iterable[Any], dtype: DType | None) -> np.dtype:
    """The dtype of the parameters to be made: ``dtype``, or what the arrays promote to."""
    found = promote(*(a.dtype for a in arrays)) if dtype is None else canonical_dtype(owner, "dtype", dtype)
    if found == np.float64 and not jax.config.read("jax_enable_x64"):
        raise value_error(
            f"{owner} got weights of float64" if dtype is None else f"{owner} got dtype=float64",
            "float32 or narrower, because jax_enable_x64 is off",
            'Pass dtype="float32" to round them, or switch it on: jax.config.update("jax_enable_x64", True).',
        )
    return found


def cast(arrays: Mapping[str, Any], dtype: np.dtype) -> dict[str, Any]:
    """All arrays in one dtype, before any two of them are added."""
    return {name: a.astype(dtype) for name, a in plain(dict(arrays)).items()}


def ours(tree: Any) -> Any:
    """Every leaf a jax array with memory of its own."""
    return jax.tree.map(lambda a: a if isinstance(a, jax.Array) else jnp.array(a), tree)


def theirs(array: Any) -> Any:
    """A NumPy array that may be written to, rows contiguous; of a tracer, the tracer."""
    return array if _traced(array) else np.array(array, order="C")


def parts(array: Any, count: int) -> list[Any]:
    """The last axis cut into equal parts."""
    return (jnp if isinstance(array, jax.Array) else np).split(array, count, axis=-1)


def join(*arrays: Any, axis: int = -1) -> Any:
    """Side by side along an axis."""
    traced = any(isinstance(a, jax.Array) for a in arrays)
    return (jnp if traced else np).concatenate(arrays, axis=axis)


def negative_zeros(bias: Any) -> Any:
    """The second bias where one was split: nothing is added to the first, to the bit.

    It is -0.0, because -0.0 + 0.0 would be 0.0.
    """
    return (jnp if isinstance(bias, jax.Array) else np).full_like(bias, -0.0)
