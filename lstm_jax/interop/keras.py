"""Weights of Keras' recurrent layers, in and out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lstm_jax import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    BidirectionalParams,
    ConvLSTM,
    ConvLSTMParams,
    GRUParams,
    GRUVariant,
    LSTMParams,
    RNNParams,
)
from lstm_jax._errors import value_error
from lstm_jax._types import DType
from lstm_jax.interop._arrays import cast, common_dtype, join, negative_zeros, ours, parts, theirs
from lstm_jax.interop._entries import Entries
from lstm_jax.interop._networks import (
    GATES,
    activation_of,
    flatten_layers,
    make_cell,
    params_for,
    stacked,
)

#: Keras' ``merge_mode``, and what it is called here.
MERGES = {"concat": "concat", "sum": "sum", "ave": "mean", "mul": "product"}
NAMES = ("kernel", "recurrent_kernel", "bias")
_HINT = "Pass what get_weights() of one recurrent layer returns, or a list with one entry a layer."


def from_keras(
    weights: Any,
    *,
    activation: Any = None,
    reset_after: bool | None = None,
    merge: str | None = None,
    input_shape: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    padding: str | None = None,
    dtype: DType | None = None,
) -> tuple[Any, Any]:
    """A network and its parameters from the weights of recurrent Keras layers.

    Shapes tell the kind of cell, its sizes, the directions, whether there are biases, and of most
    GRUs the form. What they do not tell is asked for. Activations of gated cells are taken to be
    Keras' own (tanh and sigmoid).

    ==================================  ====================================================
    Keras                               here
    ==================================  ====================================================
    ``kernel`` (D, 4H)                  ``w_ih``; gates i f c o are i f g o
    ``recurrent_kernel`` (H, 4H)        ``w_hh``
    ``bias`` (4H,)                      ``bias`` (a forget bias of 1 is part of it in both)
    ... of a GRU                        gates z r h, here r z n
    ... of a GRU, (2, 3H)               the sum for r and z; n keeps two, ``bias`` and ``bias_hn``
    ``ConvLSTM``: (*kernel, C, 4F)      as they are
    ``forward_..``, ``backward_..``     ``BidirectionalParams``
    ``return_sequences`` and the like   not in the weights: ``unroll`` gives all outputs and the carry
    ==================================  ====================================================

    Args:
        weights: of one layer what ``layer.get_weights()`` returns, a list of 2 or 3 arrays (both
            directions of a ``Bidirectional``: 4 or 6), or a mapping with the names above, the
            directions under ``forward`` and ``backward``; also ``{w.path: w.numpy() for w in
            layer.weights}``. Of several layers a list of these, one a layer, which gives a ``Stack``.
        activation: of ``SimpleRNN`` alone, and needed there: ``"tanh"``, ``"relu"`` or a function.
        reset_after: of a GRU without bias alone, and needed there; a bias tells it. Keras' own is True.
        merge: of ``Bidirectional`` alone, and needed there: Keras' ``merge_mode``, ``"concat"`` (its
            default), ``"sum"``, ``"ave"`` or ``"mul"``.
        input_shape: of a ``ConvLSTM`` alone, and needed there: (*space, C), channels last.
        strides: of a ``ConvLSTM``'s input convolution; None: all 1, as in Keras.
        padding: of a ``ConvLSTM`` alone, and needed there: ``"valid"`` (Keras' default) or ``"same"``.
        dtype: of the parameters; None: the arrays' own.

    Returns:
        ``(network, params)``; all leaves are jax arrays with memory of their own.

    Raises:
        ValueError: with all entries that are missing, unexpected or misshapen; or an option is missing
            or has nothing to say.

    >>> import numpy as np
    >>> weights = [np.ones((4, 9)), np.ones((3, 9)), np.ones((2, 9))]
    >>> cell, params = from_keras(weights, dtype="float32")
    >>> type(cell).__name__, cell.hidden_size, float(params.bias[0]), float(params.bias[-1])
    ('GRU', 3, 2.0, 1.0)
    >>> above = [np.ones((3, 20)), np.ones((5, 20)), np.ones(20)]
    >>> network, params = from_keras([weights, above], dtype="float32")
    >>> [type(cell).__name__ for cell in network.layers]
    ['GRU', 'LSTM']
    """
    several = isinstance(weights, (list, tuple)) and any(_is_layer(entry) for entry in weights)
    each = list(weights) if several else [weights]
    named = {
        f"layer {index}" if several else "": _by_name(own, f" of layer {index}" if several else "")
        for index, own in enumerate(each)
    }
    entries = Entries("from_keras", named if several else named[""])
    given = {"activation": activation, "reset_after": reset_after, "merge": merge}
    given |= {"input_shape": input_shape, "strides": strides, "padding": padding}
    layers = [_Layer(entries, f"{name}/" if name else "", given) for name in named]
    entries.done(_HINT)
    used = set().union(*(layer.uses for layer in layers))
    idle = [name for name, value in given.items() if value is not None and name not in used]
    if idle:
        raise value_error(
            f"from_keras got {', '.join(f'{name}={given[name]!r}' for name in idle)}",
            "only options which these weights leave open",
            "Leave out: " + ", ".join(idle) + ".",
        )
    dtype = common_dtype("from_keras", (a for layer in layers for a in layer.arrays()), dtype)
    networks: list[Any] = []
    for layer in layers:
        networks.append(layer.network(dtype, given, networks))
    network, params = stacked(networks, [layer.params(dtype) for layer in layers])
    return network, ours(params)


def _is_layer(entry: Any) -> bool:
    return isinstance(entry, (Mapping, list, tuple))


def _by_name(weights: Any, where: str) -> dict[str, Any]:
    """The arrays of one layer by the names of its variables, those of two directions one deeper."""
    if isinstance(weights, Mapping):
        return _by_last_name(Entries("from_keras", weights).left)
    if not isinstance(weights, (list, tuple)) or len(weights) not in (2, 3, 4, 6):
        got = f"{len(weights)} arrays" if isinstance(weights, (list, tuple)) else type(weights).__name__
        raise value_error(
            f"from_keras got {got} as the weights{where}",
            "2 or 3 arrays (kernel, recurrent_kernel, bias), 4 or 6 of a Bidirectional, or a mapping",
            _HINT,
        )
    if len(weights) < 4:
        return dict(zip(NAMES, weights, strict=False))
    half = len(weights) // 2
    return {
        f"{direction}/{name}": array
        for direction, own in (("forward", weights[:half]), ("backward", weights[half:]))
        for name, array in zip(NAMES, own, strict=False)
    }


def _by_last_name(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``bidirectional/forward_lstm/lstm_cell/kernel`` as ``forward/kernel``."""
    found: dict[str, Any] = {}
    for path, array in flat.items():
        *above, last = path.split("/")
        direction = re.findall(r"(?:^|/)(forward|backward)(?=_|/|$)", "/".join(above))
        name = "/".join([*direction[:1], last]) if last in NAMES else path
        if name in found:
            raise value_error(
                f"from_keras got more than one {last} in one mapping, {path} the last of them",
                "the weights of one layer",
                "Pass several layers as a list, one mapping a layer: names do not tell their order.",
            )
        found[name] = array
    return found


def _tells(recurrent: tuple[int, ...]) -> bool:
    """Whether the shape of a recurrent kernel is that of any cell."""
    if not 2 <= len(recurrent) <= 5 or 0 in recurrent:
        return False
    *space, H, columns = recurrent
    return columns == 4 * H if space else columns in [gates * H for gates in GATES]


class _Layer:
    """One layer: what its shapes tell, and its arrays."""

    def __init__(self, entries: Entries, where: str, given: Mapping[str, Any]) -> None:
        self.where = where.rstrip("/") or "the layer"
        names = [name.removeprefix(where) for name in entries.names() if name.startswith(where)]
        self.both = any(name.startswith(("forward/", "backward/")) for name in names)
        self.ends = ("forward/", "backward/") if self.both else ("",)
        self.uses: set[str] = {"merge"} if self.both else set()

        def shapes_of(name: str) -> list[tuple[int, ...]]:
            """In each direction that has the entry, and has it with an axis of inputs."""
            found = (entries.shape(f"{where}{end}{name}") for end in self.ends)
            return [shape for shape in found if len(shape) > 1]

        recurrents = shapes_of("recurrent_kernel")
        recurrent = next(filter(_tells, recurrents), next(iter(recurrents), ()))
        kernel = next((shape for shape in shapes_of("kernel") if len(shape) == len(recurrent)), ())
        self.conv = len(recurrent) > 2
        if not _tells(recurrent):
            got = f"of shape {recurrent}" if recurrent else "missing, or no matrix"
            raise value_error(
                f"from_keras got recurrent_kernel {got} in {self.where}",
                "shape (H, H) in SimpleRNN, (H, 3H) in GRU, (H, 4H) in LSTM, (*kernel, F, 4F) in ConvLSTM",
                _HINT,
            )
        self.gates, self.H = recurrent[-1] // recurrent[-2], recurrent[-2]
        self.kind: Any = ConvLSTM if self.conv else GATES[self.gates]
        self.kernel_size = recurrent[:-2]
        self.D = kernel[-2] if kernel else 0  # 0: nothing tells it
        self.bias = any(f"{end}bias" in names for end in self.ends)
        self.options = self._options(entries, where, given)

        columns = self.gates * self.H
        shapes: dict[str, tuple[int, ...]] = {
            "kernel": (*self.kernel_size, self.D, columns),
            "recurrent_kernel": (*self.kernel_size, self.H, columns),
        }
        if self.bias:
            two = self.options.get("reset_after", False)
            shapes["bias"] = (2, columns) if two else (columns,)
        self.taken = [
            {name: entries.take(f"{where}{end}{name}", shape) for name, shape in shapes.items()}
            for end in self.ends
        ]

    def _options(self, entries: Entries, where: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the shapes leave open, as it was given; a fault where it was not."""
        if self.conv:
            self.uses |= {"input_shape", "strides", "padding"}
        if self.both and given["merge"] not in MERGES:
            raise value_error(
                f"from_keras got merge={given['merge']!r} with both directions of a Bidirectional",
                f"its merge_mode, one of {', '.join(map(repr, MERGES))}, which weights do not tell",
                "Keras' own is merge='concat'.",
            )
        if self.kind is RNN:
            self.uses.add("activation")
            return activation_of("from_keras", "SimpleRNN", given["activation"], True)
        if self.kind is not GRU:
            return {}
        ranks = {len(entries.shape(f"{where}{end}bias")) for end in self.ends} - {0}
        if ranks:
            return {"reset_after": 2 in ranks}
        self.uses.add("reset_after")
        if not isinstance(given["reset_after"], bool):
            raise value_error(
                f"from_keras got reset_after={given['reset_after']!r} with a GRU without bias",
                "True or False, which the weights do not tell",
                "Keras' own is reset_after=True.",
            )
        return {"reset_after": given["reset_after"]}

    def arrays(self) -> Iterable[Any]:
        """All arrays of the layer."""
        return (array for own in self.taken for array in own.values())

    def network(self, dtype: Any, given: Mapping[str, Any], below: list[Any]) -> Any:
        """The cell, or both directions of it."""
        common = {"use_bias": self.bias, "param_dtype": dtype}
        if self.conv:
            cell: Any = self._conv(common, given, below)
        else:
            cell = make_cell(self.kind, self.D, self.H, **common, **self.options)
        return Bidirectional(cell, merge=MERGES[given["merge"]]) if self.both else cell

    def _conv(self, common: Mapping[str, Any], given: Mapping[str, Any], below: list[Any]) -> ConvLSTM:
        shape = getattr(below[-1], "output_shape", None) if below else given["input_shape"]
        padding = given["padding"]
        if shape is None or not isinstance(padding, str) or padding.upper() not in ("SAME", "VALID"):
            raise value_error(
                f"from_keras got input_shape={shape!r}, padding={padding!r} with weights of a ConvLSTM",
                "both, because weights do not tell them: input_shape (*space, C), padding 'valid' or 'same'",
                "Keras' own padding is 'valid'.",
            )
        if tuple(shape)[-1] != self.D:
            raise value_error(
                f"from_keras got input_shape={tuple(shape)} with a kernel that reads {self.D} channels",
                f"input_shape (*space, {self.D})",
                "Put the channels last.",
            )
        strides = None if given["strides"] is None else tuple(given["strides"])
        window: dict[str, Any] = {"strides": strides, "padding": padding.upper()}
        return ConvLSTM(tuple(shape), self.H, self.kernel_size, **window, **common)

    def params(self, dtype: Any) -> Any:
        """The cell's parameters, or those of both directions."""
        own = [_read(self.kind, cast(arrays, dtype)) for arrays in self.taken]
        if self.options.get("reset_after") is False:
            own = [params_for(GRUVariant(1, 1), params) for params in own]
        return BidirectionalParams(*own) if self.both else own[0]


def _read(kind: Any, a: Mapping[str, Any]) -> Any:
    w_ih, w_hh, bias = (a.get(name) for name in NAMES)
    if kind is not GRU:
        record: Any = {RNN: RNNParams, LSTM: LSTMParams, ConvLSTM: ConvLSTMParams}[kind]
        return record(w_ih, w_hh, bias)
    w_ih, w_hh = _swapped(w_ih), _swapped(w_hh)
    if bias is None:
        return GRUParams(w_ih, w_hh)
    if bias.ndim == 1:
        return GRUParams(w_ih, w_hh, _swapped(bias))
    (z, r, n), (z_h, r_h, bias_hn) = parts(bias[0], 3), parts(bias[1], 3)
    return GRUParams(w_ih, w_hh, join(r + r_h, z + z_h, n), bias_hn)


def _swapped(array: Any) -> Any:
    """Gates z r h as r z n, and back."""
    first, second, third = parts(array, 3)
    return join(second, first, third)


def to_keras(network: Any, params: Any) -> list[Any]:
    """What ``set_weights`` of a Keras layer takes, from a network and its parameters.

    The opposite of :func:`from_keras`, which gives back every parameter to the bit. A cell gives the
    list of its layer; a ``Bidirectional`` that of ``keras.layers.Bidirectional``, whose ``merge_mode``
    has to be the network's; a ``Stack`` one list a layer. Of the two biases of a GRU with
    ``reset_after=True`` the second is 0 but for ``bias_hn``: the same function, though trained
    otherwise, because Keras moves both.

    Args:
        network: an ``RNN`` (with Keras' layer having its activation), ``LSTM``, ``GRU``, ``ConvLSTM`` (with
            its strides and padding), a ``Bidirectional`` of one, or a ``Stack`` of these.
        params: its parameters.

    Returns:
        A list of NumPy arrays in the parameters' dtype, of a ``Stack`` a list of such lists (under
        ``jax.jit`` or ``jax.grad`` of traced arrays).

    Raises:
        ValueError: with everything Keras cannot represent (projections, peepholes, coupled gates,
            ablations, heads, clips, layer normalisation, learned initial carries, regularised cells,
            residual or skip connections, a read-out inside), and all parameters that do not fit.

    >>> import jax, lstm_jax
    >>> cell = lstm_jax.GRU(input_size=3, hidden_size=2)
    >>> [array.shape for array in to_keras(cell, cell.init(jax.random.key(0)))]
    [(3, 6), (2, 6), (2, 6)]
    """
    layers = flatten_layers(
        "to_keras",
        "Keras",
        network,
        params,
        kinds=(RNN, LSTM, GRU, ConvLSTM),
        fits={"activation": None, "recurrent_activation": None, "reset_after": None},
        merges=tuple(MERGES.values()),
    )
    lists = [
        [theirs(array) for direction in layer.directions for array in _write(direction)] for layer in layers
    ]
    return lists if hasattr(network, "layers") else lists[0]


def _write(direction: Any) -> list[Any]:
    cell, params = direction.cell, direction.params
    arrays = [params.w_ih, params.w_hh] + ([] if params.bias is None else [params.bias])
    if not isinstance(cell, (GRU, GRUVariant)):
        return arrays
    arrays = [_swapped(array) for array in arrays]
    if params.bias is not None and getattr(cell, "reset_after", True):
        r, z, n = parts(negative_zeros(params.bias), 3)
        second = join(z, r, n if params.bias_hn is None else params.bias_hn)
        arrays[2] = join(arrays[2][None], second[None], axis=0)
    return arrays
