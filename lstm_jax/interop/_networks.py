"""Networks as layers and directions, checks that a target can represent them, and options of cells."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    BidirectionalParams,
    ConvLSTM,
    GRUVariant,
    GRUVariantParams,
    LSTMVariant,
    LSTMVariantParams,
    Stack,
)
from lstm_jax._errors import shorten, value_error
from lstm_jax._types import is_float
from lstm_jax.cells._base import changed_fields, differences, short_value
from lstm_jax.cells.activations import ACTIVATIONS, Activation
from lstm_jax.interop._entries import UnbuiltLayer
from lstm_jax.regularizers._wrapper import Wrapper

#: Fields of a cell that are read from the shapes of its weights, or that do not change what the weights mean.
FREE = {"input_size", "hidden_size", "use_bias", "forget_bias", "param_dtype", "dtype"}
FREE |= {"input_shape", "features", "kernel_size", "strides", "padding"}
FREE |= {"w_ih_init", "w_hh_init", "bias_init"}

#: Cells by the number of gates side by side in their matrices.
CELLS: dict[int, Any] = {1: RNN, 3: GRU, 4: LSTM}
#: The variants of the plain cells.
VARIANTS: dict[type, tuple[Any, Any]] = {
    LSTM: (LSTMVariant, LSTMVariantParams),
    GRU: (GRUVariant, GRUVariantParams),
}


def make_cell(cell_class: Any, input_size: int, hidden_size: int, **options: Any) -> Any:
    """A plain cell, or its variant if an option differs from its default.

    >>> make_cell(LSTM, 3, 2, clip=None, use_bias=False)
    LSTM(input_size=3, hidden_size=2, use_bias=False)
    >>> make_cell(LSTM, 3, 2, clip=1.0)
    LSTMVariant(input_size=3, hidden_size=2, clip=1.0)
    """
    if cell_class in VARIANTS:
        variant = VARIANTS[cell_class][0](input_size, hidden_size, **options)
        plain = {field.name for field in fields(cell_class)}
        if changed_fields(variant).keys() - plain:
            return variant
        options = {name: value for name, value in options.items() if name in plain}
    return cell_class(input_size, hidden_size, **options)


def params_for(cell: Any, params: Any) -> Any:
    """Convert parameters of a plain cell to those of ``cell``, which may be a variant."""
    for variant, record in VARIANTS.values():
        if type(cell) is variant:
            return record(**params._asdict())
    return params


def stacked(networks: Sequence[Any], params: Sequence[Any]) -> tuple[Any, Any]:
    """A ``Stack`` of the layers; a single layer is returned as it is."""
    if len(networks) == 1:
        return networks[0], params[0]
    return Stack(tuple(networks)), tuple(params)


def join_directions(directions: Sequence[UnbuiltLayer | None], merge: str = "concat") -> UnbuiltLayer | None:
    """The cell of one direction, or a ``Bidirectional`` of two; None if one could not be read."""
    if len(directions) == 1:
        return directions[0]
    forward, backward = directions
    if forward is None or backward is None:
        return None

    def build(arrays: Any, dtype: np.dtype, input_shape: Any) -> tuple[Any, Any]:
        cell, params = forward.build(arrays[0], dtype, input_shape)
        other, other_params = backward.build(arrays[1], dtype, input_shape)
        network = Bidirectional(cell, merge=merge, backward=other)
        return network, BidirectionalParams(params, other_params)

    return UnbuiltLayer((forward.arrays, backward.arrays), build)


# --- options that weights do not determine -----------------------------------------------------------


class Options:
    """Arguments for options that weights do not determine. Each is required where a layer needs it.

    Methods collect errors for :meth:`check`, so that those of the weights themselves come first.
    """

    def __init__(self, owner: str, names: Mapping[str, Activation] = ACTIVATIONS, **given: Any) -> None:
        self.owner, self.given = owner, given
        self.names = names  # of activations
        self._used: set[str] = set()
        self._activated: set[type] = set()  # the cells whose layers have activations
        self._errors: list[ValueError] = []

    def get(self, name: str) -> Any:
        """An argument that may be None."""
        self._used.add(name)
        return self.given[name]

    def require(self, name: str, cell: str, example: str) -> None:
        """Record an error if an argument is not given."""
        if self.get(name) is None:
            self.missing(name, cell, example)

    def missing(self, name: str, cell: str, example: str) -> None:
        """Record the error for a missing argument."""
        got = f"{self.owner} got the weights of {cell}, which do not contain its {name}"
        self.error(got, f"{name} as an argument", f"Pass {name}={example}.")

    def error(self, got: str, expected: str, hint: str) -> None:
        """Record an error."""
        self._errors.append(value_error(got, expected, hint))

    def activations(self, cell_class: type, cell: str, layer: int = 0) -> dict[str, Any]:
        """The cell's options ``activation`` and ``recurrent_activation``, if they are given.

        Args:
            cell_class: the cell they are for, RNN, LSTM, GRU or ConvLSTM.
            cell: its name in the other library, for messages.
            layer: the index of its layer: an argument may be a list with one entry for each.
        """
        self._activated.add(cell_class)
        found: dict[str, Any] = {}
        for name in ("activation", "recurrent_activation"):
            if name not in self.given or (cell_class is RNN and name == "recurrent_activation"):
                continue
            value = self.get(name)
            if isinstance(value, (list, tuple)):
                value = value[layer] if layer < len(value) else None
            if value is None and cell_class is RNN:
                self.missing(name, cell, '"tanh", "relu" or a function of an array')
            elif isinstance(value, str) and value in self.names:
                found[name] = self.names[value]
            elif callable(value):
                found[name] = value
            elif value is not None:
                self.error(
                    f"{self.owner} got {name}={value!r}",
                    f"a function or one of {', '.join(map(repr, self.names))}",
                    f"Pass {name}=jnp.tanh, or another function of an array.",
                )
        if cell_class is ConvLSTM and make_cell(LSTM, 1, 1, **found) != LSTM(1, 1):
            shown = ", ".join(f"{name}={short_value(value)}" for name, value in found.items())
            self.error(
                f"{self.owner} got {shown} with the weights of {cell}",
                "tanh and sigmoid, because lstm_jax.ConvLSTM has no other activations",
                "Train with these, or give a list with one entry for each layer.",
            )
        return {} if cell_class is ConvLSTM else found

    def check(self, layers: int) -> None:
        """Raise ``ValueError`` for an argument that is missing, not used or ambiguous."""
        unused = [name for name, value in self.given.items() if value is not None and name not in self._used]
        if unused:
            raise value_error(
                f"{self.owner} got {', '.join(f'{name}={short_value(self.given[name])}' for name in unused)}",
                "only arguments that these weights do not determine",
                f"Leave out: {', '.join(unused)}.",
            )
        for name in ("activation", "recurrent_activation"):
            value = self.given.get(name)
            if isinstance(value, (list, tuple)) and len(value) != layers:
                raise value_error(
                    f"{self.owner} got {len(value)} entries of {name} with {layers} layers",
                    "one entry for each layer",
                    "Give None for a layer with the default activation.",
                )
        if self._errors:
            raise self._errors[0]
        value = self.given.get("activation")
        default = value is None or isinstance(value, (list, tuple)) or value in ("tanh", jnp.tanh)
        if RNN in self._activated and len(self._activated) > 1 and not default:
            raise value_error(
                f"{self.owner} got activation={short_value(value)} with simple and gated layers",
                "one activation for each layer",
                "Give a list; None is the default of a gated layer.",
            )


# --- the layers of a network ----------------------------------------------------------------------


class Direction(NamedTuple):
    """One cell of a layer, run in one direction."""

    where: str  # "layer 1: backward: ", for messages
    cell: Any
    params: Any


class Layer(NamedTuple):
    """One direction or two."""

    directions: tuple[Direction, ...]
    merge: str | None  # of two directions


def flatten_layers(
    owner: str,
    target: str,
    network: Any,
    params: Any,
    *,
    cells: Collection[type],
    options: Mapping[Any, Collection[Any] | None] | None = None,
    merges: Collection[str] = ("concat",),
    dropout: bool = False,
    two_cells: bool = False,
) -> list[Layer]:
    """The layers of a network; raises if ``target`` cannot represent all of it.

    The layers of a stack inside a stack are returned one by one.

    Args:
        owner: the function to name in messages.
        target: what the network is written for, for messages.
        network: a cell, a ``Bidirectional`` or a ``Stack`` of these.
        params: its parameters.
        cells: the cells that the target has.
        options: what a field of a cell may be besides its default: one of these values, or any (None). The
            key is the field, or a type of cell and the field.
        merges: how the target can merge two directions; empty: it has one direction only.
        dropout: the target has dropout between layers.
        two_cells: the two directions of the target may have different cells.

    Raises:
        ValueError: with everything that the target cannot represent, and every parameter that does
            not fit the network.

    >>> cell = LSTMVariant(3, 4, peepholes=True)
    >>> flatten_layers("to_keras", "Keras", cell, cell.init(jax.random.key(0)), cells=(LSTM,))
    Traceback (most recent call last):
    ...
    ValueError: to_keras cannot write this network for Keras:
      LSTMVariant with peepholes=True
    ...
    """
    faults: list[str] = []
    layers = list(_layers(network, params, "", faults, merges, dropout, two_cells))
    allowed: dict[Any, Any] = dict.fromkeys(FREE) | dict(options or {})
    names = [cell.__name__ for cell in cells]
    cells = [*cells, *(VARIANTS[cell][0] for cell in cells if cell in VARIANTS)]
    for direction in (d for layer in layers for d in layer.directions):
        found = _unrepresented(direction.cell, cells, names, allowed) or _unfit(direction)
        faults += [f"{direction.where}{fault}" for fault in found]
    if faults:
        more = f"\n  and {len(faults) - 8} more" if len(faults) > 8 else ""
        lines = shorten("".join(f"\n  {shorten(fault, 150)}" for fault in faults[:8]), 600)
        raise ValueError(
            f"{owner} cannot write this network for {target}:{lines}{more}\n"
            "Train without what it cannot represent, or convert the other parts with their own parameters."
        )
    return layers


def _layers(
    network: Any,
    params: Any,
    where: str,
    faults: list[str],
    merges: Collection[str],
    dropout: bool,
    two_cells: bool,
) -> Iterator[Layer]:
    if isinstance(network, Stack):
        for name in ("residual", "skip"):
            if getattr(network, name):
                faults.append(f"{where}Stack with {name}=True; each layer may read only the one below")
        if network.dropout and not dropout:
            faults.append(f"{where}Stack with dropout={network.dropout}; it has no dropout between layers")
        elif network.dropout and network.dropout_mask == "sequence":
            faults.append(f"{where}Stack with dropout_mask='sequence'; it draws a mask at every step")
        if _counts(params, len(network.layers), where, "layers", faults):
            for index, (layer, own) in enumerate(zip(network.layers, params, strict=True)):
                yield from _layers(layer, own, f"{where}layer {index}: ", faults, merges, dropout, two_cells)
    elif isinstance(network, Bidirectional) and merges:
        if network.merge not in merges:
            faults.append(
                f"{where}Bidirectional with merge={network.merge!r}; it merges by {' or '.join(merges)}"
            )
        if network.backward is not None and not two_cells:
            faults.append(f"{where}two directions with different cells: {differences(*network.cells)}")
        elif _counts(params, 2, where, "directions", faults):
            both = zip(("forward: ", "backward: "), network.cells, params, strict=True)
            directions = tuple(Direction(where + name, cell, own) for name, cell, own in both)
            yield Layer(directions, network.merge)
    else:
        yield Layer((Direction(where, network, params),), None)


def _counts(params: Any, count: int, where: str, what: str, faults: list[str]) -> bool:
    right = isinstance(params, (tuple, list)) and len(params) == count
    if not right:
        got = len(params) if isinstance(params, (tuple, list)) else type(params).__name__
        faults.append(f"{where}parameters of {got}, expected a tuple of {count} {what}")
    return right


def _unrepresented(
    cell: Any, cells: Collection[type], names: Collection[str], allowed: Mapping[Any, Any]
) -> list[str]:
    """What the target cannot represent: the cell, or each field that is neither default nor allowed."""
    if type(cell) not in cells:
        inner = " (pass its .cell, with the same parameters)" if isinstance(cell, Wrapper) else ""
        return [f"{type(cell).__name__}, expected one of {', '.join(names)}{inner}"]
    found = []
    for name, value in changed_fields(cell).items():
        values = allowed.get((type(cell), name), allowed.get(name, ()))
        if values is not None and value not in values:
            found.append(f"{type(cell).__name__} with {name}={short_value(value)}")
    return found


def _unfit(direction: Direction) -> list[str]:
    """The parameters that do not fit the cell."""
    expected, params = direction.cell.param_shapes, direction.params
    if type(params) is not type(expected):
        return [f"parameters of type {type(params).__name__}, expected {type(expected).__name__}"]
    found = []
    for name, shape in expected._asdict().items():
        value = getattr(params, name)
        if value is None and (shape is None or name in direction.cell.optional_params):
            continue
        array = isinstance(value, (np.ndarray, jax.Array))
        got = tuple(value.shape) if array else None if value is None else type(value).__name__
        if got != shape:
            found.append(f"{name} {got}, expected {shape}")
        elif array and not is_float(value.dtype):
            found.append(f"{name} of dtype {value.dtype}, expected floats")
    return found


def fields_of(direction: Direction) -> dict[str, Any]:
    """The arrays of a direction's parameters by field."""
    return {name: value for name, value in direction.params._asdict().items() if value is not None}
