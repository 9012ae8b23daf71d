"""The word model: embedding, LSTMs, softmax; dropouts of Zaremba et al. 2014 or of Merity et al. 2018."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from training import UserError

import lstm_jax

Params = dict[str, Any]  # embedding (V, E), layers, bias (V,), and softmax (H, V) unless it is tied


@dataclass(frozen=True)
class Model:
    """Sizes and dropouts.

    Zaremba et al.: one ``dropout`` on the embedding's output, between layers and before the softmax, a
    fresh mask for every word; never on the recurrence. Merity et al. (``awd``): one mask for a whole
    window, each place with its own rate; dropped recurrent weights; words dropped from the embedding; the
    embedding is the softmax's matrix as well.
    """

    vocabulary: int
    embedding: int
    hidden: int
    layers: int
    awd: bool = False
    init: float = 0.1  # weights start uniform in plus or minus this
    dropout: float = 0.0  # before the softmax; in Zaremba's model everywhere
    dropout_input: float = 0.0
    dropout_hidden: float = 0.0
    dropout_words: float = 0.0
    weight_drop: float = 0.0
    mesh: Mesh | None = None  # whose axis "model" has a part of the units on each device
    rows: str | None = "data"  # the mesh's axis of the rows; None: every device has all

    def over(self, mesh: Mesh | None, rows: str | None = "data") -> Model:
        """The model with its units over the devices of the mesh, if it has more than one for them."""
        if mesh is None or mesh.shape["model"] == 1:
            return self
        spread = replace(self, mesh=mesh, rows=rows)
        try:
            spread.network()
        except ValueError as error:
            raise UserError(f"--mesh model={mesh.shape['model']}: {error}") from None
        return spread

    @property
    def sizes(self) -> list[int]:
        """Features at each height: the tied softmax reads as many as a word has."""
        return [
            self.embedding,
            *[self.hidden] * (self.layers - 1),
            self.embedding if self.awd else self.hidden,
        ]

    def cells(self) -> list[lstm_jax.LSTM]:
        """The LSTMs alone."""
        zeros = jax.nn.initializers.zeros  # no forget bias
        return [
            lstm_jax.LSTM(below, size, bias_init=zeros)
            for below, size in zip(self.sizes, self.sizes[1:], strict=False)
        ]

    def network(self) -> lstm_jax.Stack:
        """The LSTMs with what is random in and between them."""
        cells: list[Any] = self.cells()
        if self.weight_drop:
            cells = [lstm_jax.WeightDrop(cell, self.weight_drop) for cell in cells]
        if self.dropout_input:
            cells[0] = lstm_jax.VariationalDropout(cells[0], inputs=self.dropout_input)
        if self.awd:
            network = lstm_jax.Stack(tuple(cells), dropout=self.dropout_hidden, dropout_mask="sequence")
        else:
            network = lstm_jax.Stack(tuple(cells), dropout=self.dropout)
        return network if self.mesh is None else lstm_jax.shard(network, self.mesh, data=self.rows)

    def places(self, mesh: Mesh, params: Params) -> Params:
        """Where the parameters lie: units over ``model``, and words where it divides their number."""
        vocabulary = "model" if self.mesh and self.vocabulary % mesh.shape["model"] == 0 else None
        specs = {"embedding": P(vocabulary), "softmax": P(None, vocabulary), "bias": P(vocabulary)}
        found: Params = {name: NamedSharding(mesh, specs[name]) for name in params if name != "layers"}
        if self.mesh is None:
            whole = NamedSharding(mesh, P())
            return found | {"layers": jax.tree.map(lambda _: whole, params["layers"])}
        return found | {"layers": lstm_jax.shardings(self.network(), params["layers"])}

    def init_params(self, key: jax.Array) -> Params:
        """Everything uniform in plus or minus ``init``, biases too (Zaremba et al.'s own code has them so).

        AWD: the embedding is; LSTMs begin as PyTorch's, the softmax's bias at 0.
        """
        k_layers, k_embedding, k_softmax, k_bias = jax.random.split(key, 4)
        shapes = jax.eval_shape(lstm_jax.Stack(tuple(self.cells())).init, k_layers)
        embedding = self._uniform(k_embedding, (self.vocabulary, self.embedding))
        if self.awd:
            layers = lstm_jax.torch_init(lstm_jax.Stack(tuple(self.cells())), k_layers)
            return {"embedding": embedding, "layers": layers, "bias": jnp.zeros(self.vocabulary)}
        leaves, structure = jax.tree.flatten(shapes)
        keys = jax.random.split(k_layers, len(leaves))
        drawn = [self._uniform(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        return {
            "embedding": embedding,
            "layers": jax.tree.unflatten(structure, drawn),
            "softmax": self._uniform(k_softmax, (self.hidden, self.vocabulary)),
            "bias": self._uniform(k_bias, (self.vocabulary,)),
        }

    def _uniform(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.uniform(key, shape, minval=-self.init, maxval=self.init)


class Window(NamedTuple):
    """A batch: a window of every stream."""

    ids: jax.Array  # (T + 1, B); the last row is only predicted
    length: jax.Array  # (), int32: words of the window that are no padding
    begins: jax.Array  # (), bool: an epoch begins, so nothing is remembered
    lr: jax.Array  # ()


def drop(key: jax.Array | None, rate: float, x: jax.Array, mask_shape: tuple[int, ...]) -> jax.Array:
    """Dropout with a mask of that shape; what is kept is divided by its share."""
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, mask_shape), x / (1 - rate), 0)


def forward(
    model: Model,
    params: Params,
    carry: Any,
    ids: jax.Array,
    lengths: Any = None,
    key: jax.Array | None = None,
) -> tuple[Any, jax.Array, tuple[jax.Array, jax.Array]]:
    """``(carry, logits, (ys, dropped))`` of ids (T, B): what the last layer says before and after dropout."""
    k_words, k_in, k_network, k_out = (None,) * 4 if key is None else jax.random.split(key, 4)
    embedding = drop(k_words, model.dropout_words, params["embedding"], (model.vocabulary, 1))
    xs = embedding[ids]
    if not model.awd:
        xs = drop(k_in, model.dropout, xs, xs.shape)
    carry, ys = lstm_jax.unroll(model.network(), params["layers"], xs, carry, lengths=lengths, key=k_network)
    dropped = drop(k_out, model.dropout, ys, ys.shape[1:] if model.awd else ys.shape)
    # The tied softmax reads the whole embedding: words are dropped where they are read, not predicted.
    softmax = params["embedding"].T if model.awd else params["softmax"]
    return carry, dropped @ softmax + params["bias"], (ys, dropped)


def nats(logits: jax.Array, targets: jax.Array, length: jax.Array) -> jax.Array:
    """The sum of the cross-entropies of the first ``length`` rows of targets."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(jnp.where(jnp.arange(len(targets))[:, None] < length, losses, 0))


@partial(jax.jit, static_argnums=(0, 3))
def evaluate(model: Model, params: Params, ids: jax.Array, window: int) -> jax.Array:
    """Mean nats of all words after the first of each stream of ids (N, B); padding is not counted.

    Windows bound the memory, not what the network remembers: the carry passes through all of them.
    """
    count = -(-(len(ids) - 1) // window)
    padded = jnp.pad(ids, ((0, count * window + 1 - len(ids)), (0, 0)))

    def step(carry: Any, start: jax.Array) -> tuple[Any, jax.Array]:
        cut = jax.lax.dynamic_slice_in_dim(padded, start, window + 1)
        carry, logits, _ = forward(model, params, carry, cut[:-1])
        return carry, nats(logits, cut[1:], len(ids) - 1 - start)

    fresh = model.network().initial_carry((ids.shape[1],), params["layers"])
    _, sums = jax.lax.scan(step, fresh, jnp.arange(count) * window)
    return sums.sum() / ((len(ids) - 1) * ids.shape[1])
