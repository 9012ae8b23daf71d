"""The data of ``forecast.py``: a series, inputs and targets, the folds of cross-validation, the baselines."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from training import UserError

FOLDS = 5  # K, of the cross-validation

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
    elif args.column:
        raise UserError("--column needs --csv FILE")
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
    """Read a column of a file whose first line contains the names.

    Empty cells are interpolated. Those before the first number and after the last one are left out.
    """
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
    known = np.flatnonzero(np.isfinite(values))
    if not known.size:
        raise UserError(f"{path}: column {column!r} contains no numbers")
    steps = np.arange(known[0], known[-1] + 1)
    values = np.interp(steps, known, values[known])
    return Series(column, column, "step", steps.astype(float), values, period, difference=True, root=False)


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
    """The inputs and targets of the methods, for each origin t = 0..n-1 and each horizon h = 1..H.

    An origin is the time at which a forecast is made. Its targets are the values at t + 1 .. t + H,
    differenced, rooted and scaled: :meth:`value` inverts this.
    """

    xs: np.ndarray  # (n, period): the inputs at t, the values from t - period + 1 to t
    targets: np.ndarray  # (n, H): the targets for t + h, (value - base) / scale; 0 after the series' end
    base: np.ndarray  # (n, H): in the units of the values, or of their square roots
    scale: float
    root: bool
    until: np.ndarray  # (n, H): t + h
    known: int  # the values before this time may be used for training and calibration
    first: int  # the first origin with complete inputs
    naive: np.ndarray  # (n, H): the seasonal-naive forecast of the targets

    def value(self, z: np.ndarray) -> np.ndarray:
        """Targets as values of the series. Roots are increasing functions, so quantiles stay quantiles."""
        values = self.base + self.scale * z
        return np.maximum(values, 0) ** 2 if self.root else values


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
        base, first = naive, 2 * period - 1
        inputs = values - np.concatenate([values[:1].repeat(period), values[:-period]])
    else:
        mean = values[:known].mean()
        base, first, inputs = np.full_like(naive, mean), period - 1, values - mean
    scale = float(inputs[:known].std()) or 1.0
    padded = np.concatenate([np.zeros(period - 1), inputs / scale])
    xs = np.lib.stride_tricks.sliding_window_view(padded, period)
    until = np.arange(n)[:, None] + np.arange(1, horizon + 1)
    targets = np.where(until < n, (values[np.minimum(until, n - 1)] - base) / scale, 0.0)
    return Problem(xs, targets, base, scale, series.root, until, known, first, (naive - base) / scale)


# --- cross-validation ------------------------------------------------------------------------------


class Folds(NamedTuple):
    """K blocks of consecutive known origins, each left out by some models.

    No value of the fold is a target of their training. The inputs of later targets may contain its values.
    """

    fold: np.ndarray  # (n,): the fold of an origin; -1 for origins that are not in a fold
    training: np.ndarray  # (K, n, H): the targets that the models of a fold may be trained on
    validation: np.ndarray  # (n, H): the targets of known origins, each held out by the fold of its origin

    def held_out(self, predictions: np.ndarray) -> np.ndarray:
        """(K, n, H), predictions by fold, to (n, H).

        At an origin in a fold this is the prediction of the models that left the fold out. At all other
        origins, which include those of the test part, it is the mean over the folds.
        """
        own = np.take_along_axis(predictions, np.maximum(self.fold, 0)[None, :, None], axis=0)[0]
        return np.where(self.fold[:, None] >= 0, own, predictions.mean(0))


def make_folds(problem: Problem) -> Folds:
    (n, H), known = problem.until.shape, problem.known
    fold = np.full(n, -1)
    blocks = np.array_split(np.arange(problem.first, known - 1), FOLDS)
    usable = (problem.until < known) & (np.arange(n)[:, None] >= problem.first)
    training = np.repeat(usable[None], FOLDS, axis=0)
    for k, block in enumerate(blocks):
        fold[block] = k
        training[k] &= (problem.until <= block[0]) | (problem.until > block[-1] + H)
    return Folds(fold, training, usable)


def linear_autoregression(problem: Problem, folds: Folds, penalty: float = 10.0) -> np.ndarray:
    r"""A linear autoregression for each fold and horizon, (K, n, H), fitted by ridge regression.

    .. math:: w_h = (X^T X + \lambda I)^{-1} X^T z_h

    The rows of X are the inputs and a 1, whose weight is not penalised.
    """
    xs = np.concatenate([problem.xs, np.ones((len(problem.xs), 1))], axis=1)
    ridge = penalty * np.diag([1.0] * (xs.shape[1] - 1) + [1e-9])
    predictions = np.empty((len(folds.training), *problem.targets.shape))
    for k, h in np.ndindex(predictions.shape[0], predictions.shape[2]):
        rows = folds.training[k, :, h]
        x, z = xs[rows], problem.targets[rows, h]
        predictions[k, :, h] = xs @ np.linalg.solve(x.T @ x + ridge, x.T @ z)
    return predictions
