"""Keras with the JAX backend: ``stateless_call`` of ``keras.layers.LSTM``, ``GRU`` or ``SimpleRNN``."""

from __future__ import annotations

import os
from typing import Any

from benchmarks import weights
from benchmarks.cases import Case, Setting
from benchmarks.contestants.contestant import Contestant, Form, build_jax, only

CELLS = {"LSTM": "LSTM", "GRU": "GRU", "RNN": "SimpleRNN"}
POLICY = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def form(case: Case, setting: Setting) -> Form:
    """Batch-major, as its layers require, and compiled as a loop."""
    import keras

    options = {"return_sequences": True, "unroll": False, "dtype": POLICY[setting.dtype]}
    options |= {"zero_output_for_mask": True} if case.ragged else {}
    if case.cell != "RNN" and (case.ensemble or setting.platform != "gpu"):
        # its cuDNN call does not support vmap
        options |= {"use_cudnn": False}

    def layer(size: int) -> Any:
        if case.streaming:
            made = keras.layers.LSTMCell(case.H, dtype=POLICY[setting.dtype])
            made.build((case.B, size))
            return made
        made = getattr(keras.layers, CELLS[case.cell])(case.H, **options)
        if case.bidirectional:
            made = keras.layers.Bidirectional(made, merge_mode="concat")
        made.build((case.B, case.T, size))
        return made

    modules = [layer(case.D), *(layer(case.output_size) for _ in range(case.layers - 1))]
    frozen = [[variable.value for variable in module.non_trainable_variables] for module in modules]

    def convert(layers: Any) -> Any:
        return [[a for params in layer for a in weights.to_keras(params)] for layer in layers]

    def run(arrays: Any, xs: Any, lengths: Any) -> Any:
        mask = {} if lengths is None else {"mask": keras.ops.arange(case.T)[None] < lengths[:, None]}
        for module, trained, other in zip(modules, arrays, frozen, strict=True):
            xs, _ = module.stateless_call(trained, other, xs, **mask)
        return xs

    def step(arrays: Any, x: Any, carry: Any) -> Any:
        (y, after), _ = modules[0].stateless_call(arrays[0], frozen[0], x, list(carry))
        return tuple(after), y

    return Form(convert, step if case.streaming else run, time_major=False)


def absent() -> str | None:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    try:
        import keras
    except ImportError as error:
        return str(error)
    if keras.backend.backend() != "jax":
        return f"Keras uses the backend {keras.backend.backend()}; set KERAS_BACKEND=jax"
    return None


def declines(case: Case, mode: str, setting: Setting) -> str | None:
    if setting.dtype not in POLICY:
        return f"no policy for {setting.dtype}"
    return only(CELLS)(case, mode, setting)


KERAS = Contestant(
    "keras", "keras.layers.LSTM(H, return_sequences=True)", "keras", absent, declines, build_jax(form)
)
