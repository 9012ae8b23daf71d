"""The readout: a dense layer from hidden states to outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_key
from lstm_jax._types import Array, DType, Initializer, exportable, promote
from lstm_jax.cells import _init
from lstm_jax.cells._base import BaseCell
from lstm_jax.cells._checks import check_input, check_params, normalise
from lstm_jax.cells._linear import add_bias, matmul
from lstm_jax.cells.activations import Activation, canonical_activations, identity


@exportable
class ReadoutParams(NamedTuple):
    """Parameters of a :class:`Readout`."""

    w: Array  # (H, O)
    bias: Array | None = None  # (O,)


@dataclass(frozen=True, repr=False)
class Readout(BaseCell):
    r"""The output layer of a network: :math:`o_t = g(h_t V + b)`.

    It has no state. Call it on hidden states with any leading axes, including time. Or use it as the last
    layer of a :class:`lstm_jax.Stack`, where it is a cell whose carry is the empty tuple.

    Args:
        input_size: H, features of the hidden state.
        output_size: O, features of the output.
        activation: g, or one of the names in ``lstm_jax.cells.activations``.
        use_bias: whether there is a bias b.
        w_init, bias_init: functions as in ``jax.nn.initializers``, called with (H, O) and (O,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the product and of the output. None: the promoted dtype of parameters and inputs.

    Raises:
        ValueError: a size is not a positive integer, or a dtype is not floating.

    >>> readout = Readout(input_size=2, output_size=5, activation=jax.nn.softmax)
    >>> params = readout.init(jax.random.key(0))
    >>> readout(params, jnp.ones((7, 4, 2))).shape
    (7, 4, 5)
    """

    input_size: int
    output_size: int
    _: KW_ONLY
    activation: Activation | str = identity
    use_bias: bool = True
    w_init: Initializer = _init.glorot_uniform
    bias_init: Initializer = _init.zeros
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    splits = False
    has_state = False

    def __post_init__(self) -> None:
        normalise(self, "input_size", "output_size")
        canonical_activations(self, "activation")

    @property
    def param_shapes(self) -> Any:
        """``ReadoutParams`` of shapes."""
        H, O = self.input_size, self.output_size  # noqa: E741
        return ReadoutParams._make(((H, O), (O,) if self.use_bias else None))

    def fused_unsupported(self) -> str | None:
        """There is no recurrence."""
        return "Readout has no state"

    def init(self, key: Array) -> ReadoutParams:
        """Fresh parameters from one PRNG key."""
        check_key("Readout.init", key)
        k_w, k_bias = jax.random.split(key)
        w = self.w_init(k_w, (self.input_size, self.output_size), self.param_dtype)
        bias = self.bias_init(k_bias, (self.output_size,), self.param_dtype) if self.use_bias else None
        return ReadoutParams(w, bias)

    def __call__(self, params: ReadoutParams, h: Array) -> Array:
        """g(h V + b): (..., H) -> (..., O)."""
        check_input("Readout", h, self.input_size)
        sizes = f"H={self.input_size}, O={self.output_size}"
        check_params("Readout", params, self.param_shapes, sizes)
        dtype = promote(h.dtype, params.w.dtype) if self.dtype is None else self.dtype
        z = add_bias(matmul(h, params.w, dtype), params.bias).astype(dtype)
        return self.activation(z)  # type: ignore[operator]

    def initial_carry(
        self, batch_shape: Sequence[int] = (), params: ReadoutParams | None = None
    ) -> tuple[()]:
        """The empty tuple: a readout has no state."""
        return ()

    def step(
        self, params: ReadoutParams, carry: tuple[()], x: Array, noise: None = None
    ) -> tuple[tuple[()], Array]:
        """Apply the readout as a cell without state."""
        return carry, self(params, x)
