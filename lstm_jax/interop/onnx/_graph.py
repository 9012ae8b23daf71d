"""An ONNX graph under construction, and the values used by all its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lstm_jax import __version__

#: The first opset whose recurrent nodes have all attributes used here, and its IR version.
OPSET, IR_VERSION = 14, 7


def require_onnx(owner: str) -> Any:
    """The onnx package.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f'{owner} needs onnx. Install it: pip install "lstm_jax[onnx]"') from error
    return onnx


class Value(NamedTuple):
    """A value (T, B, width) of the graph."""

    name: str
    width: int


class Final(NamedTuple):
    """A final carry (B, width), and the name of the model's output for it."""

    name: str
    value: str
    width: int


class Graph:
    """The nodes written so far, and the values used by all layers."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.zero = self.constant("zero", np.zeros((), np.float32))
        self.sizes = ""  # (2,) of int64: T and B
        self.rows = self.more_rows = ""  # (1,): rows computed, at least one; how many of them are added
        self.lengths = self.valid = ""  # (B,), at least 1, and (T, B, 1), where rows have lengths
        self.absent = ""  # (B, 1), or (1,) without lengths: the row has no step

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Write a node with one output."""
        return self.ops(kind, inputs, [out or f"{kind}_{len(self.nodes)}"], **attributes)[0]

    def ops(self, kind: str, inputs: Sequence[str], outputs: list[str], **attributes: Any) -> list[str]:
        """Write a node with several outputs."""
        name = f"{kind}_node_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, outputs, name=name, **attributes))
        return outputs

    def ints(self, *values: int) -> str:
        """A constant vector of int64."""
        name = "ints_" + "_".join(map(str, values)).replace("-", "minus_")
        return self.constant(name, np.array(values, np.int64))

    def constant(self, name: str, value: np.ndarray) -> str:
        """A named constant."""
        self.constants[name] = value
        return name

    def input(self, name: str, shape: tuple[str | int, ...], kind: str = "FLOAT") -> str:
        """An input of the model."""
        proto = getattr(self.onnx.TensorProto, kind)
        self.inputs.append(self.onnx.helper.make_tensor_value_info(name, proto, shape))
        return name

    def begin(self, width: int, has_lengths: bool) -> Value:
        """The inputs with at least one step and one row, zero at invalid steps."""
        x = self.input("xs", ("T", "B", width))
        sizes = self.op("Slice", self.op("Shape", x), self.ints(0), self.ints(2), out="sizes")
        self.sizes = sizes
        missing = self.op("Sub", self.ints(1, 1), self.op("Min", sizes, self.ints(1, 1)))
        more_steps = self.op("Slice", missing, self.ints(0), self.ints(1))
        self.more_rows = self.op("Slice", missing, self.ints(1), self.ints(2))
        pads = self.op("Concat", self.ints(0, 0, 0), more_steps, self.more_rows, self.ints(0), axis=0)
        x = self.op("Pad", x, pads, self.zero)
        steps = self.op("Slice", sizes, self.ints(0), self.ints(1))
        self.rows = self.op("Slice", self.op("Shape", x), self.ints(1), self.ints(2))
        if not has_lengths:
            self.absent = self.op("Equal", steps, self.ints(0), out="absent")  # (1,)
            return Value(x, width)
        given = self.input("lengths", ("B",), "INT32")
        row_pads = self.op("Concat", self.ints(0), self.more_rows, axis=0)
        counted = self.op("Pad", self.op("Cast", given, to=7), row_pads, self.constant("none", np.array(0)))
        counted = self.op("Max", self.op("Min", counted, steps), self.ints(0))
        column = self.op("Unsqueeze", counted, self.ints(1))
        self.absent = self.op("Equal", column, self.ints(0), out="absent")  # (B, 1)
        self.lengths = self.op("Cast", self.op("Max", counted, self.ints(1)), to=6)
        scanned = self.op("Squeeze", self.op("Add", steps, more_steps), self.ints(0))
        first, by = self.constant("none", np.array(0)), self.constant("single", np.array(1))
        times = self.op("Unsqueeze", self.op("Range", first, scanned, by), self.ints(1, 2))
        self.valid = self.op("Less", times, column, out="valid")  # (T, B, 1)
        return Value(self.mask_out(x), width)

    def mask_out(self, y: str) -> str:
        """The value, zero at invalid steps."""
        return self.op("Where", self.valid, y, self.zero) if self.valid else y

    def end(self, y: Value, finals: list[Final]) -> None:
        """Write the outputs of the model, without the rows and steps that were added."""
        self.op("Slice", y.name, self.ints(0, 0), self.sizes, self.ints(0, 1), out="ys")
        row_count = self.op("Slice", self.sizes, self.ints(1), self.ints(2))
        info, real = self.onnx.helper.make_tensor_value_info, self.onnx.TensorProto.FLOAT
        self.outputs.append(info("ys", real, ("T", "B", y.width)))
        for name, value, size in finals:
            self.op("Slice", value, self.ints(0), row_count, self.ints(0), out=name)
            self.outputs.append(info(name, real, ("B", size)))

    def model(self, name: str, description: str) -> Any:
        """The finished model."""
        helper, onnx = self.onnx.helper, self.onnx
        constants = [
            onnx.numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), key)
            for key, value in self.constants.items()
        ]
        graph = helper.make_graph(
            self.nodes, name, self.inputs, self.outputs, constants, doc_string=description
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="lstm_jax",
            producer_version=__version__,
            doc_string=description,
        )
        helper.set_model_props(model, {"lstm_jax_version": __version__})
        return model
