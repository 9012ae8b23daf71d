"""Weights of other libraries, in and out: pure functions over mappings of arrays."""

from lstm_jax.interop.equinox import from_equinox as from_equinox, to_equinox as to_equinox
from lstm_jax.interop.flax import from_flax as from_flax, to_flax as to_flax
from lstm_jax.interop.haiku import from_haiku as from_haiku, to_haiku as to_haiku
