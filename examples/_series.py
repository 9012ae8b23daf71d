"""Series to forecast: monthly CO2 and yearly sunspots, which statsmodels brings along, or a file's column."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from training import UserError


class Series(NamedTuple):
    """Equally spaced observations, without gaps."""

    name: str
    unit: str
    time: str  # what a step is
    times: np.ndarray  # (n,)
    values: np.ndarray  # (n,), float64
    period: int  # steps of a season
    difference: bool  # learn the change against one period before: for a series with a trend
    root: bool  # learn the square roots: for counts, which scatter more where they are large


def load(args: argparse.Namespace) -> Series:
    """The series that the arguments name; ``--period``, ``--difference`` and ``--root`` decide."""
    if args.csv:
        series = _from_csv(args.csv, args.column, args.period)
    else:
        series = {"sunspots": _sunspots, "co2": _co2}[args.series]()
    asked = {"period": args.period, "difference": args.difference, "root": args.root}
    series = series._replace(**{name: value for name, value in asked.items() if value is not None})
    if series.root and series.values.min() < 0:
        raise UserError(f"--root needs values from 0, and {series.name} has {series.values.min():g}")
    return series


# --- what statsmodels has --------------------------------------------------------------------------


def _datasets() -> Any:
    try:
        from statsmodels import datasets
    except ImportError:
        raise UserError(
            "the series are in a package: pip install 'lstm_jax[examples]' (or statsmodels); "
            "or give your own with --csv FILE"
        ) from None
    return datasets


def _sunspots() -> Series:
    data = _datasets().sunspots.load_pandas().data
    years, values = data["YEAR"].to_numpy(float), data["SUNACTIVITY"].to_numpy(float)
    return Series("sunspots", "yearly mean number", "year", years, values, 11, difference=False, root=True)


def _co2() -> Series:
    """Weekly measurements on Mauna Loa as means of months; 5 months without one are interpolated."""
    months = _datasets().co2.load_pandas().data["co2"].resample("MS").mean().interpolate()
    years = months.index.year + (months.index.month - 1) / 12
    values = months.to_numpy(float)
    return Series(
        "CO2 on Mauna Loa", "ppm", "month", years.to_numpy(float), values, 12, difference=True, root=False
    )


# --- a file ----------------------------------------------------------------------------------------


def _from_csv(path: Path, column: str | None, period: int | None) -> Series:
    """A column with a name in the first line; cells that are empty are interpolated."""
    if column is None or period is None:
        raise UserError("--csv needs --column NAME and --period N, the steps of a season (12 for months)")
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
        raise UserError(f"{path}: column {column!r} has no numbers")
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
