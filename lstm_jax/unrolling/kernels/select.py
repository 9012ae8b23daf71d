"""``implementation="pallas"``: choose a kernel for a cell and run it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._devices import is_explicit
from lstm_jax._errors import check_choice
from lstm_jax._types import Array, Carry, DType, Params, state_dtype
from lstm_jax.cells.gru import GRU, GRUParams, joined_bias
from lstm_jax.cells.lstm import LSTM, LSTMParams
from lstm_jax.unrolling.kernels.engine import Engine, Inputs
from lstm_jax.unrolling.kernels.formulas import GRU_FORMULA, LSTM_FORMULA, CellFormula
from lstm_jax.unrolling.kernels.primitive import forward_states
from lstm_jax.unrolling.kernels.reference import REFERENCES
from lstm_jax.unrolling.steps import Flags, mask_out

#: The module of the engines for each JAX platform. Each module defines two dicts from cell formula to
#: engine: ENGINES for the device, and INTERPRETED, the same kernels in Pallas' interpreter.
MODULES = {"tpu": "lstm_jax.experimental.tpu", "gpu": "lstm_jax.experimental.hopper"}


def _lstm_bias(params: LSTMParams, dtype: DType) -> Array | None:
    return None if params.bias is None else params.bias.astype(dtype)


def _gru_bias(params: GRUParams, dtype: DType) -> Array | None:
    """Biases of the columns r, k, q and n. ``bias_hn`` is that of q."""
    bias = joined_bias(params)
    return None if bias is None else bias.astype(dtype)


class Known(NamedTuple):
    """The functions that run a cell type on the kernels."""

    formula: CellFormula
    bias: Callable[[Any, DType], Array | None]  # (parameters, dtype) -> bias (4H,) or None


KNOWN: dict[type, Known] = {
    LSTM: Known(LSTM_FORMULA, _lstm_bias),
    GRU: Known(GRU_FORMULA, _gru_bias),
}


_interpreted = jax.make_user_context(None)


def interpret(platform: str) -> AbstractContextManager[None]:
    """Context in which ``implementation="pallas"`` interprets the kernels of a platform on any machine.

    This is slow and meant for tests on a machine without the device. Pallas interprets the kernels, and
    uninitialized memory is NaN. ``"reference"`` replaces the kernels by plain JAX and changes nothing
    else. Functions jitted inside and outside the context are compiled separately. The interpreter of
    ``"gpu"`` has side effects, so JAX cannot differentiate it under remat (``checkpoint``).

    Args:
        platform: ``"tpu"``, ``"gpu"`` (requires jax 0.12 or newer) or ``"reference"``.

    Raises:
        ValueError: ``platform`` is another name.

    >>> import lstm_jax.experimental
    >>> cell = lstm_jax.LSTM(input_size=3, hidden_size=2)
    >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((5, 4, 3))
    >>> with lstm_jax.experimental.interpret("tpu"):
    ...     _, ys = lstm_jax.unroll(cell, params, xs, implementation="pallas")
    >>> bool(jnp.allclose(ys, lstm_jax.unroll(cell, params, xs)[1], atol=1e-6))
    True
    """
    check_choice("interpret", "platform", platform, (*MODULES, "reference"))
    return _interpreted(platform)


def current_engine(formula: CellFormula) -> Engine | str:
    """The engine for JAX's default device, or the reason why there is none."""
    interpreted = _interpreted.value
    if interpreted == "reference":
        return REFERENCES[formula]
    if interpreted is not None:
        return import_module(MODULES[interpreted]).INTERPRETED[formula]
    platform = jax.default_backend()
    if platform in MODULES:
        return import_module(MODULES[platform]).ENGINES[formula]
    return (
        f"the kernels require a TPU or a Hopper GPU, got platform {platform!r}; "
        "`with lstm_jax.experimental.interpret(platform)` runs them in an interpreter"
    )


def engine_name() -> str:
    """The engine's name, or the reason why there is none."""
    engine = current_engine(LSTM_FORMULA)
    return engine if isinstance(engine, str) else engine.name


def kernel_unsupported(
    cell: Any, options: Any, params: Params, carry: Carry, xs: Any, flags: Flags
) -> str | None:
    """Why no kernel supports this cell, these options or these sizes, or None."""
    name = type(cell).__name__
    if type(cell) not in KNOWN:
        return f"the kernels support {' and '.join(known.__name__ for known in KNOWN)}, got {name}"
    known = KNOWN[type(cell)]
    if flags.restart is not None:
        return "the kernels do not support resets"
    if flags.cut is not None:
        return "the kernels do not support truncate"
    u = jax.eval_shape(cell.project, params, xs)
    sizes = u.shape
    if not all(isinstance(n, int) for n in sizes):
        return "the kernels require static sizes, got symbolic ones"
    dtypes = [str(a.dtype) for a in jax.tree.leaves(carry)]
    expected = [str(u.dtype), str(state_dtype(u.dtype))][: known.formula.num_states]
    if dtypes != expected:
        states = "(h, c) of dtypes" if known.formula.num_states == 2 else "h of dtype"
        return f"the kernels require a carry {states} {', '.join(expected)}, got {', '.join(dtypes)}"
    if is_explicit(u):
        return "the kernels do not support arrays on an explicit mesh; use shard_map"
    engine = current_engine(known.formula)
    if isinstance(engine, str):
        return engine
    T, *batch, _ = sizes
    return engine.unsupported_reason(T, math.prod(batch), cell.hidden_size, u.dtype)


def kernel_scan(
    cell: Any,
    options: Any,
    params: Params,
    key: Array | None,
    initial: Carry,
    carry: Carry,
    xs: Any,
    flags: Flags,
) -> tuple[Carry, Any]:
    """Scan a cell over time with a kernel; returns ``(carry, (ys, carries))``.

    ``xs`` is ``(xs, reset_to)``. ``key``, ``initial`` and ``reset_to`` are unused: no noise, no resets.
    """
    known = KNOWN[type(cell)]
    engine = current_engine(known.formula)
    assert isinstance(engine, Engine), engine  # kernel_unsupported has returned None
    inputs, valid = xs[0], flags.valid
    if options.reverse:  # flip the inputs, not u: they are smaller
        inputs, valid = jax.tree.map(lambda a: jnp.flip(a, 0), (inputs, valid))
    u = cell.project(params, inputs)
    T, *batch, _ = u.shape
    rows = math.prod(batch)

    def flatten_batch(a: Array, axis: int) -> Array:
        return a.reshape(*a.shape[:axis], rows, *a.shape[axis + len(batch) :])

    states, structure = jax.tree.flatten(carry)
    arguments = Inputs(
        flatten_batch(u, 1),
        params.w_hh.astype(u.dtype),
        known.bias(params, state_dtype(u.dtype)),
        tuple(flatten_batch(a, 0) for a in states),
        None if valid is None else flatten_batch(valid, 1),
    )
    after = forward_states(engine if T * rows else REFERENCES[known.formula], arguments)
    after = tuple(a.reshape(T, *batch, a.shape[-1]) for a in after)
    if T > 0:
        carry = jax.tree.unflatten(structure, [a[-1] for a in after])
    if options.reverse:
        after = tuple(jnp.flip(a, 0) for a in after)
    ys = after[0] if flags.valid is None else mask_out(flags.valid, after[0])
    return carry, (ys, jax.tree.unflatten(structure, after) if options.return_carries else None)
