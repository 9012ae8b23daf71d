"""What a kernel engine is: two walks over time, for one device. And the reference, in plain JAX.

An engine's kernels are plain functions of arrays. They know nothing of derivatives, of vmap or of
directions: :mod:`lstm_jax.kernels.recurrence` does, and it is there that a kernel is taken for what
it computes. Shapes have T steps first and one axis of B rows; gates lie side by side in the order
i, f, g, o. Of the two dtypes, *compute* is that of the products, of h and of the outputs, *state*
is float32 or wider: c, the gates, and all sums.

Forward walks, with z_t = u_t + h_{t-1} W + b,

    i, f, g, o = σ(z_i), σ(z_f), tanh(z_g), σ(z_o);  c_t = f c_{t-1} + i g;  h_t = o tanh(c_t)

Backward walks from the last step to the first. Cotangents have a bar; h̄ and c̄ begin at 0, and at
each step first take in what is wanted of h_t and c_t:

    c̄ += h̄ o (1 - tanh²(c_t));  z̄_i, z̄_f, z̄_g = c̄ g i (1-i), c̄ c_{t-1} f (1-f), c̄ i (1-g²)
    z̄_o = h̄ tanh(c_t) o (1-o);  h̄ = z̄ Wᵀ;  c̄ = c̄ f

An invalid step hands h and c, or h̄ and c̄, on as they are; its z̄ is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lstm_jax.cells.lstm import LSTM, LSTMGates, LSTMParams, gates_of, pointwise_tangent
from lstm_jax.loop import Flags, walk
from lstm_jax.notation import Array

#: An array. The same records also hold what is said of arrays: their types, axes of rows, blocks.
Leaf: TypeAlias = Any


class Inputs(NamedTuple):
    """What forward reads."""

    u: Leaf  # (T, B, 4H) compute: the projected inputs, without the bias
    w_hh: Leaf  # (H, 4H) compute
    bias: Leaf | None  # (4H,) state
    h0: Leaf  # (B, H) compute
    c0: Leaf  # (B, H) state
    valid: Leaf | None  # (T, B) bool; None where all steps are


class Walk(NamedTuple):
    """What forward gives."""

    hs: Leaf  # (T, B, H) compute: h after each step
    cs: Leaf  # (T, B, H) state: c after each step
    gates: Leaf | None  # (T, B, 4H) state: i, f, g, o, where saved; any finite number at invalid steps


class Saved(NamedTuple):
    """What backward reads beside the cotangents."""

    w_hh: Leaf  # (H, 4H) compute
    gates: Leaf  # (T, B, 4H) state
    cs: Leaf  # (T, B, H) state
    c0: Leaf  # (B, H) state
    valid: Leaf | None  # (T, B) bool


class States(NamedTuple):
    """Tangents of h_t and c_t; or cotangents, which backward reads."""

    hs: Leaf  # (T, B, H) compute
    cs: Leaf  # (T, B, H) state


class Tangents(NamedTuple):
    """Tangents of z_t (as far as they do not come by h), h_0, c_0; or cotangents, which backward gives."""

    zs: Leaf  # (T, B, 4H) compute
    h0: Leaf  # (B, H) compute
    c0: Leaf  # (B, H) state


@dataclass(frozen=True, eq=False)
class Engine:
    """Two kernels for one device, called while tracing. All of T, B, H are 1 or more, and known."""

    name: str
    obstacle: Callable[[int, int, int, Any], str | None]  # T, B, H, compute: why it cannot, or None
    forward: Callable[[Inputs, bool], Walk]  # the second argument: whether to save the gates
    backward: Callable[[Saved, States], Tangents]
    effectful: bool = False  # of an interpreter that has side effects; the remat of JAX does not take it


#: For its ``recur`` and ``update``, which look at no size.
CELL = LSTM(1, 1)


def forward(inputs: Inputs, save: bool) -> Walk:
    """The definition: ``recur`` and ``update`` of the cell, in the one time loop."""
    u, w_hh, bias, h0, c0, valid = inputs
    params = LSTMParams(w_hh, w_hh, bias)

    def step(carry: Any, u: Array) -> tuple[Any, None, Array | None]:
        z = CELL.recur(params, carry, u)
        return CELL.update(params, carry, z)[0], None, z if save else None

    walked = walk(step, None, (h0, c0), u, Flags(valid), reverse=False, carries=True)
    states: Any = walked.carries
    return Walk(states[0], states[1], jnp.concatenate(gates_of(walked.saved), axis=-1) if save else None)


def tangents(saved: Saved, along: Tangents) -> States:
    """Forward's tangents given those of z that come from elsewhere than h: dz_t = e_t + dh_{t-1} W.

    Linear in ``along``, and always this plain loop, of which reverse mode takes the transpose alone.
    """
    w_hh, gates, cs, c0, valid = saved
    params = LSTMParams(w_hh, w_hh)

    def step(carry: Any, at: Any) -> tuple[Any, None, None]:
        e, gates, c, c_t = at
        dz = CELL.recur(params, carry, e)
        dh, dc = pointwise_tangent(four(gates), c, jnp.tanh(c_t), carry[1], dz)
        return (dh.astype(e.dtype), dc), None, None

    steps = along.zs, gates, read(c0, cs), cs
    walked = walk(step, None, (along.h0, along.c0), steps, Flags(valid), reverse=False, carries=True)
    states: Any = walked.carries
    return States(*states)


def backward(saved: Saved, wanted: States) -> Tangents:
    """The transpose of :func:`tangents`."""
    w_hh, gates, _, c0, _ = saved
    zeros = Tangents(jnp.zeros_like(gates, w_hh.dtype), jnp.zeros_like(c0, w_hh.dtype), jnp.zeros_like(c0))
    return jax.vjp(partial(tangents, saved), zeros)[1](wanted)[0]


REFERENCE = Engine("plain JAX", lambda T, B, H, dtype: None, forward, backward)


def read(first: Array, after: Array) -> Array:
    """What each step read, of what was there after each."""
    return jnp.concatenate([first[None], after])[:-1]


def type_like(a: Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """A type of a kernel's result, which inside ``shard_map`` differs between devices as ``a`` does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(a).manual_axis_type)


def four(gates: Array) -> LSTMGates:
    """The gates that lie side by side."""
    return LSTMGates(*jnp.split(gates, 4, axis=-1))
