"""Seconds of a call, fairly: interleaved rounds in rotating order, and what the machine can do at best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.cases import Setting

#: A sample lasts at least this long for the fastest: short calls are repeated inside of it.
SAMPLE_S = 5e-3
MOST_REPEATS = 1000


class Timed(NamedTuple):
    """Who is timed."""

    call: Callable[[], Any]  # waits for its results
    spins: bool = False  # idle threads of it slow what follows


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The order of a round: everybody comes first once, and last."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def schedule(contestants: Mapping[str, Timed], rounds: int) -> Iterator[tuple[str, bool]]:
    """Who runs, and whether it counts: what comes after a contestant that spins is thrown away once."""
    spun = False
    for turn in range(rounds):
        for name in rotated(list(contestants), turn):
            if spun:
                yield name, False
            yield name, True
            spun = contestants[name].spins


def repeats(contestants: Mapping[str, Timed], sample_s: float = SAMPLE_S) -> int:
    """How often a call is repeated in a sample: the same for all, found with the fastest."""
    fastest = min(sample(who.call, 1) for who in contestants.values() for _ in range(2))
    return max(1, min(MOST_REPEATS, round(sample_s / max(fastest, 1e-9))))


def sample(call: Callable[[], Any], times: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds a call, over so many calls."""
    began = clock()
    for _ in range(times):
        call()
    return (clock() - began) / times


def time_rounds(
    contestants: Mapping[str, Timed], rounds: int, sample_s: float = SAMPLE_S
) -> tuple[dict[str, list[float]], int]:
    """Seconds a call in every round, for everybody; and the repeats that each of them is a mean of."""
    times = repeats(contestants, sample_s)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for name, counts in schedule(contestants, rounds):
        taken = sample(contestants[name].call, times)
        if counts:
            seconds[name].append(taken)
    return seconds, times


def matmul_rates(setting: Setting, sizes: Sequence[int], with_torch: bool) -> dict[str, float]:
    """Operations a second of a square matrix product, the best size of each, by jax and by torch."""
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

    from benchmarks.contestants.torch_ import prepare

    prepare(torch, setting)
    device = "cuda" if setting.platform == "gpu" else "cpu"
    a = torch.randn(size, size, device=device).to(getattr(torch, setting.dtype))

    def call() -> None:
        with torch.inference_mode():
            a @ a
        if device == "cuda":
            torch.cuda.synchronize()

    return call
