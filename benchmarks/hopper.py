"""The kernels for Hopper GPUs on a device: first whether they are right, then how fast they are.

Each job runs in a process of its own, which is killed at a limit: a kernel that hangs costs its own job
alone. The file of results is written anew, and whole, after each job.

    python -m benchmarks.hopper                # everything, on the GPU that is there
    python -m benchmarks.hopper --parts check  # correctness alone
    python -m benchmarks.hopper --compile      # machine code for an H100 that is not there
    python -m benchmarks.hopper --smoke        # the smallest of each, in Pallas' interpreter on a CPU
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lstm_jax.interop.files import write_whole

Job = dict[str, Any]
PARTS = ("check", "time", "kernel")
DTYPES = ("float16", "bfloat16")
RESULTS = Path("benchmarks/results/hopper.json")


def sizes(T: int, B: int, H: int, dtype: str = "bfloat16", **more: Any) -> Job:
    return {"T": T, "B": B, "H": H, "dtype": dtype, **more}


#: Each form with each exchange; odd sizes, 1 to 200 rows, 1 to 10,000 steps; weights in registers, h in
#: pieces, more rows than one launch takes; two walks in one program, which together find no room.
CHECKS = (
    sizes(7, 5, 64),
    sizes(1, 1, 3, "float16"),
    sizes(100, 200, 100, "float16", masked=True),
    sizes(10_000, 3, 64, "float16"),
    *(
        sizes(*case, exchange=(way, "barrier"), masked=masked)
        for way in ("async", "fence")
        for masked, case in (
            (True, (50, 17, 128)),
            (False, (33, 200, 250, "float16")),
            (False, (300, 16, 512)),
            (True, (64, 100, 512, "float16")),
        )
    ),
    sizes(50, 16, 64, blocks=4, masked=True, exchange=("async", "barrier")),
    sizes(50, 16, 256, blocks=16, exchange=("fence", "barrier")),
    sizes(20, 5, 200, form="grid", blocks=8, exchange=("barrier", "barrier")),
    sizes(20, 5, 200, form="grid", blocks=16, masked=True),
    sizes(64, 5, 576, "float16", masked=True),
    sizes(100, 64, 768, "float16"),
    sizes(100, 64, 1024),
    sizes(20, 1, 1400, masked=True),
    sizes(10_000, 2, 520),
    sizes(100, 16, 1536),
    sizes(50, 20, 1536, "float16", masked=True),
    sizes(50, 5, 1900, "float16", masked=True),
    sizes(100, 40, 1900),
    sizes(50, 20, 1728),
    sizes(50, 16, 1792, "float16"),
    sizes(50, 16, 1984, masked=True),
    sizes(50, 128, 1024, "float16"),
    sizes(50, 200, 1024, masked=True),
    sizes(50, 20, 1024, pair=True),
    sizes(50, 16, 1536, "float16", pair=True),
    *(
        sizes(*case, cell="GRU", masked=masked)
        for masked, case in (
            (True, (7, 5, 64)),
            (False, (10_000, 3, 100, "float16")),
            (True, (50, 40, 250)),
            (False, (300, 16, 512, "float16")),
            (True, (100, 64, 768)),
            (False, (50, 5, 1900, "float16")),
            (True, (50, 200, 1024)),
        )
    ),
)
#: Cases that everybody is timed on, the most telling first.
TIMED = (
    *(sizes(1024, B, H, dtype) for H in (1024, 768, 512, 256) for B in (16, 64) for dtype in DTYPES),
    *(sizes(1024, 16, 1536, dtype) for dtype in DTYPES),
)
#: The walks alone, with several ways to lay them out.
KERNELS = (
    *(sizes(1024, 16, 512, exchange=(way, "barrier")) for way in ("async", "fence")),
    *(
        sizes(1024, 16, 256, blocks=blocks, exchange=(way, "barrier"))
        for blocks in (4, 8, 16)
        for way in ("async", "fence")
    ),
    sizes(1024, 16, 128, blocks=1),
    *(sizes(1024, B, H) for H in (768, 1024) for B in (16, 64)),
    *(sizes(1024, 16, H, cell="GRU") for H in (256, 512, 1024)),
)
#: Machine code alone.
COMPILED = (
    sizes(5, 5, 64, masked=True),
    *CHECKS[4:12],
    sizes(5, 20, 768),
    sizes(5, 64, 1024, "float16"),
    sizes(5, 128, 1024),
    *(sizes(5, B, H) for H in (1536, 1900) for B in (16, 32)),
    *(sizes(5, B, H) for B, H in ((20, 1728), (16, 1792), (16, 1984))),
    *(sizes(5, 20, H, cell="GRU", masked=True) for H in (64, 256, 512, 1024, 1900)),
)
SMOKE = (
    {"kind": "check", **sizes(2, 2, 8, masked=True, pair=True), "interpret": True, "repeats": 1},
    {"kind": "time", **sizes(2, 2, 8), "interpret": True, "repeats": 1},
    {"kind": "kernel", **sizes(2, 2, 8, cell="GRU"), "interpret": True, "repeats": 1},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, write; 1 where a job failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hopper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="(default: all)")
    add("--compile", action="store_true", help="compile for a device that is not there, and nothing else")
    add("--smoke", action="store_true", help="the smallest sizes, on a CPU, and nothing else")
    add("--limit", type=float, default=180, metavar="S", help="seconds a job may take (default: %(default)s)")
    add("--begin", type=int, default=1, metavar="N", help="go on with the N-th job (default: %(default)s)")
    add("--total", type=float, default=float("inf"), metavar="S", help="begin no job after so many seconds")
    add("--out", type=Path, help=f"(default: {RESULTS}; --smoke, --compile: none)")
    add("--job", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.job is not None:
        from benchmarks.hopper_jobs import perform

        return perform(args.job)
    if args.limit <= 0 or args.total <= 0 or args.begin < 1:
        parser.error("--limit, --total and --begin must be more than 0")
    out = args.out or (None if args.smoke or args.compile else RESULTS)
    if out is not None and not out.parent.is_dir():
        parser.error(f"--out: there is no folder {out.parent}")
    return run(list(jobs(args))[args.begin - 1 :], args, out)


def jobs(args: argparse.Namespace) -> Iterator[Job]:
    """What is to be done, in this order."""
    if args.smoke:
        yield from SMOKE
    elif args.compile:
        yield from ({"kind": "compile", **job} for job in COMPILED)
    else:
        parts = {"check": CHECKS, "time": TIMED, "kernel": KERNELS}
        for part in args.parts:
            yield from ({"kind": part, **job} for job in parts[part])


def run(todo: list[Job], args: argparse.Namespace, out: Path | None) -> int:
    """One job after the other; results so far are in the file at any time."""
    began, done = time.monotonic(), []
    for number, job in enumerate(todo, 1):
        spent = time.monotonic() - began
        result = {"status": "not begun"} if spent > args.total else attempt(job, args)
        done.append({"job": job, **result})
        words = " ".join(f"{name}={value}" for name, value in job.items())
        print(f"[{number}/{len(todo)}] {result['status']}: {words}")
        for line in result.get("results", ()):
            print("    " + summary(line))
        if result["status"] != "done":
            print("    " + result.get("said", "").replace("\n", "\n    "))
        if out is not None:
            write_whole(out, json.dumps({"device": device(args), "jobs": done}, indent=1).encode())
    bad = sum(one["status"] != "done" for one in done)
    print(f"{len(done) - bad} of {len(done)} jobs done" + (f", results in {out}" if out else ""))
    return int(bad > 0)


def attempt(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """A job in a process of its own: done, wrong, failed or killed, and what it printed."""
    command = [sys.executable, "-m", "benchmarks.hopper", "--job", json.dumps(job)]
    environment = dict(os.environ)
    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch takes its part
    if args.smoke or args.compile:
        environment["JAX_PLATFORMS"] = "cpu"
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        printed, said = process.communicate(timeout=args.limit)
        status = {0: "done", 1: "wrong"}.get(process.returncode, "failed")
    except subprocess.TimeoutExpired:
        process.kill()
        printed, said = process.communicate()
        status = f"killed after {args.limit:g} s"
    results = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    if status == "wrong" and all(result.get("right", True) for result in results):
        status = "failed"  # Python's own exit code for an exception
    if status == "done" and not results:
        status = "failed"
    return {"status": status, "results": results, **({} if status == "done" else {"said": said[-2000:]})}


def summary(result: dict[str, Any]) -> str:
    """A result in a line."""
    words = [str(result.get("walk") or f"{result['who']}, {result['mode']} ({result['dtype']})")]
    if result.get("declined"):
        words.append("declined: " + result["declined"])
    if "error" in result:
        words += [f"error {max(result['error'].values()):.1e}"]
        words += [f"(plain JAX {max(result['error of plain JAX'].values()):.1e})"]
        words += ["right" if result["right"] else "WRONG", "" if result["same bits"] else "(bits differ)"]
    if "us_a_step" in result:
        words.append(f"{result['median_s'] * 1e3:.3f} ms, {result['us_a_step']:.2f} µs a step")
        if result.get("floor_us_a_step"):
            words.append("floor {:g} to {:g}".format(*result["floor_us_a_step"]))
    if "compile_s" in result and "us_a_step" not in result:
        words.append(f"compiled in {result['compile_s'] or 0:.1f} s")
    return " ".join(filter(None, words))


def device(args: argparse.Namespace) -> dict[str, Any]:
    """Where it ran, by a process that leaves the device afterwards; asked once."""
    if not hasattr(args, "device"):
        script = """
import json, jax
d = jax.devices()[0]
print(json.dumps({"kind": d.device_kind, "platform": d.platform, "jax": jax.__version__}))
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        args.device = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    return args.device


if __name__ == "__main__":
    sys.exit(main())
