"""The protocols of cells that ``unroll`` accepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from lstm_jax._types import Array, Carry, Params


@runtime_checkable
class Cell(Protocol):
    """The three methods of a cell. :func:`lstm_jax.unroll` accepts any object that has them.

    A cell must be hashable and hold no arrays, because it is part of the key under which a compiled program
    is cached. A frozen dataclass of hyperparameters meets both conditions.
    """

    def init(self, key: Array) -> Params:
        """Fresh parameters."""
        ...

    def initial_carry(self, batch_shape: Sequence[int] = (), params: Params | None = None) -> Carry:
        """The carry before the first step; ``params`` is needed where the initial carry is learned."""
        ...

    def step(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
        """One time step: ``(carry, x) -> (carry, y)``."""
        ...


@runtime_checkable
class SplitCell(Cell, Protocol):
    """A cell whose step splits into an input projection and a recurrent part, which the fused scan can run.

    ``step`` is the composition of three methods::

        u = cell.project(params, x)  # the part that does not need the carry
        z = cell.recur(params, carry, u)  # affine in the carry and in u: the matrix product in the loop
        carry, y = cell.update(params, carry, z)  # the rest, without a matrix product

    ``project``, ``recur`` and ``emit`` accept arrays with any leading axes. ``recur`` must be affine in the
    carry, with factors that do not depend on u. Otherwise the cell runs through the plain scan, and
    ``explain`` gives the reason.

    A cell that multiplies its new state by another matrix (a projection) may have a fourth method, ``emit``,
    which must be affine in the result of ``update``::

        raw = cell.update(params, carry, z)
        carry, y = cell.emit(params, raw)
    """

    def project(self, params: Params, x: Array) -> Any:
        """The projected input u, any pytree."""
        ...

    def recur(self, params: Params, carry: Carry, u: Any) -> Any:
        """The pre-activation z, any pytree."""
        ...

    def update(self, params: Params, carry: Carry, z: Any) -> tuple[Carry, Array]:
        """The new carry and the output."""
        ...


class NoisyCell(Cell, Protocol):
    """A cell with noise. ``perturb`` and ``draw`` are called only if ``unroll`` is given a key.

    Either method may be missing. The result of ``perturb`` replaces the parameters in calls of the other
    methods. The result of ``draw`` is passed as the argument ``noise`` to ``step`` and, for a
    :class:`SplitCell`, to ``update``. ``unroll`` draws the noise again in the backward pass, so it is never
    stored for all steps.
    """

    def perturb(self, params: Params, key: Array, carry: Carry, x: Array) -> Params:
        """Parameters with per-sequence noise; ``carry`` and ``x`` are those of one step, for their shapes."""
        ...

    def draw(self, key: Array, carry: Carry) -> Any:
        """Per-step noise, any pytree of arrays; ``carry`` is that of one step, for its shapes."""
        ...

    def step(self, params: Params, carry: Carry, x: Array, noise: Any = None) -> tuple[Carry, Array]:
        """One time step."""
        ...


@runtime_checkable
class ParallelCell(Cell, Protocol):
    """A cell whose state obeys a linear recurrence with coefficients that depend only on the input.

    With its carry h, one array, and coefficients 0 < a_t <= 1 and b_t of any sign::

        h_t = a_t * h_{t-1} + b_t  # elementwise
        y_t = h_t

    An associative scan computes all steps of such a cell at once (``implementation="parallel"``).
    """

    def coefficients(self, params: Params, x: Array) -> tuple[Array, Array]:
        """``(log a, b)`` in float32 or wider, for x with any leading axes."""
        ...
