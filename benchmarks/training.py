"""Training steps of language models of the Penn Treebank's sizes, by this library and by torch.

The networks of Zaremba et al. 2014: an embedding, two LSTM layers with dropout between them, and a
softmax over 10,000 words; gradients clipped by their global norm, plain gradient descent, and the carry
passed from window to window. The words are random, because only the time is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax
from benchmarks.cases import Setting, precision


class Size(NamedTuple):
    """A network and the windows that it is trained on."""

    name: str
    H: int
    T: int
    dropout: float
    clip: float
    B: int = 20
    words: int = 10_000


MEDIUM = Size("medium", 650, 35, 0.5, 5)
TINY = Size("tiny", 4, 3, 0.5, 5, B=2, words=11)


class Trainer(NamedTuple):
    """One library's training of one network."""

    steps: Callable[[int], float]  # makes this many steps, waits for them and returns the last loss
    first_loss: float  # of the initial weights: about log(words)


def batch(size: Size) -> np.ndarray:
    """Random words (T + 1, B)."""
    return np.random.default_rng(0).integers(0, size.words, (size.T + 1, size.B), np.int32)


def lstm_jax_trainer(size: Size, setting: Setting, implementation: str) -> Trainer:
    """Training with ``unroll``."""
    dtype = setting.dtype
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
        (value, carry), gradients = jax.value_and_grad(loss, has_aux=True)(weights, carry, words, key)
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(gradients)))
        rate = jnp.minimum(1.0, size.clip / norm)
        return (jax.tree.map(lambda w, g: w - rate * g, weights, gradients), carry), value

    keys = jax.random.split(jax.random.key(0), 3)
    weights = (
        jax.random.uniform(keys[0], (size.words, size.H), minval=-0.05, maxval=0.05),
        network.init(keys[1]),
        jax.random.uniform(keys[2], (size.H, size.words), minval=-0.05, maxval=0.05),
    )
    state = weights, network.initial_carry((size.B,), weights[1])
    words, key = jnp.asarray(batch(size)), jax.random.key(2)
    with precision(setting):
        compiled = step.lower(state, words, key).compile()
    box = [state]

    def steps(count: int) -> float:
        for _ in range(count):
            box[0], value = compiled(box[0], words, key)
        jax.block_until_ready(box[0])
        return float(value)

    return Trainer(steps, steps(1))


def torch_trainer(size: Size, setting: Setting) -> Trainer:
    """Training with ``torch.nn.LSTM``. A narrow dtype is used by autocast, with weights in float32."""
    import torch

    from benchmarks.contestants.torch_ import prepare, synchronize

    device = "cuda" if setting.platform == "gpu" else "cpu"
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(size.words, size.H)
    lstm = torch.nn.LSTM(size.H, size.H, 2, dropout=size.dropout)
    out = torch.nn.Linear(size.H, size.words, bias=False)
    network = torch.nn.ModuleDict({"embedding": embedding, "lstm": lstm, "out": out}).to(device)
    with torch.no_grad():
        for weights in (embedding.weight, out.weight):
            weights.uniform_(-0.05, 0.05)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    words = torch.tensor(batch(size), dtype=torch.int64, device=device)
    narrow = torch.autocast(device, getattr(torch, setting.dtype), enabled=setting.dtype != "float32")
    state: list[Any] = [None]

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with narrow:
            ys, carry = lstm(embedding(words[:-1]), state[0])
            logits = out(ys)
        value = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), words[1:].flatten())
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), size.clip)
        optimizer.step()
        state[0] = tuple(a.detach() for a in carry)
        return value

    def steps(count: int) -> float:
        prepare(torch, setting)
        for _ in range(count):
            value = step()
        synchronize(torch, setting)
        return float(value)

    return Trainer(steps, steps(1))
