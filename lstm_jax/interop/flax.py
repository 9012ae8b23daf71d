"""Weights of flax's cells, linen's and nnx's, in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import lstm_jax
from lstm_jax._errors import check_choice, check_tuple, value_error
from lstm_jax.interop._convolutions import conv_lstm, two_convolutions
from lstm_jax.interop._entries import Entries
from lstm_jax.interop._layouts import apart, each, params_of, size_of, together, unreadable_shapes, zeros
from lstm_jax.interop._networks import ACTIVATIONS, VARIANTS
from lstm_jax.interop._representable import check_options, fields_of, unknown_kind

KINDS = ("LSTM", "GRU", "RNN", "ConvLSTM", "Stack", "Bidirectional")

#: The submodules by which a cell is known. Those of linen's OptimizedLSTMCell are LSTMCell's.
NAMES: dict[str, tuple[str, ...]] = {
    "linen.LSTMCell": ("ii", "if", "ig", "io", "hi", "hf", "hg", "ho"),
    "linen.GRUCell": ("ir", "iz", "in", "hr", "hz", "hn"),
    "linen.SimpleCell": ("i", "h"),
    "linen.ConvLSTMCell": ("ih", "hh"),
    "linen.MGUCell": ("if", "in", "hf", "hn"),
    "nnx.LSTMCell": ("ii", "if_", "ig", "io", "hi", "hf", "hg", "ho"),
    "nnx.OptimizedLSTMCell, GRUCell or SimpleCell": ("dense_i", "dense_h"),
}
DIRECTIONS = ("forward_rnn", "backward_rnn")
HINT = (
    'Give the parameters of one cell, variables["params"] of linen or '
    "nnx.to_pure_dict(nnx.state(cell, nnx.Param)) of nnx, or a list of them, one a layer."
)


def from_flax(
    params: Mapping[str, Any] | Sequence[Any],
    *,
    activation: str | Callable[[Any], Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> tuple[Any, Any]:
    r"""A cell, and its parameters, from those of a cell of flax.

    The kind of cell is known by the names:

    ========================================  ==========================  ===========================
    flax                                      names                       here
    ========================================  ==========================  ===========================
    linen LSTMCell, OptimizedLSTMCell         ii if ig io, hi hf hg ho    ``LSTM``
    linen GRUCell                             ir iz in, hr hz hn          ``GRU``
    linen SimpleCell                          i, h                        ``RNN``; give ``activation``
    linen ConvLSTMCell                        ih, hh                      ``ConvLSTM``; give ``input_shape``
    nnx LSTMCell                              ii if\_ ig io, hi hf hg ho  ``LSTM``
    nnx OptimizedLSTMCell (kernels (., 4H))   dense_i, dense_h            ``LSTM``
    nnx GRUCell (kernels (., 3H))             dense_i, dense_h            ``GRU`` whose bias_hn is None
    nnx SimpleCell (kernels (., H))           dense_i, dense_h            ``RNN``; give ``activation``
    RNN (linen, nnx)                          cell                        what its cell is
    Bidirectional (linen, nnx)                forward_rnn, backward_rnn   ``Bidirectional``
    a list of any of these                                                ``Stack``
    ========================================  ==========================  ===========================

    The carry of their LSTMs is (c, h), that of ours (h, c). Their ConvLSTMCell adds 1 to the forget gate
    at every step, where ours has it in the bias (which is the sum of their two); without biases, ours has
    that 1 alone. Weights do not tell a gate_fn or an activation_fn of an LSTM or GRU, a merge_fn, strides,
    padding or ``residual=True``: they are taken to be flax's defaults.

    Args:
        params: a mapping of arrays, NumPy's or JAX's: ``variables`` or ``variables["params"]`` of linen,
            ``nnx.to_pure_dict(nnx.state(cell, nnx.Param))`` of nnx; or a list of them, one a layer.
        activation: of a SimpleCell: ``"tanh"`` (flax's default), ``"relu"`` or a function.
        input_shape: of a ConvLSTMCell, (*space, C); for a list that of the first layer.

    Returns:
        ``(network, params)``, for ``lstm_jax.unroll(network, params, xs)``.

    Raises:
        ValueError: an entry is missing, unexpected or misshapen (all are listed), the names are of no cell
            known here, or something asked for is not given.

    >>> import numpy as np
    >>> kernel, recurrent = {"kernel": np.ones((3, 2))}, {"kernel": np.ones((2, 2)), "bias": np.ones(2)}
    >>> theirs = {f"i{gate}": kernel for gate in "ifgo"} | {f"h{gate}": recurrent for gate in "ifgo"}
    >>> cell, params = from_flax({"params": theirs})
    >>> cell.input_size, cell.hidden_size, params.w_ih.shape
    (3, 2, (3, 8))
    >>> lstm_jax.unroll(cell, params, np.ones((5, 3), np.float32))[1].shape
    (5, 2)
    """
    asked = _Asked(activation, input_shape)
    network, ours = _read(params, asked)
    asked.check_used()
    return network, ours


def to_flax(network: Any, params: Any, *, api: str, optimized: bool = False) -> Any:
    """The parameters of a cell of flax from those of one of ours; :func:`from_flax` has the table.

    What is made is the function alone: ``activation`` of an ``RNN`` is to be given to the SimpleCell as
    its activation_fn. Where theirs has a bias and ours has none, zeros are written. An nnx.GRUCell has no
    bias inside the reset gate's product, so that it takes only parameters whose ``bias_hn`` is None.
    A ConvLSTMCell must have its default strides and padding; its hh takes back the 1 that it adds to the
    forget gate. All of that is exact to the bit, as is the way back.

    Args:
        network: ``LSTM``, ``GRU``, ``RNN``, ``ConvLSTM``, ``Bidirectional`` or ``Stack`` of these.
        params: its parameters.
        api: ``"linen"`` or ``"nnx"``.
        optimized: for nnx's OptimizedLSTMCell instead of its LSTMCell; linen's have the same layout.

    Returns:
        For linen what goes under ``{"params": ...}``, for nnx what ``nnx.update(cell, ...)`` takes; of a
        ``Bidirectional`` with the names of ``Bidirectional(RNN(cell), RNN(cell))``, of a ``Stack`` a list,
        one entry a layer.

    Raises:
        ValueError: flax's cells lack an option of ours (all are listed), or the parameters do not fit.

    >>> import jax
    >>> cell = lstm_jax.LSTM(input_size=3, hidden_size=2)
    >>> theirs = to_flax(cell, cell.init(jax.random.key(0)), api="linen")
    >>> theirs["if"]["kernel"].shape, theirs["hf"]["bias"]
    ((3, 2), Array([1., 1.], dtype=float32))
    >>> to_flax(cell, cell.init(jax.random.key(0)), api="nnx", optimized=True)["dense_h"]["kernel"].shape
    (2, 8)
    """
    check_choice("to_flax", "api", api, ("linen", "nnx"))
    if isinstance(network, lstm_jax.Stack):
        check_options("to_flax", network, "a list of flax's cells")
        check_tuple("to_flax", params, len(network.layers))
        return [
            to_flax(layer, p, api=api, optimized=optimized)
            for layer, p in zip(network.layers, params, strict=True)
        ]
    if isinstance(network, lstm_jax.Bidirectional):
        check_tuple("to_flax", params, 2)
        for cell in network.cells:
            if isinstance(cell, (lstm_jax.Stack, lstm_jax.Bidirectional)):
                unknown_kind("to_flax", cell, "flax's RNN, which each direction is,", KINDS[:4])
        return {
            name: {"cell": to_flax(cell, p, api=api, optimized=optimized)}
            for name, cell, p in zip(DIRECTIONS, network.cells, params, strict=True)
        }
    write = _WRITERS.get((type(network), api))
    if write is None:
        if isinstance(network, lstm_jax.ConvLSTM):
            raise value_error(
                'to_flax got ConvLSTM with api="nnx"', "linen: flax.nnx has none", 'Choose api="linen".'
            )
        unknown_kind("to_flax", network, "flax", KINDS)
    theirs = write(network, params)
    if optimized and api == "nnx" and isinstance(network, (lstm_jax.LSTM, lstm_jax.LSTMVariant)):
        return _write_dense_lstm(network, params)
    return theirs


# --- in -----------------------------------------------------------------------------------------


class _Asked:
    """What weights do not tell, and whether some cell needed it."""

    def __init__(self, activation: Any, input_shape: Any) -> None:
        self.first = {"activation": activation, "input_shape": input_shape}
        self.given = dict(self.first)
        self.used: set[str] = set()

    def take(self, name: str, cell: str, example: str) -> Any:
        self.used.add(name)
        if self.given[name] is None:
            raise value_error(
                f"from_flax got the weights of {cell}, which do not tell its {name}",
                f"{name} as an argument",
                f"Write from_flax(params, {name}={example}).",
            )
        return self.given[name]

    def check_used(self) -> None:
        for name, value in self.first.items():
            if value is not None and name not in self.used:
                raise value_error(
                    f"from_flax got {name}={value!r}", f"no {name} for these cells", "Leave it out."
                )


def _read(params: Any, asked: _Asked) -> tuple[Any, Any]:
    if isinstance(params, (list, tuple)):
        read = each({f"layer {k}": partial(_read_layer, p, asked) for k, p in enumerate(params)})
        return lstm_jax.Stack(tuple(layer for layer, _ in read)), tuple(p for _, p in read)
    if isinstance(params, Mapping) and len(params) == 1 and set(params) <= {"params", "cell"}:
        (inside,) = params.values()
        return _read(inside, asked)
    if isinstance(params, Mapping) and set(params) == set(DIRECTIONS):
        return _read_both(*each({name: partial(_read, params[name], asked) for name in DIRECTIONS}))
    entries = Entries("from_flax", params)
    kind = _kind_of(entries)
    return _READERS[kind](entries, asked)


def _read_layer(params: Any, asked: _Asked) -> tuple[Any, Any]:
    """A layer of a stack; its outputs are the images that the next one reads."""
    layer, ours = _read(params, asked)
    if asked.given["input_shape"] is not None:
        asked.given["input_shape"] = getattr(layer, "output_shape", None)
    return layer, ours


def _read_both(forward: tuple[Any, Any], backward: tuple[Any, Any]) -> tuple[Any, Any]:
    network = lstm_jax.Bidirectional(forward[0], backward=backward[0])
    return network, lstm_jax.BidirectionalParams(forward[1], backward[1])


def _kind_of(entries: Entries) -> str:
    """The cell whose names are most like those given."""
    given = {name.split("/")[0] for name in entries.names()}

    def likeness(kind: str) -> float:
        names = set(NAMES[kind])
        return len(names & given) / len(names | given)

    kind = max(NAMES, key=likeness)
    if likeness(kind) < 0.5 or kind not in _READERS:
        known = "; ".join(f"{name} ({' '.join(NAMES[name])})" for name in _READERS)
        raise value_error(
            f"from_flax got the names {', '.join(sorted(given)) or 'of nothing'}"
            + (f", which are those of {kind}" if kind not in _READERS and likeness(kind) == 1 else ""),
            f"those of {known}",
            HINT,
        )
    return kind


def _size_heard(entries: Entries, gates: str) -> int:
    """H, that the recurrent kernels tell twice and all biases once."""
    kernels = [(f"h{gate}/kernel", axis) for gate in gates for axis in (0, 1)]
    return size_of(entries, *kernels, *((f"{side}{gate}/bias", 0) for side in "ih" for gate in gates))


def _read_linen_lstm(entries: Entries, asked: _Asked, forget: str = "if") -> tuple[Any, Any]:
    inputs = {gate: forget if gate == "f" else f"i{gate}" for gate in "ifgo"}
    D = size_of(entries, *((f"{name}/kernel", 0) for name in inputs.values()))
    H = _size_heard(entries, "ifgo")
    w_ih = {gate: entries.take(f"{name}/kernel", (D, H)) for gate, name in inputs.items()}
    w_hh = {gate: entries.take(f"h{gate}/kernel", (H, H)) for gate in "ifgo"}
    bias = {gate: entries.take(f"h{gate}/bias", (H,)) for gate in "ifgo"}
    entries.done(HINT)
    fields = {"w_ih": w_ih, "w_hh": w_hh, "bias": bias}
    return _lstm(D, H, {name: together(gates, "ifgo") for name, gates in fields.items()})


def _lstm(D: int, H: int, fields: dict[str, Any]) -> tuple[Any, Any]:
    params = params_of(lstm_jax.LSTMParams, **fields)
    return lstm_jax.LSTM(D, H, param_dtype=params.w_ih.dtype), params


def _read_linen_gru(entries: Entries, asked: _Asked) -> tuple[Any, Any]:
    D = size_of(entries, *((f"i{gate}/kernel", 0) for gate in "rzn"))
    H = _size_heard(entries, "rzn")
    w_ih = {gate: entries.take(f"i{gate}/kernel", (D, H)) for gate in "rzn"}
    bias = {gate: entries.take(f"i{gate}/bias", (H,)) for gate in "rzn"}
    w_hh = {gate: entries.take(f"h{gate}/kernel", (H, H)) for gate in "rzn"}
    bias_hn = entries.take("hn/bias", (H,))
    entries.done(HINT)
    fields = {"w_ih": w_ih, "w_hh": w_hh, "bias": bias}
    return _gru(D, H, {name: together(gates, "rzn") for name, gates in fields.items()} | {"bias_hn": bias_hn})


def _gru(D: int, H: int, fields: dict[str, Any]) -> tuple[Any, Any]:
    params = params_of(lstm_jax.GRUParams, **fields)
    return lstm_jax.GRU(D, H, param_dtype=params.w_ih.dtype), params


def _read_linen_rnn(
    entries: Entries, asked: _Asked, names: tuple[str, str] = ("i", "h"), cell: str = "linen.SimpleCell"
) -> tuple[Any, Any]:
    inputs, heard = names
    D = size_of(entries, (f"{inputs}/kernel", 0))
    H = size_of(entries, (f"{heard}/kernel", 0), (f"{heard}/kernel", 1), (f"{inputs}/bias", 0))
    w_ih, bias = entries.take(f"{inputs}/kernel", (D, H)), entries.take(f"{inputs}/bias", (H,))
    w_hh = entries.take(f"{heard}/kernel", (H, H))
    entries.done(HINT)
    params = params_of(lstm_jax.RNNParams, w_ih=w_ih, w_hh=w_hh, bias=bias)
    activation = asked.take("activation", cell, '"tanh"')
    activation = ACTIVATIONS.get(activation, activation) if isinstance(activation, str) else activation
    return lstm_jax.RNN(D, H, activation=activation, param_dtype=params.w_ih.dtype), params


def _read_nnx_dense(entries: Entries, asked: _Asked) -> tuple[Any, Any]:
    """One kernel for all gates: their number tells the cell."""
    D, H = size_of(entries, ("dense_i/kernel", 0)), size_of(entries, ("dense_h/kernel", 0))
    sides = [(f"dense_{side}/{leaf}", -1) for side in "ih" for leaf in ("kernel", "bias")]
    wide = size_of(entries, *sides)
    if not H or wide not in (H, 3 * H, 4 * H):
        expected = "dense_h/kernel (H, H) of a SimpleCell, (H, 3H) of a GRUCell or (H, 4H) of an LSTM"
        unreadable_shapes(entries, expected, HINT)
    if wide == H:
        return _read_linen_rnn(entries, asked, ("dense_i", "dense_h"), "nnx.SimpleCell")
    fields = {
        "w_ih": entries.take("dense_i/kernel", (D, wide)),
        "w_hh": entries.take("dense_h/kernel", (H, wide)),
        "bias": entries.take("dense_i/bias" if wide == 3 * H else "dense_h/bias", (wide,)),
    }
    entries.done(HINT)
    return _gru(D, H, fields) if wide == 3 * H else _lstm(D, H, fields)


def _read_linen_conv(entries: Entries, asked: _Asked) -> tuple[Any, Any]:
    return conv_lstm(
        entries, ("ih/kernel", "ih/bias"), ("hh/kernel", "hh/bias"), HINT,
        lambda: asked.take("input_shape", "linen.ConvLSTMCell", "(height, width, channels)"),
    )  # fmt: skip


_READERS: dict[str, Callable[[Entries, _Asked], tuple[Any, Any]]] = {
    "linen.LSTMCell": _read_linen_lstm,
    "linen.GRUCell": _read_linen_gru,
    "linen.SimpleCell": _read_linen_rnn,
    "linen.ConvLSTMCell": _read_linen_conv,
    "nnx.LSTMCell": partial(_read_linen_lstm, forget="if_"),
    "nnx.OptimizedLSTMCell, GRUCell or SimpleCell": _read_nnx_dense,
}


# --- out ----------------------------------------------------------------------------------------


def _plain(cell: Any, params: Any, target: str, *allowed: str) -> dict[str, Any]:
    """The fields of a cell without options; zeros where it has no bias."""
    check_options("to_flax", cell, target, ("use_bias", *allowed))
    fields = fields_of("to_flax", cell, params, optional=("bias_hn",))
    if "bias" not in fields:
        fields["bias"] = zeros(fields["w_ih"].shape[-1:], fields["w_ih"])
    return fields


def _write_linen_lstm(cell: Any, params: Any, forget: str = "if") -> dict[str, Any]:
    fields = _plain(cell, params, "flax's LSTMCell")
    w, r, b = (apart(fields[name], "ifgo") for name in ("w_ih", "w_hh", "bias"))
    theirs = {forget if gate == "f" else f"i{gate}": {"kernel": w[gate]} for gate in "ifgo"}
    return theirs | {f"h{gate}": {"kernel": r[gate], "bias": b[gate]} for gate in "ifgo"}


def _write_dense_lstm(cell: Any, params: Any) -> dict[str, Any]:
    fields = _plain(cell, params, "flax's OptimizedLSTMCell")
    return {
        "dense_i": {"kernel": fields["w_ih"]},
        "dense_h": {"kernel": fields["w_hh"], "bias": fields["bias"]},
    }


def _plain_gru(cell: Any, params: Any) -> dict[str, Any]:
    if not getattr(cell, "reset_after", True):
        raise value_error(
            "to_flax got GRUVariant(reset_after=False)",
            "reset_after=True, as flax's GRUCell has it: r * (R h + b)",
            "Train with reset_after=True; the weights of one form mean something else in the other.",
        )
    return _plain(cell, params, "flax's GRUCell", "reset_after")


def _write_linen_gru(cell: Any, params: Any) -> dict[str, Any]:
    fields = _plain_gru(cell, params)
    w, r, b = (apart(fields[name], "rzn") for name in ("w_ih", "w_hh", "bias"))
    theirs: dict[str, Any] = {f"i{gate}": {"kernel": w[gate], "bias": b[gate]} for gate in "rzn"}
    theirs |= {f"h{gate}": {"kernel": r[gate]} for gate in "rzn"}
    theirs["hn"]["bias"] = fields.get("bias_hn", zeros((cell.hidden_size,), fields["bias"]))
    return theirs


def _write_nnx_gru(cell: Any, params: Any) -> dict[str, Any]:
    fields = _plain_gru(cell, params)
    if "bias_hn" in fields:
        raise value_error(
            "to_flax got a GRU with bias_hn",
            "parameters without it, because nnx.GRUCell has no bias inside the reset gate's product",
            'Choose api="linen", or train with bias_hn=None: params._replace(bias_hn=None).',
        )
    return _dense(fields)


def _write_linen_rnn(cell: Any, params: Any) -> dict[str, Any]:
    fields = _plain(cell, params, "flax's SimpleCell", "activation")
    return {"i": {"kernel": fields["w_ih"], "bias": fields["bias"]}, "h": {"kernel": fields["w_hh"]}}


def _write_nnx_rnn(cell: Any, params: Any) -> dict[str, Any]:
    return _dense(_plain(cell, params, "flax's SimpleCell", "activation"))


def _dense(fields: dict[str, Any]) -> dict[str, Any]:
    """One kernel for all gates, the bias beside the input's."""
    return {
        "dense_i": {"kernel": fields["w_ih"], "bias": fields["bias"]},
        "dense_h": {"kernel": fields["w_hh"]},
    }


def _write_linen_conv(cell: Any, params: Any) -> dict[str, Any]:
    fields = _plain(cell, params, "flax's ConvLSTMCell", "strides", "padding")
    return {
        name: {"kernel": kernel, "bias": bias}
        for name, (kernel, bias) in two_convolutions("to_flax", cell, fields, "ConvLSTMCell").items()
    }


_WRITERS: dict[tuple[type, str], Callable[[Any, Any], dict[str, Any]]] = {
    (lstm_jax.LSTM, "linen"): _write_linen_lstm,
    (lstm_jax.LSTM, "nnx"): partial(_write_linen_lstm, forget="if_"),
    (lstm_jax.GRU, "linen"): _write_linen_gru,
    (lstm_jax.GRU, "nnx"): _write_nnx_gru,
    (lstm_jax.RNN, "linen"): _write_linen_rnn,
    (lstm_jax.RNN, "nnx"): _write_nnx_rnn,
    (lstm_jax.ConvLSTM, "linen"): _write_linen_conv,
}
_WRITERS |= {
    (variant, api): _WRITERS[kind, api] for kind, (variant, _) in VARIANTS.items() for api in ("linen", "nnx")
}
