"""Conversion of weights from and to Equinox's recurrent cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lstm_jax import GRU, LSTM, GRUParams, LSTMParams, Stack
from lstm_jax._types import DType
from lstm_jax.interop._entries import Entries, Faults, UnbuiltLayer, build_layers, flatten_mapping
from lstm_jax.interop._gates import zeros
from lstm_jax.interop._networks import Direction, fields_of, flatten_layers

#: Fields of Equinox's cells that are not arrays and can be read from shapes.
SIZES = ("input_size", "hidden_size", "use_bias")
HINT = "Give vars(cell) of one eqx.nn.LSTMCell or eqx.nn.GRUCell, or a list of them, one for each layer."


def from_equinox(
    fields: Mapping[str, Any] | Sequence[Mapping[str, Any]], *, dtype: DType | None = None
) -> tuple[Any, Any]:
    """A cell and its parameters from the fields of an Equinox cell, ``vars(cell)``.

    =============  ==========================================================  ==========
    Equinox        its fields                                                  lstm_jax
    =============  ==========================================================  ==========
    ``LSTMCell``   weight_ih (4H, D), weight_hh (4H, H), bias (4H,) or None    ``LSTM``
    ``GRUCell``    weight_ih (3H, D), weight_hh (3H, H), bias (3H,) or None,   ``GRU``
                   bias_n (H,) or None
    a list                                                                     ``Stack``
    =============  ==========================================================  ==========

    The gates have the same order in both libraries; matrices are transposed. The carry of Equinox's LSTM is
    (h, c), as here. Equinox's cells step one row at a time (``jax.vmap`` for a batch); the cells of this
    library take any batch axes.

    Args:
        fields: the fields of a cell by their names, NumPy or JAX arrays; or a list of these, one for each
            layer. ``input_size``, ``hidden_size`` and ``use_bias`` are ignored.
        dtype: of the parameters; None: the promoted dtype of the arrays.

    Returns:
        ``(network, params)``, for ``lstm_jax.unroll(network, params, xs)``.

    Raises:
        ValueError: an entry is missing, unexpected or of the wrong shape; all are listed.

    >>> import numpy as np
    >>> fields = {"weight_ih": np.ones((8, 3)), "weight_hh": np.ones((8, 2)), "bias": np.zeros(8)}
    >>> cell, params = from_equinox(fields, dtype="float32")
    >>> cell.input_size, cell.hidden_size, params.w_ih.shape
    (3, 2, (3, 8))
    """
    several = isinstance(fields, (list, tuple))
    faults = Faults("from_equinox")
    layers = [
        _read(faults, own, f"layer {index}/" if several else "")
        for index, own in enumerate(fields if several else [fields])
    ]
    faults.check(HINT)
    networks, params = build_layers("from_equinox", [layer for layer in layers if layer], dtype)
    return (Stack(tuple(networks)), tuple(params)) if several else (networks[0], params[0])


def _read(faults: Faults, fields: Any, where: str) -> UnbuiltLayer | None:
    flat = flatten_mapping("from_equinox", fields)
    arrays = {name: a for name, a in flat.items() if name not in SIZES and a is not None}
    entries = Entries(faults, arrays, where)
    H, D = entries.size(("weight_hh", 1)), entries.size(("weight_ih", 1))
    columns = entries.size(("weight_hh", 0), ("weight_ih", 0), ("bias", 0))
    if not H or columns not in (3 * H, 4 * H):
        entries.unreadable("weight_hh (4H, H) of an LSTMCell or (3H, H) of a GRUCell")
        return None
    gru = columns == 3 * H
    arrays = {
        "w_ih": entries.take("weight_ih", (columns, D)),
        "w_hh": entries.take("weight_hh", (columns, H)),
    }
    biased = "bias" in entries or (gru and "bias_n" in entries)
    if biased:
        arrays["bias"] = entries.take("bias", (columns,))
        if gru:
            arrays["bias_hn"] = entries.take("bias_n", (H,))
    entries.done()

    def build(arrays: dict[str, Any], dtype: Any, input_shape: None) -> tuple[Any, Any]:
        cell, record = (GRU, GRUParams) if gru else (LSTM, LSTMParams)
        weights = {name: a.T if name.startswith("w_") else a for name, a in arrays.items()}
        return cell(D, H, use_bias=biased, param_dtype=dtype), record(**weights)

    return UnbuiltLayer(arrays, build)


def to_equinox(network: Any, params: Any) -> Any:
    """The arrays of an Equinox cell; the inverse of :func:`from_equinox`, which has the table.

    The conversion is exact. The arrays go into a cell that was made with the same sizes and ``use_bias``::

        new = to_equinox(cell, params)
        module = eqx.tree_at(lambda c: [getattr(c, name) for name in new], module, list(new.values()))

    Args:
        network: ``LSTM``, ``GRU``, or a ``Stack`` of these. Equinox's cells have tanh and sigmoid only.
        params: its parameters.

    Returns:
        ``{field: array}``, without biases where the cell has none; for a ``Stack`` a list, one entry for each
        layer. Arrays are NumPy's or JAX's, as the parameters are.

    Raises:
        ValueError: Equinox's cells lack an option of the network (all are listed), or the parameters do not
            fit.

    >>> import jax
    >>> cell = GRU(input_size=3, hidden_size=2)
    >>> fields = to_equinox(cell, cell.init(jax.random.key(0)))
    >>> {name: array.shape for name, array in fields.items()}
    {'weight_ih': (6, 3), 'weight_hh': (6, 2), 'bias': (6,), 'bias_n': (2,)}
    """
    layers = flatten_layers("to_equinox", "equinox", network, params, cells=(LSTM, GRU), merges=())
    written = [_write(layer.directions[0]) for layer in layers]
    return written if isinstance(network, Stack) else written[0]


def _write(direction: Direction) -> dict[str, Any]:
    fields = fields_of(direction)
    written = {"weight_ih": fields["w_ih"].T, "weight_hh": fields["w_hh"].T}
    if "bias" in fields:
        written["bias"] = fields["bias"]
        if written["bias"].shape[0] == 3 * direction.cell.hidden_size:
            written["bias_n"] = fields.get("bias_hn", zeros((direction.cell.hidden_size,), fields["bias"]))
    return written
