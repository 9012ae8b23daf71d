"""Export of a network as ONNX's recurrent nodes: first a plan, without onnx, then the graph."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lstm_jax._errors import check_tuple, value_error
from lstm_jax.cells._base import short_value
from lstm_jax.cells.readout import Readout
from lstm_jax.interop._writing import write_whole
from lstm_jax.interop.onnx._graph import Final, Graph, Value, require_onnx
from lstm_jax.interop.onnx._nodes import DEFAULT_ACTIVATIONS, READOUTS, TRANSPARENT, Node, node_of
from lstm_jax.networks.bidirectional import Bidirectional
from lstm_jax.networks.stack import Stack


class Dense(NamedTuple):
    """A readout."""

    w: np.ndarray
    bias: np.ndarray | None
    activation: str  # an operator, or empty


class Chain(NamedTuple):
    """A stack."""

    layers: tuple[Any, ...]
    residual: bool
    skip: bool


class Both(NamedTuple):
    """Both directions."""

    forward: Any
    backward: Any
    merge: str


def to_onnx(
    network: Any,
    params: Any,
    *,
    lengths: bool = False,
    carry: bool = False,
    reverse: bool = False,
    name: str = "lstm_jax",
) -> Any:
    """An ONNX model with the results of ``unroll(network, params, xs)``.

    Cells become nodes of ONNX's operators RNN, LSTM and GRU (https://onnx.ai/onnx/operators/). A
    :class:`lstm_jax.Bidirectional` becomes one node where both directions fit into one, else two. T and B are
    free and may be 0.

    ============================  =================  ==================================================
    Inputs
    ============================  =================  ==================================================
    ``xs``                        (T, B, D) float32
    ``lengths``, with lengths     (B,) int32         steps t >= lengths are invalid; clipped to [0, T]
    ``h_0``, ``c_0``, with carry  (B, H) float32     the initial carry; only LSTMs have c_0
    **Outputs**
    ``ys``                        (T, B, O) float32  zero at invalid steps
    ``h_T``, ``c_T``              (B, H) float32     the final carry
    ============================  =================  ==================================================

    In a network, the carry's names have a prefix: ``layer1_`` in a stack (layers are counted from 0, a
    read-out has no carry), ``forward_`` and ``backward_`` in a Bidirectional; so ``layer1_backward_c_0``.
    Without ``carry`` the network begins with zeros or with its learned initial carry.

    The model evaluates: without a key, dropout between layers, VariationalDropout, WeightDrop and
    CandidateDropout do nothing. Heads become one block-diagonal matrix. What ONNX's nodes cannot represent
    raises: other cells, ``proj_size``, ``layer_norm``, ``cell_clip``, ``ablation``, Zoneout, activations that
    ONNX lacks, and parameters that are not float32.

    The nodes never read an empty sequence, an empty batch or a row of length 0, which the specification
    leaves open: onnxruntime 1.32 returns zeros as the final carry of such rows, and some empty batches end
    the process. The graph adds a step and a row, and removes them from the outputs.

    Args:
        network: RNN, LSTM, GRU, in Stack and Bidirectional, with Readout.
        params: its parameters.
        lengths: whether there is an input ``lengths``.
        carry: whether the initial carry is an input.
        reverse: run from the last valid step to the first, as ``unroll(..., reverse=True)`` does.
        name: the graph's name.

    Returns:
        ``onnx.ModelProto`` of opset 14 and IR version 7, which passes ``onnx.checker``; its metadata has
        ``lstm_jax_version``.

    Raises:
        ValueError: ONNX cannot represent the network.
        ImportError: onnx is not installed (extra ``onnx``).

    >>> import jax, lstm_jax
    >>> network = lstm_jax.Stack((lstm_jax.LSTM(3, 8), lstm_jax.Readout(8, 2)))
    >>> params = network.init(jax.random.key(0))
    >>> model = to_onnx(network, params, lengths=True)
    >>> [entry.name for entry in model.graph.input]
    ['xs', 'lengths']
    """
    planned = plan(network, params)
    width = int(network.input_size)
    onnx = require_onnx("to_onnx")
    graph = Graph(onnx)
    x = graph.begin(width, lengths)
    y, finals = _write(graph, planned, x, "", carry, reverse)
    graph.end(y, finals)
    model = graph.model(name, f"{network!r} unrolled{' in reverse' if reverse else ''} by lstm_jax")
    onnx.checker.check_model(model, full_check=True)
    return model


def save_onnx(path: str | os.PathLike[str], network: Any, params: Any, **options: Any) -> None:
    """Write the model of :func:`to_onnx` to a file, completely or not at all.

    Args:
        path: the file; an existing one is replaced.
        network: as in ``to_onnx``.
        params: as in ``to_onnx``.
        options: as in ``to_onnx``.

    Raises:
        ValueError: ONNX cannot represent the network.
        ImportError: onnx is not installed (extra ``onnx``).

    >>> import jax, lstm_jax, tempfile
    >>> from lstm_jax.interop import from_onnx
    >>> cell = lstm_jax.LSTM(3, 8)
    >>> path = f"{tempfile.mkdtemp()}/model.onnx"
    >>> save_onnx(path, cell, cell.init(jax.random.key(0)))
    >>> from_onnx(path).network
    LSTM(input_size=3, hidden_size=8)
    """
    write_whole(Path(path), to_onnx(network, params, **options).SerializeToString())


# --- the plan -----------------------------------------------------------------------------------


def plan(network: Any, params: Any, path: str = "") -> Any:
    """The network's layers with all weights in ONNX's layouts.

    Raises:
        ValueError: ONNX cannot represent the network.
    """
    if isinstance(network, Stack):
        check_tuple("to_onnx", params, len(network.layers))
        layers = zip(network.layers, params, strict=True)
        planned = (plan(layer, p, f"{path}layer{index}_") for index, (layer, p) in enumerate(layers))
        return Chain(tuple(planned), network.residual, network.skip)
    if isinstance(network, Bidirectional):
        check_tuple("to_onnx", params, 2)
        ways = zip(network.cells, params, ("forward_", "backward_"), strict=True)
        forward, backward = (plan(cell, p, path + way) for cell, p, way in ways)
        return Both(forward, backward, network.merge)
    if isinstance(network, Readout):
        return _plan_readout(network, params, path)
    if isinstance(network, TRANSPARENT):
        return plan(network.cell, params, path)
    return node_of(network, params, path)


def _plan_readout(readout: Readout, params: Any, path: str) -> Dense:
    at = f" at {path.rstrip('_')}" if path else ""
    found = [name for known, name in READOUTS if readout.activation is known]
    if not found:
        known = ", ".join(name or "the identity" for _, name in READOUTS)
        raise value_error(
            f"to_onnx got Readout(activation={short_value(readout.activation)}){at}",
            f"one of {known}",
            "Export the read-out without its activation, and apply that outside.",
        )
    shapes: dict[str, tuple[int, ...]] = {"w": (readout.input_size, readout.output_size)}
    shapes |= {"bias": (readout.output_size,)} if readout.use_bias else {}
    for name, shape in shapes.items():
        value = np.asarray(getattr(params, name, None))
        if value.shape != shape or value.dtype != np.float32:
            raise value_error(
                f"to_onnx got {name} of shape {value.shape} and dtype {value.dtype}{at}",
                f"{shape} and float32",
                "Make them with init(key), or cast them.",
            )
    if readout.dtype not in (None, np.dtype("float32")):
        raise value_error(f"to_onnx got Readout(dtype={readout.dtype}){at}", "float32", "Leave dtype out.")
    bias = None if params.bias is None else np.asarray(params.bias)
    return Dense(np.asarray(params.w), bias, found[0])


# --- the graph ----------------------------------------------------------------------------------


def _write(
    graph: Graph, planned: Any, x: Value, path: str, carry: bool, reverse: bool
) -> tuple[Value, list[Final]]:
    """Write one layer or network; returns its outputs, zero at invalid steps, and its final carries."""
    if isinstance(planned, Chain):
        return _write_chain(graph, planned, x, path, carry, reverse)
    if isinstance(planned, Both):
        return _write_both(graph, planned, x, path, carry, reverse)
    if isinstance(planned, Dense):
        return _write_readout(graph, planned, x, path), []
    (y,), finals = _write_node(graph, [(planned, path)], x, path, carry, "reverse" if reverse else "forward")
    return y, finals


def _write_chain(
    graph: Graph, planned: Chain, x: Value, path: str, carry: bool, reverse: bool
) -> tuple[Value, list[Final]]:
    y, finals = x, []
    for index, layer in enumerate(planned.layers):
        below = y
        if index > 0 and planned.skip:
            y = Value(graph.op("Concat", y.name, x.name, axis=-1), y.width + x.width)
        y, more = _write(graph, layer, y, f"{path}layer{index}_", carry, reverse)
        finals += more
        if index > 0 and planned.residual:
            y = Value(graph.op("Add", y.name, below.name), y.width)
    return y, finals


def _write_both(
    graph: Graph, planned: Both, x: Value, path: str, carry: bool, reverse: bool
) -> tuple[Value, list[Final]]:
    ways = [(planned.forward, f"{path}forward_"), (planned.backward, f"{path}backward_")]
    if _fit_one_node(planned.forward, planned.backward):
        ys, finals = _write_node(graph, ways, x, path, carry, "bidirectional", swap=reverse)
    else:
        written = [
            _write(graph, way, x, name, carry, backwards)
            for (way, name), backwards in zip(ways, (reverse, not reverse), strict=True)
        ]
        ys, finals = [y for y, _ in written], [final for _, more in written for final in more]
    a, b = ys
    if planned.merge == "concat":
        return Value(graph.op("Concat", a.name, b.name, axis=-1), a.width + b.width), finals
    merged = graph.op("Mul" if planned.merge == "product" else "Add", a.name, b.name)
    if planned.merge == "mean":
        merged = graph.op("Div", merged, graph.constant("two", np.array(2, np.float32)))
    return Value(merged, a.width), finals


def _fit_one_node(forward: Any, backward: Any) -> bool:
    """Whether two layers can be the directions of one node: all attributes but activations are equal."""
    if not (isinstance(forward, Node) and isinstance(backward, Node)):
        return False

    def shared(node: Node) -> tuple[Any, ...]:
        return node.op, node.W.shape, node.clip, node.input_forget, node.linear_before_reset

    return shared(forward) == shared(backward)


def _write_readout(graph: Graph, planned: Dense, x: Value, path: str) -> Value:
    y = graph.op("MatMul", x.name, graph.constant(f"{path}w", planned.w))
    if planned.bias is not None:
        y = graph.op("Add", y, graph.constant(f"{path}b", planned.bias))
    if planned.activation:
        last: dict[str, Any] = {"axis": -1} if "Softmax" in planned.activation else {}
        y = graph.op(planned.activation, y, **last)
    return Value(graph.mask_out(y), planned.w.shape[1])


def _write_node(
    graph: Graph,
    ways: list[tuple[Node, str]],
    x: Value,
    path: str,
    carry: bool,
    direction: str,
    swap: bool = False,
) -> tuple[list[Value], list[Final]]:
    """Write a recurrent node for one or both directions; ``swap``: the second is ONNX's forward direction."""
    nodes = [node for node, _ in ways]
    order = [1, 0] if swap else list(range(len(ways)))
    first, H = nodes[0], nodes[0].hidden_size
    states = ("h", "c") if first.op == "LSTM" else ("h",)
    start = [{state: _initial(graph, node, name, state, carry) for state in states} for node, name in ways]

    def stacked(field: str) -> str:
        values = [getattr(nodes[index], field) for index in order]
        if all(value is None for value in values):
            return ""
        zeros = np.zeros_like(next(value for value in values if value is not None))
        return graph.constant(path + field, np.stack([zeros if v is None else v for v in values]))

    def initial(state: str) -> str:
        each = [start[index][state] for index in order]
        if all(name == graph.zero for name in each):
            return ""
        each = [_expand(graph, name, H) if name == graph.zero else name for name in each]
        each = [graph.op("Unsqueeze", name, graph.ints(0)) for name in each]
        return each[0] if len(each) == 1 else graph.op("Concat", *each, axis=0)

    inputs = [x.name, stacked("W"), stacked("R"), stacked("B"), graph.lengths, *map(initial, states)]
    if first.op == "LSTM":
        inputs.append(stacked("P"))
    while not inputs[-1]:
        inputs.pop()
    outputs = [f"{path}{name}" for name in ("Y", "Y_h", "Y_c")[: 1 + len(states)]]
    graph.ops(first.op, inputs, outputs, direction=direction, **_attributes(nodes, order))
    ys = [Value(graph.mask_out(y), H) for y in _directions(graph, outputs[0], 1, order)]
    ends = {s: _directions(graph, out, 0, order) for s, out in zip(states, outputs[1:], strict=True)}
    finals = []
    for index, (_, name) in enumerate(ways):
        for state in states:
            final = graph.op("Where", graph.absent, start[index][state], ends[state][index])
            finals.append(Final(f"{name}{state}_T", final, H))
    return ys, finals


def _initial(graph: Graph, node: Node, path: str, state: str, carry: bool) -> str:
    """The name of the initial state (B, H), or of the scalar zero."""
    if carry:
        given = graph.input(f"{path}{state}_0", ("B", node.hidden_size))
        pads = graph.op("Concat", graph.ints(0, 0), graph.more_rows, graph.ints(0), axis=0)
        return graph.op("Pad", given, pads, graph.zero)
    if node.initial is None:
        return graph.zero
    learned = graph.constant(f"{path}{state}_learned", node.initial["hc".index(state)][None])
    return _expand(graph, learned, node.hidden_size)


def _expand(graph: Graph, value: str, width: int) -> str:
    """A value of one row or a scalar, expanded to (B, width)."""
    return graph.op("Expand", value, graph.op("Concat", graph.rows, graph.ints(width), axis=0))


def _attributes(nodes: list[Node], order: list[int]) -> dict[str, Any]:
    """The attributes that differ from their defaults."""
    first = nodes[0]
    found: dict[str, Any] = {"hidden_size": first.hidden_size}
    if first.clip is not None:
        found["clip"] = first.clip
    if first.input_forget:
        found["input_forget"] = 1
    if first.linear_before_reset:
        found["linear_before_reset"] = 1
    if any(node.activations is not None for node in nodes):
        defaults = DEFAULT_ACTIVATIONS[first.op]
        each = [activation for index in order for activation in nodes[index].activations or defaults]
        found["activations"] = [activation.name for activation in each]
        for number in ("alpha", "beta"):
            numbers = [getattr(a, number) for a in each if getattr(a, number) is not None]
            if numbers:
                found[f"activation_{number}"] = numbers
    return found


def _directions(graph: Graph, name: str, axis: int, order: list[int]) -> list[str]:
    """The directions of an output, in this library's order."""
    values = [name]
    if len(order) > 1:
        values = graph.ops("Split", [name], [f"{name}_{way}" for way in ("first", "second")], axis=axis)
    return [graph.op("Squeeze", values[index], graph.ints(axis)) for index in order]
