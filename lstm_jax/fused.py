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
it: the transpose of e_t is the one product that gives a weight's gradient. No backward formula is
written by hand, so reverse mode, second derivatives, vmap and all that follow are JAX's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from lstm_jax.loop import Flags, Walked, one_step, walk
from lstm_jax.notation import Carry, Params, SplitCell


class Saved(NamedTuple):
    """What the loop leaves behind for its tangents."""

    reads: Carry  # (T, ...) the carry that each step read, after restarts
    zs: Any  # (T, ...) the pre-activations


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
    us = cell.project(params, xs)
    return _recurrence(cell, (reverse, carries), params, initial, carry, us, flags)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _recurrence(
    cell: SplitCell,
    how: tuple[bool, bool],
    params: Params,
    initial: Carry,
    carry: Carry,
    us: Any,
    flags: Flags,
) -> Walked:
    def step(read: Carry, u: Any) -> tuple[Carry, Any, Saved]:
        z = cell.recur(params, read, u)
        new, y = cell.update(params, read, z)
        return new, y, Saved(read, z)

    reverse, carries = how
    return walk(step, initial, carry, us, flags, reverse=reverse, carries=carries)


@_recurrence.defjvp
def _recurrence_jvp(
    cell: SplitCell, how: tuple[bool, bool], primals: Any, tangents: Any
) -> tuple[Walked, Walked]:
    params, _, _, us, flags = primals
    walked = _recurrence(cell, how, *primals)
    # Checkpointed: the backward pass gets along with what the loop left, and linearises anew.
    rule = jax.checkpoint(partial(_tangent_walk, cell, how), prevent_cse=False)
    return walked, rule(params, us, flags, walked.saved, *tangents[:4])


def _tangent_walk(
    cell: SplitCell,
    how: tuple[bool, bool],
    params: Params,
    us: Any,
    flags: Flags,
    saved: Saved,
    dparams: Params,
    dinitial: Carry,
    dcarry: Carry,
    dus: Any,
) -> Walked:
    reads, zs = saved
    recur_all = jax.vmap(cell.recur, (None, 0, 0))
    es = jax.jvp(lambda p, u: recur_all(p, reads, u), (params, us), (dparams, dus))[1]
    linear = jax.vmap(lambda r, z: jax.linearize(partial(cell.update, params), r, z)[1])(reads, zs)
    zero_u = jax.tree.map(jnp.zeros_like, one_step(us))
    propagate = partial(_recur_tangent, cell, params, zero_u)
    direct = None
    update_all = jax.vmap(cell.update, (None, 0, 0))
    if depends(update_all, params, reads, zs):
        direct = jax.jvp(lambda p: update_all(p, reads, zs), (params,), (dparams,))[1]

    def step(dread: Carry, at: Any) -> tuple[Carry, Any, Carry]:
        linear, e, direct = at
        out = linear(dread, add(e, propagate(dread)))
        dnew, dy = out if direct is None else add(out, direct)
        return dnew, dy, dread

    reverse, carries = how
    walked = walk(
        step,
        dinitial,
        dcarry,
        (linear, es, direct),
        flags,
        reverse=reverse,
        carries=carries,
        sever=jnp.zeros_like,
    )
    # Outside the loop, because first derivatives never ask for it.
    dzs = add(es, jax.vmap(propagate)(walked.saved))
    return walked._replace(saved=Saved(walked.saved, dzs))


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
