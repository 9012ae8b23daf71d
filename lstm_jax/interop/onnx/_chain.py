"""How the recurrent nodes of a model hang together, found by running what is between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import value_error
from lstm_jax.cells._base import MERGES
from lstm_jax.cells.readout import Readout, ReadoutParams
from lstm_jax.interop.onnx._nodes import GATES, READOUTS


@dataclass
class Layer:
    """A recurrent node, or a read-out, of a model."""

    node: Any
    direction: str  # forward, reverse, bidirectional; nothing of a read-out
    batch_major: bool
    cell: Any
    params: list[Any]  # one a direction, in ONNX's order
    carry: list[Any] | None
    x: str
    y: str
    sizes: tuple[int, int, int]  # directions, D, H
    merge: str = "concat"


class Readable:
    """A model that can be asked what a value depends on, and what it is.

    ``inputs`` are constants of their names.
    """

    def __init__(self, onnx: Any, model: Any, inputs: dict[str, Any]) -> None:
        self.onnx = onnx
        if model.functions:
            from onnx import inliner

            model = inliner.inline_local_functions(model)
        self.model = model
        self.nodes = list(model.graph.node)
        self.maker = {name: at for at, node in enumerate(self.nodes) for name in node.output if name}
        self.constants: dict[str, np.ndarray] = {
            tensor.name: np.asarray(onnx.numpy_helper.to_array(tensor)) for tensor in model.graph.initializer
        }
        self.constants |= {name: np.asarray(value) for name, value in inputs.items()}
        self.inputs = [info for info in model.graph.input if info.name not in self.constants]
        unknown = set(inputs) - {info.name for info in model.graph.input}
        if unknown:
            raise value_error(
                f"from_onnx got inputs {sorted(unknown)}",
                f"names among {[info.name for info in model.graph.input]}",
                "Look at model.graph.input.",
            )

    def recurrent(self) -> list[Any]:
        """The nodes RNN, LSTM and GRU, in the order in which they are computed."""
        return [node for node in self.nodes if node.op_type in GATES and node.domain in ("", "ai.onnx")]

    def reader(self, name: str) -> Any | None:
        """The node that reads a value, where it is one."""
        found = [node for node in self.nodes if name in node.input]
        return found[0] if len(found) == 1 else None

    def behind(self, names: list[str], known: Any = ()) -> tuple[list[Any], set[str]]:
        """The nodes that compute the names from what is known, and the inputs that are lacking."""
        left, seen, lacking = list(names), set(), set()
        while left:
            name = left.pop()
            if not name or name in known or name in self.constants:
                continue
            at = self.maker.get(name)
            if at is None:
                lacking.add(name)
            elif at not in seen:
                seen.add(at)
                left += self.nodes[at].input
        return [self.nodes[at] for at in sorted(seen)], lacking

    def run(self, names: list[str], known: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The values of the names, computed by onnx's reference."""
        from onnx.reference import ReferenceEvaluator

        helper = self.onnx.helper
        ready = [name for name in names if name not in known and name not in self.constants]
        values = self.constants | known
        if ready:
            nodes, _ = self.behind(ready, known)
            read = {name for node in nodes for name in node.input if name in values}
            made = {name for node in nodes for name in node.output}
            feeds = {name: values[name] for name in sorted(read - made)}
            infos = [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value in feeds.items()
            ]
            outs = [self.onnx.ValueInfoProto(name=name) for name in ready]
            graph = helper.make_graph(nodes, "part", infos, outs)
            part = helper.make_model(graph, opset_imports=list(self.model.opset_import))
            part.ir_version = self.model.ir_version
            values = values | dict(zip(ready, ReferenceEvaluator(part).run(None, feeds), strict=True))
        return [np.asarray(values[name]) for name in names]

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a name that depends on nothing but constants."""
        if name not in self.constants:
            nodes, lacking = self.behind([name])
            if lacking or any(node.op_type in GATES for node in nodes):
                return None
            self.constants[name] = self.run([name], {})[0]
        return self.constants[name]

    def state(self, name: str, node: Any) -> np.ndarray | None:
        """An initial state of a node, of one row or more; None where it is the caller's."""
        value = self.constant(name)
        if value is None:
            data = self.behind([node.input[0], *node.input[4:5]])[1]
            if not self.behind([name])[1] <= data:
                return None
            rng = np.random.default_rng(0)
            known = self.probes(rng)
            for layer in self.recurrent():  # of which a state may read the shape
                y = layer.output[0]
                shape = self.shape(y) or [2, 1, 2, 2]
                known |= {y: rng.normal(size=shape).astype(np.float32)} if y else {}
            if any(part.op_type in GATES for part in self.behind([name], known)[0]):
                raise value_error(
                    f"from_onnx got an initial state {name!r} that another recurrent node computes",
                    "a constant, an input of the model, or the same for all rows",
                    "Cut the model before it, and give it as unroll's carry.",
                )
            value = self.run([name], known)[0]
        return value

    def probes(self, rng: Any) -> dict[str, np.ndarray]:
        """Random numbers for the inputs of the graph; two steps, two rows, unless the model says more."""
        found = {}
        for info in self.inputs:
            kind = info.type.tensor_type
            shape = [dim.dim_value if dim.HasField("dim_value") else 2 for dim in kind.shape.dim]
            dtype = self.onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type or 1)
            if np.issubdtype(dtype, np.floating):
                found[info.name] = rng.normal(size=shape).astype(dtype)
            else:
                found[info.name] = np.full(shape, self.steps(), dtype)  # lengths, for instance
        return found

    def steps(self) -> int:
        """As many as no probe has more of."""
        fixed = [
            dim.dim_value
            for info in self.inputs
            for dim in info.type.tensor_type.shape.dim
            if dim.HasField("dim_value")
        ]
        return max([2, *fixed])

    def shape(self, name: str) -> list[int]:
        """What is known of a shape, 2 where nothing is."""
        if not hasattr(self, "_shapes"):
            graph = self.onnx.shape_inference.infer_shapes(self.model).graph
            self._shapes = {
                info.name: info.type.tensor_type.shape.dim for info in (*graph.value_info, *graph.input)
            }
        dims = self._shapes.get(name, ())
        return [dim.dim_value if dim.HasField("dim_value") else 2 for dim in dims]


# --- chains -------------------------------------------------------------------------------------


@dataclass
class _Match:
    """Layers that fit upon each other, as far as they do."""

    members: list[Layer]
    fits: bool  # all recurrent nodes are among them
    shown: bool = False  # an output of the model is the output of the last
    failed: Layer | None = None


def chain(graph: Readable, layers: list[Layer], owner: str) -> tuple[list[Layer], dict[str, bool], bool]:
    """The layers with their merges and the read-outs among them, the options of a Stack, the direction."""
    ways = {layer.direction for layer in layers}
    if {"forward", "reverse"} <= ways:
        raise value_error(
            f"{owner} got nodes that walk forward and nodes that walk in reverse",
            "one direction for the whole network",
            "Take them one by one, with from_onnx_node.",
        )
    turns = [True] if "reverse" in ways else [False] if "forward" in ways else [False, True]
    everything = _with_readouts(graph, layers)
    wired = [(False, False), (True, False), (False, True), (True, True)]
    best: tuple[_Match, dict[str, bool], bool] | None = None
    for reverse in turns:
        for residual, skip in wired if len(everything) > 1 else wired[:1]:
            match = _match(graph, everything, residual, skip, reverse)
            better = best is None or (match.fits, match.shown, len(match.members)) > (
                best[0].fits,
                best[0].shown,
                len(best[0].members),
            )
            if better:
                best = match, {"residual": residual, "skip": skip}, reverse
    assert best is not None
    match, options, reverse = best
    if not match.fits:
        first = _match(graph, everything, False, False, turns[0])
        _tell(graph, match if first.failed is None else first, owner)
    return match.members, options, reverse


def _tell(graph: Readable, match: _Match, owner: str) -> None:
    failed = match.failed
    assert failed is not None
    known = {layer.y for layer in match.members} | {match.members[0].x}
    nodes, _ = graph.behind([failed.x], known)
    kinds = sorted({node.op_type for node in nodes} - {"Constant"}) or ["nothing"]
    below = match.members[-1]
    raise value_error(
        f"{owner} got node {_called(failed)}, which does not read what node {_called(below)} says "
        f"(between them: {', '.join(kinds)})",
        "a chain, where each layer reads the outputs of the one below",
        "Take the nodes one by one, with from_onnx_node.",
    )


def _called(layer: Layer) -> str:
    return f"{layer.node.op_type} {layer.node.name or layer.y}".rstrip()


def _match(graph: Readable, layers: list[Layer], residual: bool, skip: bool, reverse: bool) -> _Match:
    """Walk up the chain with random numbers for what each layer says."""
    rng = np.random.default_rng(0)
    first = layers[0]
    shape = graph.shape(first.x)
    T, B = (2, 2) if len(shape) != 3 else (shape[1], shape[0]) if first.batch_major else (shape[0], shape[1])
    xs = rng.normal(size=(T, B, first.sizes[1])).astype(np.float32)
    known = graph.probes(rng) | {first.x: _turned(xs, first.batch_major)}
    members: list[Layer] = []
    said: list[tuple[str, np.ndarray]] = []  # what the last layer may say, by its merge
    last = max(at for at, layer in enumerate(layers) if layer.direction)
    for at, layer in enumerate(map(replace, layers)):  # copies, for the next try finds other merges
        below: np.ndarray | None = None
        if at > 0:
            target = _value(graph, layer.x, known)
            found = None
            for merge, out in said:
                read = np.concatenate([out, xs], -1) if skip else out
                for batch_major in (layer.batch_major,) if layer.direction else (False, True):
                    if found is None and target is not None and _same(target, _turned(read, batch_major)):
                        found = merge, out, batch_major
            if found is None and at > last:  # a product that is no layer of this network
                break
            if found is None:
                return _Match(members, False, failed=layer)
            members[-1].merge, below, layer.batch_major = found
        members.append(layer)
        said = _says(layer, known, T, B, rng, reverse)
        if residual and below is not None:
            said = [(merge, out + below) for merge, out in said if out.shape == below.shape]
    return _end(graph, members, said, known)


def _end(
    graph: Readable, members: list[Layer], said: list[tuple[str, np.ndarray]], known: dict[str, np.ndarray]
) -> _Match:
    """Whether an output of the model is what the last layer says."""
    match = _Match(members, True)
    if said:
        members[-1].merge = said[0][0]
    for info in graph.model.graph.output:
        value = _value(graph, info.name, known)
        if value is None:
            continue
        for merge, out in said:
            if _same(value, out) or _same(value, _turned(out, True)):
                members[-1].merge, match.shown = merge, True
                return match
    match.fits = bool(said)
    return match


def _value(graph: Readable, name: str, known: dict[str, np.ndarray]) -> np.ndarray | None:
    """A value, if it depends on no state of a recurrent node."""
    nodes, lacking = graph.behind([name], known)
    if lacking or any(node.op_type in GATES for node in nodes):
        return None
    try:
        return graph.run([name], known)[0]
    except Exception:  # the reference computes no such operator, or not of shapes that were guessed
        return None


def _says(
    layer: Layer, known: dict[str, np.ndarray], T: int, B: int, rng: Any, reverse: bool
) -> list[tuple[str, np.ndarray]]:
    """Random outputs of a layer, made known; by merge, as our network would say them."""
    count, _, H = layer.sizes
    if not layer.direction:
        y = rng.normal(size=(T, B, H)).astype(np.float32)
        known[layer.y] = _turned(y, layer.batch_major)
        return [("concat", y)]
    each = rng.normal(size=(count, T, B, H)).astype(np.float32)
    if layer.y:
        known[layer.y] = each.transpose((2, 1, 0, 3) if layer.batch_major else (1, 0, 2, 3))
    if count == 1:
        return [("concat", each[0])]
    a, b = each[::-1] if reverse else each
    return [(name, np.asarray(merge(jnp.asarray(a), jnp.asarray(b)))) for name, merge in MERGES.items()]


def _turned(a: np.ndarray, batch_major: bool) -> np.ndarray:
    return np.swapaxes(a, 0, 1) if batch_major else a


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-6)


# --- read-outs ----------------------------------------------------------------------------------


def _with_readouts(graph: Readable, layers: list[Layer]) -> list[Layer]:
    """The recurrent nodes and the read-outs behind the first of them, in the order of the graph."""
    ys = {layer.y for layer in layers if layer.y}
    at = {id(layer.node): layer for layer in layers}
    found: list[Layer] = []
    for node in graph.nodes:
        if id(node) in at:
            found.append(at[id(node)])
        elif node.op_type == "MatMul" and found:
            w = graph.constant(node.input[1])
            if w is not None and w.ndim == 2 and graph.constant(node.input[0]) is None:
                nodes, _ = graph.behind([node.input[0]])
                if any(name in ys for part in nodes for name in part.output):
                    found.append(_readout(graph, node, w))
    return found


def _readout(graph: Readable, node: Any, w: np.ndarray) -> Layer:
    """MatMul, and the Add and the activation behind it."""
    y, bias = node.output[0], None
    after = graph.reader(y)
    if after is not None and after.op_type == "Add":
        other = [graph.constant(name) for name in after.input if name != y]
        if len(other) == 1 and other[0] is not None and other[0].shape == (w.shape[1],):
            bias, y = other[0], after.output[0]
            after = graph.reader(y)
    activation = READOUTS[0][0]
    for function, name in READOUTS:
        if after is not None and name and after.op_type == name:
            axis = [a.i for a in after.attribute if a.name == "axis"]
            if "Softmax" not in name or not axis or axis[0] in (-1, 2):
                activation, y = function, after.output[0]
                break
    dtype = jnp.asarray(w).dtype
    cell = Readout(*w.shape, activation=activation, use_bias=bias is not None, param_dtype=dtype)
    params = ReadoutParams(jnp.asarray(w), None if bias is None else jnp.asarray(bias))
    sizes = (1, w.shape[0], w.shape[1])
    return Layer(node, "", False, cell, [params], None, node.input[0], y, sizes)
