"""The picture ``forecast.png``: a series, its forecasts, and their errors and coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from _forecast_data import Series
from _forecast_intervals import Forecasts
from matplotlib.figure import Figure
from training.plots import BLACK, BLUE, GREEN, GREY, ORANGE, png, style

COLOURS = {
    "LSTM ensemble": BLUE,
    "linear autoregression": GREY,
    "seasonal-naive with drift": GREEN,
    "seasonal-naive": ORANGE,
}


def draw_forecasts(
    series: Series, forecasts: Mapping[str, Forecasts], rows: Sequence[Mapping[str, Any]], known: int
) -> bytes:
    """Above: forecasts from some origins and from the end. Below: errors and coverage by horizon."""
    H = forecasts["LSTM ensemble"].median.shape[1]
    figure = Figure(figsize=(10, 8), layout="constrained")
    figure.suptitle(
        f"{series.name}: forecasts by an ensemble of LSTMs, {H} {series.time}s ahead", fontsize=13
    )
    grid = figure.add_gridspec(2, 2, height_ratios=(1.5, 1))
    _draw_series(figure.add_subplot(grid[0, :]), series, forecasts, known)

    def by_horizon(method: str, metric: str) -> np.ndarray:
        chosen = [row for row in rows if row["method"] == method and row["horizon"] != "all"]
        return np.array([row[metric] for row in chosen])

    ahead = np.arange(1, H + 1)
    error, cover = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    for (method, colour), marker in zip(COLOURS.items(), "o^ds", strict=True):
        if method in forecasts:
            error.plot(ahead, by_horizon(method, "mae"), f"{marker}-", color=colour, label=method)
    error.set_ylim(0, 1.7 * error.get_ylim()[1])  # space for the legend
    for nominal, marker in ((95, "^"), (80, "o")):
        cover.axhspan(nominal - 3, nominal + 3, color=GREY, alpha=0.2, linewidth=0)
        inside = 100 * by_horizon("LSTM ensemble", f"inside_{nominal}%")
        cover.plot(ahead, inside, f"{marker}-", color=BLUE, label=f"{nominal} % interval")
    cover.set_ylim(60, 102)
    y_labels = (f"mean absolute error\n({series.unit})", "values inside (%)\n(grey: nominal, 3 points)")
    for ax, y in zip((error, cover), y_labels, strict=True):
        style(ax, f"{series.time}s ahead", y, size=11)
        ax.set_xticks(ahead if H <= 12 else np.linspace(1, H, 6).round())
        ax.legend(loc="upper left" if ax is error else "lower left", fontsize=10)
    return png(figure)


def _draw_series(ax: Any, series: Series, forecasts: Mapping[str, Forecasts], known: int) -> None:
    lstm, naive = forecasts["LSTM ensemble"], forecasts["seasonal-naive"]
    n, H = lstm.median.shape
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
            low, high = (end[origin] for end in lstm.intervals[coverage])
            label = f"{coverage:.0%} interval" if first else None
            ax.fill_between(times, low, high, color=BLUE, alpha=alpha, linewidth=0, label=label)
        label = "LSTM ensemble" if first else None
        ax.plot(times, lstm.median[origin], color=BLUE, linewidth=2, label=label)
        label = "seasonal-naive" if first else None
        ax.plot(times, naive.median[origin], color=ORANGE, linestyle="--", linewidth=1.2, label=label)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.15 * (high - low))  # space for the legend
    ax.set_xlim(series.times[begin], series.times[-1] + spacing * (H + 1))
    ax.legend(loc="upper left", fontsize=10, ncols=3)
    time = "year" if series.time in ("year", "month") else series.time
    style(ax, time, f"{series.name}\n({series.unit})", size=11)
