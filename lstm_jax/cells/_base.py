"""Base classes of the library's cells and networks, and the adapter of users' cells."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import listing, value_error
from lstm_jax._types import Array, Carry, Params, promote
from lstm_jax.cells._checks import check_carry, check_input, check_params
from lstm_jax.cells._init import initial_state, learned_initial, state_dtypes
from lstm_jax.cells._linear import matmul

#: Constructor fields that only ``init`` reads.
INIT_ONLY = ("w_ih_init", "w_hh_init", "w_gates_init", "w_init", "bias_init", "forget_bias")


class BaseCell:
    """Base class of the library's cells: default methods, and properties of the cell as attributes.

    A subclass is a frozen dataclass with ``init``, ``initial_carry``, ``project``, ``recur`` and ``update``.
    Every other method has a default here, so callers do not need to test which methods a cell has.
    """

    #: How many trailing axes of one input are features.
    event_ndim: int = 1
    #: The cell has ``project``, ``recur`` and ``update``.
    splits: bool = True
    #: ``recur`` and ``emit`` are affine, as :class:`SplitCell` requires. None: unknown, so the fused scan
    #: tests it while tracing.
    affine_recurrence: bool | None = True
    #: The pre-activation that ``recur`` returns depends on the carry.
    recur_reads_carry: bool = True
    #: The cell has ``coefficients`` (:class:`ParallelCell`).
    linear_recurrence: bool = False
    #: The cell has ``head_size`` and ``update_chunk``, which computes a chunk of steps by matrix products.
    chunks: bool = False
    #: ``update`` or ``emit`` read parameters; None: unknown.
    update_reads_params: bool | None = False
    #: ``emit`` is not the identity.
    emits: bool = False
    #: The carry contains arrays.
    has_state: bool = True
    #: The cell has ``gates`` and ``preactivations``.
    has_gates: bool = False
    #: ``update`` takes ``candidate_scale``, a factor for the candidate.
    scales_candidate: bool = False
    #: ``perturb`` draws per-sequence noise, ``draw`` per-step noise.
    sequence_noise: bool = False
    step_noise: bool = False
    #: Parameters that may be None although ``init`` creates them, by dotted name (``0.bias_hn``).
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
        """The sizes that determine the shapes, for messages."""
        return f"D={self.input_size}, H={self.hidden_size}"

    @property
    def has_noise(self) -> bool:
        """Whether the cell has per-sequence or per-step noise."""
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
        """The new carry and the output from the result of ``update``; by default its result."""
        return raw

    def gates(self, params: Params, carry: Carry, x: Array) -> Any:
        """The gates of one step, a NamedTuple; carry and x may have any leading axes, time included.

        Raises:
            ValueError: the cell has no gates.
        """
        raise value_error(f"gates was called for {label(self)}", "a cell with gates", "Use an LSTM or a GRU.")

    def preactivations(self, params: Params, carry: Carry, x: Array) -> Any:
        """The arguments of the activation functions of :meth:`gates`, in the same NamedTuple.

        A gate without weights is None.

        Raises:
            ValueError: the cell has no gates.
        """
        raise value_error(
            f"preactivations was called for {label(self)}", "a cell with gates", "Use an LSTM or a GRU."
        )

    # --- noise ---

    def perturb(self, params: Params, key: Array, carry: Carry, x: Array) -> Params:
        """Parameters with per-sequence noise; by default ``params``."""
        return params

    def draw(self, key: Array, carry: Carry) -> Any:
        """Per-step noise; by default None."""
        return None

    # --- identity ---

    def compute_form(self) -> Any:
        """The cell with the defaults of the fields that only ``init`` reads."""
        fields = {f.name: f.default for f in dataclasses.fields(self) if f.name in INIT_ONLY}  # type: ignore[arg-type]
        return dataclasses.replace(self, **fields)  # type: ignore[type-var]

    def check(self: Any, params: Params, x: Array) -> None:
        """Check that the parameters and an input fit the cell."""
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

    # --- copies and pickles are equal to the original, so they share its compiled programs ---

    def __deepcopy__(self, memo: Any) -> Any:
        return self  # immutable

    def __reduce__(self) -> Any:
        fields = {f.name: _by_name(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return _restore, (type(self), fields)


class FunctionName(NamedTuple):
    """Import path of a function, because ``pickle`` cannot store jitted functions such as ``jnp.tanh``."""

    module: str
    name: str


def _by_name(value: Any) -> Any:
    """The import path of a module-level function; other values unchanged."""
    name = FunctionName(getattr(value, "__module__", "") or "", getattr(value, "__qualname__", ""))
    found = getattr(sys.modules.get(name.module), name.name, None)
    return name if callable(value) and found is value else value


def _restore(cell: type, fields: dict[str, Any]) -> Any:
    """The inverse of ``BaseCell.__reduce__``."""

    def value(stored: Any) -> Any:
        return (
            getattr(import_module(stored.module), stored.name) if isinstance(stored, FunctionName) else stored
        )

    return cell(**{name: value(stored) for name, stored in fields.items()})


class VectorCell(BaseCell):
    """Base class of cells whose inputs and states are vectors, with input weights ``w_ih``.

    The defaults suit a cell with one state h.
    """

    @property
    def output_size(self: Any) -> int:
        """H, the features of one output."""
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
        """x W in the cell's ``dtype``, (..., gates*H). ``recur`` adds the bias, where it is faster."""
        self.check(params, x)
        dtype = promote(x.dtype, params.w_ih.dtype) if self.dtype is None else self.dtype
        return matmul(x, params.w_ih, dtype).astype(dtype)


class Network(BaseCell):
    """Base class of networks, which ``unroll`` runs through ``run_layers``."""

    splits = False
    #: If no implementation runs the whole network, each layer may use another one.
    layers_choose: bool = False

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
        """Run the layers over the whole sequence; ``run`` is ``lstm_jax.unrolling.run.run``."""
        raise NotImplementedError

    def flat_layers(self, noisy: bool) -> FlatLayers | str:
        """The network as a chain of cells, or the reason why it is not one."""
        return f"{type(self).__name__} is not a chain of cells"


#: How the outputs of two directions are combined.
MERGES: dict[str, Callable[[Array, Array], Array]] = {
    "concat": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "sum": jnp.add,
    "mean": lambda a, b: (a + b) / 2,
    "product": jnp.multiply,
}


class FlatLayers(NamedTuple):
    """A chain of layers with one cell each, all unidirectional or all bidirectional."""

    cells: tuple[Any, ...]
    directions: int  # 1 or 2
    merge: str | None = None  # how the last layer merges its directions; the other layers concatenate


def flatten(network: Any, noisy: bool) -> FlatLayers | str:
    """The network as a chain of cells, or the reason why it is not one. A cell is a chain of length one."""
    return network.flat_layers(noisy) if isinstance(network, Network) else FlatLayers((network,), 1)


@dataclass(frozen=True, repr=False)
class UserCell(BaseCell):
    """Adapter of a user's cell. Only this class tests which methods an object has."""

    cell: Any

    @property
    def name(self) -> str:
        """The name of the user's class."""
        return type(self.cell).__name__

    def _has(self, *methods: str) -> bool:
        return all(callable(getattr(self.cell, method, None)) for method in methods)

    @property
    def event_ndim(self) -> int:  # type: ignore[override]
        """The cell's number of feature axes, by default 1."""
        return int(getattr(self.cell, "event_ndim", 1))

    @property
    def splits(self) -> bool:  # type: ignore[override]
        """Whether the cell is a :class:`SplitCell`."""
        return self._has("project", "recur", "update")

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
    def has_gates(self) -> bool:  # type: ignore[override]
        """Whether the cell has ``gates`` and ``preactivations``."""
        return self._has("gates", "preactivations")

    @property
    def input_size(self) -> Any:
        """The cell's ``input_size``, or None."""
        return getattr(self.cell, "input_size", None)

    @property
    def output_size(self) -> Any:
        """The cell's ``output_size``, or None."""
        return getattr(self.cell, "output_size", None)

    @property
    def input_shape(self) -> Any:
        """The cell's ``input_shape``, or None."""
        return getattr(self.cell, "input_shape", None)

    @property
    def output_shape(self) -> Any:
        """The cell's ``output_shape``, or None."""
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
        """The cell's ``step``, with the noise if it is not None."""
        return self.cell.step(params, carry, x, *(() if noise is None else (noise,)))

    def project(self, params: Params, x: Array) -> Any:
        """The cell's ``project``."""
        return self.cell.project(params, x)

    def recur(self, params: Params, carry: Carry, u: Any) -> Any:
        """The cell's ``recur``."""
        return self.cell.recur(params, carry, u)

    def update(self, params: Params, carry: Carry, z: Any, noise: Any = None) -> Any:
        """The cell's ``update``, with the noise if it is not None."""
        return self.cell.update(params, carry, z, *(() if noise is None else (noise,)))

    def emit(self, params: Params, raw: Any) -> tuple[Carry, Array]:
        """The cell's ``emit``, if it has one."""
        return self.cell.emit(params, raw) if self.emits else raw

    def gates(self, params: Params, carry: Carry, x: Array) -> Any:
        """The cell's ``gates``, if it has them."""
        return self.cell.gates(params, carry, x) if self.has_gates else super().gates(params, carry, x)

    def preactivations(self, params: Params, carry: Carry, x: Array) -> Any:
        """The cell's ``preactivations``, if it has them."""
        if not self.has_gates:
            return super().preactivations(params, carry, x)
        return self.cell.preactivations(params, carry, x)

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
    """A cell or network of the library unchanged; a user's cell in an adapter."""
    return cell if isinstance(cell, BaseCell) else UserCell(cell)


@lru_cache(maxsize=4096)
def compute_form(cell: Any) -> Any:
    """The part of a cell that a compiled program depends on."""
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
    """The fields of a dataclass without a default, or with a value that differs from it."""
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


def _with_options(cell: Any, other: Any) -> str:
    """The name of a cell, with the options that are neither their defaults nor those of another cell."""
    fields = dataclasses.fields(cell) if dataclasses.is_dataclass(cell) else ()
    shown = [
        f"{field.name}={short_value(getattr(cell, field.name))}"
        for field in fields
        if field.default is not dataclasses.MISSING
        and getattr(cell, field.name) not in (field.default, getattr(other, field.name, field.default))
    ]
    return label(cell) + (f" with {listing(shown)}" if shown else "")


def differences(a: Any, b: Any) -> str:
    """The fields in which two cells differ, for messages.

    >>> import lstm_jax
    >>> differences(lstm_jax.LSTM(3, 4), lstm_jax.LSTM(3, 5, use_bias=False))
    'hidden_size=4 and 5, use_bias=True and False'
    >>> differences(lstm_jax.LSTM(3, 4), lstm_jax.GRU(3, 4))
    'LSTM and GRU'
    >>> differences(lstm_jax.LSTM(3, 4), lstm_jax.LSTMVariant(3, 4, activation="relu"))
    'LSTM and LSTMVariant with activation=relu'
    """
    if type(a) is not type(b) or not dataclasses.is_dataclass(a):
        return f"{_with_options(a, b)} and {_with_options(b, a)}"
    found = []
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, BaseCell) and isinstance(right, BaseCell) and left != right:
            found.append(f"{field.name}: {differences(left, right)}")
        elif left != right:
            found.append(f"{field.name}={short_value(left)} and {short_value(right)}")
    return listing(found)
