"""Evaluation of single nodes: the operators that may run, and the limits on what they compute.

A model comes from outside, so nothing in it runs but the operators of ``OUTPUT_SIZES``. They are
deterministic, read no files and have no graphs inside. What a node computes is bounded before it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

#: Types of tensors that are read and computed, by their names in ``TensorProto``.
ELEMENT_TYPES = (
    "FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "BOOL",
    "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
)  # fmt: skip

#: The most axes that an array of NumPy has.
MAX_AXES = 64

#: The inputs of a node; None where an optional one is absent.
Inputs = Sequence[Any]


def _size(shape: Sequence[int]) -> int:
    """The number of elements, where an axis of size 0 counts as 1.

    Intermediate values may lack that axis: a sum over it is as large as the other axes.
    """
    return math.prod(max(size, 1) for size in shape)


def _largest(arrays: Inputs, node: Any) -> int:
    return max((_size(a.shape) for a in arrays if a is not None), default=0)


def _broadcast(arrays: Inputs, node: Any) -> int:
    return _size(np.broadcast_shapes(*(a.shape for a in arrays if a is not None)))


def _concatenated(arrays: Inputs, node: Any) -> int:
    return sum(a.size for a in arrays)


def _filled(arrays: Inputs, node: Any) -> int:
    return math.prod(map(int, arrays[0].ravel()))


def _expanded(arrays: Inputs, node: Any) -> int:
    return _size(np.broadcast_shapes(arrays[0].shape, tuple(map(int, arrays[1]))))


def _unsqueezed(arrays: Inputs, node: Any) -> int:
    if len(arrays) > 1 and arrays[1].size > MAX_AXES:  # NumPy compares each axis with all others
        raise ValueError(f"{arrays[1].size:,} axes")
    return _largest(arrays, node)


def _has_type(attribute: Any, name: str, kind: str) -> bool:
    """Whether an attribute has this name; of another type, it would be read from another field."""
    if attribute.name == name and attribute.type != attribute.AttributeType.Value(kind):
        raise ValueError(f"{name} of another type than {kind}")
    return bool(attribute.name == name)


def _gathered(arrays: Inputs, node: Any) -> int:
    axis = next((a.i for a in node.attribute if _has_type(a, "axis", "INT")), 0)
    data, indices = arrays
    return indices.size * (data.size // max(data.shape[axis], 1))


def _padded(arrays: Inputs, node: Any) -> int:
    attribute = [list(a.ints) for a in node.attribute if _has_type(a, "pads", "INTS")]
    pads = attribute[0] if attribute else list(map(int, arrays[1]))
    rank = arrays[0].ndim
    axes = [int(axis) % rank for axis in arrays[3]] if len(arrays) > 3 else range(rank)
    shape = list(arrays[0].shape)
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        shape[axis] += max(before, 0) + max(after, 0)  # of an axis given twice, only the last pads count
    return _size(shape)


def _counted(arrays: Inputs, node: Any) -> int:
    start, stop, step = (a.item() for a in arrays)
    return max(0, math.ceil((stop - start) / step))


def _tiled(arrays: Inputs, node: Any) -> int:
    # NumPy repeats one axis after another, so a repeat of 0 does not undo the repeats before it.
    return arrays[0].size * math.prod(max(int(repeat), 1) for repeat in arrays[1])


def _split(arrays: Inputs, node: Any) -> int:
    counts = [a.i for a in node.attribute if _has_type(a, "num_outputs", "INT")]
    if any(count != len(node.output) for count in counts):
        raise ValueError(f"num_outputs={counts[0]} for {len(node.output)} outputs")
    return arrays[0].size


def _cast(arrays: Inputs, node: Any) -> int:
    from onnx import TensorProto

    kinds = [TensorProto.DataType.Name(a.i) for a in node.attribute if _has_type(a, "to", "INT")]
    if not set(kinds) <= set(ELEMENT_TYPES):
        raise ValueError("a cast to a type that is not a number")
    return arrays[0].size


def _dropped(arrays: Inputs, node: Any) -> int:
    if len(arrays) > 2 and arrays[2] is not None and arrays[2].any():
        raise ValueError("dropout in training mode")
    return 2 * arrays[0].size


#: The operators that may run, each with the number of elements that it computes.
OUTPUT_SIZES: dict[str, Callable[[Inputs, Any], int]] = {
    **dict.fromkeys(
        ("Abs", "Ceil", "Flatten", "Floor", "Identity", "Neg", "Not", "ReduceMax", "ReduceMean", "ReduceMin",
         "ReduceProd", "ReduceSum", "Reshape", "Round", "Shape", "Sign", "Size", "Slice", "Squeeze",
         "Transpose"),
        _largest,
    ),
    **dict.fromkeys(
        ("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean",
         "Min", "Mul", "Or", "Sub", "Sum", "Where"),
        _broadcast,
    ),
    "Cast": _cast,
    "Concat": _concatenated,
    "ConstantOfShape": _filled,
    "Dropout": _dropped,
    "Expand": _expanded,
    "Gather": _gathered,
    "Pad": _padded,
    "Range": _counted,
    "Split": _split,
    "Tile": _tiled,
    "Unsqueeze": _unsqueezed,
}  # fmt: skip


def run_node(onnx: Any, node: Any, arrays: dict[str, np.ndarray], opset: int) -> list[np.ndarray]:
    """The outputs of one node, computed by onnx's reference implementation."""
    from onnx.reference import ReferenceEvaluator

    helper = onnx.helper
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in arrays.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "node", infos, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    with np.errstate(all="ignore"):  # a model may divide by zero
        found = ReferenceEvaluator(model).run(None, arrays)
    return [np.asarray(value) for value in found]
