"""The plain ``jax.lax.scan`` of ``lstm_step``, as one writes it by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import lstm_jax
from benchmarks.cases import Case, Setting
from benchmarks.contestants.contestant import Contestant, Form, build_jax, never


def step_of(params: Any, dtype: str) -> Any:
    """``lstm_step``; under narrow types with products in them, and weights and sums in float32."""
    if dtype == "float32":
        return partial(lstm_jax.lstm_step, params)
    size, units = params.w_ih.shape[0], params.w_hh.shape[0]
    return partial(lstm_jax.LSTM(size, units, dtype=dtype).step, params)


def one_direction(params: Any, xs: Any, valid: Any, reverse: bool) -> Any:
    """Outputs of one layer in one direction; ``valid`` (T, B, 1) holds the carry where it is False."""
    one = step_of(params, xs.dtype.name)
    h = jnp.zeros((xs.shape[1], params.w_hh.shape[0]), xs.dtype)
    first = h, h.astype(jnp.float32)
    if valid is None:
        return jax.lax.scan(one, first, xs, reverse=reverse)[1]

    def step(carry: Any, inputs: Any) -> Any:
        x, there = inputs
        after, y = one(carry, x)
        held = tuple(jnp.where(there, a, b) for a, b in zip(after, carry, strict=True))
        return held, jnp.where(there, y, 0)

    return jax.lax.scan(step, first, (xs, valid), reverse=reverse)[1]


def form(case: Case, setting: Setting) -> Form:
    """A scan for each layer and direction."""

    def run(layers: Any, xs: Any, lengths: Any) -> Any:
        valid = None
        if lengths is not None:
            valid = (jnp.arange(xs.shape[0])[:, None] < lengths[None])[..., None]
        for layer in layers:
            ys = [one_direction(params, xs, valid, bool(way)) for way, params in enumerate(layer)]
            xs = jnp.concatenate(ys, axis=-1)
        return xs

    def step(layers: Any, x: Any, carry: Any) -> Any:
        return step_of(layers[0][0], setting.dtype)(carry, x)

    return Form(lambda layers: layers, step if case.streaming else run)


SCAN = Contestant("plain scan", "jax.lax.scan of lstm_step", "jax", never, never, build_jax(form))
