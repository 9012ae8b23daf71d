"""Recurrent networks: the library's cells by name, the loss of a long stream, continuing a sequence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import lstm_jax

#: The cells whose inputs are vectors. ``CELLS[name](input_size, hidden_size)`` makes one.
CELLS: dict[str, Any] = {
    cell.__name__.lower(): cell
    for cell in (
        lstm_jax.RNN,
        lstm_jax.GRU,
        lstm_jax.LSTM,
        lstm_jax.IndRNN,
        lstm_jax.LeakyRNN,
        lstm_jax.FullGateLSTM,
        lstm_jax.MinGRU,
        lstm_jax.MinLSTM,
        lstm_jax.MLSTM,
        lstm_jax.SLSTM,
    )
}


def stream_loss(
    losses: Callable[[Any, jax.Array], tuple[Any, jax.Array]], carry: Any, ids: jax.Array, window: int
) -> jax.Array:
    """Mean loss of all symbols after the first of each stream in ``ids`` (N, ...).

    The streams are processed in windows of ``window`` symbols, which bounds the memory. The carry is passed
    from window to window, so the network's context is not cut.

    Args:
        losses: ``losses(carry, ids (T + 1, ...)) -> (carry, losses (T, ...))``: the loss of each symbol
            after the first.
        carry: the carry before the first symbol.
    """
    predicted = len(ids) - 1
    windows = -(-predicted // window)
    padding = windows * window - predicted
    padded = jnp.pad(ids, ((0, padding), *[(0, 0)] * (ids.ndim - 1)))

    def step(carry: Any, start: jax.Array) -> tuple[Any, jax.Array]:
        carry, values = losses(carry, jax.lax.dynamic_slice_in_dim(padded, start, window + 1))
        valid = start + jnp.arange(window) < predicted
        return carry, jnp.sum(jnp.where(jnp.expand_dims(valid, range(1, values.ndim)), values, 0))

    _, sums = jax.lax.scan(step, carry, jnp.arange(windows) * window)
    return sums.sum() / (predicted * math.prod(ids.shape[1:]))


def generate(
    network: lstm_jax.Stack,
    params: Any,
    prompt: jax.Array,
    draw: Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]],
    key: jax.Array,
    length: int,
) -> Any:
    """Continue a sequence: each drawn element is the network's next input.

    Args:
        prompt: the inputs that come before, (T, ...).
        draw: ``draw(key, output) -> (next input, result)``.
        length: number of elements to draw.

    Returns:
        The results of ``draw``, stacked along a first axis of size ``length``.
    """
    carry, outputs = lstm_jax.unroll(network, params, prompt)

    def step(state: tuple[Any, jax.Array], key: jax.Array) -> tuple[tuple[Any, jax.Array], Any]:
        carry, output = state
        x, result = draw(key, output)
        return network.step(params, carry, x), result

    return jax.lax.scan(step, (carry, outputs[-1]), jax.random.split(key, length))[1]
