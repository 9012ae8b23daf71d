"""Activation functions by name, for cells whose activations are options.

Names are those of ``jax.nn`` and Keras. Cells keep the function, so a name and its function make equal cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from lstm_jax._errors import value_error
from lstm_jax._types import Array
from lstm_jax.cells._linear import sigmoid

Activation: TypeAlias = Callable[[Array], Array]


def identity(x: Array) -> Array:
    """x itself."""
    return x


ACTIVATIONS: dict[str, Activation] = {
    "tanh": jnp.tanh,
    "sigmoid": sigmoid,
    "relu": jax.nn.relu,
    "linear": identity,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_tanh": jax.nn.hard_tanh,
    "softsign": jax.nn.soft_sign,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "leaky_relu": jax.nn.leaky_relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "relu6": jax.nn.relu6,
    "celu": jax.nn.celu,
    "mish": jax.nn.mish,
    "hard_silu": jax.nn.hard_silu,
    "log_sigmoid": jax.nn.log_sigmoid,
    "squareplus": jax.nn.squareplus,
    "exponential": jnp.exp,
}
#: Other functions and names that mean one of the above.
_SAME: dict[Any, Activation] = {jax.nn.sigmoid: sigmoid, jax.nn.tanh: jnp.tanh, jax.nn.identity: identity}


def canonical_activations(cell: Any, *names: str) -> None:
    """Replace names by functions in a cell's ``__post_init__``; equal activations make equal cells."""
    owner = type(cell).__name__
    for name in names:
        value = getattr(cell, name)
        if isinstance(value, str):
            if value not in ACTIVATIONS:
                raise value_error(
                    f"{owner} got {name}={value!r}",
                    f"a function or one of {', '.join(map(repr, ACTIVATIONS))}",
                    f"Pass {name}=jnp.tanh, or another function of an array.",
                )
            value = ACTIVATIONS[value]
        elif not callable(value):
            raise value_error(
                f"{owner} got {name}={value!r}",
                "a function of an array, or its name",
                f"Pass {name}=jnp.tanh, or another function of an array.",
            )
        object.__setattr__(cell, name, _SAME.get(value, value))
