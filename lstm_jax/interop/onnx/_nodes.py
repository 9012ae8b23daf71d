"""One direction of an ONNX node, and the cell that computes the same; needs no onnx.

Of the operators' specification: W (G*H, D) and R (G*H, H) hold their G gates as rows, in the order i o f c
of ``LSTM`` and z r h of ``GRU``; B (2*G*H,) is the bias of W behind which that of R stands; P (3H,) the
peepholes i o f. https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import check_choice, value_error
from lstm_jax._types import Array
from lstm_jax.cells._base import short_value
from lstm_jax.cells._linear import head_shape
from lstm_jax.cells.activations import identity
from lstm_jax.cells.gru import GRU, GRUParams
from lstm_jax.cells.gru_variant import GRUVariant
from lstm_jax.cells.lstm import LSTM, LSTMParams
from lstm_jax.cells.lstm_variant import LSTMVariant
from lstm_jax.cells.rnn import RNN, RNNParams
from lstm_jax.interop._networks import make_cell, params_for
from lstm_jax.regularizers.dropout import CandidateDropout, VariationalDropout
from lstm_jax.regularizers.weight_drop import WeightDrop

#: The gates of each operator, in our order and in ONNX's (which calls our n and g: h and c).
GATES = {"RNN": ("h", "h"), "LSTM": ("ifgo", "iofg"), "GRU": ("rzn", "zrn")}
LOOKING = ("ifo", "iof")  # peepholes
#: What ONNX computes where nobody names activations.
USUAL = {"RNN": ("Tanh",), "LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh")}
#: Evaluated without a key, these are the cell inside.
TRANSPARENT = (VariationalDropout, WeightDrop, CandidateDropout)


@dataclass(frozen=True)
class OnnxActivation:
    """An activation of ONNX by its name and its two numbers, for those that have no name in JAX.

    Models keep the numbers in float32, so that this is what they are rounded to.

    >>> float(OnnxActivation("Affine", 2.0, 1.0)(jnp.float32(3)))
    7.0
    """

    name: str
    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        check_choice("OnnxActivation", "name", self.name, tuple(FORMULAS))
        object.__setattr__(self, "alpha", single(self.alpha))
        object.__setattr__(self, "beta", single(self.beta))

    def __call__(self, x: Array) -> Array:
        """The function's value."""
        alpha, beta = (None if a is None else jnp.asarray(a, x.dtype) for a in (self.alpha, self.beta))
        return FORMULAS[self.name](x, alpha, beta)


def single(number: float | None) -> float | None:
    """The shortest number that is the same in float32, which attributes of a model are written in."""
    return None if number is None else float(str(np.float32(number)))


Formula = Callable[[Array, Any, Any], Array]
FORMULAS: dict[str, Formula] = {
    "Affine": lambda x, a, b: a * x + b,
    "LeakyRelu": lambda x, a, b: jnp.where(x >= 0, x, a * x),
    "ThresholdedRelu": lambda x, a, b: jnp.where(x > a, x, jnp.zeros_like(x)),
    "ScaledTanh": lambda x, a, b: a * jnp.tanh(b * x),
    "HardSigmoid": lambda x, a, b: jnp.clip(a * x + b, 0, 1),
    "Elu": lambda x, a, b: jnp.where(x >= 0, x, a * jnp.expm1(jnp.minimum(x, 0))),
    "Tanh": lambda x, a, b: jnp.tanh(x),
    "Relu": lambda x, a, b: jax.nn.relu(x),
    "Sigmoid": lambda x, a, b: jax.nn.sigmoid(x),
    "Softplus": lambda x, a, b: jax.nn.softplus(x),
    "Softsign": lambda x, a, b: jax.nn.soft_sign(x),
}
#: alpha and beta where a node names none; None: it has no such number, or must name it.
NUMBERS: dict[str, tuple[float | None, float | None]] = {
    "Affine": (1.0, 0.0),
    "LeakyRelu": (0.01, None),
    "ThresholdedRelu": (1.0, None),
    "ScaledTanh": (None, None),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0, None),
}
#: How many of alpha and beta a function reads.
READS = {"LeakyRelu": 1, "ThresholdedRelu": 1, "Elu": 1, "Affine": 2, "ScaledTanh": 2, "HardSigmoid": 2}

#: Functions of JAX that ONNX has too.
ACTIVATIONS: list[tuple[Callable[[Array], Array], OnnxActivation]] = [
    (jnp.tanh, OnnxActivation("Tanh")),
    (jax.nn.relu, OnnxActivation("Relu")),
    (jax.nn.sigmoid, OnnxActivation("Sigmoid")),
    (jax.nn.softplus, OnnxActivation("Softplus")),
    (jax.nn.soft_sign, OnnxActivation("Softsign")),
    (identity, OnnxActivation("Affine", 1.0, 0.0)),
    (jax.nn.leaky_relu, OnnxActivation("LeakyRelu", 0.01)),
    (jax.nn.elu, OnnxActivation("Elu", 1.0)),
    (jax.nn.hard_sigmoid, OnnxActivation("HardSigmoid", 1 / 6, 0.5)),
    (jax.nn.tanh, OnnxActivation("Tanh")),
    (jax.lax.tanh, OnnxActivation("Tanh")),
    (jax.lax.logistic, OnnxActivation("Sigmoid")),
]
#: What a read-out may end in, and the operators.
READOUTS: list[tuple[Callable[[Array], Array], str]] = [
    (identity, ""),
    (jnp.tanh, "Tanh"),
    (jax.nn.relu, "Relu"),
    (jax.nn.sigmoid, "Sigmoid"),
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
    activations: tuple[OnnxActivation, ...] | None = None  # None: the usual ones
    clip: float | None = None
    input_forget: bool = False
    linear_before_reset: bool = False

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.R.shape[1]


# --- from a cell --------------------------------------------------------------------------------


def node_of(cell: Any, params: Any, path: str = "", owner: str = "to_onnx") -> Node:
    """The node that computes what the cell does.

    Raises:
        ValueError: ONNX has no such cell, or the parameters are not float32.
    """
    at = f" at {path.rstrip('_')}" if path else ""
    while isinstance(cell, TRANSPARENT):
        cell = cell.cell
    if type(cell) not in (RNN, LSTM, LSTMVariant, GRU, GRUVariant):
        raise value_error(
            f"{owner} got a {type(cell).__name__}{at}",
            "RNN, LSTM or GRU, whose equations ONNX's nodes have",
            "Use jax.export for other networks: it takes any of them.",
        )
    op = type(cell).__name__.removesuffix("Variant")

    def cannot(what: str) -> NoReturn:
        raise value_error(
            f"{owner} got {op}({what}){at}",
            f"what ONNX's {op} node can represent",
            "Leave the option away, or use jax.export, which takes any network.",
        )

    arrays = {name: _read(owner, at, name, getattr(params, name, None)) for name in ("w_ih", "w_hh", "bias")}
    if cell.dtype not in (None, np.dtype("float32")):
        cannot(f"dtype={cell.dtype}")
    ours, theirs = GATES[op]
    more: dict[str, Any] = {}
    if isinstance(cell, (LSTMVariant, GRUVariant)):
        usual = type(cell)(1, 1)
        for name in ("activation", "recurrent_activation"):
            if getattr(cell, name) != getattr(usual, name):
                cannot(f"{name}={short_value(getattr(cell, name))}")
    if isinstance(cell, LSTMVariant):
        for name in ("proj_size", "ablation", "cell_clip", "layer_norm"):
            if getattr(cell, name) is not None:
                cannot(f"{name}={getattr(cell, name)!r}")
        ours = "igo" if cell.coupled else ours
        more |= {"clip": cell.clip, "input_forget": cell.coupled}
        if cell.peepholes:
            seen = _read(owner, at, "peepholes", params.peepholes)
            more["P"] = rows(seen, ours.replace("g", ""), LOOKING[1])
    second = np.zeros(cell.hidden_size * len(theirs), np.float32)
    if isinstance(cell, RNN):
        more["activations"] = (activation_name(cell.activation, owner, at),)
    elif isinstance(cell, (GRU, GRUVariant)):
        more["linear_before_reset"] = getattr(cell, "reset_after", True)
        bias_hn = _read(owner, at, "bias_hn", params.bias_hn)
        if bias_hn is not None:
            second[-cell.hidden_size :] = bias_hn
    bias = arrays["bias"]
    if bias is None and second.any():
        bias = np.zeros(cell.hidden_size * len(ours), np.float32)
    _fits(owner, at, cell, arrays, len(ours))
    initial = None
    if cell.learn_initial_carry:
        leaves = jax.tree.leaves(params.initial)
        initial = tuple(np.asarray(_read(owner, at, "initial", leaf)) for leaf in leaves)
    return Node(
        op,
        rows(arrays["w_ih"], ours, theirs),
        rows(dense(arrays["w_hh"], len(ours)), ours, theirs),
        None if bias is None else np.concatenate([rows(bias, ours, theirs), second]),
        initial=initial,
        **more,
    )


def activation_name(function: Any, owner: str, at: str = "") -> OnnxActivation:
    """What ONNX calls a function of JAX."""
    if isinstance(function, OnnxActivation):
        return function
    for known, name in ACTIVATIONS:
        if function is known:
            return name
    names = sorted({known.__name__ for known, _ in ACTIVATIONS})
    raise value_error(
        f"{owner} got activation={function!r}{at}",
        f"a function of JAX that ONNX has ({', '.join(names)})",
        "Give one of them, or OnnxActivation(name, alpha, beta).",
    )


def rows(w: Any, ours: str, theirs: str) -> Any:
    """Gates side by side in the last axis, as rows in another order; zeros for a gate that we lack."""
    parts = dict(zip(ours, np.split(w, len(ours), axis=-1), strict=True))
    nothing = np.zeros_like(parts[ours[0]])
    return np.ascontiguousarray(np.concatenate([parts.get(gate, nothing) for gate in theirs], axis=-1).T)


def dense(w: np.ndarray, gates: int) -> np.ndarray:
    """The blocks of the heads as one matrix (H, G*H), zero but for them."""
    if w.ndim == 2:
        return w
    heads, size, columns = w.shape
    H = heads * size
    whole = np.zeros((heads, size, gates, heads, columns // gates), w.dtype)
    for n in range(heads):
        whole[n, :, :, n] = w[n].reshape(size, gates, columns // gates)
    return whole.reshape(H, gates * H)


def _read(owner: str, at: str, name: str, value: Any) -> Any:
    if value is None:
        return None
    array = np.asarray(value)
    if array.dtype != np.float32:
        raise value_error(
            f"{owner} got {name} of dtype {array.dtype}{at}",
            "float32, which every runtime of ONNX computes in",
            "Cast with jax.tree.map(lambda a: a.astype(jnp.float32), params).",
        )
    return array


def _fits(owner: str, at: str, cell: Any, arrays: dict[str, Any], gates: int) -> None:
    H, G = cell.hidden_size, gates
    expected: dict[str, tuple[int, ...]] = {"w_ih": (cell.input_size, G * H)}
    expected["w_hh"] = head_shape(getattr(cell, "heads", 1), H, G * H)
    expected |= {"bias": (G * H,)} if cell.use_bias else {}
    for name, shape in expected.items():
        got = None if arrays[name] is None else tuple(arrays[name].shape)
        if got != shape:
            raise value_error(
                f"{owner} got {name} of shape {got}{at}", f"shape {shape}", "Make them with init(key)."
            )


# --- to a cell ----------------------------------------------------------------------------------


def cell_of(node: Node, owner: str = "from_onnx") -> tuple[Any, Any]:
    """The cell that computes what the node does, and its parameters.

    Raises:
        ValueError: shapes contradict each other, or an attribute has no counterpart.
    """
    ours, theirs = GATES[node.op]
    if node.input_forget:
        ours = "igo"
    H, G = node.hidden_size, len(theirs)
    D = node.W.shape[-1]
    expected: dict[str, tuple[int, ...]] = {
        "W": (G * H, D),
        "R": (G * H, H),
        "B": (2 * G * H,),
        "P": (3 * H,),
    }
    for name, shape in expected.items():
        value = getattr(node, name)
        if value is not None and value.shape != shape:
            raise value_error(
                f"{owner} got {name} of shape {value.shape}", f"{shape}", "Look at the node's weights."
            )
    _usual(node, owner)
    dtype = jax.dtypes.canonicalize_dtype(node.W.dtype)

    def array(a: np.ndarray) -> Array:
        return jnp.asarray(a.astype(dtype))

    w_ih, w_hh = array(columns(node.W, theirs, ours)), array(columns(node.R, theirs, ours))
    bias = bias_hn = None
    if node.B is not None:
        first, second = np.split(node.B, 2)
        if node.linear_before_reset:  # the candidate's second bias stands inside the reset gate's product
            bias_hn = array(second[-H:])
            second = np.concatenate([second[:-H], np.zeros_like(second[-H:])])
        bias = array(columns(np.where(second == 0, first, first + second), theirs, ours))
    options: dict[str, Any] = {"use_bias": bias is not None, "param_dtype": dtype}
    initial = None
    if node.initial is not None:
        options["learn_initial_carry"] = True
        initial = tuple(map(array, node.initial))
    if node.op == "LSTM":
        options |= {"clip": single(node.clip), "coupled": node.input_forget}
        peepholes = None
        if node.P is not None:
            options["peepholes"] = True
            peepholes = array(columns(node.P, LOOKING[1], ours.replace("g", "")))
        learned = None if initial is None else (initial[0], initial[1])
        cell = make_cell(LSTM, D, H, **options)
        params = params_for(cell, LSTMParams(w_ih, w_hh, bias, learned))
        return cell, params if peepholes is None else params._replace(peepholes=peepholes)
    h = None if initial is None else initial[0]
    if node.op == "GRU":
        cell = make_cell(GRU, D, H, reset_after=node.linear_before_reset, **options)
        return cell, params_for(cell, GRUParams(w_ih, w_hh, bias, bias_hn, h))
    if node.activations is not None:
        options["activation"] = activation_of(node.activations[0])
    return RNN(D, H, **options), RNNParams(w_ih, w_hh, bias, h)


def _usual(node: Node, owner: str) -> None:
    """Refuse what our cells lack."""
    if node.op != "LSTM" and node.clip is not None:
        raise value_error(
            f"{owner} got a {node.op} node with clip={node.clip}",
            "no clip, which our LSTM alone has",
            "Export the model without it.",
        )
    if node.op == "RNN" or node.activations is None:
        return
    names = tuple(activation.name for activation in node.activations)
    if names != USUAL[node.op]:
        raise value_error(
            f"{owner} got a {node.op} node with activations {names}",
            f"{USUAL[node.op]}, the only ones of our {node.op}",
            "Write the cell anew with its own functions: any object with init, initial_carry, step unrolls.",
        )


def activation_of(activation: OnnxActivation) -> Callable[[Array], Array]:
    """The function of JAX, where there is one, else the activation itself, which can be called."""

    for known, name in ACTIVATIONS:
        if name == activation:
            return known
    return activation


def columns(w: np.ndarray, theirs: str, ours: str) -> np.ndarray:
    """The inverse of :func:`rows`; a gate that we lack is left away."""
    parts = dict(zip(theirs, np.split(w, len(theirs), axis=0), strict=True))
    return np.concatenate([parts[gate] for gate in ours], axis=0).T


def named(names: list[str], alphas: list[float], betas: list[float], owner: str) -> list[OnnxActivation]:
    """Activations as a node's three lists tell them: numbers go, in order, to those that read some."""
    known = {name.lower(): name for name in FORMULAS}
    left = [list(alphas), list(betas)]
    found = []
    for name in names:
        name = known.get(name.lower(), name)
        numbers = list(NUMBERS.get(name, (None, None)))
        for index in range(READS.get(name, 0)):
            if left[index]:
                numbers[index] = left[index].pop(0)
            if numbers[index] is None:
                which = ("alpha", "beta")[index]
                raise value_error(
                    f"{owner} got the activation {name} without {which}", "both", "Name its numbers."
                )
        found.append(OnnxActivation(name, *numbers))
    return found
