"""LSTM loops written out by hand in other ways than the library's, for ``experiments.py``.

All take the library's parameters, and inputs (T, B, D); all give the outputs. They are differentiated as they
stand.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

F32 = jnp.float32


def pointwise(c: jax.Array, i: Any, f: Any, g: Any, o: Any) -> tuple[jax.Array, jax.Array]:
    """h_t and c_t in float32, from pre-activations."""
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def product(a: jax.Array, w: jax.Array, spec: str, sums: Any = F32) -> jax.Array:
    """A product in the dtype of ``a``, with sums in float32 unless said otherwise."""
    return jnp.einsum(spec, a, w.astype(a.dtype), preferred_element_type=sums)


def start(xs: jax.Array, H: int, *front: int) -> tuple[jax.Array, jax.Array]:
    """Zeros: h in the dtype of the inputs, c in float32."""
    shape = (*front, xs.shape[1], H)
    return jnp.zeros(shape, xs.dtype), jnp.zeros(shape, F32)


def flat(params: Any, xs: jax.Array, sums: Any = F32) -> jax.Array:
    """The four gates side by side: (B, 4H)."""
    us = product(xs, params.w_ih, "tbd,dk->tbk", sums)

    def step(carry: Any, u: jax.Array) -> Any:
        h, c = carry
        z = (u + product(h, params.w_hh, "bh,hk->bk", sums)).astype(F32) + params.bias
        h_t, c = pointwise(c, *jnp.split(z, 4, axis=-1))
        return (h_t.astype(h.dtype), c), h_t.astype(h.dtype)

    return jax.lax.scan(step, start(xs, params.w_hh.shape[0]), us)[1]


def apart(params: Any, xs: jax.Array, spec: str) -> jax.Array:
    """The gates on an axis of their own, ``spec`` says which."""
    H = params.w_hh.shape[0]
    axis = spec.index("g")
    w_ih, w_hh = (w.reshape(-1, 4, H) for w in (params.w_ih, params.w_hh))
    bias = params.bias.reshape(4, H) if axis else params.bias.reshape(4, 1, H)
    us = product(xs, w_ih, f"tbd,dgk->t{spec}")

    def step(carry: Any, u: jax.Array) -> Any:
        h, c = carry
        z = u + product(h, w_hh, f"bh,hgk->{spec}") + bias
        h_t, c = pointwise(c, *(jnp.squeeze(part, axis) for part in jnp.split(z, 4, axis=axis)))
        return (h_t.astype(h.dtype), c), h_t.astype(h.dtype)

    return jax.lax.scan(step, start(xs, H), us)[1]


def together(params: Any, xs: jax.Array) -> jax.Array:
    """[x, h] against stacked weights: nothing is projected before the loop."""
    w = jnp.concatenate([params.w_ih, params.w_hh])

    def step(carry: Any, x: jax.Array) -> Any:
        h, c = carry
        z = product(jnp.concatenate([x, h], axis=-1), w, "bh,hk->bk") + params.bias
        h_t, c = pointwise(c, *jnp.split(z, 4, axis=-1))
        return (h_t.astype(h.dtype), c), h_t.astype(h.dtype)

    return jax.lax.scan(step, start(xs, params.w_hh.shape[0]), xs)[1]


LAYOUTS = {
    "by hand, flat 4H": flat,
    "by hand, (B, 4, H)": partial(apart, spec="bgk"),
    "by hand, (4, B, H)": partial(apart, spec="gbk"),
    "by hand, [x, h] in one product": together,
    "by hand, flat 4H, products rounded to their dtype": partial(flat, sums=None),
}


def both_batched(params: Any, xs: jax.Array) -> jax.Array:
    """Both directions in one loop, by one product with a batch axis for the direction."""
    w_ih, w_hh, bias = (jnp.stack([getattr(p, name) for p in params]) for name in ("w_ih", "w_hh", "bias"))
    both = jnp.stack([xs, jnp.flip(xs, 0)], axis=1)  # (T, 2, B, D)
    us = product(both, w_ih, "tnbd,ndk->tnbk")

    def step(carry: Any, u: jax.Array) -> Any:
        h, c = carry
        z = u + product(h, w_hh, "nbh,nhk->nbk") + bias[:, None]
        h_t, c = pointwise(c, *jnp.split(z, 4, axis=-1))
        return (h_t.astype(h.dtype), c), h_t.astype(h.dtype)

    ys = jax.lax.scan(step, start(xs, w_hh.shape[1], 2), us)[1]
    return jnp.concatenate([ys[:, 0], jnp.flip(ys[:, 1], 0)], axis=-1)


def both_apart(params: Any, xs: jax.Array) -> jax.Array:
    """A loop for each direction."""
    forward, backward = params
    return jnp.concatenate([flat(forward, xs), jnp.flip(flat(backward, jnp.flip(xs, 0)), 0)], axis=-1)


def wavefront(params: Any, xs: jax.Array) -> jax.Array:
    """Two layers in one loop, the second one step behind: T + 1 rounds of two products that do not wait."""
    lower, upper = params
    us = product(xs, lower.w_ih, "tbd,dk->tbk")
    us = jnp.concatenate([us, jnp.zeros_like(us[:1])])  # in the last round the lower layer has no input
    w = jnp.concatenate([upper.w_ih, upper.w_hh])

    def step(carry: Any, at: Any) -> Any:
        (h, c), (h2, c2) = carry
        u, first = at
        z = u + product(h, lower.w_hh, "bh,hk->bk") + lower.bias
        z2 = product(jnp.concatenate([h, h2], axis=-1), w, "bh,hk->bk") + upper.bias
        h_t, c_t = pointwise(c, *jnp.split(z, 4, axis=-1))
        h2_t, c2_t = pointwise(c2, *jnp.split(z2, 4, axis=-1))
        h2_t, c2_t = (jnp.where(first, 0.0, a) for a in (h2_t, c2_t))  # it has not begun
        h_t, h2_t = h_t.astype(h.dtype), h2_t.astype(h.dtype)
        return ((h_t, c_t), (h2_t, c2_t)), h2_t

    begin = start(xs, lower.w_hh.shape[0])
    return jax.lax.scan(step, (begin, begin), (us, jnp.arange(len(us)) == 0))[1][1:]
