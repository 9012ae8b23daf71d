"""Recurrent nodes of any ONNX model as cells, and chains of them as networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import listing, shorten, value_error
from lstm_jax.interop.onnx._activations import OnnxActivation, read_activations
from lstm_jax.interop.onnx._chain import Layer, find_chain
from lstm_jax.interop.onnx._graph import require_onnx
from lstm_jax.interop.onnx._model import Model, Probe, is_operator, is_recurrent, read_proto
from lstm_jax.interop.onnx._nodes import DEFAULT_ACTIVATIONS, Node, cell_of
from lstm_jax.networks.bidirectional import Bidirectional, BidirectionalParams
from lstm_jax.networks.stack import Stack


class Imported(NamedTuple):
    """A network and the arguments with which a model runs it."""

    network: Any  # a cell, a Bidirectional, or a Stack
    params: Any
    carry: Any | None  # the model's constant initial states; None where all are zero, learned or inputs
    reverse: bool  # whether the model runs from the last step to the first


def from_onnx(model: Any, *, inputs: Mapping[str, Any] | None = None) -> Imported:
    """The recurrent network in a model: one node, or a chain in which each node reads the previous one.

    The network is made of the nodes RNN, LSTM and GRU (https://onnx.ai/onnx/operators/), in both layouts
    and all directions, with ONNX's activations, and of read-outs behind the first of them: a MatMul with a
    constant matrix, then an Add and an activation if they are there. The operators between two layers are
    run on random numbers. They must compute what a :class:`lstm_jax.Stack` does, with ``residual``, ``skip``
    and the merges of :class:`lstm_jax.Bidirectional`; so Transpose, Reshape, Squeeze, Concat and others may
    be arranged in any way. The network is time-major, whatever the model's layout.

    What comes before the first recurrent node (an embedding, say) and after the last layer is not part of
    the network, and neither are lengths. An initial state is one of these:

    - computed from an input of the model that is not the sequence: pass it to ``unroll`` as ``carry``, where
      ``Imported.carry`` has zeros for it or is None;
    - a constant with a row for each row of the batch: it is in ``Imported.carry``;
    - a constant that the model expands to the size of the batch: the cell learns its initial carry
      (``learn_initial_carry=True``);
    - zeros: neither;
    - computed from the sequence: an error.

    Where a model has two equal readings, the simpler one is returned. Directions whose merge is no output of
    the model are concatenated. A reverse pass of both directions with the merge sum, mean or product is a
    forward pass with the directions exchanged.

    A model may come from anywhere. While it is read, only operators run that arrange values or compute with
    shapes: they are listed in the message when another one is needed. What they compute in all is limited to
    128 MiB and eight times the size of the weights. Files have to be regular files that hold all weights;
    read others with ``onnx.load(path)``.

    Args:
        model: ``onnx.ModelProto``, or the path of a file.
        inputs: values of inputs of the graph by name, where weights are inputs.

    Returns:
        ``Imported(network, params, carry, reverse)``. Weights of float64 become float32 unless
        ``jax_enable_x64`` is set.

    Raises:
        ValueError: the model is malformed or too large, has no such node, weights are missing or have no
            counterpart, a state is computed from the sequence, or something else is computed between two
            layers; :func:`from_onnx_node` then reads them one by one.
        OSError: there is no such file.
        ImportError: onnx is not installed (extra ``onnx``).

    >>> import jax, lstm_jax
    >>> from lstm_jax.interop import to_onnx
    >>> network = lstm_jax.Stack((lstm_jax.LSTM(3, 8), lstm_jax.Readout(8, 2)))
    >>> model = to_onnx(network, network.init(jax.random.key(0)))
    >>> found = from_onnx(model)
    >>> found.network == network, found.carry, found.reverse
    (True, None, False)
    """
    graph = _open("from_onnx", model, inputs)
    found = graph.recurrent()
    if not found:
        operators = sorted({node.op_type for node in graph.nodes})
        raise graph.error(
            f"a model of {listing(operators) or 'no nodes'}",
            "a node RNN, LSTM or GRU",
            "Those inside of If, Loop or Scan are not read.",
        )
    chain = find_chain(graph, [_layer(graph, node) for node in found])
    built = [_build(layer, chain.reverse) for layer in chain.layers]
    if len(built) == 1:
        return built[0]
    cells = tuple(part.network for part in built)
    network = Stack(cells, residual=chain.residual, skip=chain.skip)
    params = tuple(part.params for part in built)
    return Imported(network, params, _stack_carry(network, params, built), chain.reverse)


def from_onnx_node(
    model: Any, name: str | None = None, *, inputs: Mapping[str, Any] | None = None
) -> Imported:
    """One recurrent node of a model, which may contain other computations.

    A node of both directions becomes a :class:`lstm_jax.Bidirectional` that concatenates. Initial states and
    limits are those of :func:`from_onnx`.

    Args:
        model: ``onnx.ModelProto``, or the path of a file.
        name: the node's name, or that of one of its outputs; None where there is only one.
        inputs: values of inputs of the graph by name, where weights are inputs.

    Returns:
        ``Imported(network, params, carry, reverse)``.

    Raises:
        ValueError: the model is malformed or too large, there is no such node, its weights are missing or
            have no counterpart, or a state is computed from the sequence.
        OSError: there is no such file.
        ImportError: onnx is not installed (extra ``onnx``).

    >>> import jax, lstm_jax
    >>> from lstm_jax.interop import to_onnx
    >>> cell = lstm_jax.GRU(3, 8)
    >>> from_onnx_node(to_onnx(cell, cell.init(jax.random.key(0)))).network
    GRU(input_size=3, hidden_size=8)
    """
    graph = _open("from_onnx_node", model, inputs)
    recurrent = graph.recurrent()
    found = [node for node in recurrent if name is None or name == node.name or name in node.output]
    if len(found) != 1 or name == "":
        names = listing(f"{node.op_type} {node.name or '-'} -> {node.output[0] or '-'}" for node in recurrent)
        raise graph.error(
            f"name={name!r} for a model with the nodes {names or 'of no such operator'}",
            "the name, or an output's name, of one of them",
            "Pass the name of one.",
        )
    layer = _layer(graph, found[0])
    return _build(layer, layer.direction == "reverse")


def _open(owner: str, model: Any, inputs: Mapping[str, Any] | None) -> Model:
    if inputs is not None and not isinstance(inputs, Mapping):
        raise value_error(
            f"{owner} got inputs of type {type(inputs).__name__}",
            "a mapping from names to arrays",
            "Pass inputs={name: array}.",
        )
    onnx = require_onnx(owner)
    source, proto = read_proto(owner, onnx, model)
    return Model(source, onnx, proto, dict(inputs or {}))


# --- one node -----------------------------------------------------------------------------------


def _layer(model: Model, node: Any) -> Layer:
    """A recurrent node with its cells, parameters and initial states."""
    attributes = _attributes(model, node)
    direction = attributes.get("direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise _node_error(
            model, node, f"direction={direction!r}", "forward, reverse or bidirectional", "Correct the model."
        )
    count = 2 if direction == "bidirectional" else 1
    names = [*node.input, *[""] * (8 - len(node.input))]
    weights = _weights(model, node, names, count)
    H = weights["R"].shape[-1]
    if attributes.get("hidden_size", H) != H:
        raise _node_error(
            model, node, f"R of shape {weights['R'].shape} and hidden_size={attributes['hidden_size']}",
            "R of (directions, gates * hidden_size, hidden_size)", "Correct the model.",
        )  # fmt: skip
    batch_major = bool(attributes.get("layout", 0))
    learned, carry = _initial(model, node, names, batch_major, weights["R"])
    activations = _activations(model, node, attributes, count)
    where = f"{model.owner} got node {model.label(node)}"
    cells, params = [], []
    for way in range(count):
        arrays: dict[str, Any] = {
            key: None if array is None else array[way] for key, array in weights.items()
        }
        cell, own = cell_of(
            Node(
                node.op_type,
                **arrays,
                initial=None if learned is None else tuple(state[way] for state in learned),
                activations=activations[way],
                clip=attributes.get("clip"),
                input_forget=bool(attributes.get("input_forget", 0)),
                linear_before_reset=bool(attributes.get("linear_before_reset", 0)),
            ),
            where,
        )
        cells.append(cell)
        params.append(own)
    return Layer(
        node,
        direction,
        batch_major,
        cells,
        params,
        carry=None if carry is None else [_carry(carry, way) for way in range(count)],
        x=names[0],
        y=node.output[0] if node.output else "",
    )


def _node_error(model: Model, node: Any, got: str, expected: str, hint: str) -> ValueError:
    return model.error(f"node {model.label(node)} with {got}", expected, hint)


#: The attributes of recurrent nodes, each with its type and the field that holds it.
ATTRIBUTES = {
    "direction": ("STRING", "s"),
    "hidden_size": ("INT", "i"),
    "layout": ("INT", "i"),
    "activations": ("STRINGS", "strings"),
    "activation_alpha": ("FLOATS", "floats"),
    "activation_beta": ("FLOATS", "floats"),
    "clip": ("FLOAT", "f"),
    "input_forget": ("INT", "i"),
    "linear_before_reset": ("INT", "i"),
}


def _attributes(model: Model, node: Any) -> dict[str, Any]:
    """The attributes of a recurrent node by name; strings are decoded."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        kind, field = ATTRIBUTES.get(attribute.name, ("", ""))
        if not kind or attribute.type != getattr(model.onnx.AttributeProto, kind):
            raise _node_error(
                model, node, f"the attribute {shorten(attribute.name, 60)!r} of type {attribute.type}",
                f"an attribute of its operator ({', '.join(ATTRIBUTES)})", "Check it with onnx.checker.",
            )  # fmt: skip
        value = getattr(attribute, field)
        if kind == "STRING":
            value = value.decode(errors="replace")
        elif kind == "STRINGS":
            value = [text.decode(errors="replace") for text in value]
        found[attribute.name] = value
    return found


def _weights(model: Model, node: Any, names: list[str], count: int) -> dict[str, Any]:
    """W, R, B and P, each with the directions along the first axis; None where one is absent."""
    found: dict[str, Any] = {"P": None}
    ranks = {"W": (1, 3), "R": (2, 3), "B": (3, 2)} | ({"P": (7, 2)} if node.op_type == "LSTM" else {})
    for key, (at, rank) in ranks.items():
        value = model.constant(names[at]) if names[at] else None
        if value is None and (names[at] or key in "WR"):
            raise model.error(
                f"{key} of node {model.label(node)} as {names[at]!r}, which is not constant",
                "weights in the model",
                f"Pass inputs={{{names[at]!r}: array}} if it is an input of the model.",
            )
        if value is not None and (value.ndim != rank or len(value) != count):
            raise _node_error(
                model,
                node,
                f"{key} of shape {value.shape}",
                f"{rank} axes, the first of the {count} directions",
                "Correct the model.",
            )
        found[key] = value
    return found


def _carry(states: list[np.ndarray], way: int) -> Any:
    arrays = [jnp.asarray(state[way]) for state in states]
    return tuple(arrays) if len(arrays) == 2 else arrays[0]


def _activations(
    model: Model, node: Any, attributes: dict[str, Any], count: int
) -> list[tuple[OnnxActivation, ...]]:
    """The activations of each direction."""
    defaults = DEFAULT_ACTIVATIONS[node.op_type]
    names = attributes.get("activations")
    if not names:
        return [defaults] * count
    if len(names) != count * len(defaults):
        raise _node_error(
            model,
            node,
            f"the activations {listing(names)}",
            f"{len(defaults)} for each of {count} directions",
            "Correct the model.",
        )
    alphas, betas = (attributes.get(f"activation_{field}", []) for field in ("alpha", "beta"))
    found = read_activations(names, alphas, betas, f"{model.owner} got node {model.label(node)}")
    each = len(defaults)
    return [tuple(found[way * each : (way + 1) * each]) for way in range(count)]


# --- initial states -----------------------------------------------------------------------------


class State(NamedTuple):
    """A constant initial state of a node."""

    value: np.ndarray  # (directions, B, H), or (directions, H) where it is expanded to the batch's size
    is_expanded: bool


def _initial(
    model: Model, node: Any, names: list[str], batch_major: bool, R: np.ndarray
) -> tuple[list[np.ndarray] | None, list[np.ndarray] | None]:
    """The initial states that are not zero: learned, each (directions, H), or constant, (directions, B, H).

    Zeros stand for a state that is an input of the model where the other state is constant.
    """
    given = names[5:7] if node.op_type == "LSTM" else names[5:6]
    states = [_state(model, node, name, batch_major, R) if name else None for name in given]
    constant = [state for state in states if state is not None and state.value.any()]
    if not constant:
        return None, None
    count, H = len(R), R.shape[-1]
    batches = {state.value.shape[1] for state in constant if not state.is_expanded}
    if not batches:
        zeros = np.zeros((count, H), R.dtype)
        return [zeros if state is None or not state.is_expanded else state.value for state in states], None
    if len(batches) > 1:
        raise _node_error(
            model, node, f"initial states of {listing(sorted(batches))} rows", "as many rows in both", _CUT
        )
    shape = (count, *batches, H)
    carry = []
    for state in states:
        value = np.zeros((), R.dtype) if state is None else state.value
        value = value[:, None] if state is not None and state.is_expanded else value
        carry.append(np.broadcast_to(value, shape) if value.any() else np.zeros(shape, value.dtype))
    return None, carry


def _state(model: Model, node: Any, name: str, batch_major: bool, R: np.ndarray) -> State | None:
    """An initial state of a node if it is constant; None if it is computed from another input of the model.

    Raises:
        ValueError: it is computed from the sequence.
    """
    count, H = len(R), R.shape[-1]

    def time_major(value: np.ndarray) -> np.ndarray:
        value = np.swapaxes(value, 0, 1) if batch_major and value.ndim == 3 else value
        if value.ndim != 3 or (value.shape[0], value.shape[2]) != (count, H) or value.dtype != R.dtype:
            raise _node_error(
                model,
                node,
                f"an initial state of shape {value.shape} and dtype {value.dtype}",
                f"{R.dtype} of {'(B, directions, H)' if batch_major else '(directions, B, H)'}, "
                f"directions={count} and H={H}",
                "Correct the model.",
            )
        return value

    constant = model.constant(name)
    if constant is not None:
        return State(time_major(constant), False)
    behind = model.dependencies([name], only=_values_read)
    sequence = model.dependencies([node.input[0], *node.input[4:5]], only=_sequence_read)
    source = "another recurrent node" if any(map(is_recurrent, behind.nodes)) else ""
    source = source or listing(repr(given) for given in sorted(behind.inputs & sequence.inputs))
    if source:
        raise _node_error(
            model,
            node,
            f"an initial state {shorten(name, 60)!r} that is computed from the sequence (by way of {source})",
            "a constant, or an input of the model besides the sequence",
            _CUT,
        )
    if behind.inputs:
        return None
    return _expanded_state(model, node, name, time_major)


def _expanded_state(model: Model, node: Any, name: str, time_major: Any) -> State:
    """A state that is computed from constants and from the sizes of inputs.

    It is computed twice, for batches of two and of three rows and from other random inputs. Its rows have to
    be equal each time. Where they are not, but the model declares all sizes, it has the declared size.
    """
    reason = "its rows differ, or depend on the sizes of the inputs"
    try:
        probes = (Probe(size, seed=size, full_length=False) for size in (2, 3))
        first, second = (
            time_major(model.evaluate(name, _outputs_of(model, name, probe), probe)) for probe in probes
        )
        row = first[:, :1]
        if (first.shape[1], second.shape[1]) == (2, 3) and (first == row).all() and (second == row).all():
            return State(first[:, 0], True)
    except ValueError as error:
        reason = str(error)
    inputs = model.dependencies([name]).inputs
    if model.is_static(inputs):
        declared = Probe(None)
        return State(time_major(model.evaluate(name, _outputs_of(model, name, declared), declared)), False)
    raise _node_error(
        model,
        node,
        f"an initial state {shorten(name, 60)!r} that cannot be read: {shorten(reason, 250)}",
        "a constant, the same for all rows of the batch, or an input of the model",
        _CUT,
    )


_CUT = "Cut the model before the state with onnx.utils.extract_model, and pass it to unroll as carry."


def _values_read(node: Any) -> tuple[str, ...] | None:
    """The inputs of a node whose values it reads, without those of which it reads only the shape."""
    return () if is_operator(node, "Shape", "Size") else None


def _sequence_read(node: Any) -> Any:
    """The sequence and the lengths that a recurrent node reads; of other nodes, the values."""
    return [node.input[0], *node.input[4:5]] if is_recurrent(node) else _values_read(node)


def _outputs_of(model: Model, name: str, probe: Probe) -> dict[str, np.ndarray]:
    """Zeros for the outputs of recurrent nodes of which a value may read the shape."""
    found: dict[str, np.ndarray] = {}
    for node in filter(is_recurrent, model.dependencies([name]).nodes):
        batch_major = bool(_attributes(model, node).get("layout", 0))
        R = model.constant(node.input[2])
        if R is None or R.ndim != 3:
            continue
        T = B = probe.size or 0
        if probe.size is None:
            first, second, _ = model.evaluate(node.input[0], found, probe).shape
            T, B = (second, first) if batch_major else (first, second)
        count, H = len(R), R.shape[-1]
        ys = (B, T, count, H) if batch_major else (T, count, B, H)
        states = (B, count, H) if batch_major else (count, B, H)
        for output, shape in zip(node.output, (ys, states, states), strict=False):
            found[output] = np.zeros(shape, R.dtype)
    return found


# --- networks -----------------------------------------------------------------------------------


def _build(layer: Layer, reverse: bool) -> Imported:
    """A layer as a cell or as both directions; in reverse, ONNX's backward direction comes first."""
    if layer.direction != "bidirectional":
        carry = None if layer.carry is None else layer.carry[0]
        return Imported(layer.cells[0], layer.params[0], carry, reverse)
    order = (1, 0) if reverse else (0, 1)
    forward, backward = (layer.cells[way] for way in order)
    network = Bidirectional(forward, merge=layer.merge, backward=backward)
    params = BidirectionalParams(*(layer.params[way] for way in order))
    carry = None if layer.carry is None else tuple(layer.carry[way] for way in order)
    return Imported(network, params, carry, reverse)


def _stack_carry(network: Any, params: Any, built: list[Imported]) -> Any | None:
    """One carry for all layers, where a layer has a constant one."""
    given = [part.carry for part in built]
    if all(carry is None for carry in given):
        return None
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(given)}
    own = network.initial_carry((max(rows),), params)
    return tuple(like if carry is None else carry for like, carry in zip(own, given, strict=True))
