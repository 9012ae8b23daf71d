"""What is measured: shapes, and one function of a shape for each contestant."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import lstm_jax


class Case(NamedTuple):
    """Sizes of one problem: batch, steps, input features, hidden units."""

    B: int
    T: int
    D: int
    H: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


CASES = (
    Case(1, 100, 128, 128),
    Case(32, 100, 128, 128),
    Case(20, 35, 200, 200),
    Case(64, 128, 256, 256),
    Case(32, 128, 512, 512),
    Case(20, 35, 650, 650),
    Case(128, 28, 28, 128),
    Case(8, 1000, 64, 64),
)
QUICK = (Case(4, 10, 8, 8), Case(1, 20, 16, 16))


class Problem(NamedTuple):
    """The arrays of a case: the same for every contestant."""

    params: lstm_jax.LSTMParams
    xs: jax.Array  # (T, B, D)
    weights: jax.Array  # (T, B, H): the loss is the sum of weights * outputs


def make_problem(case: Case) -> Problem:
    """Random weights, inputs and a random linear loss."""
    k_params, k_xs, k_weights = jax.random.split(jax.random.key(0), 3)
    return Problem(
        lstm_jax.LSTM(case.D, case.H).init(k_params),
        jax.random.normal(k_xs, (case.T, case.B, case.D)),
        jax.random.normal(k_weights, (case.T, case.B, case.H)),
    )


Run = Callable[[], Any]
#: The work: outputs alone, or the gradients of the loss for weights and inputs.
MODES = ("forward", "forward+backward")


def ours(implementation: str, case: Case, problem: Problem, mode: str) -> tuple[Run, Any]:
    """A call that waits for its results, and the compiled program behind it."""
    cell = lstm_jax.LSTM(case.D, case.H)

    def forward(params: lstm_jax.LSTMParams, xs: jax.Array) -> jax.Array:
        return lstm_jax.unroll(cell, params, xs, implementation=implementation)[1]

    def loss(params: lstm_jax.LSTMParams, xs: jax.Array) -> jax.Array:
        return jnp.sum(forward(params, xs) * problem.weights)

    f = jax.jit(forward if mode == "forward" else jax.grad(loss, (0, 1)))
    compiled = f.lower(problem.params, problem.xs).compile()
    return lambda: jax.block_until_ready(compiled(problem.params, problem.xs)), compiled


CONTESTANTS = {"fused": partial(ours, "fused"), "scan": partial(ours, "scan")}
