"""The long short-term memory (LSTM), next to its equations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._types import Array, DType, Initializer, exportable, promote, same_dtype, state_dtype
from lstm_jax.cells import _init
from lstm_jax.cells._base import VectorCell
from lstm_jax.cells._checks import axis_size, check_carry, check_input, check_params, check_type, normalise
from lstm_jax.cells._linear import add_bias, matmul


@exportable
class LSTMParams(NamedTuple):
    """Parameters of an :class:`LSTM`, the gates side by side in the order i, f, g, o."""

    w_ih: Array  # (D, 4H)
    w_hh: Array  # (H, 4H)
    bias: Array | None = None  # (4H,)
    initial: tuple[Array, Array] | None = None  # learned h_0 and c_0, each (H,)


@exportable
class LSTMGates(NamedTuple):
    """The gates of one step: i, f and o are in (0, 1), the candidate g is in (-1, 1)."""

    i: Array  # (*batch, H) input gate: how much of the candidate is added
    f: Array  # (*batch, H) forget gate: how much of the old cell state is kept
    g: Array  # (*batch, H) candidate
    o: Array  # (*batch, H) output gate: how much of the cell state is output


LSTMCarry: TypeAlias = tuple[Array, Array]


def lstm_step(params: LSTMParams, carry: LSTMCarry, x: Array) -> tuple[LSTMCarry, Array]:
    r"""One step of the LSTM (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

    .. math::
        i_t &= \sigma(x_t W_i + h_{t-1} R_i + b_i) \\
        f_t &= \sigma(x_t W_f + h_{t-1} R_f + b_f) \\
        g_t &= \tanh (x_t W_g + h_{t-1} R_g + b_g) \\
        o_t &= \sigma(x_t W_o + h_{t-1} R_o + b_o) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        h_t &= o_t \odot \tanh(c_t)

    W is ``params.w_ih``, R is ``params.w_hh``, b is ``params.bias``. The function is pure and goes straight
    into :func:`jax.lax.scan`. It takes no options: :class:`LSTMVariant` has those.

    Args:
        params: ``LSTMParams`` with w_ih (D, 4H), w_hh (H, 4H), bias (4H,) or None.
        carry: ``(h, c)``, each (*batch, H).
        x: the input of this step, (*batch, D).

    Returns:
        ``((h, c), h)`` in the dtypes of the given carry.

    Raises:
        ValueError: the parameters are not ``LSTMParams``, or a shape or dtype does not fit.

    >>> cell = LSTM(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> xs = jnp.ones((5, 3))
    >>> from functools import partial
    >>> (h, c), ys = jax.lax.scan(partial(lstm_step, params), cell.initial_carry(), xs)
    >>> ys.shape
    (5, 2)
    """
    check_step("lstm_step", params, carry, x)
    (h, c), dtype = carry, promote(x.dtype, params.w_ih.dtype)
    z = matmul(x, params.w_ih, dtype) + matmul(h, params.w_hh, dtype)
    h_t, c_t = lstm_update(*same_dtype(c, add_bias(z, params.bias)))
    h, c = h_t.astype(h.dtype), c_t.astype(c.dtype)
    return (h, c), h


@jax.custom_jvp
def lstm_update(c: Array, z: Array) -> tuple[Array, Array]:
    """``(h_t, c_t)`` from c_{t-1} (..., H) and the pre-activations (..., 4H) in the order i, f, g, o."""
    i, f, g, o = activate(z)
    c = f * c + i * g
    h = o * jnp.tanh(c)
    return h, c


@lstm_update.defjvp
def _lstm_update_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> Any:
    """Derivatives from the gate outputs: six stored factors per unit, where autodiff stores eleven."""
    (c, z), (dc, dz) = primals, tangents
    i, f, g, o = activate(z)
    c_t = f * c + i * g
    tanh_c = jnp.tanh(c_t)
    dz_i, dz_f, dz_g, dz_o = jnp.split(dz, 4, axis=-1)
    from_i, from_f = g * i * (1 - i) * dz_i, c * f * (1 - f) * dz_f
    from_g, from_o = i * (1 - g * g) * dz_g, tanh_c * o * (1 - o) * dz_o
    dc_t = f * dc + (from_i + from_f + from_g)
    return (o * tanh_c, c_t), (from_o + o * (1 - tanh_c * tanh_c) * dc_t, dc_t)


def activate(z: Array) -> LSTMGates:
    """The gates from (..., 4H). One tanh computes all four, because sigmoid(z) = tanh(z / 2) / 2 + 1 / 2."""
    scale = np.repeat(np.array([0.5, 0.5, 1, 0.5], z.dtype), z.shape[-1] // 4)
    i, f, g, o = jnp.split(jnp.tanh(z * scale.reshape((1,) * (z.ndim - 1) + scale.shape)), 4, axis=-1)
    return LSTMGates(0.5 * i + 0.5, 0.5 * f + 0.5, g, 0.5 * o + 0.5)


def lstm_gates(params: LSTMParams, carry: LSTMCarry, x: Array) -> LSTMGates:
    """The gates that :func:`lstm_step` computes for the same arguments.

    The leading axes may include time: with the carries before each step, one call returns the gates of a
    whole sequence.

    Args:
        params: :class:`LSTMParams`.
        carry: ``(h, c)`` before the step, each (*batch, H).
        x: the input of the step, (*batch, D).

    Returns:
        :class:`LSTMGates`, each (*batch, H).

    Raises:
        ValueError: as in :func:`lstm_step`.

    >>> cell = LSTM(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> gates = lstm_gates(params, cell.initial_carry(), jnp.zeros(3))
    >>> [f"{float(f):.2f}" for f in gates.f]  # zero input, so only the forget bias of 1
    ['0.73', '0.73']
    """
    check_step("lstm_gates", params, carry, x)
    dtype = promote(x.dtype, params.w_ih.dtype)
    z = matmul(x, params.w_ih, dtype) + matmul(carry[0], params.w_hh, dtype)
    return activate(add_bias(z, params.bias))


def check_step(owner: str, params: Any, carry: Any, x: Any) -> None:
    """Check that the arguments of a free function fit together."""
    check_type(owner, params, LSTMParams)
    D, H = axis_size(params.w_ih, 0), axis_size(params.w_hh, 0)
    bias, initial = (
        None if params.bias is None else (4 * H,),
        None if params.initial is None else ((H,), (H,)),
    )
    shapes = LSTMParams._make(((D, 4 * H), (H, 4 * H), bias, initial))
    check_params(owner, params, shapes, f"D={D}, H={H}, 4 gates")
    check_input(owner, x, D)
    check_carry(owner, "h, c", carry, x.shape[:-1], (H,), (H,))


@dataclass(frozen=True, repr=False)
class LSTM(VectorCell):
    """Hyperparameters of an LSTM; :func:`lstm_step` has the equations.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h and of c.
        use_bias: whether there is a bias b.
        forget_bias: added to the forget gate's bias by ``init``. 1 lets a new cell remember (Jozefowicz et
            al. 2015). It has no effect after ``init``, and none without a bias.
        learn_initial_carry: keep h_0 and c_0 among the parameters instead of zeros.
        w_ih_init, w_hh_init, bias_init: functions as in ``jax.nn.initializers``, called once for each gate
            with shapes (D, H), (H, H) and (H,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix products, of h and of the outputs. None: what parameters and inputs
            promote to. Under bfloat16 or float16, c and all sums are float32.

    Raises:
        ValueError: a size is not a positive integer, or a dtype is not floating.

    >>> cell = LSTM(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> params.w_ih.shape, params.w_hh.shape, params.bias.shape
    ((3, 8), (2, 8), (8,))
    >>> (h, c), y = cell.step(params, cell.initial_carry((4,)), jnp.ones((4, 3)))
    >>> y.shape
    (4, 2)
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    use_bias: bool = True
    forget_bias: float = 1.0
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.glorot_uniform
    w_hh_init: Initializer = _init.orthogonal
    bias_init: Initializer = _init.zeros
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    has_gates = True
    scales_candidate = True

    def __post_init__(self) -> None:
        normalise(self, "input_size", "hidden_size")

    @property
    def param_shapes(self) -> Any:
        """``LSTMParams`` of shapes."""
        D, H = self.input_size, self.hidden_size
        bias, initial = (
            (4 * H,) if self.use_bias else None,
            ((H,), (H,)) if self.learn_initial_carry else None,
        )
        return LSTMParams._make(((D, 4 * H), (H, 4 * H), bias, initial))

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The rows of h and c."""
        return {"h": (self.hidden_size,), "c": (self.hidden_size,)}

    def init(self, key: Array) -> LSTMParams:
        """Fresh parameters from one PRNG key."""
        H, dtype = self.hidden_size, self.param_dtype
        w_ih, w_hh, bias = _init.init_weights(self, key, gates=4)
        if bias is not None:
            bias = bias.at[H : 2 * H].add(self.forget_bias)
        initial = (jnp.zeros(H, dtype), jnp.zeros(H, dtype)) if self.learn_initial_carry else None
        return LSTMParams(w_ih, w_hh, bias, initial)

    def initial_carry(self, batch_shape: Sequence[int] = (), params: LSTMParams | None = None) -> LSTMCarry:
        """``(h_0, c_0)``, each (*batch_shape, H): zeros, or the learned vectors."""
        h, c = _init.learned_initial(self, params) or (None, None)
        h_dtype, c_dtype = _init.state_dtypes(self, params)
        row = (self.hidden_size,)
        return (
            _init.initial_state(self, batch_shape, row, h_dtype, h),
            _init.initial_state(self, batch_shape, row, c_dtype, c),
        )

    def recur(self, params: LSTMParams, carry: LSTMCarry, u: Array) -> Array:
        """u + h R + b: (..., 4H)."""
        z = u.astype(state_dtype(u.dtype)) + matmul(carry[0], params.w_hh, u.dtype)
        return add_bias(z, params.bias)

    def update(
        self,
        params: LSTMParams,
        carry: LSTMCarry,
        z: Array,
        noise: None = None,
        *,
        candidate_scale: Array | None = None,
    ) -> tuple[LSTMCarry, Array]:
        """Gates, cell state, hidden state; ``candidate_scale`` multiplies g (recurrent dropout)."""
        h, c = carry
        c_in, z = same_dtype(c, z)
        if candidate_scale is None:
            h_t, c_t = lstm_update(c_in, z)
        else:
            i, f, g, o = activate(z)
            c_t = f * c_in + i * (g * candidate_scale.astype(g.dtype))
            h_t = o * jnp.tanh(c_t)
        h_t = h_t.astype(h.dtype)
        return (h_t, c_t.astype(c.dtype)), h_t

    def gates(self, params: LSTMParams, carry: LSTMCarry, x: Array) -> LSTMGates:
        """:func:`lstm_gates` in the cell's ``dtype``."""
        return activate(self.recur(params, carry, self.project(params, x)))

    def preactivations(self, params: LSTMParams, carry: LSTMCarry, x: Array) -> LSTMGates:
        """The pre-activations of :meth:`gates`."""
        return LSTMGates(*jnp.split(self.recur(params, carry, self.project(params, x)), 4, axis=-1))
