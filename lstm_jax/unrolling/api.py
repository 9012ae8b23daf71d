"""``unroll``, ``reset_carry`` and ``explain``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from lstm_jax._errors import value_error
from lstm_jax._fills import unfilled
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import compute_form
from lstm_jax.unrolling import registry, validation
from lstm_jax.unrolling.registry import NAMED, Implementation, LayerPlan
from lstm_jax.unrolling.run import Options, Unrolled, prepare, run
from lstm_jax.unrolling.steps import select


def unroll(
    cell: Any,
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    lengths: Array | Sequence[int] | int | None = None,
    mask: Array | None = None,
    resets: Array | None = None,
    reset_to: Carry | None = None,
    reverse: bool = False,
    checkpoint: str | int | None = None,
    truncate: int | None = None,
    key: Array | None = None,
    start: int | Array = 0,
    return_carries: bool = False,
    implementation: str = "auto",
) -> tuple[Carry, Any]:
    """Run a cell, a :class:`Stack` or a :class:`Bidirectional` over a sequence.

    Without options this is ``jax.lax.scan(partial(cell.step, params), carry, xs)``. A step is *valid* where
    ``mask`` is True and t < ``lengths``. An invalid step is skipped: its input, reset and noise are not
    read (NaN in them reaches no value and no gradient), its output is zero, and the carry passes through
    unchanged.

    Args:
        cell: any hashable object with ``init``, ``initial_carry`` and ``step``; or a network.
        params: the result of ``cell.init``.
        xs: (T, *batch, D), floats. T = 0 and empty batches are allowed.
        carry: the initial carry, promoted to the dtype of the cell's own. None: the cell's own (zeros, or
            learned).
        lengths: (*batch,) ints; steps t >= lengths are invalid. A JAX array is clipped to [0, T]; a Python
            or NumPy value out of range raises an error.
        mask: (T, *batch) bool; False marks invalid steps anywhere.
        resets: (T, *batch) bool; True means that x_t begins a segment. Packed segments give the same results
            as separate ones, in both directions.
        reset_to: the carry that a restart goes back to, with a leading time axis: (T, *batch, ...) each.
            None: the cell's own initial carry. Forward, a reset at t restarts from ``reset_to[t]`` before
            x_t is read. In reverse, a reset at t starts the segment that ends at t - 1 from ``reset_to[t]``.
            A :class:`Bidirectional` takes a pair. Entries without a reset are never read.
        reverse: run from the last valid step to the first; outputs stay aligned with the inputs.
        checkpoint: what the backward pass stores. None: everything it needs. A window length: the carries
            between windows of that many steps. ``"sqrt"``: the carries between windows of about sqrt(T)
            steps.
        truncate: k stops gradients between inputs j*k - 1 and j*k for every j, where indices begin at
            ``start``. Values do not change. A given carry belongs to the window before this one. With
            ``reverse`` there is no such window, so the gradient of the carry is never stopped.
        key: PRNG key for networks with noise (dropout). Without it there is no noise.
        start: absolute index of xs[0], so that windows draw the noise of the whole sequence.
        return_carries: also return the carry after each step.
        implementation: ``"auto"`` always works. ``"scan"`` is the plain loop over ``cell.step``,
            ``"fused"`` the same loop with a custom derivative, ``"parallel"`` an associative scan for
            linear recurrences, ``"pallas"`` one kernel for the whole sequence, ``"cudnn"`` cuDNN's LSTM. If a
            named implementation cannot run, an error gives the reason. :func:`lstm_jax.implementations`
            lists what each supports and when ``"auto"`` chooses it; :func:`lstm_jax.explain` shows what runs
            for these arguments.

    Returns:
        ``(carry, ys)``: the carry after the last step and the outputs (T, *batch, H). With
        ``return_carries``, ``(carry, (ys, carries))``, where ``carries[t]`` is the carry after step t.

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
    lengths = validation.check_static("unroll", cell, options, xs, lengths, start)
    arrays = unfilled(params), xs, carry, lengths, mask, resets, reset_to, key, start
    carry, ys, carries = _compiled(compute_form(cell), options, *arrays)
    return carry, ((ys, carries) if return_carries else ys)


def _unroll(
    cell: Any,
    options: Options,
    params: Params,
    xs: Array,
    carry: Carry | None,
    lengths: Array | None,
    mask: Array | None,
    resets: Array | None,
    reset_to: Carry | None,
    key: Array | None,
    start: Array,
) -> Unrolled:
    xs, steps = prepare(cell, xs, lengths, mask, resets, key, start)
    carry, reset_to = validation.check_carries(cell, params, xs, carry, reset_to, resets)
    return run(cell, options, params, xs, carry, reset_to, steps)


#: The only jit around the time loop, so that a second eager call compiles nothing.
_compiled = partial(jax.jit, static_argnums=(0, 1))(_unroll)


def reset_carry(cell: Any, params: Params, carry: Carry, reset: Any) -> Carry:
    """The carry with the cell's initial carry in the rows where ``reset`` is True.

    Use it in a loop that calls ``cell.step``, where :func:`unroll` has ``resets``: for instance to act in
    environments whose episodes end at different times.

    Args:
        cell: a cell or a network.
        params: its parameters.
        carry: the carry before the step, with batch axes (*batch).
        reset: (*batch) bool; True where a new segment begins.

    Returns:
        The carry, in the dtypes of the given one.

    Raises:
        ValueError: ``reset`` is not bool, or the carry does not fit the cell or the shape of ``reset``.

    >>> import jax, jax.numpy as jnp, lstm_jax
    >>> cell = lstm_jax.LSTM(input_size=3, hidden_size=2)
    >>> params = cell.init(jax.random.key(0))
    >>> h, c = lstm_jax.reset_carry(cell, params, (jnp.ones((4, 2)), jnp.ones((4, 2))), jnp.arange(4) == 1)
    >>> c[:, 0]
    Array([1., 0., 1., 1.], dtype=float32)
    """
    validation.check_cell("reset_carry", cell)
    if not hasattr(reset, "dtype"):
        reset = np.asarray(reset)
    if reset.dtype != np.bool_:
        raise value_error(f"reset_carry got reset of dtype {reset.dtype}", "bool", "Use reset != 0.")
    initial = cell.initial_carry(tuple(reset.shape), params)
    carry = validation.carry_like("reset_carry", cell, "carry", carry, initial)
    initial = jax.tree.map(lambda a, like: a.astype(like.dtype), initial, carry)
    return select(reset, initial, carry)


@dataclass(frozen=True)
class Plan:
    """The result of :func:`explain`. It prints as a table, with what its implementations support."""

    layers: tuple[LayerPlan, ...]  # one for each cell, in the order in which they run

    @property
    def implementation(self) -> str:
        """The implementation of all layers with a loop; different ones are joined by ``+``."""
        names = dict.fromkeys(layer.implementation for layer in self.layers if layer.implementation != "vmap")
        return "+".join(names) or "vmap"

    @property
    def rows(self) -> tuple[Implementation, ...]:
        """The rows of :func:`lstm_jax.implementations` for the implementations that run."""
        names = dict.fromkeys(layer.implementation for layer in self.layers)
        return tuple(NAMED[name] for name in names if name in NAMED)

    def __str__(self) -> str:
        width = max(len(layer.cell) for layer in self.layers)
        lines = [f"{layer.cell:<{width}}  {layer}" for layer in self.layers]
        return "\n".join([*lines, *map(str, self.rows)])


def explain(
    cell: Any,
    params: Params,
    xs: Array | jax.ShapeDtypeStruct,
    carry: Carry | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
    reset_to: Carry | None = None,
    reverse: bool = False,
    checkpoint: str | int | None = None,
    truncate: int | None = None,
    key: Any = None,
    start: Any = 0,
    return_carries: bool = False,
    implementation: str = "auto",
) -> Plan:
    """Which implementation :func:`lstm_jax.unroll` uses for these arguments, why, and how it divides work.

    Takes the arguments of ``unroll``; arrays may be ``jax.ShapeDtypeStruct``. Nothing is computed: the
    function traces the code that ``unroll`` runs, so the two always agree. It does not know of an enclosing
    ``vmap`` or derivative. To see the memory of a program, use
    ``jax.jit(f).lower(...).compile().memory_analysis()``.

    Returns:
        A :class:`Plan` with one row for each cell with a loop, in the order in which they run. Two
        directions of a :class:`Bidirectional` that share a loop are one row.

    Raises:
        ValueError: ``unroll`` would raise for these arguments.

    >>> import jax, lstm_jax
    >>> cell = lstm_jax.GRUVariant(input_size=3, hidden_size=2, reset_after=False)
    >>> params = jax.eval_shape(cell.init, jax.random.key(0))
    >>> xs = jax.ShapeDtypeStruct((5, 4, 3), "float32")
    >>> print(lstm_jax.explain(cell, params, xs).implementation)
    scan
    """
    options = Options(bool(reverse), checkpoint, truncate, bool(return_carries), implementation)
    lengths = validation.check_static("explain", cell, options, xs, lengths, start)
    arrays = params, xs, carry, lengths, mask, resets, reset_to, key, start
    with registry.recording() as layers:
        jax.eval_shape(partial(_unroll, compute_form(cell), options), *arrays)
    return Plan(tuple(layers))
