"""Find how the recurrent nodes of a model are connected, by running the model on random numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lstm_jax.cells._base import MERGES
from lstm_jax.cells.readout import Readout, ReadoutParams
from lstm_jax.interop.onnx._model import Model, Probe, is_operator, is_recurrent
from lstm_jax.interop.onnx._nodes import READOUTS


@dataclass
class Layer:
    """A recurrent node or a read-out of a model."""

    node: Any
    direction: str  # forward, reverse or bidirectional; empty for a read-out
    batch_major: bool
    cells: list[Any]  # one for each direction, in ONNX's order
    params: list[Any]
    carry: list[Any] | None
    x: str  # names of the input and of the output
    y: str
    merge: str = "concat"


class Chain(NamedTuple):
    """Connected layers."""

    layers: list[Layer]
    residual: bool
    skip: bool
    reverse: bool
    complete: bool = False  # all recurrent nodes are among the layers
    shown: bool = False  # an output of the model is the output of the last layer
    failed: Layer | None = None  # the layer that does not read the output of the one below


def find_chain(model: Model, layers: list[Layer]) -> Chain:
    """The recurrent layers with their merges, the readouts among them, and their connections.

    Raises:
        ValueError: the layers do not feed one another as those of a ``Stack`` do.
    """
    directions = {layer.direction for layer in layers}
    if {"forward", "reverse"} <= directions:
        raise model.error(
            "nodes that run forward and nodes that run in reverse",
            "one direction for the whole network",
            _ONE_BY_ONE,
        )
    reverses = [True] if "reverse" in directions else [False] if "forward" in directions else [False, True]
    candidates = _with_readouts(model, layers)
    wired = [(False, False), (True, False), (False, True), (True, True)]
    wired = wired if len(candidates) > 1 else wired[:1]
    for probe in (Probe(2), Probe(None)):
        chains = [
            _match(model, candidates, Chain([], residual, skip, reverse), probe)
            for reverse in reverses
            for residual, skip in wired
        ]
        best = max(chains, key=lambda chain: (chain.complete, chain.shown, len(chain.layers)))
        if best.complete:
            return best
    raise _error(model, chains[0] if chains[0].failed else best)


_ONE_BY_ONE = "Read the nodes one by one, with from_onnx_node."


def _error(model: Model, chain: Chain) -> ValueError:
    failed, below = chain.failed, chain.layers[-1:]
    if failed is None or not below:
        return model.error("no output of a recurrent node", "a layer with outputs", _ONE_BY_ONE)
    known = {layer.y for layer in chain.layers} | {chain.layers[0].x}
    operators = sorted({node.op_type for node in model.dependencies([failed.x], known).nodes} - {"Constant"})
    return model.error(
        f"node {model.label(failed.node)}, which does not read the output of node "
        f"{model.label(below[0].node)} (between them: {', '.join(operators) or 'nothing'})",
        "a chain, where each layer reads the outputs of the one below",
        _ONE_BY_ONE,
    )


def _match(model: Model, candidates: list[Layer], chain: Chain, probe: Probe) -> Chain:
    """Follow the chain upwards with random numbers for the output of each layer."""
    rng = np.random.default_rng(0)
    known: dict[str, np.ndarray] = {}
    xs = _first_inputs(model, candidates[0], known, probe, rng)
    if xs is None:
        return chain._replace(layers=candidates[:1], failed=candidates[min(1, len(candidates) - 1)])
    layers: list[Layer] = []
    outputs: list[tuple[str, np.ndarray]] = []  # of the last layer, by its merge
    last = max(at for at, layer in enumerate(candidates) if layer.direction)
    for at, layer in enumerate(map(replace, candidates)):  # copies: each chain finds its own merges
        below: np.ndarray | None = None
        if at > 0:
            read = _value(model, layer.x, known, probe)
            layouts = (layer.batch_major,) if layer.direction else (False, True)
            found = None
            for merge, ys in outputs if read is not None else ():
                expected = np.concatenate([ys, xs], -1) if chain.skip else ys
                for batch_major in layouts:
                    if found is None and _equal(read, _swapped(expected, batch_major)):
                        found = merge, ys, batch_major
            if found is None and at > last:  # a product that is not a layer of this network
                break
            if found is None:
                return chain._replace(layers=layers, failed=layer)
            layers[-1].merge, below, layer.batch_major = found
        layers.append(layer)
        outputs = _draw_outputs(layer, known, xs.shape[:2], rng, chain.reverse)
        if chain.residual and below is not None:
            outputs = [(merge, ys + below) for merge, ys in outputs if ys.shape == below.shape]
    if not outputs:
        return chain._replace(layers=layers)
    shown = _shown_merge(model, outputs, known, probe)
    layers[-1].merge = shown or outputs[0][0]
    return chain._replace(layers=layers, complete=True, shown=shown is not None)


def _first_inputs(
    model: Model, first: Layer, known: dict[str, np.ndarray], probe: Probe, rng: np.random.Generator
) -> np.ndarray | None:
    """The inputs (T, B, D) of the first layer: computed from those of the model, else random numbers."""
    D = first.cells[0].input_size
    value = _value(model, first.x, known, probe)
    if value is not None and value.ndim == 3 and value.shape[-1] == D:
        known[first.x] = value
        return _swapped(value, first.batch_major)
    if probe.size is None:
        return None
    xs = rng.normal(size=(probe.size, probe.size, D)).astype(np.float32)
    known[first.x] = _swapped(xs, first.batch_major)
    return xs


def _shown_merge(
    model: Model, outputs: list[tuple[str, np.ndarray]], known: dict[str, np.ndarray], probe: Probe
) -> str | None:
    """The merge of the last layer whose result is an output of the model."""
    for info in model.graph.output:
        value = _value(model, info.name, known, probe)
        if value is None:
            continue
        for merge, ys in outputs:
            if _equal(value, ys) or _equal(value, _swapped(ys, True)):
                return merge
    return None


def _value(model: Model, name: str, known: dict[str, np.ndarray], probe: Probe) -> np.ndarray | None:
    """A value that depends on no state of a recurrent node, if it can be computed."""
    try:
        if any(map(is_recurrent, model.dependencies([name], known).nodes)):
            return None
        return model.evaluate(name, known, probe)
    except ValueError:  # an operator that may not run, or sizes that do not fit: no match
        return None


def _draw_outputs(
    layer: Layer,
    known: dict[str, np.ndarray],
    size: tuple[int, ...],
    rng: np.random.Generator,
    reverse: bool,
) -> list[tuple[str, np.ndarray]]:
    """Draw random outputs (T, B, H) of a layer and add them to the known values; one for each merge."""
    ys = [rng.normal(size=(*size, cell.output_size)).astype(np.float32) for cell in layer.cells]
    if not layer.direction:
        known[layer.y] = _swapped(ys[0], layer.batch_major)
        return [("concat", ys[0])]
    if layer.y:
        known[layer.y] = np.stack([_swapped(y, layer.batch_major) for y in ys], 2 if layer.batch_major else 1)
    if len(ys) == 1:
        return [("concat", ys[0])]
    a, b = map(jnp.asarray, ys[::-1] if reverse else ys)
    return [(name, np.asarray(merge(a, b))) for name, merge in MERGES.items()]


def _swapped(a: np.ndarray, batch_major: bool) -> np.ndarray:
    """Exchange the first two axes if ``batch_major``."""
    return np.swapaxes(a, 0, 1) if batch_major else a


def _equal(a: Any, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-6)


# --- read-outs ----------------------------------------------------------------------------------


def _with_readouts(model: Model, layers: list[Layer]) -> list[Layer]:
    """The recurrent nodes, and the readouts after the first of them, in the order of the graph."""
    recurrent = {id(layer.node): layer for layer in layers}
    dependent: set[str] = set()  # on outputs of a recurrent node
    found: list[Layer] = []
    for node in model.nodes:
        if id(node) in recurrent:
            found.append(recurrent[id(node)])
            dependent.update(node.output[:1])
        elif not dependent.isdisjoint(filter(None, node.input)):
            dependent.update(node.output)
            if _is_step(node, "MatMul") and len(node.input) == 2 and node.input[0] in dependent:
                layer = _readout(model, node)
                found += [] if layer is None else [layer]
    return found


def _readout(model: Model, node: Any) -> Layer | None:
    """A MatMul by a constant matrix, with the Add and the activation after it."""
    w = _constant(model, node.input[1])
    if w is None or w.ndim != 2 or 0 in w.shape or w.dtype.kind != "f":
        return None
    y, bias = node.output[0], None
    after = model.reader(y)
    if after is not None and _is_step(after, "Add"):
        others = [_constant(model, name) for name in after.input if name != y]
        if len(others) == 1 and others[0] is not None and others[0].shape == w.shape[1:]:
            bias, y = others[0], after.output[0]
            after = model.reader(y)
    activation = READOUTS[0][0]
    for function, name in READOUTS:
        if after is not None and _is_step(after, name):
            axes = [a.i for a in after.attribute if a.name == "axis"]
            if "Softmax" not in name or not axes or axes[0] in (-1, 2):
                activation, y = function, after.output[0]
                break
    matrix = jnp.asarray(w)
    cell = Readout(*w.shape, activation=activation, use_bias=bias is not None, param_dtype=matrix.dtype)
    params = ReadoutParams(matrix, None if bias is None else jnp.asarray(bias))
    return Layer(node, "", False, [cell], [params], None, node.input[0], y)


def _is_step(node: Any, name: str) -> bool:
    """Whether a node is ONNX's operator of this name with one output."""
    return is_operator(node, name) and len(node.output) == 1


def _constant(model: Model, name: str) -> np.ndarray | None:
    try:
        return model.constant(name)
    except ValueError:  # constant, but computed by operators that may not run: not a readout
        return None
