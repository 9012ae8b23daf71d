"""The plain scan of ``cell.step``. Tests compare every other implementation with it."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from lstm_jax._types import Array, Carry, Params
from lstm_jax.unrolling.steps import Flags, begin_step, end_step


def plain_scan(
    cell: Any,
    options: Any,
    params: Params,
    key: Array | None,
    initial: Carry,
    carry: Carry,
    xs: Any,
    flags: Flags,
) -> tuple[Carry, Any]:
    """Scan the step of any cell, without a custom derivative; ``xs`` is ``(xs, reset_to)``."""

    def body(carry: Carry, at: Any) -> tuple[Carry, Any]:
        flag, (x, stored) = at
        held, start = begin_step(flag, initial if stored is None else stored, carry)
        if key is None:
            new, y = cell.step(params, start, x)
        else:
            new, y = cell.step(params, start, x, cell.draw(jax.random.fold_in(key, flag.time), start))
        carry, y = end_step(flag, held, new, y)
        return carry, (y, carry if options.return_carries else None)

    return lax.scan(body, carry, (flags, xs), reverse=options.reverse)


def always_supported(
    cell: Any, options: Any, params: Params, carry: Carry, xs: Any, flags: Flags
) -> str | None:
    """None: the plain scan supports every cell and every option."""
    return None
