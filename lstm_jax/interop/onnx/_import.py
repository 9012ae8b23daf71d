"""Recurrent nodes of any ONNX model as cells, and chains of them as networks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import value_error
from lstm_jax.interop.onnx._chain import Layer, Readable, chain
from lstm_jax.interop.onnx._graph import require_onnx
from lstm_jax.interop.onnx._nodes import USUAL, Node, cell_of, named
from lstm_jax.networks.bidirectional import Bidirectional, BidirectionalParams
from lstm_jax.networks.stack import Stack


class Imported(NamedTuple):
    """A network, and how a model walks it: ``unroll(network, params, xs, carry, reverse=reverse)``."""

    network: Any  # a cell, a Bidirectional, or a Stack
    params: Any
    carry: Any | None  # what the model begins with where that is constant and not zero; else None
    reverse: bool  # whether it walks from the last step to the first


def from_onnx(model: Any, *, inputs: Mapping[str, Any] | None = None) -> Imported:
    """The recurrent network in a model: one node, or a chain of them, each reading the one below.

    Found are nodes RNN, LSTM and GRU (https://onnx.ai/onnx/operators/) in both layouts and all
    directions, and read-outs behind the first of them: MatMul with a constant matrix, then Add and an
    activation where they are there. What stands between two layers is run on random numbers, and has to
    give what a :class:`lstm_jax.Stack` gives, with ``residual``, ``skip`` and the merges of
    :class:`lstm_jax.Bidirectional`; so Transpose, Reshape, Squeeze, Concat and others are allowed,
    however they are arranged. The network is time-major, whatever the model's layout.

    What comes before the first recurrent node (an embedding, say) and after the last layer (what reads
    the last step alone, for instance) is the caller's, and so are lengths. Initial states are the
    caller's where the model takes them as inputs. One that is constant comes as ``carry``; one that the
    model makes in the batch's size, the same for all rows, comes as a learned one; zeros are none.

    Where two networks are one model, the plainer one comes: of directions whose merge no output of the
    model shows, the outputs are concatenated; a walk in reverse of both directions whose merge is a
    sum, mean or product is a walk forward, with the directions in the other order.

    Args:
        model: ``onnx.ModelProto``, or the path of a file.
        inputs: values of the graph's inputs by their names, where weights are among them.

    Returns:
        ``Imported(network, params, carry, reverse)``; float64 stays float64 under ``jax_enable_x64``
        alone.

    Raises:
        ValueError: there is no such node, weights are missing or have no counterpart here, or something
            else is computed between two layers; :func:`from_onnx_node` then takes them one by one.
        ImportError: onnx is not installed (extra ``onnx``).
    """
    graph = _read("from_onnx", model, inputs)
    found = graph.recurrent()
    if not found:
        kinds = sorted({node.op_type for node in graph.nodes})
        raise value_error(
            f"from_onnx got a model of {', '.join(kinds) or 'no nodes'}",
            "a node RNN, LSTM or GRU",
            "Those inside of If, Loop or Scan are not looked for.",
        )
    layers = [_layer(graph, node, "from_onnx") for node in found]
    members, stack, reverse = chain(graph, layers, "from_onnx")
    built = [_build(member, reverse) for member in members]
    if len(built) == 1:
        return built[0]._replace(reverse=reverse)
    cells = tuple(part.network for part in built)
    network = Stack(cells, residual=stack["residual"], skip=stack["skip"])
    params = tuple(part.params for part in built)
    return Imported(network, params, _joined(network, params, built), reverse)


def from_onnx_node(
    model: Any, name: str | None = None, *, inputs: Mapping[str, Any] | None = None
) -> Imported:
    """One recurrent node of a model, whatever else the model computes.

    A node of both directions becomes a :class:`lstm_jax.Bidirectional` that concatenates.

    Args:
        model: ``onnx.ModelProto``, or the path of a file.
        name: the node's name, or that of one of its outputs; None where there is but one.
        inputs: values of the graph's inputs by their names, where weights are among them.

    Returns:
        ``Imported(network, params, carry, reverse)``.

    Raises:
        ValueError: there is no such node, or its weights are missing or have no counterpart here.
        ImportError: onnx is not installed (extra ``onnx``).
    """
    graph = _read("from_onnx_node", model, inputs)
    found = graph.recurrent()
    asked = [node for node in found if name is None or name == node.name or name in node.output]
    if len(asked) != 1 or name == "":
        names = ", ".join(f"{node.op_type} {node.name or '-'} -> {node.output[0] or '-'}" for node in found)
        raise value_error(
            f"from_onnx_node got name={name!r} for a model with the nodes {names or 'of no such kind'}",
            "the name, or an output's name, of one of them",
            "Give the name of one.",
        )
    layer = _layer(graph, asked[0], "from_onnx_node")
    reverse = layer.direction == "reverse"
    return _build(layer, reverse)._replace(reverse=reverse)


def _read(owner: str, model: Any, inputs: Mapping[str, Any] | None) -> Readable:
    onnx = require_onnx(owner)
    if isinstance(model, (str, os.PathLike)):
        model = onnx.load(Path(model))
    if not isinstance(model, onnx.ModelProto):
        raise value_error(
            f"{owner} got {type(model).__name__}", "an onnx.ModelProto or a path", "Use onnx.load."
        )
    return Readable(onnx, model, dict(inputs or {}))


# --- one node -----------------------------------------------------------------------------------


def _layer(graph: Readable, node: Any, owner: str) -> Layer:
    """A node with all it needs to know."""
    onnx = graph.onnx
    told = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    direction = told.get("direction", b"forward").decode()
    if direction not in ("forward", "reverse", "bidirectional"):
        raise value_error(
            f"{owner} got direction={direction!r}", "forward, reverse or bidirectional", "Mend the model."
        )
    count = 2 if direction == "bidirectional" else 1
    names = [*node.input, *[""] * (8 - len(node.input))]
    weights: dict[str, Any] = {"P": None}
    wanted = {"W": 1, "R": 2, "B": 3} | ({"P": 7} if node.op_type == "LSTM" else {})
    for key, at in wanted.items():
        value = graph.constant(names[at]) if names[at] else None
        if value is None and (names[at] or key in "WR"):
            raise value_error(
                f"{owner} got {key} of node {node.name or node.output[0] or node.op_type} "
                f"as {names[at]!r}, which is not constant",
                "weights in the model",
                f"Pass inputs={{{names[at]!r}: array}} if it is an input of the model.",
            )
        if value is not None and len(value) != count:
            raise value_error(
                f"{owner} got {key} of shape {value.shape} for direction={direction!r}",
                f"{count} along the first axis, one a direction",
                "Mend the model.",
            )
        weights[key] = value
    H = int(told.get("hidden_size", weights["R"].shape[-1]))
    if weights["R"].shape[-1] != H:
        raise value_error(
            f"{owner} got R of shape {weights['R'].shape} for hidden_size={H}",
            "R of (directions, gates * hidden_size, hidden_size)",
            "Mend the model.",
        )
    batch_major = bool(told.get("layout", 0))
    states = _initial(graph, node, names, batch_major, owner)
    learned, carry = states if states is not None else (None, None)
    activations = _activations(told, count, node.op_type, owner)
    sides = [
        Node(
            node.op_type,
            W=weights["W"][way],
            R=weights["R"][way],
            B=None if weights["B"] is None else weights["B"][way],
            P=None if weights["P"] is None else weights["P"][way],
            initial=None if learned is None else tuple(state[way] for state in learned),
            activations=None if activations is None else activations[way],
            clip=told.get("clip"),
            input_forget=bool(told.get("input_forget", 0)),
            linear_before_reset=bool(told.get("linear_before_reset", 0)),
        )
        for way in range(count)
    ]
    cells = [cell_of(side, owner) for side in sides]
    if cells[0][0] != cells[-1][0]:
        raise value_error(
            f"{owner} got a node whose two directions are {cells[0][0]} and {cells[1][0]}",
            "one cell for both",
            "Split the node in two.",
        )
    begun = None if carry is None else [_carry(carry, way) for way in range(count)]
    return Layer(
        node=node,
        direction=direction,
        batch_major=batch_major,
        cell=cells[0][0],
        params=[params for _, params in cells],
        carry=begun,
        x=names[0],
        y=node.output[0] if node.output else "",
        sizes=(count, cells[0][0].input_size, H),
    )


def _carry(states: list[np.ndarray], way: int) -> Any:
    arrays = [jnp.asarray(state[way]) for state in states]
    return tuple(arrays) if len(arrays) == 2 else arrays[0]


def _activations(told: dict[str, Any], count: int, op: str, owner: str) -> list[tuple[Any, ...]] | None:
    if not told.get("activations"):
        return None
    names = [name.decode() for name in told["activations"]]
    if len(names) != count * len(USUAL[op]):
        raise value_error(
            f"{owner} got activations {names}", f"{len(USUAL[op])} for each of {count}", "Mend the model."
        )
    every = named(names, told.get("activation_alpha", []), told.get("activation_beta", []), owner)
    each = len(names) // count
    return [tuple(every[way * each : (way + 1) * each]) for way in range(count)]


def _initial(graph: Readable, node: Any, names: list[str], batch_major: bool, owner: str) -> Any:
    """The initial states: learned ones, one (directions, H) a state, or constant ones (directions, B, H)."""
    given = [names[5], names[6]] if node.op_type == "LSTM" else [names[5]]
    known: dict[str, Any] = {name: graph.state(name, node) for name in given if name}
    if any(value is None for value in known.values()) or not any(np.any(v) for v in known.values()):
        return None
    like = next(iter(known.values()))
    each = [known.get(name, np.zeros_like(like)) for name in given]
    each = [np.swapaxes(value, 0, 1) if batch_major else value for value in each]
    if all(graph.constant(name) is not None for name in known):
        return None, each
    if any((value != value[:, :1]).any() for value in each):
        raise value_error(
            f"{owner} got an initial state of {node.name or node.op_type} that is computed from the inputs",
            "a constant, an input of the model, or the same for all rows",
            "Cut the model before it.",
        )
    return [value[:, 0] for value in each], None


# --- many nodes ---------------------------------------------------------------------------------


def _build(layer: Layer, reverse: bool) -> Imported:
    """A layer as a cell or as both directions, in the order in which we walk them."""
    if layer.direction != "bidirectional":
        carry = None if layer.carry is None else layer.carry[0]
        return Imported(layer.cell, layer.params[0], carry, reverse)
    order = (1, 0) if reverse else (0, 1)
    network = Bidirectional(layer.cell, merge=layer.merge)
    params = BidirectionalParams(*(layer.params[way] for way in order))
    carry = None if layer.carry is None else tuple(layer.carry[way] for way in order)
    return Imported(network, params, carry, reverse)


def _joined(network: Any, params: Any, built: list[Imported]) -> Any | None:
    """One carry for all layers, where any has one."""
    given = [part.carry for part in built]
    if all(carry is None for carry in given):
        return None
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(given)}
    zeros = network.initial_carry((max(rows),), params)
    return tuple(zero if carry is None else carry for zero, carry in zip(zeros, given, strict=True))
