"""Dropout of recurrent weights."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax

from lstm_jax._errors import value_error
from lstm_jax._random import bernoulli
from lstm_jax._types import Array, Carry, Params
from lstm_jax.regularizers._wrapper import (
    Masked,
    Wrapper,
    check_rate,
    check_wrapped,
    drop,
    split_masks,
)


@dataclass(frozen=True, repr=False)
class WeightDrop(Wrapper):
    r"""Dropout of recurrent weights (DropConnect: Wan et al. 2013; on R, AWD-LSTM: Merity et al. 2018).

    .. math:: R' = m \odot R / (1 - rate)

    There is one mask for all steps and all rows of the batch. Without a key nothing is dropped.

    Args:
        cell: any cell.
        rate: rate at which weights are dropped.
        weights: the fields of the parameters that are dropped.

    Raises:
        ValueError: the rate is not in [0, 1), or (when the cell runs) the parameters have no such field.

    >>> import jax, jax.numpy as jnp, lstm_jax
    >>> cell = WeightDrop(lstm_jax.LSTM(3, 8), 0.5)
    >>> params = cell.init(jax.random.key(0))
    >>> carry, ys = lstm_jax.unroll(cell, params, jnp.ones((5, 4, 3)), key=jax.random.key(1))
    >>> ys.shape
    (5, 4, 8)
    """

    cell: Any
    rate: float
    _: KW_ONLY
    weights: tuple[str, ...] = ("w_hh",)

    def __post_init__(self) -> None:
        check_wrapped("WeightDrop", self.cell)
        check_rate(self, "rate")
        if isinstance(self.weights, str) or not all(isinstance(name, str) for name in self.weights):
            raise value_error(
                f"WeightDrop got weights={self.weights!r}", "a tuple of names", 'Use weights=("w_hh",).'
            )
        object.__setattr__(self, "weights", tuple(self.weights))

    draws_sequence = True

    @property
    def linear_recurrence(self) -> bool:  # type: ignore[override]
        """That of the wrapped cell."""
        return self.inner.linear_recurrence

    def perturb(self, params: Params, key: Array, carry: Carry, x: Array) -> Masked:
        """Parameters with dropped weights, for one sequence."""
        k_inner, *keys = jax.random.split(key, 1 + len(self.weights))
        dropped = {}
        for name, k in zip(self.weights, keys, strict=True):
            value = getattr(params, name, None)
            if value is None:
                raise value_error(
                    f"WeightDrop got weights={self.weights!r} and parameters of type "
                    f"{type(params).__name__} without {name}",
                    f"names among {', '.join(getattr(params, '_fields', ())) or 'the fields'}",
                    "Name weights of the wrapped cell.",
                )
            dropped[name] = drop(bernoulli(k, 1 - self.rate, value), value, self.rate)
        return Wrapper.perturb(self, params._replace(**dropped), k_inner, carry, x)

    def coefficients(self, params: Params, x: Array) -> tuple[Array, Array]:
        """The coefficients of the wrapped :class:`lstm_jax.ParallelCell`, after dropout of weights."""
        return self.inner.coefficients(split_masks(params)[0], x)
