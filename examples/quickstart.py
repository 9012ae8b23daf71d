"""Train an LSTM to add two numbers that it read some steps ago: the whole loop in one file.

    python examples/quickstart.py

A sequence has 10 to 20 steps. Each step is a random number and a flag. Two of the flags are 1, and the target
is the sum of the numbers beside them. The network has to remember the first number until it reads the second
(the adding problem of Hochreiter & Schmidhuber 1997). A network that always predicts the mean has a mean
squared error of 1/6.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

import lstm_jax

T, B, H, STEPS = 20, 64, 32, 500

cell = lstm_jax.LSTM(input_size=2, hidden_size=H)
readout = lstm_jax.Readout(H, 1)
optimizer = optax.adam(1e-2)


def batch(key):
    """Padded inputs (T, B, 2), lengths (B,) and targets (B,)."""
    k_lengths, k_numbers, k_flags = jax.random.split(key, 3)
    lengths = jax.random.randint(k_lengths, (B,), 10, T + 1)
    numbers = jax.random.uniform(k_numbers, (T, B))
    # Random scores, where the two largest of the valid steps get the flag.
    scores = jnp.where(jnp.arange(T)[:, None] < lengths, jax.random.uniform(k_flags, (T, B)), -1.0)
    flags = scores >= jnp.sort(scores, axis=0)[-2]
    return jnp.stack([numbers, flags], axis=-1), lengths, jnp.sum(numbers * flags, axis=0)


def loss(params, xs, lengths, targets):
    """Mean squared error of the prediction after the last valid step."""
    (h, _), _ = lstm_jax.unroll(cell, params["cell"], xs, lengths=lengths)
    return jnp.mean((readout(params["readout"], h)[:, 0] - targets) ** 2)


@partial(jax.jit, donate_argnums=(0, 1))
def train(params, state, key):
    value, gradients = jax.value_and_grad(loss)(params, *batch(key))
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, value


k_cell, k_readout, k_data = jax.random.split(jax.random.key(0), 3)
params = {"cell": cell.init(k_cell), "readout": readout.init(k_readout)}
state = optimizer.init(params)
for step in range(STEPS + 1):
    params, state, value = train(params, state, jax.random.fold_in(k_data, step))
    if step % 100 == 0:
        print(f"step {step:4}  mean squared error {value:.4f}")
