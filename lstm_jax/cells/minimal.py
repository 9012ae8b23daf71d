"""The minimal GRU and LSTM, whose gates do not see the state, next to their equations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_float, check_key, value_error
from lstm_jax._types import Array, DType, Initializer, exportable, state_dtype
from lstm_jax.cells import _checks, _init, _linear


@exportable
class MinGRUParams(NamedTuple):
    """Parameters of a :class:`MinGRU`. Gate and candidate stand side by side in the order z, h."""

    w_ih: Array  # (D, 2H)
    bias: Array | None = None  # (2H,)
    initial: Array | None = None  # learned h_0, (H,)


@exportable
class MinLSTMParams(NamedTuple):
    """Parameters of a :class:`MinLSTM`. Gates and candidate stand side by side in the order f, i, h."""

    w_ih: Array  # (D, 3H)
    bias: Array | None = None  # (3H,)
    initial: Array | None = None  # learned h_0, (H,)


def min_gru_step(params: MinGRUParams, carry: Array, x: Array) -> tuple[Array, Array]:
    r"""One step of the minimal GRU (Feng et al. 2024, arXiv:2410.01201).

    .. math::
        z_t &= \sigma(x_t W_z + b_z) \\
        \tilde h_t &= g(x_t W_h + b_h) \\
        h_t &= (1 - z_t) \odot h_{t-1} + z_t \odot \tilde h_t

    W is ``params.w_ih``, b is ``params.bias``, and g keeps the candidate positive:
    :math:`g(a) = a + 1/2` where :math:`a \ge 0`, and :math:`\sigma(a)` elsewhere. It is continuous,
    with slope 1 at 0 and 1/4 just below. Nothing but the last line sees the state, so all steps can
    be computed at once (``implementation="parallel"``).

    z_t = 0 keeps the state (in :func:`gru_step`, z_t = 1 does).

    Args:
        params: ``MinGRUParams`` with w_ih (D, 2H), bias (2H,) or None; in the order z, h.
        carry: h, (*batch, H).
        x: the input of this step, (*batch, D).

    Returns:
        ``(h, h)`` in the dtype that the carry had.

    Raises:
        ValueError: a shape or dtype does not fit.

    >>> cell = MinGRU(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> h, y = min_gru_step(params, cell.initial_carry((4,)), jnp.ones((4, 3)))
    >>> h.shape
    (4, 2)
    """
    _check_step("min_gru_step", params, carry, x, gates=2)
    return _min_gru(carry, _preactivation(params, _project(params, x, None)))


def min_lstm_step(params: MinLSTMParams, carry: Array, x: Array) -> tuple[Array, Array]:
    r"""One step of the minimal LSTM (Feng et al. 2024, arXiv:2410.01201).

    .. math::
        f_t &= \sigma(x_t W_f + b_f) \\
        i_t &= \sigma(x_t W_i + b_i) \\
        \tilde h_t &= g(x_t W_h + b_h) \\
        h_t &= \frac{f_t}{f_t + i_t} \odot h_{t-1} + \frac{i_t}{f_t + i_t} \odot \tilde h_t

    W is ``params.w_ih``, b is ``params.bias``, g is that of :func:`min_gru_step`. The two shares
    sum to 1, also where both gates are so far shut that their quotient would be 0/0.

    Args:
        params: ``MinLSTMParams`` with w_ih (D, 3H), bias (3H,) or None; in the order f, i, h.
        carry: h, (*batch, H).
        x: the input of this step, (*batch, D).

    Returns:
        ``(h, h)`` in the dtype that the carry had.

    Raises:
        ValueError: a shape or dtype does not fit.

    >>> cell = MinLSTM(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> h, y = min_lstm_step(params, cell.initial_carry((4,)), jnp.ones((4, 3)))
    >>> h.shape
    (4, 2)
    """
    _check_step("min_lstm_step", params, carry, x, gates=3)
    return _min_lstm(carry, _preactivation(params, _project(params, x, None)))


def _project(params: Any, x: Array, dtype: DType | None) -> Array:
    """x W: (..., 2H) or (..., 3H)."""
    return _linear.affine(x, params.w_ih, None, dtype)


def _preactivation(params: Any, u: Array) -> Array:
    return _linear.add_bias(u.astype(state_dtype(u.dtype)), params.bias)


def _min_gru(h: Array, pre: Array) -> tuple[Array, Array]:
    gate, candidate = jnp.split(pre, 2, axis=-1)
    return _blend(h, _linear.sigmoid(gate), _positive(candidate))


def _min_lstm(h: Array, pre: Array) -> tuple[Array, Array]:
    f, i, candidate = jnp.split(pre, 3, axis=-1)
    return _blend(h, _share(f, i), _positive(candidate))


def _share(f: Array, i: Array) -> Array:
    """sigma(i) / (sigma(f) + sigma(i)): both multiplied by what keeps them from overflowing.

    In a loop on CPUs a third of the time of the sigmoid of a difference of logarithms.
    """
    most = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(-f, -i), 0))
    one, not_f, not_i = jnp.exp(-most), jnp.exp(-f - most), jnp.exp(-i - most)
    return (one + not_f) / (2 * one + not_f + not_i)


def _positive(a: Array) -> Array:
    return jnp.where(a >= 0, a + 0.5, _linear.sigmoid(a))


def _blend(h: Array, share: Array, candidate: Array) -> tuple[Array, Array]:
    h_t = ((1 - share) * h.astype(share.dtype) + share * candidate).astype(h.dtype)
    return h_t, h_t


def _coefficients(gate: Array, candidate: Array) -> tuple[Array, Array]:
    """``(log a_t, b_t)`` where sigma(gate) is the share: with all its digits where it is small."""
    return -jax.nn.softplus(gate), jax.nn.sigmoid(gate) * candidate


def _init_parts(cell: Any, key: Array, gates: int) -> tuple[Array, Array | None, Array | None]:
    """``(w_ih, bias, initial)``, gate by gate."""
    check_key(f"{type(cell).__name__}.init", key)
    k_ih, k_bias = jax.random.split(key)
    D, H, dtype = cell.input_size, cell.hidden_size, cell.param_dtype
    return (
        _init.init_gates(cell.w_ih_init, k_ih, (D, H), gates, dtype),
        _init.init_gates(cell.bias_init, k_bias, (H,), gates, dtype) if cell.use_bias else None,
        jnp.zeros(H, dtype) if cell.learn_initial_carry else None,
    )


def _check_step(owner: str, params: Any, carry: Any, x: Any, gates: int) -> None:
    """The arguments of a free step function fit each other."""
    _check_weights(owner, params, gates)
    D, columns = params.w_ih.shape
    _checks.check_input(owner, x, D)
    _checks.check_carry(owner, "h", carry, x, columns // gates)


def _check_cell(cell: Any, params: Any, x: Any, gates: int) -> None:
    """Parameters and input fit the cell's hyperparameters."""
    owner = type(cell).__name__
    _check_weights(owner, params, gates, (cell.input_size, cell.hidden_size))
    _checks.check_bias(cell, params)
    _checks.check_initial(cell, params)
    _checks.check_input(owner, x, cell.input_size)


def _check_weights(owner: str, params: Any, gates: int, sizes: tuple[int, int] | None = None) -> None:
    """w_ih (D, gates*H) and bias (gates*H,) agree, with each other or with ``sizes``; there is no w_hh."""
    missing = [name for name in ("w_ih", "bias") if not hasattr(params, name)]
    if missing or hasattr(params, "w_hh"):
        raise value_error(
            f"{owner} got parameters of type {type(params).__name__} "
            + (f"without {', '.join(missing)}" if missing else "with w_hh, which it does not have"),
            "the NamedTuple that the cell's init returns",
            "Make parameters with cell.init(key).",
        )
    given = {name: getattr(params, name) for name in ("w_ih", "bias") if getattr(params, name) is not None}
    for name, value in given.items():
        check_float(owner, name, value)
    shape = (*tuple(params.w_ih.shape), 0, 0)
    D, H = sizes or (shape[0], shape[1] // gates)
    expected = {"w_ih": (D, gates * H), "bias": (gates * H,)}
    wrong = {name: tuple(v.shape) for name, v in given.items() if tuple(v.shape) != expected[name]}
    if wrong:
        raise value_error(
            f"{owner} got " + ", ".join(f"{name} of shape {got}" for name, got in wrong.items()),
            ", ".join(f"{name} {expected[name]}" for name in wrong) + f" (D={D}, H={H}, {gates} parts)",
            "Build the cell with the sizes of its parameters, make parameters with cell.init(key), "
            "or map over stacked parameters with jax.vmap.",
        )


@dataclass(frozen=True)
class MinGRU:
    """Hyperparameters of a minimal GRU; :func:`min_gru_step` has the equations.

    It has no recurrent weights, and all steps of a sequence can be computed at once
    (:class:`lstm_jax.ParallelCell`).

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h.
        use_bias: whether there is a b.
        learn_initial_carry: keep h_0 among the parameters instead of zeros.
        w_ih_init, bias_init: any function of ``jax.nn.initializers``; called once for each of the
            two parts, with shape (D, H) and (H,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix product, of h and of the outputs. None: what parameters and
            inputs promote to. Sums and gates are float32 or wider.

    Raises:
        ValueError: a size is not a positive whole number, or a dtype is not floating.

    >>> cell = MinGRU(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> params.w_ih.shape, params.bias.shape
    ((3, 4), (4,))
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    use_bias: bool = True
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.GLOROT_UNIFORM
    bias_init: Initializer = _init.ZEROS
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    def __post_init__(self) -> None:
        _checks.normalise(self, "input_size", "hidden_size")

    @property
    def output_size(self) -> int:
        """Features of one output: H."""
        return self.hidden_size

    def init(self, key: Array) -> MinGRUParams:
        """Fresh parameters from one PRNG key."""
        return MinGRUParams(*_init_parts(self, key, gates=2))

    def initial_carry(self, batch_shape: Sequence[int] = (), params: MinGRUParams | None = None) -> Array:
        """h_0, (*batch_shape, H): zeros, or what was learned."""
        learned = _init.learned_initial(self, params)
        return _init.initial_state(self, batch_shape, learned, _init.compute_dtype(self, params))

    def step(self, params: MinGRUParams, carry: Array, x: Array) -> tuple[Array, Array]:
        """:func:`min_gru_step` in the cell's ``dtype``."""
        _checks.check_carry("MinGRU.step", "h", carry, x, self.hidden_size)
        return self.update(params, carry, self.recur(params, carry, self.project(params, x)))

    def project(self, params: MinGRUParams, x: Array) -> Array:
        """x W: (..., 2H)."""
        _check_cell(self, params, x, gates=2)
        return _project(params, x, self.dtype)

    def recur(self, params: MinGRUParams, carry: Array, u: Array) -> Array:
        """u + b: (..., 2H), whatever the carry."""
        return _preactivation(params, u)

    def update(self, params: MinGRUParams, carry: Array, z: Array) -> tuple[Array, Array]:
        """Gate, candidate, hidden state."""
        return _min_gru(carry, z)

    def coefficients(self, params: MinGRUParams, x: Array) -> tuple[Array, Array]:
        """``(log(1 - z_t), z_t g_t)``, each (..., H)."""
        gate, candidate = jnp.split(_preactivation(params, self.project(params, x)), 2, axis=-1)
        return _coefficients(gate, _positive(candidate))


@dataclass(frozen=True)
class MinLSTM:
    """Hyperparameters of a minimal LSTM; :func:`min_lstm_step` has the equations.

    It has no recurrent weights and one state, and all steps of a sequence can be computed at once
    (:class:`lstm_jax.ParallelCell`).

    Args:
        input_size: D, features of one input.
        hidden_size: H, units of h.
        use_bias: whether there is a b.
        forget_bias: added to the forget gate's bias at initialisation: the larger, the longer a new
            cell remembers. No effect later, and none without a bias.
        learn_initial_carry: keep h_0 among the parameters instead of zeros.
        w_ih_init, bias_init: any function of ``jax.nn.initializers``; called once for each of the
            three parts, with shape (D, H) and (H,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix product, of h and of the outputs. None: what parameters and
            inputs promote to. Sums and gates are float32 or wider.

    Raises:
        ValueError: a size is not a positive whole number, or a dtype is not floating.

    >>> cell = MinLSTM(input_size=3, hidden_size=2)
    >>> cell.init(jax.random.key(0)).bias.tolist()
    [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    use_bias: bool = True
    forget_bias: float = 1.0
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.GLOROT_UNIFORM
    bias_init: Initializer = _init.ZEROS
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    def __post_init__(self) -> None:
        _checks.normalise(self, "input_size", "hidden_size")

    @property
    def output_size(self) -> int:
        """Features of one output: H."""
        return self.hidden_size

    def init(self, key: Array) -> MinLSTMParams:
        """Fresh parameters from one PRNG key."""
        w_ih, bias, initial = _init_parts(self, key, gates=3)
        if bias is not None:
            bias = bias.at[: self.hidden_size].add(self.forget_bias)
        return MinLSTMParams(w_ih, bias, initial)

    def initial_carry(self, batch_shape: Sequence[int] = (), params: MinLSTMParams | None = None) -> Array:
        """h_0, (*batch_shape, H): zeros, or what was learned."""
        learned = _init.learned_initial(self, params)
        return _init.initial_state(self, batch_shape, learned, _init.compute_dtype(self, params))

    def step(self, params: MinLSTMParams, carry: Array, x: Array) -> tuple[Array, Array]:
        """:func:`min_lstm_step` in the cell's ``dtype``."""
        _checks.check_carry("MinLSTM.step", "h", carry, x, self.hidden_size)
        return self.update(params, carry, self.recur(params, carry, self.project(params, x)))

    def project(self, params: MinLSTMParams, x: Array) -> Array:
        """x W: (..., 3H)."""
        _check_cell(self, params, x, gates=3)
        return _project(params, x, self.dtype)

    def recur(self, params: MinLSTMParams, carry: Array, u: Array) -> Array:
        """u + b: (..., 3H), whatever the carry."""
        return _preactivation(params, u)

    def update(self, params: MinLSTMParams, carry: Array, z: Array) -> tuple[Array, Array]:
        """Gates, candidate, hidden state."""
        return _min_lstm(carry, z)

    def coefficients(self, params: MinLSTMParams, x: Array) -> tuple[Array, Array]:
        """``(log(f_t / (f_t + i_t)), i_t / (f_t + i_t) g_t)``, each (..., H)."""
        f, i, candidate = jnp.split(_preactivation(params, self.project(params, x)), 3, axis=-1)
        return _coefficients(jax.nn.softplus(-f) - jax.nn.softplus(-i), _positive(candidate))
