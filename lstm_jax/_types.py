"""Array types and dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

Array: TypeAlias = jax.Array


#: Any pytree of arrays; for the library's cells a ``NamedTuple``.
Params: TypeAlias = Any


#: Any pytree of arrays whose leading axes are the batch axes.
Carry: TypeAlias = Any


#: What ``jax.nn.initializers`` returns: ``f(key, shape, dtype) -> array``.
Initializer: TypeAlias = Callable[..., Array]


#: Anything that ``np.dtype`` accepts.
DType: TypeAlias = Any


Tuple = TypeVar("Tuple", bound=type)


def exportable(cls: Tuple) -> Tuple:
    """Let :func:`jax.export.export` write functions that take or return this ``NamedTuple``."""
    export.register_namedtuple_serialization(cls, serialized_name=f"lstm_jax.{cls.__name__}")
    return cls


def promote(*dtypes: DType) -> np.dtype:
    """The smallest dtype that holds all of ``dtypes``.

    >>> str(promote(jnp.bfloat16, jnp.float16))
    'float32'
    """
    result: np.dtype = np.dtype(dtypes[0])
    for dtype in dtypes[1:]:
        try:
            result = np.promote_types(result, np.dtype(dtype))
        except TypeError:  # neither of bfloat16 and float16 contains the other
            result = np.dtype(np.float32)
    return result


def state_dtype(dtype: DType) -> np.dtype:
    """The dtype of sums and states: float32, or ``dtype`` where it is wider.

    >>> str(state_dtype(jnp.bfloat16)), str(state_dtype(jnp.float64))
    ('float32', 'float64')
    """
    return np.promote_types(np.dtype(dtype), np.float32)


def same_dtype(*arrays: Array) -> tuple[Array, ...]:
    """The arrays in the dtype that they promote to."""
    dtype = promote(*(a.dtype for a in arrays))
    return tuple(a.astype(dtype) for a in arrays)


def is_float(dtype: DType) -> bool:
    """Whether ``dtype`` is a real floating type, bfloat16 included."""
    return bool(jnp.issubdtype(dtype, jnp.floating))
