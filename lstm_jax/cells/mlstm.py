"""The mLSTM, an LSTM whose cell state is a matrix, next to its equations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_choice, check_key
from lstm_jax._types import Array, DType, Initializer, exportable, promote
from lstm_jax.cells import _init
from lstm_jax.cells._base import BaseCell
from lstm_jax.cells._checks import (
    axis_size,
    check_carry,
    check_heads,
    check_input,
    check_params,
    check_type,
    normalise,
)
from lstm_jax.cells._linear import add_bias, matmul, sigmoid
from lstm_jax.cells._stabiliser import FORGET_GATES, INITIAL_STABILISER, stabilised_gates

#: exp(-m) is at least exp(-40). The derivative has the inverse square of it, which float32 can represent.
MAX_EXPONENT = 40.0


@exportable
class MLSTMParams(NamedTuple):
    """Parameters of an :class:`MLSTM`. There are no recurrent weights."""

    w_ih: Array  # (D, 4H) query, key, value, output gate, side by side
    w_gates: Array  # (D, 2 heads) input gates of all heads, then forget gates
    bias: Array | None = None  # (4H,)
    bias_gates: Array | None = None  # (2 heads,)


class MLSTMPreactivation(NamedTuple):
    """The matrix products of one step."""

    qkvo: Array  # (*batch, 4H)
    gates: Array  # (*batch, 2 heads), float32 or wider


MLSTMCarry: TypeAlias = tuple[Array, Array, Array]


def mlstm_step(
    params: MLSTMParams, carry: MLSTMCarry, x: Array, *, forget_gate: str
) -> tuple[MLSTMCarry, Array]:
    r"""One step of the mLSTM (Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory").

    For each head, which has d = H / heads units,

    .. math::
        q_t &= x_t W_q + b_q \qquad k_t = (x_t W_k + b_k) / \sqrt d \qquad v_t = x_t W_v + b_v \\
        \tilde i_t &= x_t w_i + b_i \qquad \tilde f_t = x_t w_f + b_f \\
        m_t &= \max(\log f_t + m_{t-1}, \tilde i_t) \\
        i'_t &= \exp(\tilde i_t - m_t) \qquad f'_t = \exp(\log f_t + m_{t-1} - m_t) \\
        C_t &= f'_t C_{t-1} + i'_t v_t k_t^\top \\
        n_t &= f'_t n_{t-1} + i'_t k_t \\
        h_t &= \sigma(x_t W_o + b_o) \odot C_t q_t / \max(|n_t^\top q_t|, \exp(-m_t))

    W_q, W_k, W_v, W_o are side by side in ``params.w_ih``, w_i and w_f in ``params.w_gates``. The gates i
    and f are one number per head, and f is :math:`\sigma(\tilde f)` or :math:`\exp(\tilde f)`. No gate reads
    the carry.

    The C and n of the definition would overflow. Both are stored times exp(-m), so the denominator
    max(\|n q\|, 1) of the definition becomes max(\|n q\|, exp(-m)). m_0 is -2^127, so at the first step
    i' = 1 and f' = 0. The denominator uses exp(-40) where exp(-m) is smaller, so that no derivative divides
    by zero; this changes h only where \|n q\| < 4e-18.

    The gates have the limits of :func:`lstm_jax.slstm_step`. Queries, keys and values are not stabilised: the
    results are finite while C and C q are, which in float32 holds for q, k and v up to about 4e12
    (:math:`2^{42}`).

    Args:
        params: ``MLSTMParams`` with w_ih (D, 4H), w_gates (D, 2 heads), and either bias (4H,) and bias_gates
            (2 heads,) or None for both.
        carry: ``(C, n, m)``: (*batch, heads, d, d) of values by keys, (*batch, heads, d) and
            (*batch, heads). Begin with ``MLSTM.initial_carry``.
        x: the input of this step, (*batch, D).
        forget_gate: "sigmoid" or "exp".

    Returns:
        ``((C, n, m), h)``: the carry in the dtypes of the given carry, h (*batch, H) in what parameters and
        inputs promote to.

    Raises:
        ValueError: a shape, dtype or type does not fit.

    >>> cell = MLSTM(input_size=3, hidden_size=4, heads=2)
    >>> params = cell.init(jax.random.key(0))
    >>> (C, n, m), y = mlstm_step(params, cell.initial_carry(), jnp.ones(3), forget_gate="sigmoid")
    >>> C.shape, n.shape, m.shape, y.shape
    ((2, 2, 2), (2, 2), (2,), (4,))
    """
    owner = "mlstm_step"
    check_type(owner, params, MLSTMParams)
    D, H = axis_size(params.w_ih, 0), axis_size(params.w_ih, -1) // 4
    heads = max(axis_size(params.w_gates, -1) // 2, 1)
    bias = params.bias is not None or params.bias_gates is not None
    check_params(owner, params, _shapes(D, H, heads, bias), f"D={D}, H={H}, {heads} heads")
    check_heads(owner, heads, {"hidden_size": H})
    check_choice(owner, "forget_gate", forget_gate, FORGET_GATES)
    check_input(owner, x, D)
    d = H // heads
    check_carry(owner, "C, n, m", carry, x.shape[:-1], (heads, d, d), (heads, d), (heads,))
    return _update(forget_gate, carry, _project(params, x, None))


def _shapes(D: int, H: int, heads: int, bias: bool) -> Any:
    biases = ((4 * H,), (2 * heads,)) if bias else (None, None)
    return MLSTMParams._make(((D, 4 * H), (D, 2 * heads), *biases))


def _project(params: MLSTMParams, x: Array, dtype: DType | None) -> MLSTMPreactivation:
    """All products of the step. Those of the gates are exponents, so they are not rounded to ``dtype``."""
    dtype = promote(x.dtype, params.w_ih.dtype) if dtype is None else dtype
    qkvo = add_bias(matmul(x, params.w_ih, dtype), params.bias).astype(dtype)
    return MLSTMPreactivation(qkvo, add_bias(matmul(x, params.w_gates, dtype), params.bias_gates))


def _update(forget_gate: str, carry: MLSTMCarry, z: MLSTMPreactivation) -> tuple[MLSTMCarry, Array]:
    dtype = promote(z.gates.dtype, *(part.dtype for part in carry))
    C, n, m = (part.astype(dtype) for part in carry)
    q, k, v, o = (part.reshape(n.shape) for part in jnp.split(z.qkvo.astype(dtype), 4, axis=-1))
    k = k / math.sqrt(k.shape[-1])
    i, f = jnp.split(z.gates.astype(dtype), 2, axis=-1)
    i, f, m = stabilised_gates(forget_gate, i, f, m)
    i, f, m_t = (gate[..., None] for gate in (i, f, m))
    C = f[..., None] * C + (i * v)[..., :, None] * k[..., None, :]
    n = f * n + i * k
    # Numerator and denominator are multiplied by exp(min(m, 0)), because exp(-m) may overflow.
    scale = jnp.exp(jnp.minimum(m_t, 0))
    numerator = scale * jnp.sum(C * q[..., None, :], axis=-1)
    weight = scale * jnp.abs(jnp.sum(n * q, axis=-1, keepdims=True))
    h = sigmoid(o) * (numerator / jnp.maximum(weight, jnp.exp(-jnp.clip(m_t, 0, MAX_EXPONENT))))
    new = C.astype(carry[0].dtype), n.astype(carry[1].dtype), m.astype(carry[2].dtype)
    *rows, columns = z.qkvo.shape
    return new, h.reshape(*rows, columns // 4).astype(z.qkvo.dtype)


@dataclass(frozen=True, repr=False)
class MLSTM(BaseCell):
    r"""Hyperparameters of an mLSTM; :func:`mlstm_step` has the equations.

    The carry is ``(C, n, m)``: matrix memory, normaliser, stabiliser. It does not include the output h.

    C has H^2 / heads entries per row of the batch. Both the fused and the plain scan store C, and factors of
    the same size, at every step for the gradients. For long sequences use ``checkpoint="sqrt"``, which stores
    them for about 2 sqrt(T) steps instead of T.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of the output.
        heads: number of matrix memories, a divisor of H.
        forget_gate: "sigmoid", or "exp" for :math:`f = \exp(\tilde f)`.
        use_bias: whether there are biases.
        forget_bias: added to the bias of the forget gates by ``init``; see :class:`lstm_jax.SLSTM`.
        w_ih_init, w_gates_init, bias_init: functions as in ``jax.nn.initializers``. w_ih_init is called four
            times with (D, H), w_gates_init twice with (D, heads), bias_init four times with (H,) and twice
            with (heads,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix products and of the outputs. None: what parameters and inputs promote to.
            Under bfloat16 or float16, gates, carry and all sums are float32.

    Raises:
        ValueError: a size is not a positive integer, heads do not divide H, ``forget_gate`` is another name,
            or a dtype is not floating.

    >>> cell = MLSTM(input_size=3, hidden_size=4, heads=2)
    >>> params = cell.init(jax.random.key(0))
    >>> params.w_ih.shape, params.w_gates.shape, params.bias.shape, params.bias_gates.shape
    ((3, 16), (3, 4), (16,), (4,))
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    heads: int = 1
    forget_gate: str = "sigmoid"
    use_bias: bool = True
    forget_bias: float = 1.0
    w_ih_init: Initializer = _init.glorot_uniform
    w_gates_init: Initializer = _init.glorot_uniform
    bias_init: Initializer = _init.zeros
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    def __post_init__(self) -> None:
        normalise(self, "input_size", "hidden_size", "heads")
        check_heads("MLSTM", self.heads, {"hidden_size": self.hidden_size})
        check_choice("MLSTM", "forget_gate", self.forget_gate, FORGET_GATES)

    @property
    def output_size(self) -> int:
        """Features of one output: H."""
        return self.hidden_size

    @property
    def param_shapes(self) -> Any:
        """``MLSTMParams`` of shapes."""
        return _shapes(self.input_size, self.hidden_size, self.heads, self.use_bias)

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The rows of C, n and m."""
        heads, d = self.heads, self.hidden_size // self.heads
        return {"C": (heads, d, d), "n": (heads, d), "m": (heads,)}

    def init(self, key: Array) -> MLSTMParams:
        """Fresh parameters from one PRNG key."""
        check_key("MLSTM.init", key)
        keys = jax.random.split(key, 4)
        D, H, heads, dtype = self.input_size, self.hidden_size, self.heads, self.param_dtype
        w_ih = _init.init_gates(self.w_ih_init, keys[0], (D, H), 4, dtype)
        w_gates = _init.init_gates(self.w_gates_init, keys[1], (D, heads), 2, dtype)
        if not self.use_bias:
            return MLSTMParams(w_ih, w_gates)
        bias = _init.init_gates(self.bias_init, keys[2], (H,), 4, dtype)
        bias_gates = _init.init_gates(self.bias_init, keys[3], (heads,), 2, dtype)
        return MLSTMParams(w_ih, w_gates, bias, bias_gates.at[heads:].add(self.forget_bias))

    def initial_carry(self, batch_shape: Sequence[int] = (), params: MLSTMParams | None = None) -> MLSTMCarry:
        """``(C_0, n_0, m_0)``: zeros, and m_0 = -2^127."""
        _init.learned_initial(self, params)
        _, dtype = _init.state_dtypes(self, params)
        rows = self.state_shapes.values()
        C, n, m = (_init.initial_state(self, batch_shape, row, dtype) for row in rows)
        return C, n, jnp.full_like(m, INITIAL_STABILISER)

    def project(self, params: MLSTMParams, x: Array) -> MLSTMPreactivation:
        """Queries, keys, values and output gates, (..., 4H), and the exponents of i and f, (..., 2 heads)."""
        self.check(params, x)
        return _project(params, x, self.dtype)

    def recur(self, params: MLSTMParams, carry: MLSTMCarry, u: MLSTMPreactivation) -> MLSTMPreactivation:
        """u, because no gate reads the carry."""
        return u

    def update(
        self, params: MLSTMParams, carry: MLSTMCarry, z: MLSTMPreactivation, noise: None = None
    ) -> tuple[MLSTMCarry, Array]:
        """Gates, stabiliser, matrix memory and normaliser, output."""
        return _update(self.forget_gate, carry, z)
