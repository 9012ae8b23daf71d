"""The functions of ``kernels.engine`` in plain JAX, for all devices. Tests compare the kernels with them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax._types import Array, state_dtype
from lstm_jax.cells._linear import add_bias, matmul
from lstm_jax.unrolling.kernels.engine import (
    Engine,
    ForwardOutput,
    Inputs,
    Leaf,
    Residuals,
    Tangents,
    previous_states,
)
from lstm_jax.unrolling.kernels.formulas import FORMULAS, CellFormula, place_columns, split_columns
from lstm_jax.unrolling.steps import Flags, end_step


def forward(formula: CellFormula, inputs: Inputs, save: bool) -> ForwardOutput:
    """The states after each step and, if ``save``, the gates."""
    u, w_hh, bias, carry, valid = inputs

    def body(carry: Any, at: Any) -> tuple[Any, Any]:
        flag, u = at
        u = u.astype(state_dtype(u.dtype))
        z = add_bias(place_columns(u, formula.input_columns), bias)
        z = z + recurrent_product(formula, carry[0], w_hh)
        gates = formula.activate(split_columns(z))
        states = formula.update(gates, carry[-1].astype(z.dtype))
        carry, _ = end_step(flag, carry, cast_like(states, carry), None)
        return carry, (carry, jnp.concatenate(gates, axis=-1) if save else None)

    return ForwardOutput(*lax.scan(body, carry, (Flags(valid), u))[1])


def tangents(formula: CellFormula, residuals: Residuals, dinputs: Tangents) -> Leaf:
    """Tangents of the states: dz_t = e_t + dh_{t-1} W, where e_t is ``dinputs.zs``.

    This function is linear in ``dinputs``. Every engine uses this plain loop, because reverse mode runs
    only its transpose.
    """
    w_hh, gates, cell_states, initial, valid = residuals

    def body(dcarry: Any, at: Any) -> tuple[Any, Any]:
        flag, (e, gates, previous) = at
        dz = e.astype(gates.dtype) + recurrent_product(formula, dcarry[0], w_hh)
        previous, dprevious = previous.astype(gates.dtype), dcarry[-1].astype(gates.dtype)
        dstates = formula.tangent(split_columns(gates), previous, dprevious, split_columns(dz))
        dcarry, _ = end_step(flag, dcarry, cast_like(dstates, dcarry), None)
        return dcarry, dcarry

    steps = dinputs.zs, gates, previous_states(initial, cell_states)
    return lax.scan(body, dinputs.carry, (Flags(valid), steps))[1]


def backward(formula: CellFormula, residuals: Residuals, cotangents: Leaf) -> Tangents:
    """The transpose of :func:`tangents`."""
    compute, initial = residuals.w_hh.dtype, residuals.initial
    carry = (jnp.zeros_like(initial, compute), initial)[-formula.num_states :]
    zeros = Tangents(jnp.zeros_like(residuals.gates, compute), jax.tree.map(jnp.zeros_like, carry))
    return jax.vjp(partial(tangents, formula, residuals), zeros)[1](cotangents)[0]


def recurrent_product(formula: CellFormula, h: Array, w_hh: Array) -> Array:
    """h W in all four columns."""
    return place_columns(matmul(h, w_hh, w_hh.dtype), formula.recurrent_columns)


def cast_like(states: Any, carry: Any) -> Any:
    """The states in the dtypes of the carry."""
    return tuple(a.astype(b.dtype) for a, b in zip(states, carry, strict=True))


def always_supported(T: int, B: int, H: int, dtype: Any) -> None:
    """Plain JAX supports all sizes."""


REFERENCES = {
    formula: Engine(
        formula, "plain JAX", always_supported, partial(forward, formula), partial(backward, formula)
    )
    for formula in FORMULAS
}
