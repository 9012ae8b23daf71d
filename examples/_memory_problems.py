"""The problems of ``long_memory.py``: what they show, what they ask, and what no memory at all would get.

Each is a function of a random key that makes fresh sequences, so that nothing can be learned by heart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

COPIED, ALPHABET = 10, 8  # symbols to copy, and how many kinds of them there are


@dataclass(frozen=True)
class Problem:
    """A problem at any lag T.

    ``draw(key, lag, batch) -> (xs, target)`` makes sequences, time first; ``loss(ys, target)`` judges what
    the network says at every step of them. The lag is in steps.
    """

    inputs: int
    outputs: int
    draw: Callable[[jax.Array, int, int], tuple[jax.Array, jax.Array]]
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    memoryless: Callable[[int], float]  # the loss of the best answer that remembers nothing
    solved: Callable[[int], float]  # the problem is solved below this loss
    unit: str


# --- adding (Hochreiter & Schmidhuber 1997, experiment 4; this form: Arjovsky et al. 2016) ---------


def draw_adding(key: jax.Array, lag: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """T numbers from [0, 1), two of them marked, one in each half; wanted: the sum of the two."""
    k_numbers, k_first, k_second = jax.random.split(key, 3)
    numbers = jax.random.uniform(k_numbers, (lag, batch))
    first = jax.random.randint(k_first, (batch,), 0, lag // 2)
    second = jax.random.randint(k_second, (batch,), lag // 2, lag)
    times = jnp.arange(lag)[:, None]
    marked = (times == first) | (times == second)
    return jnp.stack([numbers, marked.astype(numbers.dtype)], axis=-1), jnp.sum(numbers * marked, axis=0)


def squared_error(ys: jax.Array, target: jax.Array) -> jax.Array:
    """(y_T - target)^2, mean over the sequences."""
    return jnp.mean((ys[-1, :, 0] - target) ** 2)


# --- temporal order (Hochreiter & Schmidhuber 1997, experiment 6a) ---------------------------------


def draw_order(key: jax.Array, lag: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """An X or a Y at about T/10 and at about T/2 among four other symbols; wanted: which, in which order.

    The symbols are a, b, c, d, X, Y, and one that begins and one that ends each sequence.
    """
    k_others, k_relevant, k_first, k_second = jax.random.split(key, 4)
    symbols = jax.random.randint(k_others, (lag, batch), 0, 4)
    relevant = jax.random.randint(k_relevant, (2, batch), 0, 2)
    first = jax.random.randint(k_first, (batch,), lag // 10, lag // 5)
    second = jax.random.randint(k_second, (batch,), lag // 2, lag // 2 + lag // 10)
    times = jnp.arange(lag)[:, None]
    symbols = jnp.where(times == first, 4 + relevant[0], symbols)
    symbols = jnp.where(times == second, 4 + relevant[1], symbols)
    ends = jnp.full((1, batch), 7)
    symbols = jnp.concatenate([ends - 1, symbols, ends])
    return jax.nn.one_hot(symbols, 8), 2 * relevant[0] + relevant[1]


def last_cross_entropy(ys: jax.Array, target: jax.Array) -> jax.Array:
    """-ln p(target) by the last output's logits, mean over the sequences."""
    return optax.softmax_cross_entropy_with_integer_labels(ys[-1], target).mean()


# --- copy memory (Hochreiter & Schmidhuber 1997; this form: Arjovsky et al. 2016) ------------------


def draw_copy(key: jax.Array, lag: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """Ten symbols, T blanks, the last of them a signal to begin, ten more; wanted: blanks, then the ten."""
    data = jax.random.randint(key, (COPIED, batch), 0, ALPHABET)
    blanks = jnp.full((lag + COPIED, batch), ALPHABET)
    symbols = jnp.concatenate([data, blanks.at[lag - 1].set(ALPHABET + 1)])
    return jax.nn.one_hot(symbols, ALPHABET + 2), jnp.concatenate([blanks, data])


def every_cross_entropy(ys: jax.Array, target: jax.Array) -> jax.Array:
    """-ln p(target) at each step, mean over all steps of all sequences."""
    return optax.softmax_cross_entropy_with_integer_labels(ys, target).mean()


def guessing(lag: int) -> float:
    """Blanks are known, of each symbol nothing: 10 ln 8 nats over T + 20 steps."""
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
        "nats a step",
    ),
}
