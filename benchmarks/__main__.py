"""Compare ``unroll`` with the plain scan and with other libraries, with equal weights and inputs.

Outputs and gradients are compared with those of lstm_jax before timing. Each round calls all contestants, in
rotating order, and every call waits for its results; calls before each sample are discarded. lstm_jax is
measured twice, which shows the noise. The tables, the JSON file and the figures are of one run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import files, memory, report as reports, timing
from benchmarks.cases import CURVES, MODES, NAMED, QUICK, QUICK_CURVES, Case, Setting, precision
from benchmarks.contestants import ALWAYS_MEASURED, LSTM_JAX, NAMES, NNX, PEERS, SCAN, TORCH, named
from benchmarks.contestants.contestant import Contestant
from benchmarks.measure import Measurement, measure, tolerance
from benchmarks.report import Report

PARTS = ("cases", "curves", "memory")
QUICK_ROUNDS = 3
#: Sizes of square matrix products. The fastest one gives the rate that fractions refer to.
MATMULS = {"cpu": (512, 1024, 2048), "gpu": (4096, 8192), "tpu": (4096, 8192)}
QUICK_MATMULS = (64,)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns 1 if a contestant failed or its results differ from lstm_jax's."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch shares the GPU
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.redraw is not None:
        redraw(args.redraw)
        return 0
    args.out = args.out or Path("runs/benchmarks" if args.quick else "benchmarks/results")
    if args.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if {"all", "none"} & set(args.peers) and len(args.peers) > 1:
        parser.error("--peers: all and none cannot be combined with other names")
    try:
        device = jax.devices(args.device or jax.default_backend())[0]
    except RuntimeError as error:
        parser.error(f"--device {args.device}: {error}")
    setting = Setting(device.platform, args.dtype, args.tf32 == "on")
    if setting.tf32 and setting.platform != "gpu":
        parser.error("--tf32 on: only GPUs have TF32")
    with jax.default_device(device), precision(setting):
        return run(args, setting)


def make_parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=formatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "gpu", "tpu"), help="(default: jax's)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="(default: %(default)s)",
    )
    add(
        "--tf32", choices=("off", "on"), default="off", help="float32 products on GPUs (default: %(default)s)"
    )
    add(
        "--cases",
        nargs="+",
        type=parse_cases,
        metavar="CASE",
        help=f"{', '.join(NAMED)}, or sizes B,T,D,H (default: all)",
    )
    add(
        "--peers",
        nargs="+",
        choices=(*PEERS, "all", "none"),
        default=["all"],
        metavar="PEER",
        help=f"{', '.join(PEERS)}, all or none, compared with the plain scan (default: all installed)",
    )
    add(
        "--parts",
        nargs="+",
        choices=PARTS,
        help="cases; curves of cost over T, B and H; time against memory "
        "(default: all three, or only the cases with --cases)",
    )
    add(
        "--implementations",
        nargs="+",
        choices=NAMES,
        default=[],
        metavar="NAME",
        help=f'implementations to measure in addition to "auto": {", ".join(NAMES)}',
    )
    add("--without", nargs="+", default=[], metavar="NAME", help="names of contestants to leave out")
    add("--rounds", type=int, default=11, help="(default: %(default)s)")
    add("--quick", action="store_true", help="tiny sizes and few rounds, to check that everything runs")
    add("--no-pictures", action="store_true", help="write tables only (without matplotlib)")
    add("--out", type=Path, help="(default: benchmarks/results, or runs/benchmarks with --quick)")
    add("--redraw", type=Path, metavar="JSON", help="write the tables and figures of an earlier run again")
    return parser


def parse_cases(word: str) -> tuple[Case, ...]:
    """The cases of a group's name, or the case with sizes B,T,D,H."""
    if word in NAMED:
        return NAMED[word]
    parts = word.split(",")
    if len(parts) != 4 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{word!r} is neither B,T,D,H nor one of {', '.join(NAMED)}")
    sizes = [int(part) for part in parts]
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} contains a size below 1")
    return (Case(*sizes),)


# --- a run --------------------------------------------------------------------------------------


def run(args: argparse.Namespace, setting: Setting) -> int:
    """Run all requested parts."""
    contestants = (*ALWAYS_MEASURED, *map(named, args.implementations), *chosen_peers(args.peers))
    contestants = tuple(c for c in contestants if c is LSTM_JAX or c.name not in args.without)
    parts = args.parts or (PARTS[:1] if args.cases else PARTS)
    options = {
        name: str(value) for name, value in vars(args).items() if value is not None and name != "redraw"
    }
    report = Report(reports.machine(setting, contestants, options))
    cases = QUICK if args.quick else NAMED["all"]
    if args.cases:
        cases = tuple(dict.fromkeys(case for group in args.cases for case in group))
    rounds = min(args.rounds, QUICK_ROUNDS) if args.quick else args.rounds

    print(reports.introduction(report, contestants))
    print(f"accepted difference from lstm_jax: {tolerance(setting):g} of the largest number; {rounds} rounds")
    sizes = QUICK_MATMULS if args.quick else MATMULS.get(setting.platform, MATMULS["gpu"])
    report.matmul_rates = timing.matmul_rates(setting, sizes, takes_part(TORCH, contestants, setting))
    print(f"square matrix products: {reports.rates(report.matmul_rates)}", flush=True)

    shared = {"rounds": rounds, "rate": max(report.matmul_rates.values())}
    shared |= {"sample_s": 0.0} if args.quick else {}
    path = args.out / f"{reports.stem(report.about)}.json"
    jobs = [*plan(report, args.quick, parts, cases, contestants, setting, shared)]
    with progress(len(jobs)) as (show, step):
        for job in jobs:
            print_above(job(show))
            write(report, path)  # after each job, so that an interrupted run keeps its results
            step()
    finish(report, path, pictures=not args.no_pictures)
    return 1 if report.troubled else 0


Job = Callable[[Callable[[str], Any]], str]  # adds to the report and returns the text to print


def plan(
    report: Report,
    quick: bool,
    parts: Sequence[str],
    cases: Sequence[Case],
    contestants: Sequence[Contestant],
    setting: Setting,
    shared: dict[str, Any],
) -> Iterator[Job]:
    """The jobs of the run, one for each step of the progress bar."""

    def case_job(into: list[Measurement], case: Case, mode: str, contestants: Sequence[Contestant]) -> Job:
        def job(show: Callable[[str], Any]) -> str:
            on_stage = lambda stage: show(f"{case}, {mode}: {stage}")  # noqa: E731
            into.append(measure(case, mode, contestants, setting, on_stage=on_stage, **shared))
            return reports.block(into[-1])

        return job

    def long_job(case: Case, checkpoint: str | None, loss: str) -> Job:
        def job(show: Callable[[str], Any]) -> str:
            show(f"{case}, checkpoint={checkpoint!r}")
            row = memory.long_sequence(case, checkpoint, loss, setting, run=checkpoint is not None)
            report.long.append(row)
            return reports.long_line(row)

        return job

    if "cases" in parts:
        yield from (case_job(report.cases, case, mode, contestants) for case in cases for mode in case.modes)
    if "curves" in parts:
        some = [c for c in (LSTM_JAX, SCAN, NNX[-1], TORCH) if c in contestants]
        for curve in QUICK_CURVES if quick else CURVES:
            into = report.curves.setdefault(curve.letter, [])
            modes = MODES[1:] if quick else MODES
            yield from (case_job(into, case, mode, some) for case in curve.cases for mode in modes)
    if "memory" in parts:
        policies = memory.QUICK_POLICIES if quick else memory.POLICIES
        for case in memory.QUICK_POLICY_CASES if quick else memory.POLICY_CASES:
            yield case_job(report.memory, case, MODES[1], memory.contestants(policies))
        for case in memory.QUICK_LONG if quick else memory.LONG:
            yield from (long_job(case, how, loss) for how in ("sqrt", None) for loss in memory.LOSSES)


def chosen_peers(words: Sequence[str]) -> tuple[Contestant, ...]:
    """The chosen peers in the order of the table."""
    names = () if "none" in words else PEERS if "all" in words else words
    return tuple(contestant for name in PEERS if name in names for contestant in PEERS[name])


def takes_part(contestant: Contestant, contestants: Sequence[Contestant], setting: Setting) -> bool:
    """Whether a contestant is chosen and can run on this machine."""
    return contestant in contestants and not (
        contestant.absent() or contestant.declines(QUICK[0], MODES[0], setting)
    )


@contextlib.contextmanager
def progress(total: int) -> Iterator[tuple[Callable[[str], Any], Callable[[], Any]]]:
    """A progress bar on stderr: functions that set its text and that advance it."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda text: print(text, file=sys.stderr, flush=True), lambda: None
        return
    with tqdm(total=total, file=sys.stderr, dynamic_ncols=True, unit="job") as bar:
        yield bar.set_description_str, bar.update


def print_above(text: str) -> None:
    """Print to stdout above the progress bar."""
    try:
        from tqdm import tqdm
    except ImportError:
        print(text, flush=True)
        return
    with tqdm.external_write_mode():
        print(text, flush=True)


def write(report: Report, path: Path) -> None:
    """Write the JSON file and the Markdown page."""
    reports.write_json(path, report)
    files.write(path.with_suffix(".md"), reports.markdown(report))


def finish(report: Report, path: Path, *, pictures: bool = True) -> None:
    """Print the summary and write all files."""
    from benchmarks.plots import draw

    print(reports.closing(report))
    write(report, path)
    drawn = draw(report, path.with_suffix("")) if pictures else []
    for written in (path, path.with_suffix(".md"), *drawn):
        print(f"wrote {written}", flush=True)


def redraw(path: Path) -> None:
    """Write the tables and figures of an earlier run again."""
    finish(Report.from_json(json.loads(path.read_text())), path)


if __name__ == "__main__":
    sys.exit(main())
