"""The jobs of :mod:`benchmarks.device`: ``python -m benchmarks.device_jobs NAME`` runs one.

A job prints one line of JSON before and after each measurement, so that everything measured before a crash
or a time limit is kept, and the measurement that it ended in is known. Of the library, only public names are
used, except in ``contestants.lstm_jax_.steps_per_body``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax
from benchmarks import reference, report, training
from benchmarks.cases import MLSTM, MODES, Case, Setting, precision
from benchmarks.contestants import SCAN, TORCH, named
from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.layouts import LAYOUTS
from benchmarks.contestants.lstm_jax_ import unsupported_reason, with_steps_per_body
from benchmarks.device import NAMES, NO_DEVICE
from benchmarks.measure import error_line, measure
from benchmarks.timing import SAMPLE_S, Timed, matmul_rates, sample, summarize, time_rounds

#: Seconds at the end of a job in which nothing new begins.
RESERVE_S = 2.0
ROUNDS, QUICK_ROUNDS = 7, 2
#: Threads that compile programs.
THREADS = 8


class Run(NamedTuple):
    """Platform, deadline and size of a job."""

    platform: str
    deadline: float  # of time.monotonic; nothing new begins after it
    quick: bool = False  # tiny sizes
    #: The platform whose Pallas kernels are interpreted; "": kernels run on the device.
    interpreted: str = ""

    def setting(self, dtype: str, tf32: bool = False) -> Setting:
        return Setting(self.platform, dtype, tf32 and self.platform == "gpu")

    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def kernels(self) -> Any:
        """The context in which kernels are run."""
        if not self.interpreted:
            return contextlib.nullcontext()
        import lstm_jax.experimental

        return lstm_jax.experimental.interpret(self.interpreted)


def emit(**message: Any) -> None:
    """Report to the parent process."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def begin(*words: Any) -> None:
    emit(begin=", ".join(str(word) for word in words if word))


def row(status: str, note: str = "", **values: Any) -> None:
    emit(row={"status": status, "note": note} | {name: v for name, v in values.items() if v is not None})


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


# --- correctness ----------------------------------------------------------------------------------

#: Accepted error, relative to the largest number of an array: 16 roundings to a narrow dtype.
ACCEPTED = {"float32": 5e-5, "bfloat16": 16 * 2.0**-8, "float16": 16 * 2.0**-11}


#: Implementations that may decline a check.
DECLINING = ("cudnn", "pallas")


class Check(NamedTuple):
    """Sizes and options of one comparison with float64."""

    B: int
    T: int
    D: int
    H: int
    dtype: str = "float32"
    cell: str = "LSTM"
    lengths: bool = False
    resets: bool = False

    def __str__(self) -> str:
        words = [f"{self.B},{self.T},{self.D},{self.H}", *([self.cell] if self.cell != "LSTM" else [])]
        words += [name for name in ("lengths", "resets") if getattr(self, name)]
        return " ".join(words)


CHECKS = (
    Check(3, 7, 5, 8),
    Check(4, 20, 5, 64, lengths=True),
    Check(4, 20, 5, 64, resets=True),
    Check(4, 20, 5, 64, "bfloat16"),
    Check(4, 20, 5, 64, "bfloat16", lengths=True),
    Check(4, 20, 5, 64, "float16", resets=True),
    Check(3, 7, 5, 8, cell="GRU"),
    Check(4, 20, 5, 64, cell="GRU", lengths=True),
    Check(4, 20, 5, 64, cell="GRU", resets=True),
    Check(4, 20, 5, 64, "bfloat16", "GRU"),
    Check(16, 100, 128, 128),
)
QUICK_CHECKS = (
    Check(3, 5, 2, 4, lengths=True),
    Check(3, 5, 2, 4, "bfloat16", resets=True),
    Check(3, 5, 2, 4, cell="GRU", resets=True),
)


def correctness(run: Run) -> None:
    checks = QUICK_CHECKS if run.quick else CHECKS
    compare_all(run, [(check, name) for check in checks for name in ("fused", "scan", "cudnn")])
    compare_transforms(run, QUICK_TRANSFORMED if run.quick else TRANSFORMED)


def compare_all(run: Run, todo: Sequence[tuple[Check, str]], repeats: int = 1) -> bool:
    """Compile all checks in several threads, and run them in order. Returns whether all are right."""
    right = True
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(prepare, run, *group) for group in todo]
        for (check, name), future in zip(todo, futures, strict=True):
            about = {"case": str(check), "what": f"check of {name}", "dtype": check.dtype}
            begin(*about.values())
            prepared = future.result()
            if isinstance(prepared, Prepared):
                found = judge(prepared, check, repeats, about)
                right = right and found
            else:
                status, why = prepared
                row(status, why, **about)
                right = right and status != "fails"
    return right


def gradient(loss: Callable[..., Any]) -> Callable[..., Any]:
    return jax.grad(loss, (0, 1, 2))


#: Each takes ``unroll`` and a loss of its results, both functions of params, xs and carry; these arguments; a
#: direction; and two examples of each argument.
TRANSFORMS: dict[str, Callable[..., Any]] = {
    "vmap over data": lambda f, loss, args, along, two: jax.vmap(f, (None, 0, 0))(args[0], *two[1:]),
    "vmap over weights": lambda f, loss, args, along, two: jax.vmap(f, (0, None, None))(two[0], *args[1:]),
    "jvp": lambda f, loss, args, along, two: jax.jvp(f, args, along)[1],
    "Hessian-vector product": lambda f, loss, args, along, two: jax.jvp(gradient(loss), args, along)[1],
    "gradients per example": lambda f, loss, args, along, two: jax.vmap(gradient(loss), (None, 0, 0))(
        args[0], *two[1:]
    ),
}
#: Checks with which the transforms are computed, and the implementations that are compared with the scan.
TRANSFORMED = (Check(3, 7, 5, 8, lengths=True), Check(4, 20, 5, 64))
QUICK_TRANSFORMED = (Check(3, 5, 2, 4, lengths=True),)
WITH_TRANSFORMS = ("fused", "cudnn")


def compare_transforms(run: Run, checks: Sequence[Check]) -> None:
    """Compare transforms of implementations with those of the plain scan."""
    todo = [(check, name) for check in checks for name in TRANSFORMS]
    names = ("scan", *WITH_TRANSFORMS)
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [[pool.submit(transform, run, *group, name) for name in names] for group in todo]
        for (check, what), (scan, *others) in zip(todo, futures, strict=True):
            for name, future in zip(WITH_TRANSFORMS, others, strict=True):
                about = {"case": str(check), "what": f"check of {name}, {what}", "dtype": check.dtype}
                begin(*about.values())
                found, expected = future.result(), scan.result()
                if not callable(found) or not callable(expected):
                    status, why = expected if callable(found) else found
                    row(status, why, **about)
                    continue
                try:
                    pairs = zip(jax.tree.leaves(found()), jax.tree.leaves(expected()), strict=True)
                    error = float(np.max([distance(a, np.asarray(b, np.float64)) for a, b in pairs]))
                except Exception as failure:
                    row("fails", error_line(failure), **about)
                    continue
                status = "right" if error <= ACCEPTED[check.dtype] else "wrong"
                row(status, f"error {error:.1e} against the scan", **about)


def transform(run: Run, check: Check, name: str, implementation: str) -> Callable[[], Any] | tuple[str, str]:
    """Compile a transform of an LSTM, or return the status and the reason why it cannot run."""
    if run.late():
        return "skipped", "no time left"
    cell = lstm_jax.LSTM(check.D, check.H, dtype=check.dtype)
    problem, params = draw(check, cell)
    args = params, jnp.asarray(problem.xs), tuple(map(jnp.asarray, problem.carry))
    options: dict[str, Any] = {"implementation": implementation}
    options |= {"lengths": jnp.asarray(problem.valid.sum(0), jnp.int32)} if check.lengths else {}

    def results(*args: Any) -> Any:
        return lstm_jax.unroll(cell, *args, **options)

    def loss(*args: Any) -> Any:
        return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(results(*args)))

    def compute(args: Any) -> Any:
        two = jax.tree.map(lambda a: jnp.stack([a, a / 2]), args)
        return TRANSFORMS[name](results, loss, args, jax.tree.map(jnp.cos, args), two)

    with precision(run.setting("float32")):
        declined = unsupported_reason(cell, *args, **options)
        if declined:
            return "declines", declined
        try:
            return partial(jax.jit(compute).lower(args).compile(), args)
        except Exception as error:
            return "fails", error_line(error)


class Prepared(NamedTuple):
    """A check that is compiled."""

    solution: reference.Solution
    call: Callable[[], Any]  # (ys and last states, values and gradients)


def prepare(run: Run, check: Check, implementation: str) -> Prepared | tuple[str, str]:
    """Compile a check and compute its reference, or the status and the reason why it cannot run."""
    if run.late():
        return "skipped", "no time left"
    cell = getattr(lstm_jax, check.cell)(check.D, check.H, dtype=check.dtype)
    problem, params = draw(check, cell)
    options: dict[str, Any] = {"implementation": implementation}
    options |= {"lengths": jnp.asarray(problem.valid.sum(0), jnp.int32)} if check.lengths else {}
    options |= {"resets": jnp.asarray(problem.resets)} if check.resets else {}

    def value(params: Any, xs: Any, carry: Any) -> Any:
        last, ys = lstm_jax.unroll(cell, params, xs, carry, **options)
        pairs = [(ys, problem.weights_ys), *zip(jax.tree.leaves(last), problem.weights_carry, strict=True)]
        loss = sum(jnp.sum(a.astype(jnp.float32) * jnp.asarray(w, jnp.float32)) for a, w in pairs)
        return loss, (ys, tuple(jax.tree.leaves(last)))

    carry = tuple(map(jnp.asarray, problem.carry))
    args = (params, jnp.asarray(problem.xs), carry if len(carry) == 2 else carry[0])
    with run.kernels(), precision(run.setting("float32")):
        declined = implementation in DECLINING and unsupported_reason(cell, *args, **options)
        if declined:
            return "declines", declined
        try:
            forward = jax.jit(lambda *args: value(*args)[1]).lower(*args).compile()
            backward = jax.jit(jax.value_and_grad(value, (0, 1, 2), has_aux=True)).lower(*args).compile()
        except Exception as error:
            return "fails", error_line(error)
    return Prepared(reference.solve(problem), lambda: (forward(*args), backward(*args)))


def judge(prepared: Prepared, check: Check, repeats: int, about: dict[str, str]) -> bool:
    """Compare values and gradients with float64 and report a row. Returns whether they are right.

    Every repetition must return the same bits, in memory that is likely to have contained NaN before.
    """
    solution, call = prepared
    try:
        found = [poisoned(call) for _ in range(repeats)]
    except Exception as error:
        row("fails", error_line(error), **about)
        return False
    plain, ((_, (ys, last)), (d_params, d_xs, d_carry)) = found[0]
    returned = {
        "ys": (ys, solution.ys),
        "ys without gradients": (plain[0], solution.ys),
        "gradient of xs": (d_xs, solution.d_xs),
        **{f"gradient of {n}": (getattr(d_params, n), a) for n, a in solution.d_params.items()},
    }
    for k, name in enumerate(("h", "c")[: len(solution.carry)]):
        returned[f"last {name}"] = last[k], solution.carry[k]
        returned[f"gradient of {name}"] = jax.tree.leaves(d_carry)[k], solution.d_carry[k]
    errors = {name: distance(*group) for name, group in returned.items()}
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    same = all(same_bits(found[0], again) for again in found[1:])
    right = errors[worst] <= ACCEPTED[check.dtype] and same
    note = f"error {errors[worst]:.1e} in {worst}" + ("" if same else ", repetitions differ")
    row("right" if right else "wrong", note, errors=errors, **about)
    return right


def draw(check: Check, cell: Any) -> tuple[reference.Problem, Any]:
    """Random arrays that the dtype represents exactly, and the parameters as the cell takes them."""
    B, T, D, H, dtype, *_ = check
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0, of: str = dtype) -> np.ndarray:
        return np.asarray(jnp.asarray(scale * rng.standard_normal(shape), of))

    shapes = jax.eval_shape(cell.init, jax.random.key(0))._asdict()
    shapes = {name: a.shape for name, a in shapes.items() if a is not None}
    arrays = {name: normal(*shape, scale=H**-0.5).astype(np.float32) for name, shape in shapes.items()}
    params = jax.eval_shape(cell.init, jax.random.key(0))
    params = params._replace(**{name: jnp.asarray(a) for name, a in arrays.items()})
    states = (dtype, "float32") if check.cell == "LSTM" else (dtype,)
    valid, resets = np.ones((T, B), bool), np.zeros((T, B), bool)
    if check.lengths:
        valid = np.arange(T)[:, None] < np.linspace(T, 0, B).astype(int)
    if check.resets:
        resets = rng.random((T, B)) < 0.2
    carry = tuple(np.tanh(normal(B, H, of="float32")).astype(state) for state in states)
    weights = tuple(normal(B, H, of="float32") for _ in states)
    return reference.Problem(
        arrays, normal(T, B, D), carry, valid, resets, normal(T, B, H, of="float32"), weights
    ), params


def distance(found: Any, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest number; infinite for another shape."""
    found = np.asarray(found, np.float64)
    if found.shape != expected.shape:
        return math.inf
    return float(np.max(np.abs(found - expected), initial=0) / max(np.max(np.abs(expected), initial=0), 1e-6))


def poisoned(call: Callable[[], Any]) -> Any:
    """Call a function, so that its results are likely to be written to memory that contains NaN."""
    first = jax.block_until_ready(call())
    junk = [jnp.full(a.shape, jnp.nan, a.dtype) for a in jax.tree.leaves(first) for _ in range(2)]
    jax.block_until_ready(junk)
    for a in (*junk, *jax.tree.leaves(first)):
        a.delete()
    return jax.block_until_ready(call())


def same_bits(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


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
