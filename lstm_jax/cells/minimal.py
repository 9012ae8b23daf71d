"""The minimal GRU and LSTM, whose gates depend only on the input, next to their equations."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_key
from lstm_jax._types import Array, DType, Initializer, exportable, state_dtype
from lstm_jax.cells import _init
from lstm_jax.cells._base import VectorCell
from lstm_jax.cells._checks import axis_size, check_carry, check_input, check_params, check_type, normalise
from lstm_jax.cells._linear import add_bias, matmul, sigmoid


@exportable
class MinGRUParams(NamedTuple):
    """Parameters of a :class:`MinGRU`, gate and candidate side by side in the order z, h."""

    w_ih: Array  # (D, 2H)
    bias: Array | None = None  # (2H,)
    initial: Array | None = None  # learned h_0, (H,)


@exportable
class MinLSTMParams(NamedTuple):
    """Parameters of a :class:`MinLSTM`, gates and candidate side by side in the order f, i, h."""

    w_ih: Array  # (D, 3H)
    bias: Array | None = None  # (3H,)
    initial: Array | None = None  # learned h_0, (H,)


@exportable
class MinGRUGates(NamedTuple):
    """The gate and the candidate of one step of a :class:`lstm_jax.MinGRU`."""

    z: Array  # (*batch, H) how much of the candidate replaces the old state, in (0, 1)
    h: Array  # (*batch, H) candidate, above 0


@exportable
class MinLSTMGates(NamedTuple):
    """The gates and the candidate of one step of a :class:`lstm_jax.MinLSTM`."""

    f: Array  # (*batch, H) forget gate, in (0, 1); the old state is kept by f / (f + i)
    i: Array  # (*batch, H) input gate, in (0, 1)
    h: Array  # (*batch, H) candidate, above 0


def min_gru_step(params: MinGRUParams, carry: Array, x: Array) -> tuple[Array, Array]:
    r"""One step of the minimal GRU (Feng et al. 2024, arXiv:2410.01201).

    .. math::
        z_t &= \sigma(x_t W_z + b_z) \\
        \tilde h_t &= g(x_t W_h + b_h) \\
        h_t &= (1 - z_t) \odot h_{t-1} + z_t \odot \tilde h_t

    W is ``params.w_ih``, b is ``params.bias``, and g keeps the candidate positive: :math:`g(a) = a + 1/2`
    where :math:`a \ge 0`, and :math:`\sigma(a)` elsewhere. It is continuous; its slope is 1 at 0 and 1/4 just
    below 0. Only the last line depends on the state, so all steps can be computed at once
    (``implementation="parallel"``).

    z_t = 0 keeps the state (in :func:`gru_step`, z_t = 1 does).

    Args:
        params: ``MinGRUParams`` with w_ih (D, 2H), bias (2H,) or None; in the order z, h.
        carry: h, (*batch, H).
        x: the input of this step, (*batch, D).

    Returns:
        ``(h, h)`` in the dtype of the given carry.

    Raises:
        ValueError: a shape, dtype or type does not fit.

    >>> cell = MinGRU(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> h, y = min_gru_step(params, cell.initial_carry((4,)), jnp.ones((4, 3)))
    >>> h.shape
    (4, 2)
    """
    _check_step("min_gru_step", MinGRUParams, params, carry, x, parts=2)
    return _blend(carry, *_min_gru_parts(add_bias(matmul(x, params.w_ih), params.bias)))


def min_lstm_step(params: MinLSTMParams, carry: Array, x: Array) -> tuple[Array, Array]:
    r"""One step of the minimal LSTM (Feng et al. 2024, arXiv:2410.01201).

    .. math::
        f_t &= \sigma(x_t W_f + b_f) \\
        i_t &= \sigma(x_t W_i + b_i) \\
        \tilde h_t &= g(x_t W_h + b_h) \\
        h_t &= \frac{f_t}{f_t + i_t} \odot h_{t-1} + \frac{i_t}{f_t + i_t} \odot \tilde h_t

    W is ``params.w_ih``, b is ``params.bias``, g is that of :func:`min_gru_step`. The two fractions sum to 1,
    also if both gates underflow to 0.

    Args:
        params: ``MinLSTMParams`` with w_ih (D, 3H), bias (3H,) or None; in the order f, i, h.
        carry: h, (*batch, H).
        x: the input of this step, (*batch, D).

    Returns:
        ``(h, h)`` in the dtype of the given carry.

    Raises:
        ValueError: a shape, dtype or type does not fit.

    >>> cell = MinLSTM(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> h, y = min_lstm_step(params, cell.initial_carry((4,)), jnp.ones((4, 3)))
    >>> h.shape
    (4, 2)
    """
    _check_step("min_lstm_step", MinLSTMParams, params, carry, x, parts=3)
    return _blend(carry, *_min_lstm_parts(add_bias(matmul(x, params.w_ih), params.bias)))


def _min_gru_parts(z: Array) -> tuple[Array, Array]:
    """The weight of the candidate, and the candidate."""
    gate, candidate = jnp.split(z, 2, axis=-1)
    return sigmoid(gate), _positive(candidate)


def _min_lstm_parts(z: Array) -> tuple[Array, Array]:
    """sigma(i) / (sigma(f) + sigma(i)), and the candidate.

    A common factor keeps numerator and denominator from overflowing. In a loop on CPUs, this takes a third of
    the time of the sigmoid of a difference of logarithms.
    """
    f, i, candidate = jnp.split(z, 3, axis=-1)
    largest = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(-f, -i), 0))
    one, not_f, not_i = jnp.exp(-largest), jnp.exp(-f - largest), jnp.exp(-i - largest)
    return (one + not_f) / (2 * one + not_f + not_i), _positive(candidate)


def _positive(a: Array) -> Array:
    return jnp.where(a >= 0, a + 0.5, sigmoid(a))


def _blend(h: Array, weight: Array, candidate: Array) -> tuple[Array, Array]:
    h_t = ((1 - weight) * h.astype(weight.dtype) + weight * candidate).astype(h.dtype)
    return h_t, h_t


def _check_step(owner: str, params_type: type, params: Any, carry: Any, x: Any, parts: int) -> None:
    check_type(owner, params, params_type)
    D, H = axis_size(params.w_ih, 0), axis_size(params.w_ih, -1) // parts
    bias, initial = None if params.bias is None else (parts * H,), None if params.initial is None else (H,)
    check_params(owner, params, params_type((D, parts * H), bias, initial), f"D={D}, H={H}, {parts} parts")
    check_input(owner, x, D)
    check_carry(owner, "h", carry, x.shape[:-1], (H,))


class _MinimalCell(VectorCell):
    """Base class of the minimal cells: one matrix, no recurrent weights, one state."""

    linear_recurrence = True
    recur_reads_carry = False
    has_gates = True
    params_type: ClassVar[Any]
    parts: ClassVar[int]  # gates and candidate

    def __post_init__(self) -> None:
        normalise(self, "input_size", "hidden_size")

    @property
    def param_shapes(self: Any) -> Any:
        """The parameters' NamedTuple of shapes."""
        D, H = self.input_size, self.hidden_size
        bias = (self.parts * H,) if self.use_bias else None
        return self.params_type((D, self.parts * H), bias, (H,) if self.learn_initial_carry else None)

    def init(self: Any, key: Array) -> Any:
        """Fresh parameters from one PRNG key."""
        check_key(f"{type(self).__name__}.init", key)
        k_ih, k_bias = jax.random.split(key)
        D, H, dtype = self.input_size, self.hidden_size, self.param_dtype
        w_ih = _init.init_gates(self.w_ih_init, k_ih, (D, H), self.parts, dtype)
        bias = _init.init_gates(self.bias_init, k_bias, (H,), self.parts, dtype) if self.use_bias else None
        return self.params_type(w_ih, bias, jnp.zeros(H, dtype) if self.learn_initial_carry else None)

    def recur(self, params: Any, carry: Array, u: Array) -> Array:
        """u + b, which does not depend on the carry."""
        return add_bias(u.astype(state_dtype(u.dtype)), params.bias)

    def _coefficients(self, gate: Array, candidate: Array) -> tuple[Array, Array]:
        """``(log a_t, b_t)`` for the weight sigma(gate), accurate where the weight is small."""
        return -jax.nn.softplus(gate), jax.nn.sigmoid(gate) * candidate


@dataclass(frozen=True, repr=False)
class MinGRU(_MinimalCell):
    """Hyperparameters of a minimal GRU; :func:`min_gru_step` has the equations.

    It has no recurrent weights, and all steps of a sequence can be computed at once
    (:class:`lstm_jax.ParallelCell`).

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h.
        use_bias: whether there is a bias b.
        learn_initial_carry: keep h_0 among the parameters instead of zeros.
        w_ih_init, bias_init: functions as in ``jax.nn.initializers``, called once for each of the two parts
            with shapes (D, H) and (H,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix product, of h and of the outputs. None: what parameters and inputs promote
            to. Sums and gates are float32 or wider.

    Raises:
        ValueError: a size is not a positive integer, or a dtype is not floating.

    >>> cell = MinGRU(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> params.w_ih.shape, params.bias.shape
    ((3, 4), (4,))
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    use_bias: bool = True
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.glorot_uniform
    bias_init: Initializer = _init.zeros
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    params_type = MinGRUParams
    parts = 2

    def update(self, params: MinGRUParams, carry: Array, z: Array, noise: None = None) -> tuple[Array, Array]:
        """Gate, candidate, hidden state."""
        return _blend(carry, *_min_gru_parts(z))

    def gates(self, params: MinGRUParams, carry: Array, x: Array) -> MinGRUGates:
        """The gates of one step; x may have any leading axes, time included."""
        z, h = self.preactivations(params, carry, x)
        return MinGRUGates(sigmoid(z), _positive(h))

    def preactivations(self, params: MinGRUParams, carry: Array, x: Array) -> MinGRUGates:
        """The pre-activations of :meth:`gates`."""
        return MinGRUGates(*jnp.split(self.recur(params, carry, self.project(params, x)), 2, axis=-1))

    def coefficients(self, params: MinGRUParams, x: Array) -> tuple[Array, Array]:
        """``(log(1 - z_t), z_t g_t)``, each (..., H)."""
        z = self.recur(params, x, self.project(params, x))
        gate, candidate = jnp.split(z, 2, axis=-1)
        return self._coefficients(gate, _positive(candidate))


@dataclass(frozen=True, repr=False)
class MinLSTM(_MinimalCell):
    """Hyperparameters of a minimal LSTM; :func:`min_lstm_step` has the equations.

    It has no recurrent weights and one state, and all steps of a sequence can be computed at once
    (:class:`lstm_jax.ParallelCell`).

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h.
        use_bias: whether there is a bias b.
        forget_bias: added to the forget gate's bias by ``init``. A larger value lets a new cell remember
            longer. It has no effect after ``init``, and none without a bias.
        learn_initial_carry: keep h_0 among the parameters instead of zeros.
        w_ih_init, bias_init: functions as in ``jax.nn.initializers``, called once for each of the three parts
            with shapes (D, H) and (H,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix product, of h and of the outputs. None: what parameters and inputs promote
            to. Sums and gates are float32 or wider.

    Raises:
        ValueError: a size is not a positive integer, or a dtype is not floating.

    >>> cell = MinLSTM(input_size=3, hidden_size=2)
    >>> cell.init(jax.random.key(0)).bias.tolist()
    [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    use_bias: bool = True
    forget_bias: float = 1.0
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.glorot_uniform
    bias_init: Initializer = _init.zeros
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    params_type = MinLSTMParams
    parts = 3

    def init(self, key: Array) -> MinLSTMParams:
        """Fresh parameters from one PRNG key."""
        params = super().init(key)
        if params.bias is None:
            return params
        return params._replace(bias=params.bias.at[: self.hidden_size].add(self.forget_bias))

    def update(
        self, params: MinLSTMParams, carry: Array, z: Array, noise: None = None
    ) -> tuple[Array, Array]:
        """Gates, candidate, hidden state."""
        return _blend(carry, *_min_lstm_parts(z))

    def gates(self, params: MinLSTMParams, carry: Array, x: Array) -> MinLSTMGates:
        """The gates of one step; x may have any leading axes, time included."""
        f, i, h = self.preactivations(params, carry, x)
        return MinLSTMGates(sigmoid(f), sigmoid(i), _positive(h))

    def preactivations(self, params: MinLSTMParams, carry: Array, x: Array) -> MinLSTMGates:
        """The pre-activations of :meth:`gates`."""
        return MinLSTMGates(*jnp.split(self.recur(params, carry, self.project(params, x)), 3, axis=-1))

    def coefficients(self, params: MinLSTMParams, x: Array) -> tuple[Array, Array]:
        """``(log(f_t / (f_t + i_t)), i_t / (f_t + i_t) g_t)``, each (..., H)."""
        z = self.recur(params, x, self.project(params, x))
        f, i, candidate = jnp.split(z, 3, axis=-1)
        return self._coefficients(jax.nn.softplus(-f) - jax.nn.softplus(-i), _positive(candidate))
