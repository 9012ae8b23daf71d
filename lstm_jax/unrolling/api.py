"""``unroll``: a cell, or a network of cells, over a whole sequence."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from lstm_jax._types import Array, Carry, Params
from lstm_jax.unrolling import validation
from lstm_jax.unrolling.run import Options, Unrolled, begin, run


def unroll(
    cell: Any,
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    lengths: Array | Sequence[int] | int | None = None,
    mask: Array | None = None,
    resets: Array | None = None,
    reverse: bool = False,
    checkpoint: str | int | None = None,
    truncate: int | None = None,
    key: Array | None = None,
    start: int | Array = 0,
    return_carries: bool = False,
    implementation: str = "auto",
) -> tuple[Carry, Any]:
    """Run a cell, a :class:`Stack` or a :class:`Bidirectional` over a sequence.

    With everything left out it is ``jax.lax.scan(partial(cell.step, params), carry, xs)``. A step
    is *valid* where ``mask`` is True and t < ``lengths``; an invalid step is absent: nothing of it
    is seen (a NaN there reaches neither a value nor a gradient), its output is zero, and the carry
    passes it unchanged.

    Args:
        cell: any object with ``init``, ``initial_carry`` and ``step``, hashable; or a composition.
        params: what ``cell.init`` returned.
        xs: (T, *batch, D), floats. T = 0 and empty batches are sequences too.
        carry: what to begin with; None asks the cell (zeros, or what it learned).
        lengths: (*batch,) ints, steps t >= lengths are invalid. Clipped to [0, T] where they are
            arrays of JAX; a Python or NumPy value out of range is refused.
        mask: (T, *batch) bool, False marks invalid steps anywhere.
        resets: (T, *batch) bool, True says that x_t begins a segment: packed segments then give
            what they give apart, in both directions.
        reverse: walk from the last valid step to the first; outputs stay aligned with the inputs.
        checkpoint: what the backward pass may remember: None, all it needs; a window length, the
            carries between windows of that many steps; ``"sqrt"``, windows of about sqrt(T).
        truncate: k lets no gradient cross from input j*k - 1 to input j*k, for any j, counted with
            ``start``. The values do not change. (A given carry belongs to the windows before this
            one; with ``reverse``, where windows are not handed on, it is never cut.)
        key: PRNG key for networks that have noise (dropout); without it there is none.
        start: absolute index of xs[0], so that windows draw the noise of the whole.
        return_carries: also return the carry after each step.
        implementation: ``"auto"`` always works. ``"scan"`` is the plain loop over ``cell.step``,
            ``"fused"`` the same loop with its own derivative rule, ``"parallel"`` all steps at once, for
            cells whose recurrence is linear, ``"pallas"`` one kernel for the whole sequence, ``"cudnn"``
            cuDNN's LSTM; one that cannot run raises its reason. :func:`lstm_jax.implementations` lists what
            each supports and when ``"auto"`` takes it; :func:`lstm_jax.explain` shows what runs for
            these arguments.

    Returns:
        ``(carry, ys)``, the carry after the last step walked and the outputs (T, *batch, H); with
        ``return_carries``, ``(carry, (ys, carries))``, where ``carries[t]`` is the carry after
        step t, held at invalid steps.

    Raises:
        ValueError: a shape, dtype, length or option does not fit; raised while tracing.

    >>> import jax, jax.numpy as jnp, lstm_jax
    >>> cell = lstm_jax.LSTM(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> xs = jnp.ones((5, 4, 3))  # 5 steps, 4 rows
    >>> (h, c), ys = lstm_jax.unroll(cell, params, xs, lengths=[5, 3, 1, 0])
    >>> [int(jnp.count_nonzero(jnp.any(ys[:, row] != 0, axis=-1))) for row in range(4)]
    [5, 3, 1, 0]
    """
    options = Options(bool(reverse), checkpoint, truncate, bool(return_carries), implementation)
    validation.check_network("unroll", cell)
    validation.check_options(options)
    lengths = validation.host_lengths(lengths, xs)
    validation.check_start(start)
    carry, ys, carries = _jitted(cell, options, params, xs, carry, lengths, mask, resets, key, start)
    return carry, ((ys, carries) if return_carries else ys)


@partial(jax.jit, static_argnums=(0, 1))
def _jitted(cell: Any, options: Options, *args: Any) -> Unrolled:
    """The one jit around the time loop."""
    return begin(run, cell, options, *args)
