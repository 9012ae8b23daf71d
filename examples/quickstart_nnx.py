"""The same task as quickstart.py, with a Flax NNX module and its optimizer.

    python examples/quickstart_nnx.py

Modules follow Flax: the batch comes before time, and a module returns the outputs. The task is described in
quickstart.py.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import lstm_jax.nnx

T, B, H, STEPS = 20, 64, 32, 500


class Adder(nnx.Module):
    """An LSTM and a linear layer that reads its last valid output."""

    def __init__(self, rngs):
        self.lstm = lstm_jax.nnx.LSTM(2, H, return_carry=True, rngs=rngs)
        self.readout = nnx.Linear(H, 1, rngs=rngs)

    def __call__(self, xs, lengths):
        (_, h), _ = self.lstm(xs, seq_lengths=lengths)  # (c, h) after the last valid step
        return self.readout(h)[:, 0]


def batch(key):
    """Padded inputs (B, T, 2), lengths (B,) and targets (B,)."""
    k_lengths, k_numbers, k_flags = jax.random.split(key, 3)
    lengths = jax.random.randint(k_lengths, (B,), 10, T + 1)
    numbers = jax.random.uniform(k_numbers, (B, T))
    # Random scores, where the two largest of the valid steps get the flag.
    scores = jnp.where(jnp.arange(T) < lengths[:, None], jax.random.uniform(k_flags, (B, T)), -1.0)
    flags = scores >= jnp.sort(scores, axis=1)[:, -2:-1]
    return jnp.stack([numbers, flags], axis=-1), lengths, jnp.sum(numbers * flags, axis=1)


@nnx.jit
def train(model, optimizer, key):
    xs, lengths, targets = batch(key)
    value, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(xs, lengths) - targets) ** 2))(model)
    optimizer.update(model, gradients)
    return value


model = Adder(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
for step in range(STEPS + 1):
    value = train(model, optimizer, jax.random.fold_in(jax.random.key(1), step))
    if step % 100 == 0:
        print(f"step {step:4}  mean squared error {value:.4f}")
