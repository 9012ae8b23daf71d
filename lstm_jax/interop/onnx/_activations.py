"""Activation functions of ONNX's recurrent operators and their counterparts in JAX, without onnx."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import check_choice, is_number, listing, value_error
from lstm_jax._types import Array
from lstm_jax.cells._base import short_value
from lstm_jax.cells._linear import sigmoid
from lstm_jax.cells.activations import Activation, identity


class Formula(NamedTuple):
    """An activation function, with the defaults of alpha and beta where it has them."""

    function: Callable[..., Array]
    defaults: tuple[float | None, ...] = ()  # None: it has no default


#: ONNX's activations by name.
FORMULAS: dict[str, Formula] = {
    "Affine": Formula(lambda x, alpha, beta: alpha * x + beta, (1.0, 0.0)),
    "LeakyRelu": Formula(lambda x, alpha: jnp.where(x >= 0, x, alpha * x), (0.01,)),
    "ThresholdedRelu": Formula(lambda x, alpha: jnp.where(x > alpha, x, jnp.zeros_like(x)), (1.0,)),
    "ScaledTanh": Formula(lambda x, alpha, beta: alpha * jnp.tanh(beta * x), (None, None)),
    "HardSigmoid": Formula(lambda x, alpha, beta: jnp.clip(alpha * x + beta, 0, 1), (0.2, 0.5)),
    "Elu": Formula(lambda x, alpha: jnp.where(x >= 0, x, alpha * jnp.expm1(jnp.minimum(x, 0))), (1.0,)),
    "Tanh": Formula(jnp.tanh),
    "Relu": Formula(jax.nn.relu),
    "Sigmoid": Formula(jax.nn.sigmoid),
    "Softplus": Formula(jax.nn.softplus),
    "Softsign": Formula(jax.nn.soft_sign),
}


@dataclass(frozen=True)
class OnnxActivation:
    """An ONNX activation function: its name, alpha and beta.

    Use it as the ``activation`` of a cell where JAX has no such function. ONNX stores the numbers in
    float32, so they are rounded to that. A number that is None takes ONNX's default.

    >>> float(OnnxActivation("Affine", 2.0, 1.0)(jnp.float32(3)))
    7.0
    >>> OnnxActivation("HardSigmoid")
    OnnxActivation(name='HardSigmoid', alpha=0.2, beta=0.5)
    """

    name: str  # of the function in ONNX
    alpha: float | None = None  # its first number
    beta: float | None = None  # its second number

    def __post_init__(self) -> None:
        check_choice("OnnxActivation", "name", self.name, tuple(FORMULAS))
        defaults = FORMULAS[self.name].defaults
        for index, field in enumerate(("alpha", "beta")):
            value: Any = getattr(self, field)
            if index >= len(defaults):
                if value is not None:
                    raise value_error(
                        f"OnnxActivation got {field}={value!r} for {self.name}",
                        f"no {field}, which {self.name} does not have",
                        "Leave it out.",
                    )
                continue
            value = defaults[index] if value is None else value
            if not is_number(value):
                raise value_error(
                    f"OnnxActivation got {field}={value!r} for {self.name}",
                    f"a number: {self.name} has no default {field}",
                    f"Pass {field}.",
                )
            object.__setattr__(self, field, float32_value(value))

    def __call__(self, x: Array) -> Array:
        """The function's value."""
        formula = FORMULAS[self.name]
        numbers = (self.alpha, self.beta)[: len(formula.defaults)]
        return formula.function(x, *(jnp.asarray(number, x.dtype) for number in numbers))


def float32_value(number: float) -> float:
    """The shortest decimal number that rounds to the same float32."""
    return float(str(np.float32(number)))


#: JAX functions that are also ONNX activations.
JAX_ACTIVATIONS: list[tuple[Activation, OnnxActivation]] = [
    (jnp.tanh, OnnxActivation("Tanh")),
    (jax.nn.relu, OnnxActivation("Relu")),
    (jax.nn.sigmoid, OnnxActivation("Sigmoid")),
    (jax.nn.softplus, OnnxActivation("Softplus")),
    (jax.nn.soft_sign, OnnxActivation("Softsign")),
    (identity, OnnxActivation("Affine", 1.0, 0.0)),
    (jax.nn.leaky_relu, OnnxActivation("LeakyRelu", 0.01)),
    (jax.nn.elu, OnnxActivation("Elu", 1.0)),
    (jax.nn.hard_sigmoid, OnnxActivation("HardSigmoid", 1 / 6, 0.5)),
    (sigmoid, OnnxActivation("Sigmoid")),
    (jax.nn.tanh, OnnxActivation("Tanh")),
    (jax.lax.tanh, OnnxActivation("Tanh")),
    (jax.lax.logistic, OnnxActivation("Sigmoid")),
]


def to_onnx_activation(function: Any, where: str) -> OnnxActivation:
    """The ONNX activation equal to a JAX function; ``where`` begins the message.

    Raises:
        ValueError: ONNX has no such function.
    """
    if isinstance(function, OnnxActivation):
        return function
    for known, activation in JAX_ACTIVATIONS:
        if function is known:
            return activation
    raise value_error(
        f"{where}={short_value(function)}",
        f"a function that ONNX has ({', '.join(sorted({known.__name__ for known, _ in JAX_ACTIVATIONS}))})",
        "Use one of these, or OnnxActivation(name, alpha, beta).",
    )


def from_onnx_activation(activation: OnnxActivation) -> Activation:
    """The JAX function equal to the activation, else the activation itself."""
    for known, other in JAX_ACTIVATIONS:
        if other == activation:
            return known
    return activation


def read_activations(
    names: list[str], alphas: list[float], betas: list[float], where: str
) -> list[OnnxActivation]:
    """The activations in a node's three lists; ``where`` begins the message.

    Names are compared without regard to case. The numbers belong, in order, to the functions that have
    such a number.

    Raises:
        ValueError: a name is unknown, or numbers are missing or left over.
    """
    known = {name.lower(): name for name in FORMULAS}
    remaining = {"alpha": list(alphas), "beta": list(betas)}
    found = []
    for given in names:
        name = known.get(given.lower())
        if name is None:
            raise value_error(
                f"{where} with the activation {given!r}", f"one of {', '.join(FORMULAS)}", _EXPORT
            )
        numbers: dict[str, float | None] = {}
        for field, default in zip(remaining, FORMULAS[name].defaults, strict=False):
            numbers[field] = remaining[field].pop(0) if remaining[field] else default
            if numbers[field] is None:
                raise value_error(
                    f"{where} with the activation {name} without activation_{field}",
                    f"a number for each activation that has {field}",
                    _EXPORT,
                )
        found.append(OnnxActivation(name, **numbers))
    for field, left in remaining.items():
        if left:
            raise value_error(
                f"{where} with {len(left)} numbers too many in activation_{field} for {listing(names)}",
                f"one for each activation that has {field}",
                _EXPORT,
            )
    return found


_EXPORT = "Correct the attributes of the node, and check the model with onnx.checker."
