"""Conversion of weights from and to Haiku's recurrent cores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lstm_jax import (
    GRU,
    LSTM,
    RNN,
    ConvLSTM,
    GRUVariant,
    GRUVariantParams,
    LSTMParams,
    LSTMVariant,
    RNNParams,
    Stack,
)
from lstm_jax._errors import listing, value_error
from lstm_jax._types import DType
from lstm_jax.cells._base import short_value
from lstm_jax.interop._convolutions import read_conv_lstm, write_conv_lstm
from lstm_jax.interop._entries import Entries, Faults, UnbuiltLayer, build_layers, flatten_mapping
from lstm_jax.interop._gates import add_to_gate, join_gates, reorder_gates, split_gates, zeros
from lstm_jax.interop._networks import Direction, Options, fields_of, flatten_layers

#: The last part of a module's name below a core.
PARTS = ("linear", "linear_1", "input_to_hidden", "hidden_to_hidden")
HINT = "Give the parameters of one core of Haiku, or of several with layers=(...), their names in order."


def from_haiku(
    params: Mapping[str, Any],
    *,
    layers: Sequence[str] | None = None,
    input_shape: tuple[int, ...] | None = None,
    dtype: DType | None = None,
) -> tuple[Any, Any]:
    r"""A cell and its parameters from the parameters of a recurrent Haiku core.

    ============================  ====================================  ===================================
    Haiku                         its modules and arrays                lstm_jax
    ============================  ====================================  ===================================
    ``LSTM``                      lstm/linear: w, b                     ``LSTM``
    ``GRU``                       gru: w_i, w_h, b                      ``GRUVariant(reset_after=False)``
    ``VanillaRNN``                vanilla_rnn/linear: w, b;             ``RNN(activation=jax.nn.relu)``
                                  vanilla_rnn/linear_1: w, optional b
    ``Conv1DLSTM``, ``2D``, 3D    conv1_dlstm/input_to_hidden: w, b;    ``ConvLSTM``; give ``input_shape``
                                  conv1_dlstm/hidden_to_hidden: w, b
    several (``DeepRNN``)         all of them; give ``layers``          ``Stack``
    ============================  ====================================  ===================================

    Haiku's LSTM has one w with rows [x; h] and gates i, g, f, o, and adds 1 to the forget gate at every
    step. Here the 1 is added to the bias, and rounded once. Haiku's GRU has gates z, r, a. Its z is the
    weight of the new value, here z is the weight of the old one, so these columns change their sign. Two
    biases are added. The state of Haiku's LSTM is (h, c), as here.

    Args:
        params: a mapping of module names, with any prefix, to mappings of NumPy or JAX arrays; or the arrays
            of one LSTM's ``linear`` or of one GRU.
        layers: for a stack the names of its cores from the first to the last, for instance
            ``("lstm", "lstm_1")``, because the mapping does not give their order.
        input_shape: only for a convolutional core, and required there: (\*space, C); for a stack that of its
            first layer.
        dtype: of the parameters; None: the promoted dtype of the arrays.

    Returns:
        ``(network, params)``, for ``lstm_jax.unroll(network, params, xs)``.

    Raises:
        ValueError: an entry is missing, unexpected or of the wrong shape (all are listed), the names are of
            no core in the table, or an argument is missing or not used.

    >>> weights = {"lstm/linear": {"w": np.ones((3 + 2, 8)), "b": np.zeros(8)}}
    >>> cell, params = from_haiku(weights, dtype="float32")
    >>> cell.input_size, cell.hidden_size, params.bias.tolist()
    (3, 2, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    """
    cores = _cores(params)
    if layers is None and len(cores) > 1:
        raise value_error(
            f"from_haiku got the cores {listing(map(repr, cores))} in no order",
            "one core, or layers",
            "Pass layers=('lstm', 'lstm_1'), the names of the cores in the order of the network, and only "
            "the parameters of recurrent cores.",
        )
    several = layers is not None
    names = list(cores) or [""] if layers is None else layers
    if several and (isinstance(names, str) or not names or sorted(map(str, names)) != sorted(cores)):
        raise value_error(
            f"from_haiku got layers={names!r} and the cores {listing(map(repr, cores))}",
            "the name of each core once",
            "Pass only the parameters of the stack's layers.",
        )
    options, faults = Options("from_haiku", input_shape=input_shape), Faults("from_haiku")
    unbuilt = [_read(faults, cores.get(name, {}), options, f"{name}/" if several else "") for name in names]
    faults.check(HINT)
    options.check(len(unbuilt))
    networks, layer_params = build_layers(
        "from_haiku", [layer for layer in unbuilt if layer], dtype, input_shape
    )
    return (Stack(tuple(networks)), tuple(layer_params)) if several else (networks[0], layer_params[0])


# --- in -----------------------------------------------------------------------------------------


def _cores(params: Any) -> dict[str, dict[str, Any]]:
    """The arrays of each core, by the core's name: ``{"lstm": {"linear/w": ...}}``."""
    flat = flatten_mapping("from_haiku", params)
    if {"w_i", "w_h"} & set(flat):
        return {"gru": flat}
    if {"w", "b"} & set(flat):
        return {"lstm": {f"linear/{name}": array for name, array in flat.items()}}
    outside = [path for path in flat if "/" not in path]
    if outside:
        raise value_error(
            f"from_haiku got {listing(outside)} outside of any module",
            "the names of modules to mappings of arrays",
            HINT,
        )
    cores: dict[str, dict[str, Any]] = {}
    for path, array in flat.items():
        core, _, name = path.rpartition("/")
        above, _, part = core.rpartition("/")
        if part in PARTS:
            core, name = above, f"{part}/{name}"
        cores.setdefault(core, {})[name] = array
    return cores


def _read(faults: Faults, arrays: Mapping[str, Any], options: Options, where: str) -> UnbuiltLayer | None:
    entries = Entries(faults, arrays, where)
    parts = {name.split("/")[0] for name in arrays}
    if parts & set(PARTS[2:]):
        options.require("input_shape", "a convolutional core", "(height, width, channels)")
        inputs, hidden = ((f"{part}/w", f"{part}/b") for part in PARTS[2:])
        return read_conv_lstm(entries, inputs, hidden)
    if {"w_i", "w_h"} & parts:
        return _read_gru(entries)
    if "linear_1" in parts:
        return _read_rnn(entries)
    if "linear" in parts:
        return _read_lstm(entries)
    raise value_error(
        f"from_haiku got {where}{listing(entries.names()) or 'no names'}",
        "the names of LSTM (linear/w), GRU (w_i, w_h), VanillaRNN (linear/w, linear_1/w) or "
        "Conv1DLSTM, Conv2DLSTM, Conv3DLSTM (input_to_hidden/w, hidden_to_hidden/w)",
        HINT,
    )


def _read_lstm(entries: Entries) -> UnbuiltLayer | None:
    columns = entries.size(("linear/w", 1), ("linear/b", 0))
    rows = entries.size(("linear/w", 0))
    H = columns // 4
    if columns % 4 or not H or 0 < rows <= H:
        entries.unreadable("linear/w (D + H, 4H) and linear/b (4H,)")
        return None
    arrays = {"w": entries.take("linear/w", (rows, columns)), "b": entries.take("linear/b", (columns,))}
    entries.done()

    def build(arrays: dict[str, Any], dtype: np.dtype, input_shape: None) -> tuple[Any, Any]:
        w = reorder_gates(arrays["w"], "igfo", "ifgo")
        b = reorder_gates(add_to_gate(arrays["b"], "igfo", "f", 1), "igfo", "ifgo")
        return LSTM(rows - H, H, param_dtype=dtype), LSTMParams(w[: rows - H], w[rows - H :], b)

    return UnbuiltLayer(arrays, build)


def _read_gru(entries: Entries) -> UnbuiltLayer:
    D, H = entries.size(("w_i", 0)), entries.size(("w_h", 0))
    arrays = {
        "w_ih": entries.take("w_i", (D, 3 * H)),
        "w_hh": entries.take("w_h", (H, 3 * H)),
        "bias": entries.take("b", (3 * H,)),
    }
    entries.done()

    def build(arrays: dict[str, Any], dtype: np.dtype, input_shape: None) -> tuple[Any, Any]:
        fields = {name: _convert_gru(array, "zrn", "rzn") for name, array in arrays.items()}
        return GRUVariant(D, H, reset_after=False, param_dtype=dtype), GRUVariantParams(**fields)

    return UnbuiltLayer(arrays, build)


def _convert_gru(array: Any, given: str, wanted: str) -> Any:
    """Reorder the gates, and negate z, which weights the new value in Haiku: sigmoid(-z) = 1 - sigmoid(z)."""
    gates = split_gates(array, given)
    return join_gates(gates | {"z": -gates["z"]}, wanted)


def _read_rnn(entries: Entries) -> UnbuiltLayer:
    D = entries.size(("linear/w", 0))
    H = entries.size(("linear_1/w", 0), ("linear_1/w", 1), ("linear/w", 1), ("linear/b", 0))
    shapes: dict[str, tuple[int, ...]] = {"linear/w": (D, H), "linear/b": (H,), "linear_1/w": (H, H)}
    if "linear_1/b" in entries:
        shapes["linear_1/b"] = (H,)
    arrays = {name: entries.take(name, shape) for name, shape in shapes.items()}
    entries.done()

    def build(arrays: dict[str, Any], dtype: np.dtype, input_shape: None) -> tuple[Any, Any]:
        bias = arrays["linear/b"]
        bias = bias + arrays["linear_1/b"] if "linear_1/b" in arrays else bias
        params = RNNParams(arrays["linear/w"], arrays["linear_1/w"], bias)
        return RNN(D, H, activation=jax.nn.relu, param_dtype=dtype), params

    return UnbuiltLayer(arrays, build)


# --- out ----------------------------------------------------------------------------------------


def to_haiku(network: Any, params: Any, *, scope: str = "") -> dict[str, dict[str, Any]]:
    """The parameters of a Haiku core; the inverse of :func:`from_haiku`, which has the table.

    Haiku has one GRU, which resets h before the product, and one simple network, whose activation is
    ``jax.nn.relu``. Its gated cores have tanh and sigmoid only.

    The conversions are exact, with one exception. Haiku's LSTM adds 1 to the forget gate, so its bias is
    b_f - 1. Where b_f is 0.5 or more (``init`` gives 1) this is exact, and the way back returns b_f.
    Elsewhere it is the nearest float, off by at most half a unit in the last place of b_f - 1 (6e-8 in
    float32 for b_f between -1 and 0.5), as much as Haiku's own addition rounds at every step. The
    convolutional core has a second bias, which holds the -1.

    Args:
        network: ``LSTM``, ``GRUVariant(reset_after=False)``, ``RNN(activation=jax.nn.relu)``,
            ``ConvLSTM``, or a ``Stack`` of these.
        params: its parameters.
        scope: the name of the module around it, for instance ``"agent/~"``.

    Returns:
        ``{module: {name: array}}`` with the names that Haiku gives: lstm, then lstm_1, and so on. Arrays are
        NumPy's or JAX's, as the parameters are.

    Raises:
        ValueError: Haiku's cores lack an option of the network (all are listed), or the parameters do not
            fit.

    >>> cell = LSTM(input_size=3, hidden_size=2)
    >>> weights = to_haiku(cell, cell.init(jax.random.key(0)), scope="agent/~")
    >>> list(weights), weights["agent/~/lstm/linear"]["b"].tolist()
    (['agent/~/lstm/linear'], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    """
    layers = flatten_layers(
        "to_haiku",
        "haiku",
        network,
        params,
        cells=(LSTM, GRU, RNN, ConvLSTM),
        options={"reset_after": (False,), (RNN, "activation"): None},
        merges=(),
    )
    written: dict[str, dict[str, Any]] = {}
    seen: Counter[str] = Counter()
    for layer in layers:
        name, modules = _write(layer.directions[0])
        core = f"{scope}/" * bool(scope) + name + f"_{seen[name]}" * bool(seen[name])
        seen[name] += 1
        written |= {f"{core}/{part}" if part else core: arrays for part, arrays in modules.items()}
    return written


def _write(direction: Direction) -> tuple[str, dict[str, Any]]:
    """The name of a core, and its modules."""
    cell, fields = direction.cell, fields_of(direction)
    if isinstance(cell, ConvLSTM):
        both = write_conv_lstm("to_haiku", direction, "hk.Conv2DLSTM").values()
        modules = {part: {"w": w, "b": b} for part, (w, b) in zip(PARTS[2:], both, strict=True)}
        return f"conv{len(cell.kernel_size)}_dlstm", modules
    fields.setdefault("bias", zeros(fields["w_ih"].shape[-1:], fields["w_ih"]))
    w_ih, w_hh, bias = (fields[name] for name in ("w_ih", "w_hh", "bias"))
    if isinstance(cell, (LSTM, LSTMVariant)):
        rows = join_gates({"x": w_ih.T, "h": w_hh.T}, "xh").T
        bias = add_to_gate(bias, "ifgo", "f", -1)
        weights = {"w": reorder_gates(rows, "ifgo", "igfo"), "b": reorder_gates(bias, "ifgo", "igfo")}
        return "lstm", {"linear": weights}
    if isinstance(cell, RNN):
        if cell.activation is not jax.nn.relu:
            raise value_error(
                f"to_haiku got {direction.where}RNN(activation={short_value(cell.activation)})",
                "RNN(activation=jax.nn.relu), because hk.VanillaRNN has no other",
                "Call lstm_jax.rnn_step inside your Haiku module instead.",
            )
        second = {"w": w_hh, "b": zeros(bias.shape, bias)}
        return "vanilla_rnn", {"linear": {"w": w_ih, "b": bias}, "linear_1": second}
    if getattr(cell, "reset_after", True):
        raise value_error(
            f"to_haiku got {direction.where}{type(cell).__name__}, which computes r * (h R_n + b_hn)",
            "GRUVariant(reset_after=False), because hk.GRU resets h before the product, (r * h) R_n",
            "The weights of one form mean something else in the other: train with reset_after=False, "
            "or call lstm_jax.gru_step inside your Haiku module.",
        )
    arrays = zip(("w_i", "w_h", "b"), (w_ih, w_hh, bias), strict=True)
    return "gru", {"": {name: _convert_gru(array, "rzn", "zrn") for name, array in arrays}}
