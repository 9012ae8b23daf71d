"""How the fused scan divides its work: rules from shapes and the device."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax

from lstm_jax._devices import is_single_cpu_device

MiB = 2**20


#: Projected inputs of a sequence up to which it is walked whole, and up to which its tangents are
#: (beside them lies several times as much). Below, cutting only costs.
WHOLE, WHOLE_TANGENTS = 8 * MiB, 1 * MiB


#: Tangents stay whole, too, where the weights are at least this part of the projected inputs.
HEAVY_WEIGHTS = 0.25


#: Projected inputs of one chunk: what stays in a core's cache beside the weights.
CHUNK = 2 * MiB


#: Recurrent weights from which one product of XLA's runs on two cores by itself.
THREADED_WEIGHTS = 98_304


#: Multiplications a step from which lanes pay for themselves, and rows that are enough for all of them.
SPLIT_MIN_WORK, SPLIT_MIN_ROWS = 2**22, 32


#: Products in all lanes. With eight or fewer ready at a time, XLA runs all of them on one core.
SPLIT_PRODUCTS = 12


#: Steps in one body of the loop. More is no faster on CPUs; what GPUs gain was not measured yet
#: (``python -m benchmarks.device`` does).
UNROLL = 1


class Tiling(NamedTuple):
    """How the fast path walks."""

    chunk: int | None = None  # steps that are projected and walked at a time; None: all of them
    tangent_chunk: int | None = None  # the same, for the walk of the tangents
    batch_splits: int = (
        1  # parts of the batch that walk side by side, where nothing is saved for a derivative
    )
    unroll: int = 1  # steps in one body of the loop

    def __str__(self) -> str:
        words = [f"chunks of {self.chunk} steps"] if self.chunk else []
        words += [f"tangents in chunks of {self.tangent_chunk} steps"] if self.tangent_chunk else []
        words += [f"{self.batch_splits} lanes"] if self.batch_splits > 1 else []
        words += [f"{self.unroll} steps a body"] if self.unroll > 1 else []
        return ", ".join(words) or "in one piece"


def choose_tiling(T: Any, carry: Any, u: Any, rows: bool = True) -> Tiling:
    """The schedule for T steps, each of which reads ``carry`` and the projected input ``u``.

    ``rows``: whether the first axis of these is one of the batch, whose rows are vectors. Without it, or
    where rows are images (the first axis of an image is not to be cut), nothing walks in lanes.
    """
    us, states = jax.tree.leaves(u), jax.tree.leaves(carry)
    sizes = [T, *(n for leaf in us + states for n in leaf.shape)]
    if not is_single_cpu_device() or not all(isinstance(n, int) for n in sizes) or 0 in sizes:
        return Tiling(unroll=UNROLL)
    units, width = _last(states[0]), max(map(_last, us))
    vectors = us[0].size // _last(us[0])
    step_bytes = size_in_bytes(us)
    # Every chunk of tangents adds to the weights' gradients: with fewer vectors than units, that is slow.
    enough = math.ceil(units / vectors)
    weights = units * width * us[0].dtype.itemsize
    cut_tangents = T * step_bytes > WHOLE_TANGENTS and weights < HEAVY_WEIGHTS * T * step_bytes
    # Lanes are parts of the first axis, which all that is carried and read must share.
    firsts = {leaf.shape[0] if leaf.ndim > 1 else 1 for leaf in us + states}
    split_rows = firsts.pop() if rows and len(firsts) == 1 else 1
    work = vectors * units * width * len(us)
    batch_splits = (
        split_rows >= SPLIT_MIN_ROWS and units * width < THREADED_WEIGHTS and work >= SPLIT_MIN_WORK
    )
    return Tiling(
        chunk=even(T, CHUNK // step_bytes) if T * step_bytes > WHOLE else None,
        tangent_chunk=even(T, max(min(CHUNK // step_bytes, T // 4), enough)) if cut_tangents else None,
        batch_splits=SPLIT_PRODUCTS // len(us)
        if batch_splits
        else 1,  # both directions in one loop: two products a step
        unroll=UNROLL,
    )


def parallel_loss() -> str | None:
    """Why a linear recurrence is better walked step by step on this machine, or None.

    On the CPU, the fast path took between 0.2 and 1.4 times the time of the parallel walk forward
    and between 0.35 and 1.4 with gradients (MinGRU and MinLSTM, T 100 to 10,000, B 1 to 128, H 16 to
    128), and half the memory: two cores have nothing to gain from a tree whose every level goes
    through memory. An accelerator waits for every one of T steps, and fills itself with 2 log2(T);
    that was not measured.
    """
    return "on CPUs one step after the other is as fast" if jax.default_backend() == "cpu" else None


def size_in_bytes(tree: Any) -> int:
    """Of all arrays, or shapes of arrays, in a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _last(leaf: Any) -> int:
    return leaf.shape[-1] if leaf.shape else 1


def even(T: int, steps: int) -> int | None:
    """A number near ``steps`` that divides T, or else ``steps``; None where that is all of them."""
    steps = max(1, steps)
    fitting = [k for k in range((steps + 1) // 2, min(T, 2 * steps) + 1) if T % k == 0]
    best = min(fitting, key=lambda k: abs(k - steps), default=steps)
    return best if best < T else None
