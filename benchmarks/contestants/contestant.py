"""The type of a contestant, and how contestants that are JAX programs are built.

All contestants receive the same arrays. Each library's own layout (parameters, batch-major inputs) is
prepared before timing. A timed call returns when its results are available.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import MODES, Case, Problem, Setting, precision


class Built(NamedTuple):
    """A contestant that is ready to run one case in one mode."""

    call: Callable[[], Any]  # computes once and waits for the results
    named_results: Callable[[Any], dict[str, Any]]  # the results of ``call`` by name, in lstm_jax's layout
    compile_s: float | None = None
    temporary_bytes: int | None = None
    note: str = ""


#: Traces a case at once; the function that it returns compiles the program.
Build = Callable[[Case, Problem, str, Setting], Callable[[], Built]]


class Contestant(NamedTuple):
    """One implementation in the comparison."""

    name: str
    how: str  # the call that is timed, in one line
    package: str  # whose version is reported
    absent: Callable[[], str | None]  # why it cannot run on this machine, or None
    declines: Callable[[Case, str, Setting], str | None]  # why it cannot run this case, or None
    build: Build
    spins: bool = False  # whether its idle threads keep running and slow down the next call
    setting: Setting | None = None  # its own dtype and precision, where contestants differ in these


class Form(NamedTuple):
    """A case written for one JAX library: pure functions and the library's layout of the weights.

    ``run(weights, xs, more)`` returns all outputs; ``more`` is None, lengths or resets. For a streaming
    case, ``run(weights, x, (h, c))`` returns ``((h, c), y)``.
    """

    convert: Callable[[Any], Any]  # from lstm_jax's weights, with JAX operations
    run: Callable[[Any, Any, Any], Any]
    time_major: bool = True


def imports(*modules: str) -> Callable[[], str | None]:
    """An ``absent`` that tries to import ``modules``."""

    def absent() -> str | None:
        try:
            for module in modules:
                import_module(module)
        except ImportError as error:
            return str(error)
        return None

    return absent


#: For each cell of this library that another one has: its name there, and the conversion of the parameters.
Cells = Mapping[str, tuple[str, Callable[[Any], Any]]]


def only(cells: Container[str]) -> Callable[[Case, str, Setting], str | None]:
    """A ``declines`` of a library that has ``cells``, and no resets."""

    def declines(case: Case, mode: str, setting: Setting) -> str | None:
        if case.resets:
            return "takes no resets"
        return None if case.cell in cells else f"has no {case.cell} that computes the same"

    return declines


def never(*_: Any) -> None:
    """An ``absent`` or ``declines`` that always returns None."""


def build_jax(form: Callable[[Case, Setting], Form], options: dict[str, Any] | None = None) -> Build:
    """A ``build`` for a JAX program, compiled with XLA's ``options``.

    The timed gradients are those with respect to the library's own parameters. The comparison maps them
    to lstm_jax's parameters by the vector-Jacobian product of ``convert``.
    """

    def build(case: Case, problem: Problem, mode: str, setting: Setting) -> Callable[[], Built]:
        convert, run, time_major = form(case, setting)
        if case.ensemble:
            convert, run = jax.vmap(convert), jax.vmap(run, (0, 0, None))

        def arrange(array: Any) -> Any:
            return array if time_major or case.streaming else np.swapaxes(np.asarray(array), -3, -2)

        def loss(weights: Any, xs: Any, more: Any, loss_weights: Any) -> jax.Array:
            return jnp.sum(run(weights, xs, more) * loss_weights, dtype=jnp.float32)

        def named_results(results: Any) -> dict[str, Any]:
            if case.streaming:
                (h, c), y = results
                return {"h": h, "c": c, "outputs": y}
            if mode == MODES[0]:
                return {"outputs": arrange(results)}
            _, (weights, xs) = results
            (params,) = jax.jit(lambda given: jax.vjp(convert, problem.params)[1](given))(weights)
            return {"gradients for weights": params, "gradients for inputs": arrange(xs)}

        args = (jax.jit(convert)(problem.params), jnp.asarray(arrange(problem.xs)), problem.more)
        function = run
        if mode != MODES[0]:
            args, function = (*args, jnp.asarray(arrange(problem.weights))), jax.value_and_grad(loss, (0, 1))
        with precision(setting):
            compiling = lower(function, *args, options=options)

        def finish() -> Built:
            compiled, compile_s = compiling()
            return Built(
                lambda: jax.block_until_ready(compiled(*args)),
                named_results,
                compile_s,
                temporary_bytes(compiled),
            )

        return finish

    return build


def lower(
    function: Callable[..., Any], *args: Any, options: dict[str, Any] | None = None
) -> Callable[[], tuple[Any, float]]:
    """Trace a function with empty caches. The returned function compiles it.

    It returns the compiled program and the seconds that tracing and compiling took.
    """
    jax.clear_caches()
    began = time.perf_counter()
    lowered = jax.jit(function, compiler_options=options).lower(*args)
    traced_s = time.perf_counter() - began

    def compiling() -> tuple[Any, float]:
        began = time.perf_counter()
        compiled = lowered.compile()
        return compiled, traced_s + time.perf_counter() - began

    return compiling


def temporary_bytes(compiled: Any) -> int | None:
    """Temporary memory of a compiled program, without its arguments and results."""
    stats = compiled.memory_analysis()
    return None if stats is None else int(stats.temp_size_in_bytes)
