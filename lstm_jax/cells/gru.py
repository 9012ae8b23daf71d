"""The gated recurrent unit, next to its equations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_float, value_error
from lstm_jax._types import Array, DType, Initializer, exportable, state_dtype
from lstm_jax.cells import _checks, _init, _linear


@exportable
class GRUParams(NamedTuple):
    """Parameters of a :class:`GRU`. The gates stand side by side in the order r, z, n."""

    w_ih: Array  # (D, 3H)
    w_hh: Array  # (H, 3H), or a block for each head: (heads, H/heads, 3H/heads)
    bias: Array | None = None  # (3H,)
    bias_hn: Array | None = None  # (H,) inside the reset gate's product; reset-after form only
    initial: Array | None = None  # learned h_0, (H,)


class GRUPreactivation(NamedTuple):
    """What the matrix products of one step give."""

    rz: Array  # (*batch, 2H) reset and update gate
    n_x: Array  # (*batch, H) the candidate's part that sees the input
    n_h: Array | None  # (*batch, H) the part that sees the state; None: it is in n_x, reset already


def gru_step(params: GRUParams, carry: Array, x: Array, *, reset_after: bool = True) -> tuple[Array, Array]:
    r"""One step of the GRU (Cho et al. 2014), by default in the form that PyTorch, Keras and ONNX use.

    .. math::
        r_t &= \sigma(x_t W_r + h_{t-1} R_r + b_r) \\
        z_t &= \sigma(x_t W_z + h_{t-1} R_z + b_z) \\
        n_t &= \tanh (x_t W_n + b_n + r_t \odot (h_{t-1} R_n + b_{hn})) \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    W is ``params.w_ih``, R is ``params.w_hh``, b is ``params.bias`` (of the two biases that other
    systems keep, the sum, which for r and z is all that matters), b_hn is ``params.bias_hn``.
    With ``reset_after=False`` the reset gate acts before the product, as in the paper:

    .. math:: n_t = \tanh(x_t W_n + (r_t \odot h_{t-1}) R_n + b_n)

    z_t = 1 keeps the state (some systems write 1 - z for z). R may consist of blocks, one for each
    head (``w_hh`` of three axes).

    Args:
        params: ``GRUParams`` with w_ih (D, 3H), w_hh (H, 3H), bias (3H,) or None, bias_hn (H,) or
            None; gates in the order r, z, n.
        carry: h, (*batch, H).
        x: the input of this step, (*batch, D).
        reset_after: which of the two forms.

    Returns:
        ``(h, h)`` in the dtype that the carry had.

    Raises:
        ValueError: a shape or dtype does not fit.

    >>> cell = GRU(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> h, y = gru_step(params, cell.initial_carry((4,)), jnp.ones((4, 3)))
    >>> h.shape
    (4, 2)
    """
    heads, H, _ = _linear.blocks_of(getattr(params, "w_hh", None))
    _checks.check_step("gru_step", params, "h", carry, x, 3, _linear.blocks(heads), H)
    _check_bias_hn("gru_step", params, reset_after)
    recur = _recur if reset_after else _recur_reset_before
    return _update(carry, recur(params, carry, _project(params, x, None)))


def _project(params: GRUParams, x: Array, dtype: DType | None) -> Array:
    """x W: (..., 3H)."""
    return _linear.affine(x, params.w_ih, None, dtype)


def _recur(params: GRUParams, h: Array, u: Array) -> GRUPreactivation:
    """The two parts of the candidate stay apart, because the reset gate comes between them."""
    H = u.shape[-1] // 3  # not h's: over devices, h is of all units and u of some
    u_rz, u_n = _cut(_linear.add_bias(u.astype(state_dtype(u.dtype)), params.bias), 2 * H)
    r_rz, r_n = _cut(_linear.recurrent_product(h, params.w_hh, 3, u.dtype), 2 * H)
    return GRUPreactivation(u_rz + r_rz, u_n, _linear.add_bias(r_n, params.bias_hn))


def _recur_reset_before(params: GRUParams, h: Array, u: Array) -> GRUPreactivation:
    """Two products, one after the other; not affine in h."""
    w_rz, w_n = _cut(params.w_hh, 2 * params.w_hh.shape[-1] // 3)
    u_rz, u_n = _cut(_linear.add_bias(u.astype(state_dtype(u.dtype)), params.bias), 2 * h.shape[-1])
    rz = u_rz + _linear.recurrent_product(h, w_rz, 2, u.dtype)
    r, _ = jnp.split(_linear.sigmoid(rz), 2, axis=-1)
    return GRUPreactivation(rz, u_n + _linear.recurrent_product(r * h.astype(r.dtype), w_n, 1, u.dtype), None)


def _update(h: Array, pre: GRUPreactivation, candidate: Array | None = None) -> tuple[Array, Array]:
    r, z = jnp.split(_linear.sigmoid(pre.rz), 2, axis=-1)
    n = jnp.tanh(pre.n_x if pre.n_h is None else pre.n_x + r * pre.n_h)
    if candidate is not None:
        n = n * candidate.astype(n.dtype)
    h_t = ((1 - z) * n + z * h.astype(z.dtype)).astype(h.dtype)
    return h_t, h_t


def _cut(a: Array, at: int) -> tuple[Array, Array]:
    return a[..., :at], a[..., at:]


def _check_bias_hn(owner: str, params: GRUParams, reset_after: bool) -> None:
    bias_hn = params.bias_hn
    if bias_hn is None:
        return
    if not reset_after:
        raise value_error(
            f"{owner} got bias_hn with reset_after=False",
            "one bias, because before the reset gate the two are one",
            "Add bias_hn to the last H entries of bias, or use reset_after=True.",
        )
    check_float(owner, "bias_hn", bias_hn)
    _, H, _ = _linear.blocks_of(params.w_hh)
    if tuple(bias_hn.shape) != (H,):
        raise value_error(
            f"{owner} got bias_hn of shape {tuple(bias_hn.shape)}",
            f"shape {(H,)}",
            "Make parameters with cell.init(key).",
        )


@dataclass(frozen=True)
class GRU:
    """Hyperparameters of a GRU; :func:`gru_step` has the equations and the gates' order.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h.
        reset_after: True (PyTorch, Keras, ONNX's ``linear_before_reset=1``): the reset gate acts
            after the recurrent product, and the candidate has a second bias ``bias_hn``. False
            (the paper): before it, which takes two products a step, one after the other.
        heads: parts of h that hear themselves alone; a divisor of H.
        use_bias: whether there are biases.
        learn_initial_carry: keep h_0 among the parameters instead of zeros.
        w_ih_init, w_hh_init, bias_init: any function of ``jax.nn.initializers``; called once for
            each gate, with shape (D, H), (H, H) (for each head (H/heads, H/heads)) and (H,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix products, of h and of the outputs. None: what parameters and
            inputs promote to. Sums and gates are float32 or wider.

    Raises:
        ValueError: a size is not a positive whole number, heads do not divide H, or a dtype is not
            floating.

    >>> cell = GRU(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> params.w_ih.shape, params.bias.shape, params.bias_hn.shape
    ((3, 6), (6,), (2,))
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    reset_after: bool = True
    heads: int = 1
    use_bias: bool = True
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.GLOROT_UNIFORM
    w_hh_init: Initializer = _init.ORTHOGONAL
    bias_init: Initializer = _init.ZEROS
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    takes_candidate = True  # of update, for CandidateDropout

    def __post_init__(self) -> None:
        _checks.normalise(self, "input_size", "hidden_size", "heads")
        _checks.check_heads("GRU", self.heads, {"hidden_size": self.hidden_size})

    @property
    def output_size(self) -> int:
        """Features of one output: H."""
        return self.hidden_size

    def declines(self) -> str | None:
        """Why the fast path cannot take this cell, or None."""
        if self.reset_after:
            return None
        return "GRU(reset_after=False) multiplies by R_n after its reset gate: two products a step, not one"

    def init(self, key: Array) -> GRUParams:
        """Fresh parameters from one PRNG key."""
        H, dtype = self.hidden_size, self.param_dtype
        w_ih, w_hh, bias = _init.init_weights(self, key, 3, _linear.blocks(self.heads))
        second = self.use_bias and self.reset_after
        bias_hn = self.bias_init(jax.random.fold_in(key, 3), (H,), dtype) if second else None
        return GRUParams(w_ih, w_hh, bias, bias_hn, jnp.zeros(H, dtype) if self.learn_initial_carry else None)

    def initial_carry(self, batch_shape: Sequence[int] = (), params: GRUParams | None = None) -> Array:
        """h_0, (*batch_shape, H): zeros, or what was learned."""
        learned = _init.learned_initial(self, params)
        return _init.initial_state(self, batch_shape, learned, _init.compute_dtype(self, params))

    def step(self, params: GRUParams, carry: Array, x: Array) -> tuple[Array, Array]:
        """:func:`gru_step` in the cell's ``dtype``."""
        _checks.check_carry("GRU.step", "h", carry, x, self.hidden_size)
        return _update(carry, self.recur(params, carry, self.project(params, x)))

    def project(self, params: GRUParams, x: Array) -> Array:
        """x W: (..., 3H)."""
        _checks.check_cell(self, params, x, 3, _linear.blocks(self.heads))
        _check_bias_hn("GRU", params, self.reset_after)
        return _project(params, x, self.dtype)

    def recur(self, params: GRUParams, carry: Array, u: Array) -> GRUPreactivation:
        """The pre-activations; with ``reset_after=False`` not affine in the carry."""
        return (_recur if self.reset_after else _recur_reset_before)(params, carry, u)

    def update(
        self, params: GRUParams, carry: Array, z: GRUPreactivation, *, candidate: Array | None = None
    ) -> tuple[Array, Array]:
        """Gates, candidate, hidden state; ``candidate`` multiplies n."""
        return _update(carry, z, candidate)
