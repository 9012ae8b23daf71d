"""The JAX primitive around an engine's kernels: jvp and grad of any order, vmap, and remat.

One private primitive has three operations, each over T steps:

    forward    u, W, b, h_0, c_0    ->  h_t, c_t and, if saved, the gates
    tangents   e_t, dh_0, dc_0      ->  dh_t, dc_t         linear, given the residuals of forward
    backward   h̄_t, c̄_t             ->  z̄_t, h̄_0, c̄_0      the transpose of ``tangents``

(a GRU has no c). Here e_t = du_t + h_{t-1} dW + db is the part of dz_t that comes from the inputs and the
parameters. It is computed for all steps at once outside the primitive, as in ``fused_scan``. Its
transpose, one product after the loop, is the gradient of the weights. It follows that

- the derivative of ``forward`` is a ``forward`` that saves its gates, then ``tangents``;
- ``tangents`` and ``backward`` are transposes of each other. Both are linear in their second argument.
  Their derivative in the residuals is that of the reference implementation;
- vmap turns a mapped axis into batch rows. If the weights or the bias are mapped, it maps the reference
  implementation instead.

``forward`` and ``backward`` run the engine's kernels. ``tangents`` is always the plain loop, because
reverse mode runs only its transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from lstm_jax._types import Array, state_dtype
from lstm_jax.unrolling.kernels.engine import (
    BATCH_AXES,
    NO_BATCH,
    Engine,
    ForwardOutput,
    Inputs,
    Residuals,
    Tangents,
    previous_states,
    residuals_of,
)
from lstm_jax.unrolling.kernels.formulas import place_columns, split_columns
from lstm_jax.unrolling.kernels.reference import REFERENCES, tangents


class PrimitiveParams(NamedTuple):
    """Static parameters of the primitive."""

    engine: Engine
    operation: str  # "forward", "tangents" or "backward"
    save: bool = False  # forward: whether to return the gates, too
    structure: Any = None  # the tree structure of the arguments


def forward_states(engine: Engine, inputs: Inputs) -> tuple[Array, ...]:
    """The states after each step, (T, B, H) each."""
    return tuple(_bind(PrimitiveParams(engine, "forward"), inputs))


def _bind(params: PrimitiveParams, *args: Any) -> list[Any]:
    leaves, structure = jax.tree.flatten(args)
    return kernel_p.bind(*leaves, params=params._replace(structure=structure))


def _run(engine: Engine, params: PrimitiveParams, *args: Any) -> list[Any]:
    """Run the operation. Falls back to plain JAX if vmap made more rows than the engine supports."""
    if engine.unsupported_reason(*_sizes(args[0])) is not None:
        engine = REFERENCES[engine.formula]
    if params.operation == "forward":
        return jax.tree.leaves(engine.forward(args[0], params.save))
    if params.operation == "tangents":
        return list(tangents(engine.formula, *args))
    return jax.tree.leaves(engine.backward(*args))


def _sizes(first: Any) -> tuple[int, int, int, Any]:
    """T, B, H and the compute dtype, from the first argument."""
    T, B, _ = (first.u if isinstance(first, Inputs) else first.gates).shape
    return T, B, first.w_hh.shape[-2], first.w_hh.dtype


def _unflatten(params: PrimitiveParams, leaves: Any) -> Any:
    return jax.tree.unflatten(params.structure, leaves)


def _implementation(*leaves: Array, params: PrimitiveParams) -> list[Array]:
    return _run(params.engine, params, *_unflatten(params, leaves))


def _abstract_eval(*leaves: Any, params: PrimitiveParams) -> tuple[list[Any], Any]:
    """Types of the results, and the side effects of an interpreter."""
    effects: Any = set()
    if params.engine.effectful and params.operation != "tangents":
        effects = jax.make_jaxpr(partial(_implementation, params=params))(*leaves).effects
    return _result_types(params, *_unflatten(params, leaves)), effects


def _result_types(params: PrimitiveParams, first: Any, *rest: Any) -> list[Any]:
    if params.operation == "forward":
        # Inside shard_map, the carry varies over every mesh axis that any input varies over.
        u, h0 = first.u, first.carry[0]
        u = u.update(manual_axis_type=h0.manual_axis_type)
        states = [u.update(shape=(*u.shape[:-1], a.shape[-1]), dtype=a.dtype) for a in first.carry]
        gates = u.update(shape=(*u.shape[:-1], 4 * h0.shape[-1]), dtype=state_dtype(u.dtype))
        return [*states, gates] if params.save else states
    if params.operation == "tangents":
        return [first.cell_states.update(dtype=a.dtype) for a in rest[0].carry]
    zs = first.gates.update(dtype=first.w_hh.dtype)
    return [zs, *(first.initial.update(dtype=a.dtype) for a in rest[0])]


def _jvp(leaves: Any, dleaves: Any, *, params: PrimitiveParams) -> tuple[list[Any], list[Any]]:
    args, dargs = _unflatten(params, leaves), _unflatten(params, dleaves)
    if params.operation == "forward":
        return _forward_jvp(params, args[0], dargs[0])
    (residuals, linear), (dresiduals, dlinear) = args, dargs
    outs = _bind(params, residuals, linear)

    def of_residuals(w_hh: Array, gates: Array, cell_states: Array, initial: Array) -> list[Array]:
        changed = Residuals(w_hh, gates, cell_states, initial, residuals.valid)
        return _run(REFERENCES[params.engine.formula], params, changed, linear)

    of_linear = partial(_bind, params, residuals)
    return outs, linear_jvp(outs, of_linear, dlinear, of_residuals, residuals[:-1], dresiduals[:-1])


def _forward_jvp(params: PrimitiveParams, inputs: Inputs, dinputs: Inputs) -> tuple[list[Any], list[Any]]:
    formula = params.engine.formula
    outs = _bind(params._replace(save=True), inputs)
    *states, gates = outs
    w_hh, previous_h = inputs.w_hh, previous_states(inputs.carry[0], states[0])
    e = place_columns(ad.instantiate_zeros(dinputs.u), formula.input_columns)
    if not is_zero(dinputs.w_hh):  # summed in float32 or wider, and so is its transpose, the weight gradient
        of_w = jnp.matmul(previous_h, dinputs.w_hh, preferred_element_type=w_hh.dtype)
        e = e + place_columns(of_w, formula.recurrent_columns)
    if dinputs.bias is not None and not is_zero(dinputs.bias):
        # Broadcast before the cast, so that the transpose sums the bias gradient in the wide dtype.
        e = e + jnp.broadcast_to(dinputs.bias[None, None], e.shape).astype(e.dtype)
    linear = Tangents(e, instantiate_zeros(dinputs.carry))
    residuals = residuals_of(inputs, ForwardOutput(states, gates))
    douts = _bind(PrimitiveParams(params.engine, "tangents"), residuals, linear)
    if not params.save:
        return states, douts
    previous_dh = previous_states(linear.carry[0], douts[0])
    of_dh = jnp.matmul(previous_dh, w_hh, preferred_element_type=gates.dtype)
    dz = e.astype(gates.dtype) + place_columns(of_dh, formula.recurrent_columns)
    dgates = formula.activate_tangent(split_columns(gates), split_columns(dz))
    return outs, [*douts, jnp.concatenate(dgates, axis=-1)]


def _transpose(cotangents: Any, *leaves: Any, params: PrimitiveParams) -> list[Any]:
    """Transpose in the second argument, whose leaves come last."""
    residuals, linear = _unflatten(params, leaves)
    cotangents = [ad.instantiate_zeros(a) for a in cotangents]
    argument: Any
    if params.operation == "tangents":
        operation, argument = "backward", tuple(cotangents)
    else:
        operation, argument = "tangents", Tangents(cotangents[0], tuple(cotangents[1:]))
    outs = _bind(PrimitiveParams(params.engine, operation), residuals, argument)
    linear_leaves = jax.tree.leaves(linear, is_leaf=ad.is_undefined_primal)
    outs = [out if ad.is_undefined_primal(a) else None for out, a in zip(outs, linear_leaves, strict=True)]
    return [None] * (len(leaves) - len(outs)) + outs


def _batch_axes(params: PrimitiveParams, leaves: Any) -> list[int]:
    """The batch axis of each argument."""
    args, axes = _unflatten(params, leaves), BATCH_AXES[params.operation][0]
    return jax.tree.leaves(jax.tree.map(lambda axis, tree: [axis] * len(jax.tree.leaves(tree)), axes, args))


def _batch(leaves: Any, dims: Any, *, params: PrimitiveParams) -> tuple[list[Any], list[int]]:
    """The vmap rule: fold the mapped axis into the batch axis."""
    axes = _batch_axes(params, leaves)
    if any(axis == NO_BATCH and dim is not None for axis, dim in zip(axes, dims, strict=True)):
        call = partial(_run, REFERENCES[params.engine.formula], params)
        outs = jax.vmap(lambda *leaves: call(*_unflatten(params, leaves)), dims)(*leaves)
        return outs, [0] * len(outs)
    size = mapped_size(leaves, dims)
    outs = kernel_p.bind(*map(partial(fold_rows, size), leaves, dims, axes), params=params)
    out_axes = [1, *[0 if params.operation == "backward" else 1] * (len(outs) - 1)]
    return list(map(partial(unfold_rows, size), outs, out_axes)), out_axes


# --- rules that the primitive of ``unrolling.cudnn`` uses as well --------------------------------


def is_zero(tangent: Any) -> bool:
    """Whether a tangent is a symbolic zero."""
    return isinstance(tangent, ad.Zero)


def instantiate_zeros(tree: Any) -> Any:
    """The tree with arrays instead of symbolic zeros."""
    return jax.tree.map(ad.instantiate_zeros, tree, is_leaf=is_zero)


def linear_jvp(
    outs: Sequence[Any],
    of_linear: Callable[[Any], Sequence[Any]],
    dlinear: Any,
    of_residuals: Callable[..., Sequence[Any]],
    residuals: Sequence[Any],
    dresiduals: Sequence[Any],
) -> list[Any]:
    """Tangents of an operation that is linear in one argument and depends on residuals.

    Args:
        outs: the results of the operation.
        of_linear: the operation as a function of its linear argument.
        dlinear: the tangent of that argument.
        of_residuals: the operation as a function of its residuals, in plain JAX.
        residuals, dresiduals: the residuals and their tangents.

    Each tangent may be a symbolic zero.
    """
    terms = []
    if not all(map(is_zero, jax.tree.leaves(dlinear, is_leaf=is_zero))):
        terms.append(of_linear(instantiate_zeros(dlinear)))
    perturbed = [index for index, tangent in enumerate(dresiduals) if not is_zero(tangent)]
    if perturbed:

        def of_perturbed(*values: Any) -> list[Any]:
            changed = dict(zip(perturbed, values, strict=True))
            return list(of_residuals(*(changed.get(index, a) for index, a in enumerate(residuals))))

        primals, tangents = ([values[index] for index in perturbed] for values in (residuals, dresiduals))
        terms.append(jax.jvp(of_perturbed, primals, tangents)[1])
    if not terms:
        return [ad.Zero(jax.typeof(a).to_tangent_aval()) for a in outs]
    return [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)]


def mapped_size(arrays: Sequence[Any], dims: Sequence[int | None]) -> int:
    """The size of the axis that ``vmap`` maps. ``dims`` has None for an array without it."""
    return next(a.shape[dim] for a, dim in zip(arrays, dims, strict=True) if dim is not None)


def fold_rows(size: int, a: Any, dim: int | None, axis: int) -> Any:
    """Fold the mapped axis ``dim`` into the batch axis ``axis``. An array that is not mapped is repeated."""
    if axis == NO_BATCH:
        return a
    a = jnp.repeat(jnp.expand_dims(a, axis), size, axis) if dim is None else jnp.moveaxis(a, dim, axis)
    return a.reshape(*a.shape[:axis], size * a.shape[axis + 1], *a.shape[axis + 2 :])


def unfold_rows(size: int, a: Any, axis: int) -> Any:
    """Divide the batch axis into the mapped axis, in the same place, and the batch axis after it."""
    return a.reshape(*a.shape[:axis], size, a.shape[axis] // size, *a.shape[axis + 1 :])


kernel_p = Primitive("kernel_scan")
kernel_p.multiple_results = True
kernel_p.def_impl(_implementation)
kernel_p.def_effectful_abstract_eval(_abstract_eval)
mlir.register_lowering(kernel_p, mlir.lower_fun(_implementation, multiple_results=True))
ad.primitive_jvps[kernel_p] = _jvp
ad.primitive_transposes[kernel_p] = _transpose
batching.primitive_batchers[kernel_p] = _batch
