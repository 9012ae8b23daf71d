"""Weights of ``torch.nn.RNN``, ``LSTM`` and ``GRU``, in and out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from lstm_jax import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    BidirectionalParams,
    GRUParams,
    LSTMParams,
    LSTMVariant,
    RNNParams,
)
from lstm_jax._errors import value_error
from lstm_jax._types import DType
from lstm_jax.interop._arrays import cast, common_dtype, join, negative_zeros, ours, parts, theirs
from lstm_jax.interop._entries import Entries
from lstm_jax.interop._networks import (
    ACTIVATIONS,
    GATES,
    activation_of,
    flatten_layers,
    make_cell,
    params_for,
    stacked,
)

_NAME = re.compile(r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)(?:_l(\d+)(_reverse)?)?")


def from_torch(
    state_dict: Mapping[str, Any],
    *,
    activation: Any = None,
    prefix: str = "",
    dtype: DType | None = None,
) -> tuple[Any, Any]:
    """A network and its parameters from the state dict of ``torch.nn.RNN``, ``LSTM`` or ``GRU``.

    Names and shapes tell everything but the activation of ``nn.RNN``: the kind of cell, layers,
    directions, the projection, whether there are biases. One layer gives the bare cell, both
    directions ``Bidirectional(cell)``, several layers a ``Stack``. Also read are the state dicts of
    ``nn.RNNCell``, ``LSTMCell`` and ``GRUCell``, whose names have no ``_l0``.

    =============================  ==========================================================
    PyTorch                        here
    =============================  ==========================================================
    ``weight_ih_l0`` (4H, D)       ``w_ih`` (D, 4H), transposed; gates i f g o, or r z n
    ``weight_hh_l0`` (4H, H)       ``w_hh`` (H, 4H), transposed
    ``weight_hr_l0`` (P, H)        ``w_hr`` (H, P), transposed
    ``bias_ih_l0``, ``bias_hh_l0``  ``bias``, the sum of both
    ... of a GRU                   the sum for r and z; n keeps two, in ``bias`` and ``bias_hn``
    ``.._l1``, ``.._l0_reverse``   the next layer; ``BidirectionalParams.backward``
    =============================  ==========================================================

    The sum of two biases is the same function, but it is trained otherwise: PyTorch moves both of
    them, so that their sum moves twice as far in a step. ``batch_first`` and ``dropout`` are not in
    the weights: this library is time-major, and the ``Stack`` has dropout 0.

    Args:
        state_dict: names to arrays (4H is 3H in a GRU, H in a simple network): of NumPy, of jax,
            also traced, or whatever ``np.asarray`` reads, tensors on the CPU for instance.
        activation: of ``nn.RNN`` alone, and needed there: ``"tanh"``, ``"relu"`` or a function.
        prefix: where the network is part of a larger module, the beginning of its names,
            ``"encoder.lstm."``; entries with other names are left alone.
        dtype: of the parameters; None: the arrays' own.

    Returns:
        ``(network, params)``; all leaves are jax arrays with memory of their own.

    Raises:
        ValueError: with all entries that are missing, unexpected or misshapen; or the activation is
            missing, or given where there is no choice.

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
    if prefix and not prefix.endswith("."):
        prefix += "."
    entries = Entries("from_torch", state_dict, ".")
    beginnings = sorted({name[: found.start()] for name, found in _recurrent(entries.names())})
    entries.left = {name: value for name, value in entries.left.items() if name.startswith(prefix)}
    plan = _plan(entries, prefix, beginnings)
    options: dict[str, Any] = {**activation_of("from_torch", "nn.RNN", activation, plan.kind is RNN)}
    taken = {
        (layer, end): {
            name: entries.take(f"{prefix}{name}{end}", shape)
            for name, shape in _shapes(plan.gates, *sizes, plan.bias).items()
        }
        for layer, sizes in enumerate(plan.sizes)
        for end in plan.ends(layer)
    }
    entries.done("Pass the state_dict of one torch.nn.RNN, LSTM or GRU, with prefix= where it is a part.")
    dtype = common_dtype("from_torch", (a for own in taken.values() for a in own.values()), dtype)

    networks, params = [], []
    for layer, (D, H, P) in enumerate(plan.sizes):
        if P is not None:
            options["proj_size"] = P
        cell = make_cell(plan.kind, D, H, use_bias=plan.bias, param_dtype=dtype, **options)
        own = [_read(cell, plan.kind, cast(taken[layer, end], dtype)) for end in plan.ends(layer)]
        networks.append(Bidirectional(cell) if plan.both else cell)
        params.append(BidirectionalParams(*own) if plan.both else own[0])
    network, both = stacked(networks, params)
    return network, ours(both)


class _Plan(NamedTuple):
    """What names and shapes tell."""

    kind: Any
    gates: int
    sizes: list[tuple[int, int, int | None]]  # D (0: nothing tells it), H, P of each layer
    both: bool
    bias: bool
    numbered: bool

    def ends(self, layer: int) -> list[str]:
        """How the names end, one a direction."""
        if not self.numbered:
            return [""]
        return [f"_l{layer}", f"_l{layer}_reverse"] if self.both else [f"_l{layer}"]


def _recurrent(names: list[str]) -> Any:
    for name in names:
        found = re.search(r"weight_hh(_l\d+(_reverse)?)?$", name)
        if found:
            yield name, found


def _plan(entries: Entries, prefix: str, beginnings: list[str]) -> _Plan:
    found = {}
    for name in entries.names():
        match = _NAME.fullmatch(name.removeprefix(prefix))
        if match:
            found[name] = match
    gates, H, P = _gates(entries, prefix, list(found), beginnings)
    numbered = any(match[2] for match in found.values())
    both = any(match[3] for match in found.values())
    first = [f"{prefix}weight_ih_l0", f"{prefix}weight_ih_l0_reverse"] if numbered else [f"{prefix}weight_ih"]
    D = next((shape[1] for shape in map(entries.shape, first) if len(shape) == 2), 0)
    # No more layers than entries, whatever number a name holds.
    indices = [int(match[2]) for match in found.values() if match[2] and len(match[2]) < 9]
    count = 1 + max((index for index in indices if index < len(found)), default=0)
    above = (P or H) * (2 if both else 1)
    sizes = [(above if layer else D, H, P) for layer in range(count)]
    bias = any(match[1].startswith("bias") for match in found.values())
    return _Plan(GATES[gates], gates, sizes, both, bias, numbered)


def _gates(
    entries: Entries, prefix: str, names: list[str], beginnings: list[str]
) -> tuple[int, int, int | None]:
    """How many gates, H and P, by the first matrix that tells."""
    for name in names:
        shape = entries.shape(name)
        if len(shape) != 2 or 0 in shape or "weight_h" not in name:
            continue
        if "weight_hr" in name:
            return 4, shape[1], shape[0]
        if not any("weight_hr" in other for other in names) and shape[0] in [g * shape[1] for g in GATES]:
            return shape[0] // shape[1], shape[1], None
    got = [f"{name} {entries.shape(name)}" for name in names if "weight_h" in name]
    others = " or ".join(f"prefix={beginning!r}" for beginning in beginnings if beginning != prefix)
    raise value_error(
        f"from_torch got {', '.join(got) if got else f'no entry {prefix}weight_hh_l0'}",
        "weight_hh_l0 of shape (H, H) in nn.RNN, (3H, H) in nn.GRU, (4H, H) in nn.LSTM",
        f"Recurrent weights are found with {others}." if others else "Pass the state_dict of one.",
    )


def _shapes(gates: int, D: int, H: int, P: int | None, bias: bool) -> dict[str, tuple[int, ...]]:
    """The shapes of one direction, by torch's names."""
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (gates * H, D), "weight_hh": (gates * H, P or H)}
    if bias:
        shapes |= {"bias_ih": (gates * H,), "bias_hh": (gates * H,)}
    return shapes | ({} if P is None else {"weight_hr": (P, H)})


def _read(cell: Any, kind: Any, a: dict[str, Any]) -> Any:
    w_ih, w_hh = a["weight_ih"].T, a["weight_hh"].T
    if "bias_ih" not in a:
        bias = bias_hn = None
    elif kind is GRU:
        (r, z, n), (r_h, z_h, bias_hn) = parts(a["bias_ih"], 3), parts(a["bias_hh"], 3)
        bias = join(r + r_h, z + z_h, n)
    else:
        bias = a["bias_ih"] + a["bias_hh"]
    if kind is RNN:
        return RNNParams(w_ih, w_hh, bias)
    if kind is GRU:
        return GRUParams(w_ih, w_hh, bias, bias_hn)
    params = params_for(cell, LSTMParams(w_ih, w_hh, bias))
    return params._replace(w_hr=a["weight_hr"].T) if "weight_hr" in a else params


def to_torch(network: Any, params: Any, *, prefix: str = "") -> dict[str, Any]:
    """The state dict that ``torch.nn.RNN``, ``LSTM`` or ``GRU`` loads, from a network and its parameters.

    The opposite of :func:`from_torch`, which gives back every parameter to the bit. Of PyTorch's
    two biases the first is ``bias`` and the second 0 (in a GRU but for ``bias_hn``). The function is
    the same, but training goes on otherwise: with two biases PyTorch moves their sum twice as far in
    a step, under Adam too.

    Load it with::

        state_dict = {name: torch.from_numpy(array) for name, array in to_torch(network, params).items()}
        module.load_state_dict(state_dict, strict=True)

    where ``module`` has the network's sizes (``num_layers``, ``bidirectional``, ``proj_size``,
    ``bias``) and, of ``nn.RNN``, its ``nonlinearity``; dropout between layers is not in the weights.
    ``nn.LSTMCell`` and its kin want the names without ``_l0``.

    Args:
        network: an ``RNN``, ``LSTM`` or ``GRU``, a ``Bidirectional`` of one, or a ``Stack`` of these, all
            alike.
        params: its parameters.
        prefix: put before each name, ``"encoder.lstm."``.

    Returns:
        PyTorch's names to NumPy arrays that may be written to, in the parameters' dtype (under
        ``jax.jit`` or ``jax.grad`` to traced arrays).

    Raises:
        ValueError: with everything PyTorch cannot represent (peepholes, coupled gates, ablations,
            heads, clips, layer normalisation, ``reset_after=False``, learned initial carries, other
            activations, regularised cells, residual or skip connections, a read-out inside, layers
            of different sizes or kinds), and all parameters that do not fit.

    >>> import jax, lstm_jax
    >>> cell = lstm_jax.LSTM(input_size=3, hidden_size=2)
    >>> state_dict = to_torch(cell, cell.init(jax.random.key(0)))
    >>> {name: array.shape for name, array in state_dict.items()}
    {'weight_ih_l0': (8, 3), 'weight_hh_l0': (8, 2), 'bias_ih_l0': (8,), 'bias_hh_l0': (8,)}
    """
    fits = {"proj_size": None, (RNN, "activation"): list(ACTIVATIONS.values())}
    layers = flatten_layers("to_torch", "torch.nn", network, params, kinds=(RNN, LSTM, GRU), fits=fits)
    first = layers[0].directions
    for layer in layers[1:]:
        got, wanted = (_alike(each) for each in (layer.directions, first))
        if got != wanted:
            raise value_error(
                f"to_torch got {layer.directions[0].where}{got} above a first layer of {wanted}",
                "layers that are all alike, because one torch.nn module holds them",
                "Convert each layer by itself.",
            )
    if prefix and not prefix.endswith("."):
        prefix += "."
    return {
        f"{prefix}{name}_l{index}{end}": theirs(array)
        for index, layer in enumerate(layers)
        for end, direction in zip(("", "_reverse"), layer.directions, strict=False)
        for name, array in _write(direction.params).items()
    }


def _alike(directions: Any) -> dict[str, Any]:
    cell = directions[0].cell
    kind = type(cell).__name__.removesuffix("Variant")
    options = {"kind": kind, "hidden_size": cell.hidden_size, "use_bias": cell.use_bias}
    options |= {"proj_size": cell.proj_size} if isinstance(cell, LSTMVariant) and cell.proj_size else {}
    options |= {"activation": cell.activation.__name__} if isinstance(cell, RNN) else {}
    return options | {"directions": len(directions)}


def _write(params: Any) -> dict[str, Any]:
    found = {"weight_ih": params.w_ih.T, "weight_hh": params.w_hh.T}
    if params.bias is not None:
        found |= {"bias_ih": params.bias, "bias_hh": negative_zeros(params.bias)}
        if getattr(params, "bias_hn", None) is not None:
            r, z, _ = parts(found["bias_hh"], 3)
            found["bias_hh"] = join(r, z, params.bias_hn)
    if getattr(params, "w_hr", None) is not None:
        found["weight_hr"] = params.w_hr.T
    return found
