"""The pictures of ``long_memory.py``, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from training import plots

COLOURS = {"rnn": plots.ORANGE, "gru": plots.GREEN, "lstm": plots.BLUE}
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", plots.BLACK, plots.GREY, "#8C510A", "#5E3C99")  # for other cells
LEAST = 1e-12  # the lower end of the y axis
MARKS = "osD^vP*X<>"
TITLES = {
    "adding": "Adding two marked numbers",
    "order": "Temporal order of X and Y",
    "copy": "Copying 10 symbols",
}
Row = Mapping[str, Any]


def cell_styles(cells: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each cell."""
    others = iter(OTHERS)
    colours = {cell: COLOURS.get(cell) or next(others) for cell in cells}
    return {
        cell: {"color": colours[cell], "marker": MARKS[i], "label": cell.upper()}
        for i, cell in enumerate(cells)
    }


def draw_steps(rows: Sequence[Row], limit: int) -> bytes:
    """Steps until solved against the lag, with a panel for each problem."""
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure = Figure(figsize=(1.2 + 4.4 * len(problems), 4.6), layout="constrained")
    axes = figure.subplots(1, len(problems), sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, problems, strict=True):
        _steps(ax, [row for row in rows if row["problem"] == name], limit)
        ax.set_title(TITLES[name], fontsize=13)
    axes[0].set_ylabel("training steps until solved (one marker per seed)", fontsize=12)
    axes[0].legend(loc="lower right", fontsize=11)
    return plots.png(figure)


def draw_why(rows: Sequence[Row], problem: str, limit: int) -> bytes:
    """Steps until solved at each lag, and how far back the gradient reaches."""
    rows = [row for row in rows if row["problem"] == problem]
    figure = Figure(figsize=(11, 4.9), layout="constrained")
    figure.suptitle("Why gates were invented", fontsize=15)
    left, right = figure.subplots(1, 2)
    _steps(left, rows, limit)
    left.set_title(f"{TITLES[problem]}: steps until solved", fontsize=13)
    left.set_ylabel("training steps until solved (one marker per seed)", fontsize=12)
    left.legend(loc="lower right", fontsize=11)
    lag = max(row["lag"] for row in rows)
    _reach(right, [row for row in rows if row["lag"] == lag])
    right.set_title(f"How far back the gradient reaches (lag {lag})", fontsize=13)
    return plots.png(figure)


def _steps(ax: Any, rows: Sequence[Row], limit: int) -> None:
    """One marker per seed, and a line through the medians. Unsolved trainings are at the top."""
    top, styles = 1.6 * limit, cell_styles(list(dict.fromkeys(row["cell"] for row in rows)))
    lags = sorted({row["lag"] for row in rows})
    for index, (cell, style) in enumerate(styles.items()):
        offset = 1.045 ** (index - (len(styles) - 1) / 2)  # offsets markers that would overlap
        mine = {row["lag"]: row["steps_to_solve"] for row in rows if row["cell"] == cell}
        points = [(lag * offset, top if n is None else n) for lag in lags for n in mine[lag]]
        ax.plot(*zip(*points, strict=True), linestyle="", markersize=7, alpha=0.75, **style)
        middle = [np.median([top if n is None else n for n in mine[lag]]) for lag in lags]
        ax.plot([lag * offset for lag in lags], middle, color=style["color"], linewidth=1.6)
    ax.axhline(1.25 * limit, color=plots.GREY, linestyle="--", linewidth=1.2)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(lags, [str(lag) for lag in lags])
    ax.minorticks_off()
    ticks = [n for n in (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000) if n <= limit]
    ax.set_yticks([*ticks, top], [*(f"{n:,}" for n in ticks), f"not in\n{limit:,}"])
    ax.set_ylim(40, 1.9 * limit)
    plots.style(ax, "lag T (steps)")


def _reach(ax: Any, rows: Sequence[Row]) -> None:
    """The gradient's norm k steps before the last step, divided by its norm one step before."""
    for row, style in zip(rows, cell_styles([row["cell"] for row in rows]).values(), strict=True):
        for when, line, width in (("reach_before", "--", 1.4), ("reach_after", "-", 2.4)):
            values = np.array(row[when], float)  # null becomes NaN, which is not plotted
            middle = np.median(values, axis=0)  # over the seeds
            ax.plot(range(1, len(middle) + 1), middle, line, color=style["color"], linewidth=width)
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, LEAST), high)
    ax.plot([], [], "--", color=plots.BLACK, linewidth=1.4, label="untrained")
    ax.plot([], [], "-", color=plots.BLACK, linewidth=2.4, label="trained")
    ax.legend(fontsize=11, loc="center right")
    ratio = r"$\|\partial L/\partial s_{T-k}\|\ /\ \|\partial L/\partial s_{T-1}\|$"
    plots.style(ax, "k, steps back from the end", f"remaining gradient: {ratio}")
