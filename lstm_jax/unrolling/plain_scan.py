"""The plain scan of ``cell.step``: the reference that every other way is tested against."""

from __future__ import annotations

from typing import Any

import jax

from lstm_jax._types import Array, Carry, Params
from lstm_jax.unrolling.steps import Flags, Scanned, scan_steps


def plain_scan(
    cell: Any,
    params: Params,
    initial: Carry,
    carry: Carry,
    xs: Array,
    flags: Flags,
    key: Array | None = None,
    *,
    reverse: bool,
    carries: bool,
) -> Scanned:
    """:func:`lstm_jax.unrolling.steps.walk` of any cell, differentiated as it stands."""

    def step(carry: Carry, at: tuple[Array, Any]) -> tuple[Carry, Array, None]:
        x, t = at
        if key is None:
            return *cell.step(params, carry, x), None
        return *cell.step(params, carry, x, cell.draw(jax.random.fold_in(key, t), carry)), None

    return scan_steps(step, initial, carry, (xs, flags.time), flags, reverse=reverse, carries=carries)


def always_supported(cell: Any, params: Params, carry: Carry, xs: Array, flags: Flags) -> None:
    """The plain scan takes every cell and every option."""
