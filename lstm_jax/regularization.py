"""Regularisers: cells that wrap a cell.

Given a key, :func:`lstm_jax.unroll` lets them make noise; without one they say what they expect of it,
and so the same network trains and is evaluated. Any of them may wrap any other:

=====================  =========================================  ===========================
Regulariser            What is random                             How often
=====================  =========================================  ===========================
`VariationalDropout`   inputs, and the state that products read   once a sequence
`CandidateDropout`     what a gate would let into the state       every step, or once
`Zoneout`              which units keep their last value          every step
`WeightDrop`           recurrent weights                          once a sequence
=====================  =========================================  ===========================

They have the parameters and the carry of the cell inside, and its fast path. :mod:`lstm_jax.penalties`
has the terms for the loss.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.checks import check_choice, is_number, refuse
from lstm_jax.noise import bernoulli
from lstm_jax.notation import Array, Carry, Params, splits, state_dtype
from lstm_jax.wrapper import (
    QUIET,
    Masked,
    Noise,
    Wrapper,
    check_inside,
    check_share,
    if_inner,
    kept,
    unmasked,
)

# --- on the way in ------------------------------------------------------------------------------


@dataclass(frozen=True)
class VariationalDropout(Wrapper):
    r"""Dropout with one mask for all steps (Gal & Ghahramani 2016).

    .. math:: z_t = (m_x \odot x_t) W + (m_h \odot h_{t-1}) R + b

    The masks are drawn once a sequence, and each row has its own; what is kept is divided by its
    share. m_h covers what the recurrent product reads, not what the state hands on to itself (so a
    GRU's :math:`z_t \odot h_{t-1}` is whole). Without a key nothing is dropped.

    Args:
        cell: any cell; for ``recurrent`` one that splits (:class:`lstm_jax.SplitCell`).
        inputs: share of the features of x that is dropped.
        recurrent: share of the units of h that is dropped.

    Raises:
        ValueError: a share is not in [0, 1), or the cell does not show what its products read.

    >>> import lstm_jax
    >>> cell = VariationalDropout(lstm_jax.LSTM(3, 8), inputs=0.2, recurrent=0.5)
    >>> params = cell.init(jax.random.key(0))  # an LSTM's
    >>> run = lambda key: lstm_jax.unroll(cell, params, jnp.ones((5, 4, 3)), key=key)[1]
    >>> bool(jnp.all(run(None) == lstm_jax.unroll(cell.cell, params, jnp.ones((5, 4, 3)))[1]))
    True
    >>> bool(jnp.any(run(jax.random.key(1)) != run(None)))
    True
    """

    cell: Any
    _: KW_ONLY
    inputs: float = 0.0
    recurrent: float = 0.0

    def __post_init__(self) -> None:
        check_inside("VariationalDropout", self.cell)
        for name in ("inputs", "recurrent"):
            check_share(self, name)
        if self.recurrent and not splits(self.cell):
            refuse(
                f"VariationalDropout got recurrent={self.recurrent} for {type(self.cell).__name__}",
                "a cell with project, recur and update, which show what its products read",
                "Drop inputs alone, or give the cell these methods (see lstm_jax.SplitCell).",
            )

    def once(self, key: Array, carry: Carry, x: Array) -> tuple[Array | None, Any]:
        """The mask of the inputs, and those of the states."""
        k_x, *keys = jax.random.split(key, 1 + len(jax.tree.leaves(carry)))
        seen = bernoulli(k_x, 1 - self.inputs, x) if self.inputs else None
        if not self.recurrent:
            return seen, None
        keys = jax.tree.unflatten(jax.tree.structure(carry), keys)
        return seen, jax.tree.map(lambda k, a: bernoulli(k, 1 - self.recurrent, a), keys, carry)

    def step(self, params: Params, carry: Carry, x: Array, noise: Noise | None = None) -> tuple[Carry, Array]:
        """One step with these masks."""
        if self.recurrent:
            return self.by_parts(params, carry, x, noise)
        return Wrapper.step(self, params, carry, self._seen(params, x), noise)

    @if_inner
    def project(self, params: Params, x: Array) -> Any:
        """What needs no carry, of the inputs that are left."""
        return self.cell.project(unmasked(params)[0], self._seen(params, x))

    @if_inner
    def recur(self, params: Params, carry: Carry, u: Any) -> Any:
        """The pre-activation, of the units that are left."""
        params, masks = unmasked(params)
        heard = None if masks is None else masks[1]
        if heard is not None:
            carry = jax.tree.map(lambda mask, a: kept(mask, a, self.recurrent), heard, carry)
        return self.cell.recur(params, carry, u)

    @if_inner
    def coefficients(self, params: Params, x: Array) -> tuple[Array, Array]:
        """Those of the cell inside (:class:`lstm_jax.ParallelCell`), of the inputs that are left."""
        return self.cell.coefficients(unmasked(params)[0], self._seen(params, x))

    def _seen(self, params: Params, x: Array) -> Array:
        masks = unmasked(params)[1]
        return kept(None if masks is None else masks[0], x, self.inputs)


@dataclass(frozen=True)
class WeightDrop(Wrapper):
    r"""Dropout of recurrent weights (DropConnect: Wan et al. 2013; on R, AWD-LSTM: Merity et al. 2018).

    .. math:: R' = m \odot R / (1 - rate)

    One mask for all steps and all rows. Without a key R is whole.

    Args:
        cell: a cell whose parameters have these fields.
        rate: share of the weights that is dropped.
        weights: the fields of the parameters.

    Raises:
        ValueError: the rate is not in [0, 1); or, when it is run, the parameters have no such field.

    >>> import lstm_jax
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
        check_inside("WeightDrop", self.cell)
        check_share(self, "rate")
        if isinstance(self.weights, str) or not all(isinstance(name, str) for name in self.weights):
            refuse(f"WeightDrop got weights={self.weights!r}", "a tuple of names", 'Write weights=("w_hh",).')
        object.__setattr__(self, "weights", tuple(self.weights))

    def perturb(self, params: Params, key: Array, carry: Carry, x: Array) -> Masked:
        """The weights that are left, for one sequence."""
        k_inner, *keys = jax.random.split(key, 1 + len(self.weights))
        left = {}
        for name, k in zip(self.weights, keys, strict=True):
            value = getattr(params, name, None)
            if value is None:
                refuse(
                    f"WeightDrop got weights={self.weights!r} and parameters of type "
                    f"{type(params).__name__} without {name}",
                    f"names among {', '.join(getattr(params, '_fields', ())) or 'the fields'}",
                    "Name the weights of the cell inside.",
                )
            left[name] = kept(bernoulli(k, 1 - self.rate, value), value, self.rate)
        return Wrapper.perturb(self, params._replace(**left), k_inner, carry, x)

    @if_inner
    def coefficients(self, params: Params, x: Array) -> tuple[Array, Array]:
        """Those of the cell inside (:class:`lstm_jax.ParallelCell`), by the weights that are left."""
        return self.cell.coefficients(unmasked(params)[0], x)


# --- on the way to the state --------------------------------------------------------------------


@dataclass(frozen=True)
class CandidateDropout(Wrapper):
    r"""Recurrent dropout without memory loss (Semeniuta et al. 2016): of what would be let in.

    .. math:: c_t = f_t \odot c_{t-1} + i_t \odot d(g_t)

    and :math:`h_t = (1 - z_t) \odot d(n_t) + z_t \odot h_{t-1}` in a GRU: what the state holds is never
    dropped. What is kept is divided by its share; without a key nothing is dropped.

    Args:
        cell: an LSTM or a GRU, or one of them in other wrappers.
        rate: share of the units whose candidate is dropped.
        mask: ``"step"`` draws a fresh mask at every step, ``"sequence"`` one for all of them.

    Raises:
        ValueError: the rate is not in [0, 1), or the cell's candidate cannot be reached.

    >>> import lstm_jax
    >>> cell = CandidateDropout(lstm_jax.LSTM(3, 8), 0.25)
    >>> params = cell.init(jax.random.key(0))
    >>> carry, ys = lstm_jax.unroll(cell, params, jnp.ones((5, 4, 3)), key=jax.random.key(1))
    >>> round(float(jnp.mean(ys[0] == 0)), 1)  # nothing was let in, and there was nothing before
    0.2
    """

    cell: Any
    rate: float
    _: KW_ONLY
    mask: str = "step"

    def __post_init__(self) -> None:
        check_inside("CandidateDropout", self.cell)
        check_share(self, "rate")
        check_choice("CandidateDropout", "mask", self.mask, ("step", "sequence"))
        if not getattr(self.cell, "takes_candidate", False):
            refuse(
                f"CandidateDropout got a {type(self.cell).__name__}",
                "a cell whose update takes a factor for its candidate: LSTM or GRU",
                "Use VariationalDropout or Zoneout for other cells.",
            )

    def once(self, key: Array, carry: Carry, x: Array) -> Array | None:
        """The mask, where it is one for all steps."""
        return self._drawn(key, carry) if self.mask == "sequence" else None

    def each(self, key: Array, carry: Carry) -> Array | None:
        """The mask, where it is one a step."""
        return self._drawn(key, carry) if self.mask == "step" else None

    def _drawn(self, key: Array, carry: Carry) -> Array:
        return bernoulli(key, 1 - self.rate, jax.tree.leaves(carry)[-1])

    def step(self, params: Params, carry: Carry, x: Array, noise: Noise | None = None) -> tuple[Carry, Array]:
        """One step with this mask."""
        return self.by_parts(params, carry, x, noise)

    @if_inner
    def update(
        self,
        params: Params,
        carry: Carry,
        z: Any,
        noise: Noise | None = None,
        *,
        candidate: Array | None = None,
    ) -> tuple[Carry, Array]:
        """The new carry and the output, of the candidates that are left."""
        mask = unmasked(params)[1] if self.mask == "sequence" else (noise or QUIET).own
        if mask is not None:
            factor = mask.astype(state_dtype(jax.tree.leaves(carry)[-1].dtype)) / (1 - self.rate)
            candidate = factor if candidate is None else candidate * factor
        return Wrapper.update(self, params, carry, z, noise, candidate=candidate)


@dataclass(frozen=True)
class Zoneout(Wrapper):
    r"""Units keep their last value at random (Krueger et al. 2017).

    .. math:: s_t = m_t \odot s_{t-1} + (1 - m_t) \odot \tilde{s}_t

    for each state s, with a fresh m_t at every step, 1 with probability ``rate``. Without a key m_t is
    its expectation, the rate. The output is what zoneout leaves of the state that the cell shows.

    Args:
        cell: any cell.
        rates: the share of the units that keep their value: one number for every state, or one for
            each in the order of the carry, for an LSTM (h, c). 1 keeps a state for good.

    Raises:
        ValueError: a rate is not in [0, 1]; or, when it is run, the carry has another number of states.

    >>> import lstm_jax
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
        check_inside("Zoneout", self.cell)
        many = isinstance(self.rates, (tuple, list))
        rates: tuple[Any, ...] = tuple(self.rates) if many else (self.rates,)  # type: ignore[arg-type]
        if not rates or not all(is_number(rate) and 0 <= rate <= 1 for rate in rates):
            refuse(
                f"Zoneout got rates={self.rates!r}",
                "a share in [0, 1], or a tuple of one for each state",
                "0 switches it off; an LSTM's states are (h, c).",
            )
        rates = tuple(map(float, rates))
        object.__setattr__(self, "rates", rates if many else rates[0])

    def declines(self) -> str | None:
        """Why the fast path cannot take this cell, or None."""
        if hasattr(self.cell, "emit"):
            return "Zoneout comes after the product that the state goes through when it is emitted"
        return Wrapper.declines(self)

    def each(self, key: Array, carry: Carry) -> list[Array | None]:
        """Which units keep their value, for each state that has a rate."""
        leaves, rates = jax.tree.leaves(carry), self._rates(carry)
        keys = jax.random.split(key, len(leaves))
        drawn = zip(keys, leaves, rates, strict=True)
        return [bernoulli(k, rate, leaf) if rate else None for k, leaf, rate in drawn]

    def step(self, params: Params, carry: Carry, x: Array, noise: Noise | None = None) -> tuple[Carry, Array]:
        """One step, of which every state keeps a part."""
        new, y = Wrapper.step(self, params, carry, x, noise)
        return self._zoned(carry, new, y, noise)

    @if_inner
    def update(
        self,
        params: Params,
        carry: Carry,
        z: Any,
        noise: Noise | None = None,
        *,
        candidate: Array | None = None,
    ) -> tuple[Carry, Array]:
        """The new carry, of which every state keeps a part, and the output."""
        new, y = Wrapper.update(self, params, carry, z, noise, candidate=candidate)
        return self._zoned(carry, new, y, noise)

    def _zoned(self, old: Carry, new: Carry, y: Array, noise: Noise | None) -> tuple[Carry, Array]:
        olds, (news, structure) = jax.tree.leaves(old), jax.tree.flatten(new)
        masks = [None] * len(news) if noise is None else noise.own
        zoned = list(map(_zone, olds, news, masks, self._rates(new)))
        shown = [state for state, leaf in zip(zoned, news, strict=True) if leaf is y]
        return jax.tree.unflatten(structure, zoned), shown[0] if shown else y

    def _rates(self, carry: Carry) -> tuple[float, ...]:
        count = len(jax.tree.leaves(carry))
        if not isinstance(self.rates, tuple):
            return (self.rates,) * count
        if len(self.rates) != count:
            refuse(
                f"Zoneout got {len(self.rates)} rates for a carry of {count} states",
                "one for each, or one number for all",
                f"Give a tuple of {count}: the rates of {type(self.cell).__name__}'s states, in their order.",
            )
        return self.rates


def _zone(old: Array, new: Array, mask: Array | None, rate: float) -> Array:
    if not rate or not jnp.issubdtype(new.dtype, jnp.floating):
        return new
    if mask is not None:
        return jnp.where(mask, old, new)
    return (rate * old + (1 - rate) * new).astype(new.dtype)
