"""Everything that waits for a device: ``python -m benchmarks.device`` (``make bench-device``).

1. ``suite``: the shared test suite of all implementations, on the device.
2. ``cases``: B 16 and 64, H 768 and 1024, T 1024, in float32 (TF32 off, then on), bfloat16 and float16, ours
   by name beside torch's cuDNN and Flax.
3. ``experiments``: what makes XLA's loop fast there (steps a body, compiler options, layouts, ...).
4. ``profile``: kernels and the time between them.
5. ``training``: words a second of language models.

Each is a process of its own under a time limit of its own, killed with all its children when that is
over, and writes its files whole after every row: what was measured stays. Go on with ``--parts``. All
limits together are 25 minutes.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PARTS = ("suite", "cases", "experiments", "profile", "training")
#: dtype and TF32 of each run of the cases.
SETTINGS = (("float32", "off"), ("float32", "on"), ("bfloat16", "off"), ("float16", "off"))
#: Seconds. The cases' is for each of the four settings.
LIMITS = {"suite": 240, "cases": 190, "experiments": 270, "profile": 90, "training": 140}
PROBE_S = 60
PROBE = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='\\t')"


class Job(NamedTuple):
    """One process."""

    part: str
    name: str
    words: tuple[str, ...]  # after ``python -m``
    limit_s: float


def jobs(parts: Sequence[str], platform: str, quick: bool, out: Path) -> Iterator[Job]:
    """In the order in which they run."""
    common = ("--out", str(out))
    hurry = ("--quick",) if quick else ()

    def job(part: str, name: str, *words: str) -> Job:
        return Job(part, name, (*words, *common), LIMITS[part])

    if "suite" in parts:
        only = ("-k", "oracles and scan and lengths") if quick else ()
        yield job("suite", "suite", "benchmarks.suite", "--device", platform, *only)
    if "cases" in parts:
        for dtype, tf32 in SETTINGS:
            if tf32 == "on" and platform != "gpu":
                continue
            words = ["--device", platform, "--dtype", dtype, "--tf32", tf32, "--parts", "cases"]
            words += [
                "--implementations",
                "pallas",
                "cudnn",
                "--without",
                "lstm_jax low memory",
                "linen LSTMCell",
            ]
            words += [] if find_spec("matplotlib") else ["--no-pictures"]
            if quick:
                words += ["--cases", "2,5,3,4", "--quick", "--peers", "none"]
            else:
                peers = ["torch", "linen"] if dtype == "float32" else ["torch"]
                words += ["--cases", "device", "--rounds", "7", "--peers", *peers]
            yield job("cases", f"cases, {dtype}{', TF32' if tf32 == 'on' else ''}", "benchmarks", *words)
    for part, module in (("experiments", "experiments"), ("profile", "profiling"), ("training", "training")):
        if part in parts:
            yield job(part, part, f"benchmarks.{module}", *hurry)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--parts", type=listed, default=PARTS, help=f"some of {','.join(PARTS)} (default: all, in this order)"
    )
    add("--quick", action="store_true", help="tiny sizes: does it run here? Goes on a CPU, too")
    add("--out", type=Path, help="(default: benchmarks/results, of a quick run runs/benchmarks)")
    args = parser.parse_args(argv)
    out = args.out or Path("runs/benchmarks" if args.quick else "benchmarks/results")
    found = device()
    if found is None:
        parser.error("jax finds no device, or does not answer")
    platform, kind = found
    if platform == "cpu" and not args.quick:
        parser.error("jax found a CPU alone; --quick runs there (make bench has the CPU's benchmark)")
    print(f"{kind} ({platform}); results go to {out}", flush=True)
    outcomes = []
    for job in jobs(args.parts, platform, args.quick, out):
        print(f"\n--- {job.name}, at most {job.limit_s:.0f} s", flush=True)
        outcomes.append((job, run(job)))
    print("\n" + "\n".join(f"{job.name}: {outcome}" for job, outcome in outcomes))
    return 0 if all(outcome.startswith("done") for _, outcome in outcomes) else 1


def listed(text: str) -> tuple[str, ...]:
    """``suite,cases``."""
    words = tuple(text.split(","))
    if unknown := [word for word in words if word not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(PARTS)}")
    return words


def device() -> tuple[str, str] | None:
    """Platform and kind, asked by another process, so that this one holds no device."""
    try:
        told = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=PROBE_S
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    platform, kind = told.stdout.strip().splitlines()[-1].split("\t")
    return platform, kind


def run(job: Job) -> str:
    """How it went, in words; nothing of the process is left when its time is over."""
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *job.words], env=env, start_new_session=True)
    try:
        code = process.wait(job.limit_s)
    except subprocess.TimeoutExpired:
        return f"killed after {job.limit_s:.0f} s; what it had written stays"
    finally:  # its children too, and where this process is interrupted
        end(process)
    took = f"{time.monotonic() - began:.0f} s"
    if code < 0:
        return f"died of {signal.Signals(-code).name} after {took}; what it had written stays"
    return f"done in {took}" if code == 0 else f"failed with exit code {code} after {took}"


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the session that the process leads."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
