"""The picture ``forecast.png``: a series, its forecasts, and their errors and coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from _forecast_data import Forecasts, Series
from matplotlib.figure import Figure
from training.plots import BLACK, BLUE, GREY, ORANGE, png, style


def draw_forecasts(
    series: Series, forecasts: Forecasts, naive: np.ndarray, rows: Sequence[Mapping[str, Any]], known: int
) -> bytes:
    """Above: forecasts from some origins and from the end. Below: errors and coverage by horizon."""
    H = forecasts.median.shape[1]
    figure = Figure(figsize=(10, 8), layout="constrained")
    figure.suptitle(
        f"{series.name}: forecasts by an ensemble of LSTMs, {H} {series.time}s ahead", fontsize=13
    )
    grid = figure.add_gridspec(2, 2, height_ratios=(1.5, 1))
    _draw_series(figure.add_subplot(grid[0, :]), series, forecasts, naive, known)

    ahead = np.arange(1, H + 1)
    error, cover = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    error.plot(ahead, [row["naive_mae"] for row in rows[:H]], "s--", color=ORANGE, label="seasonal-naive")
    error.plot(ahead, [row["mae"] for row in rows[:H]], "o-", color=BLUE, label="LSTM ensemble")
    error.set_ylim(bottom=0)
    error.legend(fontsize=10)
    for name, marker, alpha in ((0.95, "^", 0.5), (0.80, "o", 1.0)):
        inside = [100 * row[f"inside_{name:.0%}"] for row in rows[:H]]
        cover.axhline(100 * name, color=GREY, linestyle="--", linewidth=1.2)
        cover.plot(ahead, inside, f"{marker}-", color=BLUE, alpha=alpha, label=f"{name:.0%} interval")
    cover.set_ylim(0, 104)
    cover.legend(loc="lower left", fontsize=10)
    y_labels = (f"mean absolute error\n({series.unit})", "values inside (%)\n(dashed: nominal)")
    for ax, y in zip((error, cover), y_labels, strict=True):
        style(ax, f"{series.time}s ahead", y, size=11)
        ax.set_xticks(ahead if H <= 12 else np.linspace(1, H, 6).round())
    return png(figure)


def _draw_series(ax: Any, series: Series, forecasts: Forecasts, naive: np.ndarray, known: int) -> None:
    n, H = forecasts.median.shape
    begin = max(known - 1, n - 6 * H)
    spacing = series.times[1] - series.times[0]
    ax.plot(
        series.times[begin:], series.values[begin:], color=BLACK, linewidth=1.3, label="observed", zorder=3
    )
    ax.set_title(
        f"forecasts from some origins and from the end; training data end at {series.times[known - 1]:.0f}",
        fontsize=11,
        loc="left",
    )
    origins = [*range(begin, n - H, H + H // 2), n - 1]
    for origin in origins:
        times = series.times[origin] + spacing * np.arange(1, H + 1)
        first = origin == origins[0]
        for coverage, alpha in ((0.95, 0.15), (0.80, 0.3)):
            low, high = (end[origin] for end in forecasts.intervals[coverage])
            label = f"{coverage:.0%} interval" if first else None
            ax.fill_between(times, low, high, color=BLUE, alpha=alpha, linewidth=0, label=label)
        label = "LSTM ensemble" if first else None
        ax.plot(times, forecasts.median[origin], color=BLUE, linewidth=2, label=label)
        label = "seasonal-naive" if first else None
        ax.plot(times, naive[origin], color=ORANGE, linestyle="--", linewidth=1.2, label=label)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.15 * (high - low))  # space for the legend
    ax.set_xlim(series.times[begin], series.times[-1] + spacing * (H + 1))
    ax.legend(loc="upper left", fontsize=10, ncols=3)
    time = "year" if series.time in ("year", "month") else series.time
    style(ax, time, f"{series.name}\n({series.unit})", size=11)
