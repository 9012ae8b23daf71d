"""Equinox: a cell in a ``jax.lax.scan`` over one sequence under ``jax.vmap``, as it documents."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import weights
from benchmarks.cases import Case, Setting
from benchmarks.contestants.contestant import Contestant, Form, build_jax, imports, only


def form(case: Case, setting: Setting) -> Form:
    """``jax.vmap`` maps over the second axis, so that time-major arrays need no transposition."""
    import equinox as eqx

    dtype = jnp.dtype(setting.dtype)

    def fill(params: Any) -> Any:
        size = params.w_ih.shape[0]
        cell = getattr(eqx.nn, f"{case.cell}Cell")
        empty = eqx.filter_eval_shape(cell, size, case.H, dtype=dtype, key=jax.random.key(0))
        fields = {name: a.astype(dtype) for name, a in weights.to_equinox(params).items()}
        return eqx.tree_at(lambda cell: [getattr(cell, name) for name in fields], empty, [*fields.values()])

    def convert(layers: Any) -> Any:
        return [[fill(params) for params in layer] for layer in layers]

    def unroll(cell: Any, xs: Any, reverse: bool) -> Any:
        def step(state: Any, x: Any) -> Any:
            state = cell(x, state)
            return state, state[0] if case.cell == "LSTM" else state

        h = jnp.zeros(case.H, dtype)
        first = (h, h) if case.cell == "LSTM" else h
        return jax.lax.scan(step, first, xs, reverse=reverse)[1]

    def row(cells: Any, xs: Any) -> Any:
        for layer in cells:
            ys = [unroll(cell, xs, bool(way)) for way, cell in enumerate(layer)]
            xs = jnp.concatenate(ys, axis=-1)
        return xs

    def run(cells: Any, xs: Any, lengths: Any) -> Any:
        return jax.vmap(row, (None, 1), 1)(cells, xs)

    def step(cells: Any, x: Any, carry: Any) -> Any:
        h, c = jax.vmap(cells[0][0])(x, (carry[0], carry[1].astype(dtype)))
        return (h, c), h

    return Form(convert, step if case.streaming else run)


def declines(case: Case, mode: str, setting: Setting) -> str | None:
    if reason := only({"LSTM", "GRU"})(case, mode, setting):
        return reason
    return "has no layer that takes lengths" if case.ragged else None


EQUINOX = Contestant(
    "equinox",
    "jax.lax.scan of eqx.nn.LSTMCell under jax.vmap",
    "equinox",
    imports("equinox"),
    declines,
    build_jax(form),
)
