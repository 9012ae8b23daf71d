"""The data of ``forecast.py``: a series, the network's inputs and targets, the errors of forecasts."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from training import UserError

COVERAGES = (0.80, 0.95)  # nominal coverages of the intervals

# --- series ----------------------------------------------------------------------------------------


class Series(NamedTuple):
    """Equally spaced observations without gaps."""

    name: str
    unit: str
    time: str  # the name of a time step
    times: np.ndarray  # (n,)
    values: np.ndarray  # (n,), float64
    period: int  # steps per season
    difference: bool  # predict the change from one period before: for a series with a trend
    root: bool  # predict square roots: for counts, whose variance increases with their mean


def load(args: argparse.Namespace) -> Series:
    """The series that the arguments specify. ``--period``, ``--difference``, ``--root`` override its own."""
    if args.csv:
        series = _from_csv(args.csv, args.column, args.period)
    else:
        series = {"sunspots": _sunspots, "co2": _co2}[args.series]()
    given = {"period": args.period, "difference": args.difference, "root": args.root}
    series = series._replace(**{name: value for name, value in given.items() if value is not None})
    if series.root and series.values.min() < 0:
        raise UserError(f"--root needs values >= 0, but {series.name} has {series.values.min():g}")
    return series


def _datasets() -> Any:
    try:
        from statsmodels import datasets
    except ImportError:
        raise UserError(
            "the series need statsmodels: pip install 'lstm_jax[examples]', or use --csv FILE"
        ) from None
    return datasets


def _sunspots() -> Series:
    data = _datasets().sunspots.load_pandas().data
    years, values = data["YEAR"].to_numpy(float), data["SUNACTIVITY"].to_numpy(float)
    return Series("sunspots", "yearly mean number", "year", years, values, 11, difference=False, root=True)


def _co2() -> Series:
    """Monthly means of weekly measurements on Mauna Loa. 5 months without measurement are interpolated."""
    months = _datasets().co2.load_pandas().data["co2"].resample("MS").mean().interpolate()
    years = months.index.year + (months.index.month - 1) / 12
    values = months.to_numpy(float)
    return Series(
        "CO2 on Mauna Loa", "ppm", "month", years.to_numpy(float), values, 12, difference=True, root=False
    )


def _from_csv(path: Path, column: str | None, period: int | None) -> Series:
    """Read a column of a file whose first line contains the names. Empty cells are interpolated."""
    if column is None or period is None:
        raise UserError("--csv needs --column NAME and --period N, the steps per season (12 for months)")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8: {error}") from None
    if not rows:
        raise UserError(f"{path} has no rows below its first line")
    if column not in rows[0]:
        raise UserError(f"{path} has no column {column!r}: it has {', '.join(map(repr, rows[0]))}")
    values = np.array([_number(path, line, row[column]) for line, row in enumerate(rows, 2)])
    steps, known = np.arange(len(values), dtype=float), np.isfinite(values)
    if not known.any():
        raise UserError(f"{path}: column {column!r} contains no numbers")
    values = np.interp(steps, steps[known], values[known])
    return Series(column, column, "step", steps, values, period, difference=True, root=False)


def _number(path: Path, line: int, cell: str | None) -> float:
    if cell is None or cell.strip().lower() in ("", "na", "nan"):
        return np.nan
    try:
        value = float(cell)
    except ValueError:
        value = np.inf
    if np.isinf(value):
        raise UserError(f"{path}, line {line}: {cell!r} is not a number")
    return value


# --- inputs and targets ----------------------------------------------------------------------------


class Problem(NamedTuple):
    """The network's inputs and targets for each origin t and each horizon h = 1..H."""

    xs: np.ndarray  # (n, period): the inputs at t, the values from t - period + 1 to t
    targets: np.ndarray  # (n, H): the targets for t + h, (value - base) / scale; 0 after the series' end
    base: np.ndarray  # (n, H): in the units of the values, or of their square roots
    scale: float
    until: np.ndarray  # (n, H): t + h
    naive: np.ndarray  # (n, H): the seasonal-naive forecast, in the units of the values


def seasonal_naive(values: np.ndarray, horizon: int, period: int) -> np.ndarray:
    """The seasonal-naive forecast, (n, H).

    For t + h it is the last value at the same place in the period that is known at t, or the first value.
    """
    t, h = np.arange(len(values))[:, None], np.arange(1, horizon + 1)
    return values[np.maximum(t + h - period * -(-h // period), 0)]


def make_problem(series: Series, horizon: int, known: int) -> Problem:
    """Scale the series by its first ``known`` values only, because later values are in the future."""
    values = np.sqrt(series.values) if series.root else series.values
    n, period = len(values), series.period
    naive = seasonal_naive(values, horizon, period)
    if series.difference:
        base = naive
        inputs = values - np.concatenate([values[:1].repeat(period), values[:-period]])
    else:
        mean = values[:known].mean()
        base, inputs = np.full_like(naive, mean), values - mean
    scale = float(inputs[:known].std()) or 1.0
    padded = np.concatenate([np.zeros(period - 1), inputs / scale])
    xs = np.lib.stride_tricks.sliding_window_view(padded, period)
    until = np.arange(n)[:, None] + np.arange(1, horizon + 1)
    targets = np.where(until < n, (values[np.minimum(until, n - 1)] - base) / scale, 0.0)
    naive = seasonal_naive(series.values, horizon, period)
    return Problem(xs.astype(np.float32), targets.astype(np.float32), base, scale, until, naive)


# --- the errors of forecasts -----------------------------------------------------------------------


class Forecasts(NamedTuple):
    """For each origin and horizon, in the units of the series."""

    median: np.ndarray  # (n, H)
    intervals: dict[float, tuple[np.ndarray, np.ndarray]]  # nominal coverage: lower and upper ends


def evaluate(
    values: np.ndarray, forecasts: Forecasts, problem: Problem, known: int, period: int
) -> list[dict]:
    """A row of metrics for each horizon, and one for all horizons.

    MASE is the mean absolute error divided by that of the seasonal-naive forecast one period ahead on the
    known values (Hyndman & Koehler 2006). Coverage is the fraction of the values inside an interval.
    """
    unit = np.abs(values[period:known] - values[: known - period]).mean()
    n, H = problem.until.shape
    # Origins start at the last known value.
    evaluated = (problem.until < n) & (np.arange(n)[:, None] >= known - 1)
    truth = values[np.minimum(problem.until, n - 1)]
    rows = []
    for name, h in [*((str(h + 1), [h]) for h in range(H)), ("all", list(range(H)))]:
        where = evaluated & np.isin(np.arange(H), h)
        error = np.abs(forecasts.median - truth)[where].mean()
        naive = np.abs(problem.naive - truth)[where].mean()
        row = {"horizon": name, "mae": error, "naive_mae": naive}
        row |= {"mase": error / unit, "naive_mase": naive / unit}
        for coverage, (low, high) in forecasts.intervals.items():
            row[f"inside_{coverage:.0%}"] = ((low <= truth) & (truth <= high))[where].mean()
        rows.append(row | {"forecasts": int(where.sum())})
    return rows


def table(rows: Sequence[Mapping[str, Any]], series: Series) -> str:
    lines = [
        f"{series.time + 's':>7} |  LSTM ensemble  |  seasonal-naive | inside the interval of",
        f"{'ahead':>7} |    MAE     MASE  |    MAE     MASE  |  80 %   95 %  (forecasts)",
    ]
    for row in rows:
        lstm, naive = (f"{row[f'{prefix}mae']:8.3g} {row[f'{prefix}mase']:7.3f}" for prefix in ("", "naive_"))
        inside = "  ".join(f"{100 * row[f'inside_{coverage:.0%}']:3.0f} %" for coverage in COVERAGES)
        lines.append(f"{row['horizon']:>7} | {lstm}  | {naive}  | {inside}  ({row['forecasts']})")
    return "\n".join(lines) + f"\nMAE in {series.unit}"
