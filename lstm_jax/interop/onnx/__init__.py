"""Export to ONNX and import from it: :func:`to_onnx`, :func:`from_onnx`. The extra ``onnx`` installs onnx."""

from lstm_jax.interop.onnx._activations import OnnxActivation as OnnxActivation
from lstm_jax.interop.onnx._export import save_onnx as save_onnx, to_onnx as to_onnx
from lstm_jax.interop.onnx._import import (
    Imported as Imported,
    from_onnx as from_onnx,
    from_onnx_node as from_onnx_node,
)
