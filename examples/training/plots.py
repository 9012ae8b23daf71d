"""Plots that programs share. Each figure is its own object, without pyplot's global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.runs import Run

# The palette of Okabe and Ito, which is distinguishable for colour-blind readers.
BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#999999", "#222222"


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    file = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def style(ax: Any, x: str = "", y: str = "", size: int = 12) -> None:
    """Label the axes; draw a light grid, and no upper and right borders."""
    if x:
        ax.set_xlabel(x, fontsize=size)
    if y:
        ax.set_ylabel(y, fontsize=size)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def learning_curve(
    run: Run,
    title: str,
    *,
    x: tuple[str, str],
    y: str,
    train: tuple[str, str],
    valid: tuple[str, str],
    baselines: Mapping[str, float] | None = None,
    log: bool = False,
) -> None:
    """Write ``learning_curve.png``: a metric on training and on held-out data, with a line per baseline.

    Args:
        run: contains the rows to plot. A row may lack the metric of ``train`` or of ``valid``.
        title: of the figure.
        x: a metric that every row has, and its axis label. The label is a plural noun, because "thousand" or
            "million" may be put before it.
        y: the label of the y axis.
        train: a metric, and the label of its line.
        valid: a metric, and the label of its line.
        baselines: constants by name.
        log: whether the y axis is logarithmic.
    """
    (x_name, x_label), rows = x, run.rows
    end = max((row[x_name] for row in rows), default=1)
    unit, prefix = (1e6, "million ") if end >= 1e6 else (1e3, "thousand ") if end >= 1e4 else (1, "")
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    ax = figure.add_subplot()
    ends = [(value, f"{label} {value:.4g}", BLACK) for label, value in (baselines or {}).items()]
    lines: list[tuple[tuple[str, str], dict[str, Any]]] = [
        (train, {"color": BLUE, "linewidth": 1.2}),
        (valid, {"color": ORANGE, "linewidth": 2, "marker": "o"}),
    ]
    for (name, label), look in lines:
        points = [(row[x_name] / unit, row[name]) for row in rows if name in row]
        if points:
            ax.plot(*zip(*points, strict=True), label=label, **look)
            if name == valid[0]:
                ends.append((points[-1][1], f"{label} {points[-1][1]:.4g}", ORANGE))
    for value in (baselines or {}).values():
        ax.axhline(value, color=GREY, linestyle="--", linewidth=1.3, zorder=0)
    if log:
        ax.set_yscale("log")
    ax.set_xlim(0, end / unit)
    style(ax, prefix + x_label, y)
    ax.set_title(title, fontsize=13, parse_math=False)
    if ax.lines:
        ax.legend(loc="best", fontsize=11)
    _label_ends(ax, ends)
    run.write("learning_curve.png", png(figure))


def _label_ends(ax: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Label the right ends of the lines in the margin. Labels of close lines are stacked."""
    place = -np.inf
    for value, label, colour in sorted(ends):
        height = ax.transAxes.inverted().transform(ax.transData.transform((0, value)))[1]
        place = max(height, place + 0.045)
        ax.text(1.015, place, label, transform=ax.transAxes, color=colour, fontsize=11, va="center")
