"""What a kernel engine is: two walks over time, for one kind of cell on one device.

An engine's kernels are plain functions of arrays. They know nothing of derivatives, of vmap or of
directions: ``kernels.primitive`` does, and it is there that a kernel is taken for what
it computes; ``kernels.reference`` computes the same in plain JAX. Shapes have T steps
first and one axis of B rows; a unit's columns (``kernels.formulas``) lie side by side on the
last axis, X H of them where the input is heard, R H where h is, 4H in all. Of the two dtypes, *compute*
is that of the products, of h and of the outputs, *state* is float32 or wider: c, the gates, all sums.

Forward walks: z_t = u_t + h_{t-1} W + b, gates, states. Backward walks from the last step to the first.
Cotangents have a bar; those of the states begin at 0, and at each step first take in what is wanted of
the states after it. Then they become z̄_t, and those of the states before the step, where h̄ is z̄ Wᵀ by
the columns that hear h.

An invalid step hands the states, or their cotangents, on as they are; its z̄ is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lstm_jax._types import Array
from lstm_jax.unrolling.kernels.formulas import Kind

#: An array. The same records also hold what is said of arrays: their types, axes of rows, blocks.
Leaf: TypeAlias = Any


class Inputs(NamedTuple):
    """What forward reads."""

    u: Leaf  # (T, B, X H) compute: the projected inputs, without the bias
    w_hh: Leaf  # (H, R H) compute
    bias: Leaf | None  # (4H,) state
    carry: Leaf  # the states before the first step, (B, H) each: h compute, c state
    valid: Leaf | None  # (T, B) bool; None where all steps are


class Walk(NamedTuple):
    """What forward gives."""

    states: Leaf  # after each step, (T, B, H) each
    gates: Leaf | None  # (T, B, 4H) state, where saved; any finite number at invalid steps


class Saved(NamedTuple):
    """What backward reads beside the cotangents."""

    w_hh: Leaf  # (H, R H) compute
    gates: Leaf  # (T, B, 4H) state
    memory: Leaf  # (T, B, H) after each step
    first: Leaf  # (B, H) the memory before the first
    valid: Leaf | None  # (T, B) bool


class Tangents(NamedTuple):
    """Tangents of z_t, as far as they do not come by h, and of the carry; or backward's cotangents."""

    zs: Leaf  # (T, B, 4H) compute
    carry: Leaf  # (B, H) each, in its dtype


#: Of the arguments and the results of each walk, the axis of the rows; NO_ROWS where there are none.
NO_ROWS = -1
_SAVED_ROWS = Saved(w_hh=NO_ROWS, gates=1, memory=1, first=0, valid=1)
_TANGENTS_ROWS = Tangents(zs=1, carry=0)
ROWS: dict[str, tuple[Any, Any]] = {
    "forward": ((Inputs(u=1, w_hh=NO_ROWS, bias=NO_ROWS, carry=0, valid=1),), Walk(states=1, gates=1)),
    "tangents": ((_SAVED_ROWS, _TANGENTS_ROWS), 1),
    "backward": ((_SAVED_ROWS, 1), _TANGENTS_ROWS),
}


@dataclass(frozen=True, eq=False)
class Engine:
    """Two kernels for one device, called while tracing. All of T, B, H are 1 or more, and known."""

    kind: Kind
    name: str
    unsupported_reason: Callable[[int, int, int, Any], str | None]  # T, B, H, compute: why it cannot, or None
    forward: Callable[[Inputs, bool], Walk]  # the second argument: whether to save the gates
    backward: Callable[[Saved, Leaf], Tangents]  # the second: what is wanted of Walk.states
    effectful: bool = False  # of an interpreter that has side effects; the remat of JAX does not take it


def saved_of(inputs: Inputs, walk: Walk) -> Saved:
    """What backward reads after a forward that saved."""
    return Saved(inputs.w_hh, walk.gates, walk.states[-1], inputs.carry[-1], inputs.valid)


def read(first: Array, after: Array) -> Array:
    """What each step read, of what was there after each."""
    return jnp.concatenate([first[None], after])[:-1]


def type_like(a: Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """A type of a kernel's result, which inside ``shard_map`` differs between devices as ``a`` does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(a).manual_axis_type)
