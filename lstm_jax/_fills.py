"""A workaround for wrong products on CPUs (an error in jaxlib) if a matrix is filled with one value.

Since jaxlib 0.10.2, XLA for CPUs fuses a matrix product with a reduction of its result. If the right operand
is a scalar that is broadcast inside the compiled program, such as ``jnp.zeros((60, 60))`` under ``jax.jit``,
the fused code reads outside of its arrays, and the results are arbitrary: the maximum of
``x @ jnp.zeros((60, 60))`` may be 1e36. Arguments of the program are not affected. The same fusion has
another error, https://github.com/jax-ml/jax/issues/39103.

:func:`unfilled` multiplies weights that are computed inside the program by a row of ones that XLA does not
simplify. In other code, ``XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=`` turns the fusion off.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version

from lstm_jax._devices import is_explicit
from lstm_jax._types import Array

#: Whether this jaxlib has the error; all known releases have it.
AFFECTED = tuple(map(int, jaxlib.version.__version__.split(".")[:3])) >= (0, 10, 2)


def unfilled(tree: Any) -> Any:
    """The weights and their tangents, so that XLA does not treat them as filled with one value.

    Arguments of the compiled program and concrete arrays are returned as they are.
    """
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
    if not traced or not AFFECTED or jax.default_backend() != "cpu":
        return tree

    def one(w: Any) -> Any:
        return _unfilled_tangent(times_ones(w)) if isinstance(w, jax.core.Tracer) and w.ndim > 1 else w

    return jax.tree.map(one, tree)


@jax.custom_jvp
def _unfilled_tangent(w: Array) -> Array:
    return w


@_unfilled_tangent.defjvp
def _unfilled_tangent_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return _unfilled_tangent(*primals), times_ones(*tangents)


def times_ones(w: Array) -> Array:
    """``w``, multiplied by ones if the traced program computes it; linear in ``w``.

    It relies on an attribute of JAX's tracers; without it ``w`` is returned as it is, and a test fails.
    """
    made: Any = w if AFFECTED and jax.default_backend() == "cpu" else None
    while isinstance(made, jax.core.Tracer):
        equation = getattr(made, "parent", None)
        if equation is None:
            made = getattr(made, "primal", None) if hasattr(made, "primal") else getattr(made, "val", None)
        elif equation.primitive.name == "convert_element_type":  # e.g. weights in another precision
            (made,) = equation.in_tracers
        elif jnp.issubdtype(w.dtype, jnp.floating) and not is_explicit(w.aval):
            shape = (1,) * (w.ndim - 1) + w.shape[-1:]
            return w * (1 + 0 * jax.lax.broadcasted_iota(jnp.float32, shape, w.ndim - 1)).astype(w.dtype)
        else:
            return w
    return w
