"""The problems of ``long_memory.py``: their sequences, their losses, and the best loss without memory.

Sequences are functions of a random key. Every training step has new ones, so none can be memorized.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

COPIED, ALPHABET = 10, 8  # symbols to copy, and the number of different symbols


@dataclass(frozen=True)
class Problem:
    """A problem for any lag T, in steps.

    ``draw(key, lag, batch) -> (xs, target)`` generates sequences, time first. ``loss(ys, target)`` is the
    loss of the network's outputs ``ys`` at all steps.
    """

    inputs: int
    outputs: int
    draw: Callable[[jax.Array, int, int], tuple[jax.Array, jax.Array]]
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    memoryless: Callable[[int], float]  # the lowest loss without memory
    solved: Callable[[int], float]  # the loss below which the problem is solved
    unit: str


# --- adding (Hochreiter & Schmidhuber 1997, experiment 4; this form: Arjovsky et al. 2016) ---------


def draw_adding(key: jax.Array, lag: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """T numbers in [0, 1), with one marked in each half. The target is the sum of the marked numbers."""
    k_numbers, k_first, k_second = jax.random.split(key, 3)
    numbers = jax.random.uniform(k_numbers, (lag, batch), jnp.float32)
    first = jax.random.randint(k_first, (batch,), 0, lag // 2, jnp.int32)
    second = jax.random.randint(k_second, (batch,), lag // 2, lag, jnp.int32)
    times = jnp.arange(lag)[:, None]
    marked = (times == first) | (times == second)
    return jnp.stack([numbers, marked.astype(numbers.dtype)], axis=-1), jnp.sum(numbers * marked, axis=0)


def squared_error(ys: jax.Array, target: jax.Array) -> jax.Array:
    """(y_T - target)^2, mean over the sequences."""
    return jnp.mean((ys[-1, :, 0] - target) ** 2)


# --- temporal order (Hochreiter & Schmidhuber 1997, experiment 6a) ---------------------------------


def draw_order(key: jax.Array, lag: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """An X or a Y at about T/10 and one at about T/2, among other symbols. The target is the ordered pair.

    The symbols are a, b, c, d, X, Y, a start symbol and an end symbol.
    """
    k_others, k_relevant, k_first, k_second = jax.random.split(key, 4)
    symbols = jax.random.randint(k_others, (lag, batch), 0, 4, jnp.int32)
    relevant = jax.random.randint(k_relevant, (2, batch), 0, 2, jnp.int32)
    first = jax.random.randint(k_first, (batch,), lag // 10, lag // 5, jnp.int32)
    second = jax.random.randint(k_second, (batch,), lag // 2, lag // 2 + lag // 10, jnp.int32)
    times = jnp.arange(lag)[:, None]
    symbols = jnp.where(times == first, 4 + relevant[0], symbols)
    symbols = jnp.where(times == second, 4 + relevant[1], symbols)
    ends = jnp.full((1, batch), 7, jnp.int32)
    symbols = jnp.concatenate([ends - 1, symbols, ends])
    return jax.nn.one_hot(symbols, 8, dtype=jnp.float32), 2 * relevant[0] + relevant[1]


def last_cross_entropy(ys: jax.Array, target: jax.Array) -> jax.Array:
    """-ln p(target) with the logits at the last step, mean over the sequences."""
    return optax.softmax_cross_entropy_with_integer_labels(ys[-1], target).mean()


# --- copy memory (Hochreiter & Schmidhuber 1997; this form: Arjovsky et al. 2016) ------------------


def draw_copy(key: jax.Array, lag: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """Ten symbols, T blanks of which the last is a start signal, and ten blanks.

    The target is blanks, and then the ten symbols.
    """
    data = jax.random.randint(key, (COPIED, batch), 0, ALPHABET, jnp.int32)
    blanks = jnp.full((lag + COPIED, batch), ALPHABET, jnp.int32)
    symbols = jnp.concatenate([data, blanks.at[lag - 1].set(ALPHABET + 1)])
    return jax.nn.one_hot(symbols, ALPHABET + 2, dtype=jnp.float32), jnp.concatenate([blanks, data])


def every_cross_entropy(ys: jax.Array, target: jax.Array) -> jax.Array:
    """-ln p(target), mean over all steps of all sequences."""
    return optax.softmax_cross_entropy_with_integer_labels(ys, target).mean()


def guessing(lag: int) -> float:
    """The loss of predicting all blanks correctly, and every symbol with probability 1/8."""
    return COPIED * math.log(ALPHABET) / (lag + 2 * COPIED)


PROBLEMS = {
    # The sum's expectation is 1; its variance is twice that of a number from [0, 1).
    "adding": Problem(2, 1, draw_adding, squared_error, lambda lag: 1 / 6, lambda lag: 0.01, "squared error"),
    "order": Problem(8, 4, draw_order, last_cross_entropy, lambda lag: math.log(4), lambda lag: 0.1, "nats"),
    "copy": Problem(
        ALPHABET + 2,
        ALPHABET + 1,
        draw_copy,
        every_cross_entropy,
        guessing,
        lambda lag: 0.75 * guessing(lag),
        "nats per step",
    ),
}
