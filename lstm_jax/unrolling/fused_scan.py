"""The fused scan: a scan whose weight gradients are one product after the loop.

Differentiating a plain scan sums the weights' gradient inside the backward loop, one small product per
step. The scan of a cell that splits into ``project``, ``recur`` and ``update`` (:class:`lstm_jax.SplitCell`)
has a custom forward-mode rule instead. The rule computes the contributions of the tangents of parameters and
inputs for all steps at once, outside the loop. With s_t the carry that step t reads and z_t its
pre-activation,

    e_t  = d recur / d(params, u) . (dparams, du_t)     for all t at once
    dz_t = e_t + d recur / d carry . ds_t               in the loop: the only product
    ds_{t+1}, dy_t = L_t (ds_t, dz_t)                   in the loop, with L_t computed for all t at once

where L_t linearises ``update``. The loop carries only the tangent of the state. JAX transposes it, and the
transpose of e_t is the single product that gives a weight's gradient. There is no hand-written backward pass,
so reverse mode, second derivatives and vmap all work.

If the whole sequence needs too much memory, it is computed in chunks of time
(:mod:`lstm_jax.unrolling.tiling`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.interpreters.partial_eval import dce_jaxpr

from lstm_jax._devices import is_single_cpu_device
from lstm_jax._random import step_draws
from lstm_jax._types import Array, Carry, Params, is_float
from lstm_jax.cells._base import label
from lstm_jax.unrolling.steps import (
    Flags,
    batch_parts,
    begin_step,
    end_step,
    join_batch,
    one_step,
    split_batch,
)
from lstm_jax.unrolling.tiling import Tiling, choose_tiling
from lstm_jax.unrolling.windows import in_windows


class Residuals(NamedTuple):
    """What the loop stores for its tangents; T is the leading axis."""

    starts: Carry  # the carry that each step reads, after restarts
    zs: Any  # the pre-activations


def fused_scan(cell: Any, options: Any, tiling: Tiling) -> Callable[..., tuple[Carry, Any]]:
    """The scan of a split cell, a function of ``(params, key, initial, carry, xs, flags)``.

    It returns ``(carry, (ys, carries, residuals))``; ``xs`` is ``(xs, reset_to)``. Carries are None unless
    ``options.return_carries``, residuals unless ``options.save``.
    """
    project_inside = tiling.project_inside and not options.save
    scan: Any = partial(_loop, cell, options, tiling, project_inside)
    if tiling.chunk is not None and not project_inside:
        scan = partial(in_windows, scan, tiling.chunk, options.reverse, False, ())
    if is_single_cpu_device() and options.checkpoint is None:
        # JAX assumes that a function and its derivative rule return the mapped axis in the same place. So the
        # scan that the derivative rule calls has an ensemble rule, too.
        scan = _ensemble_rule(scan, scan if options.save else partial(_loop, cell, options, tiling, True))
    scan = jax.custom_jvp(scan)
    scan.defjvp(partial(_tangents, cell, options, tiling))
    return scan


def _loop(
    cell: Any,
    options: Any,
    tiling: Tiling,
    project_inside: bool,
    params: Params,
    key: Array | None,
    initial: Carry,
    carry: Carry,
    xs: Any,
    flags: Flags,
) -> tuple[Carry, Any]:
    """Scan a sequence, or a chunk of it, with the results of :func:`fused_scan`."""

    def body(carry: Carry, at: Any, initial: Carry = initial) -> tuple[Carry, Any]:
        flag, (u, noise, stored) = at
        held, start = begin_step(flag, initial if stored is None else stored, carry)
        z = cell.recur(params, start, cell.project(params, u) if project_inside else u)
        new, y = cell.emit(params, cell.update(params, start, z, noise))
        carry, y = end_step(flag, held, new, y)
        return carry, (
            y,
            carry if options.return_carries else None,
            Residuals(start, z) if options.save else None,
        )

    noise = step_draws(cell, key, flags.time, carry)
    inputs = flags, (xs[0] if project_inside else cell.project(params, xs[0]), noise, xs[1])
    loop = partial(lax.scan, reverse=options.reverse, unroll=tiling.unroll)
    splits = 1 if options.save or project_inside else tiling.batch_splits
    if splits == 1:
        return loop(body, carry, inputs)
    bodies = [partial(body, initial=part) for part in batch_parts(initial, splits)]
    carries, outs = loop(split_batch(bodies), batch_parts(carry, splits), inputs)
    return join_batch(carries), outs


def _ensemble_rule(before: Callable[..., Any], inside: Callable[..., Any]) -> Callable[..., Any]:
    """``inside`` under a ``vmap`` over parameters, which are the first argument; otherwise ``before``.

    ``before`` projects all inputs before the loop. For an ensemble, XLA copies the result twice, because the
    axes of a batched product have another order than those that the loop reads.
    """
    mapped = custom_vmap(before)

    @mapped.def_vmap
    def rule(axis_size: int, batched: Any, *args: Any) -> Any:
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(batched))
        many = partial(jax.vmap, in_axes=axes, axis_size=axis_size)
        ensemble = any(jax.tree.leaves(batched[0]))
        out = (many(inside) if ensemble else _ensemble_rule(many(before), many(inside)))(*args)
        return out, jax.tree.map(lambda _: True, out)

    return mapped


def _tangents(cell: Any, options: Any, tiling: Tiling, primals: Any, tangents: Any) -> Any:
    """The derivative rule of :func:`fused_scan`: its results and their tangents."""
    params, key, _, _, xs, flags = primals
    dparams, _, dinitial, dcarry, dxs, _ = tangents
    out, (ys, carries, residuals) = fused_scan(cell, options._replace(save=True), tiling)(*primals)
    chunk = partial(_tangent_chunk, cell, options, tiling)
    # Checkpointed: the backward pass stores only the residuals of the loop, and linearises again.
    if tiling.tangent_chunk is None:
        scan = jax.checkpoint(chunk, prevent_cse=False)
    else:
        scan = partial(in_windows, chunk, tiling.tangent_chunk, options.reverse, True, ())
    out_tangents = scan(params, dparams, dinitial, key, dcarry, (xs, residuals, dxs), flags)
    dcarry, (dys, dcarries, dresiduals) = out_tangents
    if options.save:
        return (out, (ys, carries, residuals)), (dcarry, (dys, dcarries, dresiduals))
    return (out, (ys, carries, None)), (dcarry, (dys, dcarries, None))


def _tangent_chunk(
    cell: Any,
    options: Any,
    tiling: Tiling,
    params: Params,
    dparams: Params,
    dinitial: Carry,
    key: Array | None,
    dcarry: Carry,
    steps: Any,
    flags: Flags,
) -> tuple[Carry, Any]:
    """Tangents of a chunk of time: of the last carry, and of the other results of the scan."""
    (xs, _), (starts, zs), (dxs, dstored) = steps
    noise = step_draws(cell, key, flags.time, one_step(starts))

    def before_the_loop(params: Params, xs: Any) -> tuple[Any, Any]:
        us = cell.project(params, xs)
        return cell.recur(params, starts, us), us

    def updates(params: Params) -> Any:
        return jax.vmap(partial(cell.update, params))(starts, zs, noise)

    def linearised(start: Carry, z: Any, noise: Any) -> Any:
        return jax.linearize(lambda start, z: cell.update(params, start, z, noise), start, z)[1]

    es, us = jax.jvp(before_the_loop, (params, xs), (dparams, dxs), has_aux=True)[1:]
    linear = jax.vmap(linearised)(starts, zs, noise)
    from_params = partial(_param_tangents, cell.update_reads_params)
    from_update = from_params(updates, params, dparams)
    from_emit = from_params(lambda changed: cell.emit(changed, updates(params)), params, dparams)
    # ``recur`` and ``emit`` are affine, so their derivative at 0 is their derivative everywhere.
    recur = partial(cell.recur, params, u=_zeros(one_step(us)))

    def body(dcarry: Carry, at: Any) -> tuple[Carry, Any]:
        flag, (linear, e, of_update, of_emit, dstored) = at
        target = dinitial if dstored is None else dstored
        dheld, dstart = begin_step(flag, target, dcarry, stop=jnp.zeros_like)
        dz = _add(e, jax.jvp(recur, (_zeros(dstart),), (dstart,))[1])
        draw = _add_known(linear(dstart, dz), of_update)
        dnew, dy = _add_known(jax.jvp(partial(cell.emit, params), (_zeros(draw),), (draw,))[1], of_emit)
        dcarry, dy = end_step(flag, dheld, dnew, dy)
        return dcarry, (dy, dcarry if options.return_carries else None, dstart)

    inputs = flags, (linear, es, from_update, from_emit, dstored)
    dcarry, (dys, dcarries, dstarts) = lax.scan(
        body, dcarry, inputs, reverse=options.reverse, unroll=tiling.unroll
    )
    # Computed outside the loop, because first derivatives do not need it.
    recur = partial(cell.recur, params, u=_zeros(us))
    dzs = _add(es, jax.jvp(recur, (_zeros(dstarts),), (dstarts,))[1])
    return dcarry, (dys, dcarries, Residuals(dstarts, dzs))


def tiling_of(
    cell: Any, params: Params, carry: Carry, xs: Any, window: int | None = None, noisy: bool = False
) -> Tiling:
    """How the scan of all steps, or of a window, is divided into chunks of time and batch splits.

    With noise the batch is not split, because noise has the rows of the whole batch.
    """
    u = jax.eval_shape(cell.project, params, jax.eval_shape(one_step, xs))
    first = jax.tree.leaves(xs)[0]
    rows = first.ndim > 2 and cell.event_ndim == 1 and not noisy
    return choose_tiling(first.shape[0] if window is None else window, carry, u, rows=rows)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _add_known(tree: Any, leaves: list[Any] | None) -> Any:
    """Add the leaves that are not None to those of the tree."""
    if leaves is None:
        return tree
    terms, structure = jax.tree.flatten(tree)
    summed = [a if b is None else a + b for a, b in zip(terms, leaves, strict=True)]
    return jax.tree.unflatten(structure, summed)


def _param_tangents(
    reads_params: bool | None, f: Callable[[Params], Any], params: Params, dparams: Params
) -> list[Any] | None:
    """The leaves of the tangent of ``f(params)``; None for a leaf that depends on no parameter."""
    if reads_params is False:
        return None
    which = _dependence(jax.make_jaxpr(f)(params), len(jax.tree.leaves(params)))
    if not any(which):
        return None
    leaves = jax.tree.leaves(jax.jvp(f, (params,), (dparams,))[1])
    return [leaf if depends else None for leaf, depends in zip(leaves, which, strict=True)]


def _dependence(closed: Any, count: int) -> list[bool]:
    """For each output of a program, whether it depends on any of the first ``count`` arguments."""
    outs = range(len(closed.out_avals))
    return [any(dce_jaxpr(closed.jaxpr, [out == one for out in outs])[1][:count]) for one in outs]


# --- which cells it can run ----------------------------------------------------------------------


def fused_unsupported(
    cell: Any, options: Any, params: Params, carry: Carry, xs: Any, flags: Flags
) -> str | None:
    """Why the fused scan cannot run this cell, or None."""
    reason = cell.fused_unsupported()
    if reason is not None or cell.affine_recurrence:
        return reason
    u = jax.eval_shape(lambda p, x: cell.project(p, one_step(x)), params, xs)
    if not all(is_float(leaf.dtype) for leaf in jax.tree.leaves((carry, u))):
        return f"the carry or the projected input of {label(cell)} is not all floats"
    reason = not_affine_reason(cell, params, carry, u)
    return None if reason is None else f"{label(cell)}.{reason}"


def not_affine_reason(cell: Any, params: Params, carry: Carry, u: Any) -> str | None:
    """Which of ``recur`` and ``emit`` is not affine, or None; arguments as for one step."""

    def recur(params: Params, u: Any, carry: Carry) -> Any:
        return cell.recur(params, carry, u)

    def emit(params: Params, _: Any, raw: Any) -> Any:
        return cell.emit(params, raw)

    if not _is_affine(recur, params, u, carry):
        return "recur is not affine in the carry, or its factors depend on the input"
    z = jax.eval_shape(cell.recur, params, carry, u)
    raw = jax.eval_shape(cell.update, params, carry, z)
    if not _is_affine(emit, params, (), raw):
        return "emit is not affine in the result of update"
    return None


def _is_affine(f: Callable[..., Any], params: Params, other: Any, at: Any) -> bool:
    """Whether d f(params, other, at) / d at depends neither on ``at`` nor on ``other``."""

    def derivative(where: tuple[Any, Any], along: Any, params: Params) -> Any:
        other, at = where
        return jax.jvp(lambda at: f(params, other, at), (at,), (along,))[1]

    closed = jax.make_jaxpr(derivative)((other, at), at, params)
    return not any(_dependence(closed, len(jax.tree.leaves((other, at)))))
