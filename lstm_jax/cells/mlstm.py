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


@exportable
class MLSTMGates(NamedTuple):
    """The gates of one step of an :class:`lstm_jax.MLSTM`, without the stabiliser.

    i is exp of its pre-activation, which may overflow; the states do not, because the cell stores them times
    exp(-m).
    """

    i: Array  # (*batch, heads) input gate, above 0
    f: Array  # (*batch, heads) forget gate, in (0, 1) or, with forget_gate="exp", above 0
    o: Array  # (*batch, H) output gate, in (0, 1)


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


def _parts(z: MLSTMPreactivation, shape: tuple[int, ...], dtype: Any) -> tuple[Array, ...]:
    """q, k / sqrt(d), v, the output gate's pre-activation and those of i and f, in ``dtype``."""
    q, k, v, o = (part.reshape(shape) for part in jnp.split(z.qkvo.astype(dtype), 4, axis=-1))
    return (q, k / math.sqrt(shape[-1]), v, o, *jnp.split(z.gates.astype(dtype), 2, axis=-1))


def _output(o: Array, numerator: Array, weight: Array, m: Array, z: MLSTMPreactivation) -> Array:
    """h from C q and n q, both times exp(-m)."""
    # Both are multiplied by exp(min(m, 0)), because exp(-m) may overflow.
    scale = jnp.exp(jnp.minimum(m, 0))
    denominator = jnp.maximum(scale * jnp.abs(weight), jnp.exp(-jnp.clip(m, 0, MAX_EXPONENT)))
    h = sigmoid(o) * (scale[..., None] * numerator / denominator[..., None])
    *rows, columns = z.qkvo.shape
    return h.reshape(*rows, columns // 4).astype(z.qkvo.dtype)


def _update(forget_gate: str, carry: MLSTMCarry, z: MLSTMPreactivation) -> tuple[MLSTMCarry, Array]:
    dtype = promote(z.gates.dtype, *(part.dtype for part in carry))
    C, n, m = (part.astype(dtype) for part in carry)
    q, k, v, o, i, f = _parts(z, n.shape, dtype)
    i, f, m = stabilised_gates(forget_gate, i, f, m)
    C = f[..., None, None] * C + (i[..., None] * v)[..., :, None] * k[..., None, :]
    n = f[..., None] * n + i[..., None] * k
    h = _output(o, jnp.sum(C * q[..., None, :], axis=-1), jnp.sum(n * q, axis=-1), m, z)
    return (C.astype(carry[0].dtype), n.astype(carry[1].dtype), m.astype(carry[2].dtype)), h


def _update_chunk(
    forget_gate: str,
    carry: MLSTMCarry,
    z: MLSTMPreactivation,
    valid: Array | None,
    restart: Array | None,
    stored: MLSTMCarry | None,
) -> tuple[MLSTMCarry, Array]:
    """``_update`` for all steps of a chunk; time is the first axis of z, of the flags and of ``stored``.

    With F_t the sum of log f up to t, step t reads step s with the weight exp(F_t - F_s + i_s - m_t) and the
    carry before the chunk with exp(F_t + m - m_t). m_t is the largest of these exponents, as in the
    recurrence. A restart ends both, and begins at zeros or at ``stored``.
    """
    dtype = promote(z.gates.dtype, *(part.dtype for part in carry))
    C, n, m = (part.astype(dtype) for part in carry)
    L = z.qkvo.shape[0]
    q, k, v, o, i, f = _parts(z, (L, *n.shape), dtype)
    log_f = jax.nn.log_sigmoid(f) if forget_gate == "sigmoid" else f
    step = jnp.arange(L)
    reads = (step[:, None] >= step[None]).reshape(L, L, *(1,) * m.ndim)  # step t reads step s
    if valid is not None:
        log_f = jnp.where(valid[..., None], log_f, 0)
        reads = reads & valid[None, ..., None]
    total = jnp.cumsum(log_f, axis=0)
    exponents, old = total[:, None] - total[None] + i[None], total + m[None]
    if restart is not None:
        segment = jnp.cumsum(restart, axis=0)[..., None]
        reads = reads & (segment[:, None] == segment[None])
        old = jnp.where(segment == 0, old, INITIAL_STABILISER)
    exponents = jnp.where(reads, exponents, -jnp.inf)
    m_t = jnp.maximum(old, jnp.max(exponents, axis=1))
    if stored is not None and restart is not None:
        # The restart that began the segment of each step; the first step where there was none.
        began = jax.lax.cummax(jnp.where(restart, step.reshape(L, *(1,) * (m.ndim - 1)), 0), axis=0)
        C_0, n_0, m_0, before = (
            jnp.take_along_axis(a, jax.lax.expand_dims(began, range(began.ndim, a.ndim)), axis=0)
            for a in (*(part.astype(dtype) for part in stored), total - log_f)
        )
        restarted = jnp.where(segment == 0, INITIAL_STABILISER, total - before + m_0)
        m_t = jnp.maximum(m_t, restarted)
    weights = jnp.exp(exponents - m_t[:, None])
    scores = jnp.einsum("t...d,s...d->ts...", q, k) * weights
    kept = jnp.exp(old - m_t)
    if restart is not None:
        kept = jnp.where(segment == 0, kept, 0)
    numerator = jnp.einsum("ts...,s...v->t...v", scores, v)
    numerator += kept[..., None] * jnp.einsum("...vd,t...d->t...v", C, q)
    weight = jnp.sum(scores, axis=1) + kept * jnp.einsum("...d,t...d->t...", n, q)
    C = kept[-1][..., None, None] * C
    C += jnp.einsum("s...v,s...d->...vd", weights[-1][..., None] * v, k)
    n = kept[-1][..., None] * n + jnp.einsum("s...,s...d->...d", weights[-1], k)
    if stored is not None and restart is not None:
        kept = jnp.where(segment == 0, 0, jnp.exp(restarted - m_t))
        numerator += kept[..., None] * jnp.einsum("t...vd,t...d->t...v", C_0, q)
        weight += kept * jnp.sum(n_0 * q, axis=-1)
        C, n = C + kept[-1][..., None, None] * C_0[-1], n + kept[-1][..., None] * n_0[-1]
    h = _output(o, numerator, weight, m_t, z)
    return (C.astype(carry[0].dtype), n.astype(carry[1].dtype), m_t[-1].astype(carry[2].dtype)), h


@dataclass(frozen=True, repr=False)
class MLSTM(BaseCell):
    r"""Hyperparameters of an mLSTM; :func:`mlstm_step` has the equations.

    The carry is ``(C, n, m)``: matrix memory, normaliser, stabiliser. It does not include the output h.

    C has H^2 / heads entries per row of the batch. ``implementation="parallel"`` computes chunks of time as
    matrix products and stores C once per chunk; ``"auto"`` chooses it from 16 steps on. The fused and the
    plain scan store C, and factors of the same size, at every step for the gradients.

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
        dtype: dtype of the matrix products and of the outputs. None: the promoted dtype of parameters and
            inputs. Under bfloat16 or float16, gates, carry and all sums are float32.

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

    has_gates = True

    def __post_init__(self) -> None:
        normalise(self, "input_size", "hidden_size", "heads")
        check_heads("MLSTM", self.heads, {"hidden_size": self.hidden_size})
        check_choice("MLSTM", "forget_gate", self.forget_gate, FORGET_GATES)

    #: :meth:`update_chunk` computes many steps at once.
    chunks = True
    recur_reads_carry = False

    @property
    def output_size(self) -> int:
        """H, the features of one output."""
        return self.hidden_size

    @property
    def head_size(self) -> int:
        """Units of one head."""
        return self.hidden_size // self.heads

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

    def gates(self, params: MLSTMParams, carry: MLSTMCarry, x: Array) -> MLSTMGates:
        """The gates of one step; carry and x may have any leading axes, time included."""
        i, f, o = self.preactivations(params, carry, x)
        return MLSTMGates(jnp.exp(i), sigmoid(f) if self.forget_gate == "sigmoid" else jnp.exp(f), sigmoid(o))

    def preactivations(self, params: MLSTMParams, carry: MLSTMCarry, x: Array) -> MLSTMGates:
        """The pre-activations of :meth:`gates`."""
        z = self.project(params, x)
        i, f = jnp.split(z.gates, 2, axis=-1)
        return MLSTMGates(i, f, jnp.split(z.qkvo, 4, axis=-1)[-1])

    def update_chunk(
        self,
        carry: MLSTMCarry,
        z: MLSTMPreactivation,
        valid: Array | None,
        restart: Array | None,
        stored: MLSTMCarry | None,
    ) -> tuple[MLSTMCarry, Array]:
        """The carry after a chunk of steps, and the outputs; time is the first axis of all but ``carry``."""
        return _update_chunk(self.forget_gate, carry, z, valid, restart, stored)
