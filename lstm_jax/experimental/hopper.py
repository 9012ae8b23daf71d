"""The engine for Hopper GPUs: arrays laid out for the kernels, and back.

A kernel sees units before rows, the units of a block together, and whole slices of the batch. What
fills them up is zero: such a unit's gates are ½, ½, 0, ½ (a GRU's ½, ½, 0, 0), so that its states stay 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax._types import Array
from lstm_jax.experimental import hopper_names
from lstm_jax.experimental.hopper_backward import backward as walk_back
from lstm_jax.experimental.hopper_forward import forward as walk
from lstm_jax.experimental.hopper_plan import Plan, plan
from lstm_jax.unrolling.kernels.engine import NO_ROWS, ROWS, Engine, Inputs, Saved, Tangents, Walk
from lstm_jax.unrolling.kernels.formulas import KINDS, Kind


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


def of_gates(a: Array, to: Plan, count: int = 4) -> Array:
    """(..., X H) as (..., blocks, X U); X columns of a unit are there."""
    a = of_blocks(a.reshape(*a.shape[:-1], count, a.shape[-1] // count), to)
    return jnp.swapaxes(a, -3, -2).reshape(*a.shape[:-3], to.blocks, count * to.units)


def of_gate_rows(a: Array, to: Plan, count: int = 4) -> Array:
    """(T, B, X H) as (T, slices, blocks, X U, R)."""
    T, B, wide = a.shape
    a = jnp.pad(a, [(0, 0), (0, to.slices * to.rows - B), (0, 0)]).reshape(T, to.slices, to.rows, wide)
    return jnp.moveaxis(of_gates(a, to, count), 2, -1)


def from_gate_rows(a: Array, B: int, H: int) -> Array:
    """The way back."""
    T, slices, blocks, wide, rows = a.shape
    a = a.reshape(T, slices, blocks, 4, wide // 4, rows)
    return a.transpose(0, 1, 5, 3, 2, 4).reshape(T, slices * rows, 4, -1)[:, :B, :, :H].reshape(T, B, 4 * H)


def of_weights(w_hh: Array, to: Plan) -> Array:
    """(H, X H) as (blocks, G, H): X U rows, filled up for the matrix unit."""
    assert w_hh.shape[1] == to.hear * w_hh.shape[0], (w_hh.shape, to)
    w = jnp.pad(w_hh, [(0, to.width - w_hh.shape[0]), (0, 0)])
    w = of_gates(w, to, to.hear).transpose(1, 2, 0)
    return jnp.pad(w, [(0, 0), (0, to.gate_rows - w.shape[1]), (0, 0)])


def of_rows(valid: Array | None, to: Plan) -> Array | None:
    """(T, B) as (T, slices, R), a number for a flag; rows that fill up are invalid."""
    if valid is None:
        return None
    T, B = valid.shape
    fill = [(0, 0), (0, to.slices * to.rows - B)]
    return jnp.pad(valid.astype(jnp.float32), fill).reshape(T, to.slices, to.rows)


def each(of: Callable[[Array, int], Array], axes: Any, arrays: Any) -> Any:
    """``of`` each array that has rows, and their axis; the others as they are."""

    def below(axis: int, tree: Any) -> Any:
        return tree if axis == NO_ROWS else jax.tree.map(lambda a: of(a, axis), tree)

    return jax.tree.map(below, axes, arrays)


def in_launches(walk: Callable[..., Any], B: int, rows: int, axes: Any, out_axes: Any) -> Callable[..., Any]:
    """``walk`` with so many of B rows at a time; what fills up the last ones is zero.

    Blocks of two launches side by side would wait for each other, without room for all: in a loop, one
    launch has ended before the next begins. And the loop has one kernel for all.
    """
    count = -(-B // rows)
    if count == 1:
        return walk

    def filled(a: Array, axis: int) -> Array:
        return jnp.pad(a, [(0, count * rows - B if n == axis else 0) for n in range(a.ndim)])

    def joined(a: Array, axis: int) -> Array:
        a = jnp.moveaxis(a, 0, axis)
        a = a.reshape(*a.shape[:axis], count * rows, *a.shape[axis + 2 :])
        return lax.slice_in_dim(a, 0, B, axis=axis)

    def call(*args: Any) -> Any:
        whole = each(filled, axes, args)

        def launch(begin: Array) -> Any:
            return walk(*each(lambda a, axis: lax.dynamic_slice_in_dim(a, begin, rows, axis), axes, whole))

        return each(joined, out_axes, lax.map(launch, jnp.arange(0, count * rows, rows)))

    return call


def forward(kind: Kind, inputs: Inputs, save: bool, *, to: Plan | None = None, **how: Any) -> Walk:
    """The walk, as chosen, or by another plan ``to`` and with other options of the kernel's."""
    B, H = inputs.u.shape[1], inputs.w_hh.shape[0]
    to = to or planned(kind, B, H, inputs.u.dtype)
    call = partial(forward_launch, kind, save=save, to=to, **how)
    return in_launches(call, B, to.launch, *ROWS["forward"])(inputs)


def forward_launch(kind: Kind, inputs: Inputs, *, save: bool, to: Plan, **how: Any) -> Walk:
    """No more rows than a launch has room for."""
    u, w_hh, bias, carry, valid = inputs
    B, H = carry[0].shape
    if bias is None:
        bias = jnp.zeros(4 * H, jnp.float32)
    biases = of_gates(bias, to)[..., None]
    outs = walk(
        kind,
        of_gate_rows(u, to, len(kind.of_x)),
        of_weights(w_hh, to),
        jnp.broadcast_to(biases, (*biases.shape[:-1], to.rows)),
        tuple(of_units(a, to) for a in carry),
        of_rows(valid, to),
        to,
        save=save,
        **how,
    )
    states = tuple(from_units(a, B, H) for a in outs[: kind.count])
    return Walk(states, from_gate_rows(outs[-1], B, H) if save else None)


def backward(kind: Kind, saved: Saved, wanted: Any, *, to: Plan | None = None, **how: Any) -> Tangents:
    """The walk back, likewise."""
    _, B, H = saved.memory.shape
    to = to or planned(kind, B, H, saved.w_hh.dtype)
    call = partial(backward_launch, kind, to=to, **how)
    return in_launches(call, B, to.launch, *ROWS["backward"])(saved, wanted)


def backward_launch(kind: Kind, saved: Saved, wanted: Any, *, to: Plan, **how: Any) -> Tangents:
    """The same of a launch."""
    w_hh, gates, memory, first, valid = saved
    _, B, H = memory.shape
    zs, *carry = walk_back(
        kind,
        jnp.swapaxes(of_weights(w_hh, to), 1, 2),
        of_gate_rows(gates, to),
        of_units(memory, to),
        of_units(first, to),
        of_rows(valid, to),
        tuple(of_units(a, to) for a in wanted),
        to,
        **how,
    )
    found = (from_units(a, B, H).astype(like.dtype) for a, like in zip(carry, wanted, strict=True))
    return Tangents(from_gate_rows(zs, B, H), tuple(found))


def plan_here(kind: Kind, B: int, H: int, dtype: Any, **options: Any) -> Plan | str:
    """The plan for the device, where it is a GPU."""
    device = jax.devices()[0]
    there = {"sms": device.core_count} if device.platform == "gpu" else {}
    return plan(B, H, dtype, len(kind.of_h), **there, **options)


def planned(kind: Kind, B: int, H: int, dtype: Any) -> Plan:
    """The plan of a walk whose obstacle was asked for."""
    found = plan_here(kind, B, H, dtype)
    assert isinstance(found, Plan), found
    return found


def unsupported_reason(kind: Kind, T: int, B: int, H: int, dtype: Any) -> str | None:
    """Why the device's kernels cannot take these sizes, or the device is none for them."""
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    if capability != "9.0":
        return f"the kernels are for Hopper GPUs (compute capability 9.0), and this is {device.device_kind}"
    found = plan_here(kind, B, H, dtype)
    return found if isinstance(found, str) else None


def interpreted_unsupported(kind: Kind, T: int, B: int, H: int, dtype: Any) -> str | None:
    """The same of the interpreter."""
    if hopper_names.INTERPRETER is None:
        return "Pallas interprets kernels for GPUs since jax 0.12"
    found = plan_here(kind, B, H, dtype)
    if isinstance(found, str):
        return found
    if found.blocks > 1:
        return f"H={H} needs {found.blocks} blocks, and Pallas' interpreter knows no memory that blocks share"
    return None


def interpreted(walk: Any) -> Any:
    """A walk in the interpreter, which is asked for when it is called: not every jax has one."""

    def call(*args: Any) -> Any:
        return walk(*args, interpret=hopper_names.interpreter())

    return call


ENGINES = {
    kind: Engine(
        kind, "Mosaic GPU", partial(unsupported_reason, kind), partial(forward, kind), partial(backward, kind)
    )
    for kind in KINDS
}
INTERPRETED = {
    kind: Engine(
        kind,
        "Mosaic GPU, interpreted",
        partial(interpreted_unsupported, kind),
        interpreted(partial(forward, kind)),
        interpreted(partial(backward, kind)),
        effectful=True,  # its threads go through callbacks
    )
    for kind in KINDS
}
