"""Figures of gates and of their saturation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_jax._errors import value_error
from lstm_jax.cells.gru import GRUGates
from lstm_jax.cells.lstm import LSTMGates
from lstm_jax.diagnostics import Gates, Saturation
from lstm_jax.diagnostics._gates import NOT_SATURATING
from lstm_jax.plots import _figure as common

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: More units than these have no numbers beside them.
NUMBERED_UNITS = 20
#: What the ends of a gate mean, for the titles of the panels.
MEANINGS: dict[tuple[type, str], str] = {
    (LSTMGates, "i"): "1 adds the candidate, 0 ignores it",
    (LSTMGates, "f"): "1 keeps the cell state, 0 erases it",
    (LSTMGates, "o"): "1 outputs tanh(c), 0 outputs zero",
    (GRUGates, "r"): "1 reads the state, 0 ignores it",
    (GRUGates, "z"): "1 keeps the state, 0 replaces it",
}


def gate_map(
    gates: Gates | None,
    tokens: Sequence[str] | None = None,
    *,
    states: Mapping[str, Any] | None = None,
    units: Sequence[int] | None = None,
    row: int | tuple[int, ...] | None = None,
    width: float = 6.5,
) -> Figure:
    """Heat maps of the gates: one panel per gate, one row per unit, one column per valid step.

    Gates have colours from 0 to 1. Candidates, exponential gates and states have signed colours up to the
    largest absolute value of the panel.

    Args:
        gates: of one layer, from :func:`lstm_jax.diagnostics.gates`; None: show the states only, for instance
            those of an :class:`lstm_jax.RNN`.
        tokens: T strings, the inputs. They are shown where there is space for them, else step numbers.
        states: further panels by title, arrays (T, *batch, H) such as the cell state.
        units: units from top to bottom; None: all, sorted by the mean of the forget gate f, or of the
            update gate z, the largest at the top; without gates, by index.
        row: index in the batch axes; None: the first row.
        width: of the figure, in inches. One column of a paper has about 3.3.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: an argument has a wrong type or shape.

    >>> import jax, jax.numpy as jnp, lstm_jax
    >>> from lstm_jax import diagnostics, plots
    >>> cell = lstm_jax.LSTM(3, 8)
    >>> found = diagnostics.gates(cell, cell.init(jax.random.key(0)), jnp.ones((5, 3)))
    >>> figure = plots.gate_map(found, "hello")
    >>> [ax.get_title(loc="left") for ax in figure.axes[1:3]]
    ['forget gate f: 1 keeps the cell state, 0 erases it', 'candidate g']
    """
    owner = "gate_map"
    if gates is None:
        if not states:
            raise value_error(f"{owner} got neither gates nor states", "at least one of them", "Give states.")
        valid = np.ones(np.shape(next(iter(states.values())))[:-1], bool)
    else:
        common.check_record(owner, "gates", gates, Gates)
        valid = np.asarray(gates.valid)
    tokens = common.check_tokens(owner, tokens, len(valid))
    index = common.row_index(owner, row, valid)
    kept = valid[index]

    def panel(values: Any) -> np.ndarray:
        """(units, valid steps)."""
        values = common.numbers(values)
        if values.shape[: valid.ndim] != valid.shape:
            raise value_error(
                f"{owner} got a state of shape {values.shape}",
                f"the leading axes {valid.shape}, as those of the gates or of the first state",
                "Give states after each step: unroll(..., return_carries=True).",
            )
        return values[index].reshape(len(valid), -1)[kept].T

    panels, named = {}, {}
    if gates is not None:
        record = gates.gates
        named = {name: panel(a) for name, a in record._asdict().items() if a is not None}
        for name, values in named.items():
            # A forget gate that is an exponential may be above 1.
            signed = name in NOT_SATURATING.get(type(record), "") or common.largest(values) > 1
            meaning = MEANINGS.get((type(record), name))
            panels[_gate_title(record, name) + (f": {meaning}" if meaning else "")] = values, signed
    panels |= {title: (panel(values), True) for title, values in (states or {}).items()}
    most = max(len(values) for values, _ in panels.values())
    count, order, sorted_by = _unit_order(owner, named, most, units)
    # The gates of an mLSTM that exist per head have fewer rows than the others.
    orders = [order if len(values) == count else list(range(len(values))) for values, _ in panels.values()]
    shown = None if tokens is None else [token for token, keep in zip(tokens, kept, strict=True) if keep]

    rows = max(map(len, orders))
    height = max(0.6, 0.125 * rows) if rows <= NUMBERED_UNITS else np.clip(width / 5, 0.7, 1.4)
    figure = common.new_figure(owner, width, len(panels) * (height + 0.28) + 0.6 + common.label_height(shown))
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for ax, (title, (values, is_signed)), order in zip(axes, panels.items(), orders, strict=True):
        image = _gate_image(ax, values[order], is_signed)
        common.style(ax, title=title)
        common.colour_bar(figure, image, ax, "", aspect=12, ticks=None if is_signed else [0, 0.5, 1])
        ax.spines[:].set_visible(False)
        numbered = len(order) <= NUMBERED_UNITS
        ax.set_yticks(range(len(order)) if numbered else [], map(str, order) if numbered else [])
        ax.set_ylabel("unit" if numbered else f"{len(order)} units", fontsize=common.FONT_SIZE)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", length=2 if ax is axes[-1] else 0)
    labelled = common.token_ticks(axes[-1].xaxis, shown, width - 1.2)
    text = "input (␣: space, ↵: end of line)" if labelled and {" ", "\n"} & set(shown or ()) else "input"
    if not labelled:
        text = "step"
        common.whole_numbers(axes[-1].xaxis)
    axes[-1].set_xlabel(text + (f"\nunits sorted by the mean of {sorted_by}" if sorted_by else ""))
    axes[-1].xaxis.label.set_fontsize(common.FONT_SIZE)
    return figure


def _gate_title(gates: Any, name: str) -> str:
    """The title of a gate's panel."""
    words = {"i": "input gate", "f": "forget gate", "o": "output gate", "r": "reset gate", "z": "update gate"}
    signed = NOT_SATURATING.get(type(gates), "")
    is_candidate = name in signed and name != "i"  # the i of an xLSTM cell is an exponential gate
    return f"{'candidate' if is_candidate else words.get(name, 'gate')} {name}"


def _unit_order(
    owner: str, gates: Mapping[str, np.ndarray], most: int, units: Any
) -> tuple[int, list[int], str]:
    """The number of units, their order from top to bottom, and the gate by whose mean they are sorted."""
    if units is not None:
        order = [common.check_unit(owner, unit, most) for unit in units]
        if not order:
            raise value_error(f"{owner} got no units", "one unit or more", "Give units=None for all units.")
        return most, order, ""
    name = next((name for name in ("f", "z") if name in gates), "")
    if not name:
        return most, list(range(most)), ""
    counted = np.isfinite(gates[name])
    mean = np.sum(gates[name], axis=1, where=counted) / np.maximum(counted.sum(axis=1), 1)
    return len(mean), [int(unit) for unit in np.argsort(-mean, kind="stable")], name


def _gate_image(ax: Any, values: np.ndarray, is_signed: bool) -> Any:
    """A heat map (units, steps), grey where values are NaN."""
    ax.set_facecolor(common.GREY)
    if not is_signed:
        return ax.imshow(values, aspect="auto", cmap=common.SEQUENTIAL, vmin=0, vmax=1)
    largest = common.largest(values)
    return ax.imshow(values, aspect="auto", cmap=common.DIVERGING, vmin=-largest, vmax=largest)


def saturation_scatter(saturation: Saturation, *, width: float = 6.5) -> Figure:
    """How often each gate of each unit is nearly open, against how often it is nearly closed.

    One panel per gate and one point per unit, as in Karpathy et al. (2015), figure 2. Points in the upper
    left corner are units whose gate is almost always open, in the lower right corner almost always closed.
    On the diagonal, a gate is always one of both.

    Args:
        saturation: of one layer, from :func:`lstm_jax.diagnostics.saturation`.
        width: of the figure, in inches. One column of a paper has about 3.3.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: an argument has a wrong type.

    >>> import jax, lstm_jax
    >>> from lstm_jax import diagnostics, plots
    >>> cell = lstm_jax.LSTM(3, 8)
    >>> params = cell.init(jax.random.key(0))
    >>> xs = jax.random.normal(jax.random.key(1), (20, 4, 3))
    >>> figure = plots.saturation_scatter(diagnostics.saturation(cell, params, xs))
    >>> len(figure.axes)  # one for each gate
    3
    """
    common.check_record("saturation_scatter", "saturation", saturation, Saturation)
    low, high = saturation.low._asdict(), saturation.high._asdict()
    names = [name for name, a in low.items() if a is not None]
    figure = common.new_figure("saturation_scatter", width, (width - 0.5) / max(len(names), 2) + 0.65)
    axes = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, names, strict=True):
        x, y = (common.numbers(share[name]).reshape(-1) for share in (low, high))
        ax.plot([0, 1], [1, 0], color=common.GREY, linewidth=0.7, zorder=0)
        ax.scatter(x, y, color=common.BLUE, clip_on=False, zorder=2, **common.marker(len(x)))
        common.style(ax, title=_gate_title(saturation.low, name))
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    figure.supxlabel("left-saturated (fraction of steps)", fontsize=common.FONT_SIZE)
    axes[0].set_ylabel("right-saturated\n(fraction of steps)", fontsize=common.FONT_SIZE)
    return figure
