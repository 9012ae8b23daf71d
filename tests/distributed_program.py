"""A small training program on a mesh, for one process or several. It prints the loss of each step.

The data are random symbols. The embedding, the LSTM, the GRU and the readout are split over both axes of the
mesh.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from training.distributed import global_batch, initialise, parse_mesh

import lstm_jax

T, B, E, H, V = 6, 8, 6, 16, 12


def loss(network, params, ids):
    _, logits = lstm_jax.unroll(network, params["layers"], params["embedding"][ids[:-1]])
    hit = jax.nn.one_hot(ids[1:], V)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - jnp.sum(hit * logits, axis=-1))


def batch_of(step):
    """The batch of a step, identical in every process."""
    return np.random.default_rng(step).integers(0, V, (T + 1, B), dtype=np.int32)


def train(args):
    mesh = parse_mesh(args.mesh)
    network = lstm_jax.Stack((lstm_jax.LSTM(E, H), lstm_jax.GRU(H, H), lstm_jax.Readout(H, V)))
    k_layers, k_embedding = jax.random.split(jax.random.key(0))
    params = {"layers": network.init(k_layers), "embedding": jax.random.normal(k_embedding, (V, E))}
    network = lstm_jax.shard(network, mesh)
    places = {
        "layers": lstm_jax.shardings(network, params["layers"]),
        "embedding": NamedSharding(mesh, P("model")),
    }
    params = jax.device_put(jax.device_get(params), places)

    @partial(jax.jit, out_shardings=(places, None))
    def step(params, ids):
        value, grads = jax.value_and_grad(partial(loss, network))(params, ids)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), value

    for index in range(args.steps):
        params, value = step(params, global_batch(batch_of(index), mesh))
        print(json.dumps({"step": index, "loss": float(value)}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mesh", required=True)
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    initialise(patience=60)
    train(args)
