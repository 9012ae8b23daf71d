"""Weights of equinox's recurrent cells, in and out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import lstm_jax
from lstm_jax._errors import check_tuple, value_error
from lstm_jax.interop._entries import Entries
from lstm_jax.interop._layouts import each, params_of, size_of, unreadable_shapes, zeros
from lstm_jax.interop._representable import check_options, fields_of, unknown_kind

KINDS = ("LSTM", "GRU", "Stack")

#: Fields of their cells that are no arrays and are told by shapes.
SIZES = ("input_size", "hidden_size", "use_bias")
HINT = "Give vars(cell) of one eqx.nn.LSTMCell or eqx.nn.GRUCell, or a list of them, one a layer."


def from_equinox(fields: Mapping[str, Any] | list[Any] | tuple[Any, ...]) -> tuple[Any, Any]:
    """A cell, and its parameters, from the fields of a cell of equinox, ``vars(cell)``.

    =============  ==========================================================  ==========
    equinox        its fields                                                  here
    =============  ==========================================================  ==========
    ``LSTMCell``   weight_ih (4H, D), weight_hh (4H, H), bias (4H,) or None    ``LSTM``
    ``GRUCell``    weight_ih (3H, D), weight_hh (3H, H), bias (3H,) or None,   ``GRU``
                   bias_n (H,) or None
    a list of these                                                            ``Stack``
    =============  ==========================================================  ==========

    Gates stand in our order; matrices are transposed. The carry of their LSTM is (h, c), as ours. They step
    one row at a time (``jax.vmap`` for a batch), ours take any batch axes.

    Args:
        fields: the fields of a cell by their names, its arrays NumPy's or JAX's. ``input_size``,
            ``hidden_size`` and ``use_bias`` may be among them and are not read.

    Returns:
        ``(network, params)``, for ``lstm_jax.unroll(network, params, xs)``.

    Raises:
        ValueError: an entry is missing, unexpected or misshapen; all are listed.

    >>> import numpy as np
    >>> theirs = {"weight_ih": np.ones((8, 3)), "weight_hh": np.ones((8, 2)), "bias": np.zeros(8)}
    >>> cell, params = from_equinox(theirs)
    >>> cell.input_size, cell.hidden_size, params.w_ih.shape
    (3, 2, (3, 8))
    >>> lstm_jax.unroll(cell, params, np.ones((5, 3), np.float32))[1].shape
    (5, 2)
    """
    if isinstance(fields, (list, tuple)):
        read = each({f"layer {k}": partial(from_equinox, f) for k, f in enumerate(fields)})
        return lstm_jax.Stack(tuple(layer for layer, _ in read)), tuple(p for _, p in read)
    entries = Entries("from_equinox", fields)
    for name in entries.names():
        if name in SIZES or entries.left[name] is None:
            del entries.left[name]
    H, D = size_of(entries, ("weight_hh", 1)), size_of(entries, ("weight_ih", 1))
    wide = size_of(entries, ("weight_hh", 0), ("weight_ih", 0), ("bias", 0))
    if not H or wide not in (3 * H, 4 * H):
        unreadable_shapes(entries, "weight_hh (4H, H) of an LSTMCell or (3H, H) of a GRUCell", HINT)
    gru = wide == 3 * H
    w_ih, w_hh = entries.take("weight_ih", (wide, D)), entries.take("weight_hh", (wide, H))
    biased = "bias" in entries or (gru and "bias_n" in entries)
    bias = entries.take("bias", (wide,)) if biased else None
    bias_n = entries.take("bias_n", (H,)) if biased and gru else None
    entries.done(HINT)
    if gru:
        params: Any = params_of(lstm_jax.GRUParams, w_ih=w_ih.T, w_hh=w_hh.T, bias=bias, bias_hn=bias_n)
        return lstm_jax.GRU(D, H, use_bias=biased, param_dtype=params.w_ih.dtype), params
    params = params_of(lstm_jax.LSTMParams, w_ih=w_ih.T, w_hh=w_hh.T, bias=bias)
    return lstm_jax.LSTM(D, H, use_bias=biased, param_dtype=params.w_ih.dtype), params


def to_equinox(network: Any, params: Any) -> Any:
    """The arrays of a cell of equinox from those of one of ours; :func:`from_equinox` has the table.

    Exact to the bit. They go into a cell that was made with the same sizes and ``use_bias``::

        new = to_equinox(cell, params)
        theirs = eqx.tree_at(lambda c: [getattr(c, name) for name in new], theirs, list(new.values()))

    Args:
        network: ``LSTM``, ``GRU``, or a ``Stack`` of these.
        params: its parameters.

    Returns:
        ``{field: array}``, without the biases where ours has none; of a ``Stack`` a list, one entry a layer.

    Raises:
        ValueError: equinox's cells lack an option of ours (all are listed), or the parameters do not fit.

    >>> import jax
    >>> cell = lstm_jax.GRU(input_size=3, hidden_size=2)
    >>> theirs = to_equinox(cell, cell.init(jax.random.key(0)))
    >>> {name: array.shape for name, array in theirs.items()}
    {'weight_ih': (6, 3), 'weight_hh': (6, 2), 'bias': (6,), 'bias_n': (2,)}
    """
    if isinstance(network, lstm_jax.Stack):
        check_options("to_equinox", network, "a list of equinox's cells")
        check_tuple("to_equinox", params, len(network.layers))
        return [to_equinox(layer, p) for layer, p in zip(network.layers, params, strict=True)]
    kinds = {
        lstm_jax.LSTM: "LSTM",
        lstm_jax.LSTMVariant: "LSTM",
        lstm_jax.GRU: "GRU",
        lstm_jax.GRUVariant: "GRU",
    }
    kind = kinds.get(type(network))
    if kind is None:
        unknown_kind("to_equinox", network, "equinox", KINDS)
    if kind == "GRU" and not getattr(network, "reset_after", True):
        raise value_error(
            "to_equinox got GRUVariant(reset_after=False)",
            "reset_after=True, as eqx.nn.GRUCell has it: r * (R h + b_n)",
            "Train with reset_after=True; the weights of one form mean something else in the other.",
        )
    target = f"eqx.nn.{kind}Cell"
    check_options("to_equinox", network, target, ("use_bias", "reset_after"))
    ours = fields_of("to_equinox", network, params, optional=("bias_hn",))
    theirs = {"weight_ih": ours["w_ih"].T, "weight_hh": ours["w_hh"].T}
    if "bias" in ours:
        theirs["bias"] = ours["bias"]
        if kind == "GRU":
            theirs["bias_n"] = ours.get("bias_hn", zeros((network.hidden_size,), ours["bias"]))
    return theirs
