"""Zoneout: units randomly keep their previous value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax._errors import is_number, value_error
from lstm_jax._random import bernoulli
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import label
from lstm_jax.regularizers._wrapper import (
    Noise,
    Wrapper,
    check_wrapped,
)


@dataclass(frozen=True, repr=False)
class Zoneout(Wrapper):
    r"""Units randomly keep their previous value (Krueger et al. 2017).

    .. math:: s_t = m_t \odot s_{t-1} + (1 - m_t) \odot \tilde{s}_t

    for each state s, where the entries of m_t are drawn at every step and are 1 with probability ``rate``.
    Without a key, m_t is its expectation, the rate. If the output of the cell is one of its states, the
    output is that state after zoneout.

    Args:
        cell: any cell.
        rates: the probability that a unit keeps its value: one number for every state, or one for each state
            in the order of the carry, which is (h, c) for an LSTM. With rate 1 a state never changes.

    Raises:
        ValueError: a rate is not in [0, 1], or (when the cell runs) the carry has another number of states.

    >>> import jax, jax.numpy as jnp, lstm_jax
    >>> cell = Zoneout(lstm_jax.LSTM(3, 8), rates=(0.05, 0.5))
    >>> params = cell.init(jax.random.key(0))
    >>> carry, ys = lstm_jax.unroll(cell, params, jnp.ones((5, 4, 3)), key=jax.random.key(1))
    >>> (h, c) = Zoneout(lstm_jax.LSTM(3, 8), rates=1.0).step(params, carry, jnp.ones((4, 3)))[0]
    >>> bool(jnp.all(h == carry[0]) & jnp.all(c == carry[1]))
    True
    """

    cell: Any
    rates: float | tuple[float, ...]

    def __post_init__(self) -> None:
        check_wrapped("Zoneout", self.cell)
        many = isinstance(self.rates, (tuple, list))
        rates: tuple[Any, ...] = tuple(self.rates) if many else (self.rates,)  # type: ignore[arg-type]
        if not rates or not all(is_number(rate) and 0 <= rate <= 1 for rate in rates):
            raise value_error(
                f"Zoneout got rates={self.rates!r}",
                "a rate in [0, 1], or a tuple with one for each state",
                "Use 0 for no zoneout. The states of an LSTM are (h, c).",
            )
        rates = tuple(map(float, rates))
        object.__setattr__(self, "rates", rates if many else rates[0])

    @property
    def draws_step(self) -> bool:  # type: ignore[override]
        """Whether a rate is above 0."""
        return any(self.rates) if isinstance(self.rates, tuple) else self.rates > 0

    def fused_unsupported(self) -> str | None:
        """Why the fused scan cannot run this cell, or None."""
        if self.inner.emits:
            return "Zoneout applies after emit, which the fused scan computes last"
        return super().fused_unsupported()

    def draw_step(self, key: Array, carry: Carry) -> list[Array | None]:
        """Which units keep their value, for each state with a positive rate."""
        leaves, rates = jax.tree.leaves(carry), self._rates(carry)
        keys = jax.random.split(key, len(leaves))
        drawn = zip(keys, leaves, rates, strict=True)
        return [bernoulli(k, rate, leaf) if rate else None for k, leaf, rate in drawn]

    def step(self, params: Params, carry: Carry, x: Array, noise: Noise | None = None) -> tuple[Carry, Array]:
        """One step, followed by zoneout."""
        new, y = Wrapper.step(self, params, carry, x, noise)
        return self._zoneout(carry, new, y, noise)

    def update(
        self,
        params: Params,
        carry: Carry,
        z: Any,
        noise: Noise | None = None,
        *,
        candidate_scale: Array | None = None,
    ) -> tuple[Carry, Array]:
        """The new carry and the output, after zoneout."""
        new, y = Wrapper.update(self, params, carry, z, noise, candidate_scale=candidate_scale)
        return self._zoneout(carry, new, y, noise)

    def _zoneout(self, old: Carry, new: Carry, y: Array, noise: Noise | None) -> tuple[Carry, Array]:
        leaves, structure = jax.tree.flatten(new)
        masks = [None] * len(leaves) if noise is None else noise.own
        states = list(map(_zone, jax.tree.leaves(old), leaves, masks, self._rates(new)))
        outputs = [state for state, leaf in zip(states, leaves, strict=True) if leaf is y]
        return jax.tree.unflatten(structure, states), outputs[0] if outputs else y

    def _rates(self, carry: Carry) -> tuple[float, ...]:
        count = len(jax.tree.leaves(carry))
        if not count and self.draws_step:
            raise value_error(
                f"Zoneout got rates={self.rates} for {label(self.cell)}, whose carry is empty",
                "a cell with a state",
                "Leave Zoneout out, or use lstm_jax.VariationalDropout(cell, inputs=...).",
            )
        if not isinstance(self.rates, tuple):
            return (self.rates,) * count
        if len(self.rates) != count:
            raise value_error(
                f"Zoneout got {len(self.rates)} rates for a carry of {count} states",
                "one rate for each state, or one number for all",
                f"Give a tuple of {count} rates, in the order of the carry of {type(self.cell).__name__}.",
            )
        return self.rates


def _zone(old: Array, new: Array, mask: Array | None, rate: float) -> Array:
    if not rate or not jnp.issubdtype(new.dtype, jnp.floating):
        return new
    if mask is not None:
        return jnp.where(mask, old, new)
    return (rate * old + (1 - rate) * new).astype(new.dtype)
