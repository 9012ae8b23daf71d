"""Summary of a run: geometric means over the plain cases, and cases in which another library is faster."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.cases import MODES, OTHER, Case
from benchmarks.contestants import AGAIN, LIBRARIES, LINEN, LOW_MEMORY, LSTM_JAX, NNX, SCAN, TORCH
from benchmarks.measure import Measurement, Row

LIBRARY_NAMES = tuple(contestant.name for contestant in LIBRARIES)


class Mean(NamedTuple):
    """A geometric mean of ratios."""

    what: str
    value: float
    cases: int  # number of cases in the mean


class Verdict(NamedTuple):
    """lstm_jax compared with the fastest other JAX library, in one case and mode."""

    title: str
    mode: str
    best: str  # the name of that library
    ratio: float  # median of lstm_jax divided by that of the library
    noise: float  # ratio between the two measurements of lstm_jax, at least 1
    slower: bool  # whether ratio exceeds noise


def is_plain(measurement: Measurement) -> bool:
    """Whether the case has no options and is not in ``OTHER``. Geometric means are over these cases."""
    case = measurement.case
    return case == Case(case.B, case.T, case.D, case.H) and case not in OTHER


def noise(measurement: Measurement) -> float | None:
    """The ratio between the two measurements of lstm_jax in the same run, at least 1."""
    a, b = (median(measurement, contestant.name) for contestant in (LSTM_JAX, AGAIN))
    return None if a is None or b is None else max(a / b, b / a)


def best_library(measurement: Measurement) -> tuple[str, float] | None:
    """The fastest other JAX library and its median."""
    medians = [(median(measurement, name), name) for name in LIBRARY_NAMES]
    timed = [(seconds, name) for seconds, name in medians if seconds is not None]
    return None if not timed else min(timed)[::-1]


def median(measurement: Measurement, name: str) -> float | None:
    """Median seconds, or None if the contestant was not timed."""
    row = measurement.rows.get(name)
    return None if row is None else row.median_s


def verdicts(measurements: Sequence[Measurement]) -> list[Verdict]:
    """A verdict for every case in which another JAX library was timed."""
    found = []
    for measurement in measurements:
        best, noise_ratio = best_library(measurement), noise(measurement)
        if best is not None and noise_ratio is not None:
            ratio = measurement.rows[LSTM_JAX.name].median_s / best[1]
            found.append(
                Verdict(
                    str(measurement.case), measurement.mode, best[0], ratio, noise_ratio, ratio > noise_ratio
                )
            )
    return found


def means(measurements: Sequence[Measurement]) -> list[Mean]:
    """All geometric means that the measurements allow."""
    plain = [m for m in measurements if is_plain(m)]
    modes = {mode: [m for m in plain if m.mode == mode] for mode in MODES}
    both = MODES[1]
    found = []

    def add(what: str, chosen: Sequence[Measurement], ratio: Callable[[Measurement], Any]) -> None:
        ratios = [r for r in map(ratio, chosen) if r is not None]
        if ratios:
            found.append(Mean(what, statistics.geometric_mean(ratios), len(ratios)))

    for mode, chosen in modes.items():
        add(f"time, lstm_jax / torch, {mode}", chosen, lambda m: of(m, "median_s", LSTM_JAX.name, TORCH.name))
        add(f"time, best other JAX library / lstm_jax, {mode}", chosen, best_to_lstm_jax)
        add(
            f"time, lstm_jax / plain scan, {mode}",
            chosen,
            lambda m: of(m, "median_s", LSTM_JAX.name, SCAN.name),
        )
        add(f"time, lstm_jax / itself (the noise), {mode}", chosen, noise)
    for contestant in (LSTM_JAX, LOW_MEMORY):
        what = f"temporary memory, {contestant.name} / plain scan, {both}"
        add(what, modes[both], lambda m, name=contestant.name: of(m, "temporary_bytes", name, SCAN.name))
    for flax in (*LINEN, *NNX):
        what = f"compile time, lstm_jax / RNN of flax {flax.name}, {both}"
        add(what, modes[both], lambda m, name=flax.name: of(m, "compile_s", LSTM_JAX.name, name))
    return found


def best_to_lstm_jax(measurement: Measurement) -> float | None:
    """The median of the fastest other library divided by that of lstm_jax."""
    best = best_library(measurement)
    return None if best is None else best[1] / measurement.rows[LSTM_JAX.name].median_s


def of(measurement: Measurement, field: str, above: str, below: str) -> float | None:
    """The ratio of one figure of two contestants, or None if either is missing or zero."""
    rows: list[Row | None] = [measurement.rows.get(name) for name in (above, below)]
    values = [getattr(row, field) if row and row.status == "timed" else None for row in rows]
    return values[0] / values[1] if all(values) else None
