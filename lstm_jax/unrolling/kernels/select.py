"""``implementation="pallas"``: choosing a kernel for a cell and running it."""

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
from lstm_jax.cells.gru import GRU, GRUParams
from lstm_jax.cells.lstm import LSTM, LSTMParams
from lstm_jax.unrolling.kernels.engine import Engine, Inputs
from lstm_jax.unrolling.kernels.formulas import GRU_KIND, LSTM_KIND, Kind
from lstm_jax.unrolling.kernels.primitive import states_of
from lstm_jax.unrolling.kernels.reference import REFERENCES
from lstm_jax.unrolling.steps import Flags, Scanned, mask_out

#: Where the engines live, by the platform as JAX calls it. Each module has ENGINES for the device, by the
#: kind of the cell, and INTERPRETED, the same kernels for Pallas' interpreter.
MODULES = {"tpu": "lstm_jax.experimental.tpu", "gpu": "lstm_jax.experimental.hopper"}


def _lstm_bias(params: LSTMParams, dtype: DType) -> Array | None:
    return None if params.bias is None else params.bias.astype(dtype)


def _gru_bias(params: GRUParams, dtype: DType) -> Array | None:
    """Of r, z, the candidate's part that hears h, and the one that hears the input."""
    if params.bias is None and params.bias_hn is None:
        return None
    H = params.w_hh.shape[-2]
    rzn = jnp.zeros(3 * H, dtype) if params.bias is None else params.bias.astype(dtype)
    q = jnp.zeros(H, dtype) if params.bias_hn is None else params.bias_hn.astype(dtype)
    return jnp.concatenate([rzn[: 2 * H], q, rzn[2 * H :]])


class Known(NamedTuple):
    """A cell that kernels know."""

    kind: Kind
    bias: Callable[[Any, DType], Array | None]  # (4H,) of its parameters, in a dtype


KNOWN: dict[type, Known] = {
    LSTM: Known(LSTM_KIND, _lstm_bias),
    GRU: Known(GRU_KIND, _gru_bias),
}


_interpreted = jax.make_user_context(None)


def interpret(platform: str) -> AbstractContextManager[None]:
    """Within it, ``implementation="pallas"`` runs the kernels of a platform on any machine, slowly.

    For tests, on a machine without the device: Pallas interprets them, with memory that nobody wrote
    being NaN. ``"reference"`` takes plain JAX in place of a kernel: everything around the kernels is
    as it is with them. Functions jitted inside and outside are compiled apart. The interpreter of
    ``"gpu"`` has side effects, which JAX does not differentiate under remat (``checkpoint``).

    Args:
        platform: ``"tpu"``, ``"gpu"`` (since jax 0.12) or ``"reference"``.

    Raises:
        ValueError: another name.

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


def engine_here(kind: Kind) -> Engine | str:
    """The engine for the device that JAX computes on, or why there is none."""
    starts = _interpreted.value
    if starts == "reference":
        return REFERENCES[kind]
    if starts is not None:
        return import_module(MODULES[starts]).INTERPRETED[kind]
    platform = jax.default_backend()
    if platform in MODULES:
        return import_module(MODULES[platform]).ENGINES[kind]
    return (
        "no TPU or Hopper GPU here (`with lstm_jax.experimental.interpret(platform)` runs the kernels of one "
        "in an interpreter)"
    )


def engine_name() -> str:
    """For ``explain``."""
    found = engine_here(LSTM_KIND)
    return found if isinstance(found, str) else found.name


def kernel_unsupported(cell: Any, params: Params, carry: Carry, xs: Any, flags: Flags) -> str | None:
    """Why no kernel can take this cell, these options or shapes, or None."""
    name = type(cell).__name__
    if type(cell) not in KNOWN:
        return f"the kernels are for {' and '.join(kind.__name__ for kind in KNOWN)}, and this is {name}"
    known = KNOWN[type(cell)]
    if flags.restart is not None:
        return "no kernel knows resets"
    if flags.cut is not None:
        return "no kernel knows truncate"
    u = jax.eval_shape(cell.project, params, xs)
    sizes = u.shape
    if not all(isinstance(n, int) for n in sizes):
        return "a kernel is made for sizes that are known when tracing"
    dtypes = [str(a.dtype) for a in jax.tree.leaves(carry)]
    wanted = [str(u.dtype), str(state_dtype(u.dtype))][: known.kind.count]
    if dtypes != wanted:
        states = "(h, c) has dtypes" if known.kind.count == 2 else "h has dtype"
        return f"the carry {states} {', '.join(dtypes)}, where a kernel has {', '.join(wanted)}"
    if is_explicit(u):
        return "no kernel takes what lies on an explicit mesh (inside shard_map, each device runs its own)"
    found = engine_here(known.kind)
    if isinstance(found, str):
        return found
    T, *batch, _ = sizes
    return found.unsupported_reason(T, math.prod(batch), cell.hidden_size, u.dtype)


def kernel_scan(
    cell: Any,
    params: Params,
    initial: Carry,
    carry: Carry,
    xs: Array,
    flags: Flags,
    key: Array | None = None,
    *,
    reverse: bool,
    carries: bool,
) -> Scanned:
    """``steps.walk`` of a cell by a kernel; nothing restarts, and ``key`` is of no use to it."""
    known = KNOWN[type(cell)]
    found = engine_here(known.kind)
    assert isinstance(found, Engine), found  # pallas_obstacle has been asked
    valid = flags.valid
    if reverse:  # of what a step has, the inputs are the least
        xs, flags = jax.tree.map(lambda a: jnp.flip(a, 0), (xs, flags))
    u = cell.project(params, xs)
    T, *batch, _ = u.shape
    rows = math.prod(batch)

    def folded(a: Array, rows_at: int) -> Array:
        return a.reshape(*a.shape[:rows_at], rows, *a.shape[rows_at + len(batch) :])

    first, structure = jax.tree.flatten(carry)
    inputs = Inputs(
        folded(u, 1),
        params.w_hh.astype(u.dtype),
        known.bias(params, state_dtype(u.dtype)),
        tuple(folded(a, 0) for a in first),
        None if flags.valid is None else folded(flags.valid, 1),
    )
    scanned = states_of(found if T * rows else REFERENCES[known.kind], inputs)
    scanned = tuple(a.reshape(T, *batch, a.shape[-1]) for a in scanned)
    if T > 0:
        carry = jax.tree.unflatten(structure, [a[-1] for a in scanned])
    if reverse:
        scanned = tuple(jnp.flip(a, 0) for a in scanned)
    states = jax.tree.unflatten(structure, scanned)
    ys = scanned[0] if valid is None else mask_out(valid, scanned[0])
    return Scanned(carry, ys, states if carries else None, None)
