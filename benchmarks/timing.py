"""Interleaved timing of several functions, and the rate of matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Setting

#: Shortest duration of a sample of the fastest contestant. Shorter calls are repeated within a sample.
SAMPLE_S = 5e-3
MAX_REPEATS = 1000
#: Pause after a contestant whose idle threads spin, until they sleep.
SPIN_S = 0.02


class Timed(NamedTuple):
    """One function to time."""

    call: Callable[[], Any]  # waits for its results
    spins: bool = False  # whether its idle threads keep running and slow down the next call


class Summary(NamedTuple):
    """Statistics of the samples of one function, in seconds per call."""

    min_s: float
    q1_s: float
    median_s: float
    q3_s: float
    count: int


def summarize(samples: Sequence[float]) -> Summary:
    """
    >>> summarize([3.0, 1.0, 2.0, 5.0])
    Summary(min_s=1.0, q1_s=1.75, median_s=2.5, q3_s=3.5, count=4)
    """
    return Summary(*np.percentile(samples, (0, 25, 50, 75)).tolist(), len(samples))


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The order of one round. Every name comes first in one of ``len(names)`` rounds."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def repeats(contestants: Mapping[str, Timed], sample_s: float = SAMPLE_S) -> int:
    """Calls in each sample, the same for all contestants, computed from the fastest of them."""
    fastest = min(sample(contestant.call, 1) for contestant in contestants.values() for _ in range(2))
    return max(1, min(MAX_REPEATS, round(sample_s / max(fastest, 1e-9))))


def sample(call: Callable[[], Any], times: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Mean seconds per call over ``times`` calls."""
    began = clock()
    for _ in range(times):
        call()
    return (clock() - began) / times


def time_rounds(
    contestants: Mapping[str, Timed],
    rounds: int,
    sample_s: float = SAMPLE_S,
    deadline: float = float("inf"),
) -> tuple[dict[str, list[float]], int]:
    """Samples of every contestant, one for each round, and the calls in each sample.

    Before each sample, the same number of calls is discarded: they read the caches that the contestant before
    left, and share the cores with its threads and with the release of its memory.

    No round begins after ``deadline`` (of ``time.monotonic``), except the first.
    """
    times = repeats(contestants, sample_s)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    spun = False
    for turn in range(rounds):
        if turn and time.monotonic() > deadline:
            break
        for name in rotated(list(contestants), turn):
            contestant = contestants[name]
            if spun:
                time.sleep(SPIN_S)
            sample(contestant.call, times)
            seconds[name].append(sample(contestant.call, times))
            spun = contestant.spins
    return seconds, times


def matmul_rates(setting: Setting, sizes: Sequence[int], with_torch: bool) -> dict[str, float]:
    """Operations per second of a square matrix product by JAX and by torch: the best of ``sizes``."""
    rates = {"jax": max(_rate(_jax_product(setting, size), size) for size in sizes)}
    if with_torch:
        rates["torch"] = max(_rate(_torch_product(setting, size), size) for size in sizes)
    return rates


def _rate(call: Callable[[], Any], size: int) -> float:
    call()
    return 2 * size**3 / min(sample(call, 1) for _ in range(10))


def _jax_product(setting: Setting, size: int) -> Callable[[], Any]:
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(setting.dtype)
    compiled = jax.jit(jnp.matmul).lower(a, a).compile()
    return lambda: jax.block_until_ready(compiled(a, a))


def _torch_product(setting: Setting, size: int) -> Callable[[], Any]:
    import torch

    from benchmarks.contestants.torch_ import prepare, synchronize

    prepare(torch, setting)
    device = "cuda" if setting.platform == "gpu" else "cpu"
    a = torch.randn(size, size, device=device).to(getattr(torch, setting.dtype))

    def call() -> None:
        with torch.inference_mode():
            a @ a
        synchronize(torch, setting)

    return call
