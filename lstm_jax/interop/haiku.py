"""Weights of haiku's recurrent cores, in and out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax

import lstm_jax
from lstm_jax._errors import check_tuple, value_error
from lstm_jax.interop._convolutions import conv_lstm, two_convolutions
from lstm_jax.interop._entries import Entries
from lstm_jax.interop._layouts import (
    apart,
    each,
    params_of,
    plus,
    reordered,
    size_of,
    together,
    unreadable_shapes,
    zeros,
)
from lstm_jax.interop._representable import check_options, fields_of, unknown_kind

KINDS = ("LSTM", "GRUVariant(reset_after=False)", "RNN(activation=jax.nn.relu)", "ConvLSTM", "Stack")

#: The last part of a module's name below a core.
PARTS = ("linear", "linear_1", "input_to_hidden", "hidden_to_hidden")
HINT = "Give the parameters of one core of haiku, or of several with layers=(...), their names in order."


def from_haiku(
    params: Mapping[str, Any],
    *,
    layers: Sequence[str] | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> tuple[Any, Any]:
    r"""A cell, and its parameters, from those of a recurrent core of haiku.

    ============================  ====================================  ===================================
    haiku                         its modules and arrays                here
    ============================  ====================================  ===================================
    ``LSTM``                      lstm/linear: w, b                     ``LSTM``
    ``GRU``                       gru: w_i, w_h, b                      ``GRUVariant(reset_after=False)``
    ``VanillaRNN``                vanilla_rnn/linear: w, b;             ``RNN(activation=jax.nn.relu)``
                                  vanilla_rnn/linear_1: w, perhaps b
    ``Conv1DLSTM``, ``2D``, 3D    conv1_dlstm/input_to_hidden: w, b;    ``ConvLSTM``; give ``input_shape``
                                  conv1_dlstm/hidden_to_hidden: w, b
    several (``DeepRNN``)         all of them; give ``layers``          ``Stack``
    ============================  ====================================  ===================================

    Their LSTM has one w of the rows [x; h] with gates i, g, f, o, and adds 1 to the forget gate at every
    step, which ours has in the bias: it is added here, and rounded once. Their GRU has gates z, r, a and
    a z that says how much is new, where ours says how much is kept, so that its column changes its sign.
    Of two biases ours is the sum. The state of their LSTM is (h, c), as ours.

    Args:
        params: a mapping of module names to mappings of arrays, NumPy's or JAX's, with any prefix; or the
            arrays of one LSTM's ``linear`` or of one GRU.
        layers: for a stack the names of its cores from the first to the last, for instance
            ``("lstm", "lstm_1")``. Their order is not told by the mapping.
        input_shape: of a convolutional core, (\*space, C); of a stack that of its first layer.

    Returns:
        ``(network, params)``, for ``lstm_jax.unroll(network, params, xs)``.

    Raises:
        ValueError: an entry is missing, unexpected or misshapen (all are listed), the names are of no core
            known here, or something asked for is not given.

    >>> import numpy as np
    >>> theirs = {"lstm/linear": {"w": np.ones((3 + 2, 8)), "b": np.zeros(8)}}
    >>> cell, params = from_haiku(theirs)
    >>> cell.input_size, cell.hidden_size, params.bias.tolist()
    (3, 2, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    >>> lstm_jax.unroll(cell, params, np.ones((5, 3), np.float32))[1].shape
    (5, 2)
    """
    cores = _cores(params)
    if layers is None:
        if len(cores) > 1:
            raise value_error(
                f"from_haiku got {', '.join(repr(name) for name in cores)}, whose order is not told",
                "one core, or layers",
                f"Write from_haiku(params, layers={tuple(cores)}) in the order of your network, "
                "and leave out of params what is no recurrent core.",
            )
        (core,) = cores.values() or ({},)
        return _read(core, input_shape)
    unknown = {name: core for name, core in cores.items() if name not in layers}
    absent = [name for name in layers if name not in cores]
    if unknown or absent or not layers or isinstance(layers, str) or len(set(layers)) != len(layers):
        raise value_error(
            f"from_haiku got layers={layers!r} and the cores {', '.join(map(repr, cores))}",
            "the name of each core once",
            "Leave out of params what is no layer of the stack.",
        )

    def read_layer(name: str) -> tuple[Any, Any]:
        nonlocal input_shape
        network, ours = _read(cores[name], input_shape)
        input_shape = getattr(network, "output_shape", None)
        return network, ours

    read = each({name: partial(read_layer, name) for name in layers})
    return lstm_jax.Stack(tuple(layer for layer, _ in read)), tuple(p for _, p in read)


def to_haiku(network: Any, params: Any, *, scope: str = "") -> dict[str, dict[str, Any]]:
    """The parameters of a core of haiku from those of one of ours; :func:`from_haiku` has the table.

    A ``GRU`` of torch's form (``reset_after=True``) is refused, since haiku resets h before the product; an
    ``RNN`` is refused unless its activation is ``jax.nn.relu``.

    All is exact to the bit, with one exception: haiku's LSTM adds 1 to the forget gate, so its bias is
    b_f - 1. Where b_f is 0.5 or more (ours begins at 1) floats hold that exactly, and the way back gives b_f.
    Elsewhere it is the nearest float, off by at most half a unit in the last place of b_f - 1 (6e-8 in
    float32 for b_f between -1 and 0.5), as large as the rounding of haiku's own addition at every step.
    The convolutional core has a second bias, which takes the -1.

    Args:
        network: ``LSTM``, ``GRUVariant(reset_after=False)``, ``RNN(activation=jax.nn.relu)``,
            ``ConvLSTM``, or a ``Stack`` of these.
        params: its parameters.
        scope: the name of the module around it, for instance ``"agent/~"``.

    Returns:
        ``{module: {name: array}}`` with the names that haiku gives: lstm, then lstm_1, and so on.

    Raises:
        ValueError: haiku's core lacks an option of ours (all are listed), or the parameters do not fit.

    >>> cell = lstm_jax.LSTM(input_size=3, hidden_size=2)
    >>> theirs = to_haiku(cell, cell.init(jax.random.key(0)), scope="agent/~")
    >>> list(theirs), theirs["agent/~/lstm/linear"]["b"].tolist()
    (['agent/~/lstm/linear'], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    """
    layers, ours = (network,), (params,)
    if isinstance(network, lstm_jax.Stack):
        check_options("to_haiku", network, "hk.DeepRNN of plain cores")
        check_tuple("to_haiku", params, len(network.layers))
        layers, ours = network.layers, params
    theirs: dict[str, dict[str, Any]] = {}
    seen: Counter[str] = Counter()
    for layer, p in zip(layers, ours, strict=True):
        write = _WRITERS.get(type(layer))
        if write is None:
            unknown_kind("to_haiku", layer, "haiku", KINDS if layer is network else KINDS[:4])
        name, modules = write(layer, p)
        core = f"{scope}/" * bool(scope) + name + f"_{seen[name]}" * bool(seen[name])
        seen[name] += 1
        theirs |= {f"{core}/{part}" if part else core: arrays for part, arrays in modules.items()}
    return theirs


# --- in -----------------------------------------------------------------------------------------


def _cores(params: Any) -> dict[str, dict[str, Any]]:
    """The modules of each core, by the core's name."""
    Entries("from_haiku", params)  # is a mapping
    if {"w_i", "w_h"} & set(params):
        params = {"gru": params}
    elif {"w", "b"} & set(params):
        params = {"lstm/linear": params}
    cores: dict[str, dict[str, Any]] = {}
    for path, arrays in params.items():
        if not isinstance(arrays, Mapping):
            raise value_error(
                f"from_haiku got {path} of type {type(arrays).__name__}",
                "a mapping of the module's arrays",
                HINT,
            )
        core, _, part = path.rpartition("/")
        if part not in PARTS:
            core, part = path, ""
        cores.setdefault(core, {})[part] = arrays
    return cores


def _read(core: Mapping[str, Any], input_shape: Any) -> tuple[Any, Any]:
    flat = {part: arrays for part, arrays in core.items() if part} | dict(core.get("", {}))
    entries = Entries("from_haiku", flat)
    given = set(core)
    if input_shape is not None and not given & set(PARTS[2:]):
        raise value_error(
            f"from_haiku got input_shape={input_shape!r}", "none for this core", "Leave it out."
        )
    if given & set(PARTS[2:]):
        names = [(f"{part}/w", f"{part}/b") for part in PARTS[2:]]
        return conv_lstm(entries, names[0], names[1], HINT, lambda: _asked(input_shape))
    if {"w_i", "w_h"} & set(entries.names()):
        return _read_gru(entries)
    if "linear_1" in given:
        return _read_rnn(entries)
    if "linear" in given:
        return _read_lstm(entries)
    raise value_error(
        f"from_haiku got the names {', '.join(entries.names()) or 'of nothing'}",
        "those of LSTM (linear/w), GRU (w_i, w_h), VanillaRNN (linear/w, linear_1/w) or "
        "Conv1DLSTM, Conv2DLSTM, Conv3DLSTM (input_to_hidden/w, hidden_to_hidden/w)",
        HINT,
    )


def _asked(input_shape: Any) -> Any:
    if input_shape is None:
        raise value_error(
            "from_haiku got the weights of a convolutional LSTM, which do not tell its input_shape",
            "input_shape as an argument",
            "Write from_haiku(params, input_shape=(height, width, channels)).",
        )
    return input_shape


def _read_lstm(entries: Entries) -> tuple[Any, Any]:
    wide = size_of(entries, ("linear/w", 1), ("linear/b", 0))
    rows = size_of(entries, ("linear/w", 0))
    H = wide // 4
    if wide % 4 or 0 < rows <= H:
        unreadable_shapes(entries, "linear/w (D + H, 4H) and linear/b (4H,)", HINT)
    w, b = entries.take("linear/w", (rows, wide)), entries.take("linear/b", (wide,))
    entries.done(HINT)
    w = reordered(w, "igfo", "ifgo")
    b = together(plus(apart(b, "igfo"), "f", 1), "ifgo")
    D = rows - H
    params = params_of(lstm_jax.LSTMParams, w_ih=w[:D], w_hh=w[D:], bias=b)
    return lstm_jax.LSTM(D, H, param_dtype=params.w_ih.dtype), params


def _read_gru(entries: Entries) -> tuple[Any, Any]:
    D, H = size_of(entries, ("w_i", 0)), size_of(entries, ("w_h", 0))
    fields = {
        "w_ih": entries.take("w_i", (D, 3 * H)),
        "w_hh": entries.take("w_h", (H, 3 * H)),
        "bias": entries.take("b", (3 * H,)),
    }
    entries.done(HINT)
    fields = {name: together(_turned(apart(array, "zrn")), "rzn") for name, array in fields.items()}
    params = params_of(lstm_jax.GRUVariantParams, **fields)
    return lstm_jax.GRUVariant(D, H, reset_after=False, param_dtype=params.w_ih.dtype), params


def _turned(gates: dict[str, Any]) -> dict[str, Any]:
    """1 - sigmoid(z) = sigmoid(-z): what is new instead of what is kept."""
    return gates | {"z": -gates["z"]}


def _read_rnn(entries: Entries) -> tuple[Any, Any]:
    D = size_of(entries, ("linear/w", 0))
    H = size_of(entries, ("linear_1/w", 0), ("linear_1/w", 1), ("linear/w", 1), ("linear/b", 0))
    w_ih, bias = entries.take("linear/w", (D, H)), entries.take("linear/b", (H,))
    w_hh = entries.take("linear_1/w", (H, H))
    second = entries.take("linear_1/b", (H,)) if "linear_1/b" in entries else None
    entries.done(HINT)
    bias = bias if second is None else bias + second
    params = params_of(lstm_jax.RNNParams, w_ih=w_ih, w_hh=w_hh, bias=bias)
    return lstm_jax.RNN(D, H, activation=jax.nn.relu, param_dtype=params.w_ih.dtype), params


# --- out ----------------------------------------------------------------------------------------


def _plain(cell: Any, params: Any, target: str, *allowed: str) -> dict[str, Any]:
    """The fields of a cell without options; zeros where it has no bias."""
    check_options("to_haiku", cell, target, ("use_bias", *allowed))
    fields = fields_of("to_haiku", cell, params)
    if "bias" not in fields:
        fields["bias"] = zeros(fields["w_ih"].shape[-1:], fields["w_ih"])
    return fields


def _write_lstm(cell: Any, params: Any) -> tuple[str, dict[str, Any]]:
    fields = _plain(cell, params, "hk.LSTM")
    rows = together({"x": fields["w_ih"].T, "h": fields["w_hh"].T}, "xh").T
    bias = together(plus(apart(fields["bias"], "ifgo"), "f", -1), "igfo")
    return "lstm", {"linear": {"w": reordered(rows, "ifgo", "igfo"), "b": bias}}


def _write_gru(cell: Any, params: Any) -> tuple[str, dict[str, Any]]:
    if getattr(cell, "reset_after", True):
        raise value_error(
            "to_haiku got GRU, torch's and Keras's form, r * (h R_n + b_hn)",
            "GRUVariant(reset_after=False), because hk.GRU resets h before the product, (r * h) R_n",
            "The weights of one form mean something else in the other: train with reset_after=False, "
            "or call lstm_jax.gru_step inside your haiku module.",
        )
    fields = _plain(cell, params, "hk.GRU", "reset_after")
    return "gru", {
        "": {
            theirs: together(_turned(apart(fields[ours], "rzn")), "zrn")
            for theirs, ours in (("w_i", "w_ih"), ("w_h", "w_hh"), ("b", "bias"))
        }
    }


def _write_rnn(cell: Any, params: Any) -> tuple[str, dict[str, Any]]:
    if cell.activation is not jax.nn.relu:
        name = getattr(cell.activation, "__name__", repr(cell.activation))
        raise value_error(
            f"to_haiku got RNN(activation={name})",
            "RNN(activation=jax.nn.relu), because hk.VanillaRNN has no other",
            "Call lstm_jax.rnn_step inside your haiku module instead.",
        )
    fields = _plain(cell, params, "hk.VanillaRNN", "activation")
    return "vanilla_rnn", {
        "linear": {"w": fields["w_ih"], "b": fields["bias"]},
        "linear_1": {"w": fields["w_hh"], "b": zeros(fields["bias"].shape, fields["bias"])},
    }


def _write_conv(cell: Any, params: Any) -> tuple[str, dict[str, Any]]:
    fields = _plain(cell, params, "hk.Conv2DLSTM", "strides", "padding")
    both = two_convolutions("to_haiku", cell, fields, "hk.Conv2DLSTM").values()
    modules = {part: {"w": w, "b": b} for part, (w, b) in zip(PARTS[2:], both, strict=True)}
    return f"conv{len(cell.kernel_size)}_dlstm", modules


_WRITERS: dict[type, Callable[[Any, Any], tuple[str, dict[str, Any]]]] = {
    lstm_jax.LSTM: _write_lstm,
    lstm_jax.LSTMVariant: _write_lstm,
    lstm_jax.GRU: _write_gru,
    lstm_jax.GRUVariant: _write_gru,
    lstm_jax.RNN: _write_rnn,
    lstm_jax.ConvLSTM: _write_conv,
}
