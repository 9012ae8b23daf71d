"""What a cell is: the protocols that ``unroll`` accepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from lstm_jax._types import Array, Carry, Params


@runtime_checkable
class Cell(Protocol):
    """Three methods make a cell; :func:`lstm_jax.unroll` takes any object that has them.

    A cell is hashable and holds no arrays (a frozen dataclass of hyperparameters), because it is
    part of the key under which a compiled loop is found again.
    """

    def init(self, key: Array) -> Params:
        """Fresh parameters."""
        ...

    def initial_carry(self, batch_shape: Sequence[int] = (), params: Params | None = None) -> Carry:
        """The carry before the first step; ``params`` is needed where it is learned."""
        ...

    def step(self, params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
        """One step of time: ``(carry, x) -> (carry, y)``."""
        ...


@runtime_checkable
class SplitCell(Cell, Protocol):
    """A cell that also shows where its work lies, and so gets the fast path.

    ``step`` is then the composition of the three::

        u = cell.project(params, x)  # all that needs no carry
        z = cell.recur(params, carry, u)  # linear in the carry and in u: the loop's matmul
        carry, y = cell.update(params, carry, z)  # the rest, without a matmul

    ``project``, ``recur`` and ``emit`` are given arrays with any leading axes. ``recur`` must be affine in
    the carry, with factors that do not depend on u; a cell for which it is not goes through the
    plain scan, and ``explain`` says so.

    Where the new state goes through one more product before it is handed on (a projection), the
    cell may have a fourth method, ``emit``, affine in what ``update`` then returns::

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


def splits(cell: Any) -> bool:
    """Whether a cell is a :class:`SplitCell`; some have the methods only if a cell inside has them."""
    return all(callable(getattr(cell, name, None)) for name in ("project", "recur", "update"))


class NoisyCell(Cell, Protocol):
    """A cell with noise. Its two methods are called when ``unroll`` is given a key, and only then.

    Either may be missing. What ``perturb`` makes of the parameters is what the cell's other methods
    are then given in their place. What ``draw`` gives is handed to ``step``, and to ``update`` of a
    :class:`SplitCell`, as one more argument, ``noise``; without it there is none. ``unroll`` draws
    anew wherever the backward pass needs the noise once more, so it is never kept for all of time.
    """

    def perturb(self, params: Params, key: Array, carry: Carry, x: Array) -> Params:
        """What is random once a sequence; ``carry`` and ``x`` are one step's, for their shapes."""
        ...

    def draw(self, key: Array, carry: Carry) -> Any:
        """The noise of one step, any pytree of arrays; ``carry`` is one step's, for its shapes."""
        ...

    def step(self, params: Params, carry: Carry, x: Array, noise: Any = None) -> tuple[Carry, Array]:
        """One step of time."""
        ...


def event_ndim(cell: Any) -> int:
    """How many trailing axes of an input are features: 1, unless the cell says otherwise."""
    return int(getattr(cell, "event_ndim", 1))


@runtime_checkable
class ParallelCell(Cell, Protocol):
    """A cell whose state obeys a linear recurrence that the input alone decides.

    With its carry h, one array, and factors 0 < a_t <= 1 and summands b_t of any sign::

        h_t = a_t * h_{t-1} + b_t  # elementwise
        y_t = h_t

    All steps of such a cell can be computed at once (``lstm_jax.unrolling.associative``).
    """

    def coefficients(self, params: Params, x: Array) -> tuple[Array, Array]:
        """``(log a, b)`` in float32 or wider, for x with any leading axes."""
        ...
