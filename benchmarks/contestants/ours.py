"""``unroll``: as it comes, once more to see how far two equals lie apart, and with little memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

import lstm_jax
from benchmarks.cases import MODES, Case, Setting, as_network, make_network
from benchmarks.contestants.contestant import Contestant, Form, build_jax, never

#: Of which a contestant can be made: all but those for other cells.
NAMES = tuple(row.name for row in lstm_jax.implementations() if row.name != "parallel")


def form(
    case: Case, setting: Setting, checkpoint: str | int | None = None, implementation: str = "auto"
) -> Form:
    """One call of ``unroll``, or of ``step``."""
    cell = make_network(case, setting.dtype)

    def run(params: Any, xs: Any, lengths: Any) -> Any:
        return lstm_jax.unroll(
            cell, params, xs, lengths=lengths, checkpoint=checkpoint, implementation=implementation
        )[1]

    def step(params: Any, x: Any, carry: Any) -> Any:
        return cell.step(params, carry, x)

    return Form(partial(as_network, case), step if case.streaming else run)


def ours(name: str, checkpoint: str | int | None = None) -> Contestant:
    """A contestant that calls ``unroll`` with this memory policy."""

    def declines(case: Case, mode: str, setting: Setting) -> str | None:
        if checkpoint is not None and mode == MODES[0]:
            return "remembers nothing in the forward pass"
        return None

    how = "unroll(cell, params, xs)" if checkpoint is None else f"unroll(..., checkpoint={checkpoint!r})"
    build = build_jax(partial(form, checkpoint=checkpoint))
    return Contestant(name, how, "lstm_jax", never, declines, build)


def named(implementation: str) -> Contestant:
    """``unroll`` by one of its implementations, or "auto"; it declines what that one cannot run."""

    def declines(case: Case, mode: str, setting: Setting) -> str | None:
        if case.streaming:
            return "single steps are cell.step, whatever walks over sequences"
        if case.ensemble and implementation == "cudnn":
            return "does not go under vmap"
        network = make_network(case, setting.dtype)
        params = jax.eval_shape(network.init, jax.random.key(0))
        xs = jax.ShapeDtypeStruct((case.T, case.B, case.D), setting.dtype)
        lengths = jax.ShapeDtypeStruct((case.B,), "int32") if case.ragged else None
        try:
            lstm_jax.explain(network, params, xs, lengths=lengths, implementation=implementation)
        except ValueError as error:
            return str(error).split("which cannot run it: ")[-1].split("; expected")[0]
        return None

    how = f"unroll(..., implementation={implementation!r})"
    build = build_jax(partial(form, implementation=implementation))
    return Contestant(f"lstm_jax {implementation}", how, "lstm_jax", never, declines, build)


OURS = ours("lstm_jax")
AGAIN = ours("lstm_jax again")
LOW_MEMORY = ours("lstm_jax low memory", "sqrt")
