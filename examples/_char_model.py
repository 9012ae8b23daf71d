"""The character model: its network, its loss, its samples, and how it is kept in a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from training import count, load_weights, save_weights

import lstm_jax

CELLS = {"rnn": lstm_jax.RNN, "lstm": lstm_jax.LSTM, "gru": lstm_jax.GRU}
FORMAT = "lstm_jax/char_lm/1"  # written into every weights file, and looked for when one is read

Params = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """All that is needed, beside the weights, to build the network again."""

    vocabulary: str
    cell: str
    hidden: int
    layers: int
    embedding: int  # features of a character; 0 for one-hot
    dropout: float

    def network(self) -> lstm_jax.Stack:
        """Recurrent layers and a read-out, whose outputs are the logits of the next character."""
        sizes = [self.embedding or len(self.vocabulary), *[self.hidden] * self.layers]
        cells = [CELLS[self.cell](below, size) for below, size in pairwise(sizes)]
        readout = lstm_jax.Readout(self.hidden, len(self.vocabulary))
        return lstm_jax.Stack((*cells, readout), dropout=self.dropout)

    def size(self) -> int:
        """How many weights the network has."""
        return count(jax.eval_shape(self.init, jax.random.key(0)))

    def init(self, key: jax.Array) -> Params:
        k_layers, k_embedding = jax.random.split(key)
        params: Params = {"layers": self.network().init(k_layers)}
        if self.embedding:
            params["embedding"] = jax.random.normal(k_embedding, (len(self.vocabulary), self.embedding))
        return params


def features(network: lstm_jax.Stack, params: Params, ids: jax.Array) -> jax.Array:
    """What the network reads for each character: its row of the embedding, or a one at its place."""
    if "embedding" in params:
        return params["embedding"][ids]
    return jax.nn.one_hot(ids, network.input_size)


def nats(
    network: lstm_jax.Stack, params: Params, carry: Any, ids: jax.Array, **noise: Any
) -> tuple[Any, jax.Array]:
    """``(carry, losses)``: the cross-entropy of each character of ``ids`` (T + 1, ...) after the first."""
    xs = features(network, params, ids[:-1])
    carry, logits = lstm_jax.unroll(network, params["layers"], xs, carry, **noise)
    return carry, optax.softmax_cross_entropy_with_integer_labels(logits, ids[1:])


@partial(jax.jit, static_argnums=(0, 3))
def evaluate(network: lstm_jax.Stack, params: Params, ids: jax.Array, window: int = 1000) -> jax.Array:
    """Mean nats of all characters after the first, read as one stream, each of them counted once.

    Windows bound the memory, not what the network remembers: the carry passes through all of them.
    """
    count = -(-(len(ids) - 1) // window)
    padded = jnp.pad(ids, (0, count * window + 1 - len(ids)))
    places = jnp.arange(count)[:, None] * window + jnp.arange(window + 1)

    def step(carry: Any, place: jax.Array) -> tuple[Any, jax.Array]:
        carry, losses = nats(network, params, carry, padded[place])
        return carry, jnp.sum(jnp.where(place[1:] < len(ids), losses, 0))

    _, sums = jax.lax.scan(step, network.initial_carry((), params["layers"]), places)
    return sums.sum() / (len(ids) - 1)


@partial(jax.jit, static_argnums=(0, 4))
def sample(
    network: lstm_jax.Stack,
    params: Params,
    key: jax.Array,
    prompt: jax.Array,
    length: int,
    temperature: float | jax.Array,
) -> jax.Array:
    """``length`` characters that go on from ``prompt``: what was drawn is read as the next input."""
    xs = features(network, params, prompt)
    carry, logits = lstm_jax.unroll(network, params["layers"], xs)

    def step(state: tuple[Any, jax.Array], key: jax.Array) -> tuple[tuple[Any, jax.Array], jax.Array]:
        carry, logits = state
        drawn = jax.random.categorical(key, logits / temperature)
        return network.step(params["layers"], carry, features(network, params, drawn)), drawn

    return jax.lax.scan(step, (carry, logits[-1]), jax.random.split(key, length))[1]


# --- the weights in a file -------------------------------------------------------------------------


def save(folder: Path, model: Model, params: Params) -> None:
    save_weights(folder, FORMAT, asdict(model), params)


def load(folder: Path) -> tuple[Model, Params]:
    """The model of a run folder, from its ``weights.safetensors`` alone."""
    fields, params = load_weights(
        folder, FORMAT, lambda fields: jax.eval_shape(Model(**fields).init, jax.random.key(0))
    )
    return Model(**fields), params
