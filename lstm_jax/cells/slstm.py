"""The sLSTM, an LSTM with exponential gates, next to its equations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp

from lstm_jax._errors import check_choice
from lstm_jax._types import Array, DType, Initializer, exportable, promote, state_dtype
from lstm_jax.cells import _init
from lstm_jax.cells._base import VectorCell
from lstm_jax.cells._checks import check_carry, check_head_params, check_heads, check_input, normalise
from lstm_jax.cells._linear import add_bias, head_matmul, head_shape, matmul, sigmoid
from lstm_jax.cells._stabiliser import FORGET_GATES, INITIAL_STABILISER, stabilised_gates


@exportable
class SLSTMParams(NamedTuple):
    """Parameters of an :class:`SLSTM`. The gates are side by side in the order i, f, z, o."""

    w_ih: Array  # (D, 4H)
    w_hh: Array  # (H, 4H), or the diagonal blocks (heads, H/heads, 4H/heads)
    bias: Array | None = None  # (4H,)
    initial: Array | None = None  # learned h_0, (H,)


@exportable
class SLSTMGates(NamedTuple):
    """The gates of one step of an :class:`lstm_jax.SLSTM`, without the stabiliser.

    i is exp of its pre-activation, which may overflow; the states do not, because the cell stores them times
    exp(-m).
    """

    i: Array  # (*batch, H) input gate, above 0
    f: Array  # (*batch, H) forget gate, in (0, 1) or, with forget_gate="exp", above 0
    z: Array  # (*batch, H) candidate, in (-1, 1)
    o: Array  # (*batch, H) output gate, in (0, 1)


SLSTMCarry: TypeAlias = tuple[Array, Array, Array, Array]


def slstm_step(
    params: SLSTMParams, carry: SLSTMCarry, x: Array, *, forget_gate: str
) -> tuple[SLSTMCarry, Array]:
    r"""One step of the sLSTM (Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory").

    .. math::
        \tilde i_t &= x_t W_i + h_{t-1} R_i + b_i \quad\text{and so } \tilde f_t, \tilde z_t, \tilde o_t \\
        m_t &= \max(\log f_t + m_{t-1}, \tilde i_t) \\
        i'_t &= \exp(\tilde i_t - m_t) \\
        f'_t &= \exp(\log f_t + m_{t-1} - m_t) \\
        c_t &= f'_t \odot c_{t-1} + i'_t \odot \tanh(\tilde z_t) \\
        n_t &= f'_t \odot n_{t-1} + i'_t \\
        h_t &= \sigma(\tilde o_t) \odot c_t / n_t

    W is ``params.w_ih``, R is ``params.w_hh``, b is ``params.bias``, f is :math:`\sigma(\tilde f)` or
    :math:`\exp(\tilde f)`. With heads, R is block diagonal and ``params.w_hh[head]`` is one block. The
    input gate is :math:`i = \exp(\tilde i)`. The normaliser n is the sum of the weights in c, so c / n is a
    weighted mean and h lies in [-1, 1].

    The c and n of the definition would overflow. Both are stored times exp(-m), which cancels in c / n. m_0
    is -2^127, so at the first step i' = 1 and f' = 0. From then on n >= 1: either i' = 1, or f' = 1 and n
    does not decrease. The results are finite in float32 or wider while :math:`\tilde i` is above -2^127 and
    :math:`\log f_t + m_{t-1}` does not overflow. Under ``forget_gate="sigmoid"`` the latter cannot happen,
    because log f <= 0.

    Args:
        params: ``SLSTMParams`` with w_ih (D, 4H), w_hh (H, 4H) or (heads, H/heads, 4H/heads), bias (4H,) or
            None; gates in the order i, f, z, o.
        carry: ``(h, c, n, m)``, each (*batch, H). Begin with ``SLSTM.initial_carry``.
        x: the input of this step, (*batch, D).
        forget_gate: "sigmoid" or "exp".

    Returns:
        ``((h, c, n, m), h)`` in the dtypes of the given carry.

    Raises:
        ValueError: a shape, dtype or type does not fit.

    >>> import jax
    >>> cell = SLSTM(input_size=3, hidden_size=4, heads=2)
    >>> params = cell.init(jax.random.key(0))
    >>> (h, c, n, m), y = slstm_step(params, cell.initial_carry(), jnp.ones(3), forget_gate="sigmoid")
    >>> y.shape, n.tolist()
    ((4,), [1.0, 1.0, 1.0, 1.0])
    """
    D, H = check_head_params("slstm_step", SLSTMParams, params, gates=4)
    check_choice("slstm_step", "forget_gate", forget_gate, FORGET_GATES)
    check_input("slstm_step", x, D)
    check_carry("slstm_step", "h, c, n, m", carry, x.shape[:-1], (H,), (H,), (H,), (H,))
    dtype = promote(x.dtype, params.w_ih.dtype)
    z = matmul(x, params.w_ih, dtype) + head_matmul(carry[0], params.w_hh, 4, dtype)
    return _update(forget_gate, carry, add_bias(z, params.bias))


def _update(forget_gate: str, carry: SLSTMCarry, z: Array) -> tuple[SLSTMCarry, Array]:
    h, c, n, m = carry
    dtype = promote(z.dtype, c.dtype, n.dtype, m.dtype)
    i, f, z, o = jnp.split(z.astype(dtype), 4, axis=-1)
    i, f, m_t = stabilised_gates(forget_gate, i, f, m.astype(dtype))
    c_t = f * c.astype(dtype) + i * jnp.tanh(z)
    n_t = f * n.astype(dtype) + i
    h_t = (sigmoid(o) * (c_t / n_t)).astype(h.dtype)
    return (h_t, c_t.astype(c.dtype), n_t.astype(n.dtype), m_t.astype(m.dtype)), h_t


@dataclass(frozen=True, repr=False)
class SLSTM(VectorCell):
    r"""Hyperparameters of an sLSTM; :func:`slstm_step` has the equations.

    The carry is ``(h, c, n, m)``: hidden state, cell state, normaliser, stabiliser.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of each part of the carry.
        heads: diagonal blocks of w_hh, a divisor of H.
        forget_gate: "sigmoid", or "exp" for :math:`f = \exp(\tilde f)`.
        use_bias: whether there is a bias b.
        forget_bias: added to the forget gate's bias by ``init``. 1 lets a new cell remember, as for the
            LSTM. With ``forget_gate="exp"``, 1 gives old inputs more weight than new ones, and 0 gives all
            inputs the same weight. It has no effect after ``init``, and none without a bias.
        learn_initial_carry: keep h_0 among the parameters instead of zeros. c_0, n_0 and m_0 are never
            learned: the first step forgets them.
        w_ih_init, w_hh_init, bias_init: functions as in ``jax.nn.initializers``, called once for each gate
            with shapes (D, H), (H, H) (for each head (H/heads, H/heads)) and (H,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix products, of h and of the outputs. None: what parameters and inputs
            promote to. Under bfloat16 or float16, c, n, m and all sums are float32.

    Raises:
        ValueError: a size is not a positive integer, heads do not divide H, ``forget_gate`` is another name,
            or a dtype is not floating.

    >>> import jax
    >>> cell = SLSTM(input_size=3, hidden_size=4, heads=2)
    >>> params = cell.init(jax.random.key(0))
    >>> params.w_ih.shape, params.w_hh.shape, params.bias.shape
    ((3, 16), (2, 2, 8), (16,))
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    heads: int = 1
    forget_gate: str = "sigmoid"
    use_bias: bool = True
    forget_bias: float = 1.0
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.glorot_uniform
    w_hh_init: Initializer = _init.orthogonal
    bias_init: Initializer = _init.zeros
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    has_gates = True

    def __post_init__(self) -> None:
        normalise(self, "input_size", "hidden_size", "heads")
        check_heads("SLSTM", self.heads, {"hidden_size": self.hidden_size})
        check_choice("SLSTM", "forget_gate", self.forget_gate, FORGET_GATES)

    @property
    def param_shapes(self) -> Any:
        """``SLSTMParams`` of shapes."""
        D, H = self.input_size, self.hidden_size
        bias, initial = (4 * H,) if self.use_bias else None, (H,) if self.learn_initial_carry else None
        return SLSTMParams._make(((D, 4 * H), head_shape(self.heads, H, 4 * H), bias, initial))

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The rows of h, c, n and m."""
        return {name: (self.hidden_size,) for name in "hcnm"}

    def init(self, key: Array) -> SLSTMParams:
        """Fresh parameters from one PRNG key."""
        H, dtype = self.hidden_size, self.param_dtype
        w_ih, w_hh, bias = _init.init_weights(self, key, 4, self.heads)
        if bias is not None:
            bias = bias.at[H : 2 * H].add(self.forget_bias)
        return SLSTMParams(w_ih, w_hh, bias, jnp.zeros(H, dtype) if self.learn_initial_carry else None)

    def initial_carry(self, batch_shape: Sequence[int] = (), params: SLSTMParams | None = None) -> SLSTMCarry:
        """``(h_0, c_0, n_0, m_0)``, each (*batch_shape, H): zeros or a learned h_0; m_0 is -2^127."""
        learned = _init.learned_initial(self, params)
        h_dtype, dtype = _init.state_dtypes(self, params)
        h = _init.initial_state(self, batch_shape, (self.hidden_size,), h_dtype, learned)
        zeros = _init.initial_state(self, batch_shape, (self.hidden_size,), dtype)
        return h, zeros, zeros, jnp.full_like(zeros, INITIAL_STABILISER)

    def recur(self, params: SLSTMParams, carry: SLSTMCarry, u: Array) -> Array:
        """u + h R + b: (..., 4H)."""
        z = u.astype(state_dtype(u.dtype)) + head_matmul(carry[0], params.w_hh, 4, u.dtype)
        return add_bias(z, params.bias)

    def update(
        self, params: SLSTMParams, carry: SLSTMCarry, z: Array, noise: None = None
    ) -> tuple[SLSTMCarry, Array]:
        """Gates, stabiliser, cell state and normaliser, hidden state."""
        return _update(self.forget_gate, carry, z)

    def gates(self, params: SLSTMParams, carry: SLSTMCarry, x: Array) -> SLSTMGates:
        """The gates of one step; carry and x may have any leading axes, time included."""
        i, f, z, o = self.preactivations(params, carry, x)
        f = sigmoid(f) if self.forget_gate == "sigmoid" else jnp.exp(f)
        return SLSTMGates(jnp.exp(i), f, jnp.tanh(z), sigmoid(o))

    def preactivations(self, params: SLSTMParams, carry: SLSTMCarry, x: Array) -> SLSTMGates:
        """The pre-activations of :meth:`gates`."""
        return SLSTMGates(*jnp.split(self.recur(params, carry, self.project(params, x)), 4, axis=-1))
