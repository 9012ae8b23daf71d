"""An engine's walk with every transform kept: derivatives of both modes and any order, vmap, remat.

One private primitive stands for three walks over T steps:

    forward    u, W, b, h_0, c_0    ->  h_t, c_t and, where asked for, the gates
    tangents   e_t, dh_0, dc_0      ->  dh_t, dc_t         linear, given what forward saved
    backward   h̄_t, c̄_t             ->  z̄_t, h̄_0, c̄_0      the transpose of ``tangents``

where e_t = du_t + h_{t-1} dW + db is all that parameters and inputs bring to dz_t. It is computed
for all steps at once, outside, as in :mod:`lstm_jax.fused`: its transpose, one product after the
loop, is the weights' gradient. So

- the derivative of ``forward`` is a ``forward`` that saves, then ``tangents``;
- ``tangents`` and ``backward`` are each other's transpose, each is its own derivative in what it is
  linear in, and in the rest it has the derivative of the reference;
- a vmapped axis becomes rows of the batch; where weights are mapped, too, the reference is mapped.

``forward`` and ``backward`` run the engine's kernels. ``tangents`` is always the plain loop: reverse
mode only ever runs its transpose.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from lstm_jax.cells.lstm import gates_tangent
from lstm_jax.kernels.engine import REFERENCE, Engine, Inputs, Saved, States, Tangents, four, read, tangents
from lstm_jax.notation import Array


class Which(NamedTuple):
    """What the primitive is told beside its arrays."""

    engine: Engine
    walk: str  # forward, tangents or backward
    save: bool = False  # forward: the gates, too
    structure: Any = None  # of the arguments


#: Of each walk's arguments, the axis of the rows; NONE where there are no rows.
NONE = -1
SAVED_ROWS = Saved(w_hh=NONE, gates=1, cs=1, c0=0, valid=1)
ROWS = {
    "forward": (Inputs(u=1, w_hh=NONE, bias=NONE, h0=0, c0=0, valid=1),),
    "tangents": (SAVED_ROWS, Tangents(zs=1, h0=0, c0=0)),
    "backward": (SAVED_ROWS, States(hs=1, cs=1)),
}
OUT_ROWS = {"forward": (1, 1, 1), "tangents": (1, 1), "backward": (1, 0, 0)}


def states_of(engine: Engine, inputs: Inputs) -> tuple[Array, Array]:
    """h_t and c_t after each step, (T, B, H) each."""
    hs, cs = _bind(Which(engine, "forward"), inputs)
    return hs, cs


def _bind(which: Which, *args: Any) -> list[Any]:
    leaves, structure = jax.tree.flatten(args)
    return lstm_walk_p.bind(*leaves, which=which._replace(structure=structure))


def _run(engine: Engine, which: Which, *args: Any) -> list[Any]:
    """The walk itself. Rows that came by vmap may be more than an engine takes: then it is plain JAX."""
    if engine.obstacle(*_sizes(args[0])) is not None:
        engine = REFERENCE
    if which.walk == "forward":
        return jax.tree.leaves(engine.forward(args[0], which.save))
    return list((tangents if which.walk == "tangents" else engine.backward)(*args))


def _sizes(first: Any) -> tuple[int, int, int, Any]:
    """T, B, H and the compute dtype."""
    T, B, columns = (first.u if isinstance(first, Inputs) else first.gates).shape
    return T, B, columns // 4, first.w_hh.dtype


def _arguments(which: Which, leaves: Any) -> Any:
    return jax.tree.unflatten(which.structure, leaves)


def _implementation(*leaves: Array, which: Which) -> list[Array]:
    return _run(which.engine, which, *_arguments(which, leaves))


def _types(*leaves: Any, which: Which) -> tuple[list[Any], Any]:
    """Types of the results, and the side effects of an interpreter."""
    effects: Any = set()
    if which.engine.effectful and which.walk != "tangents":
        effects = jax.make_jaxpr(partial(_implementation, which=which))(*leaves).effects
    return _results(which, *_arguments(which, leaves)), effects


def _results(which: Which, first: Any, *_: Any) -> list[Any]:
    if which.walk == "forward":
        h0, c0 = first.h0, first.c0
        u = first.u.update(
            manual_axis_type=c0.manual_axis_type
        )  # inside shard_map, the carry varies as all do
        states = [u.update(shape=(*u.shape[:-1], h0.shape[-1]), dtype=like.dtype) for like in (h0, c0)]
        return [*states, u.update(dtype=c0.dtype)] if which.save else states
    compute = first.w_hh.dtype
    if which.walk == "tangents":
        return [first.cs.update(dtype=compute), first.cs]
    return [first.gates.update(dtype=compute), first.c0.update(dtype=compute), first.c0]


def _derivative(leaves: Any, dleaves: Any, *, which: Which) -> tuple[list[Any], list[Any]]:
    args, dargs = _arguments(which, leaves), _arguments(which, dleaves)
    if which.walk == "forward":
        return _forward_derivative(which, args[0], dargs[0])
    (saved, along), (dsaved, dalong) = args, dargs
    terms = []
    if any(map(_moves, dalong)):
        terms.append(_bind(which, saved, type(along)(*map(ad.instantiate_zeros, dalong))))
    moving = [name for name in ("w_hh", "gates", "cs", "c0") if _moves(getattr(dsaved, name))]
    if moving:

        def of_saved(*moved: Array) -> list[Array]:
            return _run(REFERENCE, which, saved._replace(**dict(zip(moving, moved, strict=True))), along)

        at, d = ([getattr(tree, name) for name in moving] for tree in (saved, dsaved))
        terms.append(jax.jvp(of_saved, at, d)[1])
    return _bind(which, *args), [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)]


def _forward_derivative(which: Which, inputs: Inputs, d: Inputs) -> tuple[list[Any], list[Any]]:
    hs, cs, gates = outs = _bind(which._replace(save=True), inputs)
    w_hh, reads = inputs.w_hh, read(inputs.h0, hs)
    compute = w_hh.dtype
    e = ad.instantiate_zeros(d.u)
    if _moves(d.w_hh):  # summed in float32 or wider; so is the weights' gradient, its transpose
        e = e + jnp.matmul(reads, d.w_hh, preferred_element_type=compute)
    if d.bias is not None and _moves(d.bias):  # widened first, so that its gradient is a wide sum
        e = e + jnp.broadcast_to(d.bias[None, None], e.shape).astype(compute)
    along = Tangents(e, ad.instantiate_zeros(d.h0), ad.instantiate_zeros(d.c0))
    saved = Saved(w_hh, gates, cs, inputs.c0, inputs.valid)
    douts = _bind(Which(which.engine, "tangents"), saved, along)
    if not which.save:
        return outs[:2], douts
    dz = e.astype(gates.dtype) + jnp.matmul(
        read(along.h0, douts[0]), w_hh, preferred_element_type=gates.dtype
    )
    return outs, [*douts, jnp.concatenate(gates_tangent(four(gates), dz), axis=-1)]


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, ad.Zero)


def _transpose(cotangents: Any, *leaves: Any, which: Which) -> list[Any]:
    """Linear in the second argument, whose leaves come last."""
    saved, along = _arguments(which, leaves)
    turned, kind = ("backward", States) if which.walk == "tangents" else ("tangents", Tangents)
    outs = _bind(Which(which.engine, turned), saved, kind(*map(ad.instantiate_zeros, cotangents)))
    outs = [out if ad.is_undefined_primal(a) else None for out, a in zip(outs, along, strict=True)]
    return [None] * (len(leaves) - len(outs)) + outs


def _mapped(leaves: Any, dims: Any, *, which: Which) -> tuple[list[Any], list[int]]:
    """The mapped axis becomes rows, with those that are there."""
    args = _arguments(which, leaves)
    axes = [
        axis
        for arg, rows in zip(args, ROWS[which.walk], strict=True)
        for a, axis in zip(arg, rows, strict=True)
        if a is not None
    ]
    mapped = [dim is not None for dim in dims]
    if any(axis == NONE for axis, is_mapped in zip(axes, mapped, strict=True) if is_mapped):
        ins = [dim if is_mapped else None for dim, is_mapped in zip(dims, mapped, strict=True)]
        outs = jax.vmap(lambda *leaves: _run(REFERENCE, which, *_arguments(which, leaves)), ins)(*leaves)
        return outs, [0] * len(outs)
    size = next(a.shape[dim] for a, dim, is_mapped in zip(leaves, dims, mapped, strict=True) if is_mapped)

    def folded(a: Any, dim: Any, axis: int, is_mapped: bool) -> Array:
        if axis == NONE:
            return a
        if is_mapped:
            a = jnp.moveaxis(a, dim, axis)
        else:
            a = jnp.repeat(jnp.expand_dims(a, axis), size, axis)
        return a.reshape(*a.shape[:axis], size * a.shape[axis + 1], *a.shape[axis + 2 :])

    def unfolded(a: Array, axis: int) -> Array:
        return a.reshape(*a.shape[:axis], size, a.shape[axis] // size, *a.shape[axis + 1 :])

    outs = lstm_walk_p.bind(*map(folded, leaves, dims, axes, mapped), which=which)
    out_axes = list(OUT_ROWS[which.walk][: len(outs)])
    return list(map(unfolded, outs, out_axes)), out_axes


lstm_walk_p = Primitive("lstm_walk")
lstm_walk_p.multiple_results = True
lstm_walk_p.def_impl(_implementation)
lstm_walk_p.def_effectful_abstract_eval(_types)
mlir.register_lowering(lstm_walk_p, mlir.lower_fun(_implementation, multiple_results=True))
ad.primitive_jvps[lstm_walk_p] = _derivative
ad.primitive_transposes[lstm_walk_p] = _transpose
batching.primitive_batchers[lstm_walk_p] = _mapped
