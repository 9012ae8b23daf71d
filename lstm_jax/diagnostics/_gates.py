"""Gates, and how often they and the outputs are saturated."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._types import Array, Carry, Params, state_dtype
from lstm_jax.cells.gru import GRUGates
from lstm_jax.cells.lstm import LSTMGates
from lstm_jax.cells.minimal import MinGRUGates, MinLSTMGates
from lstm_jax.cells.mlstm import MLSTMGates
from lstm_jax.cells.slstm import SLSTMGates
from lstm_jax.diagnostics._layers import Layer, Sequence, has_state, mean_over_valid, numbers, per_layer
from lstm_jax.unrolling.steps import expand_flag, mask_out

#: Fields of the gates' NamedTuples that are not gates in [0, 1]: candidates and exponential gates.
NOT_SATURATING: dict[type, str] = {
    LSTMGates: "g",
    GRUGates: "n",
    MinGRUGates: "h",
    MinLSTMGates: "h",
    SLSTMGates: "iz",
    MLSTMGates: "i",
}
WITH_GATES = "a cell with gates, or a network with one: an LSTM, a GRU, a minimal or an xLSTM cell"


class Gates(NamedTuple):
    """The gates of a layer at every step; the result of :func:`gates`. Invalid steps are zeros."""

    gates: Any  # the cell's NamedTuple of gates (LSTMGates: i, f, g, o), each (T, *batch, H)
    preactivations: Any  # the arguments of the activations, likewise; None for gates without weights
    valid: Array  # (T, *batch) bool


class Saturation(NamedTuple):
    """Fractions of the valid steps of all rows; the result of :func:`saturation`."""

    low: Any  # the cell's NamedTuple of gates, each (H,): fraction of steps below ``low``; candidate: None
    high: Any  # the same for steps above ``high``
    steps: Array  # () int, the number of valid steps of all rows


class Activity(NamedTuple):
    """The outputs of a layer's units over the valid steps of all rows; the result of :func:`activity`."""

    mean: Array  # (H,)
    std: Array  # (H,)
    saturated: Array  # (H,) fraction of steps with an absolute output above ``high``
    dead: Array  # (H,) bool: the output is the same at all steps
    steps: Array  # () int, the number of valid steps of all rows


def gates(
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
    """The gates and pre-activations of every layer at every step.

    Args:
        cell: a cell or a network.
        params, xs, carry, lengths, mask, resets, reset_to, reverse: as in :func:`lstm_jax.unroll`.

    Returns:
        :class:`Gates` for a cell. For a network an ``OrderedDict`` from names of layers to :class:`Gates`,
        without layers that have no gates. Names are the prefixes of :func:`lstm_jax.flatten_params`:
        ``"1"``, ``"0.forward"``.

    Raises:
        ValueError: no layer has gates, or ``unroll`` would raise.

    >>> import lstm_jax
    >>> from lstm_jax import diagnostics
    >>> network = lstm_jax.Stack((lstm_jax.LSTM(3, 8), lstm_jax.Bidirectional(lstm_jax.GRU(8, 4))))
    >>> params = network.init(jax.random.key(0))
    >>> found = diagnostics.gates(network, params, jnp.ones((5, 2, 3)), lengths=jnp.array([5, 3]))
    >>> list(found)
    ['0', '1.forward', '1.backward']
    >>> found["0"].gates.f.shape, found["1.backward"].preactivations.z.shape
    ((5, 2, 8), (5, 2, 4))
    """
    sequence = Sequence(xs, carry, lengths, mask, resets, reset_to)
    return per_layer("gates", layer_gates, _has_gates, WITH_GATES, cell, params, sequence, reverse)


def layer_gates(layer: Layer) -> Gates:
    """The :class:`Gates` of one layer."""
    arguments = layer.params, layer.before, layer.xs
    values, z = layer.cell.gates(*arguments), layer.cell.preactivations(*arguments)
    return Gates(mask_out(layer.valid, values), mask_out(layer.valid, z), layer.valid)


def _has_gates(cell: Any) -> bool:
    return cell.has_gates


def saturation(
    cell: Any,
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    low: float = 0.1,
    high: float = 0.9,
    lengths: Any = None,
    mask: Array | None = None,
    resets: Array | None = None,
    reset_to: Carry | None = None,
    reverse: bool = False,
) -> Any:
    """How often each gate of each unit is nearly closed or nearly open (Karpathy et al. 2015, section 4.2).

    A forget gate that is often above ``high`` belongs to a unit that remembers; one that is often below
    ``low`` belongs to a unit that reacts to the current input only.

    Args:
        cell: a cell or a network.
        low, high: the thresholds.
        params, xs, carry, lengths, mask, resets, reset_to, reverse: as in :func:`lstm_jax.unroll`.

    Returns:
        :class:`Saturation` for a cell, or an ``OrderedDict`` of them for a network, as for :func:`gates`.

    Raises:
        ValueError: no layer has gates, or ``unroll`` would raise.

    >>> import lstm_jax
    >>> from lstm_jax import diagnostics
    >>> cell = lstm_jax.LSTM(3, 2, forget_bias=8.0)
    >>> found = diagnostics.saturation(cell, cell.init(jax.random.key(0)), jnp.ones((5, 4, 3)))
    >>> found.high.f.tolist(), found.low.f.tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """
    sequence = Sequence(xs, carry, lengths, mask, resets, reset_to)
    thresholds = numbers("saturation", low=low, high=high)
    arguments = cell, params, sequence, reverse
    return per_layer("saturation", _saturation, _has_gates, WITH_GATES, *arguments, options=thresholds)


def _saturation(layer: Layer, low: float, high: float) -> Saturation:
    values, _, valid = layer_gates(layer)
    left_out = NOT_SATURATING.get(type(values), "")
    values = values._replace(**dict.fromkeys(left_out, None))

    def fraction(flag: Any) -> Any:
        return jax.tree.map(lambda a: mean_over_valid(valid, flag(a).astype(state_dtype(a.dtype))), values)

    return Saturation(fraction(lambda a: a < low), fraction(lambda a: a > high), jnp.sum(valid))


def activity(
    cell: Any,
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    high: float = 0.9,
    tolerance: float = 1e-6,
    lengths: Any = None,
    mask: Array | None = None,
    resets: Array | None = None,
    reset_to: Carry | None = None,
    reverse: bool = False,
) -> Any:
    """Mean and standard deviation of the outputs of each unit, and which units are saturated or dead.

    A unit is dead if its output is the same at all valid steps: a rectified unit that is always 0, or a tanh
    that is always 1. No gradient reaches such a unit through its activation.

    Args:
        cell: a cell or a network.
        high: an output is saturated if its absolute value is above this; for cells with a tanh.
        tolerance: a unit is dead if its largest and smallest output differ by this much or less.
        params, xs, carry, lengths, mask, resets, reset_to, reverse: as in :func:`lstm_jax.unroll`.

    Returns:
        :class:`Activity` for a cell, or an ``OrderedDict`` of them for a network, as for :func:`gates`.

    Raises:
        ValueError: no layer has a state, or ``unroll`` would raise.

    >>> import lstm_jax
    >>> from lstm_jax import diagnostics
    >>> cell = lstm_jax.RNN(3, 2, activation=jax.nn.relu)
    >>> params = cell.init(jax.random.key(0))._replace(bias=jnp.array([-9.0, 9.0]))
    >>> diagnostics.activity(cell, params, jnp.ones((5, 4, 3))).dead.tolist()
    [True, False]
    """
    sequence = Sequence(xs, carry, lengths, mask, resets, reset_to)
    options = numbers("activity", high=high, tolerance=tolerance)
    expected = "a cell with a state, or a network with one"
    arguments = cell, params, sequence, reverse
    return per_layer("activity", _activity, has_state, expected, *arguments, options=options)


def _activity(layer: Layer, high: float, tolerance: float) -> Activity:
    valid, ys = layer.valid, layer.ys.astype(state_dtype(layer.ys.dtype))
    axes = tuple(range(valid.ndim))
    mean = mean_over_valid(valid, ys)
    variance = mean_over_valid(valid, jnp.square(ys - jnp.expand_dims(mean, axes)))
    kept = expand_flag(valid, ys)
    largest = jnp.max(ys, axes, where=kept, initial=-jnp.inf)
    smallest = jnp.min(ys, axes, where=kept, initial=jnp.inf)
    saturated = mean_over_valid(valid, (jnp.abs(ys) > high).astype(ys.dtype))
    dead = largest - smallest <= tolerance
    return Activity(mean, jnp.sqrt(variance), saturated, dead, jnp.sum(valid))
