"""How much memory a walk is expected to need for a while, told from shapes alone.

Counted is what lies there beside arguments and results: alone, and when the gradients of a loss are
taken. It is an estimate, within about a third of what compiled programs turn out to need (held by a
test); XLA decides what shares its place.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax

from lstm_jax._types import Carry, Params, state_dtype
from lstm_jax.cells._base import event_ndim
from lstm_jax.unrolling.fused_scan import tiling_of
from lstm_jax.unrolling.steps import one_step
from lstm_jax.unrolling.tiling import size_in_bytes


class MemoryEstimate(NamedTuple):
    """Bytes."""

    forward: int
    gradients: int

    def __str__(self) -> str:
        return f"{_size(self.forward)} forward, {_size(self.gradients)} with gradients"


def memory_estimate(
    cell: Any, params: Params, carry: Carry, xs: Any, implementation: str, window: int | None
) -> MemoryEstimate | None:
    """The footprint of one cell's walk; ``window``: steps of which the backward pass runs each once more.

    None where the number of steps or rows is not known when tracing, or the implementation's memory is not.
    """
    known = {"fused": _of_fused, "scan": _of_scan, "parallel": _of_parallel, "pallas": _of_pallas}
    of = known.get(implementation)
    if of is None or not all(isinstance(n, int) for leaf in jax.tree.leaves((xs, carry)) for n in leaf.shape):
        return None
    T = jax.tree.leaves(xs)[0].shape[0]
    xs = one_window(xs, window)
    steps = jax.tree.leaves(xs)[0].shape[0]
    windows = -(-T // steps) if steps else 0
    forward, gradients = of(cell, params, carry, xs, steps)
    if windows > 1:  # the carries between them, and the weights' gradients, which go from one to the next
        gradients += windows * size_in_bytes(carry) + size_in_bytes(params)
    return MemoryEstimate(forward, gradients)


def one_window(xs: Any, window: int | None) -> Any:
    """The shapes of what is walked at a time."""
    if window is None:
        return xs
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((min(window, a.shape[0]), *a.shape[1:]), a.dtype), xs)


def _of_fused(cell: Any, params: Params, carry: Carry, xs: Any, steps: int) -> tuple[int, int]:
    plan = tiling_of(cell, params, carry, xs)
    x = jax.eval_shape(one_step, xs)
    u = jax.eval_shape(cell.project, params, x)
    z = jax.eval_shape(cell.recur, params, carry, u)
    linear = jax.eval_shape(lambda c, z: jax.linearize(partial(cell.update, params), c, z)[1], carry, z)
    projected = size_in_bytes(u) * (plan.chunk or steps)
    if plan.tangent_chunk is None:  # the factors come to lie where z was
        tangents = max(size_in_bytes(linear), size_in_bytes(z)) * steps
    else:
        tangents = (size_in_bytes(linear) + size_in_bytes(z)) * plan.tangent_chunk + size_in_bytes(params)
    return projected, size_in_bytes((carry, z)) * steps + max(projected, tangents)


def _of_scan(cell: Any, params: Params, carry: Carry, xs: Any, steps: int) -> tuple[int, int]:
    x = jax.eval_shape(one_step, xs)
    linear = jax.eval_shape(lambda p, c, x: jax.linearize(cell.step, p, c, x)[1], params, carry, x)
    # The inputs are arguments; weights, also transposed, are the same at all steps and none of a row.
    first = jax.tree.leaves(x)[0]
    rows = first.shape[: first.ndim - event_ndim(cell)]
    kept = [leaf for leaf in jax.tree.leaves(linear) if leaf.shape[: len(rows)] == rows]
    if not rows:
        weights = [leaf.shape for leaf in jax.tree.leaves(params)]
        kept = [leaf for leaf in kept if leaf.shape not in weights and leaf.shape[::-1] not in weights]
    return 0, max(size_in_bytes(kept) - size_in_bytes(x), 0) * steps


def _of_parallel(cell: Any, params: Params, carry: Carry, xs: Any, steps: int) -> tuple[int, int]:
    """Gates, the two coefficients, and the levels of the tree, which together are as large once more."""
    pair = size_in_bytes(jax.eval_shape(cell.coefficients, params, xs))
    return 6 * pair, 8 * pair


def _of_pallas(cell: Any, params: Params, carry: Carry, xs: Any, steps: int) -> tuple[int, int]:
    """The projected inputs, what is carried beside h; then h, four gates and the gradient of z as well."""
    u = size_in_bytes(jax.eval_shape(cell.project, params, xs))
    h, *rest = (size_in_bytes(state) * steps for state in jax.tree.leaves(carry))
    dtype = jax.tree.leaves(carry)[0].dtype
    gate = h // dtype.itemsize * state_dtype(dtype).itemsize
    return u + sum(rest), u + sum(rest) + h + 4 * gate + 4 * h


def _size(count: int) -> str:
    """
    >>> _size(999), _size(17_100_000)
    ('1.0 kB', '17.1 MB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
