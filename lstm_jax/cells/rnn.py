"""The simple recurrent network of Elman, next to its equation."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

from lstm_jax._types import Array, DType, Initializer, exportable, promote, state_dtype
from lstm_jax.cells import _init
from lstm_jax.cells._base import VectorCell
from lstm_jax.cells._checks import check_carry, check_head_params, check_heads, check_input, normalise
from lstm_jax.cells._linear import add_bias, head_matmul, head_shape, matmul
from lstm_jax.cells.activations import Activation, canonical_activations


@exportable
class RNNParams(NamedTuple):
    """Parameters of an :class:`RNN`."""

    w_ih: Array  # (D, H)
    w_hh: Array  # (H, H), or the diagonal blocks (heads, H/heads, H/heads)
    bias: Array | None = None  # (H,)
    initial: Array | None = None  # learned h_0, (H,)


def rnn_step(params: RNNParams, carry: Array, x: Array, *, activation: Activation) -> tuple[Array, Array]:
    r"""One step of the simple recurrent network (Elman 1990).

    .. math:: h_t = f(x_t W + h_{t-1} R + b)

    W is ``params.w_ih``, R is ``params.w_hh``, b is ``params.bias``, f is ``activation``. With heads, R is
    block diagonal, and ``params.w_hh`` has three axes and holds the blocks.

    Args:
        params: ``RNNParams`` with w_ih (D, H), w_hh (H, H), bias (H,) or None.
        carry: h, (*batch, H).
        x: the input of this step, (*batch, D).
        activation: f, for instance ``jnp.tanh`` or ``jax.nn.relu``.

    Returns:
        ``(h, h)`` in the dtype of the given carry.

    Raises:
        ValueError: a shape, dtype or type does not fit.

    >>> import jax
    >>> cell = RNN(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> h, y = rnn_step(params, cell.initial_carry((4,)), jnp.ones((4, 3)), activation=jnp.tanh)
    >>> h.shape
    (4, 2)
    """
    D, H = check_head_params("rnn_step", RNNParams, params, gates=1)
    check_input("rnn_step", x, D)
    check_carry("rnn_step", "h", carry, x.shape[:-1], (H,))
    dtype = promote(x.dtype, params.w_ih.dtype)
    z = matmul(x, params.w_ih, dtype) + head_matmul(carry, params.w_hh, 1, dtype)
    h = activation(add_bias(z, params.bias)).astype(carry.dtype)
    return h, h


@dataclass(frozen=True, repr=False)
class RNN(VectorCell):
    """Hyperparameters of a simple recurrent network; :func:`rnn_step` has the equation.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h.
        activation: f, or one of the names in ``lstm_jax.cells.activations``. Functions compare by identity,
            so pass a named function rather than a lambda.
        heads: diagonal blocks of w_hh, a divisor of H.
        use_bias: whether there is a bias b.
        learn_initial_carry: keep h_0 among the parameters instead of zeros.
        w_ih_init, w_hh_init, bias_init: functions as in ``jax.nn.initializers``, called with shapes (D, H),
            (H, H) (for each head (H/heads, H/heads)) and (H,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix products, of h and of the outputs. None: what parameters and inputs
            promote to. Sums and f are float32 or wider.

    Raises:
        ValueError: a size is not a positive integer, heads do not divide H, or a dtype is not floating.

    >>> import jax
    >>> cell = RNN(input_size=3, hidden_size=2, activation=jnp.sin)
    >>> cell.init(jax.random.key(0)).w_ih.shape
    (3, 2)
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    activation: Activation | str = jnp.tanh
    heads: int = 1
    use_bias: bool = True
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.glorot_uniform
    w_hh_init: Initializer = _init.orthogonal
    bias_init: Initializer = _init.zeros
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    def __post_init__(self) -> None:
        normalise(self, "input_size", "hidden_size", "heads")
        check_heads("RNN", self.heads, {"hidden_size": self.hidden_size})
        canonical_activations(self, "activation")

    @property
    def param_shapes(self) -> Any:
        """``RNNParams`` of shapes."""
        D, H = self.input_size, self.hidden_size
        bias, initial = (H,) if self.use_bias else None, (H,) if self.learn_initial_carry else None
        return RNNParams._make(((D, H), head_shape(self.heads, H, H), bias, initial))

    def init(self, key: Array) -> RNNParams:
        """Fresh parameters from one PRNG key."""
        weights = _init.init_weights(self, key, gates=1, heads=self.heads)
        initial = jnp.zeros(self.hidden_size, self.param_dtype) if self.learn_initial_carry else None
        return RNNParams(*weights, initial)

    def recur(self, params: RNNParams, carry: Array, u: Array) -> Array:
        """u + h R + b: (..., H)."""
        z = u.astype(state_dtype(u.dtype)) + head_matmul(carry, params.w_hh, 1, u.dtype)
        return add_bias(z, params.bias)

    def update(self, params: RNNParams, carry: Array, z: Array, noise: None = None) -> tuple[Array, Array]:
        """f of the pre-activation."""
        h = self.activation(z).astype(carry.dtype)  # type: ignore[operator]
        return h, h
