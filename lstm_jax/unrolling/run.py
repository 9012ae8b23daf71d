"""Run a cell or a network over a sequence."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._random import ONCE, step_draws, vmap_invariant_key
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import Network, as_base_cell
from lstm_jax.unrolling import validation
from lstm_jax.unrolling.carries import given_carry, own_carry
from lstm_jax.unrolling.registry import choose, choose_whole_network, record
from lstm_jax.unrolling.steps import Flags, cuts, mask_out, one_step, restarts, valid_steps
from lstm_jax.unrolling.windows import in_windows, window_length


class Options(NamedTuple):
    """The static arguments of ``unroll``: part of the key of the compiled program."""

    reverse: bool = False
    checkpoint: str | int | None = None
    truncate: int | None = None
    return_carries: bool = False
    implementation: str = "auto"
    save: bool = False  # set by the fused scan: also return the residuals of the derivative


class Steps(NamedTuple):
    """Masks, resets and noise of a sequence. All layers of a network share them, except for the key."""

    valid: Array | None = None  # (T, *batch) bool
    resets: Array | None = None  # (T, *batch) bool
    key: Array | None = None  # the PRNG key of this layer
    start: Any = 0  # absolute index of the first step
    lengths: Array | None = None  # (*batch,) int32 in [0, T], unless there is a mask
    flags: Any = None  # (flags, reset_to), if a network has computed them

    def for_layer(self, index: int) -> Steps:
        """The same steps with the key of one layer."""
        return self if self.key is None else self._replace(key=jax.random.fold_in(self.key, index))


class Unrolled(NamedTuple):
    """The result of a layer or a network."""

    carry: Carry
    ys: Any
    carries: Carry | None


def prepare(
    cell: Any, xs: Array, lengths: Any, mask: Any, resets: Any, key: Any, start: Any
) -> tuple[Array, Steps]:
    """Check the sequence, find its valid steps, and set the inputs of all others to zero."""
    batch = validation.check_sequence(cell, xs)
    validation.check_flags(xs, batch, lengths, mask, resets, key)
    valid = valid_steps(xs.shape[0], batch, lengths, mask)
    if valid is not None:
        xs = mask_out(valid, xs)
    key = None if key is None else vmap_invariant_key(key)
    clipped = None
    if lengths is not None and mask is None:
        clipped = jnp.clip(lengths, 0, xs.shape[0]).astype(jnp.int32)
    return xs, Steps(valid, resets, key, jnp.asarray(start, jnp.int32), clipped)


def run(
    cell: Any,
    options: Options,
    params: Params,
    xs: Any,
    carry: Carry | None,
    reset_to: Carry | None,
    steps: Steps,
) -> Unrolled:
    """Run a cell or a network over a sequence."""
    cell = as_base_cell(cell)
    if choose_whole_network(cell, options.implementation, params, xs, carry, options, steps):
        from lstm_jax.unrolling.cudnn import cudnn_run

        return Unrolled(*cudnn_run(cell, params, xs, carry, options, steps), None)
    if isinstance(cell, Network):
        return cell.run_layers(run, options, params, xs, carry, reset_to, steps)

    first = jax.tree.leaves(xs)[0]
    T, batch = first.shape[0], tuple(first.shape[1 : first.ndim - cell.event_ndim])
    flags, stored = step_flags(T, options, steps, reset_to) if steps.flags is None else steps.flags
    initial = None
    if carry is None or (flags.restart is not None and stored is None):
        initial = own_carry(cell, params, xs, batch)
    carry = initial if carry is None else given_carry(cell, params, xs, batch, carry)
    if stored is not None:
        stored = jax.tree.map(lambda a, like: a.astype(like.dtype), stored, carry)
    if flags.restart is None:
        initial = None
    key = None
    noisy = steps.key is not None and cell.has_noise
    if steps.key is not None and cell.sequence_noise:
        params = cell.perturb(params, jax.random.fold_in(steps.key, ONCE), carry, one_step(xs))
    if steps.key is not None and cell.step_noise:
        key, flags = steps.key, flags._replace(time=steps.start + jnp.arange(T, dtype=jnp.int32))
    if not jax.tree.leaves(carry):
        return _run_without_state(cell, options, params, xs, carry, flags, key)

    window = window_length(T, options.checkpoint)
    scan = choose(cell, options.implementation, options, params, carry, xs, flags, window, noisy)
    if window is not None:
        scan = partial(in_windows, scan, window, options.reverse, True, batch)
    carry, (ys, carries, *_) = scan(params, key, initial, carry, (xs, stored), flags)
    return Unrolled(carry, ys, carries)


def step_flags(T: Any, options: Options, steps: Steps, reset_to: Carry | None) -> tuple[Flags, Carry | None]:
    """The flags of each step in the loop's order, and the carry that each restart goes back to."""
    restart, stored = None, None
    if steps.resets is not None:
        restart, stored = restarts(steps.resets, steps.valid, options.reverse, reset_to)
    cut = None if options.truncate is None else cuts(T, steps.start, options.truncate, options.reverse)
    return Flags(steps.valid, restart, cut), stored


def _run_without_state(
    cell: Any, options: Options, params: Params, xs: Array, carry: Carry, flags: Flags, key: Array | None
) -> Unrolled:
    """Compute all steps of a cell without state at once."""
    record(cell, "vmap", "no state: all steps at once")
    noise = step_draws(cell, key, flags.time, carry)
    ys = jax.vmap(lambda x, noise: cell.step(params, carry, x, noise)[1])(xs, noise)
    if flags.valid is not None:
        ys = mask_out(flags.valid, ys)
    return Unrolled(carry, ys, carry if options.return_carries else None)
