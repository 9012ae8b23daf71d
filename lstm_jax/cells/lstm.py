"""The long short-term memory, next to its equations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import check_size, value_error
from lstm_jax._types import Array, DType, Initializer, exportable, promote, state_dtype
from lstm_jax.cells import _checks, _init, _linear
from lstm_jax.cells.lstm_form import (
    LAYER_NORMS,
    LSTMForm,
    LSTMNorm,
    check_options,
    check_step,
    checked,
    inside,
)


@exportable
class LSTMParams(NamedTuple):
    """Parameters of an :class:`LSTM`. The gates stand side by side in the order i, f, g, o.

    4H is 3H where a gate has no weights; H heard is P where h is projected.
    """

    w_ih: Array  # (D, 4H)
    w_hh: Array  # (H, 4H), or a block for each head: (heads, H/heads, 4H/heads)
    bias: Array | None = None  # (4H,)
    initial: tuple[Array, Array] | None = None  # learned h_0 and c_0, each (H,)
    peepholes: Array | None = None  # (3H,) from the cell state to i, f, o
    w_hr: Array | None = None  # (H, P) the projection of h
    norm: LSTMNorm | None = None  # layer normalisation's scales


@exportable
class LSTMGates(NamedTuple):
    """What the gates of one step say; i, f, o lie in (0, 1), the candidate g in (-1, 1)."""

    i: Array  # (*batch, H) how much of the candidate is let in
    f: Array  # (*batch, H) how much of the old cell state is kept
    g: Array  # (*batch, H) the candidate
    o: Array  # (*batch, H) how much of the cell state is shown


LSTMCarry: TypeAlias = tuple[Array, Array]


def lstm_step(
    params: LSTMParams,
    carry: LSTMCarry,
    x: Array,
    *,
    coupled: bool = False,
    ablation: str | None = None,
    clip: float | None = None,
    cell_clip: float | None = None,
    layer_norm: str | None = None,
) -> tuple[LSTMCarry, Array]:
    r"""One step of the LSTM (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000).

    .. math::
        i_t &= \sigma(x_t W_i + h_{t-1} R_i + b_i) \\
        f_t &= \sigma(x_t W_f + h_{t-1} R_f + b_f) \\
        g_t &= \tanh (x_t W_g + h_{t-1} R_g + b_g) \\
        o_t &= \sigma(x_t W_o + h_{t-1} R_o + b_o) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        h_t &= o_t \odot \tanh(c_t)

    W is ``params.w_ih``, R is ``params.w_hh``, b is ``params.bias``. Three more fields each add a
    term where they are there:

    - ``peepholes`` (Gers & Schmidhuber 2000): :math:`p_i \odot c_{t-1}`, :math:`p_f \odot c_{t-1}`
      and :math:`p_o \odot c_t` inside the sigmoids of i, f and o;
    - ``w_hr`` (Sak et al. 2014; ``proj_size`` of PyTorch): :math:`h_t = (o_t \odot \tanh(c_t)) W_{hr}`,
      (\*batch, P), and R reads P units;
    - ``norm``, see ``layer_norm``.

    R may consist of blocks, one for each head (``w_hh`` of three axes): the units of a head hear
    those of their own head alone.

    Args:
        params: ``LSTMParams`` with w_ih (D, 4H), w_hh (H, 4H), bias (4H,) or None.
        carry: ``(h, c)``, each (*batch, H).
        x: the input of this step, (*batch, D).
        coupled: one gate for both, :math:`f_t = 1 - i_t` (CIFG; Greff et al. 2017), and no weights for f.
        ablation: ``"no_input_gate"``, ``"no_forget_gate"`` or ``"no_output_gate"``: that gate is 1 and
            has no weights; ``"no_input_activation"`` or ``"no_output_activation"``: no tanh around g,
            or around c_t (all five: Greff et al. 2017).
        clip: holds all four pre-activations (peepholes included) in [-clip, clip], as ONNX's does.
        cell_clip: holds c_t in [-cell_clip, cell_clip] before it is shown (Sak et al. 2014).
        layer_norm: LN is mean 0 and variance 1 over the units of a row, then scaled (Ba et al. 2016). It
            goes over all 4H of x W and all 4H of h R before they are added, and over c_t:
            ``"tfa"`` (TensorFlow Addons) carries on the normalised c_t; ``"haste"`` (LMNT's Haste)
            carries on c_t as it is, and normalises only what the last tanh sees.

    Returns:
        ``((h, c), h)`` in the dtypes that the carry had; pure, so it goes straight into
        :func:`jax.lax.scan`.

    Raises:
        ValueError: a shape or dtype does not fit, or options contradict each other.

    >>> cell = LSTM(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> xs = jnp.ones((5, 3))
    >>> from functools import partial
    >>> (h, c), ys = jax.lax.scan(partial(lstm_step, params), cell.initial_carry(), xs)
    >>> ys.shape
    (5, 2)
    """
    form = checked("lstm_step", LSTMForm(coupled, ablation, clip, cell_clip, layer_norm))
    check_step("lstm_step", params, form, carry, x)
    z = _recur(form, params, carry, _project(form, params, x, None))
    return _emit(params, _update_in(form, _pointwise, params, carry, z))


def lstm_gates(params: LSTMParams, carry: LSTMCarry, x: Array, **options: Any) -> LSTMGates:
    """The gates that :func:`lstm_step` computes on the way, for looking at.

    Takes what ``lstm_step`` takes, its options too; time may be one more batch axis, so a whole
    sequence is looked at in one call with the carries that each step read. A gate that was taken
    away is 1.

    >>> cell = LSTM(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> gates = lstm_gates(params, cell.initial_carry(), jnp.zeros(3))
    >>> [f"{float(f):.2f}" for f in gates.f]  # no input yet: the forget bias of 1 alone
    ['0.73', '0.73']
    """
    form = checked("lstm_gates", LSTMForm(**options))
    check_step("lstm_gates", params, form, carry, x)
    z = _added(form, params, _recur(form, params, carry, _project(form, params, x, None)))
    dtype = promote(z.dtype, carry[1].dtype)
    found = inside(form, params, carry[1].astype(dtype), z.astype(dtype))
    return LSTMGates(found.i, found.f, found.g, found.o)


def _project(form: LSTMForm, params: LSTMParams, x: Array, dtype: DType | None) -> Array:
    """x W: (..., 4H), all that needs no carry. The bias costs less in ``_recur``, on the way."""
    u = _linear.affine(x, params.w_ih, None, dtype)
    if form.layer_norm is None or params.norm is None:
        return u
    return _linear.layer_norm(u, params.norm.x, LAYER_NORMS[form.layer_norm]).astype(u.dtype)


def _recur(form: LSTMForm, params: LSTMParams, carry: LSTMCarry, u: Array) -> Any:
    """u + h R + b: (..., 4H), the four pre-activations side by side.

    With layer normalisation u + b and h R stay apart: the mean over h R is taken in ``_update``.
    """
    h, _ = carry
    recurrent = _linear.recurrent_product(h, params.w_hh, len(form.gates), u.dtype)
    u = u.astype(state_dtype(u.dtype))
    if form.layer_norm is None:
        return _linear.add_bias(u + recurrent, params.bias)
    return _linear.add_bias(u, params.bias), recurrent


@jax.custom_jvp
def gates_of(z: Array) -> LSTMGates:
    """One tanh serves all four, because sigmoid(z) = tanh(z / 2) / 2 + 1 / 2."""
    halves = np.repeat(np.array([0.5, 0.5, 1, 0.5], z.dtype), z.shape[-1] // 4)
    i, f, g, o = jnp.split(jnp.tanh(z * _linear.expand_rank(halves, z)), 4, axis=-1)
    return LSTMGates(0.5 * i + 0.5, 0.5 * f + 0.5, g, 0.5 * o + 0.5)


@gates_of.defjvp
def _gates_of_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[LSTMGates, LSTMGates]:
    gates = gates_of(*primals)
    return gates, gates_tangent(gates, tangents[0])


def gates_tangent(gates: LSTMGates, dz: Array) -> LSTMGates:
    """Each gate's derivative by its own value, of which autodiff would keep more."""
    i, f, g, o = gates
    dz_i, dz_f, dz_g, dz_o = jnp.split(dz, 4, axis=-1)
    slopes = i * (1 - i), f * (1 - f), 1 - g * g, o * (1 - o)
    return LSTMGates(slopes[0] * dz_i, slopes[1] * dz_f, slopes[2] * dz_g, slopes[3] * dz_o)


def _pointwise(c: Array, z: Array) -> tuple[Array, Array]:
    """h_t and c_t."""
    i, f, g, o = gates_of(z)
    c_t = f * c + i * g
    return o * jnp.tanh(c_t), c_t


_lean_pointwise = jax.custom_jvp(_pointwise)


@_lean_pointwise.defjvp
def _lean_pointwise_jvp(primals: Any, tangents: Any) -> Any:
    (c, z), (dc, dz) = primals, tangents
    gates = i, f, g, o = gates_of(z)
    c_t = f * c + i * g
    shown = jnp.tanh(c_t)
    return (o * shown, c_t), pointwise_tangent(gates, c, shown, dc, dz)


def pointwise_tangent(gates: LSTMGates, c: Array, shown: Array, dc: Array, dz: Array) -> tuple[Array, Array]:
    """The derivative of h_t and c_t by six factors a unit, where autodiff keeps eleven.

    The fast path keeps them for many steps at once, so they count. ``shown`` is tanh(c_t).
    """
    i, f, g, o = gates
    dz_i, dz_f, dz_g, dz_o = jnp.split(dz, 4, axis=-1)
    d_i, d_f = g * i * (1 - i) * dz_i, c * f * (1 - f) * dz_f
    d_g, d_o = i * (1 - g * g) * dz_g, shown * o * (1 - o) * dz_o
    dc_t = f * dc + (d_i + d_f + d_g)
    return d_o + o * (1 - shown * shown) * dc_t, dc_t


def _update(pointwise: Any, carry: LSTMCarry, z: Array) -> tuple[LSTMCarry, Array]:
    """The new carry, h not yet projected, by ``pointwise(c, z)``."""
    h, c = carry
    dtype = promote(z.dtype, c.dtype)
    h_t, c_t = pointwise(c.astype(dtype), z.astype(dtype))
    h_t = h_t.astype(h.dtype)
    return (h_t, c_t.astype(c.dtype)), h_t


def _update_in(
    form: LSTMForm, plain: Any, params: LSTMParams, carry: LSTMCarry, z: Any, candidate: Any = None
) -> tuple[LSTMCarry, Array]:
    """``_update`` in any form; ``plain`` serves the LSTM without options."""
    if form == LSTMForm() and params.peepholes is None and candidate is None:
        return _update(plain, carry, z)
    return _update(lambda c, z: inside(form, params, c, z, candidate)[:2], carry, _added(form, params, z))


def _added(form: LSTMForm, params: LSTMParams, z: Any) -> Array:
    """The whole pre-activation."""
    if form.layer_norm is None or params.norm is None:
        return z
    u, recurrent = z
    return u + _linear.layer_norm(recurrent, params.norm.h, LAYER_NORMS[form.layer_norm])


def _emit(params: LSTMParams, raw: tuple[LSTMCarry, Array]) -> tuple[LSTMCarry, Array]:
    """The projection of h, where there is one."""
    (h, c), _ = raw
    if params.w_hr is not None:
        h = _linear.product(h, params.w_hr, h.dtype).astype(h.dtype)
    return (h, c), h


@dataclass(frozen=True)
class LSTM:
    """Hyperparameters of an LSTM; :func:`lstm_step` has the equations, and those of every option.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h and of c.
        proj_size: P, units of h where it is projected (LSTMP); None: H, without a projection.
        peepholes: the gates also see the cell state.
        coupled: f = 1 - i (CIFG).
        ablation: what is taken away, one of ``lstm_step``'s names.
        heads: parts of h that hear themselves alone; a divisor of H (and of P).
        clip: limit of the pre-activations; None: no limit.
        cell_clip: limit of c; None: no limit.
        layer_norm: ``"tfa"`` or ``"haste"``, the two published definitions; None: none.
        use_bias: whether there is a b.
        forget_bias: added to the forget gate's bias at initialisation (1 lets a new cell
            remember; Jozefowicz et al. 2015). No effect later, and none without a bias or a
            forget gate. Of coupled gates, the input gate's bias gets its negative.
        learn_initial_carry: keep h_0 and c_0 among the parameters instead of zeros.
        w_ih_init, w_hh_init, bias_init: any function of ``jax.nn.initializers``; called once for
            each gate, with shape (D, H), (H, H) (for each head (H/heads, H/heads)) and (H,).
            w_hr is drawn by w_ih_init, with shape (H, P); peepholes begin at 0.
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix products, of h and of the outputs. None: what parameters and
            inputs promote to. Under bfloat16 or float16, c and all sums stay float32.

    Raises:
        ValueError: a size is not a positive whole number, a dtype is not floating, heads do not
            divide H, P is larger than H, or options contradict each other.

    >>> cell = LSTM(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> params.w_ih.shape, params.w_hh.shape, params.bias.shape
    ((3, 8), (2, 8), (8,))
    >>> (h, c), y = cell.step(params, cell.initial_carry((4,)), jnp.ones((4, 3)))
    >>> y.shape
    (4, 2)
    >>> params = LSTM(input_size=3, hidden_size=4, proj_size=2, coupled=True).init(jax.random.key(0))
    >>> params.w_ih.shape, params.w_hh.shape, params.w_hr.shape
    ((3, 12), (2, 12), (4, 2))
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    proj_size: int | None = None
    peepholes: bool = False
    coupled: bool = False
    ablation: str | None = None
    heads: int = 1
    clip: float | None = None
    cell_clip: float | None = None
    layer_norm: str | None = None
    use_bias: bool = True
    forget_bias: float = 1.0
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.GLOROT_UNIFORM
    w_hh_init: Initializer = _init.ORTHOGONAL
    bias_init: Initializer = _init.ZEROS
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    takes_candidate = True  # of update, for CandidateDropout

    def __post_init__(self) -> None:
        _checks.normalise(self, "input_size", "hidden_size", "heads")
        sizes = {"hidden_size": self.hidden_size}
        if self.proj_size is not None:
            check_size("LSTM", "proj_size", self.proj_size)
            object.__setattr__(self, "proj_size", int(self.proj_size))
            if self.proj_size > self.hidden_size:
                raise value_error(
                    f"LSTM got proj_size={self.proj_size} with hidden_size={self.hidden_size}",
                    "a projection to at most hidden_size units",
                    "Choose a smaller proj_size, or None.",
                )
            sizes["proj_size"] = self.proj_size
        _checks.check_heads("LSTM", self.heads, sizes)
        for name, value in checked("LSTM", self._form)._asdict().items():
            object.__setattr__(self, name, value)

    @property
    def output_size(self) -> int:
        """Features of one output: H, or P."""
        return self.proj_size or self.hidden_size

    @property
    def _form(self) -> LSTMForm:
        return LSTMForm(self.coupled, self.ablation, self.clip, self.cell_clip, self.layer_norm)

    @property
    def _blocks(self) -> Any:
        return _linear.blocks(self.heads, self.proj_size)

    def init(self, key: Array) -> LSTMParams:
        """Fresh parameters from one PRNG key."""
        H, P, dtype = self.hidden_size, self.output_size, self.param_dtype
        form = self._form
        w_ih, w_hh, bias = _init.init_weights(self, key, len(form.gates), self._blocks)
        remember = -self.forget_bias if self.coupled else self.forget_bias
        at = form.gates.find("i" if self.coupled else "f")
        if bias is not None and at >= 0:
            bias = bias.at[at * H : (at + 1) * H].add(remember)
        params = LSTMParams(w_ih, w_hh, bias)
        if self.learn_initial_carry:
            params = params._replace(initial=(jnp.zeros(P, dtype), jnp.zeros(H, dtype)))
        if self.peepholes:
            params = params._replace(peepholes=jnp.zeros(len(form.looking) * H, dtype))
        if self.proj_size is not None:
            params = params._replace(w_hr=self.w_ih_init(jax.random.fold_in(key, 3), (H, P), dtype))
        if self.layer_norm is not None:
            ones = jnp.ones(len(form.gates) * H, dtype)
            params = params._replace(norm=LSTMNorm(ones, ones, jnp.ones(H, dtype), jnp.zeros(H, dtype)))
        return params

    def initial_carry(self, batch_shape: Sequence[int] = (), params: LSTMParams | None = None) -> LSTMCarry:
        """``(h_0, c_0)``, (*batch_shape, H) each, h_0 (*batch_shape, P): zeros, or what was learned."""
        h, c = _init.learned_initial(self, params) or (None, None)
        dtype = _init.compute_dtype(self, params)
        c_dtype = promote(state_dtype(dtype), _init.weights_dtype(self, params))
        return (
            _init.initial_state(self, batch_shape, h, dtype, row=(self.output_size,)),
            _init.initial_state(self, batch_shape, c, c_dtype),
        )

    def step(self, params: LSTMParams, carry: LSTMCarry, x: Array) -> tuple[LSTMCarry, Array]:
        """:func:`lstm_step` in the cell's ``dtype``, with its options."""
        _checks.check_carry("LSTM.step", "h, c", carry, x, (self.output_size, self.hidden_size))
        z = self.recur(params, carry, self.project(params, x))
        return _emit(params, _update_in(self._form, _pointwise, params, carry, z))

    def project(self, params: LSTMParams, x: Array) -> Array:
        """x W: (..., 4H)."""
        _checks.check_cell(self, params, x, len(self._form.gates), self._blocks)
        wants = {
            "peepholes": self.peepholes,
            "w_hr": self.proj_size is not None,
            "norm": bool(self.layer_norm),
        }
        check_options("LSTM", params, self._form, wants, self.hidden_size, self.output_size)
        return _project(self._form, params, x, self.dtype)

    def recur(self, params: LSTMParams, carry: LSTMCarry, u: Array) -> Any:
        """u + h R + b: (..., 4H)."""
        return _recur(self._form, params, carry, u)

    def update(
        self, params: LSTMParams, carry: LSTMCarry, z: Any, *, candidate: Array | None = None
    ) -> tuple[LSTMCarry, Array]:
        """Gates, cell state, hidden state; ``candidate`` multiplies g."""
        return _update_in(self._form, _lean_pointwise, params, carry, z, candidate)

    @property
    def emit(self) -> Any:
        """The projection of h: a method where there is one, and else missing."""
        if self.proj_size is None:
            raise AttributeError("an LSTM without proj_size emits what update returns")
        return _emit
