"""Flax linen: ``nn.RNN`` of its cells. It has two LSTM cells."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp

from benchmarks import weights
from benchmarks.cases import Case, Setting
from benchmarks.contestants.contestant import Cells, Contestant, Form, build_jax, imports, only

#: For each cell of this library, the name of linen's and the function that converts the parameters.
CELLS = {
    "LSTM": ("LSTMCell", weights.to_linen_lstm),
    "GRU": ("GRUCell", weights.to_linen_gru),
    "RNN": ("SimpleCell", weights.to_linen_rnn),
}
OPTIMIZED = {"LSTM": ("OptimizedLSTMCell", weights.to_linen_lstm)}


def form(cells: Cells, case: Case, setting: Setting) -> Form:
    """Time-major ``nn.RNN`` for each layer, or ``nn.Bidirectional`` of two."""
    from flax import linen

    name, convert_cell = cells[case.cell]
    cell = partial(getattr(linen, name), case.H, dtype=jnp.dtype(setting.dtype))
    one = partial(linen.RNN, time_major=True)
    if case.bidirectional:
        module = linen.Bidirectional(one(cell()), one(cell()), time_major=True)
    else:
        module = one(cell())

    def convert(layers: Any) -> Any:
        if case.streaming:
            return convert_cell(layers[0][0])
        names = ("forward_rnn", "backward_rnn")
        trees = [[{"cell": convert_cell(params)} for params in layer] for layer in layers]
        return [dict(zip(names, tree, strict=True)) if case.bidirectional else tree[0] for tree in trees]

    def run(trees: Any, xs: Any, lengths: Any) -> Any:
        for tree in trees:
            xs = module.apply({"params": tree}, xs, seq_lengths=lengths)
        return xs

    def step(tree: Any, x: Any, carry: Any) -> Any:
        (c, h), y = cell().apply({"params": tree}, carry[::-1], x)
        return (h, c), y

    return Form(convert, step if case.streaming else run)


def linen(name: str, cells: Cells) -> Contestant:
    how = f"flax.linen.RNN({cells['LSTM'][0]}(H), time_major=True)"
    build = build_jax(partial(form, cells))
    return Contestant(name, how, "flax", imports("flax.linen"), only(cells), build)


LINEN = (linen("linen", CELLS), linen("linen optimized", OPTIMIZED))
