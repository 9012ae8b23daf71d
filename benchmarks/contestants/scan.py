"""A ``jax.lax.scan`` of the cell's step, as users write it by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import lstm_jax
from benchmarks.cases import Case, Setting, make_cell
from benchmarks.contestants.contestant import Contestant, Form, build_jax, never


def step_of(cell: Any, params: Any) -> Any:
    """``lstm_step``; for other cells, or with products in a narrow type, the cell's step."""
    plain = isinstance(cell, lstm_jax.LSTM) and cell.dtype == jnp.float32
    return partial(lstm_jax.lstm_step if plain else cell.step, params)


def one_direction(case: Case, params: Any, xs: Any, valid: Any, resets: Any, reverse: bool) -> Any:
    """Outputs of one layer in one direction.

    ``valid`` (T, B, 1): the carry does not change where it is False. ``resets`` (T, B, 1): the carry is zero
    before a step where it is True.
    """
    cell = make_cell(case, xs.shape[-1], xs.dtype.name)
    one, first = step_of(cell, params), cell.initial_carry(xs.shape[1:2])
    if valid is None and resets is None:
        return jax.lax.scan(one, first, xs, reverse=reverse)[1]

    def masked(carry: Any, inputs: Any) -> Any:
        x, there = inputs
        after, y = one(carry, x)
        held = jax.tree.map(lambda a, b: jnp.where(there, a, b), after, carry)
        return held, jnp.where(there, y, 0)

    def restarted(carry: Any, inputs: Any) -> Any:
        x, restart = inputs
        return one(jax.tree.map(lambda a: jnp.where(restart, 0, a), carry), x)

    step, flags = (masked, valid) if resets is None else (restarted, resets)
    return jax.lax.scan(step, first, (xs, flags), reverse=reverse)[1]


def form(case: Case, setting: Setting) -> Form:
    """One scan for each layer and direction."""

    def run(layers: Any, xs: Any, more: Any) -> Any:
        valid = resets = None
        if case.resets:
            resets = more[..., None]
        elif more is not None:
            valid = (jnp.arange(xs.shape[0])[:, None] < more[None])[..., None]
        for layer in layers:
            ys = [
                one_direction(case, params, xs, valid, resets, bool(way)) for way, params in enumerate(layer)
            ]
            xs = jnp.concatenate(ys, axis=-1)
        return xs

    def step(layers: Any, x: Any, carry: Any) -> Any:
        return step_of(make_cell(case, case.D, setting.dtype), layers[0][0])(carry, x)

    return Form(lambda layers: layers, step if case.streaming else run)


SCAN = Contestant("plain scan", "jax.lax.scan of lstm_step", "jax", never, never, build_jax(form))
