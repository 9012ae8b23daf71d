"""Regularisers that are terms of a loss (Merity et al. 2017, "Revisiting Activation Regularization")."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from lstm_jax._types import Array
from lstm_jax.unrolling import validation
from lstm_jax.unrolling.steps import mask_out, valid_steps


def activation_regularization(ys: Array, *, lengths: Any = None, mask: Array | None = None) -> Array:
    r"""The mean of the squares of a layer's outputs (AR).

    .. math:: \frac{1}{N} \sum_{t\ valid} y_t^2

    N is the number of entries of valid steps, so padding has no effect. The result is 0 if no step is valid.

    Args:
        ys: (T, *batch, H), the outputs of ``unroll`` (in AWD-LSTM, after dropout).
        lengths: as in ``unroll``.
        mask: as in ``unroll``.

    Returns:
        One number; multiply it by its weight (AWD-LSTM: 2) and add it to the loss.

    Raises:
        ValueError: a shape or dtype does not fit.

    >>> ys = jnp.asarray([[1.0], [2.0], [9.0]])[:, None]
    >>> float(activation_regularization(ys, lengths=[2]))
    2.5
    """
    valid = _valid("activation_regularization", ys, lengths, mask, None)
    return _mean_of_squares(ys, valid)


def temporal_activation_regularization(
    ys: Array, *, lengths: Any = None, mask: Array | None = None, resets: Array | None = None
) -> Array:
    r"""The mean of the squares of the changes of a layer's outputs from step to step (TAR).

    .. math:: \frac{1}{N} \sum_{t} (y_t - y_{t-1})^2

    over pairs of consecutive valid steps of one segment; invalid steps between them are skipped.

    Args:
        ys: (T, *batch, H), the outputs of ``unroll`` (in AWD-LSTM, before dropout).
        lengths: as in ``unroll``.
        mask: as in ``unroll``.
        resets: as in ``unroll``.

    Returns:
        One number; multiply it by its weight (AWD-LSTM: 1) and add it to the loss.

    Raises:
        ValueError: a shape or dtype does not fit.

    >>> ys = jnp.asarray([[1.0], [50.0], [3.0]])[:, None]
    >>> float(temporal_activation_regularization(ys, mask=jnp.asarray([[True], [False], [True]])))
    4.0
    """
    valid = _valid("temporal_activation_regularization", ys, lengths, mask, resets)
    if valid is None and resets is None:
        return _mean_of_squares(ys[1:] - ys[:-1], None)
    if valid is None:
        valid = jnp.ones(ys.shape[:-1], jnp.bool_)
    # The last valid step before each step, -1 if there is none.
    index = jnp.where(valid, lax.broadcasted_iota(jnp.int32, valid.shape, 0), -1)
    last = jnp.concatenate([jnp.full_like(index[:1], -1), lax.cummax(index)[:-1]])
    paired = valid & (last >= 0)
    if resets is not None:
        paired = paired & ~resets
    ys = mask_out(valid, ys)
    before = jnp.take_along_axis(ys, jnp.maximum(last, 0)[..., None], axis=0)
    return _mean_of_squares(ys - before, paired)


def _valid(owner: str, ys: Array, lengths: Any, mask: Array | None, resets: Array | None) -> Array | None:
    batch = tuple(ys.shape[1:-1])
    lengths = validation.host_lengths(lengths, ys, owner)
    validation.check_flags(ys, batch, lengths, mask, resets, None, owner)
    return valid_steps(ys.shape[0], batch, lengths, mask)


def _mean_of_squares(a: Array, valid: Array | None) -> Array:
    if valid is None:
        return jnp.sum(a * a) / max(a.size, 1)
    a = mask_out(valid, a)
    count = jnp.sum(valid, dtype=jnp.int32) * a.shape[-1]
    return jnp.sum(a * a) / jnp.maximum(count, 1).astype(a.dtype)
