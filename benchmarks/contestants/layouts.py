"""LSTM loops written by hand with other layouts of the gates, to learn which one XLA compiles best.

They take one layer's parameters and time-major inputs, and are differentiated by JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.cases import Case, Setting
from benchmarks.contestants.contestant import Contestant, Form, build_jax, never


def product(a: jax.Array, w: jax.Array, spec: str, sums: Any = jnp.float32) -> jax.Array:
    """A product in the dtype of ``a`` with results in ``sums``; None rounds them to the dtype of ``a``."""
    return jnp.einsum(spec, a, w.astype(a.dtype), preferred_element_type=sums)


def loop(gates: Callable[[jax.Array, Any], Any], inputs: jax.Array, B: int, H: int, dtype: Any) -> jax.Array:
    """Outputs of the scan over ``inputs``, where ``gates(h, input)`` returns the four pre-activations."""

    def step(carry: Any, u: Any) -> Any:
        h, c = carry
        i, f, g, o = gates(h, u)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = (jax.nn.sigmoid(o) * jnp.tanh(c)).astype(dtype)
        return (h, c), h

    first = jnp.zeros((B, H), dtype), jnp.zeros((B, H), jnp.float32)
    return jax.lax.scan(step, first, inputs)[1]


def flat(params: Any, xs: jax.Array, sums: Any = jnp.float32) -> jax.Array:
    """Gates (B, 4H)."""
    us = product(xs, params.w_ih, "tbd,dk->tbk", sums)

    def gates(h: jax.Array, u: jax.Array) -> Any:
        z = (u + product(h, params.w_hh, "bh,hk->bk", sums)).astype(jnp.float32)
        return jnp.split(z + params.bias, 4, axis=-1)

    return loop(gates, us, xs.shape[1], params.w_hh.shape[0], xs.dtype)


def separate(params: Any, xs: jax.Array, spec: str) -> jax.Array:
    """Gates on an axis g of their own: ``spec`` is "bgk" or "gbk"."""
    H, axis = params.w_hh.shape[0], spec.index("g")
    w_ih, w_hh = (w.reshape(-1, 4, H) for w in (params.w_ih, params.w_hh))
    bias = jnp.expand_dims(params.bias.reshape(4, H), 1 - axis)
    us = product(xs, w_ih, f"tbd,dgk->t{spec}")

    def gates(h: jax.Array, u: jax.Array) -> Any:
        z = u + product(h, w_hh, f"bh,hgk->{spec}") + bias
        return jnp.moveaxis(z, axis, 0)

    return loop(gates, us, xs.shape[1], H, xs.dtype)


def stacked(params: Any, xs: jax.Array) -> jax.Array:
    """One product of [x, h] with stacked weights per step, and no projection before the loop."""
    w = jnp.concatenate([params.w_ih, params.w_hh])

    def gates(h: jax.Array, x: jax.Array) -> Any:
        z = product(jnp.concatenate([x, h], axis=-1), w, "bh,hk->bk") + params.bias
        return jnp.split(z, 4, axis=-1)

    return loop(gates, xs, xs.shape[1], params.w_hh.shape[0], xs.dtype)


LOOPS: dict[str, Callable[[Any, jax.Array], jax.Array]] = {
    "by hand, gates (B, 4H)": flat,
    "by hand, gates (B, 4, H)": partial(separate, spec="bgk"),
    "by hand, gates (4, B, H)": partial(separate, spec="gbk"),
    "by hand, [x, h] in one product": stacked,
    "by hand, products rounded to their dtype": partial(flat, sums=None),
}


def contestant(name: str) -> Contestant:
    def form(case: Case, setting: Setting) -> Form:
        return Form(lambda layers: layers[0][0], lambda params, xs, more: LOOPS[name](params, xs))

    def declines(case: Case, mode: str, setting: Setting) -> str | None:
        plain = Case(case.B, case.T, case.D, case.H)
        return None if case == plain else "one LSTM layer without options only"

    return Contestant(name, "jax.lax.scan", "jax", never, declines, build_jax(form))


LAYOUTS = tuple(map(contestant, LOOPS))
