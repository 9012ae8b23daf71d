"""The training step of word_lm.py: a window, SGD with the learning rate of an epoch, averaged weights."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _word_model import Model, Params, forward
from _word_text import Plan, Windows
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from training import State, UserError

import lstm_jax


class Window(NamedTuple):
    """A batch: one window of every stream."""

    ids: jax.Array  # (T + 1, B); the last row is only a target
    length: jax.Array  # (), int32: words of the window without padding
    begins: jax.Array  # (), bool: whether an epoch begins, so that the carry is reset
    lr: jax.Array  # ()


class Average(NamedTuple):
    """The mean of the weights since averaging started (averaged SGD)."""

    on: jax.Array  # (), bool
    count: jax.Array  # (), int32
    params: Params


def learning_rate(args: argparse.Namespace, epoch: int) -> float:
    """The learning rate of an epoch (from 0): a factor of ``decay`` per epoch after ``decay_after``."""
    return args.lr * args.decay ** max(epoch + 1 - args.decay_after, 0)


def make_step(model: Model, args: argparse.Namespace, key: jax.Array) -> Callable[[State, Window], Any]:
    """Truncated backpropagation through one window, and one step of SGD."""
    gradients = optax.chain(
        optax.clip_by_global_norm(args.clip), optax.add_decayed_weights(args.weight_decay)
    )

    def loss(params: Params, carry: Any, window: Window, key: jax.Array) -> tuple[jax.Array, Any]:
        T, B = window.ids.shape[0] - 1, window.ids.shape[1]
        lengths = jnp.full((B,), window.length) if model.awd else None  # Zaremba's windows have no padding
        carry, logits, (ys, dropped) = forward(model, params, carry, window.ids[:-1], lengths, key)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, window.ids[1:])
        nats = jnp.sum(jnp.where(jnp.arange(T)[:, None] < window.length, nats, 0))
        per_word = nats / (B * window.length)
        total = per_word * T if args.sum_over_time else per_word
        if args.alpha:
            total += args.alpha * lstm_jax.activation_regularization(dropped, lengths=lengths)
        if args.beta:
            total += args.beta * lstm_jax.temporal_activation_regularization(ys, lengths=lengths)
        return total, (carry, per_word)

    def step(state: State, window: Window) -> tuple[State, dict[str, jax.Array]]:
        carry = jax.tree.map(lambda leaf: jnp.where(window.begins, 0, leaf), state.carry)
        noise = jax.random.fold_in(key, state.step)
        (_, (carry, per_word)), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, carry, window, noise
        )
        # Clipping and weight decay have no state.
        updates, _ = gradients.update(grads, gradients.init(state.params), state.params)
        params = jax.tree.map(lambda p, u: p - window.lr * u, state.params, updates)
        average = averaged(state.optimizer, params) if args.nonmono else ()
        return State(params, average, carry, state.step + 1), {"loss": per_word}

    return step


def averaged(average: Average, params: Params) -> Average:
    """The mean including one more step. Before averaging starts, it is the weights themselves."""
    number = jnp.where(average.on, average.count + 1, 1)
    mean = jax.tree.map(lambda mean, p: mean + (p - mean) / number, average.params, params)
    return Average(average.on, jnp.where(average.on, number, 0), mean)


def first_state(model: Model, args: argparse.Namespace, params: Params) -> State:
    average = Average(jnp.bool_(False), jnp.int32(0), params) if args.nonmono else ()
    carry = model.network().initial_carry((args.batch,), params["layers"])
    return State(params, average, carry, jnp.int32(0))


def state_shardings(model: Model, mesh: Mesh, state: State) -> State:
    """Shardings of the state: the parameters as in ``model.shardings``, the carry's rows over ``data``."""
    batch, devices = jax.tree.leaves(state.carry)[0].shape[0], mesh.shape["data"]
    if batch % devices:
        raise UserError(f"a batch of {batch} rows is not divisible by --mesh data={devices}")
    params, replicated = model.shardings(mesh, state.params), NamedSharding(mesh, P())
    average = Average(replicated, replicated, params) if state.optimizer else ()
    rows = NamedSharding(mesh, P("data", "model" if model.mesh else None))
    return State(params, average, jax.tree.map(lambda _: rows, state.carry), replicated)


def start_averaging(args: argparse.Namespace, state: State, rows: Sequence[Mapping[str, float]]) -> State:
    """Start averaging if the validation loss exceeds its minimum up to ``nonmono`` epochs before."""
    values = [row["valid_nats"] for row in rows if "valid_nats" in row]
    earlier = values[: -1 - args.nonmono]
    if not args.nonmono or not earlier or values[-1] <= min(earlier):
        return state
    return state._replace(optimizer=state.optimizer._replace(on=jnp.bool_(True)))


def window_maker(windows: Windows, plan: Plan, args: argparse.Namespace) -> Callable[[int], Window]:
    """A function that returns the batch of a step."""

    def window_of(step: int) -> Window:
        start, length = int(plan.starts[step]), int(plan.lengths[step])
        lr = learning_rate(args, math.ceil(plan.done[step]) - 1)
        if args.awd:  # the learning rate is proportional to the window's length
            lr *= length / args.window
        return Window(windows.cut(start, length), np.int32(length), np.bool_(start == 0), np.float32(lr))

    return window_of
