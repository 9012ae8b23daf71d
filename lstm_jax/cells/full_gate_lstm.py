"""The nine LSTMs of Greff et al. 2017 ("LSTM: A Search Space Odyssey"), by the names of that study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_choice, check_float, check_key, value_error
from lstm_jax._types import Array, DType, Initializer, exportable, promote, state_dtype
from lstm_jax.cells import _checks, _init, _linear
from lstm_jax.cells.lstm import LSTM
from lstm_jax.cells.lstm_form import LSTMForm, inside

_VARIANTS: dict[str, dict[str, Any]] = {
    "V": {"peepholes": True},
    "NIG": {"peepholes": True, "ablation": "no_input_gate"},
    "NFG": {"peepholes": True, "ablation": "no_forget_gate"},
    "NOG": {"peepholes": True, "ablation": "no_output_gate"},
    "NIAF": {"peepholes": True, "ablation": "no_input_activation"},
    "NOAF": {"peepholes": True, "ablation": "no_output_activation"},
    "CIFG": {"peepholes": True, "coupled": True},
    "NP": {},
}


def greff2017(name: str, input_size: int, hidden_size: int, **options: Any) -> Any:
    """One of the LSTMs that Greff et al. (2017) compare, by its name in the paper.

    Args:
        name: ``"V"``, the vanilla LSTM, with peepholes; or what differs from it: ``"NIG"``, ``"NFG"``,
            ``"NOG"`` (no input, forget, output gate), ``"NIAF"``, ``"NOAF"`` (no input, output
            activation function), ``"CIFG"`` (coupled input and forget gate), ``"NP"`` (no
            peepholes), ``"FGR"`` (full gate recurrence: :class:`FullGateLSTM`).
        input_size: D, features of one input.
        hidden_size: H, units of h and of c.
        options: what else the cell is to be told, for instance ``use_bias`` or ``dtype``.

    Raises:
        ValueError: there is no such name.

    >>> greff2017("NOG", 3, 2).init(jax.random.key(0)).w_ih.shape  # three gates: i, f, g
    (3, 6)
    """
    check_choice("greff2017", "name", name, (*_VARIANTS, "FGR"))
    if name == "FGR":
        return FullGateLSTM(input_size, hidden_size, **options)
    return LSTM(input_size, hidden_size, **(_VARIANTS[name] | options))


@exportable
class FullGateLSTMParams(NamedTuple):
    """Parameters of a :class:`FullGateLSTM`; gates in the order i, f, g, o, where there are four."""

    w_ih: Array  # (D, 4H)
    w_hh: Array  # (H, 4H)
    w_gates: Array  # (3H, 3H) from the last step's i, f, o to the pre-activations of i, f, o
    bias: Array | None = None  # (4H,)
    peepholes: Array | None = None  # (3H,) from the cell state to i, f, o


FullGateCarry: TypeAlias = tuple[Array, Array, Array]


def full_gate_lstm_step(
    params: FullGateLSTMParams, carry: FullGateCarry, x: Array
) -> tuple[FullGateCarry, Array]:
    r"""One step of the LSTM whose gates hear all gates' last values (Greff et al. 2017, FGR).

    It is :func:`lstm_step` with peepholes, and with

    .. math:: i_{t-1} R_{ik} + f_{t-1} R_{fk} + o_{t-1} R_{ok}

    added inside the sigmoid of each gate k in i, f, o; the nine R are ``params.w_gates``.

    Args:
        params: ``FullGateLSTMParams``.
        carry: ``(h, c, gates)``: (*batch, H), (*batch, H), and i, f, o side by side, (*batch, 3H).
        x: the input of this step, (*batch, D).

    Returns:
        ``((h, c, gates), h)`` in the dtypes that the carry had.

    Raises:
        ValueError: a shape or dtype does not fit.

    >>> cell = FullGateLSTM(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> (h, c, gates), y = full_gate_lstm_step(params, cell.initial_carry((4,)), jnp.ones((4, 3)))
    >>> gates.shape
    (4, 6)
    """
    owner = "full_gate_lstm_step"
    _checks.check_fields(owner, params)
    H = _linear.first_axis(params.w_hh)
    _checks.check_weights(owner, params, 4, (_linear.first_axis(params.w_ih), H))
    _check_own(owner, params, H)
    _checks.check_input(owner, x, params.w_ih.shape[0])
    _checks.check_carry(owner, "h, c, gates", carry, x, (H, H, 3 * H))
    return _update(params, carry, _recur(params, carry, _linear.affine(x, params.w_ih, None)))


def _recur(params: FullGateLSTMParams, carry: FullGateCarry, u: Array) -> Array:
    h, _, gates = carry
    z = u.astype(state_dtype(u.dtype)) + _linear.product(h, params.w_hh, u.dtype)
    i, f, o = jnp.split(_linear.product(gates, params.w_gates, u.dtype), 3, axis=-1)
    recurrent = jnp.concatenate([i, f, jnp.zeros_like(i), o], axis=-1)
    return _linear.add_bias(z + recurrent, params.bias)


def _update(params: FullGateLSTMParams, carry: FullGateCarry, z: Array) -> tuple[FullGateCarry, Array]:
    h, c, gates = carry
    dtype = promote(z.dtype, c.dtype)
    found = inside(LSTMForm(), params, c.astype(dtype), z.astype(dtype))
    h_t = found.h.astype(h.dtype)
    now = jnp.concatenate([found.i, found.f, found.o], axis=-1)
    return (h_t, found.c.astype(c.dtype), now.astype(gates.dtype)), h_t


@dataclass(frozen=True)
class FullGateLSTM:
    """Hyperparameters of an LSTM with full gate recurrence; :func:`full_gate_lstm_step` has the equation.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h and of c.
        use_bias: whether there is a b.
        forget_bias: added to the forget gate's bias at initialisation; none without a bias.
        w_ih_init, w_hh_init, bias_init: any function of ``jax.nn.initializers``; called once for
            each gate, with shape (D, H), (H, H) and (H,); w_hh_init also for each part of w_gates.
            Peepholes begin at 0, and so do the gates that the first step hears.
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix products, of h, the gates and the outputs. None: what parameters
            and inputs promote to. Under bfloat16 or float16, c and all sums stay float32.

    Raises:
        ValueError: a size is not a positive whole number, or a dtype is not floating.

    >>> cell = FullGateLSTM(input_size=3, hidden_size=2)
    >>> cell.init(jax.random.key(0)).w_gates.shape
    (6, 6)
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    use_bias: bool = True
    forget_bias: float = 1.0
    w_ih_init: Initializer = _init.GLOROT_UNIFORM
    w_hh_init: Initializer = _init.ORTHOGONAL
    bias_init: Initializer = _init.ZEROS
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    #: Not offered: the carry would be that of the LSTM and three gates more.
    learn_initial_carry = False

    def __post_init__(self) -> None:
        _checks.normalise(self, "input_size", "hidden_size")

    @property
    def output_size(self) -> int:
        """Features of one output: H."""
        return self.hidden_size

    def init(self, key: Array) -> FullGateLSTMParams:
        """Fresh parameters from one PRNG key."""
        check_key("FullGateLSTM.init", key)
        H, dtype = self.hidden_size, self.param_dtype
        w_ih, w_hh, bias = _init.init_weights(self, key, 4)
        if bias is not None:
            bias = bias.at[H : 2 * H].add(self.forget_bias)
        keys = jax.random.split(jax.random.fold_in(key, 3), 3)
        rows = [_init.init_gates(self.w_hh_init, k, (H, H), 3, dtype) for k in keys]
        return FullGateLSTMParams(w_ih, w_hh, jnp.concatenate(rows), bias, jnp.zeros(3 * H, dtype))

    def initial_carry(
        self, batch_shape: Sequence[int] = (), params: FullGateLSTMParams | None = None
    ) -> FullGateCarry:
        """``(h_0, c_0, gates_0)``: zeros, (*batch_shape, H), (*batch_shape, H), (*batch_shape, 3H)."""
        dtype = _init.compute_dtype(self, params)
        c_dtype = promote(state_dtype(dtype), _init.weights_dtype(self, params))
        h, c = (_init.initial_state(self, batch_shape, None, d) for d in (dtype, c_dtype))
        gates = _init.initial_state(self, batch_shape, None, dtype, row=(3 * self.hidden_size,))
        return h, c, gates

    def step(self, params: FullGateLSTMParams, carry: FullGateCarry, x: Array) -> tuple[FullGateCarry, Array]:
        """:func:`full_gate_lstm_step` in the cell's ``dtype``."""
        H = self.hidden_size
        _checks.check_carry("FullGateLSTM.step", "h, c, gates", carry, x, (H, H, 3 * H))
        return _update(params, carry, _recur(params, carry, self.project(params, x)))

    def project(self, params: FullGateLSTMParams, x: Array) -> Array:
        """x W: (..., 4H)."""
        _checks.check_cell(self, params, x, 4)
        _check_own("FullGateLSTM", params, self.hidden_size)
        return _linear.affine(x, params.w_ih, None, self.dtype)

    def recur(self, params: FullGateLSTMParams, carry: FullGateCarry, u: Array) -> Array:
        """u, what h says, what the gates say, and b: (..., 4H)."""
        return _recur(params, carry, u)

    def update(
        self, params: FullGateLSTMParams, carry: FullGateCarry, z: Array
    ) -> tuple[FullGateCarry, Array]:
        """Gates, cell state, hidden state."""
        return _update(params, carry, z)


def _check_own(owner: str, params: Any, H: int) -> None:
    for name, shape in (("w_gates", (3 * H, 3 * H)), ("peepholes", (3 * H,))):
        value: Any = getattr(params, name, None)
        if value is None and name == "peepholes":
            continue
        check_float(owner, name, value)
        if tuple(value.shape) != shape:
            raise value_error(
                f"{owner} got {name} of shape {tuple(value.shape)}",
                f"shape {shape} (H={H})",
                "Make parameters with cell.init(key).",
            )
