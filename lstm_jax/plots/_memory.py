"""Figures of the memory and of its time constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_jax._errors import value_error
from lstm_jax.diagnostics import Memory, TimeConstants
from lstm_jax.plots import _figure as common

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The largest contribution of a map divided by the smallest one that it shows.
SHOWN_RANGE = 1000


def memory_map(
    memory: Memory,
    tokens: Sequence[str] | None = None,
    *,
    unit: int | None = None,
    row: int | tuple[int, ...] | None = None,
    width: float = 4.5,
) -> Figure:
    """How much of the memory after each step comes from each step before it: a map of T x T valid steps.

    Without ``unit``, the map shows the mean absolute contribution over all units, on a logarithmic scale of
    three decades. With ``unit``, it shows the signed contributions to this unit. The map is empty where the
    contribution is less than a thousandth of the largest one.

    Args:
        memory: of one layer, from :func:`lstm_jax.diagnostics.memory`.
        tokens: T strings, the inputs. They are shown where there is space for them, else step numbers.
        unit: index of a unit; None: the mean over all units.
        row: index in the batch axes; None: the first row.
        width: of the figure, in inches. One column of a paper has about 3.3.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: an argument has a wrong type, or ``unit`` is given for a memory with ``average=True``.

    >>> import jax, lstm_jax
    >>> from lstm_jax import diagnostics, plots
    >>> cell = lstm_jax.LSTM(3, 8)
    >>> params = cell.init(jax.random.key(0))
    >>> xs = jax.random.normal(jax.random.key(1), (8, 3))
    >>> figure = plots.memory_map(diagnostics.memory(cell, params, xs), tokens=list("sequence"))
    >>> len(figure.axes)  # the map and the colour bar
    2
    """
    owner = "memory_map"
    common.check_record(owner, "memory", memory, Memory)
    valid = np.asarray(memory.valid)
    tokens = common.check_tokens(owner, tokens, len(valid))
    index = common.row_index(owner, row, valid)
    kept = np.flatnonzero(valid[index])
    values = common.numbers(memory.contributions)[(slice(None), *index)][np.ix_(kept, kept)]
    if unit is not None:
        if values.ndim == 2:
            raise value_error(
                f"{owner} got unit={unit!r} and a mean over units",
                "contributions to each unit",
                "Call diagnostics.memory with average=False.",
            )
        values = values.reshape(*values.shape[:2], -1)
        values = values[..., common.check_unit(owner, unit, values.shape[2])]
    elif values.ndim > 2:
        values = np.mean(np.abs(values), axis=tuple(range(2, values.ndim)))
    figure = common.new_figure(owner, width, width - 0.75)
    from matplotlib.colors import LogNorm

    ax: Any = figure.add_subplot()
    largest = common.largest(values)
    if unit is None:
        scale: dict[str, Any] = {"cmap": common.SEQUENTIAL, "norm": LogNorm(largest / SHOWN_RANGE, largest)}
        label = "mean absolute contribution"
    else:
        scale = {"cmap": common.DIVERGING, "vmin": -largest, "vmax": largest}
        label = f"contribution to unit {unit}"
    shown = np.ma.masked_where(~(np.abs(values) >= largest / SHOWN_RANGE), values)
    image = ax.imshow(shown, **scale)
    common.style(ax)
    common.colour_bar(figure, image, ax, label, shrink=0.8)
    chosen = None if tokens is None else [tokens[step] for step in kept]
    labelled = common.token_ticks(ax.yaxis, chosen, width - 1.6) and common.token_ticks(
        ax.xaxis, chosen, width - 1.6
    )
    if not labelled:
        common.whole_numbers(ax.xaxis)
        common.whole_numbers(ax.yaxis)
    what = "input" if labelled else "step"
    ax.set_xlabel(f"{what} that contributes", fontsize=common.FONT_SIZE)
    ax.set_ylabel(f"memory after the {what}", fontsize=common.FONT_SIZE)
    return figure


def time_constants(constants: TimeConstants, *, width: float = 4.5) -> Figure:
    """A histogram of the units' mean time constants, on a logarithmic axis.

    Args:
        constants: of one layer, from :func:`lstm_jax.diagnostics.time_constants`.
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
    >>> figure = plots.time_constants(diagnostics.time_constants(cell, params, xs))
    >>> figure.axes[0].get_xlabel()
    'time constant (steps)'
    """
    owner = "time_constants"
    common.check_record(owner, "constants", constants, TimeConstants)
    tau = common.numbers(constants.mean).reshape(-1)
    shown = tau[np.isfinite(tau) & (tau > 0)]
    figure = common.new_figure(owner, width, 0.55 * width)
    ax: Any = figure.add_subplot()
    common.style(ax, "time constant (steps)", "number of units")
    ax.set_xscale("log")
    if len(shown):
        first, last = np.log10(shown.min()), np.log10(shown.max())
        margin = max(0.02 * (last - first), 0.05)
        bins = int(np.clip(np.sqrt(2 * len(shown)), 5, 30))
        edges = np.logspace(first - margin, last + margin, bins + 1)
        ax.hist(shown, edges, color=common.SKY, edgecolor="white", linewidth=0.5)
        median = float(np.median(shown))
        ax.axvline(
            median, color=common.BLACK, linewidth=1, linestyle="--", label=f"median {median:.3g} steps"
        )
        if len(shown) <= common.FEW_POINTS:
            ax.plot(shown, np.zeros_like(shown), "|", color=common.BLUE, markersize=9, label="one unit")
    infinite = int(np.sum(np.isinf(tau)))
    if infinite:
        ax.plot([], [], " ", label=f"{infinite} not shown: infinite")
    if ax.get_legend_handles_labels()[0]:
        common.legend(ax)
    _plain_log_ticks(ax)
    common.whole_numbers(ax.yaxis)
    return figure


def _plain_log_ticks(ax: Any) -> None:
    """Numbers such as 1, 2, 5, 10 on a logarithmic x axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = ax.get_xlim()
    narrow = high / low < 200
    ax.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if narrow else (1,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    if narrow:
        ax.xaxis.set_minor_locator(NullLocator())
