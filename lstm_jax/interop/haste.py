"""Conversion of weights from Haste's layer-normalised LSTM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lstm_jax import LSTMNorm, LSTMVariant, LSTMVariantParams
from lstm_jax._types import DType
from lstm_jax.interop._entries import Entries, Faults, UnbuiltLayer, build_layers
from lstm_jax.interop._gates import reorder_gates

HINT = "Pass layer.state_dict() of haste_pytorch, or layer.fw_layer.get_weights() of haste_tf."


def from_haste(weights: Mapping[str, Any], *, dtype: DType | None = None) -> tuple[Any, Any]:
    """An ``LSTMVariant(layer_norm="haste")`` and its parameters from Haste's ``LayerNormLSTM``.

    ======================================  ====================================================
    Haste                                   lstm_jax
    ======================================  ====================================================
    ``kernel`` (D, 4H)                      ``w_ih``; gates i g f o, here i f g o
    ``recurrent_kernel`` (H, 4H)            ``w_hh``
    ``bias`` (4H,)                          ``bias`` (the forget bias is part of it in both)
    ``gamma`` (2, 4H)                       ``norm.x``, ``norm.h``
    ``gamma_h`` (H,), ``beta_h`` (H,)       ``norm.c``, ``norm.c_offset``
    ======================================  ====================================================

    Haste's zoneout and DropConnect are not in the weights. For a layer with ``zoneout=rate``, unroll
    ``lstm_jax.Zoneout(cell, rates=(rate, 0))``.

    Args:
        weights: names to arrays: ``layer.state_dict()`` of haste_pytorch, or what
            ``layer.fw_layer.get_weights()`` of haste_tf returns (``bw_layer`` for the backward direction).
        dtype: of the parameters; None: the promoted dtype of the arrays.

    Returns:
        ``(cell, params)``; all leaves are JAX arrays that share no memory with the weights.

    Raises:
        ValueError: entries are missing, unexpected or of the wrong shape; all are listed.

    >>> weights = {"kernel": np.ones((3, 8)), "recurrent_kernel": np.ones((2, 8)), "bias": np.zeros(8)}
    >>> weights |= {"gamma": np.ones((2, 8)), "gamma_h": np.ones(2), "beta_h": np.zeros(2)}
    >>> from_haste(weights, dtype="float32")[0]
    LSTMVariant(input_size=3, hidden_size=2, layer_norm='haste')
    """
    faults = Faults("from_haste")
    layer = _read(Entries(faults, weights))
    faults.check(HINT)
    (cell,), (params,) = build_layers("from_haste", [layer], dtype)
    return cell, params


def _read(entries: Entries) -> UnbuiltLayer:
    D = entries.size(("kernel", 0))
    H = entries.size(("recurrent_kernel", 0), ("gamma_h", 0), ("beta_h", 0))
    shapes: dict[str, tuple[int, ...]] = {"kernel": (D, 4 * H), "recurrent_kernel": (H, 4 * H)}
    shapes |= {"bias": (4 * H,), "gamma": (2, 4 * H), "gamma_h": (H,), "beta_h": (H,)}
    arrays = {name: entries.take(name, shape) for name, shape in shapes.items()}
    entries.done()

    def build(a: dict[str, Any], dtype: np.dtype, input_shape: None) -> tuple[Any, Any]:
        names = ("kernel", "recurrent_kernel", "bias", "gamma")
        w_ih, w_hh, bias, (x, h) = (reorder_gates(a[name], "igfo", "ifgo") for name in names)
        params = LSTMVariantParams(w_ih, w_hh, bias, norm=LSTMNorm(x, h, a["gamma_h"], a["beta_h"]))
        return LSTMVariant(D, H, layer_norm="haste", param_dtype=dtype), params

    return UnbuiltLayer(arrays, build)
