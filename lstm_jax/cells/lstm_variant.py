"""The LSTM with options: peepholes, projection, coupled and missing gates, clipping, layer normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._devices import is_single_cpu_device
from lstm_jax._errors import check_choice, check_size, is_number, value_error
from lstm_jax._types import Array, DType, Initializer, exportable, same_dtype, state_dtype
from lstm_jax.cells import _init
from lstm_jax.cells._base import VectorCell
from lstm_jax.cells._checks import check_heads, normalise
from lstm_jax.cells._linear import (
    add_bias,
    expand_rank,
    head_matmul,
    head_shape,
    join_sums,
    layer_norm,
    matmul,
    sigmoid,
)
from lstm_jax.cells.activations import Activation, canonical_activations
from lstm_jax.cells.lstm import LSTMCarry, LSTMGates, lstm_update

#: The ablations of Greff et al. (2017), each with the gate that then has no weights.
ABLATIONS: dict[str, str] = {
    "no_input_gate": "i",
    "no_forget_gate": "f",
    "no_output_gate": "o",
    "no_input_activation": "",
    "no_output_activation": "",
}

#: The two published definitions of a layer-normalised LSTM, with the epsilon in their square roots.
LAYER_NORMS: dict[str, float] = {"tfa": 1e-3, "haste": 1e-5}


@exportable
class LSTMNorm(NamedTuple):
    """Parameters of layer normalisation in an :class:`LSTMVariant`."""

    x: Array  # (4H,) scale of x W
    h: Array  # (4H,) scale of h R
    c: Array  # (H,) scale of c
    c_offset: Array  # (H,) added to the normalised c


@exportable
class LSTMVariantParams(NamedTuple):
    """Parameters of an :class:`LSTMVariant`, with the gates side by side in the order i, f, g, o.

    If a gate has no weights, 4H is 3H. With a projection, ``w_hh`` has P rows.
    """

    w_ih: Array  # (D, 4H)
    w_hh: Array  # (H, 4H), or the diagonal blocks (heads, H/heads, 4H/heads)
    bias: Array | None = None  # (4H,)
    initial: tuple[Array, Array] | None = None  # learned h_0 (P,) and c_0 (H,)
    peepholes: Array | None = None  # (3H,) from the cell state to i, f, o
    w_hr: Array | None = None  # (H, P) the projection of h
    norm: LSTMNorm | None = None


class VariantStep(NamedTuple):
    """States and gates of one step."""

    h: Array
    c: Array
    gates: LSTMGates
    preactivations: LSTMGates  # None for gates without weights


def variant_update(
    cell: LSTMVariant, params: Any, c: Array, z: Array, candidate_scale: Array | None = None
) -> VariantStep:
    """One step from the pre-activations z (..., nH) of the n gates with weights. Other gates are 1."""
    pre = dict(zip(cell.gate_names, jnp.split(z, len(cell.gate_names), axis=-1), strict=True))
    peepholes = {}
    if params.peepholes is not None:
        weights = jnp.split(params.peepholes.astype(z.dtype), len(cell.peephole_gates))
        peepholes = {gate: expand_rank(w, z) for gate, w in zip(cell.peephole_gates, weights, strict=True)}

    def preactivation(name: str, state: Array) -> Array | None:
        if name not in pre:
            return None
        return clipped(pre[name] + (peepholes[name] * state if peepholes else 0), cell.clip)

    def gate(z: Array | None) -> Array:
        return jnp.ones_like(c) if z is None else cell.recurrent_activation(z)  # type: ignore[operator]

    def phi(a: Array) -> Array:
        return cell.activation(a)  # type: ignore[operator]

    z_i, z_f = preactivation("i", c), preactivation("f", c)
    i = gate(z_i)
    f = 1 - i if cell.coupled else gate(z_f)
    z_g = clipped(pre["g"], cell.clip)
    g = z_g if cell.ablation == "no_input_activation" else phi(z_g)
    if candidate_scale is not None:
        g = g * candidate_scale.astype(g.dtype)
    c_t = f * c + i * g
    if cell.layer_norm == "tfa":
        c_t = _normalised(cell, params.norm, c_t)
    c_t = clipped(c_t, cell.cell_clip)
    z_o = preactivation("o", c_t)
    o = gate(z_o)
    visible = _normalised(cell, params.norm, c_t) if cell.layer_norm == "haste" else c_t
    visible = visible if cell.ablation == "no_output_activation" else phi(visible)
    preactivations = LSTMGates(z_i, z_f, z_g, z_o)  # type: ignore[arg-type]
    return VariantStep(o * visible, c_t, LSTMGates(i, f, g, o), preactivations)


def _normalised(cell: LSTMVariant, norm: LSTMNorm, c: Array) -> Array:
    """The layer-normalised cell state."""
    normal = layer_norm(c, norm.c, LAYER_NORMS[cell.layer_norm or ""])
    return normal + expand_rank(norm.c_offset.astype(normal.dtype), normal)


def clipped(z: Array, limit: float | None) -> Array:
    """z limited to [-limit, limit]."""
    return z if limit is None else jnp.clip(z, -limit, limit)


@dataclass(frozen=True, repr=False)
class LSTMVariant(VectorCell):
    r"""An LSTM with options; without options it computes what :class:`lstm_jax.LSTM` does.

    The options change the equations of :func:`lstm_jax.lstm_step`:

    - ``peepholes`` (Gers & Schmidhuber 2000): :math:`p_i \odot c_{t-1}`, :math:`p_f \odot c_{t-1}` and
      :math:`p_o \odot c_t` inside the sigmoids of i, f and o;
    - ``proj_size`` (LSTMP, Sak et al. 2014): :math:`h_t = (o_t \odot \tanh(c_t)) W_{hr}`, and R reads P
      units;
    - ``coupled`` (CIFG, Greff et al. 2017): :math:`f_t = 1 - i_t`, and f has no weights;
    - ``heads``: R is block diagonal (Beck et al. 2024).

    There is no free step function: use ``cell.step``.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h and of c.
        proj_size: P, units of the projected h; None: no projection.
        peepholes: the gates also read the cell state.
        coupled: f = 1 - i.
        ablation: ``"no_input_gate"``, ``"no_forget_gate"`` or ``"no_output_gate"``: that gate is 1 and has no
            weights; ``"no_input_activation"`` or ``"no_output_activation"``: no tanh for g, or around c_t
            (all five: Greff et al. 2017).
        heads: diagonal blocks of w_hh, a divisor of H (and of P).
        clip: limits all pre-activations, peepholes included, to [-clip, clip], as in ONNX; None: no limit.
        cell_clip: limits c_t to [-cell_clip, cell_clip] before the output gate reads it (Sak et al. 2014).
        layer_norm: normalises all 4H of x W, all 4H of h R and c_t over the units of a row to mean 0 and
            variance 1, each with a learned scale (Ba et al. 2016). With ``"tfa"`` (TensorFlow Addons) the
            carry contains the normalised c_t. With ``"haste"`` (LMNT's Haste) the carry contains c_t, and
            only the argument of the last tanh is normalised.
        activation: the function for g and around c_t, or one of the names in ``lstm_jax.cells.activations``.
        recurrent_activation: the function of the gates i, f and o, likewise.
        use_bias: whether there is a bias b.
        forget_bias: added to the forget gate's bias by ``init``. With ``coupled``, it is subtracted from the
            input gate's bias. It has no effect after ``init``, and none without a bias or a forget gate.
        learn_initial_carry: keep h_0 and c_0 among the parameters instead of zeros.
        w_ih_init, w_hh_init, bias_init: functions as in ``jax.nn.initializers``, called once for each gate
            with shapes (D, H), (H, H) (for each head (H/heads, H/heads)) and (H,). w_ih_init also draws w_hr,
            with shape (H, P). Peepholes are initially 0.
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix products, of h and of the outputs. None: what parameters and inputs
            promote to. Under bfloat16 or float16, c and all sums are float32.

    Raises:
        ValueError: a size is not a positive integer, a dtype is not floating, heads do not divide H, P is
            larger than H, or options contradict each other.

    >>> cell = LSTMVariant(input_size=3, hidden_size=4, proj_size=2, coupled=True)
    >>> params = cell.init(jax.random.key(0))
    >>> params.w_ih.shape, params.w_hh.shape, params.w_hr.shape
    ((3, 12), (2, 12), (4, 2))
    >>> (h, c), y = cell.step(params, cell.initial_carry((5,)), jnp.ones((5, 3)))
    >>> h.shape, c.shape
    ((5, 2), (5, 4))
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
    activation: Activation | str = jnp.tanh
    recurrent_activation: Activation | str = sigmoid
    use_bias: bool = True
    forget_bias: float = 1.0
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.glorot_uniform
    w_hh_init: Initializer = _init.orthogonal
    bias_init: Initializer = _init.zeros
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    has_gates = True
    scales_candidate = True

    def __post_init__(self) -> None:
        normalise(self, "input_size", "hidden_size", "heads")
        sizes = {"hidden_size": self.hidden_size}
        if self.proj_size is not None:
            check_size("LSTMVariant", "proj_size", self.proj_size)
            object.__setattr__(self, "proj_size", int(self.proj_size))
            if self.proj_size > self.hidden_size:
                raise value_error(
                    f"LSTMVariant got proj_size={self.proj_size} with hidden_size={self.hidden_size}",
                    "a projection to at most hidden_size units",
                    "Use a smaller proj_size, or None.",
                )
            sizes["proj_size"] = self.proj_size
        check_heads("LSTMVariant", self.heads, sizes)
        canonical_activations(self, "activation", "recurrent_activation")
        if self.ablation is not None:
            check_choice("LSTMVariant", "ablation", self.ablation, tuple(ABLATIONS))
        if self.layer_norm is not None:
            check_choice("LSTMVariant", "layer_norm", self.layer_norm, tuple(LAYER_NORMS))
        if self.coupled and self.ablation in ("no_input_gate", "no_forget_gate"):
            raise value_error(
                f"LSTMVariant got coupled=True with ablation={self.ablation!r}",
                "at most one of the two, because coupled gates are one gate, f = 1 - i",
                "Use coupled=False.",
            )
        for name in ("clip", "cell_clip"):
            limit = getattr(self, name)
            if limit is None:
                continue
            if not is_number(limit) or not limit > 0:
                raise value_error(f"LSTMVariant got {name}={limit!r}", "a positive number", "None: no limit.")
            object.__setattr__(self, name, float(limit))

    @property
    def output_size(self) -> int:
        """H, the features of one output, or P with a projection."""
        return self.proj_size or self.hidden_size

    @property
    def update_reads_params(self) -> bool:  # type: ignore[override]
        """Whether there are peepholes, scales or a projection."""
        return self.peepholes or self.layer_norm is not None or self.proj_size is not None

    @property
    def emits(self) -> bool:  # type: ignore[override]
        """Whether there is a projection."""
        return self.proj_size is not None

    @property
    def gate_names(self) -> str:
        """The gates that have weights, in their order."""
        absent = ("f" if self.coupled else "") + ABLATIONS.get(self.ablation or "", "")
        return "".join(gate for gate in "ifgo" if gate not in absent)

    @property
    def peephole_gates(self) -> str:
        """The gates that have peepholes if ``peepholes`` is True."""
        return self.gate_names.replace("g", "")

    @property
    def has_plain_update(self) -> bool:
        """Whether :func:`lstm_update` can compute the step, because the options change only the products."""
        plain = (False, False, None, None, None, None, jnp.tanh, sigmoid)
        return plain == (
            self.peepholes,
            self.coupled,
            self.ablation,
            self.clip,
            self.cell_clip,
            self.layer_norm,
            self.activation,
            self.recurrent_activation,
        )

    @property
    def param_shapes(self) -> Any:
        """``LSTMVariantParams`` of shapes."""
        D, H, P, gates = self.input_size, self.hidden_size, self.output_size, len(self.gate_names)
        return LSTMVariantParams._make(
            (
                (D, gates * H),
                head_shape(self.heads, P, gates * H),
                (gates * H,) if self.use_bias else None,
                ((P,), (H,)) if self.learn_initial_carry else None,
                (len(self.peephole_gates) * H,) if self.peepholes else None,
                (H, P) if self.proj_size is not None else None,
                ((gates * H,), (gates * H,), (H,), (H,)) if self.layer_norm is not None else None,
            )
        )

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The rows of h and c."""
        return {"h": (self.output_size,), "c": (self.hidden_size,)}

    def init(self, key: Array) -> LSTMVariantParams:
        """Fresh parameters from one PRNG key."""
        H, P, dtype = self.hidden_size, self.output_size, self.param_dtype
        gates = len(self.gate_names)
        w_ih, w_hh, bias = _init.init_weights(self, key, gates, self.heads, rows=P)
        gate = self.gate_names.find("i" if self.coupled else "f")
        if bias is not None and gate >= 0:
            shift = -self.forget_bias if self.coupled else self.forget_bias
            bias = bias.at[gate * H : (gate + 1) * H].add(shift)
        params = LSTMVariantParams(w_ih, w_hh, bias)
        if self.learn_initial_carry:
            params = params._replace(initial=(jnp.zeros(P, dtype), jnp.zeros(H, dtype)))
        if self.peepholes:
            params = params._replace(peepholes=jnp.zeros(len(self.peephole_gates) * H, dtype))
        if self.proj_size is not None:
            params = params._replace(w_hr=self.w_ih_init(jax.random.fold_in(key, 3), (H, P), dtype))
        if self.layer_norm is not None:
            ones = jnp.ones(gates * H, dtype)
            params = params._replace(norm=LSTMNorm(ones, ones, jnp.ones(H, dtype), jnp.zeros(H, dtype)))
        return params

    def initial_carry(
        self, batch_shape: Sequence[int] = (), params: LSTMVariantParams | None = None
    ) -> LSTMCarry:
        """``(h_0, c_0)``, (*batch_shape, P) and (*batch_shape, H): zeros, or the learned vectors."""
        h, c = _init.learned_initial(self, params) or (None, None)
        h_dtype, c_dtype = _init.state_dtypes(self, params)
        return (
            _init.initial_state(self, batch_shape, (self.output_size,), h_dtype, h),
            _init.initial_state(self, batch_shape, (self.hidden_size,), c_dtype, c),
        )

    def project(self, params: LSTMVariantParams, x: Array) -> Array:
        """x W, normalised if the cell has layer normalisation: (..., 4H)."""
        u = super().project(params, x)
        if self.layer_norm is None:
            return u
        return layer_norm(u, params.norm.x, LAYER_NORMS[self.layer_norm]).astype(u.dtype)  # type: ignore[union-attr]

    def recur(self, params: LSTMVariantParams, carry: LSTMCarry, u: Array) -> Any:
        """u + h R + b: (..., 4H). With layer normalisation ``(u + b, h R)``: ``update`` normalises h R."""
        gates = len(self.gate_names)
        product = head_matmul(carry[0], params.w_hh, gates, u.dtype)
        u = u.astype(state_dtype(u.dtype))
        if self.layer_norm is not None:
            return add_bias(u, params.bias), product
        if self.has_plain_update or not is_single_cpu_device():
            return add_bias(u + product, params.bias)
        first_gate = [u.shape[-1] // gates]
        parts = zip(jnp.split(u, first_gate, axis=-1), jnp.split(product, first_gate, axis=-1), strict=True)
        return join_sums([a + b for a, b in parts], params.bias)

    def _preactivation(self, params: LSTMVariantParams, z: Any) -> Array:
        if self.layer_norm is None:
            return z
        u, product = z
        return u + layer_norm(product, params.norm.h, LAYER_NORMS[self.layer_norm])  # type: ignore[union-attr]

    def update(
        self,
        params: LSTMVariantParams,
        carry: LSTMCarry,
        z: Any,
        noise: None = None,
        *,
        candidate_scale: Array | None = None,
    ) -> tuple[LSTMCarry, Array]:
        """Gates, cell state, h before the projection; ``candidate_scale`` multiplies g."""
        h, c = carry
        c_in, z = same_dtype(c, self._preactivation(params, z))
        if self.has_plain_update and candidate_scale is None:
            h_t, c_t = lstm_update(c_in, z)
        else:
            h_t, c_t, *_ = variant_update(self, params, c_in, z, candidate_scale)
        h_t = h_t.astype(h.dtype)
        return (h_t, c_t.astype(c.dtype)), h_t

    def emit(self, params: LSTMVariantParams, raw: tuple[LSTMCarry, Array]) -> tuple[LSTMCarry, Array]:
        """The projection of h, if there is one."""
        (h, c), _ = raw
        if params.w_hr is not None:
            h = matmul(h, params.w_hr, h.dtype).astype(h.dtype)
        return (h, c), h

    def gates(self, params: LSTMVariantParams, carry: LSTMCarry, x: Array) -> LSTMGates:
        """The gates of one step; carry and x may have any leading axes, time included."""
        return self._variant_step(params, carry, x).gates

    def preactivations(self, params: LSTMVariantParams, carry: LSTMCarry, x: Array) -> LSTMGates:
        """The pre-activations of :meth:`gates`, peepholes included; None for gates without weights."""
        return self._variant_step(params, carry, x).preactivations

    def _variant_step(self, params: LSTMVariantParams, carry: LSTMCarry, x: Array) -> VariantStep:
        z = self._preactivation(params, self.recur(params, carry, self.project(params, x)))
        return variant_update(self, params, *same_dtype(carry[1], z))
