"""The gated recurrent unit (GRU), next to its equations."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._devices import is_single_cpu_device
from lstm_jax._types import Array, DType, Initializer, exportable, promote, state_dtype
from lstm_jax.cells import _init
from lstm_jax.cells._base import VectorCell
from lstm_jax.cells._checks import axis_size, check_carry, check_input, check_params, check_type, normalise
from lstm_jax.cells._linear import add_bias, head_matmul, join_sums, matmul, sigmoid


@exportable
class GRUParams(NamedTuple):
    """Parameters of a :class:`GRU`, the gates side by side in the order r, z, n."""

    w_ih: Array  # (D, 3H)
    w_hh: Array  # (H, 3H)
    bias: Array | None = None  # (3H,)
    bias_hn: Array | None = None  # (H,) inside the product with the reset gate
    initial: Array | None = None  # learned h_0, (H,)


@exportable
class GRUGates(NamedTuple):
    """The gates of one step: r and z are in (0, 1), the candidate n is in (-1, 1)."""

    r: Array  # (*batch, H) reset gate: how much of the old state the candidate reads
    z: Array  # (*batch, H) update gate: how much of the old state is kept
    n: Array  # (*batch, H) candidate


class GRUPreactivation(NamedTuple):
    """Pre-activations of one step, with the two terms of the candidate separate."""

    rz: Array  # (*batch, 2H) reset and update gate
    n_h: Array  # (*batch, H) the term of the candidate from the state
    n_x: Array  # (*batch, H) the term of the candidate from the input


def gru_step(params: GRUParams, carry: Array, x: Array) -> tuple[Array, Array]:
    r"""One step of the GRU (Cho et al. 2014) in the form that PyTorch, Keras and ONNX use.

    .. math::
        r_t &= \sigma(x_t W_r + h_{t-1} R_r + b_r) \\
        z_t &= \sigma(x_t W_z + h_{t-1} R_z + b_z) \\
        n_t &= \tanh (x_t W_n + b_n + r_t \odot (h_{t-1} R_n + b_{hn})) \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    W is ``params.w_ih``, R is ``params.w_hh``, b is ``params.bias``, b_hn is ``params.bias_hn``. Other
    libraries have two biases for r and z, of which ``bias`` is the sum. z_t = 1 keeps the state; some papers
    swap z and 1 - z. The function takes no options. :class:`GRUVariant` has options, including the form of
    the paper, in which the reset gate acts before the product.

    Args:
        params: ``GRUParams`` with w_ih (D, 3H), w_hh (H, 3H), bias (3H,) or None, bias_hn (H,) or None.
        carry: h, (*batch, H).
        x: the input of this step, (*batch, D).

    Returns:
        ``(h, h)`` in the dtype of the given carry.

    Raises:
        ValueError: the parameters are not ``GRUParams``, or a shape or dtype does not fit.

    >>> cell = GRU(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> h, y = gru_step(params, cell.initial_carry((4,)), jnp.ones((4, 3)))
    >>> h.shape
    (4, 2)
    """
    check_type("gru_step", params, GRUParams)
    D, H = axis_size(params.w_ih, 0), axis_size(params.w_hh, 0)
    bias, bias_hn = None if params.bias is None else (3 * H,), None if params.bias_hn is None else (H,)
    shapes = ((D, 3 * H), (H, 3 * H), bias, bias_hn, None if params.initial is None else (H,))
    check_params("gru_step", params, GRUParams._make(shapes), f"D={D}, H={H}, 3 gates")
    check_input("gru_step", x, D)
    check_carry("gru_step", "h", carry, x.shape[:-1], (H,))
    dtype = promote(x.dtype, params.w_ih.dtype)
    sums = gru_preactivation(params, carry, matmul(x, params.w_ih, dtype), dtype)
    h = gru_update(carry, sums).astype(carry.dtype)
    return h, h


def gru_preactivation(params: Any, h: Array, u: Array, dtype: DType) -> GRUPreactivation:
    """The sums of r, z and n from h and u = x W (..., 3H); ``dtype`` is that of the recurrent product."""
    H = u.shape[-1] // 3  # with sharded units, h has all units and u those of one device
    u_rz, u_n = jnp.split(u.astype(state_dtype(u.dtype)), [2 * H], axis=-1)
    rz, n_h = jnp.split(head_matmul(h, params.w_hh, 3, dtype), [2 * H], axis=-1)
    sums, bias, ends = [u_rz + rz, n_h, u_n], joined_bias(params), [2 * H, 3 * H]
    if is_single_cpu_device():
        return GRUPreactivation(*jnp.split(join_sums(sums, bias), ends, axis=-1))
    biases = (None,) * 3 if bias is None else jnp.split(bias, ends)
    return GRUPreactivation(*map(add_bias, sums, biases))


def joined_bias(params: Any) -> Array | None:
    """The biases of r and z, and of the terms of n from h and from x: (4H,)."""
    bias, bias_hn = params.bias, params.bias_hn
    if bias is None and bias_hn is None:
        return None
    bias = jnp.zeros(3 * len(bias_hn), bias_hn.dtype) if bias is None else bias
    b_rz, b_n = jnp.split(bias, [2 * len(bias) // 3])
    return jnp.concatenate([b_rz, jnp.zeros_like(b_n) if bias_hn is None else bias_hn, b_n])


def gru_update(h: Array, sums: GRUPreactivation, candidate_scale: Array | None = None) -> Array:
    """h_t from h_{t-1} and the pre-activations; ``candidate_scale`` multiplies n (recurrent dropout)."""
    _, z, n = activate(sums)
    if candidate_scale is not None:
        n = n * candidate_scale.astype(n.dtype)
    return (1 - z) * n + z * h.astype(z.dtype)


def activate(sums: GRUPreactivation) -> GRUGates:
    """The gates from their pre-activations."""
    r, z = jnp.split(sigmoid(sums.rz), 2, axis=-1)
    return GRUGates(r, z, jnp.tanh(sums.n_x + r * sums.n_h))


@dataclass(frozen=True, repr=False)
class GRU(VectorCell):
    """Hyperparameters of a GRU; :func:`gru_step` has the equations and the order of the gates.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h.
        use_bias: whether there are biases b and b_hn.
        learn_initial_carry: keep h_0 among the parameters instead of zeros.
        w_ih_init, w_hh_init, bias_init: functions as in ``jax.nn.initializers``, called once for each gate
            with shapes (D, H), (H, H) and (H,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix products, of h and of the outputs. None: what parameters and inputs
            promote to. Sums and gates are float32 or wider.

    Raises:
        ValueError: a size is not a positive integer, or a dtype is not floating.

    >>> cell = GRU(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> params.w_ih.shape, params.bias.shape, params.bias_hn.shape
    ((3, 6), (6,), (2,))
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    use_bias: bool = True
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.glorot_uniform
    w_hh_init: Initializer = _init.orthogonal
    bias_init: Initializer = _init.zeros
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    has_gates = True
    scales_candidate = True
    optional_params = ("bias_hn",)

    def __post_init__(self) -> None:
        normalise(self, "input_size", "hidden_size")

    @property
    def param_shapes(self) -> Any:
        """``GRUParams`` of shapes."""
        D, H = self.input_size, self.hidden_size
        bias, initial = (3 * H,) if self.use_bias else None, (H,) if self.learn_initial_carry else None
        return GRUParams._make(((D, 3 * H), (H, 3 * H), bias, (H,), initial))

    def init(self, key: Array) -> GRUParams:
        """Fresh parameters from one PRNG key."""
        H, dtype = self.hidden_size, self.param_dtype
        w_ih, w_hh, bias = _init.init_weights(self, key, gates=3)
        bias_hn = self.bias_init(jax.random.fold_in(key, 3), (H,), dtype) if self.use_bias else None
        return GRUParams(w_ih, w_hh, bias, bias_hn, jnp.zeros(H, dtype) if self.learn_initial_carry else None)

    def recur(self, params: GRUParams, carry: Array, u: Array) -> GRUPreactivation:
        """The pre-activations: (..., 2H), (..., H) and (..., H)."""
        return gru_preactivation(params, carry, u, u.dtype)

    def update(
        self,
        params: GRUParams,
        carry: Array,
        z: GRUPreactivation,
        noise: None = None,
        *,
        candidate_scale: Array | None = None,
    ) -> tuple[Array, Array]:
        """Gates, candidate, hidden state; ``candidate_scale`` multiplies n (recurrent dropout)."""
        h = gru_update(carry, z, candidate_scale).astype(carry.dtype)
        return h, h

    def gates(self, params: GRUParams, carry: Array, x: Array) -> GRUGates:
        """The gates of one step; carry and x may have any leading axes, time included."""
        return activate(self.recur(params, carry, self.project(params, x)))

    def preactivations(self, params: GRUParams, carry: Array, x: Array) -> GRUGates:
        """The pre-activations of :meth:`gates`; that of n includes the reset gate."""
        sums = self.recur(params, carry, self.project(params, x))
        r, z = jnp.split(sums.rz, 2, axis=-1)
        return GRUGates(r, z, sums.n_x + activate(sums).r * sums.n_h)
