"""The convolutional LSTM: an LSTM whose states are images, next to its equations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax._errors import check_choice, check_float, check_key, check_size, value_error
from lstm_jax._types import Array, DType, Initializer, exportable, promote, same_dtype, state_dtype
from lstm_jax.cells import _init
from lstm_jax.cells._base import BaseCell
from lstm_jax.cells._checks import axis_size, check_carry, check_params, check_type, normalise
from lstm_jax.cells._linear import add_bias
from lstm_jax.cells.lstm import LSTMCarry, LSTMGates, activate, lstm_update

PADDINGS = ("SAME", "VALID")


@exportable
class ConvLSTMParams(NamedTuple):
    """Parameters of a :class:`ConvLSTM`, the gates side by side in the order i, f, g, o."""

    w_ih: Array  # (*kernel, C, 4F)
    w_hh: Array  # (*kernel, F, 4F)
    bias: Array | None = None  # (4F,)
    initial: tuple[Array, Array] | None = None  # learned h_0 and c_0, each (F,), the same at every pixel


def conv_lstm_step(
    params: ConvLSTMParams,
    carry: LSTMCarry,
    x: Array,
    *,
    strides: Sequence[int] | None,
    padding: str,
) -> tuple[LSTMCarry, Array]:
    r"""One step of the convolutional LSTM (Shi et al. 2015), without the paper's peepholes.

    .. math::
        i_t &= \sigma(x_t * W_i + h_{t-1} * R_i + b_i) \\
        f_t &= \sigma(x_t * W_f + h_{t-1} * R_f + b_f) \\
        g_t &= \tanh (x_t * W_g + h_{t-1} * R_g + b_g) \\
        o_t &= \sigma(x_t * W_o + h_{t-1} * R_o + b_o) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        h_t &= o_t \odot \tanh(c_t)

    W is ``params.w_ih``, R is ``params.w_hh``, b is ``params.bias``. The star is the cross-correlation that
    neural networks call a convolution, which does not flip the kernel:

    .. math:: (x * W)_p = \sum_q x_{s p + q - l} W_q

    Here s are the strides, and l is the number of zeros before the first pixel. ``"SAME"`` pads with zeros to
    keep the size (divided by the strides and rounded up); an odd zero is added at the end. ``"VALID"`` does
    not pad. Strides and padding apply to the input's convolution. The state must keep its size, so its
    convolution has stride 1 and ``"SAME"``.

    Args:
        params: ``ConvLSTMParams`` with w_ih (*kernel, C, 4F), w_hh (*kernel, F, 4F), bias (4F,) or None.
        carry: ``(h, c)``, each (*batch, *space, F), where space is that of the convolved input.
        x: the input of this step, (*batch, *space, C), with 1, 2 or 3 spatial axes.
        strides: of the input's convolution, one for each spatial axis; None: all 1.
        padding: of the input's convolution, ``"SAME"`` or ``"VALID"``.

    Returns:
        ``((h, c), h)`` in the dtypes of the given carry.

    Raises:
        ValueError: a shape, dtype or type does not fit.

    >>> cell = ConvLSTM(input_shape=(8, 6, 3), features=2, kernel_size=(3, 3))
    >>> params = cell.init(jax.random.key(0))
    >>> carry, x = cell.initial_carry((4,)), jnp.ones((4, 8, 6, 3))
    >>> (h, c), y = conv_lstm_step(params, carry, x, strides=None, padding="SAME")
    >>> y.shape
    (4, 8, 6, 2)
    """
    owner = "conv_lstm_step"
    check_type(owner, params, ConvLSTMParams)
    for name in ("w_ih", "w_hh"):
        if not 3 <= len(getattr(getattr(params, name), "shape", ())) <= 5:
            raise value_error(
                f"{owner} got {name} of shape {tuple(getattr(getattr(params, name), 'shape', ()))}",
                "1, 2 or 3 kernel sizes, the input channels, and the channels of the four gates",
                "Make parameters with cell.init(key), or map over stacked parameters with jax.vmap.",
            )
    kernel, axes = params.w_ih.shape[:-2], params.w_ih.ndim - 2
    C, F = axis_size(params.w_ih, -2), axis_size(params.w_hh, -2)
    shapes = _shapes(kernel, C, F, params.bias is not None, params.initial is not None)
    check_params(owner, params, shapes, f"C={C}, F={F}, 4 gates")
    strides = _each_axis(owner, "strides", (1,) * axes if strides is None else strides, axes)
    check_choice(owner, "padding", padding, PADDINGS)
    _check_channels(owner, x, axes, C)
    space = _space_out(owner, x.shape[-axes - 1 : -1], kernel, strides, padding)
    check_carry(owner, "h, c", carry, x.shape[: -axes - 1], (*space, F), (*space, F))
    dtype = promote(x.dtype, params.w_ih.dtype)
    u = _convolve(x, params.w_ih, strides, padding, dtype)
    return _update(carry, _recur(params, carry, u, dtype))


def _shapes(kernel: tuple[int, ...], C: int, F: int, bias: bool, initial: bool) -> Any:
    optional = ((4 * F,) if bias else None, ((F,), (F,)) if initial else None)
    return ConvLSTMParams._make(((*kernel, C, 4 * F), (*kernel, F, 4 * F), *optional))


def _convolve(x: Array, w: Array, strides: tuple[int, ...], padding: str, dtype: DType) -> Array:
    """``x * w`` for any leading axes, with factors in ``dtype`` and sums in float32 or wider."""
    axes = w.ndim - 2
    count = x.ndim - axes - 1
    # The time axis moves behind the batch axes, because joining it to sharded axes in front would move data.
    order = list(range(count)) if jax.device_count() == 1 else [*range(1, count), *range(min(1, count))]
    back = sorted(range(count), key=order.__getitem__)
    images, kernels = (0, axes + 1, *range(1, axes + 1)), (axes + 1, axes, *range(axes))

    def convolve(x: Array, w: Array) -> Array:
        x = x.transpose(*order, *range(count, x.ndim))
        y = lax.conv_general_dilated(
            x.reshape(math.prod(x.shape[:count]), *x.shape[count:]),
            w,
            strides,
            padding,
            dimension_numbers=lax.ConvDimensionNumbers(images, kernels, images),
            preferred_element_type=state_dtype(dtype),
        )
        y = y.reshape(*x.shape[:count], *y.shape[1:])
        return y.transpose(*back, *range(count, y.ndim))

    sharding = jax.typeof(x).sharding
    if jax.sharding.AxisType.Explicit in sharding.mesh.axis_types:
        # On an explicit mesh, JAX cannot infer the sharding of the weight gradient of a convolution.
        out = jax.sharding.PartitionSpec(*sharding.spec[:count])
        convolve = jax.sharding.auto_axes(convolve, out_sharding=out)
    return convolve(x.astype(dtype), w.astype(dtype))


def _recur(params: ConvLSTMParams, carry: LSTMCarry, u: Array, dtype: DType) -> Array:
    """u + h * R + b: (..., *space, 4F)."""
    h, _ = carry
    ones = (1,) * (params.w_hh.ndim - 2)
    z = u.astype(state_dtype(u.dtype)) + _convolve(h, params.w_hh, ones, "SAME", dtype)
    return add_bias(z, params.bias)


def _update(carry: LSTMCarry, z: Array) -> tuple[LSTMCarry, Array]:
    h, c = carry
    h_t, c_t = lstm_update(*same_dtype(c, z))
    h_t = h_t.astype(h.dtype)
    return (h_t, c_t.astype(c.dtype)), h_t


@dataclass(frozen=True, repr=False)
class ConvLSTM(BaseCell):
    r"""Hyperparameters of a convolutional LSTM; :func:`conv_lstm_step` has the equations.

    An input is an image (*space, C) with 1, 2 or 3 spatial axes and the channels last. Each state is an image
    (*space, F). A sequence for :func:`lstm_jax.unroll` is (T, *batch, *space, C).

    Differences to other libraries:

    - ``ConvLSTM1D/2D/3D`` of Keras 3: ``kernel`` is w_ih, ``recurrent_kernel`` is w_hh, ``bias`` is bias,
      with the gates in the same order (Keras's c is g here). Strides and padding apply to the input's
      convolution only, as here, but Keras's default padding is ``"valid"``. Its default recurrent activation
      is the sigmoid. This cell has no ``dilation_rate``, dropout or other activations.
    - ``ConvLSTMCell`` of flax.linen (flax.nnx has none): the convolutions ``ih`` and ``hh`` contain w_ih and
      w_hh with the gates in the order i, g, f, o. Both may have a bias; ``bias`` is their sum. Flax adds 1 to
      the forget gate at every step, where ``bias`` includes it. Flax's carry is (c, h). Its strides and
      padding apply to both convolutions, so only those that keep the size work.

    Like these libraries, the cell has no peepholes, which the paper has.

    Args:
        input_shape: (*space, C), the shape of one input, from which the shape of the carry follows.
        features: F, channels of h and of c.
        kernel_size: of both convolutions, one size for each spatial axis.
        strides: of the input's convolution, one for each spatial axis; None: all 1.
        padding: of the input's convolution, ``"SAME"`` or ``"VALID"``.
        use_bias: whether there is a bias b.
        forget_bias: added to the forget gate's bias by ``init``. It has no effect without a bias.
        learn_initial_carry: keep h_0 and c_0 among the parameters instead of zeros: one number per channel,
            the same at every pixel.
        w_ih_init, w_hh_init, bias_init: functions as in ``jax.nn.initializers``, called once for each gate
            with shapes (*kernel, C, F), (*kernel, F, F) and (F,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the convolutions, of h and of the outputs. None: what parameters and inputs promote
            to. Under bfloat16 or float16, c and all sums are float32.

    Raises:
        ValueError: a size is not a positive integer, the numbers of axes differ, the kernel does not fit into
            the input, or a dtype is not floating.

    >>> cell = ConvLSTM(input_shape=(8, 6, 3), features=2, kernel_size=(3, 3), strides=(2, 2))
    >>> params = cell.init(jax.random.key(0))
    >>> params.w_ih.shape, params.w_hh.shape, params.bias.shape
    ((3, 3, 3, 8), (3, 3, 2, 8), (8,))
    >>> (h, c), y = cell.step(params, cell.initial_carry((5,)), jnp.ones((5, 8, 6, 3)))
    >>> y.shape
    (5, 4, 3, 2)
    """

    input_shape: tuple[int, ...]
    features: int
    kernel_size: tuple[int, ...]
    _: KW_ONLY
    strides: tuple[int, ...] | None = None
    padding: str = "SAME"
    use_bias: bool = True
    forget_bias: float = 1.0
    learn_initial_carry: bool = False
    w_ih_init: Initializer = _init.glorot_uniform
    w_hh_init: Initializer = _init.orthogonal
    bias_init: Initializer = _init.zeros
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    has_gates = True

    def __post_init__(self) -> None:
        normalise(self, "features")
        shape = _each_axis("ConvLSTM", "input_shape", self.input_shape, None)
        if not 2 <= len(shape) <= 4:
            raise value_error(
                f"ConvLSTM got input_shape={self.input_shape!r}",
                "1, 2 or 3 spatial axes, then the channels",
                "Write (height, width, channels) for an image.",
            )
        axes = len(shape) - 1
        kernel = _each_axis("ConvLSTM", "kernel_size", self.kernel_size, axes)
        strides = (1,) * axes if self.strides is None else self.strides
        strides = _each_axis("ConvLSTM", "strides", strides, axes)
        check_choice("ConvLSTM", "padding", self.padding, PADDINGS)
        _space_out("ConvLSTM", shape[:-1], kernel, strides, self.padding)
        for name, value in (("input_shape", shape), ("kernel_size", kernel), ("strides", strides)):
            object.__setattr__(self, name, value)

    @property
    def event_ndim(self) -> int:  # type: ignore[override]
        """The number of trailing axes of an input that are features (the spatial axes and the channels)."""
        return len(self.input_shape)

    @property
    def input_size(self) -> int:
        """C, the channels of one input."""
        return self.input_shape[-1]

    @property
    def hidden_size(self) -> int:
        """F, the channels of h and of c."""
        return self.features

    @property
    def output_size(self) -> int:
        """F, the channels of one output."""
        return self.features

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(*space, F), the shape of one output and of each state."""
        space = _space_out("ConvLSTM", self.input_shape[:-1], *self._window)
        return (*space, self.features)

    @property
    def sizes(self) -> str:
        """The sizes that determine the shapes, for messages."""
        return f"C={self.input_size}, F={self.features}, 4 gates"

    @property
    def param_shapes(self) -> Any:
        """``ConvLSTMParams`` of shapes."""
        return _shapes(
            self.kernel_size, self.input_size, self.features, self.use_bias, self.learn_initial_carry
        )

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """(*space, F) for h and for c."""
        return {"h": self.output_shape, "c": self.output_shape}

    @property
    def _window(self) -> tuple[tuple[int, ...], tuple[int, ...], str]:
        return self.kernel_size, self.strides or (), self.padding

    def init(self, key: Array) -> ConvLSTMParams:
        """Fresh parameters from one PRNG key."""
        check_key("ConvLSTM.init", key)
        k_ih, k_hh, k_bias = jax.random.split(key, 3)
        C, F, dtype = self.input_size, self.features, self.param_dtype
        w_ih = _init.init_gates(self.w_ih_init, k_ih, (*self.kernel_size, C, F), 4, dtype)
        w_hh = _init.init_gates(self.w_hh_init, k_hh, (*self.kernel_size, F, F), 4, dtype)
        bias = None
        if self.use_bias:
            bias = _init.init_gates(self.bias_init, k_bias, (F,), 4, dtype)
            bias = bias.at[F : 2 * F].add(self.forget_bias)
        initial = (jnp.zeros(F, dtype),) * 2 if self.learn_initial_carry else None
        return ConvLSTMParams(w_ih, w_hh, bias, initial)

    def initial_carry(
        self, batch_shape: Sequence[int] = (), params: ConvLSTMParams | None = None
    ) -> LSTMCarry:
        """``(h_0, c_0)``, each (*batch_shape, *space, F): zeros, or the learned values."""
        h, c = _init.learned_initial(self, params) or (None, None)
        h_dtype, c_dtype = _init.state_dtypes(self, params)
        return (
            _init.initial_state(self, batch_shape, self.output_shape, h_dtype, h),
            _init.initial_state(self, batch_shape, self.output_shape, c_dtype, c),
        )

    def project(self, params: ConvLSTMParams, x: Array) -> Array:
        """x * W: (..., *space, 4F)."""
        check_params("ConvLSTM", params, self.param_shapes, self.sizes, cell=self)
        check_float("ConvLSTM", "x", x)
        if tuple(x.shape[-self.event_ndim :]) != self.input_shape:
            raise value_error(
                f"ConvLSTM got x of shape {tuple(x.shape)}",
                f"shape (..., {', '.join(map(str, self.input_shape))}), the cell's input_shape",
                "Change input_shape, or move the axes: time and batch first, then space, then channels.",
            )
        dtype = promote(x.dtype, params.w_ih.dtype) if self.dtype is None else self.dtype
        _, strides, padding = self._window
        return _convolve(x, params.w_ih, strides, padding, dtype).astype(dtype)

    def recur(self, params: ConvLSTMParams, carry: LSTMCarry, u: Array) -> Array:
        """u + h * R + b: (..., *space, 4F)."""
        return _recur(params, carry, u, u.dtype)

    def update(
        self, params: ConvLSTMParams, carry: LSTMCarry, z: Any, noise: None = None
    ) -> tuple[LSTMCarry, Array]:
        """Gates, cell state, hidden state."""
        return _update(carry, z)

    def gates(self, params: ConvLSTMParams, carry: LSTMCarry, x: Array) -> LSTMGates:
        """The gates of one step, (..., *space, F); carry and x may have any leading axes, time included."""
        return activate(self.recur(params, carry, self.project(params, x)))

    def preactivations(self, params: ConvLSTMParams, carry: LSTMCarry, x: Array) -> LSTMGates:
        """The pre-activations of :meth:`gates`."""
        return LSTMGates(*jnp.split(self.recur(params, carry, self.project(params, x)), 4, axis=-1))


# --- validation ---------------------------------------------------------------------------------


def _each_axis(owner: str, name: str, value: Any, count: int | None) -> tuple[int, ...]:
    """Check for a tuple of whole numbers, one for each of ``count`` spatial axes."""
    if not isinstance(value, (tuple, list)) or (count is not None and len(value) != count):
        raise value_error(
            f"{owner} got {name}={value!r}",
            "a tuple of whole numbers" + ("" if count is None else f", one for each of {count} spatial axes"),
            f"Write for instance {name}=({', '.join(['3'] * (count or 3))},).",
        )
    for number in value:
        check_size(owner, f"an entry of {name}", number)
    return tuple(map(int, value))


def _space_out(
    owner: str, space: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], padding: str
) -> tuple[int, ...]:
    """The spatial size after the input's convolution."""
    positions = space if padding == "SAME" else tuple(n - k + 1 for n, k in zip(space, kernel, strict=True))
    if min(positions) < 1:
        raise value_error(
            f"{owner} got an input of {space} pixels and a kernel of {tuple(kernel)} with padding='VALID'",
            "a kernel that fits into the input",
            "Use a smaller kernel, or padding='SAME'.",
        )
    return tuple(-(-n // s) for n, s in zip(positions, strides, strict=True))


def _check_channels(owner: str, x: Any, axes: int, channels: int) -> None:
    """Check for a float array (*batch, *space, C) with as many spatial axes as the kernel."""
    check_float(owner, "x", x)
    if x.ndim < axes + 1 or x.shape[-1] != channels or 0 in x.shape[-axes - 1 :]:
        raise value_error(
            f"{owner} got x of shape {tuple(x.shape)}",
            f"shape (*batch, *space, {channels}) with {axes} spatial axes, as the kernel has",
            "Put time and batch first and the channels last.",
        )
