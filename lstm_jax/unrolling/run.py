"""How ``unroll`` runs a network: cells and compositions, the first carry, windows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lstm_jax._random import draws, perturbed, vmap_invariant_key
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import Cell
from lstm_jax.unrolling import validation
from lstm_jax.unrolling.carries import default_carry, match_carry_type
from lstm_jax.unrolling.registry import NAMED, Choice, choose, choose_whole
from lstm_jax.unrolling.steps import Flags, cuts, mask_out, one_step, restarts, valid_steps
from lstm_jax.unrolling.tiling import even
from lstm_jax.unrolling.windows import in_windows


class Options(NamedTuple):
    """How to walk: what is known when tracing, and so part of the jit key."""

    reverse: bool = False
    checkpoint: str | int | None = None
    truncate: int | None = None
    return_carries: bool = False
    implementation: str = "auto"


class Times(NamedTuple):
    """What is said about the steps, one for all layers of a network."""

    valid: Array | None = None  # (T, *batch) bool
    resets: Array | None = None  # (T, *batch) bool
    key: Array | None = None  # the layer's own
    start: Any = 0  # absolute index of the first step
    flags: Flags | None = None  # what a composition has worked out of the above
    lengths: Array | None = None  # (*batch,) int32 in [0, T], where they alone say what is valid

    def of(self, index: int) -> Times:
        """The same times with a key of the member's own."""
        return self if self.key is None else self._replace(key=jax.random.fold_in(self.key, index))


class Unrolled(NamedTuple):
    """What a layer or a network gives back inside; the public function drops what was not asked for."""

    carry: Carry
    ys: Array
    carries: Carry | None


class Run(Protocol):
    """The function that a composition calls on its members: :func:`run`."""

    def __call__(
        self, network: Any, params: Params, xs: Any, carry: Carry | None, options: Options, times: Times
    ) -> Unrolled:
        """Carry and outputs over all of time."""
        ...


def begin(
    run: Run,
    cell: Any,
    options: Options,
    params: Params,
    xs: Array,
    carry: Carry | None,
    lengths: Array | None,
    mask: Array | None,
    resets: Array | None,
    key: Array | None,
    start: Array,
) -> Unrolled:
    """What happens once for a whole network: check, find the valid steps, mask_out the others' inputs."""
    batch = validation.check_sequence(cell, xs)
    validation.check_flags(xs, batch, lengths, mask, resets, key)
    if carry is not None:
        validation.check_carry(cell, params, carry, batch)
    valid = valid_steps(xs.shape[0], batch, lengths, mask)
    if valid is not None:
        xs = mask_out(valid, xs)
    key = None if key is None else vmap_invariant_key(key)
    alone = None  # lengths, where no mask says more
    if lengths is not None and mask is None:
        alone = jnp.clip(lengths, 0, xs.shape[0]).astype(jnp.int32)
    times = Times(valid, resets, key, jnp.asarray(start, jnp.int32), lengths=alone)
    return run(cell, params, xs, carry, options, times)


def run(
    network: Any, params: Params, xs: Any, carry: Carry | None, options: Options, times: Times
) -> Unrolled:
    """A composition runs its members; a cell walks over time; some implementations run all in one call."""
    whole = choose_whole(network, params, xs, carry, options, times)
    if whole is not None:
        return run_whole(whole, network, params, xs, carry, options, times)
    compose = getattr(network, "compose", None)
    if compose is not None:
        return compose(run, params, xs, carry, options, times)
    return run_cell(network, params, xs, carry, options, times)


def run_whole(
    choice: Choice, network: Any, params: Params, xs: Any, carry: Carry | None, options: Options, times: Times
) -> Unrolled:
    """A whole network in one call."""
    whole = NAMED[choice.implementation].whole
    assert whole is not None
    return Unrolled(*whole.run(network, params, xs, carry, options, times), None)


class Prepared(NamedTuple):
    """What a walk begins with."""

    params: Params  # for this sequence
    initial: Carry | None  # what a restart goes back to
    carry: Carry
    choice: Choice | None  # None where there is no state, and so no walk


def prepare(
    cell: Cell, params: Params, xs: Any, carry: Carry | None, options: Options, times: Times, flags: Flags
) -> Prepared:
    """The first carry in its right type, the noise of the whole sequence, the implementation."""
    batch = validation.batch_shape(cell, xs)
    initial = default_carry(cell, params, xs, batch) if carry is None or flags.restart is not None else None
    first = initial if carry is None else match_carry_type(cell, params, xs, carry, given=True)
    params = perturbed(cell, params, times.key, first, one_step(xs))
    if not jax.tree.leaves(first):
        return Prepared(params, initial, first, None)
    choice = choose(cell, params, first, xs, options.implementation, flags)
    return Prepared(params, initial, first, choice)


def run_cell(
    cell: Cell, params: Params, xs: Any, carry: Carry | None, options: Options, times: Times
) -> Unrolled:
    """One cell over time, with blank outputs at invalid steps."""
    T = jax.tree.leaves(xs)[0].shape[0]
    flags = flags_of(T, options, times)
    params, initial, carry, choice = prepare(cell, params, xs, carry, options, times, flags)
    key = None
    if times.key is not None and hasattr(cell, "draw"):
        key, flags = times.key, flags._replace(time=times.start + jnp.arange(T, dtype=jnp.int32))
    if choice is None:
        return _run_without_state(cell, params, xs, carry, options, flags, key)
    loop = NAMED[choice.implementation].scan
    assert loop is not None

    def window(carry: Carry, inputs: tuple[Any, Flags]) -> tuple[Carry, tuple[Any, Carry | None]]:
        xs, flags = inputs
        restart_to = None if flags.restart is None else initial
        scanned = loop(
            cell,
            params,
            restart_to,
            carry,
            xs,
            flags,
            key,
            reverse=options.reverse,
            carries=options.return_carries,
        )
        return scanned.carry, (scanned.ys, scanned.carries)

    length = window_length(T, options.checkpoint)
    if length is None:
        carry, (ys, carries) = window(carry, (xs, flags))
    else:
        batch = validation.batch_shape(cell, xs)
        carry, (ys, carries) = in_windows(
            window, carry, xs, flags, length, batch=batch, reverse=options.reverse
        )
    return Unrolled(carry, ys, carries)


def _run_without_state(
    cell: Any, params: Params, xs: Array, carry: Carry, options: Options, flags: Flags, key: Array | None
) -> Unrolled:
    """A cell without state looks at all steps at once."""

    def step(x: Array, noise: Any) -> Array:
        return (cell.step(params, carry, x) if noise is None else cell.step(params, carry, x, noise))[1]

    ys = jax.vmap(step)(xs, draws(cell, key, flags.time, carry))
    if flags.valid is not None:
        ys = mask_out(flags.valid, ys)
    return Unrolled(carry, ys, carry if options.return_carries else None)


def flags_of(T: Any, options: Options, times: Times) -> Flags:
    """What was said about the steps, as the loop needs it."""
    if times.flags is not None:
        return times.flags
    restart = None if times.resets is None else restarts(times.resets, times.valid, options.reverse)
    cut = None if options.truncate is None else cuts(T, times.start, options.truncate, options.reverse)
    return Flags(times.valid, restart, cut)


def window_length(T: Any, checkpoint: str | int | None) -> int | None:
    """Steps in a window of the memory policy; None where there are no windows."""
    if checkpoint is None or T == 0:
        return None
    if checkpoint == "sqrt":
        T = validation.known_length(T)
        return even(T, round(math.sqrt(T))) or T
    return int(checkpoint)
