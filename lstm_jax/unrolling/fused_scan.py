"""The fast path: weight gradients as one product after the loop, every transform kept.

Differentiating a scan as it stands adds up the weights' gradient inside the backward loop, one
small product a step. Here the loop of a cell that splits into ``project``, ``recur`` and ``update``
(:class:`lstm_jax.SplitCell`) has its own forward-mode rule, in which all that the tangents of
parameters and inputs bring is computed for all steps at once, outside the loop. With r_t what step
t reads of the carry and z_t its pre-activation,

    e_t  = d recur / d(params, u) . (dparams, du_t)     for all t at once
    dz_t = e_t + d recur / d carry . dr_t               in the loop: the one product
    dr_{t+1}, dy_t = L_t (dr_t, dz_t)                   in the loop, L_t known for all t at once

where L_t linearises ``update``. The loop carries nothing but the state's tangent. JAX transposes
it: the transpose of e_t is the one product that gives a weight's gradient. No backward pass is
written by hand, so reverse mode, second derivatives, vmap and all that follow are JAX's own.

Where all of time at once would be too much, it is a chunk of time: :mod:`lstm_jax.unrolling.tiling` says
when, and how many rows walk side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from lstm_jax._random import draws
from lstm_jax._types import Array, Carry, Params, is_float
from lstm_jax.cells._base import SplitCell, event_ndim
from lstm_jax.unrolling.steps import Flags, Scanned, one_step, scan_steps
from lstm_jax.unrolling.tiling import Tiling, choose_tiling
from lstm_jax.unrolling.windows import in_windows


class Saved(NamedTuple):
    """What the loop leaves behind for its tangents: all that they need beside the inputs."""

    reads: Carry  # (T, ...) the carry that each step read, after restarts
    zs: Any  # (T, ...) the pre-activations


class How(NamedTuple):
    """What is known of a walk when tracing."""

    reverse: bool
    carries: bool  # whether the carry after each step is returned
    save: bool = False  # whether Saved is


def fused_scan(
    cell: SplitCell,
    params: Params,
    initial: Carry,
    carry: Carry,
    xs: Any,
    flags: Flags,
    key: Array | None = None,
    *,
    reverse: bool,
    carries: bool,
) -> Scanned:
    """:func:`lstm_jax.unrolling.steps.walk` of a split cell, with the fast tangents."""
    return _recurrence(cell, How(reverse, carries), params, initial, carry, xs, flags, key)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _recurrence(
    cell: SplitCell,
    how: How,
    params: Params,
    initial: Carry,
    carry: Carry,
    xs: Any,
    flags: Flags,
    key: Array | None,
) -> Scanned:
    plan = tiling_of(cell, params, carry, xs)

    def step(read: Carry, at: tuple[Any, Any]) -> tuple[Carry, Any, Saved | None]:
        u, noise = at
        z = cell.recur(params, read, u)
        new, y = emit(cell, params, update(cell, params, read, z, noise))
        return new, y, Saved(read, z) if how.save else None

    def piece(carry: Carry, at: tuple[Any, Flags]) -> tuple[Carry, Any]:
        xs, flags = at
        scanned = scan_steps(
            step,
            initial,
            carry,
            (cell.project(params, xs), draws(cell, key, flags.time, carry)),
            flags,
            reverse=how.reverse,
            carries=how.carries,
            # What is random once a sequence has the whole batch's rows, which lanes do not share out.
            batch_splits=1 if how.save or key is not None else plan.batch_splits,
            unroll=plan.unroll,
        )
        return scanned.carry, scanned[1:]

    if plan.chunk is None:
        carry, outs = piece(carry, (xs, flags))
    else:
        carry, outs = in_windows(
            piece, carry, xs, flags, plan.chunk, batch=(), reverse=how.reverse, recompute=False
        )
    return Scanned(carry, *outs)


@_recurrence.defjvp
def _recurrence_jvp(cell: SplitCell, how: How, primals: Any, tangents: Any) -> tuple[Scanned, Scanned]:
    params, _, carry, xs, flags, key = primals
    dparams, dinitial, dcarry, dxs, _, _ = tangents
    scanned = _recurrence(cell, how._replace(save=True), *primals)
    plan = tiling_of(cell, params, carry, xs)
    piece = partial(_tangent_piece, cell, how, plan.unroll, params, dparams, dinitial, key)
    steps, chunk = (xs, scanned.saved, dxs), plan.tangent_chunk
    # Checkpointed: the backward pass gets along with what the loop left, and linearises anew.
    if chunk is None:
        dcarry, douts = jax.checkpoint(piece, prevent_cse=False)(dcarry, (steps, flags))
    else:
        dcarry, douts = in_windows(piece, dcarry, steps, flags, chunk, batch=(), reverse=how.reverse)
    dscanned = Scanned(dcarry, *douts)
    if how.save:
        return scanned, dscanned
    return scanned._replace(saved=None), dscanned._replace(saved=None)


def _tangent_piece(
    cell: SplitCell,
    how: How,
    unroll: int,
    params: Params,
    dparams: Params,
    dinitial: Carry,
    key: Array | None,
    dcarry: Carry,
    at: tuple[tuple[Any, Saved, Any], Flags],
) -> tuple[Carry, Any]:
    """The tangents of a piece of time: of the last carry, and of all that the walk returns."""
    (xs, (reads, zs), dxs), flags = at
    noise = draws(cell, key, flags.time, one_step(reads))

    def before_the_loop(params: Params, xs: Any) -> tuple[Any, Any]:
        us = cell.project(params, xs)
        return cell.recur(params, reads, us), us

    def updates(params: Params) -> Any:
        return jax.vmap(partial(update, cell, params))(reads, zs, noise)

    def linearised(read: Carry, z: Any, noise: Any) -> Any:
        return jax.linearize(lambda read, z: update(cell, params, read, z, noise), read, z)[1]

    es, us = jax.jvp(before_the_loop, (params, xs), (dparams, dxs), has_aux=True)[1:]
    linear = jax.vmap(linearised)(reads, zs, noise)
    propagate = partial(_recur_tangent, cell, params, jax.tree.map(jnp.zeros_like, one_step(us)))
    raws = updates(params)
    of_update = from_params(updates, params, dparams)
    of_emit = from_params(lambda params: emit(cell, params, raws), params, dparams)

    def step(dread: Carry, at: Any) -> tuple[Carry, Any, Carry]:
        linear, e, of_update, of_emit = at
        draw = add_known(linear(dread, add(e, propagate(dread))), of_update)
        dnew, dy = add_known(_emit_tangent(cell, params, draw), of_emit)
        return dnew, dy, dread

    dscanned = scan_steps(
        step,
        dinitial,
        dcarry,
        (linear, es, of_update, of_emit),
        flags,
        reverse=how.reverse,
        carries=how.carries,
        unroll=unroll,
        stop=jnp.zeros_like,
    )
    # Outside the loop, because first derivatives never ask for it.
    dzs = add(es, _recur_tangent(cell, params, jax.tree.map(jnp.zeros_like, us), dscanned.saved))
    return dscanned.carry, (dscanned.ys, dscanned.carries, Saved(dscanned.saved, dzs))


def fused_unsupported(cell: Any, params: Params, carry: Carry, xs: Array, flags: Flags) -> str | None:
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
    bent = not_affine_reason(cell, params, carry, u)
    return None if bent is None else f"{type(cell).__name__}.{bent}"


def update(cell: Any, params: Params, carry: Carry, z: Any, noise: Any) -> Any:
    """``cell.update``, with noise where there is some."""
    return cell.update(params, carry, z) if noise is None else cell.update(params, carry, z, noise)


def emit(cell: Any, params: Params, raw: Any) -> Any:
    """What leaves a step: (carry, y)."""
    return cell.emit(params, raw) if hasattr(cell, "emit") else raw


def tiling_of(cell: SplitCell, params: Params, carry: Carry, xs: Any) -> Tiling:
    """How this walk is cut."""
    u = jax.eval_shape(lambda p, xs: cell.project(p, one_step(xs)), params, xs)
    first = jax.tree.leaves(xs)[0]
    rows = first.ndim > 2 and event_ndim(cell) == 1
    return choose_tiling(first.shape[0], carry, u, rows)


def _recur_tangent(cell: SplitCell, params: Params, zero_u: Any, dcarry: Carry) -> Any:
    """d recur / d carry . dcarry. Being affine, recur has the same derivative everywhere: also at 0."""
    zero = jax.tree.map(jnp.zeros_like, dcarry)
    return jax.jvp(lambda c: cell.recur(params, c, zero_u), (zero,), (dcarry,))[1]


def _emit_tangent(cell: SplitCell, params: Params, draw: Any) -> Any:
    """d emit / d raw . draw, the same everywhere too."""
    if not hasattr(cell, "emit"):
        return draw
    zero = jax.tree.map(jnp.zeros_like, draw)
    return jax.jvp(lambda raw: emit(cell, params, raw), (zero,), (draw,))[1]


def not_affine_reason(cell: SplitCell, params: Params, carry: Carry, u: Any) -> str | None:
    """Which of ``recur`` and ``emit`` is not affine, if any; arguments as for one step."""
    if _depends_on_input(lambda params, u, carry: cell.recur(params, carry, u), params, u, carry):
        return "recur is not affine in the carry, or mixes it with the input"
    if hasattr(cell, "emit"):
        z = jax.eval_shape(cell.recur, params, carry, u)
        raw = jax.eval_shape(cell.update, params, carry, z)
        if _depends_on_input(lambda params, _, raw: emit(cell, params, raw), params, (), raw):
            return "emit is not affine in what update returns"
    return None


def _depends_on_input(f: Callable[..., Any], params: Params, beside: Any, at: Any) -> bool:
    """Whether d f / d at depends on where it is taken, or on what stands beside."""

    def derivative(where: tuple[Any, Any], along: Any, params: Params) -> Any:
        beside, at = where
        return jax.jvp(lambda at: f(params, beside, at), (at,), (along,))[1]

    closed = jax.make_jaxpr(derivative)((beside, at), at, params)
    return any(depend(closed, len(jax.tree.leaves((beside, at)))))


def depend(closed: Any, count: int) -> list[bool]:
    """Which outputs of a program depend on any of its first ``count`` arguments."""
    outs = range(len(closed.out_avals))
    return [any(dce_jaxpr(closed.jaxpr, [out == one for out in outs])[1][:count]) for one in outs]


def from_params(f: Callable[[Params], Any], params: Params, dparams: Params) -> list[Any] | None:
    """The leaves of the tangent of ``f(params)``, None where they depend on no parameter; None where all."""
    which = depend(jax.make_jaxpr(f)(params), len(jax.tree.leaves(params)))
    if not any(which):
        return None
    leaves = jax.tree.leaves(jax.jvp(f, (params,), (dparams,))[1])
    return [leaf if depends else None for leaf, depends in zip(leaves, which, strict=True)]


def add(a: Any, b: Any) -> Any:
    """The sum of two trees."""
    return jax.tree.map(jnp.add, a, b)


def add_known(tree: Any, leaves: list[Any] | None) -> Any:
    """The sum with those leaves that are there."""
    if leaves is None:
        return tree
    own, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(
        structure, [a if b is None else a + b for a, b in zip(own, leaves, strict=True)]
    )
