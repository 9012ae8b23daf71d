"""The word model: embedding, LSTMs, softmax; dropout as in Zaremba et al. 2014 or Merity et al. 2018."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from training import UserError, stream_loss

import lstm_jax

Params = dict[str, Any]  # embedding (V, E), layers, bias (V,); softmax (H, V) unless it is tied


@dataclass(frozen=True)
class Model:
    """Sizes and dropout rates.

    Zaremba et al.: one rate, ``dropout``, for the embedding's output, between layers and before the softmax.
    Every word has its own mask. The recurrence has no dropout.

    Merity et al. (``awd``): one mask per window and a rate for each place; dropout of recurrent weights and
    of words in the embedding. The embedding is also the softmax matrix.
    """

    vocabulary: int
    embedding: int
    hidden: int
    layers: int
    awd: bool = False
    init: float = 0.1  # initial weights are uniform in [-init, init]
    dropout: float = 0.0  # before the softmax; in Zaremba's model everywhere
    dropout_input: float = 0.0
    dropout_hidden: float = 0.0
    dropout_words: float = 0.0
    weight_drop: float = 0.0
    mesh: Mesh | None = None  # splits the units over its axis "model"
    rows: str | None = "data"  # the mesh axis that splits the rows; None replicates them

    def sharded(self, mesh: Mesh | None, rows: str | None = "data") -> Model:
        """The model with its units split over the mesh, if the axis ``model`` has more than one device."""
        if mesh is None or mesh.shape["model"] == 1:
            return self
        model = replace(self, mesh=mesh, rows=rows)
        try:
            model.network()
        except ValueError as error:
            raise UserError(f"--mesh model={mesh.shape['model']}: {error}") from None
        return model

    @property
    def sizes(self) -> list[int]:
        """Features of the embedding and of each layer. A tied softmax needs E in the last layer."""
        last = self.embedding if self.awd else self.hidden
        return [self.embedding, *[self.hidden] * (self.layers - 1), last]

    def cells(self) -> list[lstm_jax.LSTM]:
        """The LSTMs without dropout."""
        zeros = jax.nn.initializers.zeros  # no forget bias
        return [lstm_jax.LSTM(inputs, size, bias_init=zeros) for inputs, size in pairwise(self.sizes)]

    def network(self) -> lstm_jax.Stack:
        """The LSTMs with dropout in and between them."""
        cells: list[Any] = self.cells()
        if self.weight_drop:
            cells = [lstm_jax.WeightDrop(cell, self.weight_drop) for cell in cells]
        if self.dropout_input:
            cells[0] = lstm_jax.VariationalDropout(cells[0], inputs=self.dropout_input)
        between = (self.dropout_hidden if self.awd else self.dropout) if len(cells) > 1 else 0.0
        mask = "sequence" if self.awd else "step"
        network = lstm_jax.Stack(tuple(cells), dropout=between, dropout_mask=mask)
        return network if self.mesh is None else lstm_jax.shard(network, self.mesh, data=self.rows)

    def shardings(self, mesh: Mesh, params: Params) -> Params:
        """Shardings of the parameters: the units over ``model``, and the words if it divides their number."""
        vocabulary = "model" if self.mesh and self.vocabulary % mesh.shape["model"] == 0 else None
        specs = {"embedding": P(vocabulary), "softmax": P(None, vocabulary), "bias": P(vocabulary)}
        found: Params = {name: NamedSharding(mesh, specs[name]) for name in params if name != "layers"}
        if self.mesh is None:
            replicated = NamedSharding(mesh, P())
            return found | {"layers": jax.tree.map(lambda _: replicated, params["layers"])}
        return found | {"layers": lstm_jax.shardings(self.network(), params["layers"])}

    def init_params(self, key: jax.Array) -> Params:
        """Initial weights and biases, uniform in [-init, init], as in the code of Zaremba et al.

        With ``awd``, only the embedding is; the LSTMs start as PyTorch's do, and the softmax bias is 0.
        """
        k_layers, k_embedding, k_softmax, k_bias = jax.random.split(key, 4)
        network = lstm_jax.Stack(tuple(self.cells()))
        embedding = self._uniform(k_embedding, (self.vocabulary, self.embedding))
        if self.awd:
            layers = lstm_jax.torch_init(network, k_layers)
            return {"embedding": embedding, "layers": layers, "bias": jnp.zeros(self.vocabulary, jnp.float32)}
        leaves, structure = jax.tree.flatten(jax.eval_shape(network.init, k_layers))
        keys = jax.random.split(k_layers, len(leaves))
        drawn = [self._uniform(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        return {
            "embedding": embedding,
            "layers": jax.tree.unflatten(structure, drawn),
            "softmax": self._uniform(k_softmax, (self.hidden, self.vocabulary)),
            "bias": self._uniform(k_bias, (self.vocabulary,)),
        }

    def _uniform(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.uniform(key, shape, jnp.float32, -self.init, self.init)


def drop(key: jax.Array | None, rate: float, x: jax.Array, mask_shape: tuple[int, ...]) -> jax.Array:
    """Inverted dropout with a mask of the given shape."""
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, jnp.float32(1 - rate), mask_shape), x / (1 - rate), 0)


def forward(
    model: Model,
    params: Params,
    carry: Any,
    ids: jax.Array,
    lengths: Any = None,
    key: jax.Array | None = None,
) -> tuple[Any, jax.Array, tuple[jax.Array, jax.Array]]:
    """``(carry, logits, (ys, dropped))`` of ids (T, B): the last layer's outputs before and after dropout."""
    k_words, k_in, k_network, k_out = (None,) * 4 if key is None else jax.random.split(key, 4)
    embedding = drop(k_words, model.dropout_words, params["embedding"], (model.vocabulary, 1))
    xs = embedding[ids]
    if not model.awd:
        xs = drop(k_in, model.dropout, xs, xs.shape)
    carry, ys = lstm_jax.unroll(model.network(), params["layers"], xs, carry, lengths=lengths, key=k_network)
    dropped = drop(k_out, model.dropout, ys, ys.shape[1:] if model.awd else ys.shape)
    # The tied softmax uses the embedding without dropout: words are dropped from the inputs only.
    softmax = params["embedding"].T if model.awd else params["softmax"]
    return carry, dropped @ softmax + params["bias"], (ys, dropped)


@partial(jax.jit, static_argnums=(0, 3))
def evaluate(model: Model, params: Params, ids: jax.Array, window: int) -> jax.Array:
    """Mean nats of all words after the first of each stream of ids (N, B)."""

    def losses(carry: Any, ids: jax.Array) -> tuple[Any, jax.Array]:
        carry, logits, _ = forward(model, params, carry, ids[:-1])
        return carry, optax.softmax_cross_entropy_with_integer_labels(logits, ids[1:])

    carry = model.network().initial_carry((ids.shape[1],), params["layers"])
    return stream_loss(losses, carry, ids, window)
