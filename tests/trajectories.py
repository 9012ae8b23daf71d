"""The carry that each step reads, by a Python loop over ``cell.step`` for one row at a time."""

import jax
import numpy as np


def row(tree, *index):
    return jax.tree.map(lambda a: np.asarray(a)[index], tree)


def visited(cell, params, xs, *, carry=None, valid=None, resets=None, reverse=False):
    """Yield ``(t, b, carry before, carry after, output)`` for the valid steps of inputs (T, B, *event)."""
    T, B = xs.shape[:2]
    step, initial = jax.jit(cell.step), cell.initial_carry((), params)
    for b in range(B):
        state = initial if carry is None else row(carry, b)
        times = [t for t in range(T) if valid is None or valid[t, b]]
        for k, t in enumerate(times[::-1] if reverse else times):
            # In reverse, a segment ends at the step before the one that has the flag.
            flagged = times[len(times) - k] if reverse and k else t
            if resets is not None and resets[flagged, b] and (k or not reverse):
                state = initial
            new, y = step(params, state, xs[t, b])
            yield t, b, state, new, y
            state = new
