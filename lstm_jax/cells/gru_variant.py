"""The GRU with options, next to its equations."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._types import Array, DType, Initializer, exportable, state_dtype
from lstm_jax.cells import _init
from lstm_jax.cells._base import VectorCell
from lstm_jax.cells._checks import check_heads, normalise
from lstm_jax.cells._linear import add_bias, head_matmul, head_shape, sigmoid
from lstm_jax.cells.activations import Activation, canonical_activations
from lstm_jax.cells.gru import GRUGates, GRUPreactivation, gru_preactivation


@exportable
class GRUVariantParams(NamedTuple):
    """Parameters of a :class:`GRUVariant`, the gates side by side in the order r, z, n."""

    w_ih: Array  # (D, 3H)
    w_hh: Array  # (H, 3H), or the diagonal blocks (heads, H/heads, 3H/heads)
    bias: Array | None = None  # (3H,)
    bias_hn: Array | None = None  # (H,) inside the product with the reset gate; reset_after=True only
    initial: Array | None = None  # learned h_0, (H,)


class ResetPreactivation(NamedTuple):
    """Pre-activations of one step with the reset gate before the product."""

    rz: Array  # (*batch, 2H)
    n: Array  # (*batch, H)


@dataclass(frozen=True, repr=False)
class GRUVariant(VectorCell):
    r"""A GRU with options; without options it computes what :class:`lstm_jax.GRU` does.

    .. math::
        r_t &= \sigma(x_t W_r + h_{t-1} R_r + b_r) \\
        z_t &= \sigma(x_t W_z + h_{t-1} R_z + b_z) \\
        n_t &= \phi(x_t W_n + b_n + r_t \odot (h_{t-1} R_n + b_{hn})) \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    With ``reset_after=False`` the reset gate acts before the product, as in the paper (Cho et al. 2014):

    .. math:: n_t = \phi(x_t W_n + (r_t \odot h_{t-1}) R_n + b_n)

    There is no free step function: use ``cell.step``.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h.
        reset_after: the reset gate acts after the recurrent product (PyTorch, Keras, ONNX's
            ``linear_before_reset=1``), and the candidate has a second bias ``bias_hn``. False: before it
            (the paper, Haiku, Keras's ``reset_after=False``). That requires two consecutive products per
            step, so the cell runs through the plain scan.
        heads: diagonal blocks of w_hh, a divisor of H.
        activation: :math:`\phi`, a function or one of the names in ``lstm_jax.cells.activations``.
        recurrent_activation: :math:`\sigma`, likewise.
        use_bias: whether there are biases.
        learn_initial_carry: keep h_0 among the parameters instead of zeros.
        w_ih_init, w_hh_init, bias_init: functions as in ``jax.nn.initializers``, called once for each gate
            with shapes (D, H), (H, H) (for each head (H/heads, H/heads)) and (H,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix products, of h and of the outputs. None: what parameters and inputs
            promote to. Sums and gates are float32 or wider.

    Raises:
        ValueError: a size is not a positive integer, heads do not divide H, an activation is unknown, or a
            dtype is not floating.

    >>> cell = GRUVariant(input_size=3, hidden_size=2, reset_after=False)
    >>> params = cell.init(jax.random.key(0))
    >>> h, y = cell.step(params, cell.initial_carry((4,)), jnp.ones((4, 3)))
    >>> y.shape, params.bias_hn is None
    ((4, 2), True)
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    reset_after: bool = True
    heads: int = 1
    activation: Activation | str = jnp.tanh
    recurrent_activation: Activation | str = sigmoid
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
        normalise(self, "input_size", "hidden_size", "heads")
        check_heads("GRUVariant", self.heads, {"hidden_size": self.hidden_size})
        canonical_activations(self, "activation", "recurrent_activation")

    @property
    def affine_recurrence(self) -> bool:  # type: ignore[override]
        """False if the reset gate acts before the product."""
        return self.reset_after

    def fused_unsupported(self) -> str | None:
        """Why the fused scan cannot run this cell, or None."""
        if self.reset_after:
            return None
        return "GRUVariant(reset_after=False) multiplies by R_n after its reset gate: two products per step"

    @property
    def param_shapes(self) -> Any:
        """``GRUVariantParams`` of shapes."""
        D, H = self.input_size, self.hidden_size
        bias = (3 * H,) if self.use_bias else None
        bias_hn = (H,) if self.reset_after else None
        w_hh = head_shape(self.heads, H, 3 * H)
        return GRUVariantParams._make(
            ((D, 3 * H), w_hh, bias, bias_hn, (H,) if self.learn_initial_carry else None)
        )

    def init(self, key: Array) -> GRUVariantParams:
        """Fresh parameters from one PRNG key."""
        H, dtype = self.hidden_size, self.param_dtype
        w_ih, w_hh, bias = _init.init_weights(self, key, gates=3, heads=self.heads)
        second = self.use_bias and self.reset_after
        bias_hn = self.bias_init(jax.random.fold_in(key, 3), (H,), dtype) if second else None
        initial = jnp.zeros(H, dtype) if self.learn_initial_carry else None
        return GRUVariantParams(w_ih, w_hh, bias, bias_hn, initial)

    def recur(
        self, params: GRUVariantParams, carry: Array, u: Array
    ) -> GRUPreactivation | ResetPreactivation:
        """The pre-activations; affine in the carry with ``reset_after=True`` only."""
        if self.reset_after:
            return gru_preactivation(params, carry, u, u.dtype)
        H = self.hidden_size
        w_rz, w_n = params.w_hh[..., : 2 * H // self.heads], params.w_hh[..., 2 * H // self.heads :]
        u_bias = add_bias(u.astype(state_dtype(u.dtype)), params.bias)
        rz = u_bias[..., : 2 * H] + head_matmul(carry, w_rz, 2, u.dtype)
        r, _ = jnp.split(self.recurrent_activation(rz), 2, axis=-1)  # type: ignore[operator]
        product = head_matmul(r * carry.astype(r.dtype), w_n, 1, u.dtype)
        return ResetPreactivation(rz, u_bias[..., 2 * H :] + product)

    def update(
        self,
        params: GRUVariantParams,
        carry: Array,
        z: Any,
        noise: None = None,
        *,
        candidate_scale: Array | None = None,
    ) -> tuple[Array, Array]:
        """Gates, candidate, hidden state; ``candidate_scale`` multiplies n (recurrent dropout)."""
        _, z_t, n = self._activate(z)
        if candidate_scale is not None:
            n = n * candidate_scale.astype(n.dtype)
        h = ((1 - z_t) * n + z_t * carry.astype(z_t.dtype)).astype(carry.dtype)
        return h, h

    def gates(self, params: GRUVariantParams, carry: Array, x: Array) -> GRUGates:
        """The gates of one step; carry and x may have any leading axes, time included."""
        return self._activate(self.recur(params, carry, self.project(params, x)))

    def preactivations(self, params: GRUVariantParams, carry: Array, x: Array) -> GRUGates:
        """The pre-activations of :meth:`gates`; that of n includes the reset gate."""
        sums = self.recur(params, carry, self.project(params, x))
        r, z = jnp.split(sums.rz, 2, axis=-1)
        return GRUGates(r, z, _candidate(sums, self._activate(sums).r))

    def _activate(self, sums: GRUPreactivation | ResetPreactivation) -> GRUGates:
        r, z = jnp.split(self.recurrent_activation(sums.rz), 2, axis=-1)  # type: ignore[operator]
        return GRUGates(r, z, self.activation(_candidate(sums, r)))  # type: ignore[operator]


def _candidate(sums: GRUPreactivation | ResetPreactivation, r: Array) -> Array:
    """The pre-activation of the candidate."""
    return sums.n if isinstance(sums, ResetPreactivation) else sums.n_x + r * sums.n_h
