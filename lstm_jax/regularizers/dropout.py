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

    The masks are drawn once per sequence and separately for each row of the batch. Kept entries are divided
    by 1 - rate. m_h applies to the input of the recurrent product only, so it does not drop a GRU's
    :math:`z_t \odot h_{t-1}`. Without a key nothing is dropped.

    Args:
        cell: any cell; for ``recurrent`` one that splits (:class:`lstm_jax.SplitCell`).
        inputs: rate at which features of x are dropped.
        recurrent: rate at which units of h are dropped.

    Raises:
        ValueError: a rate is not in [0, 1), or ``recurrent`` is given for a cell that does not split or has
            no recurrent product (MinGRU, MinLSTM, MLSTM).

    >>> import jax, jax.numpy as jnp, lstm_jax
    >>> cell = VariationalDropout(lstm_jax.LSTM(3, 8), inputs=0.2, recurrent=0.5)
    >>> params = cell.init(jax.random.key(0))
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
        cell = as_base_cell(self.cell)
        if self.recurrent and not cell.recur_reads_carry:
            raise value_error(
                f"VariationalDropout got recurrent={self.recurrent} for {cell.describe()}",
                "a cell with a product of h and recurrent weights, which this one does not have",
                "Use only inputs=, or lstm_jax.Zoneout.",
            )
        if self.recurrent and not cell.splits:
            raise value_error(
                f"VariationalDropout got recurrent={self.recurrent} for {type(self.cell).__name__}",
                "a cell with project, recur and update",
                "Use only inputs=, or give the cell these methods (see lstm_jax.SplitCell).",
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
        input_mask = bernoulli(k_x, 1 - self.inputs, x) if self.inputs else None
        if not self.recurrent:
            return input_mask, None
        keys = jax.tree.unflatten(jax.tree.structure(carry), keys)
        return input_mask, jax.tree.map(lambda k, a: bernoulli(k, 1 - self.recurrent, a), keys, carry)

    def step(self, params: Params, carry: Carry, x: Array, noise: Noise | None = None) -> tuple[Carry, Array]:
        """One step with the masks."""
        if self.recurrent:
            return self.step_by_parts(params, carry, x, noise)
        return Wrapper.step(self, params, carry, self._drop_inputs(params, x), noise)

    def project(self, params: Params, x: Array) -> Any:
        """The projected input, after dropout of x."""
        return self.inner.project(split_masks(params)[0], self._drop_inputs(params, x))

    def recur(self, params: Params, carry: Carry, u: Any) -> Any:
        """The pre-activation, after dropout of h."""
        params, masks = split_masks(params)
        state_masks = None if masks is None else masks[1]
        if state_masks is not None:
            carry = jax.tree.map(lambda mask, a: drop(mask, a, self.recurrent), state_masks, carry)
        return self.inner.recur(params, carry, u)

    def coefficients(self, params: Params, x: Array) -> tuple[Array, Array]:
        """The coefficients of the wrapped :class:`lstm_jax.ParallelCell`, after dropout of x."""
        return self.inner.coefficients(split_masks(params)[0], self._drop_inputs(params, x))

    def _drop_inputs(self, params: Params, x: Array) -> Array:
        masks = split_masks(params)[1]
        return drop(None if masks is None else masks[0], x, self.inputs)


@dataclass(frozen=True, repr=False)
class CandidateDropout(Wrapper):
    r"""Recurrent dropout without memory loss (Semeniuta et al. 2016): dropout of the candidate.

    .. math:: c_t = f_t \odot c_{t-1} + i_t \odot d(g_t)

    and :math:`h_t = (1 - z_t) \odot d(n_t) + z_t \odot h_{t-1}` in a GRU, so the old state is never dropped.
    Kept candidates are divided by 1 - rate. Without a key nothing is dropped.

    Args:
        cell: an LSTM or a GRU, possibly in other wrappers.
        rate: rate at which candidates of units are dropped.
        mask: ``"step"`` draws a mask at every step, ``"sequence"`` one mask for all steps.

    Raises:
        ValueError: the rate is not in [0, 1), or the cell is not an LSTM or a GRU.

    >>> import jax, jax.numpy as jnp, lstm_jax
    >>> cell = CandidateDropout(lstm_jax.LSTM(3, 8), 0.25)
    >>> params = cell.init(jax.random.key(0))
    >>> carry, ys = lstm_jax.unroll(cell, params, jnp.ones((5, 4, 3)), key=jax.random.key(1))
    >>> round(float(jnp.mean(ys[0] == 0)), 1)  # units whose candidate is dropped stay at 0
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
                "a cell whose update takes candidate_scale: an LSTM or a GRU",
                "Use VariationalDropout or Zoneout for other cells.",
            )

    @property
    def draws_sequence(self) -> bool:  # type: ignore[override]
        """Whether there is one mask for all steps."""
        return self.mask == "sequence"

    @property
    def draws_step(self) -> bool:  # type: ignore[override]
        """Whether there is a mask for each step."""
        return self.mask == "step"

    def draw_sequence(self, key: Array, carry: Carry, x: Array) -> Array | None:
        """The mask for all steps, if there is one."""
        return self._drawn(key, carry) if self.mask == "sequence" else None

    def draw_step(self, key: Array, carry: Carry) -> Array | None:
        """The mask of one step, if there is one."""
        return self._drawn(key, carry) if self.mask == "step" else None

    def _drawn(self, key: Array, carry: Carry) -> Array:
        return bernoulli(key, 1 - self.rate, jax.tree.leaves(carry)[-1])

    def step(self, params: Params, carry: Carry, x: Array, noise: Noise | None = None) -> tuple[Carry, Array]:
        """One step with the mask."""
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
        """The new carry and the output, after dropout of the candidate."""
        mask = split_masks(params)[1] if self.mask == "sequence" else (noise or NO_NOISE).own
        if mask is not None:
            scale = mask.astype(state_dtype(jax.tree.leaves(carry)[-1].dtype)) / (1 - self.rate)
            candidate_scale = scale if candidate_scale is None else candidate_scale * scale
        return Wrapper.update(self, params, carry, z, noise, candidate_scale=candidate_scale)
