"""The walks of ``kernels.engine`` in plain JAX: for every device, and what others are held by."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax._types import Array, state_dtype
from lstm_jax.cells._linear import add_bias, matmul
from lstm_jax.unrolling.kernels.engine import Engine, Inputs, Leaf, Saved, Tangents, Walk, read
from lstm_jax.unrolling.kernels.formulas import KINDS, Kind, four, spread
from lstm_jax.unrolling.steps import Flags, scan_steps


def forward(kind: Kind, inputs: Inputs, save: bool) -> Walk:
    """The definition, in the one time loop."""
    u, w_hh, bias, carry, valid = inputs

    def step(carry: Any, u: Array) -> tuple[Any, None, Array | None]:
        u = u.astype(state_dtype(u.dtype))
        z = add_bias(spread(u, kind.of_x), bias) + heard(kind, carry[0], w_hh)
        gates = kind.activate(four(z))
        states = kind.update(gates, carry[-1].astype(z.dtype))
        return like(states, carry), None, jnp.concatenate(gates, axis=-1) if save else None

    scanned = scan_steps(step, None, carry, u, Flags(valid), reverse=False, carries=True)
    return Walk(scanned.carries, scanned.saved)


def tangents(kind: Kind, saved: Saved, along: Tangents) -> Leaf:
    """Forward's tangents given those of z that come from elsewhere than h: dz_t = e_t + dh_{t-1} W.

    Linear in ``along``, and always this plain loop, of which reverse mode takes the transpose alone.
    """
    w_hh, gates, memory, first, valid = saved

    def step(carry: Any, at: Any) -> tuple[Any, None, None]:
        e, gates, before = at
        dz = e.astype(gates.dtype) + heard(kind, carry[0], w_hh)
        before, dbefore = before.astype(gates.dtype), carry[-1].astype(gates.dtype)
        return like(kind.tangent(four(gates), before, dbefore, four(dz)), carry), None, None

    steps = along.zs, gates, read(first, memory)
    return scan_steps(step, None, along.carry, steps, Flags(valid), reverse=False, carries=True).carries


def backward(kind: Kind, saved: Saved, wanted: Leaf) -> Tangents:
    """The transpose of :func:`tangents`."""
    compute, first = saved.w_hh.dtype, saved.first
    carry = (jnp.zeros_like(first, compute), first)[-kind.count :]
    zeros = Tangents(jnp.zeros_like(saved.gates, compute), jax.tree.map(jnp.zeros_like, carry))
    return jax.vjp(partial(tangents, kind, saved), zeros)[1](wanted)[0]


def heard(kind: Kind, h: Array, w_hh: Array) -> Array:
    """h W, for all four columns."""
    return spread(matmul(h, w_hh, w_hh.dtype), kind.of_h)


def like(states: Any, carry: Any) -> Any:
    """The states in the dtypes of the carry."""
    return tuple(a.astype(b.dtype) for a, b in zip(states, carry, strict=True))


def nothing(T: int, B: int, H: int, dtype: Any) -> None:
    """Stands in its way."""


REFERENCES = {
    kind: Engine(kind, "plain JAX", nothing, partial(forward, kind), partial(backward, kind))
    for kind in KINDS
}
