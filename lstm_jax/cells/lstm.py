"""The long short-term memory, next to its equations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

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
    return _update(carry, _recur(params, carry, _project(params, x, None)))


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
    """x W + b: (..., 4H), all that needs no carry."""
    return common.affine(x, params.w_ih, params.bias, dtype)


def _recur(params: LSTMParams, carry: LSTMCarry, u: Array) -> Array:
    """u + h R: (..., 4H), the four pre-activations side by side."""
    h, _ = carry
    return u.astype(state_dtype(u.dtype)) + common.product(h, params.w_hh, u.dtype)


def _gates(z: Array) -> LSTMGates:
    i, f, g, o = jnp.split(z, 4, axis=-1)
    return LSTMGates(jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o))


def _update(carry: LSTMCarry, z: Array) -> tuple[LSTMCarry, Array]:
    h, c = carry
    i, f, g, o = _gates(z.astype(promote(z.dtype, c.dtype)))
    c_t = f * c.astype(f.dtype) + i * g
    h_t = (o * jnp.tanh(c_t)).astype(h.dtype)
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
        return _update(carry, _recur(params, carry, self.project(params, x)))

    def project(self, params: LSTMParams, x: Array) -> Array:
        """x W + b: (..., 4H)."""
        common.check_cell(self, params, x, gates=4)
        return _project(params, x, self.dtype)

    def recur(self, params: LSTMParams, carry: LSTMCarry, u: Array) -> Array:
        """u + h R: (..., 4H)."""
        return _recur(params, carry, u)

    def update(self, params: LSTMParams, carry: LSTMCarry, z: Any) -> tuple[LSTMCarry, Array]:
        """Gates, cell state, hidden state."""
        return _update(carry, z)
