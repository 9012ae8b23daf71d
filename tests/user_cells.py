"""Cells that a user might write, and their equations in NumPy."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle


class LeakyParams(NamedTuple):
    w: Any  # (3, 2)
    r: Any  # (2, 2)


@dataclass(frozen=True)
class Leaky:
    """A cell with only the required methods. Its carry is a dict with h_0 = 1/2 and a count of steps."""

    param_dtype: Any = jnp.float32

    def init(self, key):
        k_w, k_r = jax.random.split(key)
        return LeakyParams(
            jax.random.normal(k_w, (3, 2), self.param_dtype), jax.random.normal(k_r, (2, 2), self.param_dtype)
        )

    def initial_carry(self, batch_shape=(), params=None):
        return {
            "h": jnp.full((*batch_shape, 2), 0.5, self.param_dtype),
            "steps": jnp.zeros(batch_shape, jnp.int32),
        }

    def step(self, params, carry, x):
        h = 0.5 * carry["h"] + 0.5 * jnp.sin(x @ params.w + carry["h"] @ params.r)
        steps = carry["steps"] + 1
        return {"h": h, "steps": steps}, h / steps[..., None].astype(h.dtype)


def leaky(params, carry, x):
    h = 0.5 * carry["h"] + 0.5 * np.sin(x @ params.w + carry["h"] @ params.r)
    steps = carry["steps"] + 1
    return {"h": h, "steps": steps}, h / steps


class PeepholeParams(NamedTuple):
    w: Any  # (3, 4)
    r: Any  # (2, 4)
    peephole: Any  # (2,) from the old cell state to the gate
    shift: Any  # (2,) in recur, which is affine but not linear
    scale: Any  # (2,) of the output, which differs from the hidden state


@dataclass(frozen=True)
class Peephole:
    """A split cell: u and z are dicts, ``recur`` has a constant, and ``update`` reads parameters."""

    param_dtype: Any = jnp.float32
    input_size = 3
    output_size = 2

    def init(self, key):
        shapes = PeepholeParams((3, 4), (2, 4), (2,), (2,), (2,))
        keys = jax.random.split(key, len(shapes))
        return PeepholeParams(
            *(jax.random.normal(k, shape, self.param_dtype) for k, shape in zip(keys, shapes, strict=True))
        )

    def initial_carry(self, batch_shape=(), params=None):
        return (
            jnp.full((*batch_shape, 2), -0.25, self.param_dtype),
            jnp.full((*batch_shape, 2), 0.75, self.param_dtype),
        )

    def project(self, params, x):
        u = x @ params.w
        return {"gate": u[..., :2], "new": u[..., 2:]}

    def recur(self, params, carry, u):
        product = carry[0] @ params.r
        shift = jnp.expand_dims(params.shift, range(product.ndim - 1))
        return {"gate": u["gate"] + product[..., :2] + shift, "new": u["new"] + product[..., 2:]}

    def update(self, params, carry, z):
        def expand(vector):
            return jnp.expand_dims(vector, range(z["new"].ndim - 1))

        _, c = carry
        f = jax.nn.sigmoid(z["gate"] + expand(params.peephole) * c)
        c = f * c + (1 - f) * jnp.tanh(z["new"])
        h = jnp.tanh(c)
        return (h, c), expand(params.scale) * h

    def step(self, params, carry, x):
        return self.update(params, carry, self.recur(params, carry, self.project(params, x)))


def peephole(params, carry, x):
    h, c = carry
    f = oracle.sigmoid(x @ params.w[:, :2] + h @ params.r[:, :2] + params.shift + params.peephole * c)
    c = f * c + (1 - f) * np.tanh(x @ params.w[:, 2:] + h @ params.r[:, 2:])
    h = np.tanh(c)
    return (h, c), params.scale * h


@dataclass(frozen=True)
class Average:
    """A parallel cell that does not split: a moving average with terms of both signs.

    ``wrong``: ``coefficients`` returns a wrong shape.
    """

    wrong: bool = False
    input_size = output_size = 3

    def init(self, key):
        return jax.random.normal(key, (3,))

    def initial_carry(self, batch_shape=(), params=None):
        return jnp.full((*batch_shape, 3), -0.25)

    def coefficients(self, params, x):
        log_a = -jax.nn.softplus(jnp.expand_dims(params, range(x.ndim - 1)) * x)
        return log_a, (x[..., :1] if self.wrong else jnp.sin(3 * x))

    def step(self, params, carry, x):
        log_a, b = Average().coefficients(params, x)
        carry = jnp.exp(log_a) * carry + b
        return carry, carry
