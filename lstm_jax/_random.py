"""Noise from an explicit key and the absolute time index; it is equal in every implementation.

``jax_enable_x64`` does not change the noise: every draw has an explicit dtype. A layer draws the noise
of step t from ``fold_in(key, t)``, and noise that is drawn once per sequence from ``fold_in(key, ONCE)``.
Nothing is drawn without a key.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._types import Array, Carry, state_dtype

#: The index of noise that is drawn once per sequence. No step has it.
ONCE = np.uint32(2**32 - 1)


def vmap_invariant_key(key: Array) -> Array:
    """The key itself, or one derived from it that draws the same numbers with and without ``vmap``.

    Under ``vmap``, the ``rbg`` generators draw other numbers than for each key separately.
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and key.shape[-1] == 4:
        key = jax.random.wrap_key_data(key, impl="rbg")
    elif not typed or str(jax.random.key_impl(key)) == "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl="threefry2x32")


def step_draws(cell: Any, key: Array | None, times: Any, carry: Carry) -> Any:
    """The noise of the steps ``times`` (T,), with time as the leading axis; None without noise."""
    if key is None or times is None:
        return None
    return jax.vmap(lambda t: cell.draw(jax.random.fold_in(key, t), carry))(times)


def bernoulli(key: Array, probability: float, like: Any) -> Array:
    """A mask for ``like``: each entry is True with the given probability.

    The uniform numbers behind the mask are float32. Otherwise ``jax_enable_x64`` would change the mask.
    """
    return _placed(jax.random.bernoulli(key, jnp.float32(probability), like.shape), like)


def normal(key: Array, like: Any) -> Array:
    """Standard normal numbers in the shape of ``like``, in float32 or wider."""
    return _placed(jax.random.normal(key, like.shape, state_dtype(like.dtype)), like)


def _placed(drawn: Array, like: Any) -> Array:
    """The drawn array with the sharding of ``like`` on an explicit mesh."""
    sharding = getattr(jax.typeof(like) if isinstance(like, jax.Array) else like, "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    if mesh is None or jax.sharding.AxisType.Explicit not in getattr(mesh, "axis_types", ()):
        return drawn
    return jax.sharding.reshard(drawn, sharding)
