"""The cells that kernels know, as formulas of one unit.

Each has four columns a unit, whose pre-activations z a step computes. Most columns hear the input, by
u; most hear h_{t-1}, by a column of W; all have a bias:

    z = u + h_{t-1} W + b

The LSTM's four hear both; its memory is c:

    i, f, g, o = σ(z_i), σ(z_f), tanh(z_g), σ(z_o);  c_t = f c_{t-1} + i g;  h_t = o tanh(c_t)

The GRU's are r and k, which hear both, q, which hears h alone, and n, which hears the input alone; its
memory is h:

    r, k = σ(z_r), σ(z_k);  q = z_q;  n = tanh(z_n + r q);  h_t = (1 - k) n + k h_{t-1}

(k, how much is kept, is the z of :func:`lstm_jax.gru_step`.) The functions take numbers, or arrays that
are alike in any layout: rows before units in a TPU's kernels, units before rows in a GPU's.
"""

from __future__ import annotations

import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from lstm_jax._types import Array
from lstm_jax.cells._linear import sigmoid

#: One array for each column: pre-activations, or the gates that they became.
Four: TypeAlias = tuple[Array, Array, Array, Array]
#: What a cell carries: h first, its memory last. The GRU's is h itself.
States: TypeAlias = tuple[Array, ...]
Sigmoid: TypeAlias = Callable[[Array], Array]


class Kind(ABC):
    """A cell that kernels know."""

    name: str
    count: int  # of the states
    of_x: tuple[int, ...]  # the columns that hear the input
    of_h: tuple[int, ...]  # the columns that hear h

    @abstractmethod
    def activate(self, z: Four, sigmoid: Sigmoid = sigmoid) -> Four:
        """The gates."""

    @abstractmethod
    def update(self, gates: Four, before: Array) -> States:
        """The states after a step, given the memory before it."""

    @abstractmethod
    def activate_tangent(self, gates: Four, dz: Four) -> Four:
        """The gates' tangents, by their values alone."""

    @abstractmethod
    def cotangent(self, gates: Four, before: Array, after: Array, bars: States) -> tuple[Four, Array]:
        """Cotangents of z and of the memory before, given those of the states and the memory around."""

    def tangent(self, gates: Four, before: Array, dbefore: Array, dz: Four) -> States:
        """The states' tangents, of which ``cotangent`` is the transpose."""
        along = self.activate_tangent(gates, dz), dbefore
        states: States = jax.jvp(self.update, (gates, before), along)[1]
        return states

    def total(self, *terms: Mapping[int, Array]) -> Four:
        """The sum of what is there of each column."""
        first, second, third, fourth = (
            functools.reduce(operator.add, [term[n] for term in terms if n in term]) for n in range(4)
        )
        return first, second, third, fourth


def parts(a: Array, columns: Sequence[int]) -> dict[int, Array]:
    """The columns that lie side by side on the last axis."""
    return dict(zip(columns, jnp.split(a, len(columns), axis=-1), strict=True))


def spread(a: Array, columns: Sequence[int]) -> Array:
    """All four side by side, of which ``a`` has some; the others are 0."""
    if len(columns) == 4:
        return a
    there = parts(a, columns)
    nothing = jnp.zeros_like(there[columns[0]])
    return jnp.concatenate([there.get(n, nothing) for n in range(4)], axis=-1)


def four(a: Array) -> Four:
    """All four columns, which lie side by side on the last axis."""
    first, second, third, fourth = jnp.split(a, 4, axis=-1)
    return first, second, third, fourth


class _LSTM(Kind):
    """i, f, g, o."""

    name = "LSTM"
    count = 2
    of_x = of_h = 0, 1, 2, 3

    def activate(self, z: Four, sigmoid: Sigmoid = sigmoid) -> Four:
        return sigmoid(z[0]), sigmoid(z[1]), jnp.tanh(z[2]), sigmoid(z[3])

    def update(self, gates: Four, before: Array) -> States:
        i, f, g, o = gates
        c = f * before + i * g
        return o * jnp.tanh(c), c

    def activate_tangent(self, gates: Four, dz: Four) -> Four:
        i, f, g, o = gates
        return i * (1 - i) * dz[0], f * (1 - f) * dz[1], (1 - g * g) * dz[2], o * (1 - o) * dz[3]

    def cotangent(self, gates: Four, before: Array, after: Array, bars: States) -> tuple[Four, Array]:
        (i, f, g, o), (dh, dc), shown = gates, bars, jnp.tanh(after)
        dc = dc + dh * o * (1 - shown * shown)
        z_bar = (
            dc * g * i * (1 - i),
            dc * before * f * (1 - f),
            dc * i * (1 - g * g),
            dh * shown * o * (1 - o),
        )
        return z_bar, dc * f


class _GRU(Kind):
    """r, k, q, n."""

    name = "GRU"
    count = 1
    of_x = 0, 1, 3
    of_h = 0, 1, 2

    def activate(self, z: Four, sigmoid: Sigmoid = sigmoid) -> Four:
        r, k, q = sigmoid(z[0]), sigmoid(z[1]), z[2]
        return r, k, q, jnp.tanh(z[3] + r * q)

    def update(self, gates: Four, before: Array) -> States:
        _, k, _, n = gates
        return ((1 - k) * n + k * before,)

    def activate_tangent(self, gates: Four, dz: Four) -> Four:
        r, k, q, n = gates
        dr, dq = r * (1 - r) * dz[0], dz[2]
        return dr, k * (1 - k) * dz[1], dq, (1 - n * n) * (dz[3] + q * dr + r * dq)

    def cotangent(self, gates: Four, before: Array, after: Array, bars: States) -> tuple[Four, Array]:
        (r, k, q, n), (dh,) = gates, bars
        dn = dh * (1 - k) * (1 - n * n)
        return (dn * q * r * (1 - r), dh * (before - n) * k * (1 - k), dn * r, dn), dh * k


KINDS: tuple[Kind, Kind] = _LSTM(), _GRU()
LSTM_KIND, GRU_KIND = KINDS
