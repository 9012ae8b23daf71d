"""An engine's walk with every transform kept: derivatives of both modes and any order, vmap, remat.

One private primitive stands for three walks over T steps:

    forward    u, W, b, h_0, c_0    ->  h_t, c_t and, where asked for, the gates
    tangents   e_t, dh_0, dc_0      ->  dh_t, dc_t         linear, given what forward saved
    backward   h̄_t, c̄_t             ->  z̄_t, h̄_0, c̄_0      the transpose of ``tangents``

(a GRU has no c), where e_t = du_t + h_{t-1} dW + db is all that parameters and inputs bring to dz_t.
It is computed for all steps at once, outside, as in ``fused_scan``: its transpose, one product
after the loop, is the weights' gradient. So

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

from lstm_jax._types import Array, state_dtype
from lstm_jax.unrolling.kernels.engine import NO_ROWS, ROWS, Engine, Inputs, Tangents, Walk, read, saved_of
from lstm_jax.unrolling.kernels.formulas import four, spread
from lstm_jax.unrolling.kernels.reference import REFERENCES, tangents


class Which(NamedTuple):
    """What the primitive is told beside its arrays."""

    engine: Engine
    walk: str  # forward, tangents or backward
    save: bool = False  # forward: the gates, too
    structure: Any = None  # of the arguments


def states_of(engine: Engine, inputs: Inputs) -> tuple[Array, ...]:
    """The states after each step, (T, B, H) each."""
    return tuple(_bind(Which(engine, "forward"), inputs))


def _bind(which: Which, *args: Any) -> list[Any]:
    leaves, structure = jax.tree.flatten(args)
    return kernel_walk_p.bind(*leaves, which=which._replace(structure=structure))


def _run(engine: Engine, which: Which, *args: Any) -> list[Any]:
    """The walk itself. With vmap's, there may be more rows than an engine takes: then it is plain JAX."""
    if engine.unsupported_reason(*_sizes(args[0])) is not None:
        engine = REFERENCES[engine.kind]
    if which.walk == "forward":
        return jax.tree.leaves(engine.forward(args[0], which.save))
    if which.walk == "tangents":
        return list(tangents(engine.kind, *args))
    return jax.tree.leaves(engine.backward(*args))


def _sizes(first: Any) -> tuple[int, int, int, Any]:
    """T, B, H and the compute dtype."""
    T, B, _ = (first.u if isinstance(first, Inputs) else first.gates).shape
    return T, B, first.w_hh.shape[-2], first.w_hh.dtype


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


def _results(which: Which, first: Any, *rest: Any) -> list[Any]:
    if which.walk == "forward":
        # Inside shard_map, the carry differs between devices as anything that it meets.
        u, h0 = first.u, first.carry[0]
        u = u.update(manual_axis_type=h0.manual_axis_type)
        states = [u.update(shape=(*u.shape[:-1], a.shape[-1]), dtype=a.dtype) for a in first.carry]
        gates = u.update(shape=(*u.shape[:-1], 4 * h0.shape[-1]), dtype=state_dtype(u.dtype))
        return [*states, gates] if which.save else states
    if which.walk == "tangents":
        return [first.memory.update(dtype=a.dtype) for a in rest[0].carry]
    return [first.gates.update(dtype=first.w_hh.dtype), *(first.first.update(dtype=a.dtype) for a in rest[0])]


def _derivative(leaves: Any, dleaves: Any, *, which: Which) -> tuple[list[Any], list[Any]]:
    args, dargs = _arguments(which, leaves), _arguments(which, dleaves)
    if which.walk == "forward":
        return _forward_derivative(which, args[0], dargs[0])
    (saved, along), (dsaved, dalong) = args, dargs
    terms = []
    if any(map(_moves, _leaves(dalong))):
        terms.append(_bind(which, saved, _instantiated(dalong)))
    moving = [name for name in ("w_hh", "gates", "memory", "first") if _moves(getattr(dsaved, name))]
    if moving:

        def of_saved(*moved: Array) -> list[Array]:
            given = saved._replace(**dict(zip(moving, moved, strict=True)))
            return _run(REFERENCES[which.engine.kind], which, given, along)

        at, d = ([getattr(tree, name) for name in moving] for tree in (saved, dsaved))
        terms.append(jax.jvp(of_saved, at, d)[1])
    return _bind(which, *args), [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)]


def _forward_derivative(which: Which, inputs: Inputs, d: Inputs) -> tuple[list[Any], list[Any]]:
    kind = which.engine.kind
    outs = _bind(which._replace(save=True), inputs)
    *states, gates = outs
    w_hh, reads = inputs.w_hh, read(inputs.carry[0], states[0])
    e = spread(ad.instantiate_zeros(d.u), kind.of_x)
    if _moves(d.w_hh):  # summed in float32 or wider; so is the weights' gradient, its transpose
        of_w = jnp.matmul(reads, d.w_hh, preferred_element_type=w_hh.dtype)
        e = e + spread(of_w, kind.of_h)
    if d.bias is not None and _moves(d.bias):  # widened first, so that its gradient is a wide sum
        e = e + jnp.broadcast_to(d.bias[None, None], e.shape).astype(e.dtype)
    along = Tangents(e, _instantiated(d.carry))
    saved = saved_of(inputs, Walk(states, gates))
    douts = _bind(Which(which.engine, "tangents"), saved, along)
    if not which.save:
        return states, douts
    dheard = jnp.matmul(read(along.carry[0], douts[0]), w_hh, preferred_element_type=gates.dtype)
    dz = e.astype(gates.dtype) + spread(dheard, kind.of_h)
    return outs, [*douts, jnp.concatenate(kind.activate_tangent(four(gates), four(dz)), axis=-1)]


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, ad.Zero)


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda a: isinstance(a, ad.Zero))


def _instantiated(tree: Any) -> Any:
    return jax.tree.map(ad.instantiate_zeros, tree, is_leaf=lambda a: isinstance(a, ad.Zero))


def _transpose(cotangents: Any, *leaves: Any, which: Which) -> list[Any]:
    """Linear in the second argument, whose leaves come last."""
    saved, along = _arguments(which, leaves)
    cotangents = [ad.instantiate_zeros(one) for one in cotangents]
    if which.walk == "tangents":
        turned, wanted = "backward", tuple(cotangents)
    else:
        turned, wanted = "tangents", Tangents(cotangents[0], tuple(cotangents[1:]))
    outs = _bind(Which(which.engine, turned), saved, wanted)
    places = jax.tree.leaves(along, is_leaf=ad.is_undefined_primal)
    outs = [out if ad.is_undefined_primal(a) else None for out, a in zip(outs, places, strict=True)]
    return [None] * (len(leaves) - len(outs)) + outs


def _axes(which: Which, leaves: Any) -> list[int]:
    """Of each argument, the axis of the rows."""
    args = _arguments(which, leaves)
    found = jax.tree.map(lambda axis, tree: [axis] * len(jax.tree.leaves(tree)), ROWS[which.walk][0], args)
    return jax.tree.leaves(found)


def _mapped(leaves: Any, dims: Any, *, which: Which) -> tuple[list[Any], list[int]]:
    """The mapped axis becomes rows, with those that are there."""
    axes = _axes(which, leaves)
    mapped = [dim is not None for dim in dims]
    if any(axis == NO_ROWS for axis, is_mapped in zip(axes, mapped, strict=True) if is_mapped):
        plain = REFERENCES[which.engine.kind]
        ins = [dim if is_mapped else None for dim, is_mapped in zip(dims, mapped, strict=True)]
        outs = jax.vmap(lambda *leaves: _run(plain, which, *_arguments(which, leaves)), ins)(*leaves)
        return outs, [0] * len(outs)
    size = next(a.shape[dim] for a, dim, is_mapped in zip(leaves, dims, mapped, strict=True) if is_mapped)

    def folded(a: Any, dim: Any, axis: int, is_mapped: bool) -> Array:
        if axis == NO_ROWS:
            return a
        if is_mapped:
            a = jnp.moveaxis(a, dim, axis)
        else:
            a = jnp.repeat(jnp.expand_dims(a, axis), size, axis)
        return a.reshape(*a.shape[:axis], size * a.shape[axis + 1], *a.shape[axis + 2 :])

    def unfolded(a: Array, axis: int) -> Array:
        return a.reshape(*a.shape[:axis], size, a.shape[axis] // size, *a.shape[axis + 1 :])

    outs = kernel_walk_p.bind(*map(folded, leaves, dims, axes, mapped), which=which)
    out_axes = [1, *[0 if which.walk == "backward" else 1] * (len(outs) - 1)]
    return list(map(unfolded, outs, out_axes)), out_axes


kernel_walk_p = Primitive("kernel_walk")
kernel_walk_p.multiple_results = True
kernel_walk_p.def_impl(_implementation)
kernel_walk_p.def_effectful_abstract_eval(_types)
mlir.register_lowering(kernel_walk_p, mlir.lower_fun(_implementation, multiple_results=True))
ad.primitive_jvps[kernel_walk_p] = _derivative
ad.primitive_transposes[kernel_walk_p] = _transpose
batching.primitive_batchers[kernel_walk_p] = _mapped
