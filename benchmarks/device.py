"""The plan of measurement for a GPU or TPU: correctness first, then speed, within a time budget.

Every job runs in a process of its own with a time limit of its own, and is killed with its children when it
exceeds the limit. Jobs run in order of value. A job that the budget leaves no time for is skipped and listed
as such. The results are written after every row: one JSON file and one Markdown table, also printed last.

    python -m benchmarks.device                      # the whole plan, at most 400 seconds
    python -m benchmarks.device --only loop,training # a second run, at most 180 seconds
    python -m benchmarks.device --quick              # tiny sizes; on a CPU, kernels run in their interpreter

It needs no downloads and no files outside the repository.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from benchmarks.files import aligned, dumps, table, write


class Job(NamedTuple):
    """One process of the plan."""

    name: str
    limit_s: float
    what: str

    @property
    def may_hang(self) -> bool:
        """Whether the limit stays as it is when the budget is larger than all limits."""
        return self.name.startswith("pallas")


#: In order of value. The limits sum to the default budget.
JOBS = (
    Job("device", 25, "versions, rates of matrix products and copies, cost of a loop iteration"),
    Job("correctness", 45, "scan, fused and cudnn against float64; their transforms against those of scan"),
    Job("cases-long", 42, "B 16, T 1024, H 768 and 256: this library, cuDNN and torch"),
    Job("cases-wide", 40, "B 64, T 1024, H 512 and 1024: likewise"),
    Job("cases-batch", 43, "GRU with and without resets, B 2048; B 32, H 128; two layers of 650; MLSTM"),
    Job("pallas-block", 25, "kernel in one block, H up to 128: correctness, then time"),
    Job("pallas-cluster", 25, "kernel in clusters of blocks, H 256 and 512: likewise"),
    Job("pallas-grid", 25, "kernel in a grid of blocks, H 768 and 1024: likewise"),
    Job("pallas-gru", 25, "GRU kernels, H 64 to 1024: likewise"),
    Job("loop", 38, "compiler options, command buffers and gate layouts for XLA's loop"),
    Job("training", 42, "words per second, Penn Treebank medium: this library and torch"),
    Job("pallas-large", 25, "kernel in a grid of blocks, H 1536 and 1900: likewise"),
)
NAMES = tuple(job.name for job in JOBS)
BUDGET_S, BUDGET_ONLY_S = 400.0, 180.0
#: A job is skipped if less of the budget is left.
MIN_S = 5.0
#: Environment variables of a job, unless the user sets them. torch uses the same GPU, and NumPy uses the same
#: cores as the threads that compile.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "OPENBLAS_NUM_THREADS": "1"}
#: Exit code of a job that finds no accelerator.
NO_DEVICE = 3
STDERR_CHARACTERS = 2000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the plan. 0: all jobs completed and no result was wrong; 1: otherwise; 2: there is no device."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--budget",
        type=float,
        metavar="SECONDS",
        help=f"for the whole run (default: {BUDGET_S:.0f}, with --only {BUDGET_ONLY_S:.0f})",
    )
    add(
        "--only",
        type=names,
        default=NAMES,
        metavar="NAME[,NAME]",
        help=f"jobs to run, of {', '.join(NAMES)}",
    )
    add("--out", type=Path, help="(default: benchmarks/results, or runs/benchmarks with --quick)")
    add("--quick", action="store_true", help="tiny sizes, to check that everything runs; also on a CPU")
    args = parser.parse_args(argv)
    budget = args.budget
    if budget is None:
        budget = BUDGET_S if args.only == NAMES else BUDGET_ONLY_S
    if budget <= 0:
        parser.error("--budget must be positive")
    out = args.out or Path("runs/benchmarks" if args.quick else "benchmarks/results")
    results = Results(out / f"device-{datetime.now(UTC):%Y-%m-%dT%H%M%S}.json", budget)
    jobs = stretched([job for job in JOBS if job.name in args.only], budget)
    for job in jobs:
        outcome = run(job, command(job, args.quick), results, began + budget - time.monotonic())
        print(f"{job.name}: {outcome.text}", flush=True)
        if outcome.code == NO_DEVICE:
            print("jax found only a CPU; use --quick there, or make bench for the CPU's benchmark")
            results.path.unlink(missing_ok=True)
            results.path.with_suffix(".md").unlink(missing_ok=True)
            return 2
    print(f"\n{results.headline()}\n\n{aligned(HEADS, results.lines())}\n")
    print(aligned(("job", "outcome"), results.outcomes()))
    print(f"\nwrote {results.path} and {results.path.with_suffix('.md')}")
    return 0 if results.good else 1


def names(text: str) -> tuple[str, ...]:
    """Comma-separated names of jobs."""
    words = tuple(text.split(","))
    if unknown := [word for word in words if word not in NAMES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(NAMES)}")
    return words


def stretched(jobs: list[Job], budget: float) -> list[Job]:
    """The jobs with larger limits, if the budget is larger than the sum of their limits."""
    spare = max(0.0, budget - sum(job.limit_s for job in jobs))
    total = sum(job.limit_s for job in jobs if not job.may_hang)
    return [job if job.may_hang else job._replace(limit_s=job.limit_s * (1 + spare / total)) for job in jobs]


def command(job: Job, quick: bool) -> list[str]:
    """The command line of a job, without its time limit."""
    words = [sys.executable, "-m", "benchmarks.device_jobs", job.name]
    return [*words, "--quick"] if quick else words


# --- processes ------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How a job ended."""

    text: str
    code: int | None = None  # exit code; None: killed at its limit, or not run


def run(job: Job, words: Sequence[str], results: Results, left_s: float) -> Outcome:
    """Run a job for at most ``left_s`` and its own limit, and add what it reports to ``results``.

    The process reports lines of JSON on its standard output: ``{"machine": {...}}`` once, and then
    ``{"begin": text}`` before and ``{"row": {...}}`` after each measurement.
    """
    limit = min(job.limit_s, left_s)
    if limit < MIN_S:
        outcome = Outcome(f"skipped: {max(left_s, 0.0):.0f} s of the budget are left")
        results.finish(job.name, outcome, 0.0, "")
        return outcome
    environment = ENVIRONMENT | os.environ
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*words, "--seconds", f"{limit:.1f}"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            start_new_session=True,
        )
        reader = Reader(job.name, process.stdout, results)
        try:
            outcome = ended(process.wait(limit))
        except subprocess.TimeoutExpired:
            outcome = Outcome(f"killed after {limit:.0f} s" + reader.during())
        finally:  # also if this process is interrupted
            kill(process)
        reader.join(5.0)
        process.stdout.close()
        if outcome.code and outcome.code != NO_DEVICE:
            outcome = outcome._replace(text=outcome.text + reader.during())
        errors.seek(0)
        stderr = errors.read()[-STDERR_CHARACTERS:]
    results.finish(job.name, outcome, time.monotonic() - began, stderr if outcome.code != 0 else "")
    return outcome


def ended(code: int) -> Outcome:
    if code < 0:
        return Outcome(f"died of {signal.Signals(-code).name}", code)
    return Outcome("completed" if code == 0 else f"failed with exit code {code}", code)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill the process and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Reader(threading.Thread):
    """Reads the lines that a job prints."""

    def __init__(self, job: str, lines: IO[str], results: Results) -> None:
        super().__init__(daemon=True)
        self.job, self.lines, self.results = job, lines, results
        self.current = ""
        self.start()

    def run(self) -> None:
        for line in self.lines:
            try:
                message = json.loads(line)
            except ValueError:  # printed by a library
                continue
            if not isinstance(message, dict):
                continue
            self.current = message.get("begin", "")
            if "machine" in message:
                self.results.add_machine(self.job, message["machine"])
            if "row" in message:
                self.results.add(self.job, message["row"])

    def during(self) -> str:
        """The measurement that the process ended in."""
        return f" in {self.current}" if self.current else ""


# --- results --------------------------------------------------------------------------------------

HEADS = ("job", "case", "what", "dtype", "forward ms", "fwd+bwd ms", "compile s", "result")
#: States of a row that make the run fail.
BAD = ("wrong", "differs", "fails")


@dataclass
class Results:
    """All rows so far. The files are rewritten after each change."""

    path: Path
    budget_s: float
    machine: dict[str, Any] = field(default_factory=dict)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    excluded: dict[str, str] = field(default_factory=dict)  # jobs on another device than the first

    def add_machine(self, job: str, machine: dict[str, Any]) -> None:
        """Record the machine that a job runs on. Rows from another device are not recorded."""
        self.machine = self.machine or machine
        if machine["device"] != self.machine["device"]:
            self.excluded[job] = machine["device"]
        self.write()

    def add(self, job: str, row: dict[str, Any]) -> None:
        if job not in self.excluded:
            self.rows.append({"job": job} | row)
            self.write()

    def finish(self, job: str, outcome: Outcome, seconds: float, stderr: str) -> None:
        text = outcome.text
        if job in self.excluded:
            text += f"; ran on another device ({self.excluded[job]}), results dropped"
        entry = {"name": job, "outcome": text, "seconds": round(seconds, 1)}
        self.jobs.append(entry | ({"stderr": stderr} if stderr else {}))
        self.write()

    @property
    def good(self) -> bool:
        """Whether all jobs completed and no row is wrong."""
        completed = all(job["outcome"] == "completed" for job in self.jobs)
        return completed and not any(row["status"] in BAD for row in self.rows)

    def write(self) -> None:
        tree = {"machine": self.machine, "budget_s": self.budget_s, "jobs": self.jobs, "rows": self.rows}
        write(self.path, dumps(tree) + "\n")
        write(self.path.with_suffix(".md"), self.markdown())

    def headline(self) -> str:
        """The machine in one line."""
        about = self.machine
        if not about:
            return "No job reported its machine."
        versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
        where = f"{about['device']}, {about['processor']}, {about['cores']} cores"
        return f"{where}; Python {about['python']}, {versions}; {about['date']}"

    def outcomes(self) -> list[tuple[str, str]]:
        return [(job["name"], f"{job['outcome']} ({job['seconds']:.0f} s)") for job in self.jobs]

    def lines(self) -> list[tuple[str, ...]]:
        """Rows of the table. Both modes of one measurement share a row."""
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in self.rows:
            key = tuple(row.get(name, "") for name in ("job", "case", "what", "dtype"))
            groups.setdefault(key, []).append(row)
        return [(*key, *cells(rows)) for key, rows in groups.items()]

    def markdown(self) -> str:
        parts = [f"# Device plan\n\n{self.headline()}", table(("job", "outcome"), self.outcomes())]
        parts.append(table(HEADS, [[cell.replace("|", "/") for cell in line] for line in self.lines()]))
        return "\n\n".join(parts) + "\n"


def cells(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Milliseconds of both modes, compile time, and the state of a row."""

    def median(mode: str) -> str:
        found = [row for row in rows if row.get("mode") == mode and row.get("median_s") is not None]
        return f"{found[0]['median_s'] * 1e3:.3f}" if found else ""

    compiled = {row.get("mode"): row["compile_s"] for row in rows if row.get("compile_s") is not None}
    compile_s = "+".join(f"{seconds:.1f}" for seconds in compiled.values())
    words = []
    for row in rows:
        shown = [] if row["status"] in ("timed", "measured") else [row["status"]]
        words.append(": ".join([*shown, *([row["note"]] if row.get("note") else [])]))
    result = "; ".join(dict.fromkeys(filter(None, words)))
    return median("forward"), median("forward+backward"), compile_s, result


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # also kills the current job
    sys.exit(main())
