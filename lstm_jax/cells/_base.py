"""What a cell is: the protocols that ``unroll`` accepts, and the base class of the library's own cells."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import value_error
from lstm_jax._types import Array, Carry, Params, promote
from lstm_jax.cells._checks import check_carry, check_input, check_params
from lstm_jax.cells._init import initial_state, learned_initial, state_dtypes
from lstm_jax.cells._linear import matmul


@runtime_checkable
class Cell(Protocol):
    """Three methods make a cell; :func:`lstm_jax.unroll` takes any object that has them.

    A cell is hashable and holds no arrays (a frozen dataclass of hyperparameters), because it is part of
    the key under which a compiled program is cached.
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
    """A cell whose step splits into an input projection and a recurrent part, and so gets the fast path.

    ``step`` is then the composition of three methods::

        u = cell.project(params, x)  # everything that needs no carry
        z = cell.recur(params, carry, u)  # affine in the carry and in u: the matrix product in the loop
        carry, y = cell.update(params, carry, z)  # the rest, without a matrix product

    ``project``, ``recur`` and ``emit`` accept arrays with any leading axes. ``recur`` must be affine in the
    carry, with factors that do not depend on u. A cell for which it is not runs through the plain scan, and
    ``explain`` says so.

    A cell whose new state goes through one more product (a projection) may have a fourth method, ``emit``,
    affine in what ``update`` then returns::

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
    """A cell with noise. Its two methods are called when ``unroll`` is given a key, and only then.

    Either method may be missing. The cell's other methods receive what ``perturb`` returns in place of the
    parameters. ``step``, and ``update`` of a :class:`SplitCell`, receive what ``draw`` returns as one more
    argument, ``noise``; without it there is none. ``unroll`` draws the noise again wherever the backward
    pass needs it, so it is never stored for all steps.
    """

    def perturb(self, params: Params, key: Array, carry: Carry, x: Array) -> Params:
        """Noise drawn once per sequence; ``carry`` and ``x`` are those of one step, for their shapes."""
        ...

    def draw(self, key: Array, carry: Carry) -> Any:
        """The noise of one step, any pytree of arrays; ``carry`` is that of one step, for its shapes."""
        ...

    def step(self, params: Params, carry: Carry, x: Array, noise: Any = None) -> tuple[Carry, Array]:
        """One time step."""
        ...


@runtime_checkable
class ParallelCell(Cell, Protocol):
    """A cell whose state obeys a linear recurrence with coefficients that depend on the input alone.

    With its carry h, one array, and coefficients 0 < a_t <= 1 and b_t of any sign::

        h_t = a_t * h_{t-1} + b_t  # elementwise
        y_t = h_t

    All steps of such a cell can be computed at once (``implementation="parallel"``).
    """

    def coefficients(self, params: Params, x: Array) -> tuple[Array, Array]:
        """``(log a, b)`` in float32 or wider, for x with any leading axes."""
        ...


#: Constructor fields that matter to ``init`` alone.
INIT_ONLY = ("w_ih_init", "w_hh_init", "w_gates_init", "w_init", "bias_init", "forget_bias")


class BaseCell:
    """Base class of the library's cells: identity defaults, and facts stated as attributes.

    A subclass is a frozen dataclass with ``init``, ``initial_carry``, ``project``, ``recur`` and ``update``.
    Everything else has a default here, so that no code has to ask which methods a cell has.
    """

    #: How many trailing axes of one input are features.
    event_ndim: int = 1
    #: The cell has ``project``, ``recur`` and ``update``.
    splits: bool = True
    #: ``recur`` and ``emit`` are affine, as :class:`SplitCell` requires; None: not known, so it is probed.
    affine_recurrence: bool | None = True
    #: The cell has ``coefficients`` (:class:`ParallelCell`).
    linear_recurrence: bool = False
    #: ``update`` or ``emit`` read parameters; None: not known.
    update_reads_params: bool | None = False
    #: ``emit`` does something: the state goes through one more product.
    emits: bool = False
    #: The carry has arrays.
    has_state: bool = True
    #: ``update`` takes ``candidate_scale``, a factor for what a gate would let into the state.
    scales_candidate: bool = False
    #: ``perturb`` and ``draw`` draw something.
    sequence_noise: bool = False
    step_noise: bool = False
    #: Parameters that may be None though ``init`` makes them, by dotted name (``0.bias_hn``).
    optional_params: tuple[str, ...] = ()

    @property
    def state_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The states of the carry by name, each with the shape of one row."""
        raise NotImplementedError

    @property
    def param_shapes(self) -> Any:
        """The parameters' NamedTuple with a shape in place of each array, None where there is none."""
        raise NotImplementedError

    @property
    def sizes(self: Any) -> str:
        """What the shapes are made of, for messages."""
        return f"D={self.input_size}, H={self.hidden_size}"

    @property
    def has_noise(self) -> bool:
        """Whether the cell draws anything when ``unroll`` is given a key."""
        return self.sequence_noise or self.step_noise

    def fused_unsupported(self) -> str | None:
        """Why the fused scan cannot run this cell, or None."""
        return None

    # --- one step, and its parts ---

    def step(self: Any, params: Params, carry: Carry, x: Array, noise: Any = None) -> tuple[Carry, Array]:
        """One time step in the cell's ``dtype``: ``(carry, x) -> (carry, y)``."""
        u = self.project(params, x)
        states = self.state_shapes
        batch = x.shape[: x.ndim - self.event_ndim]
        check_carry(f"{type(self).__name__}.step", ", ".join(states), carry, batch, *states.values())
        raw = self.update(params, carry, self.recur(params, carry, u), noise)
        return self.emit(params, raw)

    def emit(self, params: Params, raw: Any) -> tuple[Carry, Array]:
        """The new carry and the output from what ``update`` returns; by default the same."""
        return raw

    def gates(self, params: Params, carry: Carry, x: Array) -> Any:
        """The gates of one step, a NamedTuple; carry and x may have any leading axes, time included.

        Raises:
            ValueError: the cell has no gates.
        """
        raise value_error(
            f"gates was called for {type(self).__name__}", "a cell with gates", "Use an LSTM or a GRU."
        )

    # --- noise ---

    def perturb(self, params: Params, key: Array, carry: Carry, x: Array) -> Params:
        """Parameters with the noise of one sequence; by default the same."""
        return params

    def draw(self, key: Array, carry: Carry) -> Any:
        """The noise of one step; by default none."""
        return None

    # --- identity ---

    def compute_form(self) -> Any:
        """An equal cell for everything but ``init``: fields that matter to ``init`` have their defaults."""
        fields = {f.name: f.default for f in dataclasses.fields(self) if f.name in INIT_ONLY}  # type: ignore[arg-type]
        return dataclasses.replace(self, **fields)  # type: ignore[type-var]

    def check(self: Any, params: Params, x: Array) -> None:
        """Parameters and an input fit the cell."""
        owner = type(self).__name__
        check_params(owner, params, self.param_shapes, self.sizes, self.optional_params, self)
        check_input(owner, x, self.input_size)

    def describe(self) -> str:
        """The cell for ``explain``: ``LSTM(3 -> 8)``."""
        sides = []
        for side in ("input", "output"):
            size = getattr(self, f"{side}_size", None)
            sides.append("x".join(map(str, getattr(self, f"{side}_shape", None) or (size,))))
        return label(self) + ("" if "None" in sides else f"({sides[0]} -> {sides[1]})")

    def __repr__(self) -> str:
        return short_repr(self)

    # --- copies and pickles: equal to the original, as program caches require ---

    def __deepcopy__(self, memo: Any) -> Any:
        return self  # frozen, and its fields are constants

    def __reduce__(self) -> Any:
        fields = {f.name: _by_name(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return _restore, (type(self), fields)


class FunctionName(NamedTuple):
    """Where a module-level function is found. ``pickle`` cannot store jitted ones such as ``jnp.tanh``."""

    module: str
    name: str


def _by_name(value: Any) -> Any:
    """The name of a module-level function; anything else unchanged."""
    name = FunctionName(getattr(value, "__module__", "") or "", getattr(value, "__qualname__", ""))
    found = getattr(sys.modules.get(name.module), name.name, None)
    return name if callable(value) and found is value else value


def _restore(cell: type, fields: dict[str, Any]) -> Any:
    """The cell that ``BaseCell.__reduce__`` took apart."""

    def value(kept: Any) -> Any:
        return getattr(import_module(kept.module), kept.name) if isinstance(kept, FunctionName) else kept

    return cell(**{name: value(kept) for name, kept in fields.items()})


class VectorCell(BaseCell):
    """Base class of cells whose inputs and states are vectors, with input weights ``w_ih``.

    The defaults are those of a cell with one state h.
    """

    @property
    def output_size(self: Any) -> int:
        """Features of one output: H."""
        return self.hidden_size

    @property
    def state_shapes(self: Any) -> Mapping[str, tuple[int, ...]]:
        """The states of the carry by name, each with the shape of one row."""
        return {"h": (self.hidden_size,)}

    def initial_carry(self: Any, batch_shape: Sequence[int] = (), params: Params | None = None) -> Carry:
        """h_0, (*batch_shape, H): zeros, or the learned vector."""
        learned = learned_initial(self, params)
        return initial_state(self, batch_shape, (self.hidden_size,), state_dtypes(self, params)[0], learned)

    def project(self: Any, params: Params, x: Array) -> Any:
        """x W in the cell's ``dtype``, (..., gates*H). ``recur`` adds the bias, which costs less there."""
        self.check(params, x)
        dtype = promote(x.dtype, params.w_ih.dtype) if self.dtype is None else self.dtype
        return matmul(x, params.w_ih, dtype).astype(dtype)


class Network(BaseCell):
    """Base class of networks, which ``unroll`` runs layer by layer through ``run_layers``."""

    splits = False
    #: Members choose implementations by themselves where none runs the whole network.
    members_choose: bool = False

    def run_layers(
        self,
        run: Any,
        options: Any,
        params: Params,
        xs: Array,
        carry: Carry | None,
        reset_to: Carry | None,
        steps: Any,
    ) -> Any:
        """Run all members over all of time; ``run`` is ``lstm_jax.unrolling.run.run``."""
        raise NotImplementedError

    def flat_layers(self, noisy: bool) -> FlatLayers | str:
        """The network as layers that feed one another, or why it is no such network."""
        return f"{type(self).__name__} is no chain of cells"


#: How the outputs of two directions are combined.
MERGES: dict[str, Callable[[Array, Array], Array]] = {
    "concat": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "sum": jnp.add,
    "mean": lambda a, b: (a + b) / 2,
    "product": jnp.multiply,
}


class FlatLayers(NamedTuple):
    """Layers that feed one another, one cell each, all in one direction or all in both."""

    cells: tuple[Any, ...]
    directions: int  # 1 or 2
    merge: str | None = None  # of the last layer's two directions; those below are concatenated


def flatten(network: Any, noisy: bool) -> FlatLayers | str:
    """The network as layers that feed one another, or why it is no such network."""
    return network.flat_layers(noisy) if isinstance(network, Network) else FlatLayers((network,), 1)


@dataclass(frozen=True, repr=False)
class UserCell(BaseCell):
    """Adapter of a user's cell: the only place that asks which methods an object has."""

    cell: Any

    @property
    def name(self) -> str:
        """The name of the user's class."""
        return type(self.cell).__name__

    def _has(self, *methods: str) -> bool:
        return all(callable(getattr(self.cell, method, None)) for method in methods)

    @property
    def event_ndim(self) -> int:  # type: ignore[override]
        """The cell's own number of feature axes, or 1."""
        return int(getattr(self.cell, "event_ndim", 1))

    @property
    def splits(self) -> bool:  # type: ignore[override]
        """Whether the cell is a :class:`SplitCell`."""
        return self._has("project", "recur", "update")

    #: Probed while tracing.
    affine_recurrence = None
    update_reads_params = None

    @property
    def emits(self) -> bool:  # type: ignore[override]
        """Whether the cell has ``emit``."""
        return self._has("emit")

    @property
    def linear_recurrence(self) -> bool:  # type: ignore[override]
        """Whether the cell is a :class:`ParallelCell`."""
        return self._has("coefficients")

    @property
    def sequence_noise(self) -> bool:  # type: ignore[override]
        """Whether the cell has ``perturb``."""
        return self._has("perturb")

    @property
    def step_noise(self) -> bool:  # type: ignore[override]
        """Whether the cell has ``draw``."""
        return self._has("draw")

    @property
    def input_size(self) -> Any:
        """The cell's own ``input_size``, or None."""
        return getattr(self.cell, "input_size", None)

    @property
    def output_size(self) -> Any:
        """The cell's own ``output_size``, or None."""
        return getattr(self.cell, "output_size", None)

    @property
    def input_shape(self) -> Any:
        """The cell's own ``input_shape``, or None."""
        return getattr(self.cell, "input_shape", None)

    @property
    def output_shape(self) -> Any:
        """The cell's own ``output_shape``, or None."""
        return getattr(self.cell, "output_shape", None)

    def fused_unsupported(self) -> str | None:
        """The methods that are missing, if any."""
        missing = [name for name in ("project", "recur", "update") if not self._has(name)]
        return f"{self.name} has no {', '.join(missing)} (see lstm_jax.SplitCell)" if missing else None

    def init(self, key: Array) -> Params:
        """The cell's parameters."""
        return self.cell.init(key)

    def initial_carry(self, batch_shape: Sequence[int] = (), params: Params | None = None) -> Carry:
        """The cell's initial carry."""
        return self.cell.initial_carry(batch_shape, params)

    def step(self, params: Params, carry: Carry, x: Array, noise: Any = None) -> tuple[Carry, Array]:
        """The cell's own step; noise is passed on where there is some."""
        return self.cell.step(params, carry, x, *(() if noise is None else (noise,)))

    def project(self, params: Params, x: Array) -> Any:
        """The cell's ``project``."""
        return self.cell.project(params, x)

    def recur(self, params: Params, carry: Carry, u: Any) -> Any:
        """The cell's ``recur``."""
        return self.cell.recur(params, carry, u)

    def update(self, params: Params, carry: Carry, z: Any, noise: Any = None) -> Any:
        """The cell's ``update``; noise is passed on where there is some."""
        return self.cell.update(params, carry, z, *(() if noise is None else (noise,)))

    def emit(self, params: Params, raw: Any) -> tuple[Carry, Array]:
        """The cell's ``emit``, if it has one."""
        return self.cell.emit(params, raw) if self.emits else raw

    def coefficients(self, params: Params, x: Array) -> tuple[Array, Array]:
        """The cell's ``coefficients``."""
        return self.cell.coefficients(params, x)

    def perturb(self, params: Params, key: Array, carry: Carry, x: Array) -> Params:
        """The cell's ``perturb``, if it has one."""
        return self.cell.perturb(params, key, carry, x) if self.sequence_noise else params

    def draw(self, key: Array, carry: Carry) -> Any:
        """The cell's ``draw``, if it has one."""
        return self.cell.draw(key, carry) if self.step_noise else None


def as_base_cell(cell: Any) -> Any:
    """The library's own cells and networks as they are; a user's cell in an adapter."""
    return cell if isinstance(cell, BaseCell) else UserCell(cell)


@lru_cache(maxsize=4096)
def compute_form(cell: Any) -> Any:
    """What a compiled program depends on: the cell without what matters to ``init`` alone."""
    return cell.compute_form() if isinstance(cell, BaseCell) else cell


def label(cell: Any) -> str:
    """The name of a cell for messages: the class that the user wrote or chose."""
    return cell.name if isinstance(cell, UserCell) else type(cell).__name__


def short_repr(cell: Any) -> str:
    """Sizes and the fields that differ from their defaults.

    >>> import lstm_jax
    >>> lstm_jax.LSTM(3, 4, use_bias=False)
    LSTM(input_size=3, hidden_size=4, use_bias=False)
    """
    shown = (f"{name}={short_value(value)}" for name, value in changed_fields(cell).items())
    return f"{type(cell).__name__}({', '.join(shown)})"


def changed_fields(cell: Any) -> dict[str, Any]:
    """The fields of a dataclass that have no default, or another value than it."""
    values = {field.name: (getattr(cell, field.name), field.default) for field in dataclasses.fields(cell)}
    return {
        name: value
        for name, (value, default) in values.items()
        if default is dataclasses.MISSING or value != default
    }


def short_value(value: Any) -> str:
    """A value for messages: functions and dtypes by name, without addresses."""
    if callable(value) and not isinstance(value, BaseCell) and hasattr(value, "__name__"):
        return value.__name__
    return value.name if isinstance(value, np.dtype) else repr(value)
