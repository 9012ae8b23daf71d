"""Pictures that programs share, as PNG bytes. No global state: each figure is its own object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind too.
BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#999999", "#222222"


def png(figure: Figure) -> bytes:
    file = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def learning_curve(
    rows: Sequence[Mapping[str, float]],
    *,
    x: str,
    x_label: str,
    y_label: str,
    train: str,
    valid: str,
    title: str,
    baselines: Mapping[str, float] | None = None,
    labels: tuple[str, str] = ("in training", "held out"),
    log: bool = False,
) -> bytes:
    """A measurement in training and on held-out data against ``x``, with a line for each baseline.

    ``train`` and ``valid`` are names in the rows of ``metrics.jsonl``, of which a row may lack either;
    ``x`` is one that every row has. Its label is a plural: it may come to be said of thousands.
    """
    end = max((row[x] for row in rows), default=1)
    unit, many = (1e6, "million ") if end >= 1e6 else (1e3, "thousand ") if end >= 1e4 else (1, "")
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    ax = figure.add_subplot()
    ends = [(value, f"{label} {value:.4g}", BLACK) for label, value in (baselines or {}).items()]
    looks: list[tuple[str, str, dict[str, Any]]] = [
        (train, labels[0], {"color": BLUE, "linewidth": 1.2}),
        (valid, labels[1], {"color": ORANGE, "linewidth": 2, "marker": "o"}),
    ]
    for name, label, look in looks:
        points = [(row[x] / unit, row[name]) for row in rows if name in row]
        if points:
            ax.plot(*zip(*points, strict=True), label=label, **look)
            if name == valid:
                ends.append((points[-1][1], f"{label} {points[-1][1]:.4g}", ORANGE))
    for value in (baselines or {}).values():
        ax.axhline(value, color=GREY, linestyle="--", linewidth=1.3, zorder=0)
    if log:
        ax.set_yscale("log")
    ax.set_xlim(0, end / unit)
    ax.set_xlabel(many + x_label, fontsize=12)
    ax.set_ylabel(y_label, fontsize=12)
    ax.set_title(title, fontsize=13, parse_math=False)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.lines:
        ax.legend(loc="upper right", fontsize=11)
    _name_ends(ax, ends)
    return png(figure)


def _name_ends(ax: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """The ends of the lines, named in the margin: one above the other where lines lie close."""
    place = -np.inf
    for value, label, colour in sorted(ends):
        share = ax.transAxes.inverted().transform(ax.transData.transform((0, value)))[1]
        place = max(share, place + 0.045)
        ax.text(1.015, place, label, transform=ax.transAxes, color=colour, fontsize=11, va="center")
