"""Measure one case in one mode: build all contestants, compare their results, then time them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case, Setting, flops, make_problem
from benchmarks.contestants.contestant import Built, Contestant
from benchmarks.timing import SAMPLE_S, Timed, summarize, time_rounds

#: Largest accepted difference from lstm_jax, relative to the largest number in an array. With narrow dtypes,
#: the libraries differ in what they keep in float32 (lstm_jax: weights, sums and the cell state), and the
#: differences accumulate over time. The float32 comparison shows that all compute the same function.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2, "float16": 0.05}
TF32_TOLERANCE = 0.02
FOREVER = float("inf")


@dataclass(frozen=True)
class Row:
    """The result of one contestant."""

    #: "timed"; or "absent", "declines", "fails", "differs" or "skipped", with the reason in ``note``.
    status: str
    note: str = ""
    min_s: float | None = None
    q1_s: float | None = None
    median_s: float | None = None
    q3_s: float | None = None
    count: int = 0  # samples
    ratio: float | None = None  # its median divided by that of the first contestant
    distance: float | None = None  # from lstm_jax, relative to the largest number in an array
    compile_s: float | None = None
    temporary_bytes: int | None = None
    matmul_fraction: float | None = None  # of the matrix product rate in the same run

    def as_json(self) -> dict[str, Any]:
        """The fields that do not have their default."""
        empty = asdict(Row(""))
        return {name: value for name, value in asdict(self).items() if value != empty[name]}


@dataclass(frozen=True)
class Measurement:
    """All contestants in one case and mode."""

    case: Case
    mode: str
    flops: int
    repeats: int  # calls in each sample
    rows: dict[str, Row]

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, without fields that have their default."""
        rows = {name: row.as_json() for name, row in self.rows.items()}
        return {"title": str(self.case), **asdict(self), "case": self.case.as_json(), "rows": rows}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Measurement:
        """The inverse of :meth:`as_json`."""
        rows = {name: Row(**row) for name, row in tree["rows"].items()}
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
    on_stage: Callable[[str], Any] = lambda _: None,
    threads: int = 0,
    deadline: float = FOREVER,
) -> Measurement:
    """Build all contestants, compare them with the first one, and time those whose results agree.

    Args:
        case: the problem.
        mode: one of ``MODES``.
        contestants: each is measured with ``setting``, or with its own.
        setting: platform and precision.
        rounds: samples of each contestant.
        rate: operations per second of a matrix product, to compute ``matmul_fraction`` with.
        sample_s: shortest duration of a sample.
        on_stage: called with the name of each stage.
        threads: compile all programs at once in this many threads; 0 compiles each one when it is needed.
        deadline: of ``time.monotonic``. A program that is not compiled by then is skipped, and no round but
            the first begins after it.

    Raises:
        Exception: what the first contestant raises. Errors of the others are recorded in their rows.
    """
    rows: dict[str, Row] = {}
    built: dict[str, Built] = {}
    reference: dict[str, Any] = {}
    pool = ThreadPoolExecutor(threads) if threads else None
    try:
        pending = {c.name: enter(c, case, mode, setting, pool, on_stage) for c in contestants if pool}
        on_stage("compiling")
        for contestant in contestants:
            found = pending.get(contestant.name) or enter(contestant, case, mode, setting, pool, on_stage)
            if isinstance(found, Row):
                rows[contestant.name] = found
                continue
            on_stage(f"first call of {contestant.name}")
            valid = make_problem(case, contestant.setting or setting).valid
            rows[contestant.name], ready, results = compare(
                found, valid, contestant.setting or setting, reference, deadline
            )
            if ready is not None:
                built[contestant.name] = ready
                reference = reference or results
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    spins = {contestant.name: contestant.spins for contestant in contestants}
    timed = {name: Timed(ready.call, spins[name]) for name, ready in built.items()}
    on_stage("rounds")
    samples, repeats = time_rounds(timed, rounds, sample_s, deadline)
    work = flops(case, mode, int(make_problem(case, contestants[0].setting or setting).valid.sum()))
    summaries = {name: summarize(samples[name]) for name in built}
    first = summaries[contestants[0].name].median_s
    for name, ready in built.items():
        median = summaries[name].median_s
        rows[name] = replace(
            rows[name],
            note=ready.note,
            **summaries[name]._asdict(),
            ratio=median / first,
            compile_s=ready.compile_s,
            temporary_bytes=ready.temporary_bytes,
            matmul_fraction=work / median / rate if rate else None,
        )
    return Measurement(case, mode, work, repeats, rows)


Compiling = Future[Built]


def enter(
    contestant: Contestant,
    case: Case,
    mode: str,
    setting: Setting,
    pool: ThreadPoolExecutor | None,
    on_stage: Callable[[str], Any],
) -> Row | Compiling:
    """The contestant's program, being compiled by ``pool`` or compiled, or the reason why it has none."""
    setting = contestant.setting or setting
    if why := contestant.absent():
        return Row("absent", why)
    if why := contestant.declines(case, mode, setting):
        return Row("declines", why)
    on_stage(contestant.name)
    future: Compiling = Future()
    try:
        finish = contestant.build(case, make_problem(case, setting), mode, setting)
        if pool is not None:
            return pool.submit(finish)
        future.set_result(finish())
    except Exception as error:
        future.set_exception(error)
    return future


def compare(
    future: Compiling, valid: np.ndarray, setting: Setting, reference: dict[str, Any], deadline: float
) -> tuple[Row, Built | None, dict[str, Any]]:
    """Run the compiled program once and compare its results with ``reference``.

    If ``reference`` is empty, the results become the reference, and errors are raised.
    """
    try:
        left = None if deadline == FOREVER or not reference else max(0.0, deadline - time.monotonic())
        ready = future.result(left)
        results = on_device(ready.named_results(ready.call()), valid)
    except TimeoutError:
        return Row("skipped", "not compiled in time"), None, {}
    except Exception as error:  # of another library: recorded, and the others continue
        if not reference:
            raise
        return Row("fails", error_line(error)), None, {}
    try:
        distance, where = farthest(results, reference or results)
    except ValueError as error:
        return Row("differs", str(error)), None, {}
    if not distance <= tolerance(setting):  # also true of NaN
        why = f"its {where} differ from those of lstm_jax by {distance:.2g} of the largest number"
        return Row("differs", why, distance=distance), None, {}
    return Row("timed", distance=distance), ready, results


def on_device(results: dict[str, Any], valid: np.ndarray) -> dict[str, Any]:
    """The results in float32, with zeros at padding."""
    arrays = jax.tree.map(lambda a: jnp.asarray(a).astype(jnp.float32), results)
    if "outputs" in arrays and not valid.all():
        arrays["outputs"] = jnp.where(valid, arrays["outputs"], jnp.float32(0))
    return arrays


def tolerance(setting: Setting) -> float:
    """The largest accepted difference from lstm_jax."""
    if setting.dtype == "float32" and setting.platform == "gpu" and setting.tf32:
        return TF32_TOLERANCE
    return TOLERANCE[setting.dtype]


def farthest(results: dict[str, Any], reference: dict[str, Any]) -> tuple[float, str]:
    """The largest distance between two arrays relative to the largest number in them, and its name."""
    if results.keys() != reference.keys():
        raise ValueError(f"gives {', '.join(results)} instead of {', '.join(reference)}")
    distances = [(0.0, "results")]
    for name in reference:
        expected, found = jax.tree.leaves(reference[name]), jax.tree.leaves(results[name])
        if [a.shape for a in expected] != [a.shape for a in found]:
            raise ValueError(f"its {name} have other shapes than those of lstm_jax")
        for a, b in zip(expected, found, strict=True):
            distances.append((float(_distance(a, b)), name))
    return max(distances, key=lambda pair: np.inf if np.isnan(pair[0]) else pair[0])


@jax.jit
def _distance(a: Any, b: Any) -> jax.Array:
    return jnp.max(jnp.abs(a - b), initial=0.0) / (jnp.max(jnp.abs(a), initial=0.0) + 1e-6)


def error_line(error: BaseException) -> str:
    """The type and the first line of an error."""
    line = next(iter(str(error).strip().splitlines()), "")[:200]
    return f"{type(error).__name__}: {line}"
