"""Pointwise formulas of the cells that the kernels support.

Each hidden unit has four columns. A step computes their pre-activations z. Most columns have input
weights, which contribute u. Most have recurrent weights, a column of W. All have a bias:

    z = u + h_{t-1} W + b

The LSTM's four columns have input and recurrent weights. Its cell state is c:

    i, f, g, o = σ(z_i), σ(z_f), tanh(z_g), σ(z_o);  c_t = f c_{t-1} + i g;  h_t = o tanh(c_t)

The GRU's columns are r and k with input and recurrent weights, q with recurrent weights only, and n with
input weights only. Its cell state is h:

    r, k = σ(z_r), σ(z_k);  q = z_q;  n = tanh(z_n + r q);  h_t = (1 - k) n + k h_{t-1}

(k, the fraction of h that is kept, is the z of :func:`lstm_jax.gru_step`.) The functions are elementwise,
so they take scalars or arrays of any one shape: (rows, units) in TPU kernels, (units, rows) in GPU kernels.
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

#: One array for each of the four columns: pre-activations or gates.
Columns: TypeAlias = tuple[Array, Array, Array, Array]
#: The carry: h first, the cell state last. For the GRU both are h, which appears once.
States: TypeAlias = tuple[Array, ...]
Sigmoid: TypeAlias = Callable[[Array], Array]


class CellFormula(ABC):
    """The pointwise part of a cell that the kernels support, with its derivatives."""

    name: str
    num_states: int
    input_columns: tuple[int, ...]  # the columns with input weights
    recurrent_columns: tuple[int, ...]  # the columns with recurrent weights

    @abstractmethod
    def activate(self, z: Columns, sigmoid: Sigmoid = sigmoid) -> Columns:
        """The gates."""

    @abstractmethod
    def update(self, gates: Columns, previous: Array) -> States:
        """The states after a step, given the cell state before it."""

    @abstractmethod
    def activate_tangent(self, gates: Columns, dz: Columns) -> Columns:
        """Tangents of the gates, computed from the gates and the tangents of z."""

    @abstractmethod
    def cotangent(
        self, gates: Columns, previous: Array, new: Array, cotangents: States
    ) -> tuple[Columns, Array]:
        """Cotangents of z and of the previous cell state.

        Args:
            gates: the gates of the step.
            previous: the cell state before the step.
            new: the cell state after the step.
            cotangents: cotangents of the states after the step.
        """

    def tangent(self, gates: Columns, previous: Array, dprevious: Array, dz: Columns) -> States:
        """Tangents of the states after a step; :meth:`cotangent` is the transpose."""
        dgates = self.activate_tangent(gates, dz)
        dstates: States = jax.jvp(self.update, (gates, previous), (dgates, dprevious))[1]
        return dstates


def sum_terms(*terms: Mapping[int, Array]) -> Columns:
    """Sum of the terms in each column; a term may lack columns."""
    first, second, third, fourth = (
        functools.reduce(operator.add, [term[n] for term in terms if n in term]) for n in range(4)
    )
    return first, second, third, fourth


def columns_by_index(a: Array, indices: Sequence[int]) -> dict[int, Array]:
    """Split the last axis into the columns with these indices."""
    return dict(zip(indices, jnp.split(a, len(indices), axis=-1), strict=True))


def place_columns(a: Array, indices: Sequence[int]) -> Array:
    """All four columns side by side: those of ``a`` at their indices, zeros elsewhere."""
    if len(indices) == 4:
        return a
    columns = columns_by_index(a, indices)
    zeros = jnp.zeros_like(columns[indices[0]])
    return jnp.concatenate([columns.get(n, zeros) for n in range(4)], axis=-1)


def split_columns(a: Array) -> Columns:
    """Split the last axis into the four columns."""
    first, second, third, fourth = jnp.split(a, 4, axis=-1)
    return first, second, third, fourth


class _LSTM(CellFormula):
    """Columns i, f, g, o."""

    name = "LSTM"
    num_states = 2
    input_columns = recurrent_columns = 0, 1, 2, 3

    def activate(self, z: Columns, sigmoid: Sigmoid = sigmoid) -> Columns:
        return sigmoid(z[0]), sigmoid(z[1]), jnp.tanh(z[2]), sigmoid(z[3])

    def update(self, gates: Columns, previous: Array) -> States:
        i, f, g, o = gates
        c = f * previous + i * g
        return o * jnp.tanh(c), c

    def activate_tangent(self, gates: Columns, dz: Columns) -> Columns:
        i, f, g, o = gates
        return i * (1 - i) * dz[0], f * (1 - f) * dz[1], (1 - g * g) * dz[2], o * (1 - o) * dz[3]

    def cotangent(
        self, gates: Columns, previous: Array, new: Array, cotangents: States
    ) -> tuple[Columns, Array]:
        (i, f, g, o), (dh, dc), tanh_c = gates, cotangents, jnp.tanh(new)
        dc = dc + dh * o * (1 - tanh_c * tanh_c)
        dz = (
            dc * g * i * (1 - i),
            dc * previous * f * (1 - f),
            dc * i * (1 - g * g),
            dh * tanh_c * o * (1 - o),
        )
        return dz, dc * f


class _GRU(CellFormula):
    """Columns r, k, q, n."""

    name = "GRU"
    num_states = 1
    input_columns = 0, 1, 3
    recurrent_columns = 0, 1, 2

    def activate(self, z: Columns, sigmoid: Sigmoid = sigmoid) -> Columns:
        r, k, q = sigmoid(z[0]), sigmoid(z[1]), z[2]
        return r, k, q, jnp.tanh(z[3] + r * q)

    def update(self, gates: Columns, previous: Array) -> States:
        _, k, _, n = gates
        return ((1 - k) * n + k * previous,)

    def activate_tangent(self, gates: Columns, dz: Columns) -> Columns:
        r, k, q, n = gates
        dr, dq = r * (1 - r) * dz[0], dz[2]
        return dr, k * (1 - k) * dz[1], dq, (1 - n * n) * (dz[3] + q * dr + r * dq)

    def cotangent(
        self, gates: Columns, previous: Array, new: Array, cotangents: States
    ) -> tuple[Columns, Array]:
        (r, k, q, n), (dh,) = gates, cotangents
        dn = dh * (1 - k) * (1 - n * n)
        return (dn * q * r * (1 - r), dh * (previous - n) * k * (1 - k), dn * r, dn), dh * k


FORMULAS: tuple[CellFormula, CellFormula] = _LSTM(), _GRU()
LSTM_FORMULA, GRU_FORMULA = FORMULAS
