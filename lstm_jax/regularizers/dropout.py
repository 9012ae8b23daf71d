"""Dropout of inputs, states and candidates."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax

from lstm_jax._errors import check_choice, value_error
from lstm_jax._random import bernoulli
from lstm_jax._types import Array, Carry, Params, state_dtype
from lstm_jax.cells._base import as_base_cell
from lstm_jax.regularizers._wrapper import (
    NO_NOISE,
    Noise,
    Wrapper,
    check_rate,
    check_wrapped,
    drop,
    split_masks,
)


@dataclass(frozen=True, repr=False)
class VariationalDropout(Wrapper):
    r"""Dropout with one mask for all steps (Gal & Ghahramani 2016).

    .. math:: z_t = (m_x \odot x_t) W + (m_h \odot h_{t-1}) R + b

    The masks are drawn once a sequence, and each row has its own; what is kept is divided by its
    share. m_h covers what the recurrent product reads, not what the state hands on to itself (so a
    GRU's :math:`z_t \odot h_{t-1}` is whole). Without a key nothing is dropped.

    Args:
        cell: any cell; for ``recurrent`` one that splits (:class:`lstm_jax.SplitCell`).
        inputs: rate at which features of x are dropped.
        recurrent: share of the units of h that is dropped.

    Raises:
        ValueError: a rate is not in [0, 1), or the cell does not show what its products read.

    >>> import jax, jax.numpy as jnp, lstm_jax
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
        check_wrapped("VariationalDropout", self.cell)
        for name in ("inputs", "recurrent"):
            check_rate(self, name)
        if self.recurrent and not as_base_cell(self.cell).splits:
            raise value_error(
                f"VariationalDropout got recurrent={self.recurrent} for {type(self.cell).__name__}",
                "a cell with project, recur and update, which show what its products read",
                "Drop inputs alone, or give the cell these methods (see lstm_jax.SplitCell).",
            )

    @property
    def draws_sequence(self) -> bool:  # type: ignore[override]
        """Whether a rate is above 0."""
        return self.inputs > 0 or self.recurrent > 0

    @property
    def linear_recurrence(self) -> bool:  # type: ignore[override]
        """That of the wrapped cell."""
        return self.inner.linear_recurrence

    def draw_sequence(self, key: Array, carry: Carry, x: Array) -> tuple[Array | None, Any]:
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
            return self.step_by_parts(params, carry, x, noise)
        return Wrapper.step(self, params, carry, self._seen(params, x), noise)

    def project(self, params: Params, x: Array) -> Any:
        """What needs no carry, of the inputs that are left."""
        return self.inner.project(split_masks(params)[0], self._seen(params, x))

    def recur(self, params: Params, carry: Carry, u: Any) -> Any:
        """The pre-activation, of the units that are left."""
        params, masks = split_masks(params)
        state_masks = None if masks is None else masks[1]
        if state_masks is not None:
            carry = jax.tree.map(lambda mask, a: drop(mask, a, self.recurrent), state_masks, carry)
        return self.inner.recur(params, carry, u)

    def coefficients(self, params: Params, x: Array) -> tuple[Array, Array]:
        """Those of the cell inside (:class:`lstm_jax.ParallelCell`), of the inputs that are left."""
        return self.inner.coefficients(split_masks(params)[0], self._seen(params, x))

    def _seen(self, params: Params, x: Array) -> Array:
        masks = split_masks(params)[1]
        return drop(None if masks is None else masks[0], x, self.inputs)


@dataclass(frozen=True, repr=False)
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

    >>> import jax, jax.numpy as jnp, lstm_jax
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
        check_wrapped("CandidateDropout", self.cell)
        check_rate(self, "rate")
        check_choice("CandidateDropout", "mask", self.mask, ("step", "sequence"))
        if not as_base_cell(self.cell).scales_candidate:
            raise value_error(
                f"CandidateDropout got a {type(self.cell).__name__}",
                "a cell whose update takes a factor for its candidate: LSTM or GRU",
                "Use VariationalDropout or Zoneout for other cells.",
            )

    @property
    def draws_sequence(self) -> bool:  # type: ignore[override]
        """Whether one mask serves all steps."""
        return self.mask == "sequence"

    @property
    def draws_step(self) -> bool:  # type: ignore[override]
        """Whether each step has a mask of its own."""
        return self.mask == "step"

    def draw_sequence(self, key: Array, carry: Carry, x: Array) -> Array | None:
        """The mask, where it is one for all steps."""
        return self._drawn(key, carry) if self.mask == "sequence" else None

    def draw_step(self, key: Array, carry: Carry) -> Array | None:
        """The mask, where it is one a step."""
        return self._drawn(key, carry) if self.mask == "step" else None

    def _drawn(self, key: Array, carry: Carry) -> Array:
        return bernoulli(key, 1 - self.rate, jax.tree.leaves(carry)[-1])

    def step(self, params: Params, carry: Carry, x: Array, noise: Noise | None = None) -> tuple[Carry, Array]:
        """One step with this mask."""
        return self.step_by_parts(params, carry, x, noise)

    def update(
        self,
        params: Params,
        carry: Carry,
        z: Any,
        noise: Noise | None = None,
        *,
        candidate_scale: Array | None = None,
    ) -> tuple[Carry, Array]:
        """The new carry and the output, of the candidates that are left."""
        mask = split_masks(params)[1] if self.mask == "sequence" else (noise or NO_NOISE).own
        if mask is not None:
            scale = mask.astype(state_dtype(jax.tree.leaves(carry)[-1].dtype)) / (1 - self.rate)
            candidate_scale = scale if candidate_scale is None else candidate_scale * scale
        return Wrapper.update(self, params, carry, z, noise, candidate_scale=candidate_scale)
