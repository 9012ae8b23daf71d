"""Flax linen: ``nn.RNN`` with each of its two LSTM cells."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp

from benchmarks import weights
from benchmarks.cases import Case, Setting
from benchmarks.contestants.contestant import Contestant, Form, build_jax, imports, never


def form(cell_name: str, case: Case, setting: Setting) -> Form:
    """Time-major ``nn.RNN`` for each layer, or ``nn.Bidirectional`` of two."""
    from flax import linen

    cell = partial(getattr(linen, cell_name), case.H, dtype=jnp.dtype(setting.dtype))
    one = partial(linen.RNN, time_major=True)
    if case.bidirectional:
        module = linen.Bidirectional(one(cell()), one(cell()), time_major=True)
    else:
        module = one(cell())

    def convert(layers: Any) -> Any:
        if case.streaming:
            return weights.to_linen_lstm(layers[0][0])
        names = ("forward_rnn", "backward_rnn")
        trees = [[{"cell": weights.to_linen_lstm(params)} for params in layer] for layer in layers]
        return [dict(zip(names, tree, strict=True)) if case.bidirectional else tree[0] for tree in trees]

    def run(trees: Any, xs: Any, lengths: Any) -> Any:
        for tree in trees:
            xs = module.apply({"params": tree}, xs, seq_lengths=lengths)
        return xs

    def step(tree: Any, x: Any, carry: Any) -> Any:
        (c, h), y = cell().apply({"params": tree}, carry[::-1], x)
        return (h, c), y

    return Form(convert, step if case.streaming else run)


def linen(cell_name: str) -> Contestant:
    how = f"flax.linen.RNN({cell_name}(H), time_major=True)"
    build = build_jax(partial(form, cell_name))
    return Contestant(f"linen {cell_name}", how, "flax", imports("flax.linen"), never, build)


LINEN = tuple(linen(name) for name in ("LSTMCell", "OptimizedLSTMCell"))
