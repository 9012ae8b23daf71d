"""``implementation="pallas"``: kernels that keep the recurrent weights on the chip for the whole sequence.

An engine (:mod:`lstm_jax.kernels.engine`) is a pair of kernels for one kind of device;
:mod:`lstm_jax.kernels.recurrence` gives any of them every transform. What is here chooses one, says
why none can be taken, and walks a cell with it.

XLA cannot spread a kernel over devices by itself. Data parallelism is written with ``jax.shard_map``,
inside which each device runs a kernel on its own rows.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.carries import is_explicit
from lstm_jax.cells.lstm import LSTM
from lstm_jax.cells.lstm_form import LSTMForm
from lstm_jax.checks import check_choice
from lstm_jax.kernels.engine import REFERENCE, Engine, Inputs
from lstm_jax.kernels.recurrence import states_of
from lstm_jax.loop import Flags, Walked, blank
from lstm_jax.notation import Array, Carry, Params, state_dtype

#: Where the engines live, by the platform as JAX calls it. Each module has ENGINE, for the device, and
#: INTERPRETED, the same kernels for Pallas' interpreter.
MODULES = {"tpu": "lstm_jax.kernels.tpu", "gpu": "lstm_jax.kernels.gpu"}

#: What makes an LSTM another one than the kernels know.
OPTIONS = ("proj_size", "peepholes", "heads", *LSTMForm._fields)

_interpreted = jax.make_user_context(None)


def interpret(platform: str) -> AbstractContextManager[None]:
    """Within it, ``implementation="pallas"`` runs the kernels of a platform on any machine, slowly.

    For tests, on a machine without the device: Pallas interprets them, with memory that nobody wrote
    being NaN. ``"reference"`` takes plain JAX in place of a kernel: everything around the kernels is
    as it is with them. Functions jitted inside and outside are compiled apart.

    Args:
        platform: ``"tpu"``, ``"gpu"`` (since jax 0.12) or ``"reference"``.

    Raises:
        ValueError: another name.

    >>> import lstm_jax
    >>> cell = lstm_jax.LSTM(input_size=3, hidden_size=2)
    >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((5, 4, 3))
    >>> with lstm_jax.kernels.interpret("tpu"):
    ...     _, ys = lstm_jax.unroll(cell, params, xs, implementation="pallas")
    >>> bool(jnp.allclose(ys, lstm_jax.unroll(cell, params, xs)[1], atol=1e-6))
    True
    """
    check_choice("interpret", "platform", platform, (*MODULES, "reference"))
    return _interpreted(platform)


def engine_here() -> Engine | str:
    """The engine for the device that JAX computes on, or why there is none."""
    told = _interpreted.value
    if told == "reference":
        return REFERENCE
    if told is not None:
        return import_module(MODULES[told]).INTERPRETED
    platform = jax.default_backend()
    if platform in MODULES:
        return import_module(MODULES[platform]).ENGINE
    return (
        "no TPU or Hopper GPU here (`with lstm_jax.kernels.interpret(platform)` runs the kernels of one in "
        "an interpreter)"
    )


def engine_name() -> str:
    """For ``explain``."""
    found = engine_here()
    return found if isinstance(found, str) else found.name


def pallas_obstacle(cell: Any, params: Params, carry: Carry, xs: Any, flags: Flags) -> str | None:
    """Why no kernel can take this cell, these options or shapes, or None."""
    name = type(cell).__name__
    if type(cell) is not LSTM:
        return f"the kernels are for LSTM, and this is {name}"
    plain = LSTM(cell.input_size, cell.hidden_size)
    changed = [name for name in OPTIONS if getattr(cell, name) != getattr(plain, name)]
    if changed:
        return f"the kernels are for the LSTM without {', '.join(changed)}"
    if flags.restart is not None:
        return "no kernel knows resets"
    if flags.cut is not None:
        return "no kernel knows truncate"
    u = jax.eval_shape(cell.project, params, xs)
    sizes = u.shape
    if not all(isinstance(n, int) for n in sizes):
        return "a kernel is made for sizes that are known when tracing"
    dtypes = [str(a.dtype) for a in carry]
    wanted = [str(u.dtype), str(state_dtype(u.dtype))]
    if dtypes != wanted:
        return f"the carry (h, c) has dtypes {', '.join(dtypes)}, where a kernel has {', '.join(wanted)}"
    if is_explicit(u):
        return "no kernel takes what lies on an explicit mesh (inside shard_map, each device runs its own)"
    found = engine_here()
    if isinstance(found, str):
        return found
    T, *batch, _ = sizes
    return found.obstacle(T, math.prod(batch), cell.hidden_size, u.dtype)


def pallas_walk(
    cell: LSTM,
    params: Params,
    initial: Carry,
    carry: Carry,
    xs: Array,
    flags: Flags,
    key: Array | None = None,
    *,
    reverse: bool,
    carries: bool,
) -> Walked:
    """:func:`lstm_jax.loop.walk` of an LSTM by a kernel; nothing restarts, and ``key`` is of no use to it."""
    found = engine_here()
    assert isinstance(found, Engine), found  # pallas_obstacle has been asked
    valid = flags.valid
    if reverse:  # of what a step has, the inputs are the least
        xs, flags = jax.tree.map(lambda a: jnp.flip(a, 0), (xs, flags))
    u = cell.project(params, xs)
    T, *batch, _ = u.shape
    rows = math.prod(batch)

    def folded(a: Array, rows_at: int) -> Array:
        return a.reshape(*a.shape[:rows_at], rows, *a.shape[rows_at + len(batch) :])

    inputs = Inputs(
        folded(u, 1),
        params.w_hh.astype(u.dtype),
        None if params.bias is None else params.bias.astype(state_dtype(u.dtype)),
        folded(carry[0], 0),
        folded(carry[1], 0),
        None if flags.valid is None else folded(flags.valid, 1),
    )
    hs, cs = states_of(found if T * rows else REFERENCE, inputs)
    states: Any = tuple(a.reshape(T, *batch, a.shape[-1]) for a in (hs, cs))
    if T > 0:
        carry = tuple(a[-1] for a in states)
    if reverse:
        states = tuple(jnp.flip(a, 0) for a in states)
    ys = states[0] if valid is None else blank(valid, states[0])
    return Walked(carry, ys, states if carries else None, None)
