"""How long a layer remembers, and from which steps its memory comes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._types import Array, Carry, Params, same_dtype
from lstm_jax.cells._stabiliser import stabilised_gates
from lstm_jax.cells.conv_lstm import ConvLSTM
from lstm_jax.cells.full_gate_lstm import FullGateLSTM
from lstm_jax.cells.gru import GRU
from lstm_jax.cells.gru_variant import GRUVariant
from lstm_jax.cells.lstm import LSTM
from lstm_jax.cells.lstm_variant import LSTMVariant
from lstm_jax.cells.minimal import MinGRU, MinLSTM
from lstm_jax.cells.mlstm import MLSTM
from lstm_jax.cells.slstm import SLSTM
from lstm_jax.diagnostics._layers import Layer, Sequence, mean_over_valid, per_layer, unwrapped, wrappers
from lstm_jax.regularizers.zoneout import Zoneout
from lstm_jax.unrolling.steps import expand_flag, mask_out, select

LSTMS = (LSTM, LSTMVariant, FullGateLSTM, ConvLSTM)
GATED = (*LSTMS, GRU, GRUVariant, MinGRU, MinLSTM, SLSTM, MLSTM)
WITH_MEMORY = (
    "a cell whose memory is kept by a gate, or a network with one: an LSTM (without cell_clip and "
    'layer_norm="tfa"), a GRU, a minimal or an xLSTM cell'
)


class TimeConstants(NamedTuple):
    """Time constants in steps; the result of :func:`time_constants`."""

    tau: Array  # (T, *batch, H) at every step, infinite where the gate keeps everything; invalid: 0
    mean: Array  # (H,) time constant of the geometric mean of the gate over valid steps of all rows
    valid: Array  # (T, *batch) bool


class Memory(NamedTuple):
    """Where the memory after each step comes from; the result of :func:`memory`."""

    contributions: Array  # (T, T, *batch, H): [t, s] is the part of c_t that step s added; or (T, T, *batch)
    initial: Array  # (T, *batch, H): the part of c_t from the carry before the first step; or (T, *batch)
    valid: Array  # (T, *batch) bool


class LinearForm(NamedTuple):
    """The memory of a layer as a linear recurrence: c_t = keep_t * c_{t-1} + add_t."""

    keep: Array  # (T, *batch, H), 1 at invalid steps
    add: Array  # (T, *batch, H), 0 at invalid steps
    before: Array  # (T, *batch, H) c_{t-1}


def time_constants(
    cell: Any,
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    lengths: Any = None,
    mask: Array | None = None,
    resets: Array | None = None,
    reset_to: Carry | None = None,
    reverse: bool = False,
) -> Any:
    r"""The time constant of each unit: the number of steps in which its memory decays to 1/e.

    .. math:: \tau_t = -1 / \log f_t

    f is the forget gate of an LSTM (Tallec & Ollivier 2018), the update gate z of a GRU, 1 - z of a minimal
    GRU, f / (f + i) of a minimal LSTM and, per head, the forget gate of an mLSTM. With
    :class:`lstm_jax.Zoneout` of rate r around the cell it is r + (1 - r) f, the expectation.

    Args:
        cell: a cell or a network.
        params, xs, carry, lengths, mask, resets, reset_to, reverse: as in :func:`lstm_jax.unroll`.

    Returns:
        :class:`TimeConstants` for a cell. For a network an ``OrderedDict`` from names of layers to them,
        without layers that have no such gate.

    Raises:
        ValueError: no layer has such a gate, or ``unroll`` would raise.

    >>> import lstm_jax
    >>> from lstm_jax import diagnostics
    >>> cell = lstm_jax.LSTM(3, 2)
    >>> params = cell.init(jax.random.key(0))
    >>> found = diagnostics.time_constants(cell, params, jnp.zeros((5, 4, 3)))
    >>> [f"{float(tau):.2f}" for tau in found.mean]  # -1 / log sigmoid(1), from the forget bias of 1
    ['3.19', '3.19']
    """
    sequence = Sequence(xs, carry, lengths, mask, resets, reset_to)
    expected = "a cell with a forget or update gate, or a network with one"
    return per_layer("time_constants", _time_constants, _is_gated, expected, cell, params, sequence, reverse)


def _is_gated(cell: Any) -> bool:
    return isinstance(unwrapped(cell), GATED)


def _time_constants(layer: Layer) -> TimeConstants:
    inner = unwrapped(layer.cell)
    if isinstance(inner, (SLSTM, MLSTM)):  # the linear form has stabilised gates
        f = layer.cell.gates(layer.params, layer.before, layer.xs).f
        keep, _, _ = _with_zoneout(layer.cell, inner, f, f, f)
    else:
        keep = _linear_form(layer).keep
    log_keep = jnp.log(keep)
    tau = mask_out(layer.valid, _tau(log_keep))
    return TimeConstants(tau, _tau(mean_over_valid(layer.valid, log_keep)), layer.valid)


def _tau(log_keep: Array) -> Array:
    return jnp.where(log_keep < 0, -1 / log_keep, jnp.inf)


def memory(
    cell: Any,
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    average: bool = False,
    lengths: Any = None,
    mask: Array | None = None,
    resets: Array | None = None,
    reset_to: Carry | None = None,
    reverse: bool = False,
) -> Any:
    r"""How much of the memory after each step comes from each step before it.

    The cell state of an LSTM is a sum over steps, in which each term decays by the forget gates:

    .. math::
        c_t = \sum_{s \le t} \Big( \prod_{k=s+1}^{t} f_k \Big) \odot i_s \odot g_s
            + \Big( \prod_{k=1}^{t} f_k \Big) \odot c_0

    ``contributions[t, s]`` is the term of step s, ``initial[t]`` the last term. Over s they add up to c_t:
    the c of an LSTM or sLSTM, the h of a GRU or a minimal cell. For an mLSTM they are, per head, the weights
    of the outer products :math:`v_s k_s^\top` in C_t, and ``initial`` is the weight of C_0. A restart ends
    all terms from before; ``initial`` then is the term of the carry that the restart goes back to. With
    ``reverse``, the steps before t are those after it in time.

    Args:
        cell: a cell or a network.
        average: return means of the absolute terms over units, which need H times less memory.
        params, xs, carry, lengths, mask, resets, reset_to, reverse: as in :func:`lstm_jax.unroll`.

    Returns:
        :class:`Memory` for a cell. For a network an ``OrderedDict`` from names of layers to them, without
        layers whose memory is no such sum.

    Raises:
        ValueError: no layer has such a memory, or ``unroll`` would raise.

    >>> import lstm_jax
    >>> from lstm_jax import diagnostics
    >>> cell = lstm_jax.LSTM(3, 2)
    >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((5, 4, 3))
    >>> found = diagnostics.memory(cell, params, xs)
    >>> _, (_, (hs, cs)) = lstm_jax.unroll(cell, params, xs, return_carries=True)
    >>> bool(jnp.allclose(found.contributions.sum(axis=1) + found.initial, cs))
    True
    """
    sequence = Sequence(xs, carry, lengths, mask, resets, reset_to)
    arguments = cell, params, sequence, reverse
    options = {"average": bool(average)}
    return per_layer("memory", _memory, has_memory, WITH_MEMORY, *arguments, options=options)


def has_memory(cell: Any) -> bool:
    """Whether the memory of a cell is a linear recurrence, given its gates."""
    inner = unwrapped(cell)
    if isinstance(inner, LSTMVariant) and (inner.cell_clip is not None or inner.layer_norm == "tfa"):
        return False
    return isinstance(inner, GATED)


def _memory(layer: Layer, average: bool) -> Memory:
    def emit(terms: Array, initial: Array) -> tuple[Array, Array]:
        if not average:
            return terms, initial
        units = tuple(range(layer.valid.ndim, terms.ndim))
        return jnp.mean(jnp.abs(terms), units), jnp.mean(jnp.abs(initial), tuple(u - 1 for u in units))

    _, (contributions, initial) = scan_terms(layer, emit)
    return Memory(contributions, initial, layer.valid)


def scan_terms(layer: Layer, emit: Any) -> tuple[tuple[Array, Array], Any]:
    """Scan the terms of c_t over t.

    Returns the terms of the last c, (T, *batch, H), with its initial term, (*batch, H); and what
    ``emit(terms, initial)`` returned after each step.
    """
    keep, add, before = _linear_form(layer)
    restart = layer.restart & layer.valid
    first = before[-1 if layer.reverse else 0] if len(before) else jnp.zeros(before.shape[1:], before.dtype)

    def body(carry: tuple[Array, Array], at: Any) -> tuple[tuple[Array, Array], Any]:
        terms, initial = carry
        t, keep, add, restart, start = at
        terms = select(restart[None], jnp.zeros_like(terms), terms) * keep[None]
        initial = select(restart, start, initial) * keep
        terms = select(times == t, jnp.broadcast_to(add[None], terms.shape), terms)
        return (terms, initial), emit(terms, initial)

    times = jnp.arange(add.shape[0])
    return layer.scan(body, (jnp.zeros_like(add), first), (times, keep, add, restart, before))


def _linear_form(layer: Layer) -> LinearForm:
    """The memory of a layer of one of the cells in ``GATED`` as a linear recurrence."""
    inner, carry = unwrapped(layer.cell), layer.before
    g = layer.cell.gates(layer.params, carry, layer.xs)
    if isinstance(inner, LSTMS):
        form = LinearForm(g.f, g.i * g.g, carry[1])
    elif isinstance(inner, (GRU, GRUVariant)):
        form = LinearForm(g.z, (1 - g.z) * g.n, carry)
    elif isinstance(inner, MinGRU):
        form = LinearForm(1 - g.z, g.z * g.h, carry)
    else:
        pre = layer.cell.preactivations(layer.params, carry, layer.xs)
        if isinstance(inner, MinLSTM):
            keep = jax.nn.sigmoid(jax.nn.softplus(-pre.i) - jax.nn.softplus(-pre.f))
            form = LinearForm(keep, (1 - keep) * g.h, carry)
        else:
            i, f, _ = stabilised_gates(inner.forget_gate, *same_dtype(pre.i, pre.f, carry[-1]))
            slstm = isinstance(inner, SLSTM)
            form = LinearForm(f, i * g.z, carry[1]) if slstm else LinearForm(f, i, jnp.ones_like(i))
    keep, add, before = _with_zoneout(layer.cell, inner, *same_dtype(*form))
    kept = expand_flag(layer.valid, keep)
    return LinearForm(jnp.where(kept, keep, 1), jnp.where(kept, add, 0), before)


def _with_zoneout(cell: Any, inner: Any, keep: Array, add: Array, before: Array) -> LinearForm:
    """The recurrence with the expected effect of all ``Zoneout`` around a cell."""
    index = 1 if isinstance(inner, (*LSTMS, SLSTM)) else 0  # of the memory in the carry
    for wrapper in wrappers(cell):
        if isinstance(wrapper, Zoneout):
            rate = wrapper.rates[index] if isinstance(wrapper.rates, tuple) else wrapper.rates
            keep, add = rate + (1 - rate) * keep, (1 - rate) * add
    return LinearForm(keep, add, before)
