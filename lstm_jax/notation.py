"""The words the whole library is written in: arrays, carries, cells.

=======  =====================================================================
Symbol   Meaning
=======  =====================================================================
``T``    time steps
``B``    batch; any number of leading batch axes, also none
``D``    input features
``H``    hidden units
``xs``   inputs, time-major: ``(T, *batch, D)``
``x``    the input of one step: ``(*batch, D)``
``h``    hidden state: ``(*batch, H)``
``c``    cell state: ``(*batch, H)``
=======  =====================================================================

The carry of an LSTM is ``(h, c)``, gates stand in the order i, f, g, o, and everything that
walks over time returns ``(carry, ys)`` in the order of :func:`jax.lax.scan`.

This module imports nothing of the library; every other module may import it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

Array: TypeAlias = jax.Array
#: Any pytree of arrays. A cell's own ``NamedTuple`` in practice.
Params: TypeAlias = Any
#: Any pytree of arrays whose leading axes are the batch axes.
Carry: TypeAlias = Any
#: What ``jax.nn.initializers`` returns: ``f(key, shape, dtype) -> array``.
Initializer: TypeAlias = Callable[..., Array]
#: Anything ``np.dtype`` understands.
DType: TypeAlias = Any


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

    All steps of such a cell can be computed at once (``lstm_jax.parallel``).
    """

    def coefficients(self, params: Params, x: Array) -> tuple[Array, Array]:
        """``(log a, b)`` in float32 or wider, for x with any leading axes."""
        ...


Tuple = TypeVar("Tuple", bound=type)


def exportable(cls: Tuple) -> Tuple:
    """Let :func:`jax.export.export` write functions that take or return this ``NamedTuple``."""
    export.register_namedtuple_serialization(cls, serialized_name=f"lstm_jax.{cls.__name__}")
    return cls


def promote(*dtypes: DType) -> np.dtype:
    """The smallest dtype that holds all of ``dtypes``; bfloat16 and float16 meet in float32.

    >>> str(promote(jnp.bfloat16, jnp.float32))
    'float32'
    """
    result = np.dtype(dtypes[0])
    for dtype in dtypes[1:]:
        result = np.promote_types(result, np.dtype(dtype))
    return result


def state_dtype(dtype: DType) -> np.dtype:
    """The dtype in which sums are kept: float32, or wider where ``dtype`` is.

    >>> str(state_dtype(jnp.bfloat16)), str(state_dtype(jnp.float64))
    ('float32', 'float64')
    """
    return promote(dtype, jnp.float32)


def is_float(dtype: DType) -> bool:
    """Whether ``dtype`` is a real floating type, bfloat16 included."""
    return bool(jnp.issubdtype(dtype, jnp.floating))
