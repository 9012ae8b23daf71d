"""The simple recurrent network of Elman, next to its equation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax.numpy as jnp

from lstm_jax._errors import check_function
from lstm_jax._types import Array, DType, Initializer, exportable, state_dtype
from lstm_jax.cells import _checks, _init, _linear

Activation = Callable[[Array], Array]


@exportable
class RNNParams(NamedTuple):
    """Parameters of an :class:`RNN`."""

    w_ih: Array  # (D, H)
    w_hh: Array  # (H, H), or a block for each head: (heads, H/heads, H/heads)
    bias: Array | None = None  # (H,)
    initial: Array | None = None  # learned h_0, (H,)


def rnn_step(
    params: RNNParams, carry: Array, x: Array, *, activation: Activation = jnp.tanh
) -> tuple[Array, Array]:
    r"""One step of the simple recurrent network (Elman 1990).

    .. math:: h_t = f(x_t W + h_{t-1} R + b)

    W is ``params.w_ih``, R is ``params.w_hh``, b is ``params.bias``, f is ``activation``. R may
    consist of blocks, one for each head (``w_hh`` of three axes).

    Args:
        params: ``RNNParams`` with w_ih (D, H), w_hh (H, H), bias (H,) or None.
        carry: h, (*batch, H).
        x: the input of this step, (*batch, D).
        activation: f, for instance ``jnp.tanh`` or ``jax.nn.relu``.

    Returns:
        ``(h, h)`` in the dtype that the carry had.

    Raises:
        ValueError: a shape or dtype does not fit.

    >>> import jax
    >>> cell = RNN(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> h, y = rnn_step(params, cell.initial_carry((4,)), jnp.ones((4, 3)))
    >>> h.shape
    (4, 2)
    """
    heads, H, _ = _linear.blocks_of(getattr(params, "w_hh", None))
    _checks.check_step("rnn_step", params, "h", carry, x, 1, _linear.blocks(heads), H)
    return _update(activation, carry, _recur(params, carry, _project(params, x, None)))


def _project(params: RNNParams, x: Array, dtype: DType | None) -> Array:
    return _linear.affine(x, params.w_ih, None, dtype)


def _recur(params: RNNParams, h: Array, u: Array) -> Array:
    z = u.astype(state_dtype(u.dtype)) + _linear.recurrent_product(h, params.w_hh, 1, u.dtype)
    return _linear.add_bias(z, params.bias)


def _update(activation: Activation, h: Array, z: Array) -> tuple[Array, Array]:
    h_t = activation(z).astype(h.dtype)
    return h_t, h_t


@dataclass(frozen=True)
class RNN:
    """Hyperparameters of a simple recurrent network; :func:`rnn_step` has the equation.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h.
        activation: f; functions compare by identity, so give a named one rather than a lambda.
        heads: parts of h that hear themselves alone; a divisor of H.
        use_bias: whether there is a b.
        learn_initial_carry: keep h_0 among the parameters instead of zeros.
        w_ih_init, w_hh_init, bias_init: any function of ``jax.nn.initializers``, called with shape
            (D, H), (H, H) (for each head (H/heads, H/heads)) and (H,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix products, of h and of the outputs. None: what parameters and
            inputs promote to. Sums and f are float32 or wider.

    Raises:
        ValueError: a size is not a positive whole number, heads do not divide H, or a dtype is not
            floating.

    >>> import jax
    >>> cell = RNN(input_size=3, hidden_size=2, activation=jnp.sin)
    >>> cell.init(jax.random.key(0)).w_ih.shape
    (3, 2)
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    activation: Activation = jnp.tanh
    heads: int = 1
    use_bias: bool = True
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.GLOROT_UNIFORM
    w_hh_init: Initializer = _init.ORTHOGONAL
    bias_init: Initializer = _init.ZEROS
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    def __post_init__(self) -> None:
        _checks.normalise(self, "input_size", "hidden_size", "heads")
        _checks.check_heads("RNN", self.heads, {"hidden_size": self.hidden_size})
        check_function("RNN", "activation", self.activation)

    @property
    def output_size(self) -> int:
        """Features of one output: H."""
        return self.hidden_size

    def init(self, key: Array) -> RNNParams:
        """Fresh parameters from one PRNG key."""
        weights = _init.init_weights(self, key, 1, _linear.blocks(self.heads))
        return RNNParams(
            *weights, jnp.zeros(self.hidden_size, self.param_dtype) if self.learn_initial_carry else None
        )

    def initial_carry(self, batch_shape: Sequence[int] = (), params: RNNParams | None = None) -> Array:
        """h_0, (*batch_shape, H): zeros, or what was learned."""
        learned = _init.learned_initial(self, params)
        return _init.initial_state(self, batch_shape, learned, _init.compute_dtype(self, params))

    def step(self, params: RNNParams, carry: Array, x: Array) -> tuple[Array, Array]:
        """:func:`rnn_step` in the cell's ``dtype``."""
        _checks.check_carry("RNN.step", "h", carry, x, self.hidden_size)
        return _update(self.activation, carry, _recur(params, carry, self.project(params, x)))

    def project(self, params: RNNParams, x: Array) -> Array:
        """x W: (..., H)."""
        _checks.check_cell(self, params, x, 1, _linear.blocks(self.heads))
        return _project(params, x, self.dtype)

    def recur(self, params: RNNParams, carry: Array, u: Array) -> Array:
        """u + h R + b: (..., H)."""
        return _recur(params, carry, u)

    def update(self, params: RNNParams, carry: Array, z: Array) -> tuple[Array, Array]:
        """f of the pre-activation."""
        return _update(self.activation, carry, z)
