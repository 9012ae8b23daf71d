"""Time the library's implementations of one LSTM layer against each other.

Rounds interleave the contestants in rotating order, results are waited for, and what is shown is the
median of each and its ratio to the plain scan within the same run. Compile time and temporary memory
stand apart. The outputs are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lstm_jax
from benchmarks.cases import CASES, CONTESTANTS, MODES, QUICK, Case, make_problem

REFERENCE = "scan"


def measure(case: Case, mode: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of every round, compile seconds and temporary bytes, for each contestant."""
    problem = make_problem(case)
    runs, results = {}, {}
    for name, make in CONTESTANTS.items():
        began = time.perf_counter()
        runs[name], compiled = make(case, problem, mode)
        results[name] = {
            "compile_s": time.perf_counter() - began,
            "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
            "rounds_s": [],
        }
    agree(runs, mode)
    names = list(runs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.perf_counter()
            runs[name]()
            results[name]["rounds_s"].append(time.perf_counter() - began)
    for result in results.values():
        result["median_s"] = statistics.median(result["rounds_s"])
    for result in results.values():
        result["ratio"] = result["median_s"] / results[REFERENCE]["median_s"]
    return results


def agree(runs: dict[str, Any], mode: str) -> None:
    """All contestants give the same numbers, up to rounding in float32; this also warms them up."""
    outputs = {name: jax.tree.leaves(run()) for name, run in runs.items()}
    for name, leaves in outputs.items():
        for a, b in zip(leaves, outputs[REFERENCE], strict=True):
            scale = np.max(np.abs(b)) + 1e-6
            np.testing.assert_allclose(a, b, atol=1e-4 * scale, err_msg=f"{name} disagrees, {mode}")


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    return {
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "lstm_jax": lstm_jax.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def parse_case(word: str) -> Case:
    """``B,T,D,H``."""
    try:
        sizes = [int(part) for part in word.split(",")]
        case = Case(*sizes)
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{word!r} is not B,T,D,H") from None
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} holds a size below 1")
    return case


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--cases", nargs="+", type=parse_case, metavar="B,T,D,H", help="instead of the usual")
    parser.add_argument("--rounds", type=int, default=11, help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two tiny cases, three rounds: does it run?")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="(default: %(default)s)")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds must be 1 or more")
    cases, rounds = (QUICK, 3) if args.quick else (CASES, args.rounds)

    about = machine()
    print(f"{about['device']}, {about['cores']} cores, jax {about['jax']}, float32, one LSTM layer")
    columns = f"{'median ms':>10} {'to scan':>8} {'compile s':>10} {'temp MB':>8}"
    print(f"{'B,T,D,H':>16}  {'work':16}  {'':6} {columns}")
    rows = []
    for case in args.cases or cases:
        for mode in MODES:
            results = measure(case, mode, rounds)
            rows.append({"case": case._asdict(), "work": mode, "results": results})
            for name, r in results.items():
                print(
                    f"{case!s:>16}  {mode:16}  {name:6} {r['median_s'] * 1e3:10.3f} {r['ratio']:8.2f} "
                    f"{r['compile_s']:10.2f} {r['temporary_bytes'] / 1e6:8.2f}",
                    flush=True,
                )
    for mode in MODES:
        ratios = [row["results"]["fused"]["ratio"] for row in rows if row["work"] == mode]
        print(f"geometric mean of fused to scan, {mode}: {statistics.geometric_mean(ratios):.2f}")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{about['device'].replace(' ', '-')}-{about['date'][:10]}.json"
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps({"machine": about, "rounds": rows}, indent=1) + "\n")
    os.replace(temporary, path)
    print(f"every round: {path}")


if __name__ == "__main__":
    main()
