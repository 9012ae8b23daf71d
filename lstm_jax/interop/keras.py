"""Conversion of weights from and to Keras' recurrent layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lstm_jax import (
    GRU,
    LSTM,
    RNN,
    ConvLSTM,
    ConvLSTMParams,
    GRUParams,
    GRUVariant,
    LSTMNorm,
    LSTMParams,
    LSTMVariantParams,
    RNNParams,
)
from lstm_jax._errors import listing, value_error
from lstm_jax._types import Array, DType
from lstm_jax.cells.activations import ACTIVATIONS
from lstm_jax.interop._entries import Entries, Faults, UnbuiltLayer, build_layers, flatten_mapping
from lstm_jax.interop._gates import (
    join_gates,
    negative_zeros,
    reorder_gates,
    split_gates,
    stack_rows,
    to_numpy,
)
from lstm_jax.interop._networks import (
    CELLS,
    Direction,
    Options,
    flatten_layers,
    join_directions,
    make_cell,
    params_for,
    stacked,
)


def leaky_relu(x: Array) -> Array:
    """Keras' ``leaky_relu``, with a slope of 0.2 below 0 (0.01 in ``jax.nn``)."""
    return jax.nn.leaky_relu(x, 0.2)


def gelu(x: Array) -> Array:
    """Keras' ``gelu``, with the exact error function (``jax.nn`` approximates it)."""
    return jax.nn.gelu(x, approximate=False)


#: Keras' activations by name. Two of these names mean other functions in ``jax.nn``.
KERAS_ACTIVATIONS = ACTIVATIONS | {"leaky_relu": leaky_relu, "gelu": gelu}
KERAS_ACTIVATIONS |= {"swish": jax.nn.silu, "hard_swish": jax.nn.hard_silu}
#: Keras' ``merge_mode``, and its name in ``lstm_jax.Bidirectional``.
MERGES = {"concat": "concat", "sum": "sum", "ave": "mean", "mul": "product"}
NAMES = ("kernel", "recurrent_kernel", "bias")
#: Variables of TensorFlow Addons' layer normalisations, in the order of ``get_weights()``.
NORMS = tuple(
    f"{norm}_norm/{name}" for norm in ("kernel", "recurrent", "state") for name in ("gamma", "beta")
)
#: The variables of one direction, by how many there are.
BY_COUNT = {2: NAMES[:2], 3: NAMES, 8: (*NAMES[:2], *NORMS), 9: (*NAMES, *NORMS)}
HINT = "Pass what get_weights() of one recurrent layer returns, or a list with one entry for each layer."


def from_keras(
    weights: Any,
    *,
    activation: Any = None,
    recurrent_activation: Any = None,
    reset_after: bool | None = None,
    merge: str | None = None,
    input_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    padding: str | None = None,
    dtype: DType | None = None,
) -> tuple[Any, Any]:
    """A network and its parameters from the weights of recurrent Keras layers.

    The type of cell, its sizes, the directions, biases and, for most GRUs, the form are read from shapes.
    Anything else is an argument.

    ===================================  ====================================================
    Keras                                lstm_jax
    ===================================  ====================================================
    ``kernel`` (D, 4H)                   ``w_ih``; gates i f c o are i f g o
    ``recurrent_kernel`` (H, 4H)         ``w_hh``
    ``bias`` (4H,)                       ``bias`` (a forget bias of 1 is part of it in both)
    ... of a GRU                         gates z r h, here r z n
    ... of a GRU, (2, 3H)                the sum for r and z; n keeps two, ``bias`` and ``bias_hn``
    ``ConvLSTM``: (*kernel, C, 4F)       the same
    ``forward_..``, ``backward_..``      ``BidirectionalParams``
    ``return_sequences`` etc.            not in the weights: ``unroll`` returns all outputs and the carry
    ===================================  ====================================================

    ``LayerNormLSTMCell`` of TensorFlow Addons becomes ``LSTMVariant(layer_norm="tfa")``, which has the
    cell's default ``norm_epsilon`` of 0.001:

    =============================================  ==========================================
    ``kernel_norm/gamma``, ``recurrent_norm/...``  ``norm.x``, ``norm.h``
    ``kernel_norm/beta``, ``recurrent_norm/beta``  added to ``bias``
    ``state_norm/gamma``, ``state_norm/beta``      ``norm.c``, ``norm.c_offset``
    =============================================  ==========================================

    Args:
        weights: for one layer what ``layer.get_weights()`` returns, a list of 2 or 3 arrays (8 or 9 with
            layer normalisation; twice as many for both directions of a ``Bidirectional``), or a mapping with
            the names above, the directions under ``forward`` and ``backward``; also
            ``{w.path: w.numpy() for w in layer.weights}``. For several layers a list of these, one for each
            layer, which gives a ``Stack``.
        activation: a function, or its name in Keras; for several layers also a list with one entry for each.
            None: tanh (Keras' ``activation=None`` is ``"linear"`` here). Required for ``SimpleRNN``. With
            other functions than tanh and sigmoid, LSTMs and GRUs become ``LSTMVariant`` and ``GRUVariant``.
        recurrent_activation: the same for the gates of LSTMs and GRUs. None: sigmoid. In Keras 2
            ``"hard_sigmoid"`` is ``clip(0.2 x + 0.5, 0, 1)``; here it is that of Keras 3,
            ``relu6(x + 3) / 6``.
        reset_after: only for a GRU without bias, and required there. Keras' default is True.
        merge: only for a ``Bidirectional``, and required there: Keras' ``merge_mode``, ``"concat"`` (its
            default), ``"sum"``, ``"ave"`` or ``"mul"``.
        input_shape: only for a ``ConvLSTM``, and required there: (*space, C), channels last.
        strides: of a ``ConvLSTM``'s input convolution; None: all 1, as in Keras.
        padding: only for a ``ConvLSTM``, and required there: ``"valid"`` (Keras' default) or ``"same"``.
        dtype: of the parameters; None: the promoted dtype of the arrays.

    Returns:
        ``(network, params)``; all leaves are JAX arrays that share no memory with the weights.

    Raises:
        ValueError: entries are missing, unexpected or of the wrong shape (all are listed); an argument is
            missing, or no layer uses it; or a ``ConvLSTM`` has other activations than tanh and sigmoid.

    >>> weights = [np.ones((4, 9)), np.ones((3, 9)), np.ones((2, 9))]
    >>> cell, params = from_keras(weights, dtype="float32")
    >>> type(cell).__name__, cell.hidden_size, float(params.bias[0]), float(params.bias[-1])
    ('GRU', 3, 2.0, 1.0)
    >>> from_keras(weights, recurrent_activation="hard_sigmoid", dtype="float32")[0]
    GRUVariant(input_size=4, hidden_size=3, recurrent_activation=hard_sigmoid)
    >>> above = [np.ones((3, 20)), np.ones((5, 20)), np.ones(20)]
    >>> network, params = from_keras([weights, above], dtype="float32")
    >>> [type(cell).__name__ for cell in network.layers]
    ['GRU', 'LSTM']
    """
    several = isinstance(weights, (list, tuple)) and any(
        isinstance(entry, (Mapping, list, tuple)) for entry in weights
    )
    given = {"activation": activation, "recurrent_activation": recurrent_activation}
    given |= {"reset_after": reset_after, "merge": merge}
    given |= {"input_shape": input_shape, "strides": strides, "padding": padding}
    options = Options("from_keras", KERAS_ACTIVATIONS, **given)
    faults = Faults("from_keras")
    own = list(weights) if several else [weights]
    layers = [
        _read(faults, w, options, index, f"layer {index}/" if several else "") for index, w in enumerate(own)
    ]
    faults.check(HINT)
    options.check(len(own))
    return stacked(*build_layers("from_keras", [layer for layer in layers if layer], dtype, input_shape))


def _read(faults: Faults, weights: Any, options: Options, index: int, where: str) -> UnbuiltLayer | None:
    """One layer."""
    directions = _by_direction(weights, where)
    merge = options.get("merge") if len(directions) == 2 else "concat"
    if merge not in MERGES:
        options.error(
            f"from_keras got merge={merge!r} with both directions of a Bidirectional",
            f"its merge_mode, one of {', '.join(map(repr, MERGES))}",
            "Keras' default is merge='concat'.",
        )
    entries = [Entries(faults, arrays, f"{where}{name}") for name, arrays in directions.items()]
    bias_ndim = max(len(own.shape("bias")) for own in entries)
    layers = [_read_direction(own, bias_ndim, options, index) for own in entries]
    return join_directions(layers, MERGES.get(merge, "concat"))


def _by_direction(weights: Any, where: str) -> dict[str, dict[str, Any]]:
    """The arrays of one layer by the names of its variables, under "", or "forward/" and "backward/"."""
    if isinstance(weights, Mapping):
        return _by_last_name(flatten_mapping("from_keras", weights))
    count = len(weights) if isinstance(weights, (list, tuple)) else 0
    if count in BY_COUNT:
        return {"": dict(zip(BY_COUNT[count], weights, strict=True))}
    if count % 2 == 0 and count // 2 in BY_COUNT:
        names = BY_COUNT[count // 2]
        halves = (weights[: count // 2], weights[count // 2 :])
        return {
            direction: dict(zip(names, half, strict=True))
            for direction, half in zip(("forward/", "backward/"), halves, strict=True)
        }
    got = f"{count} arrays" if isinstance(weights, (list, tuple)) else type(weights).__name__
    raise value_error(
        f"from_keras got {got} as the weights{f' of {where[:-1]}' if where else ''}",
        "2 or 3 arrays (kernel, recurrent_kernel, bias), 8 or 9 with layer normalisation, twice as many of "
        "a Bidirectional, or a mapping",
        HINT,
    )


def _by_last_name(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``bidirectional/forward_lstm/lstm_cell/kernel`` under ``forward/`` as ``kernel``."""
    found: dict[str, dict[str, Any]] = {}
    for path, array in flat.items():
        *above, last = path.removesuffix(":0").split("/")
        direction = re.findall(r"(?:^|/)(forward|backward)(?=_|/|$)", "/".join(above))
        name = last if last in NAMES else "/".join([*above[-1:], last])
        name = name if name in NAMES or name in NORMS else path
        variables = found.setdefault(f"{direction[0]}/" if direction else "", {})
        if name in variables:
            raise value_error(
                f"from_keras got more than one {name} in one mapping, for instance {path}",
                "the weights of one layer",
                "Pass several layers as a list, one mapping for each: names do not give their order.",
            )
        variables[name] = array
    if len(found) > 1 and "" in found:
        raise value_error(
            f"from_keras got {listing(found[''])} in addition to the weights of two directions",
            "the weights of one layer",
            "Pass several layers as a list, one mapping for each.",
        )
    if "" in found or not found:
        return found or {"": {}}
    return {direction: found.get(direction, {}) for direction in ("forward/", "backward/")}


def _is_recurrent(shape: tuple[int, ...]) -> bool:
    """Whether this is the shape of a cell's recurrent kernel."""
    if not 2 <= len(shape) <= 5 or 0 in shape:
        return False
    *space, H, columns = shape
    return columns == 4 * H if space else columns in [gates * H for gates in CELLS]


def _read_direction(entries: Entries, bias_ndim: int, options: Options, index: int) -> UnbuiltLayer | None:
    """One direction of one layer. ``bias_ndim`` is the rank of the bias, 0 without a bias."""
    recurrent = entries.shape("recurrent_kernel")
    if not _is_recurrent(recurrent):
        entries.unreadable(
            "recurrent_kernel (H, H) in SimpleRNN, (H, 3H) in GRU, (H, 4H) in LSTM or (*kernel, F, 4F)"
        )
        return None
    kernel_size, (H, columns) = recurrent[:-2], recurrent[-2:]
    cell_class: Any = ConvLSTM if kernel_size else CELLS[columns // H]
    D = entries.size(("kernel", -2)) if len(entries.shape("kernel")) == len(recurrent) else 0
    use_bias = bias_ndim > 0
    layer_norm = any(name in entries for name in NORMS)
    cell_name = {RNN: "a SimpleRNN", GRU: "a GRU", LSTM: "an LSTM", ConvLSTM: "a ConvLSTM"}[cell_class]
    cell_options: dict[str, Any] = options.activations(cell_class, cell_name, index)
    if cell_class is ConvLSTM:
        cell_options |= {"strides": options.get("strides"), "padding": options.get("padding")}
        options.get("input_shape")
    if cell_class is GRU:
        cell_options["reset_after"] = _reset_after(bias_ndim, options)
    two_biases = cell_options.get("reset_after", False)
    shapes: dict[str, tuple[int, ...]] = {"kernel": (*kernel_size, D, columns), "recurrent_kernel": recurrent}
    if use_bias:
        shapes["bias"] = (2, columns) if two_biases else (columns,)
    if layer_norm and cell_class is LSTM:
        cell_options["layer_norm"] = "tfa"
        shapes |= {name: (H if name.startswith("state") else columns,) for name in NORMS}
    arrays = {name: entries.take(name, shape) for name, shape in shapes.items()}
    entries.done()

    def build(a: dict[str, Any], dtype: np.dtype, input_shape: Any) -> tuple[Any, Any]:
        if cell_class is ConvLSTM:
            return _conv_lstm(a, D, H, kernel_size, input_shape, dtype, cell_options)
        norms = layer_norm and cell_class is LSTM
        cell = make_cell(cell_class, D, H, use_bias=use_bias or norms, param_dtype=dtype, **cell_options)
        return cell, _layer_norm_params(a) if norms else params_for(cell, _params(cell_class, a))

    return UnbuiltLayer(arrays, build)


def _reset_after(bias_ndim: int, options: Options) -> bool:
    """The form of a GRU, from its bias or, without one, from the argument."""
    if bias_ndim:
        return bias_ndim == 2
    value = options.get("reset_after")
    if not isinstance(value, bool):
        options.error(
            f"from_keras got reset_after={value!r} with a GRU without bias",
            "True or False, which the weights do not determine",
            "Keras' default is reset_after=True.",
        )
    return bool(value)


def _conv_lstm(
    a: Mapping[str, Any], C: int, F: int, kernel: tuple[int, ...], shape: Any, dtype: np.dtype, window: Any
) -> tuple[Any, Any]:
    padding, strides = window["padding"], window["strides"]
    if shape is None or not isinstance(padding, str) or padding.upper() not in ("SAME", "VALID"):
        raise value_error(
            f"from_keras got input_shape={shape!r}, padding={padding!r} with weights of a ConvLSTM",
            "both, because weights do not determine them: input_shape (*space, C), padding 'valid' or 'same'",
            "Keras' default padding is 'valid'.",
        )
    if not isinstance(shape, (tuple, list)) or not shape or shape[-1] != C:
        raise value_error(
            f"from_keras got input_shape={shape!r} with a kernel that reads {C} channels",
            f"input_shape (*space, {C})",
            "Put the channels last.",
        )
    cell = ConvLSTM(
        tuple(shape),
        F,
        kernel,
        strides=strides,
        padding=padding.upper(),
        use_bias="bias" in a,
        param_dtype=dtype,
    )
    return cell, ConvLSTMParams(a["kernel"], a["recurrent_kernel"], a.get("bias"))


def _params(cell_class: Any, a: Mapping[str, Any]) -> Any:
    w_ih, w_hh, bias = a["kernel"], a["recurrent_kernel"], a.get("bias")
    if cell_class is not GRU:
        return (RNNParams if cell_class is RNN else LSTMParams)(w_ih, w_hh, bias)
    w_ih, w_hh = reorder_gates(w_ih, "zrn", "rzn"), reorder_gates(w_hh, "zrn", "rzn")
    if bias is None:
        return GRUParams(w_ih, w_hh)
    if bias.ndim == 1:
        return GRUParams(w_ih, w_hh, reorder_gates(bias, "zrn", "rzn"))
    first, second = split_gates(bias[0], "zrn"), split_gates(bias[1], "zrn")
    gates = {"r": first["r"] + second["r"], "z": first["z"] + second["z"], "n": first["n"]}
    return GRUParams(w_ih, w_hh, join_gates(gates, "rzn"), second["n"])


def _layer_norm_params(a: Mapping[str, Any]) -> LSTMVariantParams:
    x, x_beta, h, h_beta, c, c_beta = (a[name] for name in NORMS)
    bias = x_beta + h_beta if "bias" not in a else a["bias"] + (x_beta + h_beta)
    return LSTMVariantParams(a["kernel"], a["recurrent_kernel"], bias, norm=LSTMNorm(x, h, c, c_beta))


def to_keras(network: Any, params: Any) -> list[Any]:
    """What ``set_weights`` of a Keras layer takes, from a network and its parameters.

    The inverse of :func:`from_keras`, bit for bit. For a cell, the result is the list of its layer; for a
    ``Bidirectional``, that of ``keras.layers.Bidirectional``; for a ``Stack``, one list for each layer. Of
    the two biases of a GRU with ``reset_after=True`` the second is 0 except for ``bias_hn``: the outputs are
    the same, but training differs, because Keras updates both.

    The weights do not determine the whole layer. Construct the Keras layer with the cell's ``activation`` and
    ``recurrent_activation``, ``reset_after``, strides and padding, and a ``merge_mode`` as the network's.

    Args:
        network: an ``RNN``, ``LSTM``, ``GRU``, ``ConvLSTM``, a variant of these that differs in its
            activations or in ``reset_after`` only, a ``Bidirectional`` of one, or a ``Stack`` of these.
        params: its parameters.

    Returns:
        A list of NumPy arrays in the parameters' dtype, for a ``Stack`` a list of such lists (under
        ``jax.jit`` or ``jax.grad`` of traced arrays).

    Raises:
        ValueError: Keras cannot represent the network: projections, peepholes, coupled gates, ablations,
            heads, clips, layer normalisation, learned initial carries, regularised cells, residual or skip
            connections, a readout inside. Or parameters do not fit. The message lists all of these.

    >>> import lstm_jax
    >>> cell = lstm_jax.GRU(input_size=3, hidden_size=2)
    >>> [array.shape for array in to_keras(cell, cell.init(jax.random.key(0)))]
    [(3, 6), (2, 6), (2, 6)]
    """
    layers = flatten_layers(
        "to_keras",
        "Keras",
        network,
        params,
        cells=(RNN, LSTM, GRU, ConvLSTM),
        options={"activation": None, "recurrent_activation": None, "reset_after": None},
        merges=tuple(MERGES.values()),
        dropout=True,
    )
    lists = [[array for direction in layer.directions for array in _write(direction)] for layer in layers]
    return lists if hasattr(network, "layers") else lists[0]


def _write(direction: Direction) -> list[Any]:
    cell, params = direction.cell, to_numpy(direction.params)
    arrays = [params.w_ih, params.w_hh] + ([] if params.bias is None else [params.bias])
    if not isinstance(cell, (GRU, GRUVariant)):
        return arrays
    arrays = [reorder_gates(array, "rzn", "zrn") for array in arrays]
    if params.bias is not None and getattr(cell, "reset_after", True):
        gates = split_gates(negative_zeros(params.bias), "zrn")
        gates |= {} if params.bias_hn is None else {"n": params.bias_hn}
        arrays[2] = stack_rows(arrays[2], join_gates(gates, "zrn"))
    return arrays
