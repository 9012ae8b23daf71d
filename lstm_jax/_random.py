"""Noise by one rule: an explicit key, the absolute time index, the same values in every implementation.

A layer draws the noise of step t from ``fold_in(key, t)``, and noise that is drawn once per sequence from
``fold_in(key, ONCE)``. Nothing is drawn without a key.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._types import Array, Carry, state_dtype

#: No step has this index.
ONCE = np.uint32(2**32 - 1)


def vmap_invariant_key(key: Array) -> Array:
    """The key, or one made of it whose numbers are the same drawn one by one and under ``vmap``.

    The ``rbg`` generators draw other numbers for many keys at once than for each of them.
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and key.shape[-1] == 4:
        key = jax.random.wrap_key_data(key, impl="rbg")
    elif not typed or str(jax.random.key_impl(key)) == "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl="threefry2x32")


def step_draws(cell: Any, key: Array | None, times: Any, carry: Carry) -> Any:
    """The noise of the steps ``times`` (T,), time as the leading axis; None where there is none."""
    if key is None or times is None:
        return None
    return jax.vmap(lambda t: cell.draw(jax.random.fold_in(key, t), carry))(times)


def bernoulli(key: Array, probability: float, like: Any) -> Array:
    """True in about ``probability`` of the entries of a mask for ``like``."""
    return _placed(jax.random.bernoulli(key, probability, like.shape), like)


def normal(key: Array, like: Any) -> Array:
    """Standard normal numbers for ``like``, in float32 or wider."""
    return _placed(jax.random.normal(key, like.shape, state_dtype(like.dtype)), like)


def _placed(drawn: Array, like: Any) -> Array:
    """Spread over an explicit mesh as ``like`` is."""
    sharding = getattr(jax.typeof(like) if isinstance(like, jax.Array) else like, "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    if mesh is None or jax.sharding.AxisType.Explicit not in getattr(mesh, "axis_types", ()):
        return drawn
    return jax.sharding.reshard(drawn, sharding)
