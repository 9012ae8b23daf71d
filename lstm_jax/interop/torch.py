"""Conversion of weights from and to ``torch.nn.RNN``, ``LSTM`` and ``GRU``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax import (
    GRU,
    LSTM,
    RNN,
    GRUParams,
    LSTMParams,
    LSTMVariant,
    RNNParams,
)
from lstm_jax._errors import listing, value_error
from lstm_jax._types import DType, is_float
from lstm_jax.cells._base import short_value
from lstm_jax.interop._entries import (
    Entries,
    Faults,
    UnbuiltLayer,
    Unreadable,
    build_layers,
    flatten_mapping,
    read_array,
)
from lstm_jax.interop._gates import join_gates, negative_zeros, split_gates, to_numpy
from lstm_jax.interop._networks import (
    CELLS,
    Options,
    flatten_layers,
    join_directions,
    make_cell,
    params_for,
    stacked,
)

_NAME = re.compile(r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)(?:_l(\d+)(_reverse)?)?")
#: The activations of ``nn.RNN``.
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}
HINT = (
    "Pass the state_dict of one torch.nn.RNN, LSTM or GRU, with prefix= where it is part of a larger module."
)


def from_torch(
    state_dict: Mapping[str, Any],
    *,
    activation: Any = None,
    prefix: str = "",
    dtype: DType | None = None,
) -> tuple[Any, Any]:
    """A network and its parameters from the state dict of ``torch.nn.RNN``, ``LSTM`` or ``GRU``.

    The type of cell, layers, directions, a projection and biases are read from names and shapes. One layer
    gives the cell itself, both directions ``Bidirectional(cell)``, several layers a ``Stack``. The state
    dicts of ``nn.RNNCell``, ``LSTMCell`` and ``GRUCell``, whose names have no ``_l0``, are read too.

    ===============================  ==========================================================
    PyTorch                          lstm_jax
    ===============================  ==========================================================
    ``weight_ih_l0`` (4H, D)         ``w_ih`` (D, 4H), transposed; gates i f g o, or r z n
    ``weight_hh_l0`` (4H, H)         ``w_hh`` (H, 4H), transposed
    ``weight_hr_l0`` (P, H)          ``w_hr`` (H, P), transposed
    ``bias_ih_l0``, ``bias_hh_l0``   ``bias``, the sum of both
    ... of a GRU                     the sum for r and z; n keeps two, in ``bias`` and ``bias_hn``
    ``.._l1``, ``.._l0_reverse``     the next layer; ``BidirectionalParams.backward``
    ===============================  ==========================================================

    The sum of two biases gives the same outputs, but trains differently: PyTorch updates both biases, so
    their sum moves twice as far in a step. ``batch_first`` and ``dropout`` are not in the weights: this
    library is time-major, and the ``Stack`` has dropout 0.

    Two reparametrizations of a weight are read:

    - weight norm of a matrix, with any ``dim`` (``torch.nn.utils.parametrizations.weight_norm``, names
      ``parametrizations.weight_hh_l0.original0`` and ``original1``, and the older ``weight_norm``, names
      ``weight_hh_l0_g`` and ``weight_hh_l0_v``): the weight is g v / ||v||, with the norm over the axes that
      g does not have;
    - weight drop of AWD-LSTM and fastai (``weight_hh_l0_raw``): this is the weight without dropout. A
      ``weight_hh_l0`` next to it is ignored, because it may hold the values of one training step.
      :class:`lstm_jax.WeightDrop` applies the dropout here.

    All others raise an error.

    Args:
        state_dict: names to arrays (4H is 3H in a GRU, H in a simple network): NumPy or JAX arrays (also
            traced), or tensors, which may require gradients and may be bfloat16.
        activation: of ``nn.RNN`` alone, and required there: ``"tanh"``, ``"relu"`` or a function.
        prefix: the beginning of the names where the network is part of a larger module,
            ``"encoder.lstm."``; entries with other names are ignored.
        dtype: of the parameters; None: the promoted dtype of the arrays.

    Returns:
        ``(network, params)``; all leaves are JAX arrays that share no memory with the tensors.

    Raises:
        ValueError: entries are missing, unexpected or of the wrong shape (all are listed), or the activation
            is missing, or given where there is no choice.

    >>> import numpy as np
    >>> state_dict = {
    ...     "weight_ih_l0": np.ones((8, 3), np.float32),
    ...     "weight_hh_l0": np.ones((8, 2), np.float32),
    ...     "bias_ih_l0": np.ones(8, np.float32),
    ...     "bias_hh_l0": np.ones(8, np.float32),
    ... }
    >>> cell, params = from_torch(state_dict)
    >>> cell.input_size, cell.hidden_size, params.w_ih.shape, float(params.bias[0])
    (3, 2, (3, 8), 2.0)
    """
    prefix = _with_dot(prefix)
    options = Options("from_torch", ACTIVATIONS, activation=activation)
    faults = Faults("from_torch")
    flat = flatten_mapping("from_torch", state_dict, ".")
    entries = Entries(faults, _plain_weights(flat, prefix), prefix)
    names = _read_names(entries, _prefixes(flat, prefix))
    cell_options = options.activations(RNN, "nn.RNN") if names.cell_class is RNN else {}
    layers = []
    for index, sizes in enumerate(names.sizes):
        suffixes = names.suffixes(index)
        directions = [_read(entries, names, sizes, suffix, cell_options) for suffix in suffixes]
        layers.append(join_directions(directions))
    entries.done()
    faults.check(HINT)
    options.check(1)
    networks, params = build_layers("from_torch", [layer for layer in layers if layer], dtype)
    return stacked(networks, params)


def _with_dot(prefix: str) -> str:
    return f"{prefix}." if prefix and not prefix.endswith(".") else prefix


def _prefixes(flat: Mapping[str, Any], prefix: str) -> list[str]:
    """Other prefixes with recurrent weights, for messages."""
    ends = r"(parametrizations\.)?weight_hh(_l\d+(_reverse)?)?(\..*|_g|_v|_raw|_orig)?$"
    found = (re.search(rf"(^|(?<=\.)){ends}", name) for name in flat)
    return sorted({match.string[: match.start()] for match in found if match} - {prefix})


# --- weight norm and weight drop ----------------------------------------------------------------

_WEIGHT = r"((?:weight|bias)_(?:ih|hh|hr)(?:_l\d+(?:_reverse)?)?)"
_RAW = re.compile(rf"(?:module\.)?{_WEIGHT}_raw")
_PARAMETRIZED = re.compile(rf"parametrizations\.{_WEIGHT}\.(.+)")
_OLD_PARAMETRIZED = re.compile(rf"{_WEIGHT}_(g|v|u|orig|mask)")


def _plain_weights(flat: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries below a prefix, with weight norm computed and the raw weights of weight drop."""
    below = {name[len(prefix) :]: value for name, value in flat.items() if name.startswith(prefix)}
    outer = prefix.removesuffix("module.")  # where fastai keeps the raw weights
    relative = {name[len(outer) :]: value for name, value in flat.items() if name.startswith(outer)}
    raw = {match[1]: value for name, value in relative.items() if (match := _RAW.fullmatch(name))}
    if raw:
        below = {name.removeprefix("module."): a for name, a in below.items() if not _RAW.fullmatch(name)}
        below |= raw
    parametrized: dict[str, dict[str, str]] = {}
    for name in below:
        if match := _PARAMETRIZED.fullmatch(name) or _OLD_PARAMETRIZED.fullmatch(name):
            parametrized.setdefault(match[1], {})[match[2]] = name
    unknown: list[str] = []
    for weight, names in parametrized.items():
        norm = set(names) in ({"original0", "original1"}, {"g", "v"})
        computed = _weight_norm(*(read_array(below[names[part]]) for part in sorted(names))) if norm else None
        if computed is None:
            unknown += names.values()
        else:
            below = {name: value for name, value in below.items() if name not in names.values()}
            below[weight] = computed
    if unknown:
        found = listing(f"{prefix}{name} {read_array(below[name]).shape}" for name in unknown)
        raise value_error(
            f"from_torch got {found}",
            "weights as they are, or weight norm of matrices",
            "Remove the reparametrization before state_dict(): torch.nn.utils.parametrize."
            "remove_parametrizations(module, name), remove_spectral_norm or prune.remove.",
        )
    return below


def _weight_norm(g: Any, v: Any) -> Any:
    """g v / ||v|| (Salimans & Kingma 2016), with the norm over the axes that g does not have.

    None if g and v are not those of a matrix.
    """
    if any(isinstance(a, Unreadable) or not is_float(a.dtype) for a in (g, v)):
        return None
    if v.ndim != 2 or g.shape not in ((), (len(v), 1), (1, v.shape[1])):
        return None
    axes = (0, 1) if g.ndim == 0 else 1 if g.shape == (len(v), 1) else 0
    xp = np if isinstance(v, np.ndarray) else jnp
    wide = v.astype(np.promote_types(v.dtype, np.float32))
    with np.errstate(invalid="ignore", divide="ignore"):  # zeros give NaN, as in PyTorch
        norm = xp.sqrt(xp.sum(wide * wide, axis=axes, keepdims=True))
        return (g.astype(wide.dtype) / norm * wide).astype(v.dtype)


# --- in -----------------------------------------------------------------------------------------


class _Names(NamedTuple):
    """What names and shapes contain."""

    cell_class: Any
    gates: int
    sizes: list[tuple[int, int, int | None]]  # D (0: unknown), H, P of each layer
    both: bool
    bias: bool
    numbered: bool

    def suffixes(self, layer: int) -> list[str]:
        """The suffixes of the names, one for each direction."""
        if not self.numbered:
            return [""]
        return [f"_l{layer}", f"_l{layer}_reverse"] if self.both else [f"_l{layer}"]


def _read_names(entries: Entries, prefixes: list[str]) -> _Names:
    found = {name: match for name in entries.names() if (match := _NAME.fullmatch(name))}
    gates, H, P = _sizes(entries, list(found), prefixes)
    numbered = any(match[2] for match in found.values())
    both = any(match[3] for match in found.values())
    first = ["weight_ih_l0", "weight_ih_l0_reverse"] if numbered else ["weight_ih"]
    D = entries.size(*((name, 1) for name in first))
    # A name may contain any number, so the number of entries bounds that of layers.
    indices = [int(match[2]) for match in found.values() if match[2] and len(match[2]) < 9]
    count = 1 + max((index for index in indices if index < len(found)), default=0)
    above = (P or H) * (2 if both else 1)
    sizes = [(above if layer else D, H, P) for layer in range(count)]
    bias = any(match[1].startswith("bias") for match in found.values())
    return _Names(CELLS[gates], gates, sizes, both, bias, numbered)


def _sizes(entries: Entries, names: list[str], prefixes: list[str]) -> tuple[int, int, int | None]:
    """The number of gates, H and P, from the first recurrent matrix whose shape is that of a cell."""
    for name in names:
        shape = entries.shape(name)
        if len(shape) != 2 or 0 in shape or "weight_h" not in name:
            continue
        if "weight_hr" in name:
            return 4, shape[1], shape[0]
        if not any("weight_hr" in other for other in names) and shape[0] in [g * shape[1] for g in CELLS]:
            return shape[0] // shape[1], shape[1], None
    got = ", ".join([entries.text(name) for name in names if "weight_h" in name][:6])
    others = listing((f"prefix={prefix!r}" for prefix in prefixes), limit=3)
    raise value_error(
        f"from_torch got {got or f'no entry {entries.where}weight_hh_l0'}",
        "weight_hh_l0 of shape (H, H) in nn.RNN, (3H, H) in nn.GRU, (4H, H) in nn.LSTM",
        f"There are recurrent weights with {others}." if others else "Pass the state_dict of one.",
    )


def _read(
    entries: Entries,
    names: _Names,
    sizes: tuple[int, int, int | None],
    suffix: str,
    options: Mapping[str, Any],
) -> UnbuiltLayer:
    """One direction of one layer."""
    D, H, P = sizes
    rows = names.gates * H
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, D), "weight_hh": (rows, P or H)}
    if names.bias:
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
    if P is not None:
        shapes["weight_hr"] = (P, H)
    arrays = {name: entries.take(f"{name}{suffix}", shape) for name, shape in shapes.items()}

    def build(a: dict[str, Any], dtype: np.dtype, input_shape: None) -> tuple[Any, Any]:
        projection = {} if P is None else {"proj_size": P}
        cell = make_cell(
            names.cell_class, D, H, use_bias=names.bias, param_dtype=dtype, **projection, **options
        )
        w_ih, w_hh, bias = a["weight_ih"].T, a["weight_hh"].T, None
        if names.bias and names.cell_class is GRU:
            ih, hh = split_gates(a["bias_ih"], "rzn"), split_gates(a["bias_hh"], "rzn")
            bias = join_gates({"r": ih["r"] + hh["r"], "z": ih["z"] + hh["z"], "n": ih["n"]}, "rzn")
            return cell, GRUParams(w_ih, w_hh, bias, hh["n"])
        if names.bias:
            bias = a["bias_ih"] + a["bias_hh"]
        record: Any = {RNN: RNNParams, GRU: GRUParams, LSTM: LSTMParams}[names.cell_class]
        params = params_for(cell, record(w_ih, w_hh, bias))
        return cell, params if P is None else params._replace(w_hr=a["weight_hr"].T)

    return UnbuiltLayer(arrays, build)


# --- out ----------------------------------------------------------------------------------------


def to_torch(network: Any, params: Any, *, prefix: str = "") -> dict[str, Any]:
    """The state dict that ``torch.nn.RNN``, ``LSTM`` or ``GRU`` loads, from a network and its parameters.

    The inverse of :func:`from_torch`, bit for bit. The first of PyTorch's two biases is ``bias``, the second
    is 0 (in a GRU except for ``bias_hn``). The outputs are the same, but training differs: PyTorch updates
    both biases, so their sum moves twice as far in a step, also under Adam.

    Load it with::

        state_dict = {name: torch.from_numpy(array) for name, array in to_torch(network, params).items()}
        module.load_state_dict(state_dict, strict=True)

    where ``module`` has the network's sizes (``num_layers``, ``bidirectional``, ``proj_size``, ``bias``)
    and, for ``nn.RNN``, its ``nonlinearity``; dropout between layers is not in the weights.
    ``torch.from_numpy`` does not read bfloat16. Go through float32, which is exact, where the parameters are
    bfloat16; ``load_state_dict`` casts to the dtype of the module::

        {name: torch.from_numpy(array.astype("float32")) for name, array in to_torch(network, params).items()}

    ``nn.LSTMCell``, ``GRUCell`` and ``RNNCell`` need the names without ``_l0``.

    Args:
        network: an ``RNN``, ``LSTM`` or ``GRU``, a ``Bidirectional`` of one, or a ``Stack`` of these, all
            with the same hyperparameters. Gated cells of PyTorch have tanh and sigmoid only.
        params: its parameters.
        prefix: put before each name, ``"encoder.lstm."``.

    Returns:
        PyTorch's names to NumPy arrays that may be written to, in the parameters' dtype (under
        ``jax.jit`` or ``jax.grad`` to traced arrays).

    Raises:
        ValueError: PyTorch cannot represent the network: peepholes, coupled gates, ablations, heads, clips,
            layer normalisation, ``reset_after=False``, learned initial carries, other activations,
            regularised cells, residual or skip connections, a readout inside, layers of different sizes or
            types. Or parameters do not fit. The message lists all of these.

    >>> import jax, lstm_jax
    >>> cell = lstm_jax.LSTM(input_size=3, hidden_size=2)
    >>> state_dict = to_torch(cell, cell.init(jax.random.key(0)))
    >>> {name: array.shape for name, array in state_dict.items()}
    {'weight_ih_l0': (8, 3), 'weight_hh_l0': (8, 2), 'bias_ih_l0': (8,), 'bias_hh_l0': (8,)}
    """
    options = {"proj_size": None, (RNN, "activation"): list(ACTIVATIONS.values())}
    layers = flatten_layers(
        "to_torch", "torch.nn", network, params, cells=(RNN, LSTM, GRU), options=options, dropout=True
    )
    first = _hyperparameters(layers[0].directions)
    for layer in layers[1:]:
        own = _hyperparameters(layer.directions)
        different = [f"{name}={own[name]} above {first[name]}" for name in own if own[name] != first[name]]
        if different:
            raise value_error(
                f"to_torch got {layer.directions[0].where}{', '.join(different)}",
                "layers with the same hyperparameters, because one torch.nn module holds them",
                "Convert each layer by itself.",
            )
    return {
        f"{_with_dot(prefix)}{name}_l{index}{suffix}": array
        for index, layer in enumerate(layers)
        for suffix, direction in zip(("", "_reverse"), layer.directions, strict=False)
        for name, array in _write(to_numpy(direction.params)).items()
    }


def _hyperparameters(directions: Any) -> dict[str, Any]:
    cell = directions[0].cell
    return {
        "cell": type(cell).__name__.removesuffix("Variant"),
        "hidden_size": cell.hidden_size,
        "use_bias": cell.use_bias,
        "proj_size": cell.proj_size if isinstance(cell, LSTMVariant) else None,
        "activation": short_value(cell.activation) if isinstance(cell, RNN) else None,
        "directions": len(directions),
    }


def _write(params: Any) -> dict[str, Any]:
    found = {"weight_ih": params.w_ih.T, "weight_hh": params.w_hh.T}
    if params.bias is not None:
        found |= {"bias_ih": params.bias, "bias_hh": negative_zeros(params.bias)}
        if getattr(params, "bias_hn", None) is not None:
            gates = split_gates(found["bias_hh"], "rzn") | {"n": params.bias_hn}
            found["bias_hh"] = join_gates(gates, "rzn")
    if getattr(params, "w_hr", None) is not None:
        found["weight_hr"] = params.w_hr.T
    return {name: to_numpy(array) for name, array in found.items()}
