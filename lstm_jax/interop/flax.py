"""Conversion of weights from and to Flax's cells (linen and nnx)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from lstm_jax import (
    GRU,
    LSTM,
    RNN,
    ConvLSTM,
    GRUParams,
    LSTMParams,
    LSTMVariant,
    RNNParams,
    Stack,
)
from lstm_jax._errors import check_choice, listing, value_error
from lstm_jax._types import DType
from lstm_jax.interop._convolutions import read_conv_lstm, write_conv_lstm
from lstm_jax.interop._entries import MAX_DEPTH, Entries, Faults, UnbuiltLayer, build_layers
from lstm_jax.interop._gates import join_gates, split_gates, zeros
from lstm_jax.interop._networks import (
    Direction,
    Options,
    fields_of,
    flatten_layers,
    join_directions,
    make_cell,
    params_for,
)

#: The submodules that identify a cell. linen's OptimizedLSTMCell has those of its LSTMCell.
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
    "nnx.to_pure_dict(nnx.state(cell, nnx.Param)) of nnx, or a list of them, one for each layer."
)


def from_flax(
    params: Mapping[str, Any] | Sequence[Any],
    *,
    activation: Any = None,
    recurrent_activation: Any = None,
    input_shape: tuple[int, ...] | None = None,
    dtype: DType | None = None,
) -> tuple[Any, Any]:
    r"""A cell and its parameters from the parameters of a Flax cell.

    The names identify the type of cell:

    ========================================  ==========================  ====================================
    Flax                                      names                       lstm_jax
    ========================================  ==========================  ====================================
    linen LSTMCell, OptimizedLSTMCell         ii if ig io, hi hf hg ho    ``LSTM``
    linen GRUCell                             ir iz in, hr hz hn          ``GRU``
    linen SimpleCell                          i, h                        ``RNN``; give ``activation``
    linen ConvLSTMCell                        ih, hh                      ``ConvLSTM``; give ``input_shape``
    nnx LSTMCell                              ii if\_ ig io, hi hf hg ho  ``LSTM``
    nnx OptimizedLSTMCell (kernels (., 4H))   dense_i, dense_h            ``LSTM``
    nnx GRUCell (kernels (., 3H))             dense_i, dense_h            ``GRU`` whose bias_hn is None
    nnx SimpleCell (kernels (., H))           dense_i, dense_h            ``RNN``; give ``activation``
    RNN (linen, nnx)                          cell                        the cell inside
    Bidirectional (linen, nnx)                forward_rnn, backward_rnn   ``Bidirectional``
    a list of any of these                                                ``Stack``
    ========================================  ==========================  ====================================

    The carry of Flax's LSTMs is (c, h), here it is (h, c). Flax's ConvLSTMCell has two biases and adds 1 to
    the forget gate at every step; here the bias is the sum of all three. Weights do not contain a merge_fn,
    strides, padding or ``residual=True``: Flax's defaults are assumed.

    Args:
        params: a mapping of NumPy or JAX arrays: ``variables`` or ``variables["params"]`` of linen,
            ``nnx.to_pure_dict(nnx.state(cell, nnx.Param))`` of nnx; or a list of them, one for each layer.
        activation: Flax's activation_fn, a function or one of the names in ``lstm_jax.cells.activations``;
            for several layers also a list with one entry for each. None: tanh. Required for a SimpleCell
            (Flax's default is tanh). With other functions than tanh and sigmoid, LSTMs and GRUs become
            ``LSTMVariant`` and ``GRUVariant``.
        recurrent_activation: Flax's gate_fn of an LSTM or GRU, likewise. None: sigmoid.
        input_shape: only for a ConvLSTMCell, and required there: (\*space, C); for a list that of the first
            layer.
        dtype: of the parameters; None: the promoted dtype of the arrays.

    Returns:
        ``(network, params)``, for ``lstm_jax.unroll(network, params, xs)``.

    Raises:
        ValueError: an entry is missing, unexpected or of the wrong shape (all are listed), the names are of
            no cell in the table, or an argument is missing or not used.

    >>> kernel, recurrent = {"kernel": np.ones((3, 2))}, {"kernel": np.ones((2, 2)), "bias": np.ones(2)}
    >>> weights = {f"i{gate}": kernel for gate in "ifgo"} | {f"h{gate}": recurrent for gate in "ifgo"}
    >>> cell, params = from_flax({"params": weights}, dtype="float32")
    >>> cell.input_size, cell.hidden_size, params.w_ih.shape
    (3, 2, (3, 8))
    """
    several = isinstance(params, (list, tuple))
    layers = list(params) if several else [params]
    options = Options(
        "from_flax",
        activation=activation,
        recurrent_activation=recurrent_activation,
        input_shape=input_shape,
    )
    faults = Faults("from_flax")
    unbuilt = [
        _read(faults, layer, options, index, f"layer {index}/" if several else "")
        for index, layer in enumerate(layers)
    ]
    faults.check(HINT)
    options.check(len(layers))
    networks, layer_params = build_layers(
        "from_flax", [layer for layer in unbuilt if layer], dtype, input_shape
    )
    return (Stack(tuple(networks)), tuple(layer_params)) if several else (networks[0], layer_params[0])


# --- in -----------------------------------------------------------------------------------------


def _inner(params: Any) -> Any:
    """The parameters of a cell inside ``{"params": ...}`` and Flax's RNN."""
    for _ in range(MAX_DEPTH):
        if isinstance(params, Mapping) and len(params) == 1 and set(params) <= {"params", "cell"}:
            (params,) = params.values()
    return params


def _read(faults: Faults, params: Any, options: Options, layer: int, where: str) -> UnbuiltLayer | None:
    """One layer."""
    params = _inner(params)
    if not isinstance(params, Mapping) or set(params) != set(DIRECTIONS):
        return _read_cell(Entries(faults, params, where), options, layer)
    entries = [Entries(faults, _inner(params[name]), f"{where}{name}/") for name in DIRECTIONS]
    return join_directions([_read_cell(own, options, layer) for own in entries])


def _read_cell(entries: Entries, options: Options, layer: int) -> UnbuiltLayer | None:
    """One cell. Its type is the one whose names are most similar to those of the entries."""
    found = {name.split("/")[0] for name in entries.names()}

    def likeness(cell: str) -> float:
        names = set(NAMES[cell])
        return len(names & found) / len(names | found)

    cell = max(NAMES, key=likeness)
    if likeness(cell) < 0.5 or cell not in _READERS:
        known = "; ".join(f"{name} ({' '.join(NAMES[name])})" for name in _READERS)
        unsupported = f", which are those of {cell}" if likeness(cell) == 1 else ""
        raise value_error(
            f"from_flax got {entries.where}{listing(sorted(found)) or 'no names'}{unsupported}",
            f"those of {known}",
            HINT,
        )
    return _READERS[cell](entries, options, layer)


def _hidden_size(entries: Entries, gates: str) -> int:
    """H, from both axes of the recurrent kernels and from the biases."""
    kernels = [(f"h{gate}/kernel", axis) for gate in gates for axis in (0, 1)]
    return entries.size(*kernels, *((f"{side}{gate}/bias", 0) for side in "ih" for gate in gates))


def _layer(
    cell_class: Any, arrays: dict[str, Any], D: int, H: int, gates: str, cell_options: Mapping[str, Any]
) -> UnbuiltLayer:
    """A layer of vectors, from arrays by parameter name; some have one array for each gate."""

    def build(arrays: dict[str, Any], dtype: np.dtype, input_shape: None) -> tuple[Any, Any]:
        fields = {n: join_gates(a, gates) if isinstance(a, dict) else a for n, a in arrays.items()}
        cell = make_cell(cell_class, D, H, param_dtype=dtype, **cell_options)
        record: Any = {RNN: RNNParams, GRU: GRUParams, LSTM: LSTMParams}[cell_class]
        return cell, params_for(cell, record(**fields))

    return UnbuiltLayer(arrays, build)


def _read_lstm(entries: Entries, options: Options, layer: int, forget: str = "if") -> UnbuiltLayer:
    inputs = {gate: forget if gate == "f" else f"i{gate}" for gate in "ifgo"}
    D = entries.size(*((f"{name}/kernel", 0) for name in inputs.values()))
    H = _hidden_size(entries, "ifgo")
    arrays = {
        "w_ih": {gate: entries.take(f"{name}/kernel", (D, H)) for gate, name in inputs.items()},
        "w_hh": {gate: entries.take(f"h{gate}/kernel", (H, H)) for gate in "ifgo"},
        "bias": {gate: entries.take(f"h{gate}/bias", (H,)) for gate in "ifgo"},
    }
    entries.done()
    return _layer(LSTM, arrays, D, H, "ifgo", options.activations(LSTM, "an LSTMCell", layer))


def _read_gru(entries: Entries, options: Options, layer: int) -> UnbuiltLayer:
    D = entries.size(*((f"i{gate}/kernel", 0) for gate in "rzn"))
    H = _hidden_size(entries, "rzn")
    arrays = {
        "w_ih": {gate: entries.take(f"i{gate}/kernel", (D, H)) for gate in "rzn"},
        "w_hh": {gate: entries.take(f"h{gate}/kernel", (H, H)) for gate in "rzn"},
        "bias": {gate: entries.take(f"i{gate}/bias", (H,)) for gate in "rzn"},
        "bias_hn": entries.take("hn/bias", (H,)),
    }
    entries.done()
    return _layer(GRU, arrays, D, H, "rzn", options.activations(GRU, "a GRUCell", layer))


def _read_simple(
    entries: Entries,
    options: Options,
    layer: int,
    names: tuple[str, str] = ("i", "h"),
    cell: str = "linen.SimpleCell",
) -> UnbuiltLayer:
    inputs, hidden = names
    D = entries.size((f"{inputs}/kernel", 0))
    H = entries.size((f"{hidden}/kernel", 0), (f"{hidden}/kernel", 1), (f"{inputs}/bias", 0))
    arrays = {
        "w_ih": entries.take(f"{inputs}/kernel", (D, H)),
        "w_hh": entries.take(f"{hidden}/kernel", (H, H)),
        "bias": entries.take(f"{inputs}/bias", (H,)),
    }
    entries.done()
    return _layer(RNN, arrays, D, H, "", options.activations(RNN, cell, layer))


def _read_nnx_dense(entries: Entries, options: Options, layer: int) -> UnbuiltLayer | None:
    """A cell with one kernel for all gates; the number of gates identifies the cell."""
    D, H = entries.size(("dense_i/kernel", 0)), entries.size(("dense_h/kernel", 0))
    columns = entries.size(*((f"dense_{side}/{leaf}", -1) for side in "ih" for leaf in ("kernel", "bias")))
    if not H or columns not in (H, 3 * H, 4 * H):
        entries.unreadable(
            "dense_h/kernel (H, H) of a SimpleCell, (H, 3H) of a GRUCell or (H, 4H) of an LSTM"
        )
        return None
    if columns == H:
        return _read_simple(entries, options, layer, ("dense_i", "dense_h"), "nnx.SimpleCell")
    cell_class, name, bias = (GRU, "a GRUCell", "i") if columns == 3 * H else (LSTM, "an LSTMCell", "h")
    arrays = {
        "w_ih": entries.take("dense_i/kernel", (D, columns)),
        "w_hh": entries.take("dense_h/kernel", (H, columns)),
        "bias": entries.take(f"dense_{bias}/bias", (columns,)),
    }
    entries.done()
    return _layer(cell_class, arrays, D, H, "", options.activations(cell_class, name, layer))


def _read_conv(entries: Entries, options: Options, layer: int) -> UnbuiltLayer | None:
    options.activations(ConvLSTM, "linen.ConvLSTMCell", layer)
    options.require("input_shape", "linen.ConvLSTMCell", "(height, width, channels)")
    return read_conv_lstm(entries, ("ih/kernel", "ih/bias"), ("hh/kernel", "hh/bias"))


_READERS: dict[str, Callable[[Entries, Options, int], UnbuiltLayer | None]] = {
    "linen.LSTMCell": _read_lstm,
    "linen.GRUCell": _read_gru,
    "linen.SimpleCell": _read_simple,
    "linen.ConvLSTMCell": _read_conv,
    "nnx.LSTMCell": partial(_read_lstm, forget="if_"),
    "nnx.OptimizedLSTMCell, GRUCell or SimpleCell": _read_nnx_dense,
}


# --- out ----------------------------------------------------------------------------------------


def to_flax(network: Any, params: Any, *, api: str, optimized: bool = False) -> Any:
    """The parameters of a Flax cell; the inverse of :func:`from_flax`, which has the table.

    The weights do not contain activations. Pass ``activation`` to Flax's cell as its activation_fn, and
    ``recurrent_activation`` as its gate_fn. Zeros are written where Flax's cell has a bias and the
    network has none. An nnx.GRUCell has no bias inside the reset gate's product, so it takes only
    parameters whose ``bias_hn`` is None. A ConvLSTMCell must have its default strides and padding; the bias
    of its hh subtracts the 1 that the cell adds to the forget gate. Both
    conversions are exact.

    Args:
        network: ``LSTM``, ``GRU``, ``RNN``, ``ConvLSTM``, an ``LSTMVariant`` or ``GRUVariant`` that differs
            in its activations only, ``Bidirectional`` or ``Stack`` of these.
        params: its parameters.
        api: ``"linen"`` or ``"nnx"``.
        optimized: for nnx's OptimizedLSTMCell instead of its LSTMCell; linen's two have the same names.

    Returns:
        For linen the value of ``{"params": ...}``, for nnx what ``nnx.update(cell, ...)`` takes; for a
        ``Bidirectional`` with the names of ``Bidirectional(RNN(cell), RNN(cell))``; for a ``Stack`` a list,
        one entry for each layer. Arrays are NumPy's or JAX's, as the parameters are.

    Raises:
        ValueError: Flax's cells lack an option of the network (all are listed), or the parameters do not fit.

    >>> import jax
    >>> cell = LSTM(input_size=3, hidden_size=2)
    >>> weights = to_flax(cell, cell.init(jax.random.key(0)), api="linen")
    >>> weights["if"]["kernel"].shape, weights["hf"]["bias"]
    ((3, 2), Array([1., 1.], dtype=float32))
    >>> to_flax(cell, cell.init(jax.random.key(0)), api="nnx", optimized=True)["dense_h"]["kernel"].shape
    (2, 8)
    """
    check_choice("to_flax", "api", api, ("linen", "nnx"))
    layers = flatten_layers(
        "to_flax",
        f"flax.{api}",
        network,
        params,
        cells=(LSTM, GRU, RNN, ConvLSTM) if api == "linen" else (LSTM, GRU, RNN),
        options={"activation": None, "recurrent_activation": None},
        two_cells=True,
    )
    written = []
    for layer in layers:
        own = [_write(direction, api, optimized) for direction in layer.directions]
        both = len(own) == 2
        written.append({n: {"cell": w} for n, w in zip(DIRECTIONS, own, strict=True)} if both else own[0])
    return written if isinstance(network, Stack) else written[0]


def _write(direction: Direction, api: str, optimized: bool) -> dict[str, Any]:
    """The parameters of one cell."""
    cell, fields = direction.cell, fields_of(direction)
    if isinstance(cell, ConvLSTM):
        convolutions = write_conv_lstm("to_flax", direction, "flax's ConvLSTMCell")
        return {name: {"kernel": kernel, "bias": bias} for name, (kernel, bias) in convolutions.items()}
    fields.setdefault("bias", zeros(fields["w_ih"].shape[-1:], fields["w_ih"]))
    inputs, hidden = {"kernel": fields["w_ih"]}, {"kernel": fields["w_hh"]}
    if isinstance(cell, RNN):
        names = ("i", "h") if api == "linen" else ("dense_i", "dense_h")
        return dict(zip(names, (inputs | {"bias": fields["bias"]}, hidden), strict=True))
    if isinstance(cell, (LSTM, LSTMVariant)):
        if api == "nnx" and optimized:
            return {"dense_i": inputs, "dense_h": hidden | {"bias": fields["bias"]}}
        w, r, b = (split_gates(fields[name], "ifgo") for name in ("w_ih", "w_hh", "bias"))
        keys = {gate: "if_" if gate == "f" and api == "nnx" else f"i{gate}" for gate in "ifgo"}
        written: dict[str, Any] = {keys[gate]: {"kernel": w[gate]} for gate in "ifgo"}
        return written | {f"h{gate}": {"kernel": r[gate], "bias": b[gate]} for gate in "ifgo"}
    if api == "nnx":
        if "bias_hn" in fields:
            raise value_error(
                f"to_flax got {direction.where}a GRU with bias_hn",
                "parameters without it, because nnx.GRUCell has no bias inside the reset gate's product",
                'Choose api="linen", or train with bias_hn=None: params._replace(bias_hn=None).',
            )
        return {"dense_i": inputs | {"bias": fields["bias"]}, "dense_h": hidden}
    w, r, b = (split_gates(fields[name], "rzn") for name in ("w_ih", "w_hh", "bias"))
    written = {f"i{gate}": {"kernel": w[gate], "bias": b[gate]} for gate in "rzn"}
    written |= {f"h{gate}": {"kernel": r[gate]} for gate in "rzn"}
    written["hn"]["bias"] = fields.get("bias_hn", zeros((cell.hidden_size,), fields["bias"]))
    return written
