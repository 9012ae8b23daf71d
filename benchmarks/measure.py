"""One case and one kind of work: who takes part, whether they agree, and what it takes them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from benchmarks.cases import Case, Setting, flops, make_problem
from benchmarks.contestants.contestant import Built, Contestant
from benchmarks.timing import SAMPLE_S, Timed, time_rounds

#: How far results may lie from ours, as a part of the largest number in an array. Under narrow types
#: the libraries differ in what they keep wide (ours: weights, sums and cell state), and over many steps
#: it adds up; that all compute the same is what float32 shows.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2, "float16": 0.05}
TF32_TOLERANCE = 0.02


@dataclass(frozen=True)
class Row:
    """What there is to say of a contestant after a measurement."""

    status: str  # "timed"; or "absent", "declines", "fails", "refused", and why is in ``note``
    note: str = ""
    rounds_s: tuple[float, ...] = ()
    min_s: float | None = None
    median_s: float | None = None
    ratio: float | None = None  # its median to that of the first contestant
    distance: float | None = None  # from our results, as a part of the largest number in an array
    compile_s: float | None = None
    temporary_bytes: int | None = None
    matmul_fraction: float | None = None  # of the matrix products' rate, measured in the same run


@dataclass(frozen=True)
class Measurement:
    """All contestants in one case and one kind of work."""

    case: Case
    mode: str
    flops: int
    repeats: int  # calls in each of the samples
    rows: dict[str, Row]

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return asdict(self) | {"case": self.case._asdict(), "title": str(self.case)}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Measurement:
        """The inverse of :meth:`as_json`."""
        rows = {name: Row(**row | {"rounds_s": tuple(row["rounds_s"])}) for name, row in tree["rows"].items()}
        return cls(Case(**tree["case"]), tree["mode"], tree["flops"], tree["repeats"], rows)


def measure(
    case: Case,
    mode: str,
    contestants: Sequence[Contestant],
    setting: Setting,
    rounds: int,
    *,
    rate: float | None = None,
    sample_s: float = SAMPLE_S,
    tell: Callable[[str], Any] = lambda _: None,
) -> Measurement:
    """Build, compare with the first of ``contestants`` (ours), and time those who agree."""
    problem = make_problem(case, setting)
    built: dict[str, Built] = {}
    rows: dict[str, Row] = {}
    reference: dict[str, Any] = {}
    for who in contestants:
        rows[who.name], ready, results = enter(who, case, mode, setting, problem, reference, tell)
        if ready is not None:
            built[who.name] = ready
            reference = reference or results

    spins = {who.name: who.spins for who in contestants}
    timed = {name: Timed(ready.call, spins[name]) for name, ready in built.items()}
    tell("rounds")
    seconds, repeats = time_rounds(timed, rounds, sample_s)
    work = flops(case, mode, int(problem.valid.sum()))
    first = statistics.median(seconds[contestants[0].name])
    for name, ready in built.items():
        median = statistics.median(seconds[name])
        rows[name] = Row(
            "timed",
            ready.note,
            tuple(seconds[name]),
            min(seconds[name]),
            median,
            median / first,
            rows[name].distance,
            ready.compile_s,
            ready.temporary_bytes,
            work / median / rate if rate else None,
        )
    return Measurement(case, mode, work, repeats, rows)


def enter(
    who: Contestant,
    case: Case,
    mode: str,
    setting: Setting,
    problem: Any,
    reference: dict[str, Any],
    tell: Callable[[str], Any],
) -> tuple[Row, Built | None, dict[str, Any]]:
    """Whether it takes part, and what it gives. Without a ``reference`` it is the reference: its errors
    are ours, and stop the run."""
    if why := who.absent():
        return Row("absent", why), None, {}
    if why := who.declines(case, mode, setting):
        return Row("declines", why), None, {}
    tell(who.name)
    try:
        ready = who.build(case, problem, mode, setting)
        results = as_numpy(ready.ours(ready.call()), problem.valid)
    except Exception as error:  # another library's: told, and the others go on
        if not reference:
            raise
        return Row("fails", f"{type(error).__name__}: {first_line(error)}"), None, {}
    try:
        distance, where = farthest(results, reference or results)
    except ValueError as error:
        return Row("refused", str(error)), None, {}
    if not distance <= tolerance(setting):  # NaN is refused
        why = f"its {where} differ from ours by {distance:.2g} of the largest number"
        return Row("refused", why, distance=distance), None, {}
    return Row("timed", distance=distance), ready, results


def as_numpy(results: dict[str, Any], valid: np.ndarray) -> dict[str, Any]:
    """On the host, in float32; outputs at padding do not count."""
    arrays = jax.tree.map(lambda a: np.asarray(a, np.float32), results)
    if "outputs" in arrays:
        arrays["outputs"] = np.where(valid, arrays["outputs"], np.float32(0))
    return arrays


def tolerance(setting: Setting) -> float:
    """For the comparison, by dtype."""
    if setting.dtype == "float32" and setting.platform == "gpu" and setting.tf32:
        return TF32_TOLERANCE
    return TOLERANCE[setting.dtype]


def farthest(results: dict[str, Any], reference: dict[str, Any]) -> tuple[float, str]:
    """The largest distance between two arrays, as a part of the largest number in them, and where."""
    if results.keys() != reference.keys():
        raise ValueError(f"gives {', '.join(results)} instead of {', '.join(reference)}")
    found = [(0.0, "results")]
    for name in reference:
        ours, theirs = jax.tree.leaves(reference[name]), jax.tree.leaves(results[name])
        if [a.shape for a in ours] != [a.shape for a in theirs]:
            raise ValueError(f"its {name} have other shapes than ours")
        for a, b in zip(ours, theirs, strict=True):
            distance = np.max(np.abs(a - b), initial=0.0) / (np.max(np.abs(a), initial=0.0) + 1e-6)
            found.append((float(distance), name))
    return max(found, key=lambda pair: np.inf if np.isnan(pair[0]) else pair[0])


def first_line(error: Exception) -> str:
    """Of an error's text."""
    return next(iter(str(error).strip().splitlines()), "")[:200]
