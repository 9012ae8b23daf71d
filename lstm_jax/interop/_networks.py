"""Networks taken apart into layers and directions, for systems that know no more than that."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    GRUVariant,
    GRUVariantParams,
    LSTMVariant,
    LSTMVariantParams,
    Stack,
)
from lstm_jax._errors import value_error
from lstm_jax.cells._base import differences
from lstm_jax.cells.rnn import Activation
from lstm_jax.interop._arrays import plain

#: Fields of a cell which the shapes of its weights tell, or which the weights do not depend on.
TOLD = {"input_size", "hidden_size", "use_bias", "forget_bias", "param_dtype", "dtype"}
TOLD |= {"input_shape", "features", "kernel_size", "strides", "padding"}
TOLD |= {"w_ih_init", "w_hh_init", "bias_init"}

ACTIVATIONS: dict[str, Activation] = {"tanh": jnp.tanh, "relu": jax.nn.relu}
#: Cells by the number of gates side by side in their matrices.
GATES: dict[int, Any] = {1: RNN, 3: GRU, 4: LSTM}
#: The cells with options beside the plain ones.
VARIANTS: dict[type, tuple[Any, Any]] = {
    LSTM: (LSTMVariant, LSTMVariantParams),
    GRU: (GRUVariant, GRUVariantParams),
}


def make_cell(kind: Any, input_size: int, hidden_size: int, **options: Any) -> Any:
    """A plain cell, or its variant where an option differs from its default.

    >>> make_cell(LSTM, 3, 2, clip=None, use_bias=False)
    LSTM(input_size=3, hidden_size=2, use_bias=False)
    >>> make_cell(LSTM, 3, 2, clip=1.0)
    LSTMVariant(input_size=3, hidden_size=2, clip=1.0)
    """
    if kind not in VARIANTS:
        return kind(input_size, hidden_size, **options)
    plain = {field.name for field in fields(kind)}
    variant = VARIANTS[kind][0](input_size, hidden_size, **options)
    defaults = {field.name: field.default for field in fields(variant)}
    if any(getattr(variant, name) != defaults[name] for name in options if name not in plain):
        return variant
    return kind(input_size, hidden_size, **{name: options[name] for name in options if name in plain})


def params_for(cell: Any, params: Any) -> Any:
    """Parameters of a plain cell as those of ``cell``, which may be a variant."""
    for variant, record in VARIANTS.values():
        if type(cell) is variant:
            return record(**params._asdict())
    return params


class Direction(NamedTuple):
    """One cell, walking one way."""

    where: str  # "layer 1, backward", for messages
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
    kinds: Collection[type],
    fits: Mapping[Any, Collection[Any] | None] | None = None,
    merges: Collection[str] = ("concat",),
) -> list[Layer]:
    """The layers of a network, once it is sure that ``target`` can represent all of it.

    Args:
        owner: who asks, for messages.
        target: what the network is written for, for messages.
        network: a cell, a ``Bidirectional`` or a ``Stack`` of these.
        params: its parameters.
        kinds: the cells that the target knows.
        fits: what a field of a cell may be besides its default: one of these values, or any (None); the
            key is the field, or a type of cell and the field.
        merges: how the target can merge two directions.

    Raises:
        ValueError: with everything that the target cannot represent, and every parameter that does
            not fit the network.
    """
    faults: list[str] = []
    layers = list(_layers(network, params, "", faults, merges))
    allowed: dict[Any, Any] = {name: None for name in TOLD} | dict(fits or {})
    kinds = [*kinds, *(VARIANTS[kind][0] for kind in kinds if kind in VARIANTS)]
    for direction in (d for layer in layers for d in layer.directions):
        unexpected = _unexpected(direction.cell, kinds, allowed)
        faults += [f"{direction.where}{reason}" for reason in unexpected]
        if not unexpected:
            faults += [f"{direction.where}{reason}" for reason in _unfit(direction)]
    if faults:
        told = "".join(f"\n  {fault}" for fault in faults)
        raise ValueError(
            f"{owner} cannot write this network for {target}:{told}\nWhat {target} does not know is never "
            "approximated: convert the parts that it knows, each with its own parameters."
        )
    return [
        layer._replace(directions=tuple(d._replace(params=plain(d.params)) for d in layer.directions))
        for layer in layers
    ]


def _layers(
    network: Any, params: Any, where: str, faults: list[str], merges: Collection[str]
) -> Iterator[Layer]:
    if isinstance(network, Stack):
        for name in ("residual", "skip"):
            if getattr(network, name):
                faults.append(f"{where}{name}=True: layers are wired one to the next only")
        if network.dropout and network.dropout_mask == "sequence":
            faults.append(f"{where}dropout_mask='sequence': it drops other features at every step")
        if _counts(params, len(network.layers), where, "layers", faults):
            for index, (layer, own) in enumerate(zip(network.layers, params, strict=True)):
                yield from _layers(layer, own, f"{where}layer {index}: ", faults, merges)
    elif isinstance(network, Bidirectional):
        if network.merge not in merges:
            faults.append(
                f"{where}merge={network.merge!r}: it merges two directions by {' or '.join(merges)}"
            )
        if network.backward is not None:
            faults.append(f"{where}two directions with different cells: {differences(*network.cells)}")
        elif _counts(params, 2, where, "directions", faults):
            both = zip(("forward: ", "backward: "), params, strict=True)
            directions = tuple(Direction(where + name, network.cell, own) for name, own in both)
            yield Layer(directions, network.merge)
    else:
        yield Layer((Direction(where, network, params),), None)


def _counts(params: Any, count: int, where: str, what: str, faults: list[str]) -> bool:
    right = isinstance(params, (tuple, list)) and len(params) == count
    if not right:
        got = len(params) if isinstance(params, (tuple, list)) else type(params).__name__
        faults.append(f"{where}parameters of {got}, expected a tuple of {count} {what}")
    return right


def _unexpected(
    cell: Any, kinds: Collection[type], allowed: Mapping[Any, Collection[Any] | None]
) -> list[str]:
    """What is not known of the cell; everything that differs from a default is suspect."""
    if type(cell) not in kinds:
        known = ", ".join(kind.__name__ for kind in kinds if not kind.__name__.endswith("Variant"))
        inside = " (take its .cell and that cell's parameters)" if hasattr(cell, "cell") else ""
        return [f"{type(cell).__name__} is none of {known}{inside}"]
    found = []
    for field in fields(cell):
        value = getattr(cell, field.name)
        key = (type(cell), field.name) if (type(cell), field.name) in allowed else field.name
        if value == field.default or (key in allowed and allowed[key] is None):
            continue
        others = allowed.get(key)
        if others is not None and value in others:
            continue
        shown = getattr(value, "__name__", None) or repr(value)
        found.append(f"{type(cell).__name__} with {field.name}={shown}")
    return found


def _unfit(direction: Direction) -> list[str]:
    """Which parameters are not those of the cell."""
    expected = jax.eval_shape(direction.cell.init, jax.random.key(0))
    found = []
    if type(direction.params) is not type(expected):
        return [f"parameters of type {type(direction.params).__name__}, expected {type(expected).__name__}"]
    for name, wanted in expected._asdict().items():
        given = getattr(direction.params, name)
        if name == "bias_hn" and given is None and wanted is not None:
            continue  # the same as zeros
        got, want = (None if leaf is None else tuple(leaf.shape) for leaf in (given, wanted))
        if got != want:
            found.append(f"{name} {got}, expected {want}")
    return found


def activation_of(owner: str, what: str, activation: Any, wanted: bool) -> dict[str, Activation]:
    """The option that a simple network's cell needs and no other takes."""
    if not wanted:
        if activation is not None:
            raise value_error(
                f"{owner} got activation={_name(activation)} with weights of gated cells",
                "none, because only a simple recurrent network has a choice",
                "Leave activation out.",
            )
        return {}
    if isinstance(activation, str) and activation in ACTIVATIONS:
        return {"activation": ACTIVATIONS[activation]}
    if activation is None or not callable(activation):
        raise value_error(
            f"{owner} got activation={_name(activation)} with weights of {what}",
            "its activation, which weights do not tell",
            'Pass activation="tanh", "relu" or a function of an array.',
        )
    return {"activation": activation}


def _name(value: Any) -> str:
    return getattr(value, "__name__", None) or repr(value)


def stacked(networks: list[Any], params: list[Any]) -> tuple[Any, Any]:
    """One layer bare, several as a ``Stack``."""
    if len(networks) == 1:
        return networks[0], params[0]
    return Stack(tuple(networks)), tuple(params)
