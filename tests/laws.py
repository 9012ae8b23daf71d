"""Laws of the time contract: equivalent calls of ``unroll`` have equal results and gradients.

Each function checks one law for one case of ``cell_cases.py``. Inputs at invalid steps are NaN or infinite.
"""

import itertools
from functools import partial

import cell_cases
import jax
import jax.numpy as jnp
import numpy as np
from helpers import assert_same, every, finite, gradients, is_zero, over_events, problem, values_and_gradients

import lstm_jax

T, B = 7, 3
LSTM_CASE = cell_cases.BY_NAME["lstm"]


def solve(given, *, carry=True, **options):
    """The results of ``unroll``, with the carries of all steps, and the gradients."""
    options = {"return_carries": True} | options
    initial = given.carry if carry else None
    return values_and_gradients(given.network, given.params, given.xs, initial, **given.flags, **options)


def check_implementations(case, ways, *, reverse, truncate, flagged):
    """Each of ``ways`` (implementation, checkpoint) agrees with the plain scan."""
    given = problem(case)
    if not flagged:
        given = finite(given)
    run = partial(solve, given, carry=flagged, reverse=reverse, truncate=truncate)
    reference = run(implementation="scan")
    (_, (ys, _)), (_, dxs, _) = reference
    if flagged:
        assert every((ys, dxs), np.isfinite)
        assert every((ys[~given.valid], dxs[~given.valid]), is_zero)
        assert np.any(np.asarray(dxs)[given.valid] != 0)
    for implementation, checkpoint in ways:
        result = run(implementation=implementation, checkpoint=checkpoint)
        assert_same(result, reference, note=f"{implementation}, checkpoint={checkpoint}")
        if flagged:
            (_, (ys, _)), (_, dxs, _) = result
            assert every((ys[~given.valid], dxs[~given.valid]), is_zero)


# --- windows and single steps -------------------------------------------------------------------


@partial(jax.jit, static_argnames=("network", "sizes", "between", "reverse", "truncate", "implementation"))
def windows(network, sizes, params, xs, carry, flags, start, between, reverse, **options):
    """Results and gradients by windows of these sizes; ``between`` is applied to the carry between them."""
    edges = np.cumsum((0, *sizes)).tolist()
    order = list(itertools.pairwise(edges))

    def f(params, xs, carry):
        results = {}
        for a, b in reversed(order) if reverse else order:
            window_flags = {name: flag[a:b] for name, flag in flags.items() if name != "lengths"}
            window_flags["lengths"] = jnp.clip(flags["lengths"] - a, 0, b - a)
            carry, results[a] = lstm_jax.unroll(
                network,
                params,
                xs[a:b],
                jax.tree.map(between, carry),
                start=start + a,
                reverse=reverse,
                return_carries=True,
                **window_flags,
                **options,
            )
        return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *(results[a] for a, _ in order))

    return gradients(f, params, xs, carry)


def identity(a):
    return a


def check_windows(case, truncate, implementation):
    """Windows with split flags equal the whole sequence.

    With start 5 and truncate=2, one boundary between windows is a cut and one is not.
    """
    given = problem(case, seed=3)
    sizes = (3, 1, 3) if case is LSTM_CASE else (3, 4)
    options = {"truncate": truncate, "implementation": implementation}
    whole = solve(given, start=5, **options)
    arguments = given.params, given.xs, given.carry, given.flags
    assert_same(windows(given.network, sizes, *arguments, 5, identity, False, **options), whole)


def check_single_steps(case):
    """Calls of ``step`` equal ``unroll``, from the initial carry and after a window."""
    given = finite(problem(case))

    @jax.jit
    def results(params, xs):
        carry = given.network.initial_carry((B,), params)
        stepped = []
        for t in range(T):
            carry, y = given.network.step(params, carry, xs[t])
            stepped.append(y)
        streamed_carry, first = lstm_jax.unroll(given.network, params, xs[:4])
        streamed = [first]
        for t in range(4, T):
            streamed_carry, y = given.network.step(params, streamed_carry, xs[t])
            streamed.append(y[None])
        whole = lstm_jax.unroll(given.network, params, xs)
        return whole, (carry, jnp.stack(stepped)), (streamed_carry, jnp.concatenate(streamed))

    whole, stepped, streamed = results(given.params, given.xs)
    assert_same(stepped, whole)
    assert_same(streamed, whole)


# --- segments, invalid steps, direction ---------------------------------------------------------


def check_packed_segments(case, reverse, implementation):
    """Packed segments equal separate ones. An invalid step between the first two has a reset."""
    given = finite(problem(case))
    xs = given.xs
    xs[3] = np.nan
    segments = ((0, 3), (4, 6), (6, 7)) if case is LSTM_CASE else ((0, 3), (4, 7))
    mask, resets = np.ones((T, B), bool), np.zeros((T, B), bool)
    mask[3] = False
    resets[[3, *(a for a, _ in segments[1:])]] = True
    options = {"reverse": reverse, "implementation": implementation}
    causal = case.causal

    def packed(params, xs, carry):
        carry, ys = lstm_jax.unroll(given.network, params, xs, carry, mask=mask, resets=resets, **options)
        return (carry if causal else None), ys

    def separate(params, xs, carry):
        ys = {}
        for a, b in reversed(segments) if reverse else segments:
            carry, ys[a] = lstm_jax.unroll(given.network, params, xs[a:b], carry, **options)
            last, carry = carry, None  # only the first segment of the scan has the given carry
        first, *others = (ys[a] for a, _ in segments)
        return (last if causal else None), jnp.concatenate([first, jnp.zeros_like(first[:1]), *others])

    # A bidirectional network would use the given carries in different segments.
    arguments = given.params, xs, given.carry if causal else None
    assert_same(*jax.jit(lambda *a: (gradients(packed, *a), gradients(separate, *a)))(*arguments))


def check_deleted_steps(case, reverse, implementation):
    """Deleting invalid steps changes nothing else; the gradient at deleted steps is zero."""
    given = problem(case, batch=())
    kept = np.array([1, 2, 4, 6])
    mask, resets = np.zeros(T, bool), np.zeros(T, bool)
    mask[kept] = True
    resets[[0, 3, 4, 5]] = True  # only step 4 is valid
    xs = np.where(over_events(mask, given.xs), finite(given).xs, np.nan)
    options = {"reverse": reverse, "implementation": implementation, "return_carries": True}

    def masked(params, xs, carry):
        carry, out = lstm_jax.unroll(given.network, params, xs, carry, mask=mask, resets=resets, **options)
        return carry, jax.tree.map(lambda a: a[kept], out)

    def deleted(params, xs, carry):
        return lstm_jax.unroll(given.network, params, xs[kept], carry, resets=resets[kept], **options)

    arguments = given.params, xs, given.carry
    assert_same(*jax.jit(lambda *a: (gradients(masked, *a), gradients(deleted, *a)))(*arguments))


def check_reverse_is_flip(case):
    """``reverse=True`` equals flipped inputs with shifted resets.

    In reverse, the carry restarts between x_t that begins a segment and x_{t-1}.
    """
    given = problem(case)
    resets, xs = given.flags["resets"], finite(given).xs
    shifted = np.concatenate([np.zeros_like(resets[:1]), resets[:0:-1]])
    run = partial(lstm_jax.unroll, given.network, return_carries=True)

    def reverse(params, xs, carry):
        return run(params, xs, carry, resets=resets, reverse=True)

    def flipped(params, xs, carry):
        carry, out = run(params, xs[::-1], carry, resets=shifted)
        return carry, jax.tree.map(lambda a: a[::-1], out)

    arguments = given.params, xs, given.carry
    assert_same(*jax.jit(lambda *a: (gradients(reverse, *a), gradients(flipped, *a)))(*arguments))


# --- empty sequences -----------------------------------------------------------------------------


def check_all_steps_invalid(case):
    """The given carry is returned, and its gradient passes unchanged."""
    given = problem(case)
    for flags in ({"lengths": np.zeros(B, np.int32)}, {"mask": np.zeros((T, B), bool)}):
        invalid = given._replace(xs=np.full_like(given.xs, np.nan), flags=given.flags | flags)
        (carry, (ys, carries)), (dparams, dxs, _) = solve(invalid)
        assert_same(carry, jax.tree.map(jnp.asarray, given.carry), rtol=0, atol=0)
        repeated = jax.tree.map(lambda a: jnp.stack([jnp.asarray(a)] * T), given.carry)
        assert_same(carries, repeated, rtol=0, atol=0)
        assert every((ys, dxs, dparams), is_zero)


def check_empty(case, shape):
    """Sequences without steps or without rows: ``shape`` is (T, B)."""
    given = problem(case, T=shape[0] or 1, batch=shape[1:])
    flags = {
        "mask": np.ones(shape, bool),
        "resets": np.ones(shape, bool),
        "lengths": np.zeros(shape[1], np.int32),
    }
    empty = given._replace(xs=np.ones((*shape, *case.event)), flags=flags)
    (carry, (ys, carries)), (dparams, dxs, _) = solve(empty, carry=False)
    assert_same(carry, given.network.initial_carry(shape[1:], given.params), rtol=0, atol=0)
    event = getattr(given.network, "output_shape", None) or (getattr(given.network, "output_size", 2),)
    assert ys.shape == (*shape, *event) and every(ys, is_zero)
    assert all(a.shape[:2] == shape for a in jax.tree.leaves(carries))
    assert dxs.shape == empty.xs.shape and every((dparams, dxs), np.isfinite)
