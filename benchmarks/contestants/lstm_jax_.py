"""``unroll`` with its default options, with low memory, or by one implementation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax

import lstm_jax
from benchmarks.cases import MODES, Case, Problem, Setting, as_network, make_network
from benchmarks.contestants.contestant import Build, Built, Contestant, Form, build_jax, never

#: Implementations that become contestants: all that run LSTMs.
NAMES = tuple(row.name for row in lstm_jax.implementations() if row.name != "parallel")


def form(
    case: Case, setting: Setting, checkpoint: str | int | None = None, implementation: str = "auto"
) -> Form:
    """One call of ``unroll``, or of ``step``."""
    cell = make_network(case, setting.dtype)
    options: dict[str, Any] = {"checkpoint": checkpoint, "implementation": implementation}

    def run(params: Any, xs: Any, more: Any) -> Any:
        which = {"resets": more} if case.resets else {"lengths": more}
        return lstm_jax.unroll(cell, params, xs, **which, **options)[1]

    def step(params: Any, x: Any, carry: Any) -> Any:
        return cell.step(params, carry, x)

    return Form(partial(as_network, case), step if case.streaming else run)


def with_checkpoint(name: str, checkpoint: str | int | None = None) -> Contestant:
    """A contestant that calls ``unroll`` with this ``checkpoint``."""

    def declines(case: Case, mode: str, setting: Setting) -> str | None:
        if checkpoint is not None and mode == MODES[0]:
            return "the memory policy concerns the backward pass"
        return None

    how = "unroll(cell, params, xs)" if checkpoint is None else f"unroll(..., checkpoint={checkpoint!r})"
    build = build_jax(partial(form, checkpoint=checkpoint))
    return Contestant(name, how, "lstm_jax", never, declines, build)


def named(implementation: str, options: dict[str, Any] | None = None) -> Contestant:
    """``unroll`` by one implementation, or "auto". Declines what the implementation does not support.

    ``options``: for XLA, of this one compilation.
    """

    def declines(case: Case, mode: str, setting: Setting) -> str | None:
        if case.streaming:
            return "a streaming case calls cell.step, which has one implementation"
        if case.ensemble and implementation == "cudnn":
            return "vmap over weights runs the fused scan"
        network = make_network(case, setting.dtype)
        params = jax.eval_shape(network.init, jax.random.key(0))
        xs = jax.ShapeDtypeStruct((case.T, case.B, case.D), setting.dtype)
        more = {"lengths": jax.ShapeDtypeStruct((case.B,), "int32")} if case.ragged else {}
        more |= {"resets": jax.ShapeDtypeStruct((case.T, case.B), "bool")} if case.resets else {}
        return unsupported_reason(network, params, xs, implementation=implementation, **more)

    how = f"unroll(..., implementation={implementation!r})"
    build = build_jax(partial(form, implementation=implementation), options)
    return Contestant(f"lstm_jax {implementation}", how, "lstm_jax", never, declines, build)


def unsupported_reason(*args: Any, **options: Any) -> str | None:
    """Why ``unroll`` raises for these arguments, or None."""
    try:
        lstm_jax.explain(*args, **options)
    except ValueError as error:
        return str(error).split("which cannot run it: ")[-1].split("; expected")[0]
    return None


@contextlib.contextmanager
def steps_per_body(steps: int) -> Iterator[None]:
    """Within it, the fused scan is traced with this many steps per loop body.

    The library has no public name for this setting; no other code here reads or sets it.
    """
    from lstm_jax.unrolling import tiling

    before, tiling.UNROLL = tiling.UNROLL, steps
    try:
        yield
    finally:
        tiling.UNROLL = before


def with_steps_per_body(contestant: Contestant, steps: int) -> Contestant:
    """The contestant, traced with this many steps per loop body."""
    build: Build = contestant.build

    def traced(case: Case, problem: Problem, mode: str, setting: Setting) -> Callable[[], Built]:
        with steps_per_body(steps):
            return build(case, problem, mode, setting)

    return contestant._replace(name=f"{contestant.name}, {steps} per body", build=traced)


LSTM_JAX = with_checkpoint("lstm_jax")
AGAIN = with_checkpoint("lstm_jax again")
LOW_MEMORY = with_checkpoint("lstm_jax low memory", "sqrt")
