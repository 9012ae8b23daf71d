"""The time contract and the cells in NumPy: float64, one row at a time, plain loops.

The oracle is slow and shares no code with the library. A cell is a function of one row,
``step(params, carry, x) -> (carry, y)``, written from its equations; :func:`scan_row` scans it over time.
``Stack`` and ``Bidirectional`` have the options of the library's classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Cell(NamedTuple):
    """The equations of a cell and its initial carry."""

    step: Callable[[Any, Any, np.ndarray], tuple[Any, np.ndarray]]
    initial: Callable[[Any], Any]


class Stack(NamedTuple):
    """A stack of layers."""

    layers: tuple[Any, ...]
    residual: bool = False
    skip: bool = False


class Bidirectional(NamedTuple):
    """One cell in both directions, or one for each."""

    cell: Any
    merge: str = "concat"
    backward: Any = None

    @property
    def cells(self):
        return self.cell, self.cell if self.backward is None else self.backward


class Result(NamedTuple):
    """The result of a scan."""

    carry: Any
    ys: np.ndarray
    carries: Any


# --- the equations ------------------------------------------------------------------------------


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def preactivation(params, gate, h, x):
    """x W + h R + b, the columns of one gate."""
    H = len(h)
    columns = slice(gate * H, (gate + 1) * H)
    total = x @ params.w_ih[:, columns] + h @ params.w_hh[:, columns]
    return total if params.bias is None else total + params.bias[columns]


def rnn(params, h, x, f=np.tanh):
    h = f(preactivation(params, 0, h, x))
    return h, h


def lstm(params, carry, x):
    h, c = carry
    i = sigmoid(preactivation(params, 0, h, x))
    f = sigmoid(preactivation(params, 1, h, x))
    g = np.tanh(preactivation(params, 2, h, x))
    o = sigmoid(preactivation(params, 3, h, x))
    c = f * c + i * g
    h = o * np.tanh(c)
    return (h, c), h


def gru_reset_after(params, h, x):
    """The reset gate acts on the product h R_n + b_hn."""
    H = len(h)
    r = sigmoid(preactivation(params, 0, h, x))
    z = sigmoid(preactivation(params, 1, h, x))
    from_input = x @ params.w_ih[:, 2 * H :] + (0 if params.bias is None else params.bias[2 * H :])
    from_state = h @ params.w_hh[:, 2 * H :] + (0 if params.bias_hn is None else params.bias_hn)
    n = np.tanh(from_input + r * from_state)
    h = (1 - z) * n + z * h
    return h, h


def gru_reset_before(params, h, x):
    """The reset gate acts on h, before the product."""
    r = sigmoid(preactivation(params, 0, h, x))
    z = sigmoid(preactivation(params, 1, h, x))
    n = np.tanh(preactivation(params, 2, r * h, x))
    h = (1 - z) * n + z * h
    return h, h


def readout(params, carry, x, g=lambda a: a):
    return carry, g(x @ params.w + params.bias)


def zeros(params):
    """h_0 of a cell with one state."""
    return np.zeros(params.w_hh.shape[0])


def two_zeros(params):
    """h_0 and c_0."""
    return zeros(params), zeros(params)


# --- time ---------------------------------------------------------------------------------------


def scan_row(cell, params, xs, carry, valid, resets, reverse):
    """Scan a cell over one row. xs is (T, *event), valid and resets are (T,)."""
    T = len(xs)
    zero = np.zeros_like(cell.step(params, cell.initial(params), np.zeros(xs.shape[1:]))[1])
    ys = [zero] * T
    carries = [None] * T
    restart = False
    for t in reversed(range(T)) if reverse else range(T):
        if valid[t]:
            if restart or (resets[t] and not reverse):
                carry = cell.initial(params)
            carry, ys[t] = cell.step(params, carry, xs[t])
            # In reverse, x_t is the last step of its segment, so the next valid step begins another one.
            restart = reverse and resets[t]
        carries[t] = carry
    return Result(carry, np.array(ys).reshape(T, *zero.shape), stack_trees(carries))


def run_row(network, params, xs, carry, valid, resets, reverse):
    """A cell or a network over one row."""
    if isinstance(network, Stack):
        return run_stack(network, params, xs, carry, valid, resets, reverse)
    if isinstance(network, Bidirectional):
        return run_bidirectional(network, params, xs, carry, valid, resets, reverse)
    return scan_row(network, params, xs, carry, valid, resets, reverse)


def run_stack(stack, params, xs, carry, valid, resets, reverse):
    results = []
    ys = np.where(valid.reshape(-1, *(1,) * (xs.ndim - 1)), xs, 0)
    first = ys
    for index, layer in enumerate(stack.layers):
        below = ys
        reads = np.concatenate([below, first], axis=-1) if stack.skip and index > 0 else below
        results.append(run_row(layer, params[index], reads, carry[index], valid, resets, reverse))
        ys = results[-1].ys
        if stack.residual and index > 0:
            ys = ys + below
    return Result(tuple(r.carry for r in results), ys, tuple(r.carries for r in results))


def run_bidirectional(both, params, xs, carry, valid, resets, reverse):
    """With ``reverse``, the two directions are exchanged."""
    forward = run_row(both.cells[0], params[0], xs, carry[0], valid, resets, reverse)
    backward = run_row(both.cells[1], params[1], xs, carry[1], valid, resets, not reverse)
    a, b = forward.ys, backward.ys
    if both.merge == "concat":
        ys = np.concatenate([a, b], axis=-1)
    else:
        ys = {"sum": a + b, "mean": (a + b) / 2, "product": a * b}[both.merge]
    return Result((forward.carry, backward.carry), ys, (forward.carries, backward.carries))


def initial(network, params):
    """The initial carry of one row."""
    if isinstance(network, Stack):
        return tuple(initial(layer, p) for layer, p in zip(network.layers, params, strict=True))
    if isinstance(network, Bidirectional):
        return tuple(map(initial, network.cells, params))
    return network.initial(params)


def unroll(
    network, params, xs, carry=None, lengths=None, mask=None, resets=None, reverse=False, event_ndim=1
):
    """``lstm_jax.unroll``, row by row. ``xs`` is (T, *batch, *event) with at least one row."""
    T, batch = xs.shape[0], xs.shape[1:-event_ndim]
    valid = np.ones((T, *batch), bool) if mask is None else mask
    if lengths is not None:
        valid = valid & (np.arange(T).reshape(T, *(1,) * len(batch)) < lengths)
    resets = np.zeros((T, *batch), bool) if resets is None else resets
    rows = []
    for row in np.ndindex(*batch):
        at = (slice(None), *row)
        first = initial(network, params) if carry is None else take_row(carry, row)
        rows.append(run_row(network, params, xs[at], first, valid[at], resets[at], reverse))
    carries, ys, after_each = zip(*rows, strict=True)
    return Result(
        restore_batch(stack_trees(carries), 0, batch),
        restore_batch(stack_trees(ys), 1, batch),
        restore_batch(stack_trees(after_each), 1, batch),
    )


# --- trees of arrays ----------------------------------------------------------------------------


def on_leaves(f, *trees):
    """Apply ``f`` to the corresponding arrays of trees."""
    first = trees[0]
    if isinstance(first, dict):
        return {name: on_leaves(f, *(tree[name] for tree in trees)) for name in first}
    if isinstance(first, tuple):
        return tuple(on_leaves(f, *parts) for parts in zip(*trees, strict=True))
    return f(*trees)


def stack_trees(trees):
    """Stack trees of arrays along a new first axis."""
    return on_leaves(lambda *arrays: np.stack(arrays), *trees)


def take_row(tree, row):
    return on_leaves(lambda a: a[row], tree)


def restore_batch(tree, time_axes, batch):
    """Convert (rows, T, ...) to (T, *batch, ...), or (rows, ...) to (*batch, ...) if ``time_axes`` is 0."""

    def one(a):
        a = np.moveaxis(a, 0, time_axes)
        return a.reshape((*a.shape[:time_axes], *batch, *a.shape[time_axes + 1 :]))

    return on_leaves(one, tree)
