"""Conversion between one direction of an ONNX node and a cell, without onnx.

In the operators' specification, W (G*H, D) and R (G*H, H) hold the G gates as rows, in the order i o f c for
``LSTM`` and z r h for ``GRU``. B (2*G*H,) holds the bias of W, then the bias of R. P (3H,) holds the
peepholes of i, o and f. https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import value_error
from lstm_jax._types import Array
from lstm_jax.cells._base import short_value
from lstm_jax.cells._linear import head_shape, sigmoid
from lstm_jax.cells.activations import identity
from lstm_jax.cells.gru import GRU, GRUParams
from lstm_jax.cells.gru_variant import GRUVariant
from lstm_jax.cells.lstm import LSTM, LSTMParams
from lstm_jax.cells.lstm_variant import LSTMVariant
from lstm_jax.cells.rnn import RNN, RNNParams
from lstm_jax.interop._networks import make_cell, params_for
from lstm_jax.interop.onnx._activations import (
    OnnxActivation,
    float32_value,
    from_onnx_activation,
    to_onnx_activation,
)
from lstm_jax.regularizers.dropout import CandidateDropout, VariationalDropout
from lstm_jax.regularizers.weight_drop import WeightDrop

#: The gates of each operator, in this library's order and in ONNX's (which calls n and g: h and c).
GATES = {"RNN": ("h", "h"), "LSTM": ("ifgo", "iofg"), "GRU": ("rzn", "zrn")}
#: ONNX's order of the peepholes.
PEEPHOLES = "iof"
#: The activations of a node without the attribute ``activations``. LSTM: gates, candidate, cell state.
DEFAULT_ACTIVATIONS = {
    "RNN": (OnnxActivation("Tanh"),),
    "LSTM": (OnnxActivation("Sigmoid"), OnnxActivation("Tanh"), OnnxActivation("Tanh")),
    "GRU": (OnnxActivation("Sigmoid"), OnnxActivation("Tanh")),
}
#: Wrappers that equal the wrapped cell if there is no key.
TRANSPARENT = (VariationalDropout, WeightDrop, CandidateDropout)
#: The activations of a :class:`lstm_jax.Readout`, and their operators.
READOUTS: list[tuple[Callable[[Array], Array], str]] = [
    (identity, ""),
    (jnp.tanh, "Tanh"),
    (jax.nn.relu, "Relu"),
    (sigmoid, "Sigmoid"),
    (jax.nn.softmax, "Softmax"),
    (jax.nn.log_softmax, "LogSoftmax"),
]


class Node(NamedTuple):
    """One direction of an ``RNN``, ``LSTM`` or ``GRU`` node, in ONNX's layouts."""

    op: str
    W: np.ndarray  # (G*H, D)
    R: np.ndarray  # (G*H, H)
    B: np.ndarray | None = None  # (2*G*H,)
    P: np.ndarray | None = None  # (3H,)
    initial: tuple[np.ndarray, ...] | None = None  # learned h_0 (and c_0), each (H,)
    activations: tuple[OnnxActivation, ...] | None = None  # None: the defaults
    clip: float | None = None
    input_forget: bool = False
    linear_before_reset: bool = False

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.R.shape[1]


# --- from a cell --------------------------------------------------------------------------------


def node_of(cell: Any, params: Any, path: str = "") -> Node:
    """The node equal to a cell; ``path`` is the position of the cell, for messages.

    Raises:
        ValueError: ONNX has no such cell, or the parameters are not float32.
    """
    at = f" at {path.rstrip('_')}" if path else ""
    while isinstance(cell, TRANSPARENT):
        cell = cell.cell
    if type(cell) not in (RNN, LSTM, LSTMVariant, GRU, GRUVariant):
        raise value_error(
            f"to_onnx got {type(cell).__name__}{at}",
            "RNN, LSTM or GRU, whose equations ONNX's nodes have",
            "Use jax.export, which takes any network.",
        )
    op = type(cell).__name__.removesuffix("Variant")
    without: dict[str, tuple[Any, ...]] = {"dtype": (None, np.dtype("float32"))}
    without |= dict.fromkeys(("proj_size", "ablation", "cell_clip", "layer_norm"), (None,))
    for name, supported in without.items():
        value = getattr(cell, name, None)
        if value not in supported:
            raise value_error(
                f"to_onnx got {op}({name}={short_value(value)}){at}",
                f"options that ONNX's {op} node has",
                "Leave the option out, or use jax.export, which takes any network.",
            )
    order, onnx_order = GATES[op]
    if getattr(cell, "coupled", False):
        order = "igo"
    arrays = _arrays(cell, params, len(order), at)
    H = cell.hidden_size
    peepholes = arrays.get("peepholes")
    bias = arrays.get("bias")
    second = np.zeros(H * len(onnx_order), np.float32)
    if "bias_hn" in arrays:
        second[-H:] = arrays["bias_hn"]
    if bias is None and second.any():
        bias = np.zeros(H * len(order), np.float32)
    initial = None
    if cell.learn_initial_carry:
        initial = tuple(_float32("initial", leaf, at) for leaf in jax.tree.leaves(params.initial))
    return Node(
        op,
        W=to_rows(arrays["w_ih"], order, onnx_order),
        R=to_rows(dense(arrays["w_hh"], len(order)), order, onnx_order),
        B=None if bias is None else np.concatenate([to_rows(bias, order, onnx_order), second]),
        P=None if peepholes is None else to_rows(peepholes, order.replace("g", ""), PEEPHOLES),
        initial=initial,
        activations=_activations_of(cell, op, at),
        clip=getattr(cell, "clip", None),
        input_forget=getattr(cell, "coupled", False),
        linear_before_reset=op == "GRU" and getattr(cell, "reset_after", True),
    )


def _activations_of(cell: Any, op: str, at: str) -> tuple[OnnxActivation, ...] | None:
    """The node's activations, or None for the defaults."""
    if isinstance(cell, (LSTM, GRU)):
        return None
    names = ("activation",) if op == "RNN" else ("recurrent_activation", "activation")
    found = [to_onnx_activation(getattr(cell, name), f"to_onnx got {op}{at} with {name}") for name in names]
    found += found[1:] if op == "LSTM" else []  # for the candidate and the cell state
    return None if tuple(found) == DEFAULT_ACTIVATIONS[op] else tuple(found)


def _arrays(cell: Any, params: Any, gates: int, at: str) -> dict[str, np.ndarray]:
    """The parameters by name without the initial carry, of the shapes that the cell has."""
    G, H = gates, cell.hidden_size
    expected = {"w_ih": (cell.input_size, G * H), "w_hh": head_shape(getattr(cell, "heads", 1), H, G * H)}
    if cell.use_bias:
        expected["bias"] = (G * H,)
    if getattr(cell, "peepholes", False):
        expected["peepholes"] = ((G - 1) * H,)
    optional = {"bias_hn": (H,)} if getattr(params, "bias_hn", None) is not None else {}
    found = {}
    for name, shape in (expected | optional).items():
        value = getattr(params, name, None)
        array = None if value is None else _float32(name, value, at)
        if array is None or array.shape != shape:
            raise value_error(
                f"to_onnx got {name} of shape {None if array is None else array.shape}{at}",
                f"shape {shape}",
                "Make parameters with init(key).",
            )
        found[name] = array
    return found


def _float32(name: str, value: Any, at: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype != np.float32:
        raise value_error(
            f"to_onnx got {name} of dtype {array.dtype}{at}",
            "float32, which every ONNX runtime computes in",
            "Cast with jax.tree.map(lambda a: a.astype(jnp.float32), params).",
        )
    return array


def to_rows(w: np.ndarray, order: str, onnx_order: str) -> np.ndarray:
    """Gates along the last axis, in ``order``, as rows in ``onnx_order``; missing gates are zeros."""
    gates = dict(zip(order, np.split(w, len(order), axis=-1), strict=True))
    zeros = np.zeros_like(gates[order[0]])
    return np.ascontiguousarray(np.concatenate([gates.get(g, zeros) for g in onnx_order], axis=-1).T)


def dense(w: np.ndarray, gates: int) -> np.ndarray:
    """The diagonal blocks of the heads as one matrix (H, G*H)."""
    if w.ndim == 2:
        return w
    heads, size, columns = w.shape
    H = heads * size
    whole = np.zeros((heads, size, gates, heads, columns // gates), w.dtype)
    for n in range(heads):
        whole[n, :, :, n] = w[n].reshape(size, gates, columns // gates)
    return whole.reshape(H, gates * H)


# --- to a cell ----------------------------------------------------------------------------------


def cell_of(node: Node, where: str = "from_onnx got a node") -> tuple[Any, Any]:
    """The cell equal to a node, and its parameters; ``where`` begins messages.

    Raises:
        ValueError: shapes or dtypes contradict each other, or an attribute has no counterpart.
    """
    check_node(node, where)
    order, onnx_order = GATES[node.op]
    if node.input_forget:
        order = "igo"
    D, H = node.W.shape[1], node.hidden_size
    dtype = jax.dtypes.canonicalize_dtype(node.W.dtype)

    def array(a: np.ndarray) -> Array:
        return jnp.asarray(a.astype(dtype))

    w_ih, w_hh = (array(to_columns(w, onnx_order, order)) for w in (node.W, node.R))
    bias = bias_hn = None
    if node.B is not None:
        first, second = np.split(node.B, 2)
        if node.linear_before_reset:  # the candidate's second bias is inside the product with the reset gate
            bias_hn = array(second[-H:])
            second = np.concatenate([second[:-H], np.zeros_like(second[-H:])])
        bias = array(to_columns(np.where(second == 0, first, first + second), onnx_order, order))
    options: dict[str, Any] = {"use_bias": bias is not None, "param_dtype": dtype}
    initial = None
    if node.initial is not None:
        options["learn_initial_carry"] = True
        initial = tuple(map(array, node.initial))
    activations = node.activations or DEFAULT_ACTIVATIONS[node.op]
    options["activation"] = from_onnx_activation(activations[-1])
    if node.op == "RNN":
        return RNN(D, H, **options), RNNParams(w_ih, w_hh, bias, None if initial is None else initial[0])
    options["recurrent_activation"] = from_onnx_activation(activations[0])
    if node.op == "GRU":
        cell = make_cell(GRU, D, H, reset_after=node.linear_before_reset, **options)
        params = GRUParams(w_ih, w_hh, bias, bias_hn, None if initial is None else initial[0])
        return cell, params_for(cell, params)
    clip = None if node.clip is None else float32_value(node.clip)
    options |= {"clip": clip, "coupled": node.input_forget, "peepholes": node.P is not None}
    cell = make_cell(LSTM, D, H, **options)
    learned = None if initial is None else (initial[0], initial[1])
    params = params_for(cell, LSTMParams(w_ih, w_hh, bias, learned))
    if node.P is not None:
        params = params._replace(peepholes=array(to_columns(node.P, PEEPHOLES, order.replace("g", ""))))
    return cell, params


def check_node(node: Node, where: str) -> None:
    """Check that shapes and dtypes agree, and that the library has the options of the node."""
    H, G = node.hidden_size, len(GATES[node.op][1])
    D = node.W.shape[-1]
    if not D or not H:
        raise value_error(
            f"{where} with W of shape {node.W.shape} and R of shape {node.R.shape}",
            "one input feature and one unit or more",
            "Look at the node's weights.",
        )
    shapes = {"W": (G * H, D), "R": (G * H, H), "B": (2 * G * H,), "P": (3 * H,)}
    arrays = {name: getattr(node, name) for name in shapes}
    for name, shape in shapes.items():
        if arrays[name] is not None and arrays[name].shape != shape:
            raise value_error(
                f"{where} with {name} of shape {arrays[name].shape}",
                f"{shape}",
                "Look at the node's weights.",
            )
    arrays |= {f"initial_{name}": a for name, a in zip("hc", node.initial or (), strict=False)}
    dtypes = {name: a.dtype.name for name, a in arrays.items() if a is not None}
    if len(set(dtypes.values())) > 1 or not jnp.issubdtype(node.W.dtype, jnp.floating):
        raise value_error(
            f"{where} with weights of {', '.join(f'{name} {dtype}' for name, dtype in dtypes.items())}",
            "weights of one floating dtype",
            "Cast the model's weights to one dtype.",
        )
    if node.clip is not None and (node.op != "LSTM" or not node.clip > 0):
        raise value_error(
            f"{where} with clip={node.clip}",
            "a positive clip of an LSTM node; the library's RNN and GRU have no clip",
            "Export the model without it.",
        )
    if node.op == "LSTM" and node.activations is not None and node.activations[1] != node.activations[2]:
        gates, candidate, state = (activation.name for activation in node.activations)
        raise value_error(
            f"{where} with the activations {gates}, {candidate} and {state}",
            "the same activation for the candidate and the cell state: LSTMVariant has one for both",
            "Write a cell of your own: any object with init, initial_carry and step.",
        )


def to_columns(w: np.ndarray, onnx_order: str, order: str) -> np.ndarray:
    """The inverse of :func:`to_rows`, without the gates that ``order`` lacks."""
    gates = dict(zip(onnx_order, np.split(w, len(onnx_order), axis=0), strict=True))
    return np.concatenate([gates[gate] for gate in order], axis=0).T
