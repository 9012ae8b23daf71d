"""A model that is read: its constants, the dependencies of a value, and evaluation within limits."""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lstm_jax._errors import listing, shorten, value_error
from lstm_jax.interop.onnx._evaluate import ELEMENT_TYPES, OUTPUT_SIZES, run_node
from lstm_jax.interop.onnx._nodes import GATES

#: Bytes that may be computed while one model is read, plus eight times the bytes of its tensors.
COMPUTED_BYTES = 1 << 27
#: The least number of bytes counted for a node when it runs or is traced, which limits the time.
NODE_BYTES, TRACED_BYTES = 1 << 12, 1 << 5
#: The largest number of random elements for one input of the model.
PROBE_ELEMENTS = 1 << 18
#: Bytes that one node counts at least where a model has functions. The functions, once expanded, may have as
#: many bytes as may be computed, in addition to those of the nodes in the file.
FUNCTION_NODE_BYTES = 1 << 10
#: The deepest nesting of function calls.
FUNCTION_DEPTH = 100
#: Bytes of a file; protobuf has no larger messages.
FILE_BYTES = (1 << 31) - 1


class Probe(NamedTuple):
    """Options of the random numbers for the inputs of a model."""

    size: int | None  # of every axis that is not of features; None: the declared size, or 2 where it is free
    seed: int = 0
    full_length: bool = True  # integers are the number of steps; else between 1 and that


class Dependencies(NamedTuple):
    """What a value is computed from."""

    nodes: list[Any]  # in the order of the graph
    inputs: set[str]  # names that no node computes and that are not constant


def read_proto(owner: str, onnx: Any, model: Any) -> tuple[str, Any]:
    """The name of the model for messages, and the model; a path is read.

    Raises:
        ValueError: the file is not a regular file or not a model.
        OSError: the file cannot be opened.
    """
    if isinstance(model, onnx.ModelProto):
        return owner, model
    if not isinstance(model, (str, os.PathLike)):
        raise value_error(
            f"{owner} got {type(model).__name__}", "an onnx.ModelProto or a path", "Use onnx.load."
        )
    path = Path(model)
    source = f"{owner}({shorten(str(path), 120)!r})"
    about = path.stat()
    if not stat.S_ISREG(about.st_mode) or about.st_size > FILE_BYTES:
        raise value_error(
            f"{source} got no regular file below 2 GiB", "the file of a model", "Pass another path."
        )
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError is not a ValueError
        raise value_error(
            f"{source} got a file that is not an ONNX model ({error})",
            "an ONNX model in protobuf's binary format",
            "Write it with onnx.save.",
        ) from error
    return source, proto


class Model:
    """A model whose values can be traced and computed.

    Args:
        owner: the function that reads the model, with the path of the file; every message begins with it.
        onnx: the package.
        proto: the model.
        inputs: constants for inputs of the graph, by name.
    """

    def __init__(self, owner: str, onnx: Any, proto: Any, inputs: Mapping[str, Any]) -> None:
        self.owner, self.onnx = owner, onnx
        if proto.functions:
            proto = self._expanded(proto)
        self.graph = proto.graph
        self.opset = self._opset(proto)
        self.nodes = list(self.graph.node)
        self._check_names()
        self.maker = {name: at for at, node in enumerate(self.nodes) for name in node.output if name}
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self.constants = {name: self._given(name, value) for name, value in inputs.items()}
        constant = self.tensors.keys() | self.constants.keys()
        self.inputs = {info.name: info for info in self.graph.input if info.name not in constant}
        values = self.maker.keys() | {info.name for info in self.graph.input}
        self._reads = [self._names_read(node, values) for node in self.nodes]
        self._readers: dict[str, list[int]] = {}
        for at, names in enumerate(self._reads):
            for name in set(names):
                self._readers.setdefault(name, []).append(at)
        self._bytes_left = COMPUTED_BYTES + 8 * sum(tensor.ByteSize() for tensor in self.graph.initializer)

    # --- errors ---

    def error(self, got: str, expected: str, hint: str) -> ValueError:
        """A ``ValueError`` that names the model."""
        return value_error(f"{self.owner} got {got}", expected, hint)

    def label(self, node: Any) -> str:
        """The name of a node for messages: its operator, and its name or first output."""
        name = node.name or next(filter(None, node.output), "")
        return f"{shorten(node.op_type, 40)} {shorten(name, 60)}".rstrip()

    # --- the graph ---

    def _opset(self, proto: Any) -> int:
        versions = [one.version for one in proto.opset_import if one.domain in ("", "ai.onnx")]
        newest = self.onnx.defs.onnx_opset_version()
        if len(versions) != 1 or not 7 <= versions[0] <= newest:
            raise self.error(
                f"a model of the opsets {listing(versions) or 'none'}",
                f"one version of ONNX's operators, from 7 to {newest}",
                "Convert it with onnx.version_converter, or install a newer onnx.",
            )
        return versions[0]

    def _check_names(self) -> None:
        """Names are unique, nodes come after what they read, and recurrent nodes have weights."""
        for part in (self.graph.input, self.graph.initializer):
            twice = [name for name, count in Counter(value.name for value in part).items() if count > 1]
            if twice:
                raise self.error(
                    f"{listing(map(repr, twice))} twice",
                    "one value of each name",
                    "Check it with onnx.checker.",
                )
        known = {info.name for info in self.graph.input} | {tensor.name for tensor in self.graph.initializer}
        for node in self.nodes:
            outputs = [name for name in node.output if name]
            if len(set(outputs)) != len(outputs) or not known.isdisjoint(outputs):
                fault = "computes a value of a name that is taken"
            elif len({attribute.name for attribute in node.attribute}) < len(node.attribute):
                fault = "has an attribute twice"
            elif not known.issuperset(filter(None, node.input)):
                fault = "reads a value that no earlier node computes"
            elif is_recurrent(node) and "" in (list(node.input) + [""] * 3)[:3]:
                fault = "lacks its input, W or R"
            else:
                known.update(outputs)
                continue
            raise self.error(
                f"node {self.label(node)}, which {fault}", "a valid graph", "Check it with onnx.checker."
            )

    def _expanded(self, proto: Any) -> Any:
        """The model with its functions expanded; raises if they would become too large."""
        functions = {_function_key(f.domain, f.name, f): f for f in proto.functions}
        limit = COMPUTED_BYTES + sum(part.ByteSize() for part in (*proto.functions, *proto.graph.node))
        sizes: dict[Any, int] = {}

        def size(nodes: Iterable[Any], depth: int) -> int:
            """The bytes of the nodes after expanding all functions that they call."""
            if depth > FUNCTION_DEPTH:
                raise self.error(
                    "functions that call others too deeply, or themselves",
                    f"at most {FUNCTION_DEPTH} calls inside one another",
                    _CUT,
                )
            total = 0
            for node in _all_nodes(nodes):
                key = _function_key(node.domain, node.op_type, node)
                if key in functions and key not in sizes:
                    sizes[key] = size(functions[key].node, depth + 1)
                total += sizes.get(key, 0) + max(node.ByteSize(), FUNCTION_NODE_BYTES)
                if total > limit:
                    raise self.error(
                        "functions that are too large once they are expanded",
                        f"at most {limit:,} bytes",
                        _CUT,
                    )
            return total

        size(proto.graph.node, 0)
        from onnx import inliner

        try:
            return inliner.inline_local_functions(proto)
        except Exception as error:  # of its own types
            raise self.error(f"functions that cannot be expanded ({error})", "a valid model", _CUT) from error

    def _names_read(self, node: Any, known: set[str]) -> tuple[str, ...]:
        """The values that a node reads, also those that graphs inside of it read."""
        inner = {name for part in _all_nodes([node]) if part is not node for name in part.input}
        return (*node.input, *sorted(inner & known))

    def recurrent(self) -> list[Any]:
        """The nodes RNN, LSTM and GRU, in the order of the graph."""
        return [node for node in self.nodes if is_recurrent(node)]

    def reader(self, name: str) -> Any | None:
        """The node that reads a value, if there is exactly one."""
        found = self._readers.get(name, [])
        return self.nodes[found[0]] if len(found) == 1 else None

    def dependencies(
        self, names: Iterable[str], known: Any = (), only: Callable[[Any], Iterable[str] | None] | None = None
    ) -> Dependencies:
        """What computes the names from ``known`` values.

        Args:
            names: values of the graph.
            known: names that are not traced further.
            only: the inputs of a node to follow; None: all of them.

        Raises:
            ValueError: too many nodes were traced or run.
        """
        remaining, seen, inputs = list(names), set(), set()
        while remaining:
            name = remaining.pop()
            if not name or name in known or name in self.constants or name in self.tensors:
                continue
            at = self.maker.get(name)
            if at is None:
                inputs.add(name)
            elif at not in seen:
                seen.add(at)
                self._spend(TRACED_BYTES, f"node {self.label(self.nodes[at])}")
                followed = None if only is None else only(self.nodes[at])
                remaining += self._reads[at] if followed is None else followed
        return Dependencies([self.nodes[at] for at in sorted(seen)], inputs)

    # --- values ---

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a name that depends on constants only, else None.

        Raises:
            ValueError: the value is constant, but it cannot be computed.
        """
        if name not in self.constants:
            nodes, inputs = self.dependencies([name])
            if inputs or any(map(is_recurrent, nodes)):
                return None
            self.evaluate(name, {})
        return self.constants[name]

    def evaluate(self, name: str, known: dict[str, np.ndarray], probe: Probe | None = None) -> np.ndarray:
        """The value of a name, computed from known values and constants, and from inputs drawn as ``probe``.

        All values that are computed or drawn are added to ``known``.

        Raises:
            ValueError: a node may not run, computes too much, or fails.
        """
        if not name:
            raise self.error("a value without a name", "a valid graph", "Check it with onnx.checker.")
        nodes, inputs = self.dependencies([name], known)
        for given in sorted(inputs):
            if probe is None:
                raise self.error(f"a value {given!r} that is not known", "an input of the model", _CUT)
            known[given] = self.draw(given, probe)
        for node in nodes:
            arrays = {
                read: known[read] if read in known else self._stored(read) for read in node.input if read
            }
            made = self._run(node, arrays)
            if all(read in self.constants for read in arrays):
                self.constants |= made
            else:
                known |= made
        return known[name] if name in known else self._stored(name)

    def _spend(self, count: int, what: str) -> None:
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise self.error(
                f"{what}, where too much has been computed",
                f"at most {COMPUTED_BYTES >> 20} MiB and eight times the weights' size in all values",
                _CUT,
            )

    def _stored(self, name: str) -> np.ndarray:
        if name not in self.constants:
            self.constants[name] = self.array(self.tensors[name], f"tensor {shorten(name, 60)!r}")
        return self.constants[name]

    def _element_types(self) -> set[int]:
        return {self.onnx.TensorProto.DataType.Value(name) for name in ELEMENT_TYPES}

    def array(self, tensor: Any, what: str) -> np.ndarray:
        """A tensor of the model as an array.

        Raises:
            ValueError: it is not of numbers, its bytes are in another file, or they do not fit its shape.
        """
        if tensor.data_location == self.onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise self.error(
                f"{what} whose data is in another file",
                "weights inside the model",
                "Read the files with onnx.load(path), and pass the model that it returns.",
            )
        if tensor.data_type not in self._element_types():
            raise self.error(f"{what} of element type {tensor.data_type}", "a tensor of numbers", _CUT)
        try:
            if min(tensor.dims, default=0) < 0:
                raise ValueError("a negative size")
            return np.asarray(self.onnx.numpy_helper.to_array(tensor))
        except Exception as error:  # malformed bytes may raise anything
            raise self.error(
                f"{what} of shape {list(tensor.dims)[:8]} that cannot be read ({error})",
                "as many bytes as the shape needs",
                "Check the model with onnx.checker.",
            ) from error

    def _given(self, name: str, value: Any) -> np.ndarray:
        names = [info.name for info in self.graph.input]
        if name not in names:
            raise self.error(
                f"inputs of the name {name!r}", f"names among {listing(names)}", "Look at model.graph.input."
            )
        array = np.asarray(value)
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            raise self.error(f"inputs[{name!r}] of dtype {array.dtype}", "an array of numbers", "Cast it.")
        return array

    def _run(self, node: Any, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a node by name."""
        label = self.label(node)
        if not is_operator(node, *OUTPUT_SIZES, "Constant"):
            raise self.error(
                f"a value that node {label} computes",
                f"operators that are run while a model is read ({', '.join(sorted(OUTPUT_SIZES))})",
                _CUT,
            )
        if node.op_type == "Constant":
            return {node.output[0]: self._constant_node(node, label)}
        try:
            elements = OUTPUT_SIZES[node.op_type]([arrays.get(name) for name in node.input], node)
        except Exception as error:  # a malformed node may raise anything
            raise self._failed(label, error) from error
        self._spend(max(8 * elements, NODE_BYTES), f"node {label}, which computes {elements:,} elements")
        try:
            found = run_node(self.onnx, node, arrays, self.opset)
        except Exception as error:
            raise self._failed(label, error) from error
        return dict(zip(filter(None, node.output), found, strict=True))

    def _failed(self, label: str, error: Exception) -> ValueError:
        return self.error(
            f"node {label}, which cannot be computed ({type(error).__name__}: {error})",
            "a valid node",
            "Check the model with onnx.checker.",
        )

    def _constant_node(self, node: Any, label: str) -> np.ndarray:
        types = self.onnx.AttributeProto
        for attribute in node.attribute:
            if (attribute.name, attribute.type) == ("value", types.TENSOR):
                return self.array(attribute.t, f"node {label}")
            for name, kind, field, dtype in (
                ("value_int", types.INT, "i", np.int64),
                ("value_ints", types.INTS, "ints", np.int64),
                ("value_float", types.FLOAT, "f", np.float32),
                ("value_floats", types.FLOATS, "floats", np.float32),
            ):
                if (attribute.name, attribute.type) == (name, kind):
                    return np.array(getattr(attribute, field), dtype)
        raise self.error(f"node {label} without a tensor of numbers", "a dense constant", _CUT)

    def steps(self, probe: Probe) -> int:
        """The number of steps of a probe; of declared sizes, the largest."""
        if probe.size is not None:
            return probe.size
        return max([2, *(dim for name in self.inputs for dim in self._dims(name))])

    def _dims(self, name: str) -> list[int]:
        """The declared sizes of an input, 0 where one is free."""
        tensor = self.inputs[name].type.tensor_type
        return [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]

    def is_static(self, names: Iterable[str]) -> bool:
        """Whether all sizes of these inputs are declared."""
        return all(0 not in self._dims(name) for name in names if name in self.inputs)

    def draw(self, name: str, probe: Probe) -> np.ndarray:
        """Random numbers for an input of the model."""
        element = self.inputs[name].type.tensor_type.elem_type if name in self.inputs else 0
        if element not in self._element_types():
            raise self.error(
                f"a value {name!r} that no node computes", "an input of the model, a tensor of numbers", _CUT
            )
        dims = self._dims(name)
        dtype = self.onnx.helper.tensor_dtype_to_np_dtype(element)
        is_float = np.issubdtype(dtype, np.floating) or dtype.name == "bfloat16"
        kept = dims[-1] if is_float and len(dims) > 2 else 0  # features
        shape = [dim or 2 for dim in dims] if probe.size is None else [probe.size] * len(dims)
        if kept:
            shape[-1] = kept
        if min(shape, default=1) < 0 or math.prod(shape) > PROBE_ELEMENTS:
            raise self.error(
                f"the input {name!r} of shape {shape[:8]}",
                f"at most {PROBE_ELEMENTS:,} elements where a random input is run through the model",
                _CUT,
            )
        rng = np.random.default_rng([probe.seed, *name.encode()])
        if is_float:
            return rng.normal(size=shape).astype(dtype)
        steps = self.steps(probe)
        if dtype.kind == "b":
            return rng.random(shape) < 0.5
        if probe.full_length:
            return np.full(shape, steps).astype(dtype)
        return rng.integers(1, steps + 1, shape).astype(dtype)


_CUT = "Cut the model around the recurrent nodes with onnx.utils.extract_model, or use from_onnx_node."


def is_operator(node: Any, *names: str) -> bool:
    """Whether a node is an operator of ONNX's domain with one of these names."""
    return node.op_type in names and node.domain in ("", "ai.onnx")


def is_recurrent(node: Any) -> bool:
    """Whether a node is ONNX's RNN, LSTM or GRU."""
    return is_operator(node, *GATES)


def _function_key(domain: str, name: str, proto: Any) -> tuple[str, str, str]:
    """The key by which a function is called; older versions of onnx have no overloads."""
    return domain, name, getattr(proto, "overload", "")


def _all_nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    """The nodes, and those of the graphs inside of them."""
    remaining = list(nodes)
    while remaining:
        node = remaining.pop()
        yield node
        for attribute in node.attribute:
            remaining += attribute.g.node
            for graph in attribute.graphs:
                remaining += graph.node
