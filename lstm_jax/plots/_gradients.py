"""The figure of gradients against the lag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_jax._errors import check_choice, value_error
from lstm_jax.diagnostics import GradientFlow
from lstm_jax.plots import _figure as common

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gradient_norms(
    flows: Mapping[str, GradientFlow], *, state: str | None = None, width: float = 4.5
) -> Figure:
    """The norm of the gradient that reaches each state, against the lag, for several cells or layers.

    The lines are medians over rows, and the bands contain half of the rows. A line that falls shows a
    gradient that vanishes, a line that rises one that explodes.

    Args:
        flows: results of :func:`lstm_jax.diagnostics.gradient_flow` for single layers, by the names in the
            legend. The ``OrderedDict`` of a network works, too.
        state: the state, for instance ``"h"`` or ``"c"``; None: the norm over all states together.
        width: of the figure, in inches. One column of a paper has about 3.3.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: an argument has a wrong type, or a cell has no such state.

    >>> import jax, jax.numpy as jnp, lstm_jax
    >>> from lstm_jax import diagnostics, plots
    >>> xs = jax.random.normal(jax.random.key(1), (30, 4, 3))
    >>> flows = {}
    >>> for cell in (lstm_jax.RNN(3, 8), lstm_jax.LSTM(3, 8)):
    ...     params = cell.init(jax.random.key(0))
    ...     flow = diagnostics.gradient_flow(lambda ys: jnp.sum(ys[-1]), cell, params, xs)
    ...     flows[type(cell).__name__] = flow
    >>> figure = plots.gradient_norms(flows)
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['RNN', 'LSTM']
    """
    owner = "gradient_norms"
    if not isinstance(flows, Mapping) or not flows:
        raise value_error(
            f"{owner} got flows of type {type(flows).__name__}",
            "a dict with one GradientFlow or more by name",
            'Give for instance {"LSTM": flow}.',
        )
    for name, flow in flows.items():
        common.check_record(owner, f"flows[{name!r}]", flow, GradientFlow)
        if state is not None:
            check_choice(owner, "state", state, list(flow.norms))
    figure = common.new_figure(owner, width, 0.65 * width)
    ax: Any = figure.add_subplot()
    of = "the state" if state is None else state
    common.style(ax, "lag (steps before the last one)", f"norm of the gradient\nwith respect to {of}")
    ax.set_yscale("log")
    largest = 0.0
    for number, (name, flow) in enumerate(flows.items()):
        lags, lower, middle, upper = _norms_by_lag(flow, state)
        colour = common.CATEGORIES[number % len(common.CATEGORIES)]
        line = ("-", "--", ":", "-.")[number // len(common.CATEGORIES) % 4]
        ax.plot(lags, middle, line, color=colour, linewidth=1.5, label=str(name))
        if np.any(upper > lower):
            ax.fill_between(lags, lower, upper, color=colour, alpha=0.2, linewidth=0)
        largest = np.max(middle, initial=largest, where=np.isfinite(middle))
    low, high = ax.get_ylim()
    if largest:
        ax.set_ylim(max(low, 1e-20 * largest), high)  # beyond the precision of any sum of gradients
    ax.margins(x=0.02)
    ax.grid(alpha=0.25, linewidth=0.5)
    common.whole_numbers(ax.xaxis)
    common.legend(ax)
    return figure


def _norms_by_lag(flow: GradientFlow, state: str | None) -> np.ndarray:
    """(4, lags): the lags, and the quartiles of the norms over rows; NaN where the median is 0."""
    norms = [common.numbers(a) for name, a in flow.norms.items() if state in (None, name)]
    norm = np.sqrt(np.sum(np.square(np.stack(norms).astype(np.float64)), axis=0))
    kept = np.asarray(flow.valid) & np.isfinite(norm)
    lag, norm = np.asarray(flow.lag)[kept], norm[kept]
    lags = np.unique(lag)
    quartiles = [np.quantile(norm[lag == each], (0.25, 0.5, 0.75)) for each in lags]
    found = np.array(quartiles).reshape(len(lags), 3).T
    return np.stack([lags, *np.where(found > 0, found, np.nan)])
