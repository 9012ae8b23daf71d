"""The character model: its network, its loss, its samples, and how it is kept in a file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy
from _char_text import UserError

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
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(self.init, jax.random.key(0))))

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


def write_whole(path: Path, data: bytes) -> None:
    """The whole file or none of it: nobody finds half a file, whenever the program is stopped."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def by_name(params: Params) -> dict[str, Any]:
    """The arrays by flat names: layers.0.w_ih."""
    leaves = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def save(path: Path, model: Model, params: Params) -> None:
    arrays = {name: np.asarray(leaf) for name, leaf in by_name(params).items()}
    metadata = {"format": FORMAT, "model": json.dumps(asdict(model))}
    write_whole(path, safetensors.numpy.save(arrays, metadata))


def load(folder: Path) -> tuple[Model, Params]:
    """The model of a run folder, from its ``weights.safetensors`` alone."""
    path = folder / "weights.safetensors"
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: jnp.asarray(file.get_tensor(name)) for name in file.keys()}
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or 'no such file'}; has a run ended there?"
        ) from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} was not written by this program")
    try:
        model = Model(**json.loads(metadata["model"]))
        expected = jax.eval_shape(model.init, jax.random.key(0))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: it names no network ({error})") from None
    shapes = {name: leaf.shape for name, leaf in by_name(expected).items()}
    if shapes != {name: array.shape for name, array in arrays.items()}:
        raise UserError(f"{path} is damaged: its arrays do not fit the network it names")
    return model, jax.tree.unflatten(jax.tree.structure(expected), [arrays[name] for name in shapes])
