"""``jax.experimental.rnn``: cuDNN's LSTM, called from JAX, in float32 on NVIDIA GPUs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import weights
from benchmarks.cases import Case, Setting
from benchmarks.contestants.contestant import Contestant, Form, build_jax, imports, only


def form(case: Case, setting: Setting) -> Form:
    """Batch-major, with one flat vector of weights for all layers and directions."""
    from jax.experimental import rnn

    cells = case.layers * (2 if case.bidirectional else 1)
    precision = jax.lax.Precision.HIGH if setting.tf32 else jax.lax.Precision.HIGHEST

    def convert(layers: Any) -> Any:
        return weights.to_cudnn([params for layer in layers for params in layer])

    def run(flat: Any, xs: Any, lengths: Any) -> Any:
        zeros = jnp.zeros((cells, case.B, case.H), xs.dtype)
        if lengths is None:
            lengths = jnp.full((case.B,), case.T, jnp.int32)
        ys, _, _ = rnn.lstm(
            xs,
            zeros,
            zeros,
            flat,
            lengths,
            case.D,
            case.H,
            case.layers,
            0.0,
            case.bidirectional,
            precision,
        )
        return ys

    return Form(convert, run, time_major=False)


def declines(case: Case, mode: str, setting: Setting) -> str | None:
    if setting.platform != "gpu":
        return "runs on GPUs only"
    if setting.dtype != "float32":
        return "float32 only"
    if case.ensemble:
        return "does not support vmap"
    return "whole sequences only" if case.streaming else only({"LSTM"})(case, mode, setting)


CUDNN = Contestant(
    "jax.experimental.rnn",
    "jax.experimental.rnn.lstm (cuDNN)",
    "jax",
    imports("jax.experimental.rnn"),
    declines,
    build_jax(form),
)
