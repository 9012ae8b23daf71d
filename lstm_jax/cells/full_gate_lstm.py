"""The LSTM with full gate recurrence, and the nine LSTMs of Greff et al. 2017 by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_choice
from lstm_jax._types import Array, DType, Initializer, exportable, promote, same_dtype, state_dtype
from lstm_jax.cells import _init
from lstm_jax.cells._base import VectorCell
from lstm_jax.cells._checks import axis_size, check_carry, check_input, check_params, check_type, normalise
from lstm_jax.cells._linear import add_bias, matmul
from lstm_jax.cells.lstm import LSTM, LSTMGates
from lstm_jax.cells.lstm_variant import LSTMVariant, VariantStep, variant_update

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
    """One of the LSTMs of Greff et al. (2017, "LSTM: A Search Space Odyssey"), by its name in the paper.

    Args:
        name: ``"V"``, the vanilla LSTM, with peepholes; or a variant of it: ``"NIG"``, ``"NFG"``,
            ``"NOG"`` (no input, forget, output gate), ``"NIAF"``, ``"NOAF"`` (no input, output activation
            function), ``"CIFG"`` (coupled input and forget gate), ``"NP"`` (no peepholes), ``"FGR"`` (full
            gate recurrence: :class:`FullGateLSTM`).
        input_size: D, features of one input.
        hidden_size: H, units of h and of c.
        options: other options of the cell, for instance ``use_bias`` or ``dtype``.

    Returns:
        An :class:`LSTMVariant`, an :class:`LSTM` where no option is needed, or a :class:`FullGateLSTM`.

    Raises:
        ValueError: the name is unknown.

    >>> greff2017("NOG", 3, 2).init(jax.random.key(0)).w_ih.shape  # three gates: i, f, g
    (3, 6)
    """
    check_choice("greff2017", "name", name, (*_VARIANTS, "FGR"))
    if name == "FGR":
        return FullGateLSTM(input_size, hidden_size, **options)
    options = _VARIANTS[name] | options
    plain = {field.name for field in dataclasses.fields(LSTM)}
    return (LSTM if set(options) <= plain else LSTMVariant)(input_size, hidden_size, **options)


@exportable
class FullGateLSTMParams(NamedTuple):
    """Parameters of a :class:`FullGateLSTM`; gates in the order i, f, g, o, where there are four."""

    w_ih: Array  # (D, 4H)
    w_hh: Array  # (H, 4H)
    w_gates: Array  # (3H, 3H) from the last step's i, f, o to the pre-activations of i, f, o
    bias: Array | None = None  # (4H,)
    peepholes: Array | None = None  # (3H,) from the cell state to i, f, o


FullGateCarry: TypeAlias = tuple[Array, Array, Array]

#: Options for :func:`variant_update`, which does not use the sizes.
_WITH_PEEPHOLES = LSTMVariant(1, 1, peepholes=True)


def full_gate_lstm_step(
    params: FullGateLSTMParams, carry: FullGateCarry, x: Array
) -> tuple[FullGateCarry, Array]:
    r"""One step of the LSTM whose gates read the last values of all gates (Greff et al. 2017, FGR).

    It is :func:`lstm_jax.lstm_step` with peepholes, and with the term

    .. math:: i_{t-1} R_{ik} + f_{t-1} R_{fk} + o_{t-1} R_{ok}

    added inside the sigmoid of each gate k in i, f, o. ``params.w_gates`` contains the nine R.

    Args:
        params: ``FullGateLSTMParams``.
        carry: ``(h, c, gates)``: (*batch, H), (*batch, H), and i, f, o side by side, (*batch, 3H).
        x: the input of this step, (*batch, D).

    Returns:
        ``((h, c, gates), h)`` in the dtypes of the given carry.

    Raises:
        ValueError: a shape, dtype or type does not fit.

    >>> cell = FullGateLSTM(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> (h, c, gates), y = full_gate_lstm_step(params, cell.initial_carry((4,)), jnp.ones((4, 3)))
    >>> gates.shape
    (4, 6)
    """
    owner = "full_gate_lstm_step"
    check_type(owner, params, FullGateLSTMParams)
    D, H = axis_size(params.w_ih, 0), axis_size(params.w_hh, 0)
    optional = (
        None if params.bias is None else (4 * H,),
        None if params.peepholes is None else (3 * H,),
    )
    shapes = FullGateLSTMParams._make(((D, 4 * H), (H, 4 * H), (3 * H, 3 * H), *optional))
    check_params(owner, params, shapes, f"D={D}, H={H}")
    check_input(owner, x, D)
    check_carry(owner, "h, c, gates", carry, x.shape[:-1], (H,), (H,), (3 * H,))
    dtype = promote(x.dtype, params.w_ih.dtype)
    return _update(params, carry, _recur(params, carry, matmul(x, params.w_ih, dtype), dtype))


def _recur(params: FullGateLSTMParams, carry: FullGateCarry, u: Array, dtype: DType) -> Array:
    h, _, gates = carry
    z = u.astype(state_dtype(u.dtype)) + matmul(h, params.w_hh, dtype)
    i, f, o = jnp.split(matmul(gates, params.w_gates, dtype), 3, axis=-1)
    return add_bias(z + jnp.concatenate([i, f, jnp.zeros_like(i), o], axis=-1), params.bias)


def _update(params: FullGateLSTMParams, carry: FullGateCarry, z: Array) -> tuple[FullGateCarry, Array]:
    h, c, old_gates = carry
    h_t, c_t, gates, _ = variant_update(_WITH_PEEPHOLES, params, *same_dtype(c, z))
    h_t = h_t.astype(h.dtype)
    new_gates = jnp.concatenate([gates.i, gates.f, gates.o], axis=-1).astype(old_gates.dtype)
    return (h_t, c_t.astype(c.dtype), new_gates), h_t


@dataclass(frozen=True, repr=False)
class FullGateLSTM(VectorCell):
    """Hyperparameters of an LSTM with full gate recurrence; :func:`full_gate_lstm_step` has the equation.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h and of c.
        use_bias: whether there is a bias b.
        forget_bias: added to the forget gate's bias by ``init``. It has no effect without a bias.
        w_ih_init, w_hh_init, bias_init: functions as in ``jax.nn.initializers``, called once for each gate
            with shapes (D, H), (H, H) and (H,). w_hh_init also draws each block of w_gates. The peepholes,
            and the gates that the first step reads, are initially 0.
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix products, of h, the gates and the outputs. None: what parameters and
            inputs promote to. Under bfloat16 or float16, c and all sums are float32.

    Raises:
        ValueError: a size is not a positive integer, or a dtype is not floating.

    >>> cell = FullGateLSTM(input_size=3, hidden_size=2)
    >>> cell.init(jax.random.key(0)).w_gates.shape
    (6, 6)
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    use_bias: bool = True
    forget_bias: float = 1.0
    w_ih_init: Initializer = _init.glorot_uniform
    w_hh_init: Initializer = _init.orthogonal
    bias_init: Initializer = _init.zeros
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    has_gates = True
    optional_params = ("peepholes",)
    update_reads_params = True

    def __post_init__(self) -> None:
        normalise(self, "input_size", "hidden_size")

    @property
    def param_shapes(self) -> Any:
        """``FullGateLSTMParams`` of shapes."""
        D, H = self.input_size, self.hidden_size
        bias = (4 * H,) if self.use_bias else None
        return FullGateLSTMParams._make(((D, 4 * H), (H, 4 * H), (3 * H, 3 * H), bias, (3 * H,)))

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The rows of h, c and the gates."""
        return {"h": (self.hidden_size,), "c": (self.hidden_size,), "gates": (3 * self.hidden_size,)}

    def init(self, key: Array) -> FullGateLSTMParams:
        """Fresh parameters from one PRNG key."""
        H, dtype = self.hidden_size, self.param_dtype
        w_ih, w_hh, bias = _init.init_weights(self, key, gates=4)
        if bias is not None:
            bias = bias.at[H : 2 * H].add(self.forget_bias)
        keys = jax.random.split(jax.random.fold_in(key, 3), 3)
        rows = [_init.init_gates(self.w_hh_init, k, (H, H), 3, dtype) for k in keys]
        return FullGateLSTMParams(w_ih, w_hh, jnp.concatenate(rows), bias, jnp.zeros(3 * H, dtype))

    def initial_carry(
        self, batch_shape: Sequence[int] = (), params: FullGateLSTMParams | None = None
    ) -> FullGateCarry:
        """``(h_0, c_0, gates_0)``: zeros, (*batch_shape, H), (*batch_shape, H), (*batch_shape, 3H)."""
        _init.learned_initial(self, params)
        dtype, c_dtype = _init.state_dtypes(self, params)
        dtypes = zip(self.state_shapes.values(), (dtype, c_dtype, dtype), strict=True)
        h, c, gates = (_init.initial_state(self, batch_shape, row, d) for row, d in dtypes)
        return h, c, gates

    def recur(self, params: FullGateLSTMParams, carry: FullGateCarry, u: Array) -> Array:
        """u, the products with h and with the gates, and b: (..., 4H)."""
        return _recur(params, carry, u, u.dtype)

    def update(
        self, params: FullGateLSTMParams, carry: FullGateCarry, z: Array, noise: None = None
    ) -> tuple[FullGateCarry, Array]:
        """Gates, cell state, hidden state."""
        return _update(params, carry, z)

    def gates(self, params: FullGateLSTMParams, carry: FullGateCarry, x: Array) -> LSTMGates:
        """The gates of one step; carry and x may have any leading axes, time included."""
        return self._variant_step(params, carry, x).gates

    def preactivations(self, params: FullGateLSTMParams, carry: FullGateCarry, x: Array) -> LSTMGates:
        """The pre-activations of :meth:`gates`, peepholes included."""
        return self._variant_step(params, carry, x).preactivations

    def _variant_step(self, params: FullGateLSTMParams, carry: FullGateCarry, x: Array) -> VariantStep:
        z = self.recur(params, carry, self.project(params, x))
        return variant_update(_WITH_PEEPHOLES, params, *same_dtype(carry[1], z))
