"""Models of ONNX, out and in: see :func:`to_onnx` and :func:`from_onnx`. The extra ``onnx`` installs onnx."""

from lstm_jax.interop.onnx._export import save_onnx as save_onnx, to_onnx as to_onnx
from lstm_jax.interop.onnx._import import (
    Imported as Imported,
    from_onnx as from_onnx,
    from_onnx_node as from_onnx_node,
)
from lstm_jax.interop.onnx._nodes import OnnxActivation as OnnxActivation
