"""A series as a problem for a network, and how forecasts of it are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from _series import Series

COVERS = (0.80, 0.95)  # of the intervals


class Forecasts(NamedTuple):
    """For each origin and horizon, in the series' own units."""

    median: np.ndarray  # (n, H)
    intervals: dict[float, tuple[np.ndarray, np.ndarray]]  # by what they should cover: lower and upper ends


# --- a series as a problem -------------------------------------------------------------------------


class Problem(NamedTuple):
    """What the network reads and says, for each origin t and each horizon h = 1..H."""

    xs: np.ndarray  # (n, period): what is read at t, the values from t - period + 1 to t
    targets: np.ndarray  # (n, H): what is to be said of t + h; 0 where that is not known
    base: np.ndarray  # (n, H): what the targets are measured from, in the series' values (or their roots)
    scale: float  # ... and in which units
    until: np.ndarray  # (n, H): t + h
    naive: np.ndarray  # (n, H): the seasonal-naive forecast, a value of the series


def seasonal_naive(values: np.ndarray, horizon: int, period: int) -> np.ndarray:
    """(n, H): for t + h, the last value known at t of the same place in the period (else the first)."""
    t, h = np.arange(len(values))[:, None], np.arange(1, horizon + 1)
    return values[np.maximum(t + h - period * -(-h // period), 0)]


def make_problem(series: Series, horizon: int, known: int) -> Problem:
    """Units are measured on the first ``known`` values: what comes after them is the future."""
    values = np.sqrt(series.values) if series.root else series.values
    n, period = len(values), series.period
    naive = seasonal_naive(values, horizon, period)
    if series.difference:
        base = naive
        read = values - np.concatenate([values[:1].repeat(period), values[:-period]])
    else:
        mean = values[:known].mean()
        base, read = np.full_like(naive, mean), values - mean
    scale = float(read[:known].std()) or 1.0
    past = np.concatenate([np.zeros(period - 1), read / scale])  # nothing is known before the beginning
    xs = np.lib.stride_tricks.sliding_window_view(past, period)
    until = np.arange(n)[:, None] + np.arange(1, horizon + 1)
    targets = np.where(until < n, (values[np.minimum(until, n - 1)] - base) / scale, 0.0)
    judge = seasonal_naive(series.values, horizon, period)
    return Problem(xs.astype(np.float32), targets.astype(np.float32), base, scale, until, judge)


# --- how good forecasts were -----------------------------------------------------------------------


def evaluate(
    values: np.ndarray, forecasts: Forecasts, problem: Problem, known: int, period: int
) -> list[dict]:
    """The table: a row for each horizon, and one for all of them.

    MASE is the mean absolute error in units of what the seasonal-naive forecast has one period ahead within
    what is known (Hyndman & Koehler 2006). An interval's coverage is the share of the values that lay in it.
    """
    unit = np.abs(values[period:known] - values[: known - period]).mean()
    n, H = problem.until.shape
    judged = (problem.until < n) & (
        np.arange(n)[:, None] >= known - 1
    )  # origins from the last known value on
    truth = values[np.minimum(problem.until, n - 1)]
    rows = []
    for name, h in [*((str(h + 1), [h]) for h in range(H)), ("all", list(range(H)))]:
        where = judged & np.isin(np.arange(H), h)
        error = np.abs(forecasts.median - truth)[where].mean()
        naive = np.abs(problem.naive - truth)[where].mean()
        row = {
            "horizon": name,
            "mae": error,
            "naive_mae": naive,
            "mase": error / unit,
            "naive_mase": naive / unit,
        }
        for cover, (low, high) in forecasts.intervals.items():
            row[f"inside_{cover:.0%}"] = ((low <= truth) & (truth <= high))[where].mean()
        rows.append(row | {"forecasts": int(where.sum())})
    return rows


def table(rows: Sequence[Mapping[str, Any]], series: Series) -> str:
    lines = [
        f"{series.time + 's':>7} |  LSTM ensemble  |  seasonal-naive | inside the interval of",
        f"{'ahead':>7} |    MAE     MASE  |    MAE     MASE  |  80 %   95 %  (forecasts)",
    ]
    for row in rows:
        ours, naive = (
            f"{row[a]:8.3g} {row[b]:7.3f}" for a, b in (("mae", "mase"), ("naive_mae", "naive_mase"))
        )
        inside = "  ".join(f"{100 * row[f'inside_{cover:.0%}']:3.0f} %" for cover in COVERS)
        lines.append(f"{row['horizon']:>7} | {ours}  | {naive}  | {inside}  ({row['forecasts']})")
    return "\n".join(lines) + f"\nMAE in {series.unit}"
