"""The independently recurrent network, next to its equation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_key
from lstm_jax._types import Array, DType, Initializer, exportable, state_dtype
from lstm_jax.cells import _init
from lstm_jax.cells._base import VectorCell
from lstm_jax.cells._checks import axis_size, check_carry, check_input, check_params, check_type, normalise
from lstm_jax.cells._linear import add_bias, expand_rank, matmul
from lstm_jax.cells.activations import Activation, canonical_activations


def unit_uniform(key: Array, shape: Sequence[int], dtype: DType = jnp.float32) -> Array:
    """Uniform in [0, 1)."""
    return jax.random.uniform(key, tuple(shape), dtype)


@exportable
class IndRNNParams(NamedTuple):
    """Parameters of an :class:`IndRNN`."""

    w_ih: Array  # (D, H)
    w_hh: Array  # (H,) the recurrent weight of each unit
    bias: Array | None = None  # (H,)
    initial: Array | None = None  # learned h_0, (H,)


def indrnn_step(
    params: IndRNNParams, carry: Array, x: Array, *, activation: Activation
) -> tuple[Array, Array]:
    r"""One step of the independently recurrent network (Li et al. 2018).

    .. math:: h_t = f(x_t W + u \odot h_{t-1} + b)

    W is ``params.w_ih``, u is ``params.w_hh``, b is ``params.bias``, f is ``activation``. Each unit reads
    only its own state. The W of the next layer mixes the units.

    Args:
        params: ``IndRNNParams`` with w_ih (D, H), w_hh (H,), bias (H,) or None.
        carry: h, (*batch, H).
        x: the input of this step, (*batch, D).
        activation: f, for instance ``jax.nn.relu`` or ``jnp.tanh``.

    Returns:
        ``(h, h)`` in the dtype of the given carry.

    Raises:
        ValueError: a shape, dtype or type does not fit.

    >>> cell = IndRNN(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> h, y = indrnn_step(params, cell.initial_carry((4,)), jnp.ones((4, 3)), activation=jax.nn.relu)
    >>> h.shape
    (4, 2)
    """
    check_type("indrnn_step", params, IndRNNParams)
    D, H = axis_size(params.w_ih, 0), axis_size(params.w_hh, -1)
    optional = (None if params.bias is None else (H,), None if params.initial is None else (H,))
    shapes = IndRNNParams._make(((D, H), (H,), *optional))
    check_params("indrnn_step", params, shapes, f"D={D}, H={H}")
    check_input("indrnn_step", x, D)
    check_carry("indrnn_step", "h", carry, x.shape[:-1], (H,))
    z = _recur(params, carry, matmul(x, params.w_ih))
    h = activation(z).astype(carry.dtype)
    return h, h


def _recur(params: IndRNNParams, h: Array, u: Array) -> Array:
    z = u.astype(state_dtype(u.dtype))
    z = z + expand_rank(params.w_hh.astype(z.dtype), z) * h.astype(z.dtype)
    return add_bias(z, params.bias)


@dataclass(frozen=True, repr=False)
class IndRNN(VectorCell):
    r"""Hyperparameters of an independently recurrent network; :func:`indrnn_step` has the equation.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h.
        activation: f, or one of the names in ``lstm_jax.cells.activations``. Functions compare by identity,
            so pass a named function rather than a lambda.
        use_bias: whether there is a bias b.
        learn_initial_carry: keep h_0 among the parameters instead of zeros.
        w_ih_init, w_hh_init, bias_init: functions as in ``jax.nn.initializers``, called with shapes (D, H),
            (H,) and (H,). By default u is uniform in [0, 1), so units remember for different times. With
            relu, a signal grows by the factor \|u\| in each step. The paper limits the growth over T steps to
            2 by \|u\| <= 2^(1/T), in ``init`` and during training. To do so, apply ``jnp.clip`` to
            ``params.w_hh`` in the training loop.
        param_dtype: dtype of the parameters.
        dtype: dtype of x W, of h and of the outputs. None: the promoted dtype of parameters and inputs. Sums
            and f are float32 or wider.

    Raises:
        ValueError: a size is not a positive integer, or a dtype is not floating.

    >>> cell = IndRNN(input_size=3, hidden_size=2)
    >>> cell.init(jax.random.key(0)).w_hh.shape
    (2,)
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    activation: Activation | str = jax.nn.relu
    use_bias: bool = True
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.glorot_uniform
    w_hh_init: Initializer = unit_uniform
    bias_init: Initializer = _init.zeros
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    def __post_init__(self) -> None:
        normalise(self, "input_size", "hidden_size")
        canonical_activations(self, "activation")

    @property
    def param_shapes(self) -> Any:
        """``IndRNNParams`` of shapes."""
        D, H = self.input_size, self.hidden_size
        bias, initial = (H,) if self.use_bias else None, (H,) if self.learn_initial_carry else None
        return IndRNNParams._make(((D, H), (H,), bias, initial))

    def init(self, key: Array) -> IndRNNParams:
        """Fresh parameters from one PRNG key."""
        check_key("IndRNN.init", key)
        k_ih, k_hh, k_bias = jax.random.split(key, 3)
        D, H, dtype = self.input_size, self.hidden_size, self.param_dtype
        return IndRNNParams(
            _init.init_gates(self.w_ih_init, k_ih, (D, H), 1, dtype),
            _init.init_gates(self.w_hh_init, k_hh, (H,), 1, dtype),
            _init.init_gates(self.bias_init, k_bias, (H,), 1, dtype) if self.use_bias else None,
            jnp.zeros(H, dtype) if self.learn_initial_carry else None,
        )

    def recur(self, params: IndRNNParams, carry: Array, u: Array) -> Array:
        """u + w_hh * h + b: (..., H), without a matrix product."""
        return _recur(params, carry, u)

    def update(self, params: IndRNNParams, carry: Array, z: Array, noise: None = None) -> tuple[Array, Array]:
        """f of the pre-activation."""
        h = self.activation(z).astype(carry.dtype)  # type: ignore[operator]
        return h, h
