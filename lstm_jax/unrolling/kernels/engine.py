"""The interface of a kernel engine: a forward and a backward kernel for one cell on one device.

Kernels are plain functions of arrays. ``kernels.primitive`` adds derivatives and vmap, ``kernels.select``
adds reversal and batch axes, and ``kernels.reference`` implements the same functions in plain JAX.

Arrays have T time steps first and then one batch axis of B rows. The columns of a unit
(``kernels.formulas``) lie side by side on the last axis: X H of them with input weights, R H with
recurrent weights, 4H in total. There are two dtypes. *Compute* is the dtype of products, of h and of the
outputs. *State* is float32 or wider, and is the dtype of c, of the gates and of all sums.

The forward kernel computes z_t = u_t + h_{t-1} W + b, the gates and the states. The backward kernel runs
from the last step to the first. A bar marks a cotangent. The cotangents of the states start at 0. At each
step, the kernel

1. adds the cotangents of the step's output states;
2. computes z̄_t from them;
3. computes the cotangents of the states before the step: h̄ is z̄ Wᵀ over the columns with recurrent
   weights.

At an invalid step the states, or their cotangents, pass through unchanged and z̄ is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lstm_jax._types import Array
from lstm_jax.unrolling.kernels.formulas import CellFormula

#: An array. The same records also hold array types, batch axes and block specs.
Leaf: TypeAlias = Any


class Inputs(NamedTuple):
    """Arguments of the forward kernel."""

    u: Leaf  # (T, B, X H) compute: the projected inputs, without the bias
    w_hh: Leaf  # (H, R H) compute
    bias: Leaf | None  # (4H,) state
    carry: Leaf  # the states before the first step, (B, H) each: h compute, c state
    valid: Leaf | None  # (T, B) bool; None if all steps are valid


class ForwardOutput(NamedTuple):
    """Results of the forward kernel."""

    states: Leaf  # after each step, (T, B, H) each
    gates: Leaf | None  # (T, B, 4H) state, if saved; any finite number at invalid steps


class Residuals(NamedTuple):
    """What the forward pass saves for the backward kernel."""

    w_hh: Leaf  # (H, R H) compute
    gates: Leaf  # (T, B, 4H) state
    cell_states: Leaf  # (T, B, H) after each step: c of an LSTM, h of a GRU
    initial: Leaf  # (B, H) the cell state before the first step
    valid: Leaf | None  # (T, B) bool


class Tangents(NamedTuple):
    """Tangents of z_t, without the part that comes through h, and of the carry.

    The backward kernel returns the cotangents of both in the same record.
    """

    zs: Leaf  # (T, B, 4H) compute
    carry: Leaf  # (B, H) each, in its dtype


#: The batch axis of each argument and of each result, by operation; NO_BATCH if it has none.
NO_BATCH = -1
_RESIDUALS_AXES = Residuals(w_hh=NO_BATCH, gates=1, cell_states=1, initial=0, valid=1)
_TANGENTS_AXES = Tangents(zs=1, carry=0)
BATCH_AXES: dict[str, tuple[Any, Any]] = {
    "forward": (
        (Inputs(u=1, w_hh=NO_BATCH, bias=NO_BATCH, carry=0, valid=1),),
        ForwardOutput(states=1, gates=1),
    ),
    "tangents": ((_RESIDUALS_AXES, _TANGENTS_AXES), 1),
    "backward": ((_RESIDUALS_AXES, 1), _TANGENTS_AXES),
}


@dataclass(frozen=True, eq=False)
class Engine:
    """Two kernels for one device. They are called while tracing, with static T, B, H of 1 or more."""

    formula: CellFormula
    name: str
    #: Given T, B, H and the compute dtype: why the kernels cannot run, or None.
    unsupported_reason: Callable[[int, int, int, Any], str | None]
    forward: Callable[[Inputs, bool], ForwardOutput]  # the second argument: whether to save the gates
    backward: Callable[[Residuals, Leaf], Tangents]  # the second: cotangents of ForwardOutput.states
    effectful: bool = False  # the interpreter has side effects, which jax.checkpoint rejects


def residuals_of(inputs: Inputs, output: ForwardOutput) -> Residuals:
    """Residuals for the backward kernel, from a forward pass that saved its gates."""
    return Residuals(inputs.w_hh, output.gates, output.states[-1], inputs.carry[-1], inputs.valid)


def previous_states(initial: Array, states: Array) -> Array:
    """The state before each step, given the initial state and the state after each step."""
    return jnp.concatenate([initial[None], states])[:-1]


def type_like(a: Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """The type of a kernel's result, with the varying axes that ``a`` has inside ``shard_map``."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(a).manual_axis_type)
