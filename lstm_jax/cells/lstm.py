"""The long short-term memory, next to its equations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells import common
from lstm_jax.notation import Array, DType, Initializer, exportable, promote, state_dtype


@exportable
class LSTMParams(NamedTuple):
    """Parameters of an :class:`LSTM`. The gates stand side by side in the order i, f, g, o."""

    w_ih: Array  # (D, 4H)
    w_hh: Array  # (H, 4H)
    bias: Array | None = None  # (4H,)
    initial: tuple[Array, Array] | None = None  # learned h_0 and c_0, each (H,)


@exportable
class LSTMGates(NamedTuple):
    """What the gates of one step say; i, f, o lie in (0, 1), the candidate g in (-1, 1)."""

    i: Array  # (*batch, H) how much of the candidate is let in
    f: Array  # (*batch, H) how much of the old cell state is kept
    g: Array  # (*batch, H) the candidate
    o: Array  # (*batch, H) how much of the cell state is shown


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

    W is ``params.w_ih``, R is ``params.w_hh``, b is ``params.bias``.

    Args:
        params: ``LSTMParams`` with w_ih (D, 4H), w_hh (H, 4H), bias (4H,) or None.
        carry: ``(h, c)``, each (*batch, H).
        x: the input of this step, (*batch, D).

    Returns:
        ``((h, c), h)`` in the dtypes that the carry had; pure, so it goes straight into
        :func:`jax.lax.scan`.

    Raises:
        ValueError: a shape or dtype does not fit.

    >>> cell = LSTM(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> xs = jnp.ones((5, 3))
    >>> from functools import partial
    >>> (h, c), ys = jax.lax.scan(partial(lstm_step, params), cell.initial_carry(), xs)
    >>> ys.shape
    (5, 2)
    """
    common.check_step("lstm_step", params, "h, c", carry, x, gates=4)
    return _update(_pointwise, carry, _recur(params, carry, _project(params, x, None)))


def lstm_gates(params: LSTMParams, carry: LSTMCarry, x: Array) -> LSTMGates:
    """The gates that :func:`lstm_step` computes on the way, for looking at.

    Takes what ``lstm_step`` takes; time may be one more batch axis, so a whole sequence is looked
    at in one call with the carries that each step read.

    >>> cell = LSTM(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> gates = lstm_gates(params, cell.initial_carry(), jnp.zeros(3))
    >>> [f"{float(f):.2f}" for f in gates.f]  # no input yet: the forget bias of 1 alone
    ['0.73', '0.73']
    """
    common.check_step("lstm_gates", params, "h, c", carry, x, gates=4)
    return _gates(_recur(params, carry, _project(params, x, None)))


def _project(params: LSTMParams, x: Array, dtype: DType | None) -> Array:
    """x W: (..., 4H), all that needs no carry. The bias costs less in ``_recur``, on the way."""
    return common.affine(x, params.w_ih, None, dtype)


def _recur(params: LSTMParams, carry: LSTMCarry, u: Array) -> Array:
    """u + h R + b: (..., 4H), the four pre-activations side by side."""
    h, _ = carry
    z = u.astype(state_dtype(u.dtype)) + common.product(h, params.w_hh, u.dtype)
    return common.add_bias(z, params.bias)


@jax.custom_jvp
def _gates(z: Array) -> LSTMGates:
    """One tanh serves all four, because sigmoid(z) = tanh(z / 2) / 2 + 1 / 2."""
    halves = np.repeat(np.array([0.5, 0.5, 1, 0.5], z.dtype), z.shape[-1] // 4)
    i, f, g, o = jnp.split(jnp.tanh(z * common.over(halves, z)), 4, axis=-1)
    return LSTMGates(0.5 * i + 0.5, 0.5 * f + 0.5, g, 0.5 * o + 0.5)


@_gates.defjvp
def _gates_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[LSTMGates, LSTMGates]:
    """Each gate's derivative by its own value, of which autodiff would keep more."""
    i, f, g, o = gates = _gates(*primals)
    dz_i, dz_f, dz_g, dz_o = jnp.split(tangents[0], 4, axis=-1)
    slopes = i * (1 - i), f * (1 - f), 1 - g * g, o * (1 - o)
    return gates, LSTMGates(slopes[0] * dz_i, slopes[1] * dz_f, slopes[2] * dz_g, slopes[3] * dz_o)


def _pointwise(c: Array, z: Array) -> tuple[Array, Array]:
    """h_t and c_t."""
    i, f, g, o = _gates(z)
    c_t = f * c + i * g
    return o * jnp.tanh(c_t), c_t


_lean_pointwise = jax.custom_jvp(_pointwise)


@_lean_pointwise.defjvp
def _lean_pointwise_jvp(primals: Any, tangents: Any) -> Any:
    """The derivative of ``_pointwise`` by six factors a unit, where autodiff keeps eleven.

    The fast path keeps them for many steps at once, so they count.
    """
    (c, z), (dc, dz) = primals, tangents
    i, f, g, o = _gates(z)
    c_t = f * c + i * g
    shown = jnp.tanh(c_t)
    dz_i, dz_f, dz_g, dz_o = jnp.split(dz, 4, axis=-1)
    d_i, d_f = g * i * (1 - i) * dz_i, c * f * (1 - f) * dz_f
    d_g, d_o = i * (1 - g * g) * dz_g, shown * o * (1 - o) * dz_o
    dc_t = f * dc + (d_i + d_f + d_g)
    dh_t = d_o + o * (1 - shown * shown) * dc_t
    return (o * shown, c_t), (dh_t, dc_t)


def _update(pointwise: Any, carry: LSTMCarry, z: Array) -> tuple[LSTMCarry, Array]:
    h, c = carry
    dtype = promote(z.dtype, c.dtype)
    h_t, c_t = pointwise(c.astype(dtype), z.astype(dtype))
    h_t = h_t.astype(h.dtype)
    return (h_t, c_t.astype(c.dtype)), h_t


@dataclass(frozen=True)
class LSTM:
    """Hyperparameters of an LSTM; :func:`lstm_step` has the equations.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h and of c.
        use_bias: whether there is a b.
        forget_bias: added to the forget gate's bias at initialisation (1 lets a new cell
            remember; Jozefowicz et al. 2015). No effect later, and none without a bias.
        learn_initial_carry: keep h_0 and c_0 among the parameters instead of zeros.
        w_ih_init, w_hh_init, bias_init: any function of ``jax.nn.initializers``; called once for
            each gate, with shape (D, H), (H, H) and (H,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix products, of h and of the outputs. None: what parameters and
            inputs promote to. Under bfloat16 or float16, c and all sums stay float32.

    Raises:
        ValueError: a size is not a positive whole number, or a dtype is not floating.

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
    w_ih_init: Initializer = common.GLOROT_UNIFORM
    w_hh_init: Initializer = common.ORTHOGONAL
    bias_init: Initializer = common.ZEROS
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    def __post_init__(self) -> None:
        common.normalise(self, "input_size", "hidden_size")

    @property
    def output_size(self) -> int:
        """Features of one output: H."""
        return self.hidden_size

    def init(self, key: Array) -> LSTMParams:
        """Fresh parameters from one PRNG key."""
        H = self.hidden_size
        w_ih, w_hh, bias = common.init_weights(self, key, gates=4)
        if bias is not None:
            bias = bias.at[H : 2 * H].add(self.forget_bias)
        initial = (jnp.zeros(H, self.param_dtype),) * 2 if self.learn_initial_carry else None
        return LSTMParams(w_ih, w_hh, bias, initial)

    def initial_carry(self, batch_shape: Sequence[int] = (), params: LSTMParams | None = None) -> LSTMCarry:
        """``(h_0, c_0)``, each (*batch_shape, H): zeros, or what was learned."""
        h, c = common.learned_initial(self, params) or (None, None)
        dtype = common.compute_dtype(self, params)
        c_dtype = promote(state_dtype(dtype), common.weights_dtype(self, params))
        return (
            common.initial_state(self, batch_shape, h, dtype),
            common.initial_state(self, batch_shape, c, c_dtype),
        )

    def step(self, params: LSTMParams, carry: LSTMCarry, x: Array) -> tuple[LSTMCarry, Array]:
        """:func:`lstm_step` in the cell's ``dtype``."""
        common.check_carry("LSTM.step", "h, c", carry, x, self.hidden_size)
        return _update(_pointwise, carry, _recur(params, carry, self.project(params, x)))

    def project(self, params: LSTMParams, x: Array) -> Array:
        """x W: (..., 4H)."""
        common.check_cell(self, params, x, gates=4)
        return _project(params, x, self.dtype)

    def recur(self, params: LSTMParams, carry: LSTMCarry, u: Array) -> Array:
        """u + h R + b: (..., 4H)."""
        return _recur(params, carry, u)

    def update(self, params: LSTMParams, carry: LSTMCarry, z: Any) -> tuple[LSTMCarry, Array]:
        """Gates, cell state, hidden state."""
        return _update(_lean_pointwise, carry, z)
