"""How the fused scan divides its work, chosen from shapes and the device.

The thresholds were measured on a two-core CPU (``benchmarks/NOTES.md``). The division changes values by
rounding only. On accelerators, and where arrays may be sharded, nothing is divided.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax

from lstm_jax._devices import is_single_cpu_device

MiB = 2**20
#: Largest projected inputs, in bytes, for which a sequence is computed whole, and for which its tangents are.
#: (The tangents need several times this memory.) Dividing smaller ones only costs time.
WHOLE, WHOLE_TANGENTS = 8 * MiB, 1 * MiB
#: Tangents are also computed whole if the weights have at least this fraction of the bytes of the projected
#: inputs.
HEAVY_WEIGHTS = 0.25
#: Bytes of projected inputs per chunk, which fit into a core's cache together with the weights.
CHUNK = 2 * MiB
#: Number of recurrent weights from which XLA computes a product on two cores.
THREADED_WEIGHTS = 98_304
#: Least and greatest number of multiplications per step, and least number of batch rows, for which batch
#: splits save time. XLA computes larger products on two cores by itself.
SPLIT_MIN_WORK, SPLIT_MAX_WORK, SPLIT_MIN_ROWS = 2**22, 14 * 2**20, 32
#: Products per step in all batch splits. XLA runs eight or fewer independent products on one core.
SPLIT_PRODUCTS = 12
#: Largest chunk, in steps, that costs more than it saves: without derivatives, the loop projects the input of
#: each step instead. With fewer rows than this fraction of the units, it would mostly read the input weights.
FEW_STEPS, MIN_ROWS_PER_UNIT = 3, 0.25
#: Steps per loop body. More steps are no faster on CPUs, and have not been measured on GPUs
#: (``python -m benchmarks.device`` measures them).
UNROLL = 1


class Tiling(NamedTuple):
    """How the fused scan divides a sequence."""

    chunk: int | None = None  # steps that are projected and scanned together; None: all steps
    tangent_chunk: int | None = None  # the same for the tangents
    batch_splits: int = 1  # parts of the batch with separate products, if no residuals are stored
    unroll: int = 1  # steps per loop body
    project_inside: bool = False  # the loop projects the input of each step, if no residuals are stored

    def __str__(self) -> str:
        words = [f"chunks of {self.chunk} steps"] if self.chunk else []
        words += [f"tangents in chunks of {self.tangent_chunk} steps"] if self.tangent_chunk else []
        words += (
            ["without derivatives: no chunks, inputs projected in the loop"] if self.project_inside else []
        )
        words += [f"{self.batch_splits} batch splits"] if self.batch_splits > 1 else []
        words += [f"{self.unroll} steps per loop body"] if self.unroll > 1 else []
        return ", ".join(words) or "undivided"


def choose_tiling(T: Any, carry: Any, u: Any, rows: bool = True) -> Tiling:
    """The tiling for T steps with this carry and this projected input of one step.

    ``rows``: whether their first axis is a batch axis and the rows are vectors. Otherwise (no batch axis, or
    images) the batch is not split.
    """
    us, states = jax.tree.leaves(u), jax.tree.leaves(carry)
    sizes = [T, *(n for leaf in us + states for n in leaf.shape)]
    if not is_single_cpu_device() or not all(isinstance(n, int) for n in sizes) or 0 in sizes:
        return Tiling(unroll=UNROLL)
    units, width = _last(states[0]), max(map(_last, us))
    vectors = us[0].size // _last(us[0])
    step_bytes = size_in_bytes(us)
    # Every chunk of tangents adds to the weights' gradients, which is slow if a chunk has fewer vectors than
    # units.
    enough = math.ceil(units / vectors)
    weights = units * width * us[0].dtype.itemsize
    divide_tangents = T * step_bytes > WHOLE_TANGENTS and weights < HEAVY_WEIGHTS * T * step_bytes
    # The batch is split along the first axis, which must be the same for all states and projected inputs.
    firsts = {leaf.shape[0] if leaf.ndim > 1 else 1 for leaf in us + states}
    split_rows = firsts.pop() if rows and len(firsts) == 1 else 1
    work = vectors * units * width * len(us)
    splittable = split_rows >= SPLIT_MIN_ROWS and units * width < THREADED_WEIGHTS
    split = splittable and SPLIT_MIN_WORK <= work < SPLIT_MAX_WORK
    steps = CHUNK // step_bytes
    chunk = even_divisor(T, steps) if T * step_bytes > WHOLE else None
    tangent_steps = max(min(steps, T // 4), enough)
    return Tiling(
        chunk=chunk,
        tangent_chunk=even_divisor(T, tangent_steps) if divide_tangents else None,
        batch_splits=SPLIT_PRODUCTS // len(us) if split else 1,  # two directions have two products a step
        unroll=UNROLL,
        project_inside=not split and (chunk or steps) <= FEW_STEPS and vectors >= MIN_ROWS_PER_UNIT * units,
    )


def size_in_bytes(tree: Any) -> int:
    """Total size of the arrays, or types of arrays, in a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _last(leaf: Any) -> int:
    return leaf.shape[-1] if leaf.shape else 1


def even_divisor(T: int, steps: int) -> int | None:
    """A divisor of T near ``steps``, or ``steps`` if there is none; None if the result is T or more."""
    steps = max(1, steps)
    fitting = [k for k in range((steps + 1) // 2, min(T, 2 * steps) + 1) if T % k == 0]
    best = min(fitting, key=lambda k: abs(k - steps), default=steps)
    return best if best < T else None
