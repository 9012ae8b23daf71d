"""What :mod:`benchmarks.hopper` does in a process of its own: check one walk, time one case, compile one.

A job prints a line of JSON for each result as soon as it has it, so that what came before a process was
killed is kept.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import MODES, Case, Setting, as_network, make_problem
from benchmarks.contestants.contestant import Contestant, Form, build_jax, never
from benchmarks.contestants.cudnn import CUDNN
from benchmarks.contestants.scan import SCAN
from benchmarks.contestants.torch_ import TORCH, algorithm
from lstm_jax import LSTM, unroll
from lstm_jax.experimental import hopper, hopper_names
from lstm_jax.experimental.hopper_plan import Plan, units_of
from lstm_jax.unrolling.kernels import select
from lstm_jax.unrolling.kernels.engine import ROWS, Inputs, Saved, Tangents, Walk, saved_of
from lstm_jax.unrolling.kernels.formulas import KINDS, LSTM_KIND, Kind
from lstm_jax.unrolling.kernels.reference import REFERENCES

#: Roundings to the compute dtype by which a result may differ from float64's, of its largest number.
ROUNDINGS = 16
EPS = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
#: Microseconds a step at the least, by estimate.
FLOORS = {"cluster": (0.4, 0.6), "grid": (1.0, 1.3)}
#: The share of steps that are valid where some are not.
VALID = 0.7


def perform(job: dict[str, Any]) -> int:
    """One job; 1 where it found a fault."""
    kinds: dict[str, Callable[[dict[str, Any]], Iterator[dict[str, Any]]]]
    kinds = {"check": check, "time": times, "kernel": kernel_times, "compile": compiles}
    failed, call = 0, kinds[job["kind"]]
    if call is not times and isinstance(reason := plan_of(job), str):
        print(json.dumps({"walk": "both", "declined": reason}))
        return failed
    for result in call(job):
        failed |= result.get("right") is False
        print(json.dumps(result), flush=True)
    return failed


# --- correctness ---------------------------------------------------------------------------------


def kind_of(job: dict[str, Any]) -> Kind:
    """The job's cell."""
    return next(kind for kind in KINDS if kind.name == job.get("cell", "LSTM"))


def plan_of(job: dict[str, Any]) -> Plan | str:
    """The job's plan for this device: chosen, or with this many blocks; or why there is none."""
    B, H, dtype = (job[name] for name in ("B", "H", "dtype"))
    if job.get("form") == "grid":
        rows, blocks = 16, job["blocks"]
        hear = len(kind_of(job).of_h)
        return Plan("grid", blocks, units_of(H, blocks), rows, -(-B // rows), hear=hear)
    return hopper.plan_here(kind_of(job), B, H, dtype, blocks=job.get("blocks"))


def walks(job: dict[str, Any]) -> tuple[Plan, Callable[..., Any], Callable[..., Any]]:
    """The plan, and both walks compiled."""
    to, kind = plan_of(job), kind_of(job)
    assert isinstance(to, Plan), to  # perform has asked
    how: dict[str, Any] = {"to": to}
    if job.get("interpret"):
        how["interpret"] = hopper_names.interpreter()
    ahead, back = job.get("exchange", (None, None))

    def forward(inputs: Inputs) -> Walk:
        return hopper.forward(kind, inputs, True, exchange=ahead, **how)

    def backward(saved: Saved, wanted: Any) -> Tangents:
        return hopper.backward(kind, saved, wanted, exchange=back, **how)

    if job.get("pair"):
        return to, jax.jit(pair(forward, *ROWS["forward"])), jax.jit(pair(backward, *ROWS["backward"]))
    return to, jax.jit(forward), jax.jit(backward)


def pair(walk: Callable[..., Any], axes: Any, out_axes: Any) -> Callable[..., Any]:
    """Two walks in one program that know nothing of each other, as two directions do.

    Were they run side by side, blocks of both would wait for blocks that find no room. The second has the
    rows in another order; where it gives anything else, the result is not a number.
    """

    def both(*args: Any) -> Any:
        def moved(by: int, axes: Any, arrays: Any) -> Any:
            return hopper.each(lambda a, axis: jnp.roll(a, by, axis), axes, arrays)

        first, second = walk(*args), moved(-1, out_axes, walk(*moved(1, axes, args)))
        return jax.tree.map(lambda a, b: jnp.where(a == b, a, jnp.full_like(a, jnp.nan)), first, second)

    return both


def draw(job: dict[str, Any], seed: int) -> tuple[Inputs, Any]:
    """Fresh inputs of forward, and what backward is asked for."""
    kind = kind_of(job)
    T, B, H, dtype = (job[name] for name in ("T", "B", "H", "dtype"))
    rng = np.random.default_rng(seed)

    def normal(*shape: int, of: str = dtype, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(scale * rng.standard_normal(shape, np.float32), of)

    valid = jnp.asarray(rng.random((T, B)) < VALID) if job.get("masked") else None
    u = normal(T, B, len(kind.of_x) * H)
    if valid is not None:
        u = jnp.where(valid[..., None], u, jnp.zeros_like(u))
    w = normal(H, len(kind.of_h) * H, scale=H**-0.5)
    dtypes = (dtype, "float32")[: kind.count]
    h, *rest = (normal(B, H, of=one) for one in dtypes)
    inputs = Inputs(u, w, normal(4 * H, of="float32"), (jnp.tanh(h), *rest), valid)
    return inputs, tuple(normal(T, B, H, of=one) for one in dtypes)


def wide(tree: Any) -> Any:
    """Numbers as float64, on the host."""
    return jax.tree.map(lambda a: np.asarray(a) if a.dtype == bool else np.asarray(a, np.float64), tree)


def exact(call: Callable[..., Any], *args: Any) -> Any:
    """The reference in float64, on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        return wide(jax.jit(call)(*jax.tree.map(jnp.asarray, wide(args))))


def errors(found: Any, expected: Any) -> dict[str, float]:
    """The largest difference of each array, of its largest number (at least 1); not a number where one is."""
    return {
        jax.tree_util.keystr(path): float(
            np.max(np.abs(np.asarray(a, np.float64) - b)) / max(1.0, np.max(np.abs(b)))
        )
        for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    }


def poisoned(call: Callable[..., Any], *args: Any) -> Any:
    """A call that finds NaN in the memory which its results take."""
    shapes = jax.eval_shape(call, *args)
    junk = [jnp.full(a.shape, jnp.nan, a.dtype) for a in jax.tree.leaves(shapes) for _ in range(2)]
    jax.block_until_ready(junk)
    for a in junk:
        a.delete()
    return jax.block_until_ready(call(*args))


def check(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Both walks: against float64, beside plain JAX in the same dtypes, and three times the same bits."""
    seed = int.from_bytes(os.urandom(4))
    inputs, wanted = draw(job, seed)
    to, forward, backward = walks(job)
    plain = REFERENCES[kind_of(job)]
    args: tuple[Any, ...] = (inputs,)
    for name, call, reference in (
        ("forward", forward, lambda inputs: plain.forward(inputs, True)),
        ("backward", backward, plain.backward),
    ):
        expected = exact(reference, *args)
        found = poisoned(call, *args)
        error = errors(found, expected)
        same = True
        for _ in range(job.get("repeats", 2)):
            again = poisoned(call, *args)
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True)
            same &= all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
        right = same and all(e < ROUNDINGS * EPS[job["dtype"]] for e in error.values())
        yield {
            "walk": name,
            "plan": to._asdict(),
            "seed": seed,
            "error": error,
            "error of plain JAX": errors(jax.jit(reference)(*args), expected),
            "same bits": same,
            "right": right,
        }
        if name == "forward":
            walked = jax.tree.map(lambda a, like: jnp.asarray(a, like.dtype), expected, found)
            args = saved_of(inputs, walked), wanted


# --- time ----------------------------------------------------------------------------------------


def seconds(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Of one call, results waited for: the median of some, and the spread; the first ones are thrown away."""
    for _ in range(2):
        call()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return {"median_s": statistics.median(taken), "least_s": min(taken), "most_s": max(taken)}


def by(implementation: str, name: str) -> Contestant:
    """``unroll`` with an implementation by name."""

    def form(case: Case, setting: Setting) -> Form:
        cell = LSTM(case.D, case.H, dtype=setting.dtype)

        def run(params: Any, xs: Any, lengths: Any) -> Any:
            return unroll(cell, params, xs, lengths=lengths, implementation=implementation)[1]

        return Form(lambda layers: as_network(case, layers), run)

    return Contestant(
        name, f"unroll(..., implementation={implementation!r})", "lstm_jax", never, never, build_jax(form)
    )


def times(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One case by everybody, the input projection included, the kernels last."""
    B, T, H, dtype = (job[name] for name in ("B", "T", "H", "dtype"))
    case, platform = Case(B, T, H, H), jax.default_backend()
    setting = Setting(platform, dtype)
    found = hopper.plan_here(LSTM_KIND, B, H, dtype)
    floor = FLOORS[found.form] if isinstance(found, Plan) else None
    entries = [(TORCH, setting), (by("fused", "lstm_jax fused"), setting), (SCAN, setting)]
    entries += [(CUDNN, Setting(platform, "float32", platform == "gpu"))]  # float32 alone
    entries += [(by("pallas", "lstm_jax pallas"), setting)]
    for who, how in entries:
        for mode in MODES:
            result = {"who": who.name, "mode": mode, "dtype": how.dtype, "tf32": how.tf32}
            reason = who.absent() or who.declines(case, mode, how)
            if reason is None:
                try:
                    with select.interpret("gpu") if job.get("interpret") else jax.enable_x64(False):
                        built = who.build(case, make_problem(case, how), mode, how)
                        result |= seconds(built.call, job.get("repeats", 20))
                    result["us_a_step"] = result["median_s"] / T * 1e6
                    result["compile_s"], result["note"] = built.compile_s, built.note
                except Exception as error:
                    reason = f"{type(error).__name__}: {error}".splitlines()[0]
            if who is TORCH and platform == "gpu":
                result["algorithm"] = algorithm_of(case, dtype, mode)
            yield result | {"declined": reason, "floor_us_a_step": floor}


def algorithm_of(case: Case, dtype: str, mode: str) -> str:
    import torch

    device = torch.cuda.get_device_properties(0)
    capability = device.major, device.minor
    return algorithm(case, dtype, capability, device.multi_processor_count, backward=mode != MODES[0])


def kernel_times(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The walks alone, without projections, with this plan and exchange."""
    inputs, wanted = draw(job, 0)
    to, forward, backward = walks(job)
    saved = saved_of(inputs, forward(inputs))
    for name, call in (("forward", lambda: forward(inputs)), ("backward", lambda: backward(saved, wanted))):
        result = seconds(lambda call=call: jax.block_until_ready(call()), job.get("repeats", 20))
        floor = FLOORS[to.form]
        step = result["median_s"] / job["T"] * 1e6
        yield {"walk": name, "plan": to._asdict(), **result, "us_a_step": step, "floor_us_a_step": floor}


# --- without a device ----------------------------------------------------------------------------

#: An H100, as XLA is told of a device that is not there.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def compiles(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Both walks as machine code for an H100: needs jax's CUDA plugin and ptxas, and no device."""
    from jax.experimental import topologies

    there = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology="1x1x1")
    mesh = jax.sharding.Mesh(np.array(there.devices), ("device",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)

    inputs, wanted = (shapes(tree) for tree in draw(job, 0))
    to, forward, backward = walks(job)
    walked = jax.eval_shape(lambda inputs: REFERENCES[kind_of(job)].forward(inputs, True), inputs)
    saved = saved_of(inputs, shapes(walked))
    for name, call, args in (("forward", forward, (inputs,)), ("backward", backward, (saved, wanted))):
        began = time.perf_counter()
        call.lower(*args).compile()
        yield {"walk": name, "plan": to._asdict(), "compile_s": time.perf_counter() - began}
