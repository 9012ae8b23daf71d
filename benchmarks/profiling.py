"""Where a step's time goes: kernels and the time between them, from ``jax.profiler``.

``python -m benchmarks.profiling`` traces a few calls of one case and writes a table of kernels.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import report
from benchmarks.cases import MODES, Case, Setting, make_problem, precision
from benchmarks.contestants.ours import named
from benchmarks.sheet import Sheet
from benchmarks.timing import sample

CALLS = 2
#: The case, and the implementations and dtypes in which it is profiled.
CASE, QUICK_CASE = Case(16, 1024, 768, 768), Case(2, 8, 3, 4)
KINDS = (("auto", "bfloat16"), ("auto", "float32"), ("cudnn", "float32"))
MOST = 15  # kernels in the table; the others are one row


class Kernel(NamedTuple):
    """All runs of one kernel."""

    name: str
    count: int
    total_us: float
    share: float  # of the span


class Profile(NamedTuple):
    """What the busiest line of the device did."""

    kernels: list[Kernel]
    span_us: float  # from the first kernel's start to the last one's end
    between_us: float  # of it, when no kernel ran


def read(path: Path) -> Profile:
    """A trace as ``jax.profiler.trace`` leaves it under a folder."""
    (found,) = path.rglob("*.trace.json.gz")
    with gzip.open(found) as file:
        return profile(json.load(file)["traceEvents"])


def profile(events: Sequence[dict[str, Any]]) -> Profile:
    """Kernels of the busiest line: a GPU's stream or, where there is no device, a thread.

    On a CPU, kernels are what has an event of its own for its end.
    """
    events = [e for e in events if "name" in e]
    names = {
        (e["pid"], e.get("tid") if e["name"] == "thread_name" else None): e["args"]["name"]
        for e in events
        if e.get("ph") == "M" and e["name"] in ("process_name", "thread_name")
    }
    streams = {line for line, name in names.items() if name.startswith("Stream")}
    ends = {(e["pid"], e["name"].removeprefix("end: ")) for e in events if e["name"].startswith("end: ")}
    lines = defaultdict(list)
    for e in events:
        if e.get("ph") != "X":
            continue
        if (e["pid"], e["tid"]) in streams if streams else (e["pid"], e["name"]) in ends:
            lines[e["pid"], e["tid"]].append((e["ts"], e["ts"] + e["dur"], e["name"]))
    if not lines:
        raise ValueError("the trace holds no kernel")
    busiest = max((leaves(line) for line in lines.values()), key=busy_us)
    span = max(end for _, end, _ in busiest) - busiest[0][0]
    counts: dict[str, list[float]] = defaultdict(list)
    for start, end, name in busiest:
        counts[name].append(end - start)
    ordered = sorted(counts.items(), key=lambda item: -sum(item[1]))
    kernels = [Kernel(name, len(us), sum(us), sum(us) / span) for name, us in ordered]
    return Profile(kernels, span, sum(gaps(busiest)))


def busy_us(line: Sequence[tuple[float, float, str]]) -> float:
    return sum(end - start for start, end, _ in line)


def leaves(line: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """In their order, without what only encloses others (a loop's own event)."""
    line = sorted(line, key=lambda event: (event[0], -event[1]))
    after = [*line[1:], (float("inf"), float("inf"), "")]
    return [event for event, then in zip(line, after, strict=True) if then[1] > event[1]]


def gaps(line: Sequence[tuple[float, float, str]]) -> Iterator[float]:
    """Where nothing runs between the first and the last."""
    until = line[0][1]
    for start, end, _ in line:
        if start > until:
            yield start - until
        until = max(until, end)


# --- a run ----------------------------------------------------------------------------------------


def trace(case: Case, mode: str, setting: Setting, implementation: str) -> tuple[Profile, float]:
    """The profile of ``CALLS`` calls, and the seconds of one without a profiler."""
    built = named(implementation).build(case, make_problem(case, setting), mode, setting)
    built.call()
    seconds = min(sample(built.call, 1) for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(CALLS):
                built.call()
        return read(Path(folder)), seconds


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny case")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="(default: %(default)s)")
    args = parser.parse_args(argv)
    case, platform = QUICK_CASE if args.quick else CASE, jax.default_backend()
    sheet = Sheet(
        args.out,
        "profile",
        f"Where the time of {case} goes, in {CALLS} calls",
        ("run", "kernel", "count", "total us", "share", "note"),
        report.machine(Setting(platform, "mixed"), (), {}),
        ("The device's busiest line. Shares are of the span from the first kernel to the last one's end.",),
    )
    for implementation, dtype in KINDS:
        setting = Setting(platform, dtype, tf32=platform == "gpu" and dtype == "float32")
        for mode in MODES:
            run = f"{implementation}, {dtype}{' (TF32)' if setting.tf32 else ''}, {mode}"
            sheet.begin(run=run)
            if why := named(implementation).declines(case, mode, setting):
                sheet.end(note=f"declines: {why}")
                continue
            try:
                with precision(setting):
                    found, seconds = trace(case, mode, setting, implementation)
            except Exception as error:  # told, and the others go on
                sheet.end(note=f"{type(error).__name__}: {error}".splitlines()[0][:200])
                continue
            sheet.end(kernel="one call, no profiler", count=1, **{"total us": seconds * 1e6})
            add(sheet, run, found)
    return 0


def add(sheet: Sheet, run: str, found: Profile) -> None:
    """A profile's rows."""
    rest = found.kernels[MOST:]
    others = Kernel(f"{len(rest)} others", *(sum(k[i] for k in rest) for i in (1, 2, 3)))  # type: ignore[arg-type]
    between = Kernel("(between kernels)", 0, found.between_us, found.between_us / found.span_us)
    for kernel in (*found.kernels[:MOST], *([others] if rest else []), between):
        sheet.begin(run=run)
        values = {"count": kernel.count, "total us": kernel.total_us, "share": kernel.share}
        sheet.end(kernel=kernel.name.replace("|", "/")[:80], **values)


if __name__ == "__main__":
    sys.exit(main())
