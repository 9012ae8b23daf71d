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

Where all of time at once would be too much, it is a chunk of time: :mod:`lstm_jax.schedule` says
when, and how many rows walk side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from lstm_jax.loop import Flags, Walked, in_windows, one_step, walk
from lstm_jax.notation import Carry, Params, SplitCell, event_ndim
from lstm_jax.schedule import Schedule, schedule


class Saved(NamedTuple):
    """What the loop leaves behind for its tangents: all that they need beside the inputs."""

    reads: Carry  # (T, ...) the carry that each step read, after restarts
    zs: Any  # (T, ...) the pre-activations


class How(NamedTuple):
    """What is known of a walk when tracing."""

    reverse: bool
    carries: bool  # whether the carry after each step is returned
    save: bool = False  # whether Saved is


def fused_walk(
    cell: SplitCell,
    params: Params,
    initial: Carry,
    carry: Carry,
    xs: Any,
    flags: Flags,
    *,
    reverse: bool,
    carries: bool,
) -> Walked:
    """:func:`lstm_jax.loop.walk` of a split cell, with the fast tangents."""
    return _recurrence(cell, How(reverse, carries), params, initial, carry, xs, flags)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _recurrence(
    cell: SplitCell, how: How, params: Params, initial: Carry, carry: Carry, xs: Any, flags: Flags
) -> Walked:
    plan = plan_of(cell, params, carry, xs)

    def step(read: Carry, u: Any) -> tuple[Carry, Any, Saved | None]:
        z = cell.recur(params, read, u)
        new, y = cell.update(params, read, z)
        return new, y, Saved(read, z) if how.save else None

    def piece(carry: Carry, at: tuple[Any, Flags]) -> tuple[Carry, Any]:
        xs, flags = at
        walked = walk(
            step,
            initial,
            carry,
            cell.project(params, xs),
            flags,
            reverse=how.reverse,
            carries=how.carries,
            lanes=1 if how.save else plan.lanes,
        )
        return walked.carry, walked[1:]

    if plan.chunk is None:
        carry, outs = piece(carry, (xs, flags))
    else:
        carry, outs = in_windows(
            piece, carry, xs, flags, plan.chunk, batch=(), reverse=how.reverse, recompute=False
        )
    return Walked(carry, *outs)


@_recurrence.defjvp
def _recurrence_jvp(cell: SplitCell, how: How, primals: Any, tangents: Any) -> tuple[Walked, Walked]:
    params, _, carry, xs, flags = primals
    dparams, dinitial, dcarry, dxs, _ = tangents
    walked = _recurrence(cell, how._replace(save=True), *primals)
    piece = partial(_tangent_piece, cell, how, params, dparams, dinitial)
    steps = xs, walked.saved, dxs
    chunk = plan_of(cell, params, carry, xs).tangent_chunk
    # Checkpointed: the backward pass gets along with what the loop left, and linearises anew.
    if chunk is None:
        dcarry, douts = jax.checkpoint(piece, prevent_cse=False)(dcarry, (steps, flags))
    else:
        dcarry, douts = in_windows(piece, dcarry, steps, flags, chunk, batch=(), reverse=how.reverse)
    dwalked = Walked(dcarry, *douts)
    if how.save:
        return walked, dwalked
    return walked._replace(saved=None), dwalked._replace(saved=None)


def _tangent_piece(
    cell: SplitCell,
    how: How,
    params: Params,
    dparams: Params,
    dinitial: Carry,
    dcarry: Carry,
    at: tuple[tuple[Any, Saved, Any], Flags],
) -> tuple[Carry, Any]:
    """The tangents of a piece of time: of the last carry, and of all that the walk returns."""
    (xs, (reads, zs), dxs), flags = at

    def before_the_loop(params: Params, xs: Any) -> tuple[Any, Any]:
        us = cell.project(params, xs)
        return cell.recur(params, reads, us), us

    es, us = jax.jvp(before_the_loop, (params, xs), (dparams, dxs), has_aux=True)[1:]
    linear = jax.vmap(lambda r, z: jax.linearize(partial(cell.update, params), r, z)[1])(reads, zs)
    propagate = partial(_recur_tangent, cell, params, jax.tree.map(jnp.zeros_like, one_step(us)))
    direct = None
    update_all = jax.vmap(cell.update, (None, 0, 0))
    if depends(update_all, params, reads, zs):
        direct = jax.jvp(lambda p: update_all(p, reads, zs), (params,), (dparams,))[1]

    def step(dread: Carry, at: Any) -> tuple[Carry, Any, Carry]:
        linear, e, direct = at
        out = linear(dread, add(e, propagate(dread)))
        dnew, dy = out if direct is None else add(out, direct)
        return dnew, dy, dread

    dwalked = walk(
        step,
        dinitial,
        dcarry,
        (linear, es, direct),
        flags,
        reverse=how.reverse,
        carries=how.carries,
        sever=jnp.zeros_like,
    )
    # Outside the loop, because first derivatives never ask for it.
    dzs = add(es, _recur_tangent(cell, params, jax.tree.map(jnp.zeros_like, us), dwalked.saved))
    return dwalked.carry, (dwalked.ys, dwalked.carries, Saved(dwalked.saved, dzs))


def plan_of(cell: SplitCell, params: Params, carry: Carry, xs: Any) -> Schedule:
    """How this walk is cut."""
    u = jax.eval_shape(lambda p, xs: cell.project(p, one_step(xs)), params, xs)
    first = jax.tree.leaves(xs)[0]
    rows = first.ndim > 2 and event_ndim(cell) == 1
    return schedule(first.shape[0], carry, u, rows)


def _recur_tangent(cell: SplitCell, params: Params, zero_u: Any, dcarry: Carry) -> Any:
    """d recur / d carry . dcarry. Being affine, recur has the same derivative everywhere: also at 0."""
    zero = jax.tree.map(jnp.zeros_like, dcarry)
    return jax.jvp(lambda c: cell.recur(params, c, zero_u), (zero,), (dcarry,))[1]


def not_affine(cell: SplitCell, params: Params, carry: Carry, u: Any) -> bool:
    """Whether d recur / d carry depends on where it is taken; arguments as for one step."""

    def derivative(at: tuple[Carry, Any], along: Carry, params: Params) -> Any:
        carry, u = at
        return jax.jvp(lambda c: cell.recur(params, c, u), (carry,), (along,))[1]

    return depends(derivative, (carry, u), carry, params)


def depends(f: Callable[..., Any], first: Any, *others: Any) -> bool:
    """Whether the values of ``f`` depend on its first argument."""
    closed = jax.make_jaxpr(f)(first, *others)
    used = dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals))[1]
    return any(used[: len(jax.tree.leaves(first))])


def add(a: Any, b: Any) -> Any:
    """The sum of two trees."""
    return jax.tree.map(jnp.add, a, b)
