"""What makes the loop fast as XLA compiles it for this device: one idea a row, beside the loop as it is.

``python -m benchmarks.experiments``. Every idea must give the results of the first row of its group. Rows are
timed one after the other, not interleaved. What may crash the compiler or hang comes last; a row is written
before it is measured, so that it is known at what the process died.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax
from benchmarks import loops, report
from benchmarks.cases import Case, Setting, make_network, precision
from benchmarks.measure import farthest, tolerance
from benchmarks.sheet import Sheet
from benchmarks.timing import sample
from lstm_jax.unrolling import tiling

#: The first with all ideas, the others with the steps of a body alone.
CASES, QUICK_CASES = (Case(16, 1024, 768, 768), Case(64, 1024, 1024, 1024)), (Case(2, 6, 3, 4),)
ROUNDS = 7

#: Options of one compilation. XLA records the commands of a loop's body where there are enough of them.
COMMANDS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION"
OPTIONS: dict[str, dict[str, Any]] = {
    "no command buffers": {"xla_gpu_enable_command_buffer": ""},
    "command buffers from 1 command": {"xla_gpu_graph_min_graph_size": 1},
    "no Triton products": {"xla_gpu_enable_triton_gemm": False},
    "loops unrolled twice": {"xla_gpu_enable_while_loop_unrolling": "WHILE_LOOP_UNROLLING_DOUBLE_BUFFER"},
    "small loops unrolled": {"xla_gpu_enable_while_loop_unrolling": "WHILE_LOOP_UNROLLING_AUTO_UNROLL"},
}
#: These record whole loops, which has crashed before.
RISKY = {
    "command buffers of loops": {"xla_gpu_enable_command_buffer": f"{COMMANDS},WHILE"},
    "command buffers of loops from 1 command": {
        "xla_gpu_enable_command_buffer": f"{COMMANDS},WHILE",
        "xla_gpu_graph_min_graph_size": 1,
    },
}


class Idea(NamedTuple):
    """One row: a function of the same arguments as the first of its group."""

    group: str
    name: str
    function: Callable[..., Any]
    args: Any
    options: dict[str, Any] | None = None  # of the compiler
    unroll: int = 1  # steps in one body, of the library's own loop


def ideas(case: Case, dtype: str) -> Iterator[Idea]:
    """All of them, the risky ones last."""
    keys = jax.random.split(jax.random.key(0), 2)
    xs = jax.random.normal(keys[1], (case.T, case.B, case.D)).astype(dtype)

    def network(case: Case) -> tuple[Any, Any]:
        made = make_network(case, dtype)
        return lambda params, xs: lstm_jax.unroll(made, params, xs)[1], lstm_jax.torch_init(made, keys[0])

    one, params = network(case)
    args = params, xs
    yield Idea("unroll", "1 step a body", one, args)
    for steps in (2, 4, 8, 16):
        if steps <= case.T:
            yield Idea("unroll", f"{steps} steps a body", one, args, unroll=steps)
    yield Idea("layout", "the library's loop", one, args)
    for name, walk in loops.LAYOUTS.items():
        yield Idea("layout", name, walk, args)
    both, double = network(case._replace(bidirectional=True))
    yield Idea("both directions", "two products in one loop (the library's)", both, (double, xs))
    yield Idea("both directions", "one batched product", loops.both_batched, (double, xs))
    yield Idea("both directions", "two loops", loops.both_apart, (double, xs))
    two, layers = network(case._replace(layers=2))
    yield Idea("two layers", "one after the other (the library's)", two, (layers, xs))
    yield Idea("two layers", "wavefront", loops.wavefront, (layers, xs))
    yield Idea("compiler", "as it comes", one, args)
    for name, options in OPTIONS.items():
        yield Idea("compiler", name, one, args, options)
    for steps in (8, 16):
        if steps <= case.T:
            name = f"command buffers from 1 command, {steps} steps a body"
            yield Idea("compiler", name, one, args, OPTIONS["command buffers from 1 command"], steps)
    for name, options in RISKY.items():
        yield Idea("compiler", name, one, args, options)


def measured(idea: Idea, setting: Setting, reference: Any, rounds: int) -> tuple[dict[str, Any], Any]:
    """Milliseconds forward, and with gradients for weights and inputs; and the results."""

    def loss(*args: Any) -> jax.Array:
        return jnp.sum(idea.function(*args), dtype=jnp.float32)

    programs = {"forward": idea.function, "forward+backward": jax.grad(loss, (0, 1))}
    values: dict[str, Any] = {}
    results: dict[str, Any] = {}
    before, tiling.UNROLL = tiling.UNROLL, idea.unroll
    try:
        for mode, function in programs.items():
            jax.clear_caches()
            began = time.perf_counter()
            compiled = jax.jit(function).lower(*idea.args).compile(compiler_options=idea.options)
            values[f"{mode} compile s"] = time.perf_counter() - began
            call = partial(run, compiled, idea.args)
            results[mode] = jax.tree.map(lambda a: np.asarray(a, np.float32), call())
            times = sorted(sample(call, 1) for _ in range(rounds))
            values[f"{mode} ms"] = times[len(times) // 2] * 1e3
    finally:
        tiling.UNROLL = before
        jax.clear_caches()
    distance, where = farthest(results, reference or results)
    if not distance <= tolerance(setting):
        values["note"] = f"other results: {where} by {distance:.2g} of the largest"
    return values, results


def run(compiled: Any, args: Any) -> Any:
    return jax.block_until_ready(compiled(*args))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a tiny case, few rounds")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--groups", nargs="+", help="some of: unroll, layout, both directions, two layers, compiler"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="(default: %(default)s)")
    args = parser.parse_args(argv)
    platform = jax.default_backend()
    setting = Setting(platform, args.dtype, tf32=platform == "gpu" and args.dtype == "float32")
    modes = [f"{mode} {what}" for mode in ("forward", "forward+backward") for what in ("ms", "compile s")]
    sheet = Sheet(
        args.out,
        "experiments",
        "What makes the loop fast",
        ("case", "group", "idea", *modes, "note"),
        report.machine(setting, (), {}),
        ("Each row beside the first of its group; timed one after the other.",),
    )
    first, *others = QUICK_CASES if args.quick else CASES
    jobs = [(first, idea) for idea in ideas(first, args.dtype)]
    jobs += [(case, idea) for case in others for idea in ideas(case, args.dtype) if idea.group == "unroll"]
    jobs = [job for job in jobs if not args.groups or job[1].group in args.groups]
    jobs.sort(key=lambda job: job[1].name in RISKY)
    references: dict[Any, Any] = {}
    for case, idea in jobs:
        sheet.begin(case=str(case), group=idea.group, idea=idea.name)
        try:
            with precision(setting):
                reference = references.get((case, idea.group))
                values, results = measured(idea, setting, reference, 2 if args.quick else ROUNDS)
            references.setdefault((case, idea.group), results)
        except Exception as error:  # told, and the others go on
            values = {"note": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        sheet.end(**values)
    return 0


if __name__ == "__main__":
    sys.exit(main())
