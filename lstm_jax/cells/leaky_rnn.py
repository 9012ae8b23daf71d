"""The leaky (continuous-time) recurrent network of neuroscience, next to its equations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_choice, check_float, is_number, value_error
from lstm_jax._random import normal
from lstm_jax._types import Array, DType, Initializer, exportable, promote, state_dtype
from lstm_jax.cells import _init
from lstm_jax.cells._base import VectorCell
from lstm_jax.cells._checks import axis_size, check_carry, check_input, check_params, check_type, normalise
from lstm_jax.cells._linear import add_bias, expand_rank, matmul
from lstm_jax.cells.activations import Activation, canonical_activations

FORMS = ("current", "rate")
INTEGRATIONS = ("euler", "exponential")


@exportable
class LeakyRNNParams(NamedTuple):
    """Parameters of a :class:`LeakyRNN`."""

    w_ih: Array  # (D, H)
    w_hh: Array  # (H, H)
    bias: Array | None = None  # (H,)
    log_tau: Array | None = None  # learned: the logarithm of each unit's time constant, (H,)
    initial: Array | None = None  # learned v_0 (form "rate": r_0), (H,)


#: ``(v, r)``, each (*batch, H); in the form "rate", only r.
LeakyRNNCarry: TypeAlias = tuple[Array, Array] | Array


def leaky_rnn_step(
    params: LeakyRNNParams,
    carry: LeakyRNNCarry,
    x: Array,
    noise: Array | None = None,
    *,
    tau: float,
    dt: float,
    sigma: float,
    form: str,
    integration: str,
    activation: Activation,
) -> tuple[LeakyRNNCarry, Array]:
    r"""One step of the leaky recurrent network, in one of its two published forms.

    With ``form="current"`` (Song, Yang & Wang 2016) the current v leaks. The output and the input of the
    recurrent product are the rates r = f(v):

    .. math::
        v_t &= (1 - \alpha) v_{t-1} + \alpha (x_t W + r_{t-1} R + b) + \sqrt{2 \alpha} \sigma \xi_t \\
        r_t &= f(v_t)

    With ``form="rate"`` (Yang, Joglekar, Song, Newsome & Wang 2019) the rates leak:

    .. math:: r_t = (1 - \alpha) r_{t-1} + \alpha f(x_t W + r_{t-1} R + b + \sqrt{2 / \alpha} \sigma \xi_t)

    W is ``params.w_ih``, R is ``params.w_hh``, b is ``params.bias``, f is ``activation``,
    :math:`\xi_t` is ``noise``: independent standard normal numbers. Both forms discretise a differential
    equation with time constant tau in steps of length dt,

    .. math:: \tau \dot{v} = -v + x W + f(v) R + b + \sqrt{2 \tau} \sigma \xi(t)

    (and likewise for r). The fraction of the old state that a step forgets is :math:`\alpha = dt / \tau` with
    Euler's method, as in the papers, or :math:`\alpha = 1 - e^{-dt / \tau}`, which is exact if the other
    terms are constant during a step. With noise as the only input, v has the variance :math:`2 \sigma^2 / (2
    - \alpha)`, which approaches :math:`\sigma^2` for short steps.

    Args:
        params: ``LeakyRNNParams`` with w_ih (D, H), w_hh (H, H), bias (H,) or None, log_tau (H,) or None.
        carry: ``(v, r)``, each (*batch, H); with ``form="rate"``, only r.
        x: the input of this step, (*batch, D).
        noise: standard normal numbers, (*batch, H); None: no noise.
        tau: time constant, in the unit of ``dt``, by convention milliseconds. Unused if ``params.log_tau``
            has learned time constants.
        dt: time from one step to the next.
        sigma: standard deviation of the noise.
        form: ``"current"`` or ``"rate"``.
        integration: ``"euler"``, which requires dt <= tau, or ``"exponential"``, which learned time constants
            require.
        activation: f; the papers use ``jax.nn.relu``, ``jax.nn.softplus`` and ``jnp.tanh``.

    Returns:
        ``((v, r), r)``, or ``(r, r)`` with ``form="rate"``, in the dtypes of the given carry.

    Raises:
        ValueError: a shape or dtype does not fit, or a number is out of range.

    >>> cell = LeakyRNN(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> options = dict(tau=100.0, dt=20.0, sigma=0.0, form="current", integration="euler")
    >>> carry, x = cell.initial_carry((4,)), jnp.ones((4, 3))
    >>> (v, r), y = leaky_rnn_step(params, carry, x, activation=jnp.tanh, **options)
    >>> y.shape
    (4, 2)
    """
    owner = "leaky_rnn_step"
    check_type(owner, params, LeakyRNNParams)
    learned = params.log_tau
    _check_dynamics(owner, form, integration, tau, dt, "sigma", sigma, learned is not None)
    D, H = axis_size(params.w_ih, 0), axis_size(params.w_hh, 0)
    optional = (None if array is None else (H,) for array in params[2:])
    check_params(owner, params, LeakyRNNParams._make(((D, H), (H, H), *optional)), f"D={D}, H={H}")
    check_input(owner, x, D)
    rows = ((H,), (H,)) if form == "current" else ((H,),)
    check_carry(owner, _states(form), carry, x.shape[:-1], *rows)
    alpha = _alpha(integration, tau, dt, learned)
    dtype = promote(x.dtype, params.w_ih.dtype)
    z = _recur(form, params, carry, matmul(x, params.w_ih, dtype), dtype)
    return _update(owner, form, activation, alpha, sigma, carry, z, noise)


def _states(form: str) -> str:
    return "v, r" if form == "current" else "r"


def _alpha(integration: str, tau: float, dt: float, log_tau: Array | None) -> Any:
    """The fraction of the old state that a step forgets: one number, or one for each unit."""
    if log_tau is not None:
        return -jnp.expm1(-dt * jnp.exp(-log_tau.astype(state_dtype(log_tau.dtype))))
    return dt / tau if integration == "euler" else -math.expm1(-dt / tau)


def _recur(form: str, params: LeakyRNNParams, carry: Any, u: Array, dtype: DType) -> Array:
    r = carry[1] if form == "current" else carry
    return add_bias(u.astype(state_dtype(u.dtype)) + matmul(r, params.w_hh, dtype), params.bias)


def _update(
    owner: str,
    form: str,
    activation: Activation,
    alpha: Any,
    sigma: float,
    carry: Any,
    z: Array,
    noise: Array | None,
) -> tuple[LeakyRNNCarry, Array]:
    """Leak, noise and f, computed in the dtype of z or of the state, whichever is wider."""
    state = carry[0] if form == "current" else carry
    dtype = promote(z.dtype, state.dtype)
    old, z = state.astype(dtype), z.astype(dtype)
    if not isinstance(alpha, float):
        alpha = expand_rank(alpha.astype(dtype), z)
    scaled = None
    if noise is not None and sigma:
        _check_noise(owner, noise, state)
        scaled = sigma * noise.astype(dtype)
    if form == "rate":
        z = z if scaled is None else z + (2 / alpha) ** 0.5 * scaled
        r_t = ((1 - alpha) * old + alpha * activation(z)).astype(state.dtype)
        return r_t, r_t
    v_t = (1 - alpha) * old + alpha * z
    v_t = v_t if scaled is None else v_t + (2 * alpha) ** 0.5 * scaled
    r_t = activation(v_t).astype(carry[1].dtype)
    return (v_t.astype(state.dtype), r_t), r_t


@dataclass(frozen=True, repr=False)
class LeakyRNN(VectorCell):
    r"""Hyperparameters of a leaky recurrent network; :func:`leaky_rnn_step` has the equations.

    In the form "current" the carry is (v, r), although r = f(v). This makes the recurrent product affine in
    the carry, which the fused scan requires. A carry that you construct must satisfy r = f(v), as that of
    ``initial_carry`` does.

    :func:`lstm_jax.unroll` draws the noise of every step if it is given a key. A single step with noise is
    ``cell.step(params, carry, x, cell.draw(key, carry))``.

    Args:
        input_size: D, features of one input.
        hidden_size: H, units.
        tau: time constant of all units, in the unit of ``dt``, by convention milliseconds.
        dt: time from one step to the next. With :math:`dt = \tau` and Euler's method a step forgets all of
        the
            old state, and the cell is an :class:`lstm_jax.RNN`.
        learn_tau: keep the logarithm of a time constant for each unit among the parameters, initially that of
            ``tau``. It requires ``integration="exponential"``, for which :math:`\alpha` is always in (0, 1).
        integration: ``"euler"``, as in the papers, with :math:`\alpha = dt / \tau`, or ``"exponential"``,
            with :math:`\alpha = 1 - e^{-dt / \tau}`.
        form: ``"current"`` (Song et al. 2016) or ``"rate"`` (Yang et al. 2019).
        noise: :math:`\sigma`, the standard deviation of the noise; 0: no noise.
        activation: f, or one of the names in ``lstm_jax.cells.activations``. Functions compare by identity,
            so pass a named function rather than a lambda.
        use_bias: whether there is a bias b.
        learn_initial_carry: keep v_0 (in the form "rate" r_0) among the parameters instead of zeros.
        w_ih_init, w_hh_init, bias_init: functions as in ``jax.nn.initializers``, called with shapes (D, H),
            (H, H) and (H,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the matrix products, of r and of the outputs. None: what parameters and inputs promote
            to. v, sums and f are float32 or wider. In the form "rate", r accumulates rounding errors over
            steps, so prefer "current" under bfloat16 or float16.

    Raises:
        ValueError: a size is not a positive integer, tau or dt is not positive, dt > tau with Euler's method,
            the noise is negative, the form or the integration is unknown, tau is learned with Euler's
            method, or a dtype is not floating.

    >>> cell = LeakyRNN(input_size=3, hidden_size=2, tau=50.0, dt=10.0, form="rate", noise=0.1)
    >>> params = cell.init(jax.random.key(0))
    >>> r = cell.initial_carry((4,))
    >>> quiet, _ = cell.step(params, r, jnp.ones((4, 3)))
    >>> noisy, _ = cell.step(params, r, jnp.ones((4, 3)), cell.draw(jax.random.key(1), r))
    >>> bool(jnp.all(quiet != noisy))
    True
    """

    input_size: int
    hidden_size: int
    _: KW_ONLY
    tau: float = 100.0
    dt: float = 20.0
    learn_tau: bool = False
    integration: str = "euler"
    form: str = "current"
    noise: float = 0.0
    activation: Activation | str = jnp.tanh
    use_bias: bool = True
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.glorot_uniform
    w_hh_init: Initializer = _init.orthogonal
    bias_init: Initializer = _init.zeros
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    def __post_init__(self) -> None:
        normalise(self, "input_size", "hidden_size")
        canonical_activations(self, "activation")
        _check_dynamics(
            "LeakyRNN", self.form, self.integration, self.tau, self.dt, "noise", self.noise, self.learn_tau
        )
        for name in ("tau", "dt", "noise"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def update_reads_params(self) -> bool:  # type: ignore[override]
        """Whether the time constants are parameters."""
        return self.learn_tau

    @property
    def step_noise(self) -> bool:  # type: ignore[override]
        """Whether there is noise."""
        return self.noise > 0

    @property
    def param_shapes(self) -> Any:
        """``LeakyRNNParams`` of shapes."""
        D, H = self.input_size, self.hidden_size
        options = self.use_bias, self.learn_tau, self.learn_initial_carry
        optional = ((H,) if option else None for option in options)
        return LeakyRNNParams._make(((D, H), (H, H), *optional))

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The rows of v and r; in the form "rate", those of r."""
        return {name: (self.hidden_size,) for name in _states(self.form).split(", ")}

    def init(self, key: Array) -> LeakyRNNParams:
        """Fresh parameters from one PRNG key."""
        weights = _init.init_weights(self, key, gates=1)
        H, dtype = self.hidden_size, self.param_dtype
        return LeakyRNNParams(
            *weights,
            jnp.full(H, math.log(self.tau), dtype) if self.learn_tau else None,
            jnp.zeros(H, dtype) if self.learn_initial_carry else None,
        )

    def initial_carry(
        self, batch_shape: Sequence[int] = (), params: LeakyRNNParams | None = None
    ) -> LeakyRNNCarry:
        """``(v_0, f(v_0))``, or r_0 in the form "rate", each (*batch_shape, H): zeros, or learned."""
        learned = _init.learned_initial(self, params)
        r_dtype, v_dtype = _init.state_dtypes(self, params)
        row = (self.hidden_size,)
        if self.form == "rate":
            return _init.initial_state(self, batch_shape, row, r_dtype, learned)
        v = _init.initial_state(self, batch_shape, row, v_dtype, learned)
        return v, self.activation(v).astype(r_dtype)  # type: ignore[operator]

    def draw(self, key: Array, carry: LeakyRNNCarry) -> Array | None:
        """Per-step noise: standard normal numbers in the shape of the state; None if noise=0."""
        return normal(key, jax.tree.leaves(carry)[0]) if self.noise else None

    def recur(self, params: LeakyRNNParams, carry: LeakyRNNCarry, u: Array) -> Array:
        """u + r R + b: (..., H)."""
        return _recur(self.form, params, carry, u, u.dtype)

    def update(
        self, params: LeakyRNNParams, carry: LeakyRNNCarry, z: Array, noise: Array | None = None
    ) -> tuple[LeakyRNNCarry, Array]:
        """Leak, noise and f."""
        alpha = _alpha(self.integration, self.tau, self.dt, params.log_tau)
        return _update("LeakyRNN", self.form, self.activation, alpha, self.noise, carry, z, noise)  # type: ignore[arg-type]


# --- validation ---------------------------------------------------------------------------------


def _check_dynamics(
    owner: str, form: str, integration: str, tau: Any, dt: Any, strength: str, sigma: Any, learned: bool
) -> None:
    """Check the time constants and the noise."""
    check_choice(owner, "form", form, FORMS)
    check_choice(owner, "integration", integration, INTEGRATIONS)
    for name, value in (("tau", tau), ("dt", dt)):
        if not is_number(value) or not 0 < value < math.inf:
            raise value_error(
                f"{owner} got {name}={value!r}",
                "a time above 0",
                "Give tau and dt in the same unit, for instance milliseconds.",
            )
    if not is_number(sigma) or not 0 <= sigma < math.inf:
        raise value_error(f"{owner} got {strength}={sigma!r}", "a number, 0 or more", "Use 0 for no noise.")
    if integration == "exponential":
        return
    if learned:
        raise value_error(
            f"{owner} got learned time constants with integration='euler'",
            "integration='exponential', which allows every positive tau",
            "Use integration='exponential', or a fixed tau.",
        )
    if dt > tau:
        raise value_error(
            f"{owner} got dt={dt!r} and tau={tau!r} with integration='euler'",
            "dt <= tau, so that a step forgets at most all of the old state",
            "Use shorter steps, or integration='exponential'.",
        )


def _check_noise(owner: str, noise: Any, state: Any) -> None:
    """Check for floats in the shape of the state."""
    check_float(owner, "noise", noise)
    if tuple(noise.shape) != tuple(state.shape):
        raise value_error(
            f"{owner} got noise of shape {tuple(noise.shape)}",
            f"the shape of the state, {tuple(state.shape)}",
            "Draw it with cell.draw(key, carry).",
        )
