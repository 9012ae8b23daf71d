"""The character model: its network, its loss, its samples, and its weights in a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from training import CELLS, count, generate, load_weights, save_weights, stream_loss

import lstm_jax

FORMAT = "lstm_jax/char_lm/1"  # identifies the weights files of this program

Params = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """The hyperparameters of the network."""

    vocabulary: str
    cell: str
    hidden: int
    layers: int
    embedding: int  # features per character; 0 for one-hot
    dropout: float

    def network(self) -> lstm_jax.Stack:
        """Recurrent layers and a readout. The outputs are the logits of the next character."""
        sizes = [self.embedding or len(self.vocabulary), *[self.hidden] * self.layers]
        cells = [CELLS[self.cell](inputs, size) for inputs, size in pairwise(sizes)]
        readout = lstm_jax.Readout(self.hidden, len(self.vocabulary))
        return lstm_jax.Stack((*cells, readout), dropout=self.dropout)

    def size(self) -> int:
        """The number of weights."""
        return count(jax.eval_shape(self.init, jax.random.key(0)))

    def init(self, key: jax.Array) -> Params:
        k_layers, k_embedding = jax.random.split(key)
        params: Params = {"layers": self.network().init(k_layers)}
        if self.embedding:
            params["embedding"] = jax.random.normal(
                k_embedding, (len(self.vocabulary), self.embedding), jnp.float32
            )
        return params


def features(network: lstm_jax.Stack, params: Params, ids: jax.Array) -> jax.Array:
    """The network's inputs for characters: rows of the embedding, or one-hot vectors."""
    if "embedding" in params:
        return params["embedding"][ids]
    return jax.nn.one_hot(ids, network.input_size, dtype=jnp.float32)


def nats(
    network: lstm_jax.Stack, params: Params, carry: Any, ids: jax.Array, **noise: Any
) -> tuple[Any, jax.Array]:
    """``(carry, losses)``: the cross-entropy of each character of ``ids`` (T + 1, ...) after the first."""
    xs = features(network, params, ids[:-1])
    carry, logits = lstm_jax.unroll(network, params["layers"], xs, carry, **noise)
    return carry, optax.softmax_cross_entropy_with_integer_labels(logits, ids[1:])


@partial(jax.jit, static_argnums=(0, 3))
def evaluate(network: lstm_jax.Stack, params: Params, ids: jax.Array, window: int = 1000) -> jax.Array:
    """Mean nats of all characters after the first. ``ids`` is processed as one stream."""
    carry = network.initial_carry((), params["layers"])
    return stream_loss(partial(nats, network, params), carry, ids, window)


@partial(jax.jit, static_argnums=(0, 4))
def sample(
    network: lstm_jax.Stack,
    params: Params,
    key: jax.Array,
    prompt: jax.Array,
    length: int,
    temperature: float | jax.Array,
) -> jax.Array:
    """Draw ``length`` characters that continue ``prompt``."""

    def draw(key: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn = jax.random.categorical(key, logits / temperature)
        return features(network, params, drawn), drawn

    return generate(network, params["layers"], features(network, params, prompt), draw, key, length)


# --- the weights in a file -------------------------------------------------------------------------


def save(folder: Path, model: Model, params: Params) -> None:
    save_weights(folder, FORMAT, asdict(model), params)


def load(folder: Path) -> tuple[Model, Params]:
    """Read the model from ``weights.safetensors`` of a run folder."""
    fields, params = load_weights(
        folder, FORMAT, lambda fields: jax.eval_shape(Model(**fields).init, jax.random.key(0))
    )
    return Model(**fields), params
