"""The plain ``jax.lax.scan`` of ``lstm_step``, as one writes it by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import lstm_jax
from benchmarks.cases import Case, Setting
from benchmarks.contestants.contestant import Contestant, Form, build_jax, never


def one_direction(params: Any, xs: Any, valid: Any, reverse: bool) -> Any:
    """Outputs of one layer in one direction; ``valid`` (T, B, 1) holds the carry where it is False."""
    h = jnp.zeros((xs.shape[1], params.w_hh.shape[0]), xs.dtype)
    first = h, h.astype(jnp.float32)  # the cell state stays wide under narrow types
    if valid is None:
        return jax.lax.scan(partial(lstm_jax.lstm_step, params), first, xs, reverse=reverse)[1]

    def step(carry: Any, inputs: Any) -> Any:
        x, there = inputs
        after, y = lstm_jax.lstm_step(params, carry, x)
        held = tuple(jnp.where(there, a, b) for a, b in zip(after, carry, strict=True))
        return held, jnp.where(there, y, 0)

    return jax.lax.scan(step, first, (xs, valid), reverse=reverse)[1]


def form(case: Case, setting: Setting) -> Form:
    """A scan for each layer and direction, parameters in the dtype of the inputs."""

    def convert(layers: Any) -> Any:
        return jax.tree.map(lambda a: a.astype(setting.dtype), layers)

    def run(layers: Any, xs: Any, lengths: Any) -> Any:
        valid = None
        if lengths is not None:
            valid = (jnp.arange(xs.shape[0])[:, None] < lengths[None])[..., None]
        for layer in layers:
            ys = [one_direction(params, xs, valid, bool(way)) for way, params in enumerate(layer)]
            xs = jnp.concatenate(ys, axis=-1)
        return xs

    def step(layers: Any, x: Any, carry: Any) -> Any:
        return lstm_jax.lstm_step(layers[0][0], carry, x)

    return Form(convert, step if case.streaming else run)


SCAN = Contestant("plain scan", "jax.lax.scan of lstm_step", "jax", never, never, build_jax(form))
