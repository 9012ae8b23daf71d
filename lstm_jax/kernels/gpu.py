"""The engine for Hopper GPUs: arrays laid out for the kernels, and back.

A kernel sees units before rows, the units of a block together, and whole slices of the batch. What
fills them up is zero: such a unit's gates are ½, ½, 0, ½, so that its c and h stay 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.kernels import gpu_names
from lstm_jax.kernels.engine import Engine, Inputs, Saved, States, Tangents, Walk
from lstm_jax.kernels.gpu_backward import backward as walk_back
from lstm_jax.kernels.gpu_forward import forward as walk
from lstm_jax.kernels.gpu_plan import Plan, plan
from lstm_jax.notation import Array


def of_units(a: Array, to: Plan) -> Array:
    """(..., B, H) as (..., slices, H, R)."""
    *lead, B, H = a.shape
    fill = [(0, 0)] * len(lead) + [(0, to.slices * to.rows - B), (0, to.width - H)]
    a = jnp.pad(a, fill).reshape(*lead, to.slices, to.rows, to.width)
    return jnp.swapaxes(a, -1, -2)


def from_units(a: Array, B: int, H: int) -> Array:
    """The way back."""
    *lead, slices, width, rows = a.shape
    return jnp.swapaxes(a, -1, -2).reshape(*lead, slices * rows, width)[..., :B, :H]


def of_blocks(a: Array, to: Plan) -> Array:
    """(..., H) as (..., blocks, U)."""
    *lead, H = a.shape
    return jnp.pad(a, [(0, 0)] * len(lead) + [(0, to.width - H)]).reshape(*lead, to.blocks, to.units)


def of_gates(a: Array, to: Plan) -> Array:
    """(..., 4H) as (..., blocks, 4U)."""
    a = of_blocks(a.reshape(*a.shape[:-1], 4, a.shape[-1] // 4), to)
    return jnp.swapaxes(a, -3, -2).reshape(*a.shape[:-3], to.blocks, 4 * to.units)


def of_gate_rows(a: Array, to: Plan) -> Array:
    """(T, B, 4H) as (T, slices, blocks, 4U, R)."""
    T, B, wide = a.shape
    a = jnp.pad(a, [(0, 0), (0, to.slices * to.rows - B), (0, 0)]).reshape(T, to.slices, to.rows, wide)
    return jnp.moveaxis(of_gates(a, to), 2, -1)


def from_gate_rows(a: Array, B: int, H: int) -> Array:
    """The way back."""
    T, slices, blocks, wide, rows = a.shape
    a = a.reshape(T, slices, blocks, 4, wide // 4, rows)
    return a.transpose(0, 1, 5, 3, 2, 4).reshape(T, slices * rows, 4, -1)[:, :B, :, :H].reshape(T, B, 4 * H)


def of_weights(w_hh: Array, to: Plan) -> Array:
    """(H, 4H) as (blocks, 4U, H)."""
    w = jnp.pad(w_hh, [(0, to.width - w_hh.shape[0]), (0, 0)])
    return of_gates(w, to).transpose(1, 2, 0)


def of_rows(valid: Array | None, to: Plan) -> Array | None:
    """(T, B) as (T, slices, R), a number for a flag; rows that fill up are invalid."""
    if valid is None:
        return None
    T, B = valid.shape
    fill = [(0, 0), (0, to.slices * to.rows - B)]
    return jnp.pad(valid.astype(jnp.float32), fill).reshape(T, to.slices, to.rows)


#: Of each argument and result, the axis of the rows; NONE where there are no rows.
NONE = -1
INPUTS = Inputs(u=1, w_hh=NONE, bias=NONE, h0=0, c0=0, valid=1)
SAVED = Saved(w_hh=NONE, gates=1, cs=1, c0=0, valid=1)
STATES = States(hs=1, cs=1)
WALK = Walk(hs=1, cs=1, gates=1)
TANGENTS = Tangents(zs=1, h0=0, c0=0)


def each(of: Callable[[Array, int], Array], arrays: Any, axes: Any) -> Any:
    """``of`` each array that has rows, and their axis; the others as they are."""

    def one(a: Array | None, axis: int) -> Array | None:
        return a if a is None or axis == NONE else of(a, axis)

    return jax.tree.map(one, arrays, axes, is_leaf=lambda a: a is None)


def in_launches(walk: Callable[..., Any], B: int, rows: int, args: Any, axes: Any, out_axes: Any) -> Any:
    """``walk`` with so many of B rows at a time; what fills up the last ones is zero.

    Blocks of two launches side by side would wait for each other, without room for all: in a loop, one
    launch has ended before the next begins. And the loop has one kernel for all.
    """
    count = -(-B // rows)
    if count == 1:
        return walk(*args)

    def filled(a: Array, axis: int) -> Array:
        return jnp.pad(a, [(0, count * rows - B if n == axis else 0) for n in range(a.ndim)])

    def launch(begin: Array) -> Any:
        return walk(*each(lambda a, axis: lax.dynamic_slice_in_dim(a, begin, rows, axis), whole, axes))

    def joined(a: Array, axis: int) -> Array:
        a = jnp.moveaxis(a, 0, axis)
        a = a.reshape(*a.shape[:axis], count * rows, *a.shape[axis + 2 :])
        return lax.slice_in_dim(a, 0, B, axis=axis)

    whole = each(filled, args, axes)
    return each(joined, lax.map(launch, jnp.arange(0, count * rows, rows)), out_axes)


def forward(inputs: Inputs, save: bool, *, to: Plan | None = None, **how: Any) -> Walk:
    """The walk, as chosen, or by another plan ``to`` and with other options of the kernel's."""
    (T, B), H = inputs.u.shape[:2], inputs.h0.shape[-1]
    to = to or planned(T, B, H, inputs.u.dtype)
    call = partial(forward_launch, save=save, to=to, **how)
    return in_launches(call, B, to.launch, (inputs,), (INPUTS,), WALK)


def forward_launch(inputs: Inputs, *, save: bool, to: Plan, **how: Any) -> Walk:
    """No more rows than a launch has room for."""
    u, w_hh, bias, h0, c0, valid = inputs
    B, H = h0.shape
    if bias is None:
        bias = jnp.zeros(4 * H, jnp.float32)
    biases = of_gates(bias, to)[..., None]
    outs = walk(
        of_gate_rows(u, to),
        of_weights(w_hh, to),
        jnp.broadcast_to(biases, (*biases.shape[:-1], to.rows)),
        of_units(h0, to),
        of_units(c0, to).reshape(to.slices, to.blocks, to.units, to.rows),
        of_rows(valid, to),
        to,
        save=save,
        **how,
    )
    hs, cs = (from_units(a, B, H) for a in outs[:2])
    return Walk(hs, cs, from_gate_rows(outs[2], B, H) if save else None)


def backward(saved: Saved, wanted: States, *, to: Plan | None = None, **how: Any) -> Tangents:
    """The walk back, likewise."""
    T, B, H = saved.cs.shape
    to = to or planned(T, B, H, saved.w_hh.dtype)
    call = partial(backward_launch, to=to, **how)
    return in_launches(call, B, to.launch, (saved, wanted), (SAVED, STATES), TANGENTS)


def backward_launch(saved: Saved, wanted: States, *, to: Plan, **how: Any) -> Tangents:
    """The same of a launch."""
    w_hh, gates, cs, c0, valid = saved
    _, B, H = cs.shape
    zs, h0_bar, c0_bar = walk_back(
        jnp.swapaxes(of_weights(w_hh, to), 1, 2),
        of_gate_rows(gates, to),
        of_units(cs, to),
        of_units(c0, to),
        of_rows(valid, to),
        of_units(wanted.hs, to),
        of_units(wanted.cs, to),
        to,
        **how,
    )
    h0_bar, c0_bar = (from_units(a, B, H) for a in (h0_bar, c0_bar))
    return Tangents(from_gate_rows(zs, B, H), h0_bar.astype(w_hh.dtype), c0_bar)


def planned(T: int, B: int, H: int, dtype: Any) -> Plan:
    """The plan of a walk whose obstacle was asked for."""
    found = plan(T, B, H, dtype)
    assert isinstance(found, Plan), found
    return found


def obstacle(T: int, B: int, H: int, dtype: Any) -> str | None:
    """Why the device's kernels cannot take these sizes, or the device is none for them."""
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    if capability != "9.0":
        return f"the kernels are for Hopper GPUs (compute capability 9.0), and this is {device.device_kind}"
    found = plan(T, B, H, dtype)
    if isinstance(found, str):
        return found
    if found.form == "grid" and found.blocks * found.slices > device.core_count:
        return (
            f"{found.blocks * found.slices} blocks wait for each other, and the GPU runs {device.core_count}"
        )
    return None


def interpreted_obstacle(T: int, B: int, H: int, dtype: Any) -> str | None:
    """The same of the interpreter."""
    if gpu_names.INTERPRETER is None:
        return "Pallas interprets kernels for GPUs since jax 0.12"
    found = plan(T, B, H, dtype)
    if isinstance(found, str):
        return found
    if found.blocks > 1:
        return f"H={H} needs {found.blocks} blocks, and Pallas' interpreter knows no memory that blocks share"
    return None


ENGINE = Engine("Mosaic GPU", obstacle, forward, backward)


def interpreted(walk: Any) -> Any:
    """A walk in the interpreter, which is asked for when it is called: not every jax has one."""

    def call(*args: Any) -> Any:
        return walk(*args, interpret=gpu_names.interpreter())

    return call


INTERPRETED = Engine(
    "Mosaic GPU, interpreted",
    interpreted_obstacle,
    interpreted(forward),
    interpreted(backward),
    effectful=True,  # its threads go through callbacks
)
