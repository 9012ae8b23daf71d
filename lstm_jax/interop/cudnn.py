"""Conversion from and to the flat vector of weights of ``jax.experimental.rnn`` (cuDNN)."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from lstm_jax import LSTM
from lstm_jax._errors import check_float, check_size, value_error
from lstm_jax._types import DType
from lstm_jax.interop._entries import Unreadable, read_array
from lstm_jax.interop._networks import flatten_layers
from lstm_jax.interop.torch import from_torch, to_torch
from lstm_jax.unrolling.cudnn import flat_shapes, split_weights


def from_cudnn(
    weights: Any,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bidirectional: bool = False,
    *,
    dtype: DType | None = None,
) -> tuple[Any, Any]:
    """A network and its parameters from the weights of ``jax.experimental.rnn.lstm``.

    The vector holds PyTorch's arrays, flat, one after the other: first ``weight_ih`` (4H, D) and
    ``weight_hh`` (4H, H) of each layer and direction, then ``bias_ih`` and ``bias_hh`` (4H,) of each.
    Gates are i f g o. Undo ``jax.experimental.rnn.swap_lstm_gates`` first, if it was applied.

    Args:
        weights: the vector.
        input_size, hidden_size, num_layers, bidirectional: the arguments of ``init_lstm_weight``.
        dtype: of the parameters; None: that of the vector.

    Returns:
        ``(network, params)``: an ``LSTM``, a ``Bidirectional`` of one, or a ``Stack`` of as many layers.

    Raises:
        ValueError: the vector's length does not fit the sizes.

    >>> import numpy as np
    >>> cell, params = from_cudnn(np.arange(56, dtype=np.float32), input_size=3, hidden_size=2)
    >>> params.w_ih[:, 0].tolist(), params.bias[0].tolist()
    ([0.0, 1.0, 2.0], 88.0)
    """
    for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
        check_size("from_cudnn", name, size)
    weights = weights if isinstance(weights, (list, tuple)) else read_array(weights)
    if isinstance(weights, Unreadable):
        raise value_error(
            f"from_cudnn got weights {weights.reason}", "an array of floats", "Pass the vector."
        )
    check_float("from_cudnn", "weights", weights)
    sizes = input_size, hidden_size, num_layers, 2 if bidirectional else 1
    count = sum(math.prod(shape) for _, shape in flat_shapes(*sizes))
    if tuple(weights.shape) != (count,):
        raise value_error(
            f"from_cudnn got weights of shape {tuple(weights.shape)}",
            f"({count},) for input_size={input_size}, hidden_size={hidden_size}, "
            f"num_layers={num_layers}, bidirectional={bidirectional}",
            "Give the sizes that the weights were made with.",
        )
    return from_torch(split_weights(weights, *sizes), dtype=dtype)


def to_cudnn(network: Any, params: Any) -> Any:
    """The weights that ``jax.experimental.rnn.lstm`` takes, from a network and its parameters.

    The inverse of :func:`from_cudnn`, bit for bit. The second of the two biases is 0. cuDNN itself reads
    float32 only.

    Args:
        network: an ``LSTM`` with bias, a ``Bidirectional`` of one, or a ``Stack`` of equal ones.
        params: its parameters.

    Returns:
        The flat vector, a jax array in the parameters' dtype.

    Raises:
        ValueError: the network has other cells than ``LSTM``, a projection, no bias, or anything else that
            :func:`to_torch` cannot represent (all is listed); or the parameters do not fit.

    >>> import jax
    >>> cell = LSTM(input_size=3, hidden_size=2)
    >>> to_cudnn(cell, cell.init(jax.random.key(0))).shape
    (56,)
    """
    layers = flatten_layers("to_cudnn", "jax.experimental.rnn", network, params, cells=(LSTM,), dropout=True)
    cell = layers[0].directions[0].cell
    if not cell.use_bias:
        raise value_error(
            "to_cudnn got a network without bias",
            "use_bias=True, because jax.experimental.rnn always has (and trains) biases",
            "Use cells with use_bias=True and biases of zeros.",
        )
    arrays = to_torch(network, params)
    order = flat_shapes(cell.input_size, cell.hidden_size, len(layers), len(layers[0].directions))
    return jnp.concatenate([jnp.ravel(arrays[name]) for name, _ in order])
