"""The independently recurrent network, next to its equation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_function
from lstm_jax._types import Array, DType, Initializer, exportable, state_dtype
from lstm_jax.cells import _checks, _init, _linear
from lstm_jax.cells.rnn import Activation

UNIT_UNIFORM: Initializer = jax.nn.initializers.uniform(1.0)


@exportable
class IndRNNParams(NamedTuple):
    """Parameters of an :class:`IndRNN`."""

    w_ih: Array  # (D, H)
    w_hh: Array  # (H,) what each unit hears of itself
    bias: Array | None = None  # (H,)
    initial: Array | None = None  # learned h_0, (H,)


def indrnn_step(
    params: IndRNNParams, carry: Array, x: Array, *, activation: Activation = jax.nn.relu
) -> tuple[Array, Array]:
    r"""One step of the independently recurrent network (Li et al. 2018).

    .. math:: h_t = f(x_t W + u \odot h_{t-1} + b)

    W is ``params.w_ih``, u is ``params.w_hh``, b is ``params.bias``, f is ``activation``. Units hear
    themselves alone; they meet in the W of the next layer.

    Args:
        params: ``IndRNNParams`` with w_ih (D, H), w_hh (H,), bias (H,) or None.
        carry: h, (*batch, H).
        x: the input of this step, (*batch, D).
        activation: f, for instance ``jax.nn.relu`` or ``jnp.tanh``.

    Returns:
        ``(h, h)`` in the dtype that the carry had.

    Raises:
        ValueError: a shape or dtype does not fit.

    >>> cell = IndRNN(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> h, y = indrnn_step(params, cell.initial_carry((4,)), jnp.ones((4, 3)))
    >>> h.shape
    (4, 2)
    """
    _checks.check_step("indrnn_step", params, "h", carry, x, gates=1, recurrent=_diagonal)
    return _update(activation, carry, _recur(params, carry, _linear.affine(x, params.w_ih, None)))


def _diagonal(H: int) -> tuple[int, ...]:
    return (H,)


def _recur(params: IndRNNParams, h: Array, u: Array) -> Array:
    z = u.astype(state_dtype(u.dtype))
    z = z + _linear.expand_rank(params.w_hh.astype(z.dtype), z) * h.astype(z.dtype)
    return _linear.add_bias(z, params.bias)


def _update(activation: Activation, h: Array, z: Array) -> tuple[Array, Array]:
    h_t = activation(z).astype(h.dtype)
    return h_t, h_t


@dataclass(frozen=True)
class IndRNN:
    """Hyperparameters of an independently recurrent network; :func:`indrnn_step` has the equation.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h.
        activation: f; functions compare by identity, so give a named one rather than a lambda.
        use_bias: whether there is a b.
        learn_initial_carry: keep h_0 among the parameters instead of zeros.
        w_ih_init, w_hh_init, bias_init: any function of ``jax.nn.initializers``, called with shape
            (D, H), (H,) and (H,). By default u is uniform in [0, 1): how long a unit remembers
            differs from unit to unit. Under relu a signal grows by a factor of |u| a step; the paper
            keeps it below 2 over T steps by |u| <= 2^(1/T), at the beginning and while training,
            which is left to the training loop here: ``jnp.clip`` of ``params.w_hh``.
        param_dtype: dtype of the parameters.
        dtype: dtype of x W, of h and of the outputs. None: what parameters and inputs promote to.
            Sums and f are float32 or wider.

    Raises:
        ValueError: a size is not a positive whole number, or a dtype is not floating.

    >>> cell = IndRNN(input_size=3, hidden_size=2)
    >>> cell.init(jax.random.key(0)).w_hh.shape
    (2,)
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    activation: Activation = jax.nn.relu
    use_bias: bool = True
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.GLOROT_UNIFORM
    w_hh_init: Initializer = UNIT_UNIFORM
    bias_init: Initializer = _init.ZEROS
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    def __post_init__(self) -> None:
        _checks.normalise(self, "input_size", "hidden_size")
        check_function("IndRNN", "activation", self.activation)

    @property
    def output_size(self) -> int:
        """Features of one output: H."""
        return self.hidden_size

    def init(self, key: Array) -> IndRNNParams:
        """Fresh parameters from one PRNG key."""
        weights = _init.init_weights(self, key, gates=1, recurrent=_diagonal)
        initial = jnp.zeros(self.hidden_size, self.param_dtype) if self.learn_initial_carry else None
        return IndRNNParams(*weights, initial)

    def initial_carry(self, batch_shape: Sequence[int] = (), params: IndRNNParams | None = None) -> Array:
        """h_0, (*batch_shape, H): zeros, or what was learned."""
        learned = _init.learned_initial(self, params)
        return _init.initial_state(self, batch_shape, learned, _init.compute_dtype(self, params))

    def step(self, params: IndRNNParams, carry: Array, x: Array) -> tuple[Array, Array]:
        """:func:`indrnn_step` in the cell's ``dtype``."""
        _checks.check_carry("IndRNN.step", "h", carry, x, self.hidden_size)
        return _update(self.activation, carry, _recur(params, carry, self.project(params, x)))

    def project(self, params: IndRNNParams, x: Array) -> Array:
        """x W: (..., H)."""
        _checks.check_cell(self, params, x, gates=1, recurrent=_diagonal)
        return _linear.affine(x, params.w_ih, None, self.dtype)

    def recur(self, params: IndRNNParams, carry: Array, u: Array) -> Array:
        """u + w_hh * h + b: (..., H); no product of matrices."""
        return _recur(params, carry, u)

    def update(self, params: IndRNNParams, carry: Array, z: Array) -> tuple[Array, Array]:
        """f of the pre-activation."""
        return _update(self.activation, carry, z)
