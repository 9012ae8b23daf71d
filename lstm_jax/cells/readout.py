"""The read-out: what a network says of its hidden state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_function, check_key, value_error
from lstm_jax._types import Array, DType, Initializer, exportable
from lstm_jax.cells import _checks, _init, _linear


@exportable
class ReadoutParams(NamedTuple):
    """Parameters of a :class:`Readout`."""

    w: Array  # (H, O)
    bias: Array | None = None  # (O,)


def identity(x: Array) -> Array:
    """x itself: the read-out's g where logits or a regression are wanted."""
    return x


@dataclass(frozen=True)
class Readout:
    r"""The read-out of a network: :math:`o_t = g(h_t V + b)`.

    It remembers nothing. Call it on hidden states with any leading axes, all steps at once; or put
    it last into a :class:`lstm_jax.Stack`, where it is a cell whose carry is the empty tuple.

    Args:
        input_size: H, features of what it reads.
        output_size: O, features of what it says.
        activation: g; the identity by default.
        use_bias: whether there is a b.
        w_init, bias_init: any function of ``jax.nn.initializers``, called with (H, O) and (O,).
        param_dtype: dtype of the parameters.
        dtype: dtype of the product and of the output. None: what parameters and inputs promote to.

    Raises:
        ValueError: a size is not a positive whole number, or a dtype is not floating.

    >>> readout = Readout(input_size=2, output_size=5, activation=jax.nn.softmax)
    >>> params = readout.init(jax.random.key(0))
    >>> readout(params, jnp.ones((7, 4, 2))).shape
    (7, 4, 5)
    """

    input_size: int
    output_size: int
    _: KW_ONLY
    activation: Callable[[Array], Array] = identity
    use_bias: bool = True
    w_init: Initializer = _init.GLOROT_UNIFORM
    bias_init: Initializer = _init.ZEROS
    param_dtype: DType = jnp.float32
    dtype: DType | None = None

    def __post_init__(self) -> None:
        _checks.normalise(self, "input_size", "output_size")
        check_function("Readout", "activation", self.activation)

    def init(self, key: Array) -> ReadoutParams:
        """Fresh parameters from one PRNG key."""
        check_key("Readout.init", key)
        k_w, k_bias = jax.random.split(key)
        w = self.w_init(k_w, (self.input_size, self.output_size), self.param_dtype)
        return ReadoutParams(
            w, self.bias_init(k_bias, (self.output_size,), self.param_dtype) if self.use_bias else None
        )

    def __call__(self, params: ReadoutParams, h: Array) -> Array:
        """g(h V + b): (..., H) -> (..., O)."""
        _checks.check_input("Readout", h, self.input_size)
        expected = {"w": (self.input_size, self.output_size), "bias": (self.output_size,)}
        if not self.use_bias:
            del expected["bias"]
        for name, shape in expected.items():
            value = getattr(params, name, None)
            if value is None or tuple(value.shape) != shape:
                got = "without" if value is None else f"of shape {tuple(value.shape)} as"
                raise value_error(
                    f"Readout got parameters {got} {name}",
                    f"{name} of shape {shape}",
                    "Make them with init(key).",
                )
        return self.activation(_linear.affine(h, params.w, params.bias, self.dtype))

    def initial_carry(
        self, batch_shape: Sequence[int] = (), params: ReadoutParams | None = None
    ) -> tuple[()]:
        """Nothing: a read-out has no state."""
        return ()

    def step(self, params: ReadoutParams, carry: tuple[()], x: Array) -> tuple[tuple[()], Array]:
        """The read-out as a cell without state."""
        return carry, self(params, x)
