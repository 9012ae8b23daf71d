"""Flax nnx: ``nnx.RNN`` with each of its two LSTM cells, in functional form (split and merge)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import weights
from benchmarks.cases import Case, Setting
from benchmarks.contestants.contestant import Contestant, Form, build_jax, imports, never

CONVERT = {"LSTMCell": weights.to_nnx_lstm, "OptimizedLSTMCell": weights.to_nnx_optimized_lstm}


def form(cell_name: str, case: Case, setting: Setting) -> Form:
    """Time-major ``nnx.RNN`` for each layer, or ``nnx.Bidirectional`` of two."""
    from flax import nnx

    def cell(size: int) -> Any:
        return getattr(nnx, cell_name)(size, case.H, dtype=jnp.dtype(setting.dtype), rngs=nnx.Rngs(0))

    def layer(size: int) -> Any:
        one = partial(nnx.RNN, time_major=True)
        if case.bidirectional:
            return nnx.Bidirectional(one(cell(size)), one(cell(size)), time_major=True)
        return one(cell(size))

    sizes = [case.D, *[case.output_size] * (case.layers - 1)]
    modules = [cell(case.D)] if case.streaming else [layer(size) for size in sizes]
    graphs, empty, rest = zip(*(nnx.split(module, nnx.Param, ...) for module in modules), strict=True)

    def convert(layers: Any) -> Any:
        states = []
        for directions, state in zip(layers, empty, strict=True):
            trees = [CONVERT[cell_name](params) for params in directions]
            if not case.streaming:
                trees = [{"cell": tree} for tree in trees]
            names = ("forward_rnn", "backward_rnn")
            filled = jax.tree.map(lambda a: a, state)
            nnx.replace_by_pure_dict(
                filled, dict(zip(names, trees, strict=True)) if case.bidirectional else trees[0]
            )
            states.append(filled)
        return states

    def run(states: Any, xs: Any, lengths: Any) -> Any:
        for graph, state, other in zip(graphs, states, rest, strict=True):
            xs = nnx.merge(graph, state, other, copy=True)(xs, seq_lengths=lengths)
        return xs

    def step(states: Any, x: Any, carry: Any) -> Any:
        (c, h), y = nnx.merge(graphs[0], states[0], rest[0])(carry[::-1], x)
        return (h, c), y

    return Form(convert, step if case.streaming else run)


def nnx(cell_name: str) -> Contestant:
    how = f"flax.nnx.RNN({cell_name}(D, H), time_major=True), split and merged within one jit"
    build = build_jax(partial(form, cell_name))
    return Contestant(f"nnx {cell_name}", how, "flax", imports("flax.nnx"), never, build)


NNX = tuple(nnx(name) for name in CONVERT)
