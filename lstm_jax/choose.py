"""Which implementation runs: one rule, asked by ``unroll`` and told by ``explain``."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from lstm_jax.checks import refuse
from lstm_jax.fused import not_affine
from lstm_jax.kernels import engine_name, pallas_obstacle
from lstm_jax.loop import one_step
from lstm_jax.notation import Array, Carry, Cell, Params, is_float
from lstm_jax.parallel import parallel_obstacle
from lstm_jax.schedule import parallel_loss

IMPLEMENTATIONS = ("auto", "scan", "fused", "parallel", "pallas")


class Choice(NamedTuple):
    """An implementation and the reason for it."""

    implementation: str
    reason: str


def choose(
    cell: Cell,
    params: Params,
    carry: Carry,
    xs: Array,
    implementation: str,
    *,
    truncated: bool = False,
    restarted: bool = False,
) -> Choice:
    """What runs for this cell; a named implementation that cannot run raises with its reason."""
    if implementation == "scan":
        return Choice("scan", "asked for by name: the plain scan of cell.step")
    if implementation == "pallas":  # by name alone, until it has been measured on a device
        reason = pallas_obstacle(cell, params, carry, xs, restarted=restarted, truncated=truncated)
        if reason is not None:
            refuse(
                f"unroll got implementation='pallas' for {type(cell).__name__}, which cannot run it: "
                f"{reason}",
                "an LSTM without options, sizes that are known, and a TPU or a Hopper GPU",
                "Use implementation='auto' or 'fused'.",
            )
        return Choice("pallas", f"asked for by name: the whole sequence in one kernel ({engine_name()})")
    instead = ""
    if implementation == "parallel" or (implementation == "auto" and hasattr(cell, "coefficients")):
        reason = None if implementation == "parallel" else parallel_loss()
        reason = reason or parallel_obstacle(cell, params, carry, xs, truncated=truncated)
        if reason is None:
            return Choice("parallel", "the recurrence is linear in the state: all steps at once")
        if implementation == "parallel":
            refuse(
                f"unroll got implementation='parallel' for {type(cell).__name__}, which cannot run it: "
                f"{reason}",
                "a cell whose recurrence is linear, a known number of steps, and no truncate",
                "Use implementation='auto' or 'scan'.",
            )
        instead = f"; not parallel: {reason}"
    obstacle = fused_obstacle(cell, params, carry, xs)
    if obstacle is None:
        return Choice(
            "fused",
            "the cell splits into project, recur and update: weight gradients in one product" + instead,
        )
    if implementation == "fused":
        refuse(
            f"unroll got implementation='fused' for {type(cell).__name__}, which cannot run it: {obstacle}",
            "a cell that splits into project, recur and update",
            "Use implementation='auto' or 'scan'.",
        )
    return Choice("scan", obstacle + instead)


def fused_obstacle(cell: Any, params: Params, carry: Carry, xs: Array) -> str | None:
    """Why the fast path cannot take this cell, or None."""
    missing = [name for name in ("project", "recur", "update") if not callable(getattr(cell, name, None))]
    if missing:
        return f"{type(cell).__name__} has no {', '.join(missing)} (see lstm_jax.SplitCell)"
    declines = getattr(cell, "declines", None)
    if declines is not None and (reason := declines()) is not None:
        return str(reason)
    u = jax.eval_shape(lambda p, x: cell.project(p, one_step(x)), params, xs)
    if not all(is_float(leaf.dtype) for leaf in jax.tree.leaves((carry, u))):
        return f"{type(cell).__name__} carries or projects something that is not a float"
    bent = not_affine(cell, params, carry, u)
    return None if bent is None else f"{type(cell).__name__}.{bent}"
