"""Haiku: ``hk.dynamic_unroll`` of ``hk.LSTM``, or of ``hk.DeepRNN`` for several layers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import weights
from benchmarks.cases import Case, Setting
from benchmarks.contestants.contestant import Contestant, Form, build_jax, imports, only


def form(case: Case, setting: Setting) -> Form:
    """Time-major. A bidirectional layer is two unrolls, because Haiku has no wrapper for it."""
    import haiku as hk

    def zeros(core: Any, xs: Any) -> Any:
        return jax.tree.map(lambda a: a.astype(setting.dtype), core.initial_state(xs.shape[1]))

    def forward(xs: Any) -> Any:
        if not case.bidirectional:
            cores = [hk.LSTM(case.H) for _ in range(case.layers)]
            core = cores[0] if case.layers == 1 else hk.DeepRNN(cores)
            return hk.dynamic_unroll(core, xs, zeros(core, xs))[0]
        for _ in range(case.layers):
            pair = [hk.LSTM(case.H), hk.LSTM(case.H)]
            ways = enumerate(pair)
            ys = [hk.dynamic_unroll(c, xs, zeros(c, xs), reverse=bool(way))[0] for way, c in ways]
            xs = jnp.concatenate(ys, axis=-1)
        return xs

    transformed = hk.without_apply_rng(hk.transform(forward))
    one = hk.without_apply_rng(hk.transform(lambda x, state: hk.LSTM(case.H)(x, state)))

    def convert(layers: Any) -> Any:
        tree = {}
        cells = [params for layer in layers for params in layer]
        for index, params in enumerate(cells):
            (linear,) = weights.to_haiku_lstm(params).values()
            tree[f"lstm_{index}/linear" if index else "lstm/linear"] = linear
        return jax.tree.map(lambda a: a.astype(setting.dtype), tree)

    def run(tree: Any, xs: Any, lengths: Any) -> Any:
        return transformed.apply(tree, xs)

    def step(tree: Any, x: Any, carry: Any) -> Any:
        y, (h, c) = one.apply(tree, x, hk.LSTMState(carry[0], carry[1].astype(setting.dtype)))
        return (h, c), y

    return Form(convert, step if case.streaming else run)


def declines(case: Case, mode: str, setting: Setting) -> str | None:
    # Its GRU applies the reset gate before the product, and its RNN has no tanh.
    if reason := only({"LSTM"})(case, mode, setting):
        return reason
    return "its unrolls take no lengths" if case.ragged else None


HAIKU = Contestant(
    "haiku", "hk.dynamic_unroll(hk.LSTM(H), ...)", "dm-haiku", imports("haiku"), declines, build_jax(form)
)
