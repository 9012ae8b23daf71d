"""Flax nnx: ``nnx.RNN`` of its cells, in functional form (split and merge). It has two LSTM cells."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import weights
from benchmarks.cases import Case, Setting
from benchmarks.contestants.contestant import Cells, Contestant, Form, build_jax, imports, only

#: Its GRU is another function: it has no bias inside the product with the reset gate.
CELLS = {"LSTM": ("LSTMCell", weights.to_nnx_lstm), "RNN": ("SimpleCell", weights.to_nnx_rnn)}
OPTIMIZED = {"LSTM": ("OptimizedLSTMCell", weights.to_nnx_optimized_lstm)}


def form(cells: Cells, case: Case, setting: Setting) -> Form:
    """Time-major ``nnx.RNN`` for each layer, or ``nnx.Bidirectional`` of two."""
    from flax import nnx

    name, convert_cell = cells[case.cell]

    def cell(size: int) -> Any:
        return getattr(nnx, name)(size, case.H, dtype=jnp.dtype(setting.dtype), rngs=nnx.Rngs(0))

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
            trees = [convert_cell(params) for params in directions]
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


def nnx(name: str, cells: Cells) -> Contestant:
    how = f"flax.nnx.RNN({cells['LSTM'][0]}(D, H), time_major=True), split and merged within one jit"
    build = build_jax(partial(form, cells))
    return Contestant(name, how, "flax", imports("flax.nnx"), only(cells), build)


NNX = (nnx("nnx", CELLS), nnx("nnx optimized", OPTIMIZED))
