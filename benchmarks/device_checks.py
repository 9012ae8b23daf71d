"""Whether a device computes right values: against float64, and transforms against the plain scan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax
from benchmarks import reference
from benchmarks.cases import precision
from benchmarks.contestants.lstm_jax_ import unsupported_reason
from benchmarks.device_run import THREADS, Run, begin, row
from benchmarks.measure import error_line

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
