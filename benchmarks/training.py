"""Training throughput on language models of the Penn Treebank's sizes, in words a second.

The three networks of Zaremba et al. 2014: an embedding, two LSTM layers with dropout, a softmax over 10,000
words; gradients clipped by their norm, plain gradient descent, the carry handed on from window to window.
The words are random: only the time counts. ``python -m benchmarks.training``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import lstm_jax
from benchmarks import report
from benchmarks.cases import Setting, precision
from benchmarks.contestants.ours import NAMES
from benchmarks.sheet import Sheet


class Size(NamedTuple):
    """A network, and the windows that it is trained on."""

    name: str
    H: int
    T: int
    dropout: float
    clip: float
    B: int = 20
    words: int = 10_000


SIZES = (Size("small", 200, 20, 0.0, 5), Size("medium", 650, 35, 0.5, 5), Size("large", 1500, 35, 0.65, 10))
QUICK_SIZES = (Size("tiny", 4, 3, 0.5, 5, B=2, words=11),)


def make(size: Size, dtype: str, implementation: str) -> tuple[Any, Any]:
    """``(step, state)``: one step of training, ``step(state, words, key) -> (state, loss)``."""
    network = lstm_jax.Stack(
        tuple(lstm_jax.LSTM(size.H, size.H, dtype=dtype) for _ in range(2)), dropout=size.dropout
    )

    def loss(weights: Any, carry: Any, words: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        embedding, params, out = weights
        xs = embedding.astype(dtype)[words[:-1]]
        noise = key if size.dropout else None
        carry, ys = lstm_jax.unroll(network, params, xs, carry, key=noise, implementation=implementation)
        logits = jnp.matmul(ys, out.astype(dtype), preferred_element_type=jnp.float32)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), words[1:, :, None], axis=-1)
        return -jnp.mean(chosen), carry

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, words: jax.Array, key: jax.Array) -> Any:
        weights, carry = state
        (value, carry), slopes = jax.value_and_grad(loss, has_aux=True)(weights, carry, words, key)
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(slopes)))
        rate = jnp.minimum(1.0, size.clip / norm)
        return (jax.tree.map(lambda w, g: w - rate * g, weights, slopes), carry), value

    keys = jax.random.split(jax.random.key(0), 3)
    weights = (
        jax.random.uniform(keys[0], (size.words, size.H), minval=-0.05, maxval=0.05),
        network.init(keys[1]),
        jax.random.uniform(keys[2], (size.H, size.words), minval=-0.05, maxval=0.05),
    )
    return step, (weights, network.initial_carry((size.B,), weights[1]))


def words_per_second(size: Size, dtype: str, implementation: str, seconds: float) -> dict[str, Any]:
    """Over as many steps as fit into the time, after three that do not count."""
    step, state = make(size, dtype, implementation)
    words = jax.random.randint(jax.random.key(1), (size.T + 1, size.B), 0, size.words)
    key = jax.random.key(2)
    began = time.perf_counter()
    for _ in range(3):
        state, value = step(state, words, key)
    jax.block_until_ready(value)
    ready = time.perf_counter()
    steps = 0
    while (now := time.perf_counter()) - ready < seconds or not steps:
        for _ in range(10):
            state, value = step(state, words, key)
        jax.block_until_ready((state, value))
        steps += 10
    now = time.perf_counter()
    rate = steps * size.T * size.B / (now - ready)
    values = {"words/s": rate, "ms a step": (now - ready) / steps * 1e3, "first 3 steps s": ready - began}
    return values | {"loss": float(value)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a tiny network and few steps")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="of measuring, a row (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="(default: %(default)s)")
    args = parser.parse_args(argv)
    platform = jax.default_backend()
    kinds = [(dtype, tf32) for dtype in ("float32", "bfloat16") for tf32 in (False, True)]
    kinds = [(dtype, tf32) for dtype, tf32 in kinds if not tf32 or (platform == "gpu" and dtype == "float32")]
    sheet = Sheet(
        args.out,
        "training",
        "Training language models of the Penn Treebank's sizes",
        ("size", "dtype", "implementation", "words/s", "ms a step", "first 3 steps s", "loss", "note"),
        report.machine(Setting(platform, "mixed"), (), {}),
        ("Two layers, 20 rows, 10,000 words (random ones), forward, backward and update.",),
    )
    for dtype, tf32 in kinds:
        for size in QUICK_SIZES if args.quick else SIZES:
            for name in NAMES:
                kind = f"{dtype}{' (TF32)' if tf32 else ''}"
                sheet.begin(size=f"{size.name}, H {size.H}", dtype=kind, implementation=name)
                try:
                    with precision(Setting(platform, dtype, tf32)):
                        values = words_per_second(size, dtype, name, 0.0 if args.quick else args.seconds)
                except Exception as error:  # told, and the others go on
                    values = {"note": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
                sheet.end(**values)
    return 0


if __name__ == "__main__":
    sys.exit(main())
