"""The engine for Hopper GPUs: converts arrays to the layout of the kernels and back.

A kernel takes arrays with units before batch rows, the units of a block contiguous, and whole slices of the
batch. Padding is zero. The gates of a padded unit are then ½, ½, 0, ½ (for a GRU ½, ½, 0, 0), so its states
stay 0.
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
from lstm_jax.experimental.hopper_backward import backward as backward_kernel
from lstm_jax.experimental.hopper_forward import forward as forward_kernel
from lstm_jax.experimental.hopper_plan import Plan, make_plan
from lstm_jax.unrolling.kernels.engine import (
    BATCH_AXES,
    NO_BATCH,
    Engine,
    ForwardOutput,
    Inputs,
    Residuals,
    Tangents,
)
from lstm_jax.unrolling.kernels.formulas import FORMULAS, CellFormula


def pack_states(a: Array, plan: Plan) -> Array:
    """Convert (..., B, H) to (..., slices, H, R)."""
    *lead, B, H = a.shape
    padding = [(0, 0)] * len(lead) + [(0, plan.launch_rows - B), (0, plan.padded_H - H)]
    a = jnp.pad(a, padding).reshape(*lead, plan.slices, plan.rows, plan.padded_H)
    return jnp.swapaxes(a, -1, -2)


def unpack_states(a: Array, B: int, H: int) -> Array:
    """The inverse of :func:`pack_states`."""
    *lead, slices, padded_H, rows = a.shape
    return jnp.swapaxes(a, -1, -2).reshape(*lead, slices * rows, padded_H)[..., :B, :H]


def pack_columns(a: Array, plan: Plan, num_columns: int = 4) -> Array:
    """Convert (..., X H) to (..., blocks, X U), where X is the number of columns per unit."""
    *lead, width = a.shape
    H = width // num_columns
    a = a.reshape(*lead, num_columns, H)
    a = jnp.pad(a, [(0, 0)] * (len(lead) + 1) + [(0, plan.padded_H - H)])
    a = jnp.swapaxes(a.reshape(*lead, num_columns, plan.blocks, plan.units), -3, -2)
    return a.reshape(*lead, plan.blocks, num_columns * plan.units)


def pack_gates(a: Array, plan: Plan, num_columns: int = 4) -> Array:
    """Convert (T, B, X H) to (T, slices, blocks, X U, R)."""
    T, B, width = a.shape
    a = jnp.pad(a, [(0, 0), (0, plan.launch_rows - B), (0, 0)]).reshape(T, plan.slices, plan.rows, width)
    return jnp.moveaxis(pack_columns(a, plan, num_columns), 2, -1)


def unpack_gates(a: Array, B: int, H: int) -> Array:
    """The inverse of :func:`pack_gates` for four columns."""
    T, slices, blocks, width, rows = a.shape
    a = a.reshape(T, slices, blocks, 4, width // 4, rows)
    return a.transpose(0, 1, 5, 3, 2, 4).reshape(T, slices * rows, 4, -1)[:, :B, :, :H].reshape(T, B, 4 * H)


def pack_weights(w_hh: Array, plan: Plan) -> Array:
    """Convert (H, X H) to (blocks, G, H): X U rows, padded for the matrix unit."""
    assert w_hh.shape[1] == plan.recurrent_columns * w_hh.shape[0], (w_hh.shape, plan)
    w = jnp.pad(w_hh, [(0, plan.padded_H - w_hh.shape[0]), (0, 0)])
    w = pack_columns(w, plan, plan.recurrent_columns).transpose(1, 2, 0)
    return jnp.pad(w, [(0, 0), (0, plan.gate_rows - w.shape[1]), (0, 0)])


def pack_valid(valid: Array | None, plan: Plan) -> Array | None:
    """Convert (T, B) bool to (T, slices, R) float32. Padded rows are invalid."""
    if valid is None:
        return None
    T, B = valid.shape
    padding = [(0, 0), (0, plan.launch_rows - B)]
    return jnp.pad(valid.astype(jnp.float32), padding).reshape(T, plan.slices, plan.rows)


def map_batched(f: Callable[[Array, int], Array], axes: Any, arrays: Any) -> Any:
    """Apply ``f(array, batch_axis)`` to each array that has a batch axis; leave the others unchanged."""

    def map_subtree(axis: int, tree: Any) -> Any:
        return tree if axis == NO_BATCH else jax.tree.map(lambda a: f(a, axis), tree)

    return jax.tree.map(map_subtree, axes, arrays)


def in_launches(call: Callable[..., Any], B: int, rows: int, axes: Any, out_axes: Any) -> Callable[..., Any]:
    """Wrap ``call`` to process ``rows`` of B batch rows at a time. The last launch is padded with zeros.

    The launches run in a loop, so that each one ends before the next begins. Two concurrent launches could
    deadlock, because their blocks wait for each other and may not all be resident. The loop also compiles
    the kernel once.
    """
    launches = -(-B // rows)
    if launches == 1:
        return call

    def pad_batch(a: Array, axis: int) -> Array:
        return jnp.pad(a, [(0, launches * rows - B if n == axis else 0) for n in range(a.ndim)])

    def join_launches(a: Array, axis: int) -> Array:
        a = jnp.moveaxis(a, 0, axis)
        a = a.reshape(*a.shape[:axis], launches * rows, *a.shape[axis + 2 :])
        return lax.slice_in_dim(a, 0, B, axis=axis)

    def wrapped(*args: Any) -> Any:
        padded = map_batched(pad_batch, axes, args)

        def launch(begin: Array) -> Any:
            window = partial(lax.dynamic_slice_in_dim, start_index=begin, slice_size=rows)
            return call(*map_batched(lambda a, axis: window(a, axis=axis), axes, padded))

        outs = lax.map(launch, jnp.arange(0, launches * rows, rows))
        return map_batched(join_launches, out_axes, outs)

    return wrapped


def forward(
    formula: CellFormula, inputs: Inputs, save: bool, *, plan: Plan | None = None, **options: Any
) -> ForwardOutput:
    """:func:`lstm_jax.unrolling.kernels.reference.forward` by a kernel.

    ``plan`` replaces the plan for the device. ``options`` are passed to the kernel.
    """
    B, H = inputs.u.shape[1], inputs.w_hh.shape[0]
    plan = plan or supported_plan(formula, B, H, inputs.u.dtype)
    call = partial(forward_launch, formula, save=save, plan=plan, **options)
    return in_launches(call, B, plan.launch_rows, *BATCH_AXES["forward"])(inputs)


def forward_launch(
    formula: CellFormula, inputs: Inputs, *, save: bool, plan: Plan, **options: Any
) -> ForwardOutput:
    """Forward for at most ``plan.launch_rows`` rows."""
    u, w_hh, bias, carry, valid = inputs
    B, H = carry[0].shape
    if bias is None:
        bias = jnp.zeros(4 * H, jnp.float32)
    biases = pack_columns(bias, plan)[..., None]
    outs = forward_kernel(
        formula,
        pack_gates(u, plan, len(formula.input_columns)),
        pack_weights(w_hh, plan),
        jnp.broadcast_to(biases, (*biases.shape[:-1], plan.rows)),
        tuple(pack_states(a, plan) for a in carry),
        pack_valid(valid, plan),
        plan,
        save=save,
        **options,
    )
    states = tuple(unpack_states(a, B, H) for a in outs[: formula.num_states])
    return ForwardOutput(states, unpack_gates(outs[-1], B, H) if save else None)


def backward(
    formula: CellFormula, residuals: Residuals, cotangents: Any, *, plan: Plan | None = None, **options: Any
) -> Tangents:
    """:func:`lstm_jax.unrolling.kernels.reference.backward` by a kernel. Options as in :func:`forward`."""
    _, B, H = residuals.cell_states.shape
    plan = plan or supported_plan(formula, B, H, residuals.w_hh.dtype)
    call = partial(backward_launch, formula, plan=plan, **options)
    return in_launches(call, B, plan.launch_rows, *BATCH_AXES["backward"])(residuals, cotangents)


def backward_launch(
    formula: CellFormula, residuals: Residuals, cotangents: Any, *, plan: Plan, **options: Any
) -> Tangents:
    """Backward for at most ``plan.launch_rows`` rows."""
    w_hh, gates, cell_states, initial, valid = residuals
    _, B, H = cell_states.shape
    zs, *carry = backward_kernel(
        formula,
        jnp.swapaxes(pack_weights(w_hh, plan), 1, 2),
        pack_gates(gates, plan),
        pack_states(cell_states, plan),
        pack_states(initial, plan),
        pack_valid(valid, plan),
        tuple(pack_states(a, plan) for a in cotangents),
        plan,
        **options,
    )
    unpacked = (unpack_states(a, B, H).astype(b.dtype) for a, b in zip(carry, cotangents, strict=True))
    return Tangents(unpack_gates(zs, B, H), tuple(unpacked))


def plan_for_device(formula: CellFormula, B: int, H: int, dtype: Any, **options: Any) -> Plan | str:
    """The plan for this device (for an H100 if it is not a GPU), or the reason why there is none."""
    device = jax.devices()[0]
    num_sms = {"num_sms": device.core_count} if device.platform == "gpu" else {}
    return make_plan(B, H, dtype, len(formula.recurrent_columns), **num_sms, **options)


def supported_plan(formula: CellFormula, B: int, H: int, dtype: Any) -> Plan:
    """The plan for sizes that ``unsupported_reason`` accepts."""
    plan = plan_for_device(formula, B, H, dtype)
    assert isinstance(plan, Plan), plan
    return plan


def unsupported_reason(formula: CellFormula, T: int, B: int, H: int, dtype: Any) -> str | None:
    """Why the kernels cannot run on this device or with these sizes, or None."""
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    if capability != "9.0":
        return f"the kernels require a Hopper GPU (compute capability 9.0), got {device.device_kind}"
    plan = plan_for_device(formula, B, H, dtype)
    return plan if isinstance(plan, str) else None


def interpreter_unsupported_reason(formula: CellFormula, T: int, B: int, H: int, dtype: Any) -> str | None:
    """Why the interpreter cannot run the kernels with these sizes, or None."""
    if hopper_names.INTERPRETER is None:
        return "Pallas' interpreter for GPU kernels requires jax 0.12 or newer"
    plan = plan_for_device(formula, B, H, dtype)
    if isinstance(plan, str):
        return plan
    if plan.blocks > 1:
        return (
            f"H={H} requires {plan.blocks} blocks, and Pallas' interpreter does not support memory that "
            "blocks share"
        )
    return None


def interpreted(f: Any) -> Any:
    """``f`` in the interpreter. It is created at the call, because older versions of JAX have none."""

    def call(*args: Any) -> Any:
        return f(*args, interpret=hopper_names.interpreter())

    return call


ENGINES = {
    formula: Engine(
        formula,
        "Mosaic GPU",
        partial(unsupported_reason, formula),
        partial(forward, formula),
        partial(backward, formula),
    )
    for formula in FORMULAS
}
INTERPRETED = {
    formula: Engine(
        formula,
        "Mosaic GPU, interpreted",
        partial(interpreter_unsupported_reason, formula),
        interpreted(partial(forward, formula)),
        interpreted(partial(backward, formula)),
        effectful=True,  # the interpreter's threads use callbacks
    )
    for formula in FORMULAS
}
