"""What a contestant is, and how those that are JAX programs are built.

All get the same arrays. What a library wants laid out otherwise (its own parameters, the batch in
front) is laid out before the clock runs; what is timed ends when its results are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import MODES, Case, Problem, Setting


class Built(NamedTuple):
    """A contestant made ready for one case and one kind of work."""

    call: Callable[[], Any]  # does the work once and waits for its results
    ours: Callable[[Any], dict[str, Any]]  # what ``call`` returned, named and in our layout
    compile_s: float | None = None
    temporary_bytes: int | None = None
    note: str = ""


class Contestant(NamedTuple):
    """Somebody who does the work."""

    name: str
    how: str  # in one line, what is run
    package: str  # whose version is noted
    absent: Callable[[], str | None]  # why it cannot be here, if it cannot
    declines: Callable[[Case, str, Setting], str | None]  # why it cannot do this, if it cannot
    build: Callable[[Case, Problem, str, Setting], Built]
    spins: bool = False  # its idle threads go on and slow what runs next


class Form(NamedTuple):
    """A case as a JAX library writes it: pure functions, its own layout of the weights.

    ``run(weights, xs, lengths or None)`` gives all outputs; of a streaming case
    ``run(weights, x, (h, c))`` gives ``((h, c), y)``.
    """

    convert: Callable[[Any], Any]  # from our weights, by operations of jax
    run: Callable[[Any, Any, Any], Any]
    time_major: bool = True


def imports(*modules: str) -> Callable[[], str | None]:
    """An ``absent`` that tries the imports."""

    def absent() -> str | None:
        try:
            for module in modules:
                import_module(module)
        except ImportError as error:
            return str(error)
        return None

    return absent


def never(*_: Any) -> None:
    """Always here, declines nothing."""


def build_jax(form: Callable[[Case, Setting], Form]) -> Callable[[Case, Problem, str, Setting], Built]:
    """A ``build``: one compiled program, its arguments laid out before it is timed.

    The gradients are those for the library's own parameters; for the comparison they are led back
    to ours through the derivative of the conversion.
    """

    def build(case: Case, problem: Problem, mode: str, setting: Setting) -> Built:
        convert, run, time_major = form(case, setting)
        if case.ensemble:
            convert, run = jax.vmap(convert), jax.vmap(run, (0, 0, None))

        def arrange(array: Any) -> Any:
            return array if time_major or case.streaming else np.swapaxes(np.asarray(array), -3, -2)

        def loss(weights: Any, xs: Any, more: Any, loss_weights: Any) -> jax.Array:
            return jnp.sum(run(weights, xs, more) * loss_weights, dtype=jnp.float32)

        xs = jnp.asarray(arrange(problem.xs))
        args = (jax.jit(convert)(problem.params), xs, problem.more)
        if mode == MODES[0]:
            compiled, compile_s = compile_now(run, *args)
        else:
            args = (*args, jnp.asarray(arrange(problem.weights)))
            compiled, compile_s = compile_now(jax.value_and_grad(loss, (0, 1)), *args)

        def ours(results: Any) -> dict[str, Any]:
            if case.streaming:
                (h, c), y = results
                return {"h": h, "c": c, "outputs": y}
            if mode == MODES[0]:
                return {"outputs": arrange(results)}
            _, (weights, xs) = results
            (params,) = jax.jit(lambda given: jax.vjp(convert, problem.params)[1](given))(weights)
            return {"gradients for weights": params, "gradients for inputs": arrange(xs)}

        return Built(
            lambda: jax.block_until_ready(compiled(*args)), ours, compile_s, temporary_bytes(compiled)
        )

    return build


def compile_now(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """The compiled program, and the seconds that tracing and compiling took with nothing remembered."""
    jax.clear_caches()
    began = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    return compiled, time.perf_counter() - began


def temporary_bytes(compiled: Any) -> int | None:
    """What a compiled program needs for a while, arguments and results apart."""
    stats = compiled.memory_analysis()
    return None if stats is None else int(stats.temp_size_in_bytes)
