"""Time against memory: each ``checkpoint`` policy and the plain scan, and very long sequences."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import lstm_jax
from benchmarks.cases import Case, Setting, make_network
from benchmarks.contestants import SCAN
from benchmarks.contestants.contestant import Contestant, lower, temporary_bytes
from benchmarks.contestants.lstm_jax_ import with_checkpoint

POLICY_CASES = (Case(8, 1000, 64, 64), Case(32, 1000, 128, 128))
POLICIES = (None, "sqrt", 10, 100, 250)
QUICK_POLICY_CASES = (Case(2, 12, 3, 4),)
QUICK_POLICIES = (None, "sqrt", 6)

LONG = (Case(8, 100_000, 32, 128), Case(1, 1_000_000, 16, 64))
QUICK_LONG = (Case(2, 50, 3, 4),)
LOSSES = ("of all outputs", "of the last state")


def contestants(policies: Sequence[str | int | None]) -> tuple[Contestant, ...]:
    """One contestant for each policy, and the plain scan."""
    return (*(with_checkpoint(f"checkpoint={policy!r}", policy) for policy in policies), SCAN)


class Long(NamedTuple):
    """A very long sequence: gradients with respect to the weights."""

    case: Case
    checkpoint: str | None
    loss: str
    compile_s: float
    temporary_bytes: int | None
    call_s: float | None  # the first call; None where the program was only compiled


def long_sequence(case: Case, checkpoint: str | None, loss: str, setting: Setting, run: bool) -> Long:
    """Compile from shapes, read the temporary memory, and call the program once if ``run``."""
    cell = make_network(case, setting.dtype)

    def value(params: Any, xs: Any, weights: Any) -> jax.Array:
        (h, _), ys = lstm_jax.unroll(cell, params, xs, checkpoint=checkpoint)
        outputs = ys if loss == LOSSES[0] else h
        return jnp.sum(outputs * weights, dtype=jnp.float32)

    def arguments() -> Any:
        keys = jax.random.split(jax.random.key(0), 3)
        steps = (case.T,) if loss == LOSSES[0] else ()
        return (
            cell.init(keys[0]),
            jax.random.normal(keys[1], (case.T, case.B, case.D), setting.dtype),
            jax.random.normal(keys[2], (*steps, case.B, case.H), setting.dtype),
        )

    compiled, compile_s = lower(jax.value_and_grad(value), *jax.eval_shape(arguments))()
    call_s = None
    if run:
        args = jax.block_until_ready(jax.jit(arguments)())
        began = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        call_s = time.perf_counter() - began
    return Long(case, checkpoint, loss, compile_s, temporary_bytes(compiled), call_s)
