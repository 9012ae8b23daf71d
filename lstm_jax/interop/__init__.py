"""Conversion of weights from and to other libraries: pure functions of mappings of arrays."""

from lstm_jax.interop.cudnn import from_cudnn as from_cudnn, to_cudnn as to_cudnn
from lstm_jax.interop.equinox import from_equinox as from_equinox, to_equinox as to_equinox
from lstm_jax.interop.files import load as load, save as save
from lstm_jax.interop.flax import from_flax as from_flax, to_flax as to_flax
from lstm_jax.interop.haiku import from_haiku as from_haiku, to_haiku as to_haiku
from lstm_jax.interop.haste import from_haste as from_haste
from lstm_jax.interop.keras import from_keras as from_keras, to_keras as to_keras
from lstm_jax.interop.onnx import (
    from_onnx as from_onnx,
    from_onnx_node as from_onnx_node,
    save_onnx as save_onnx,
    to_onnx as to_onnx,
)
from lstm_jax.interop.torch import from_torch as from_torch, to_torch as to_torch
