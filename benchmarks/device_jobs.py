"""The jobs of :mod:`benchmarks.device`: ``python -m benchmarks.device_jobs NAME`` runs one.

A job prints one line of JSON before and after each measurement, so that everything measured before a crash
or a time limit is kept, and the measurement that it ended in is known. Of the library, only public names are
used, except in ``contestants.lstm_jax_.steps_per_body``.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import report, training
from benchmarks.cases import MLSTM, MODES, Case, Setting, precision
from benchmarks.contestants import SCAN, TORCH, named
from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.layouts import LAYOUTS
from benchmarks.contestants.lstm_jax_ import unsupported_reason, with_steps_per_body
from benchmarks.device import NAMES, NO_DEVICE
from benchmarks.device_checks import Check, compare_all, correctness
from benchmarks.device_run import THREADS, Run, begin, emit, row
from benchmarks.measure import error_line, measure
from benchmarks.timing import SAMPLE_S, Timed, matmul_rates, sample, summarize, time_rounds

#: Seconds at the end of a job in which nothing new begins.
RESERVE_S = 2.0
ROUNDS, QUICK_ROUNDS = 7, 2

# --- device ---------------------------------------------------------------------------------------


def device(run: Run) -> None:
    """Versions, rates of matrix products and copies, and the cost of a loop iteration."""
    row("measured", driver(), what="driver")
    row("measured", torch_build(), what="torch")
    sizes = (64,) if run.quick else (4096, 8192)
    for setting in settings(run):
        begin("matrix product", setting)
        with_torch = TORCH.absent() is None and TORCH.declines(Case(1, 1, 1, 1), MODES[0], setting) is None
        with precision(setting):
            rates = matmul_rates(setting, sizes, with_torch)
        for library, rate in rates.items():
            what = f"square matrix product, {library}"
            row("measured", f"{rate / 1e12:.3f} TFLOP/s", what=what, dtype=str(setting), value=rate)
    begin("copy")
    a = jnp.zeros(2**16 if run.quick else 2**28, jnp.float32)
    add = jax.jit(lambda a: a + 1).lower(a).compile()
    call = lambda: jax.block_until_ready(add(a))  # noqa: E731
    call()
    rate = 2 * a.nbytes / min(sample(call, 1) for _ in range(10))
    row("measured", f"{rate / 1e9:.1f} GB/s read and written", what="copy", value=rate)
    begin("loop")
    steps = 100 if run.quick else 10_000
    loop = jax.jit(lambda a: jax.lax.fori_loop(0, steps, lambda _, a: a + 1, a))
    b = jnp.zeros(8)
    jax.block_until_ready(loop(b))
    seconds = min(sample(lambda: jax.block_until_ready(loop(b)), 1) for _ in range(5)) / steps
    row("measured", f"{seconds * 1e6:.3f} us per iteration", what="loop with one addition", value=seconds)


def settings(run: Run) -> list[Setting]:
    """float32, TF32 on GPUs, bfloat16 and float16."""
    found = [
        run.setting("float32"),
        run.setting("float32", True),
        run.setting("bfloat16"),
        run.setting("float16"),
    ]
    return list(dict.fromkeys(found))


def driver() -> str:
    """Name, driver and clocks as ``nvidia-smi`` prints them."""
    query = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit"
    words = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({error_line(error)})"


def torch_build() -> str:
    if why := TORCH.absent():
        return f"absent: {why}"
    import torch

    return f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


# --- the table of cases ---------------------------------------------------------------------------

CASES = {
    "cases-long": (Case(16, 1024, 768, 768), Case(16, 1024, 256, 256)),
    "cases-wide": (Case(64, 1024, 512, 512), Case(64, 1024, 1024, 1024)),
    "cases-batch": (
        Case(2048, 256, 128, 128, cell="GRU", resets=0.01),
        Case(2048, 256, 128, 128, cell="GRU"),
        Case(20, 35, 650, 650, layers=2),
        Case(32, 100, 128, 128),
        *MLSTM,
    ),
}
QUICK_CASES = {
    "cases-long": (Case(2, 4, 3, 3),),
    "cases-wide": (Case(2, 4, 3, 3, layers=2),),
    "cases-batch": (Case(2, 4, 3, 3, cell="GRU", resets=0.1), Case(2, 4, 3, 4, cell="MLSTM")),
}
#: Steps per loop body, in addition to 1. The last one is also measured in TF32 and float16.
STEPS = (4, 16, 8)


#: Fraction of a case's time for the forward mode. Backward passes take longer to compile and to run.
FORWARD_SHARE = 0.4


def contestants(run: Run, cell: str = "LSTM") -> list[Contestant]:
    """Contestants of the table, in order of value."""
    exact, tf32, bf16, fp16 = (
        run.setting("float32"),
        run.setting("float32", True),
        run.setting("bfloat16"),
        run.setting("float16"),
    )
    fused, steps = named("fused"), STEPS[:1] if run.quick else STEPS
    if cell == "MLSTM":  # in chunks, and step by step
        found = [(named("parallel"), tf32), (fused, tf32), (named("parallel"), bf16), (SCAN, tf32)]
        return [with_setting(contestant, setting) for contestant, setting in dict.fromkeys(found)]
    found = [(fused, exact), (TORCH, fp16), (TORCH, bf16), (TORCH, tf32), (TORCH, exact), (SCAN, bf16)]
    found += [(fused, bf16), (named("cudnn"), tf32), (fused, tf32)]
    found += [(with_steps_per_body(fused, n), bf16) for n in steps]
    found += [(with_steps_per_body(fused, steps[-1]), setting) for setting in (tf32, fp16)]
    found += [(SCAN, tf32), (named("cudnn"), exact)]
    return [with_setting(contestant, setting) for contestant, setting in dict.fromkeys(found)]


def with_setting(contestant: Contestant, setting: Setting) -> Contestant:
    """A contestant with a setting of its own, which becomes part of its name."""
    spins = contestant.spins and setting.platform == "cpu"  # a GPU is not slowed down by idle threads
    return contestant._replace(name=f"{contestant.name} | {setting}", setting=setting, spins=spins)


def cases(run: Run, name: str) -> None:
    """Measure all cases of a job. Each may take an equal part of the remaining time."""
    todo = (QUICK_CASES if run.quick else CASES)[name]
    for position, case in enumerate(todo):
        share = (run.deadline - time.monotonic()) / (len(todo) - position)
        compete(run, case, contestants(run, case.cell), until=time.monotonic() + share)


def compete(run: Run, case: Case, contestants: Sequence[Contestant], until: float) -> None:
    """Compare and time the contestants in both modes, and report a row for each."""
    for position, mode in enumerate(MODES):
        now = time.monotonic()
        if run.late():
            row("skipped", "no time left", case=str(case), what="all", mode=mode)
            continue
        deadline = until if position else now + FORWARD_SHARE * (until - now)

        def on_stage(stage: str, mode: str = mode) -> None:
            begin(case, mode, stage)

        try:
            with run.kernels():
                found = measure(
                    case,
                    mode,
                    contestants,
                    contestants[0].setting or run.setting("float32"),
                    QUICK_ROUNDS if run.quick else ROUNDS,
                    on_stage=on_stage,
                    sample_s=0.0 if run.quick else SAMPLE_S,
                    threads=THREADS,
                    deadline=min(deadline, run.deadline),
                )
        except Exception as error:
            row(
                "fails",
                error_line(error),
                case=str(case),
                what=contestants[0].name.split(" | ")[0],
                mode=mode,
            )
            continue
        for name, result in found.rows.items():
            what, dtype = name.split(" | ")
            row(case=str(case), what=what, dtype=dtype, mode=mode, **result.as_json())


# --- kernels --------------------------------------------------------------------------------------


class Kernels(NamedTuple):
    """Checks and timed cases of one form of kernel."""

    checks: tuple[Check, ...]
    timed: tuple[Case, ...]


def squares(B: int, *sizes: int, cell: str = "LSTM") -> tuple[Case, ...]:
    return tuple(Case(B, 1024, H, H, cell=cell) for H in sizes)


#: The sizes select the forms of the Hopper kernels (``hopper_plan.py``). Some do not fill a block.
PALLAS = {
    "pallas-block": Kernels(
        (
            Check(5, 7, 16, 64, "bfloat16"),
            Check(17, 50, 32, 100, "float16", lengths=True),
            Check(3, 2000, 16, 128, "bfloat16"),
        ),
        squares(16, 128),
    ),
    "pallas-cluster": Kernels(
        (
            Check(17, 50, 32, 250, "bfloat16", lengths=True),
            Check(40, 33, 32, 256, "float16"),
            Check(16, 100, 64, 512, "bfloat16"),
        ),
        squares(16, 512, 256),
    ),
    "pallas-grid": Kernels(
        (
            Check(5, 20, 64, 576, "float16", lengths=True),
            Check(64, 30, 64, 768, "bfloat16"),
            Check(20, 30, 64, 1024, "float16"),
        ),
        squares(16, 768, 1024),
    ),
    "pallas-gru": Kernels(
        (
            Check(5, 7, 16, 64, "bfloat16", "GRU"),
            Check(40, 50, 32, 250, "float16", "GRU", lengths=True),
            Check(20, 30, 64, 1024, "bfloat16", "GRU"),
        ),
        squares(16, 512, 1024, 256, 768, cell="GRU"),
    ),
    "pallas-large": Kernels(
        (
            Check(16, 20, 64, 1536, "bfloat16"),
            Check(5, 20, 64, 1900, "float16", lengths=True),
            Check(40, 20, 64, 1728, "bfloat16"),
        ),
        squares(16, 1536),
    ),
}


def pallas(run: Run, name: str) -> None:
    """Check a form of kernel and, if all checks are right, time it."""
    checks, timed = PALLAS[name]
    if run.interpreted:
        row("measured", f"kernels for {run.interpreted.upper()}s, in Pallas' interpreter", what="pallas")
    if run.quick:
        cell = checks[0].cell
        checks = (Check(2, 3, 3, 8, "bfloat16", cell, lengths=True),)
        timed = (Case(2, 3, 3, 8, cell=cell),)
    if not compare_all(run, [(check, "pallas") for check in checks], repeats=1 if run.quick else 2):
        row("skipped", "wrong results are not timed", what="time of lstm_jax pallas")
        return
    for position, case in enumerate(timed):
        share = (run.deadline - time.monotonic()) / (len(timed) - position)
        dtypes = ("bfloat16",) if run.quick else ("bfloat16", "float16")
        group = [with_setting(named("fused"), run.setting("bfloat16"))]
        for dtype in dtypes:
            group += [
                with_setting(named("pallas"), run.setting(dtype)),
                with_setting(TORCH, run.setting(dtype)),
            ]
        compete(run, case, group, until=time.monotonic() + share)


# --- XLA's loop -----------------------------------------------------------------------------------

COMMANDS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION"
#: Options of XLA for one compilation. Command buffers record the kernels of a loop's body; by default, only
#: bodies with enough commands are recorded, and loops are not.
OPTIONS: dict[str, dict[str, Any]] = {
    "command buffers from 1 command": {"xla_gpu_graph_min_graph_size": 1},
    "no command buffers": {"xla_gpu_enable_command_buffer": ""},
    "no Triton products": {"xla_gpu_enable_triton_gemm": False},
    "loops unrolled twice": {"xla_gpu_enable_while_loop_unrolling": "WHILE_LOOP_UNROLLING_DOUBLE_BUFFER"},
    "small loops unrolled": {"xla_gpu_enable_while_loop_unrolling": "WHILE_LOOP_UNROLLING_AUTO_UNROLL"},
}
#: Recording whole loops has crashed before, so these come last.
RISKY = {
    "command buffers of loops": {"xla_gpu_enable_command_buffer": f"{COMMANDS},WHILE"},
    "command buffers of loops from 1 command": {
        "xla_gpu_enable_command_buffer": f"{COMMANDS},WHILE",
        "xla_gpu_graph_min_graph_size": 1,
    },
}


def loop(run: Run) -> None:
    """The fused scan with other options of the compiler and steps per body, and loops written by hand."""
    case = Case(2, 4, 3, 3) if run.quick else Case(16, 1024, 768, 768)
    setting = run.setting("bfloat16")
    steps = 2 if run.quick else 8
    gpu = run.platform == "gpu" or run.quick  # elsewhere XLA ignores these options

    def variants(options: dict[str, dict[str, Any]], bodies: Iterable[int]) -> list[Contestant]:
        found = []
        for count in bodies:
            for name, chosen in options.items():
                contestant = named("fused", chosen)._replace(name=f"fused, {name}")
                found.append(with_steps_per_body(contestant, count) if count > 1 else contestant)
        return found

    first = [named("fused"), with_steps_per_body(named("fused"), steps)]
    groups = [(0.4, [*first, *(variants(OPTIONS, (1,)) if gpu else []), *LAYOUTS[:1]])]
    groups += [(0.5, [first[0], *LAYOUTS[1:], *(variants(dict([next(iter(OPTIONS.items()))]), (steps,)))])]
    groups += [(1.0, [first[0], *variants(RISKY, (1, steps))])] if gpu else []
    for share, group in groups:
        left = run.deadline - time.monotonic()
        group = [with_setting(contestant, setting) for contestant in group]
        compete(run, case, group, until=time.monotonic() + share * left)


# --- training -------------------------------------------------------------------------------------


def train(run: Run) -> None:
    """Words per second of Penn Treebank medium; the steps of lstm_jax and torch are interleaved."""
    size = training.TINY if run.quick else training.MEDIUM
    tf32, bf16 = run.setting("float32", True), run.setting("bfloat16")
    makers = [("lstm_jax", tf32, partial(training.lstm_jax_trainer, implementation="auto"))]
    makers += [("lstm_jax", bf16, partial(training.lstm_jax_trainer, implementation="auto"))]
    makers += [("torch", tf32, training.torch_trainer), ("torch", bf16, training.torch_trainer)]
    makers += [("lstm_jax scan", bf16, partial(training.lstm_jax_trainer, implementation="scan"))]
    case = f"{size.B},{size.T},{size.H},{size.H} 2 layers, {size.words} words"
    trainers: dict[tuple[str, str], training.Trainer] = {}
    for what, setting, make in makers:
        about = {"case": case, "what": f"training, {what}", "dtype": str(setting)}
        begin("training", what, setting)
        why = (
            (TORCH.absent() or TORCH.declines(Case(1, 1, 1, 1), MODES[1], setting))
            if what == "torch"
            else None
        )
        if why or run.late():
            row("absent" if why else "skipped", why or "no time left", **about)
            continue
        try:
            trainer = make(size, setting)
        except Exception as error:
            row("fails", error_line(error), **about)
            continue
        if not abs(trainer.first_loss / math.log(size.words) - 1) < 0.1:
            row("wrong", f"first loss {trainer.first_loss:.3f}, expected log({size.words})", **about)
            continue
        trainers[what, str(setting)] = trainer
    if not trainers:
        return
    count = 2 if run.quick else 20
    for trainer in trainers.values():
        trainer.steps(3)
    timed = {
        f"{what} | {dtype}": Timed(partial(trainer.steps, count), what == "torch" and run.platform == "cpu")
        for (what, dtype), trainer in trainers.items()
    }
    begin("training", "rounds")
    samples, _ = time_rounds(timed, QUICK_ROUNDS if run.quick else 15, 0.0, run.deadline)
    for name, seconds in samples.items():
        what, dtype = name.split(" | ")
        summary = summarize([s / count for s in seconds])
        rate = size.B * size.T / summary.median_s
        loss = trainers[what, dtype].steps(1)
        note = f"{rate:,.0f} words/s, loss {loss:.2f}"
        numbers = {"value": rate, "mode": MODES[1], **summary._asdict()}
        row("timed", note, case=case, what=f"training, {what}", dtype=dtype, **numbers)


# --- a process ------------------------------------------------------------------------------------

JOBS: dict[str, Callable[[Run], None]] = {
    "device": device,
    "correctness": correctness,
    **{name: partial(cases, name=name) for name in CASES},
    **{name: partial(pallas, name=name) for name in PALLAS},
    "loop": loop,
    "training": train,
}
assert set(JOBS) == set(NAMES)


def interpreted(platform: str, quick: bool) -> str:
    """The platform whose kernels ``--quick`` interprets: "gpu" if this version of JAX supports it."""
    if platform != "cpu" or not quick:
        return ""
    import lstm_jax.experimental

    cell = lstm_jax.LSTM(3, 8, dtype="bfloat16")
    params = jax.eval_shape(cell.init, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((3, 2, 3), "bfloat16")
    with lstm_jax.experimental.interpret("gpu"):
        return "tpu" if unsupported_reason(cell, params, xs, implementation="pallas") else "gpu"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device_jobs", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--seconds", type=float, default=600.0, help="until the job is killed")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    deadline = time.monotonic() + args.seconds - min(RESERVE_S, args.seconds / 4)
    platform = jax.default_backend()
    if platform == "cpu" and not args.quick:
        return NO_DEVICE
    emit(machine=report.where(platform, ("jax", "jaxlib", "numpy", "torch")))
    run = Run(platform, deadline, args.quick)
    JOBS[args.name](run._replace(interpreted=interpreted(platform, args.quick)))
    return 0


if __name__ == "__main__":
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without waiting for threads that still compile
