"""The corrections, the conformal intervals and the reported errors of ``forecast.py``.

The score of a forecast is its absolute error, and an interval is the forecast +- q. It contains the value
exactly if the score is at most q, so its coverage is correct if q is the right quantile of the scores.
:func:`conformal_quantile` takes q from left-out folds (cross-conformal prediction, Vovk 2015). Its guarantee
is for exchangeable scores, but the scores of a time series depend on each other and change over time. So
:func:`correct` removes the mean of recent errors from the forecasts of a series with a trend, and
:func:`track` corrects q while the values of the test part become known.

Scores and q are in the units of the targets, for example in square roots. There, the errors do not increase
with the level of the series.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from _forecast_data import Folds, Problem, Series

COVERAGES = (0.80, 0.95)  # nominal coverages of the intervals, in increasing order


def correct(problem: Problem, median: np.ndarray, periods: float = 3.0) -> np.ndarray:
    r"""The forecasts (n, H) plus an exponentially weighted mean of their known errors, for each horizon.

    .. math:: b_{t,h} = d\, b_{t-1,h} + (1 - d)\, e_{t-h,h}

    The error e of the forecast from t - h for h steps ahead is known at t, and b is added to the forecasts
    from t. The weight of an error halves in ``periods`` periods, which determines d. If the mean of the
    targets drifts, for example because a trend becomes steeper, the errors of fixed weights have the same
    sign for a long time. This is the intercept correction of Clements & Hendry (1996).
    """
    errors, corrections = problem.targets - median, np.zeros_like(median)
    decay, columns = 0.5 ** (1 / (periods * problem.xs.shape[1])), np.arange(median.shape[1])
    for t in range(problem.first + 1, len(median)):
        origins = t - 1 - columns  # of the forecasts for time t
        before = corrections[t - 1]
        after = decay * before + (1 - decay) * errors[origins, columns]
        corrections[t] = np.where(origins >= problem.first, after, before)
    return median + corrections


def conformal_quantile(scores: np.ndarray, coverage: float) -> float:
    r"""The r-th smallest of n scores with :math:`r = \lceil (n + 1) c \rceil`.

    A new score that is exchangeable with the n scores is at most this quantile with probability r / (n + 1),
    which is at least c (Vovk et al. 2005; Lei et al. 2018). It is infinite for r > n: too few scores.
    """
    n = len(scores)
    rank = math.ceil((n + 1) * coverage)
    return float(np.sort(scores)[rank - 1]) if rank <= n else math.inf


def track(scores: np.ndarray, q: np.ndarray, start: int, coverage: float, rate: float) -> np.ndarray:
    r"""Quantiles for the origins from ``start`` on, (n, H), corrected by the scores known at each origin.

    .. math:: q_{t,h} = q_{t-1,h} + \eta\, q_h\, (1[s_{t-h,h} > q_{t-h,h}] - (1 - c))

    A value outside its interval makes the later intervals wider, a value inside makes them narrower. The
    score of the forecast from t - h for h steps ahead is known at t, later scores are not. The corrections
    cancel if a fraction c of the values is inside, so the coverage of N forecasts differs from c by (q_h -
    last q) / (rate q_h N), for any series (Gibbs & Candès 2021; Angelopoulos et al. 2023).

    Args:
        scores: (n, H), by origin and horizon.
        q: (H,), the quantiles before the first correction.
        rate: :math:`\eta`. With 0, the quantiles stay q.
    """
    n, H = scores.shape
    quantiles, step, columns = np.full((n, H), np.inf), rate * q, np.arange(H)
    for t in range(start, n):
        origins = t - 1 - columns  # of the forecasts for time t
        missed = scores[origins, columns] > quantiles[origins, columns]
        q = q + np.where(origins >= start, step * (missed - (1 - coverage)), 0.0)
        quantiles[t] = q
    return quantiles


class Forecasts(NamedTuple):
    """For each origin and horizon, in the units of the series."""

    median: np.ndarray  # (n, H), the point forecasts
    intervals: dict[float, tuple[np.ndarray, np.ndarray]]  # nominal coverage: lower and upper ends


def calibrate(problem: Problem, folds: Folds, median: np.ndarray, rate: float) -> Forecasts:
    """Forecasts of the series with conformal intervals, calibrated for each horizon on the left-out folds.

    An interval that would be wider than that of the next larger coverage is made equal to it, and a negative
    quantile, after many values inside, is made 0.
    """
    scores, intervals = np.abs(problem.targets - median), {}
    quantiles = np.full_like(scores, np.inf)
    for coverage in reversed(COVERAGES):
        by_horizon = zip(scores.T, folds.validation.T, strict=True)
        q = np.array([conformal_quantile(score[valid], coverage) for score, valid in by_horizon])
        tracked = np.maximum(track(scores, q, problem.known - 1, coverage, rate), 0)
        quantiles = np.minimum(tracked, quantiles)
        intervals[coverage] = problem.value(median - quantiles), problem.value(median + quantiles)
    return Forecasts(problem.value(median), {coverage: intervals[coverage] for coverage in COVERAGES})


# --- the errors of forecasts -----------------------------------------------------------------------


def evaluate(values: np.ndarray, forecasts: Forecasts, problem: Problem, period: int) -> list[dict]:
    """A row of metrics for each horizon, and one for all horizons, from all origins of the test part.

    MASE is the mean absolute error divided by that of the seasonal-naive forecast one period ahead on the
    known values (Hyndman & Koehler 2006). Coverage is the fraction of the values inside an interval. The
    score of an interval is its width plus 2 / (1 - coverage) times the distance of a value outside, which
    is least for the true quantiles (Gneiting & Raftery 2007).
    """
    known = problem.known
    unit = np.abs(values[period:known] - values[: known - period]).mean()
    n, H = problem.until.shape
    # Origins start at the last known value.
    evaluated = (problem.until < n) & (np.arange(n)[:, None] >= known - 1)
    truth = values[np.minimum(problem.until, n - 1)]
    rows = []
    for name, h in [*((str(h + 1), [h]) for h in range(H)), ("all", list(range(H)))]:
        where = evaluated & np.isin(np.arange(H), h)
        error = np.abs(forecasts.median - truth)[where].mean()
        row = {"horizon": name, "forecasts": int(where.sum()), "mae": error, "mase": error / unit}
        for coverage, (low, high) in forecasts.intervals.items():
            width, outside = high - low, np.maximum(low - truth, 0) + np.maximum(truth - high, 0)
            row |= {
                f"inside_{coverage:.0%}": (outside == 0)[where].mean(),
                f"width_{coverage:.0%}": width[where].mean(),
                f"score_{coverage:.0%}": (width + 2 / (1 - coverage) * outside)[where].mean(),
            }
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]], series: Series) -> str:
    """Errors and coverage by horizon, and the mean over the horizons of all metrics."""
    found = {(row["method"], row["horizon"]): row for row in rows}
    methods, horizons = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))

    def inside(row: Mapping[str, Any]) -> str:
        return "  ".join(f"{100 * row[f'inside_{coverage:.0%}']:5.1f} %" for coverage in COVERAGES)

    names = [method.partition(" ") for method in methods]
    above, below = ("  ".join(f"{name[i]:>14}" for name in names) for i in (0, 2))
    lines = [
        f"mean absolute errors ({series.unit}), and values inside the 80 % and 95 % intervals of the LSTMs",
        f"{series.time + 's':>7} | {above} |",
        f"{'ahead':>7} | {below} |     80 %     95 %  (forecasts)",
    ]
    for horizon in horizons:
        row = found[methods[0], horizon]
        errors = "  ".join(f"{found[method, horizon]['mae']:14.3g}" for method in methods)
        lines.append(f"{horizon:>7} | {errors} | {inside(row)}  ({row['forecasts']})")
    lines += ["", f"{'mean of all horizons':25} |  MASE | inside 80 %, 95 % | width of both | score of both"]
    for method in methods:
        row = found[method, "all"]
        width, score = (
            " ".join(f"{row[f'{name}_{coverage:.0%}']:6.3g}" for coverage in COVERAGES)
            for name in ("width", "score")
        )
        lines.append(f"{method:25} | {row['mase']:5.3f} | {inside(row)} | {width} | {score}")
    return "\n".join([*lines, f"width and score in {series.unit}; lower scores are better"])
