"""Laws of the time contract: two ways to say the same thing give the same values and gradients.

The cases come from ``cell_cases.py``. ``make test`` runs the LSTM and the GRU under a few options,
``make test-slow`` everything else. Inputs at invalid steps are NaN and infinities throughout.
"""

import itertools
from dataclasses import dataclass
from functools import partial

import cell_case
import cell_cases
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import user_cells
from cell_case import D, H
from cell_cases import BY_NAME
from helpers import Problem, assert_same, gradients, problem, total, values_and_gradients

import lstm_jax
from lstm_jax import GRU, LSTM, Bidirectional, Stack

pytestmark = pytest.mark.usefixtures("x64", "quick_compiles")

T, B = 7, 3
LAWFUL = cell_cases.table(lambda case: not case.variant)
CAUSAL = [case for case in LAWFUL if case.causal]
LSTM_CASE = BY_NAME["lstm"]


def solve(given, *, carry=True, **options):
    """``unroll``'s answer with all carries, and the gradients."""
    options = {"return_carries": True} | options
    first = given.carry if carry else None
    return values_and_gradients(given.network, given.params, given.xs, first, **given.flags, **options)


def every(tree, f):
    return all(bool(np.all(f(np.asarray(a)))) for a in jax.tree.leaves(tree) if a.dtype != jax.dtypes.float0)


def is_daily(case, *_):
    return case.name in cell_cases.DAILY


def laws_over(names, rows, ids=cell_cases.name, daily=is_daily):
    """Parametrize; a row begins with the case. Those that are not daily are for ``make test-slow``."""

    def marked(row):
        entries = row if isinstance(row, tuple) and not isinstance(row, cell_case.CellCase) else (row,)
        return pytest.param(*entries, marks=() if daily(*entries) else pytest.mark.slow)

    return pytest.mark.parametrize(names, [marked(row) for row in rows], ids=ids)


def spread_over_directions(listed):
    """Each case with a direction of its own, the LSTM with both directions and implementations.

    Every day the LSTM alone, with each of them once.
    """
    rows = []
    for index, case in enumerate(listed):
        if case is LSTM_CASE:
            rows += [(case, reverse, how) for reverse in (False, True) for how in ("scan", "auto")]
        else:
            rows.append((case, index % 2 == 1, "auto"))

    def daily(case, reverse, implementation):
        return case is LSTM_CASE and reverse == (implementation == "scan")

    return laws_over("case, reverse, implementation", rows, ids=_name, daily=daily)


def _name(value):
    if isinstance(value, bool):
        return "reverse" if value else "forward"
    return getattr(value, "name", str(value))


# --- every way of computing ---------------------------------------------------------------------


def pairwise(**axes):
    """Rows in which every value of every axis meets every value of every other; greedy, always the same."""

    def pairs(row):
        return set(itertools.combinations(enumerate(row), 2))

    rows = list(itertools.product(*(range(len(values)) for values in axes.values())))
    missing = set().union(*map(pairs, rows))
    while missing:
        row = max(rows, key=lambda row: len(pairs(row) & missing))
        missing -= pairs(row)
        yield tuple(values[index] for values, index in zip(axes.values(), row, strict=True))


WAYS = [("auto", None), ("auto", 4), ("auto", "sqrt"), ("scan", 1), ("auto", T + 2)]
CONDITIONS = {"reverse": [False, True], "truncate": [None, 2], "flagged": [False, True]}
OTHERS = [case for case in LAWFUL if case is not LSTM_CASE]
#: The pairwise cover for the LSTM, and one comparison for each of the others; see ``row_is_daily``.
COVER = list(pairwise(case=[LSTM_CASE], way=WAYS, **CONDITIONS))
COVER += [(m, ("auto", 4), index % 2 == 1, (None, 2)[index % 2], True) for index, m in enumerate(OTHERS)]
#: All of the LSTM's, and a pairwise cover for the others.
EVERY_SO_OFTEN = [(LSTM_CASE, *row) for row in itertools.product(WAYS, *CONDITIONS.values())]
EVERY_SO_OFTEN += pairwise(case=OTHERS, way=WAYS[:4], **CONDITIONS)
EVERY_SO_OFTEN = [row for row in EVERY_SO_OFTEN if row not in COVER]
#: What shares a reference is one test, so that the reference is compiled once.
SHARED, SHARED_SLOWLY = {}, {}
for _rows, _shared in ((COVER, SHARED), (EVERY_SO_OFTEN, SHARED_SLOWLY)):
    for _case, _way, *_condition in _rows:
        _shared.setdefault((_case.name, *_condition), []).append(_way)


#: Each two of direction, truncation and flags meet in these four.
DAILY_CONDITIONS = [(False, None, False), (False, 2, True), (True, None, True), (True, 2, False)]


def row_is_daily(row):
    """Four rows of the LSTM, and the GRU's."""
    which, *condition = row
    return tuple(condition) in DAILY_CONDITIONS if which == "lstm" else which == "gru"


@pytest.mark.parametrize(
    "row", helpers.daily(SHARED, *filter(row_is_daily, SHARED)), ids=lambda row: "-".join(map(str, row))
)
def test_every_way_is_the_plain_scan(row):
    every_way_is_the_plain_scan(row, SHARED[row])


@pytest.mark.slow
@pytest.mark.parametrize("row", SHARED_SLOWLY, ids=lambda row: "-".join(map(str, row)))
def test_every_other_way_is_the_plain_scan(row):
    every_way_is_the_plain_scan(row, SHARED_SLOWLY[row])


def every_way_is_the_plain_scan(row, ways):
    """Implementations and memory policies, with NaN at invalid steps and with learned and given carries."""
    which, reverse, truncate, flagged = row
    given = problem(BY_NAME[which])
    if not flagged:
        given = given._replace(xs=np.where(np.isfinite(given.xs), given.xs, 0.5), flags={})
    run = partial(solve, given, carry=flagged, reverse=reverse, truncate=truncate)
    reference = run(implementation="scan")
    (_, (ys, _)), (_, dxs, _) = reference
    if flagged:
        assert every((ys, dxs), np.isfinite)
        assert every((ys[~given.valid], dxs[~given.valid]), lambda a: a == 0)
        assert np.any(np.asarray(dxs)[given.valid] != 0)
    for implementation, checkpoint in ways:
        found = run(implementation=implementation, checkpoint=checkpoint)
        assert_same(found, reference, note=f"{implementation}, checkpoint={checkpoint}")
        if flagged:
            assert every((found[0][1][0][~given.valid], found[1][1][~given.valid]), lambda a: a == 0)


@pytest.mark.parametrize("which", helpers.daily(["gru", "peephole", "stack_residual_skip"]))
def test_forward_mode_of_the_fast_path_is_that_of_the_plain_scan(which):
    """Among them two cells with a constant in ``recur``, which has no place in a tangent."""
    given = problem(BY_NAME[which])
    tangents = helpers.random_like(np.random.default_rng(1), (given.params, given.xs, given.carry))

    @partial(jax.jit, static_argnames="implementation")
    def pushed(primals, tangents, implementation):
        def f(params, xs, carry):
            options = {"return_carries": True, "implementation": implementation} | given.flags
            return lstm_jax.unroll(given.network, params, xs, carry, **options)

        return jax.jvp(f, primals, tangents)

    primals = given.params, given.xs, given.carry
    fast, plain = (pushed(primals, tangents, implementation) for implementation in ("auto", "scan"))
    assert_same(fast, plain)
    assert np.any(fast[1][1][0] != 0)


class Counting(user_cells.Peephole):
    """A split cell that also counts its steps, in whole numbers, which have no tangents."""

    def initial_carry(self, batch_shape=(), params=None):
        return super().initial_carry(batch_shape), jnp.zeros(batch_shape, jnp.int32)

    def recur(self, params, carry, u):
        return super().recur(params, carry[0], u)

    def update(self, params, carry, z):
        floats, y = super().update(params, carry[0], z)
        steps = carry[1] + 1
        return (floats, steps), y / steps[..., None].astype(y.dtype)


def test_auto_takes_a_split_cell_with_whole_numbers_in_its_carry():
    given = problem(cell_case.CellCase("counting", Counting, None))
    assert_same(solve(given), solve(given, implementation="scan"))


@pytest.mark.parametrize("implementation", helpers.daily(["scan", "auto"], "auto"))
def test_checkpoint_says_how_much_is_remembered(implementation):
    """By the sizes of what the forward pass hands to the backward pass; nothing is computed."""
    cell, steps = LSTM(D, 16), 64
    shapes = jax.eval_shape(cell.init, jax.random.key(0)), jax.ShapeDtypeStruct((steps, B, D), "float32")

    def remembered(checkpoint):
        options = {"checkpoint": checkpoint, "implementation": implementation}

        def residuals(params, xs):
            return jax.vjp(lambda params: lstm_jax.unroll(cell, params, xs, **options)[1], params)[1]

        return sum(a.size for a in jax.tree.leaves(jax.eval_shape(residuals, *shapes)))

    a_carry = 2 * B * 16
    everything, by_root, by_16 = remembered(None), remembered("sqrt"), remembered(16)
    assert by_root == remembered(8)
    assert by_root - by_16 == 4 * a_carry  # eight carries between windows, and four
    assert remembered(1) - by_root == (64 - 8) * a_carry
    assert remembered(1) < everything
    assert remembered(steps + 1) < by_16


# --- windows and single steps -------------------------------------------------------------------


@partial(jax.jit, static_argnames=("network", "sizes", "between", "reverse", "truncate", "implementation"))
def windows(network, sizes, params, xs, carry, flags, start, between, reverse, **options):
    """Windows of these sizes, the carry handed on through ``between``."""
    edges = np.cumsum((0, *sizes)).tolist()
    order = list(itertools.pairwise(edges))

    def f(params, xs, carry):
        results = {}
        for a, b in reversed(order) if reverse else order:
            said = {what: flags[what][a:b] for what in flags if what != "lengths"}
            said["lengths"] = jnp.clip(flags["lengths"] - a, 0, b - a)
            carry, results[a] = lstm_jax.unroll(
                network,
                params,
                xs[a:b],
                jax.tree.map(between, carry),
                start=start + a,
                reverse=reverse,
                return_carries=True,
                **said,
                **options,
            )
        return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *(results[a] for a, _ in order))

    return gradients(f, params, xs, carry)


def as_is(a):
    return a


@laws_over(
    "case, truncate, implementation",
    [(LSTM_CASE, truncate, how) for truncate in (None, 2) for how in ("scan", "auto")]
    + [(m, (None, 2)[index % 2], "auto") for index, m in enumerate(CAUSAL) if m is not LSTM_CASE],
    ids=_name,
    daily=lambda case, *how: case is LSTM_CASE and how == (2, "auto"),
)
def test_windows_are_the_whole(case, truncate, implementation):
    """Lengths and flags split by window. With start 5, one boundary between windows is a cut, one is not."""
    given = problem(case, seed=3)
    sizes = (3, 1, 3) if case is LSTM_CASE else (3, 4)
    options = {"truncate": truncate, "implementation": implementation}
    whole = solve(given, start=5, **options)
    parts = windows(
        given.network, sizes, given.params, given.xs, given.carry, given.flags, 5, as_is, False, **options
    )
    assert_same(parts, whole)


@laws_over("case", CAUSAL)
def test_steps_are_windows_of_one(case):
    """A Python loop over ``step``, from the own carry on, and going on where ``unroll`` stopped."""
    given = problem(case)
    xs = np.where(np.isfinite(given.xs), given.xs, 0.5)

    @jax.jit
    def three_ways(params, xs):
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

    whole, stepped, streamed = three_ways(given.params, xs)
    assert_same(stepped, whole)
    assert_same(streamed, whole)


# --- segments, absent steps, direction ----------------------------------------------------------


@spread_over_directions(LAWFUL)
def test_packed_segments_are_the_segments_apart(case, reverse, implementation):
    """Two or three segments, and an invalid step between the first two which says that it begins one."""
    given = problem(case)
    xs = np.where(np.isfinite(given.xs), given.xs, 0.5)
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

    def apart(params, xs, carry):
        ys = {}
        for a, b in reversed(segments) if reverse else segments:
            carry, ys[a] = lstm_jax.unroll(given.network, params, xs[a:b], carry, **options)
            last, carry = carry, None  # the first segment of the walk begins with what was given
        first, *others = (ys[a] for a, _ in segments)
        return (last if causal else None), jnp.concatenate([first, jnp.zeros_like(first[:1]), *others])

    # Both directions at once would hand the given carries to different segments.
    arguments = given.params, xs, given.carry if causal else None
    together, alone = jax.jit(lambda *a: (gradients(packed, *a), gradients(apart, *a)))(*arguments)
    assert_same(together, alone)


@spread_over_directions(LAWFUL)
def test_deleting_invalid_steps_changes_nothing_else(case, reverse, implementation):
    given = problem(case, batch=())
    kept = np.array([1, 2, 4, 6])
    mask, resets = np.zeros(T, bool), np.zeros(T, bool)
    mask[kept] = True
    resets[[0, 3, 4, 5]] = True  # 4 is the only valid one
    xs = np.where(helpers.over_events(mask, given.xs), np.where(np.isfinite(given.xs), given.xs, 0.5), np.nan)
    options = {"reverse": reverse, "implementation": implementation, "return_carries": True}

    def left_in(params, xs, carry):
        carry, out = lstm_jax.unroll(given.network, params, xs, carry, mask=mask, resets=resets, **options)
        return carry, jax.tree.map(lambda a: a[kept], out)

    def deleted(params, xs, carry):
        return lstm_jax.unroll(given.network, params, xs[kept], carry, resets=resets[kept], **options)

    @jax.jit
    def both(*a):
        return gradients(left_in, *a), gradients(deleted, *a)

    (out, grads), expected = both(given.params, xs, given.carry)
    assert_same((out, grads), expected)  # the gradient of what was deleted is zero, NaN or not


@laws_over("case", CAUSAL)
def test_reverse_is_flip_with_resets_shifted(case):
    """Walking back, the carry restarts between x_t that begins a segment and x_{t-1}."""
    given = problem(case)
    xs = np.where(np.isfinite(given.xs), given.xs, 0.5)
    resets = given.flags["resets"]
    shifted = np.concatenate([np.zeros_like(resets[:1]), resets[:0:-1]])

    def reverse(params, xs, carry):
        return lstm_jax.unroll(
            given.network, params, xs, carry, resets=resets, reverse=True, return_carries=True
        )

    def swap_carry_order(params, xs, carry):
        carry, out = lstm_jax.unroll(
            given.network, params, xs[::-1], carry, resets=shifted, return_carries=True
        )
        return carry, jax.tree.map(lambda a: a[::-1], out)

    @jax.jit
    def both(*a):
        return gradients(reverse, *a), gradients(swap_carry_order, *a)

    assert_same(*both(given.params, xs, given.carry))


def test_reverse_exchanges_the_directions():
    """A Bidirectional in reverse is the one with parameters, carries and halves of the output exchanged."""
    given = problem(BY_NAME["bidirectional"])
    for flags in (given.flags, given.flags | {"truncate": 2}):
        run = partial(lstm_jax.unroll, given.network, xs=given.xs, return_carries=True, **flags)
        one, (ys, carries) = run(given.params, carry=given.carry, reverse=True)
        swapped = lstm_jax.BidirectionalParams(given.params.backward, given.params.forward)
        other, (other_ys, other_carries) = run(swapped, carry=given.carry[::-1])
        assert_same((one, carries), (other[::-1], other_carries[::-1]))
        assert_same(ys, jnp.concatenate([other_ys[..., H:], other_ys[..., :H]], axis=-1))


# --- truncation ---------------------------------------------------------------------------------


@spread_over_directions(CAUSAL)
def test_truncated_is_windows_with_the_gradient_stopped(case, reverse, implementation):
    """With start 1 and period 3, the cuts lie before steps 2 and 5; some of the steps there are invalid."""
    period, sizes = (3, (2, 3, 2)) if case is LSTM_CASE else (4, (3, 4))
    given = problem(case)
    given.flags["resets"][:] = False
    given.flags["mask"][[2, 3, 5], 1] = False
    given = given._replace(
        xs=np.where(
            helpers.over_events(given.valid, given.xs), np.nan_to_num(given.xs, posinf=1, neginf=1), np.nan
        )
    )
    whole = solve(given, reverse=reverse, truncate=period, start=1, implementation=implementation)
    parts = windows(
        given.network,
        sizes,
        given.params,
        given.xs,
        given.carry,
        given.flags,
        1,
        jax.lax.stop_gradient,
        reverse,
        implementation=implementation,
    )
    (carry, out), (dparams, dxs, _) = whole
    (parts_carry, parts_out), (parts_dparams, parts_dxs, _) = parts
    assert_same((carry, out, dparams, dxs), (parts_carry, parts_out, parts_dparams, parts_dxs))
    untruncated = lstm_jax.unroll(
        given.network,
        given.params,
        given.xs,
        given.carry,
        reverse=reverse,
        return_carries=True,
        **given.flags,
    )
    assert_same((carry, out), untruncated)


@pytest.mark.parametrize("which", helpers.daily(["lstm", "leaky", "bidirectional", "stack_bidirectional"]))
@pytest.mark.parametrize("implementation", helpers.daily(["scan", "auto"], "auto"))
def test_no_gradient_crosses_a_cut(which, implementation):
    given = problem(BY_NAME[which])
    xs = np.where(np.isfinite(given.xs), given.xs, 0.5)

    @jax.jit
    def crossing(params, xs):
        def before_and_after(xs):
            run = partial(lstm_jax.unroll, given.network, params, xs, implementation=implementation)
            _, ys = run(truncate=4)
            _, plain = run()
            return total(ys[:4]), total(ys[4:]), total(plain[4:])

        return jax.jacrev(before_and_after)(xs)

    before, after, plain = crossing(given.params, xs)
    assert np.all(before[4:] == 0) and np.any(before[:4] != 0)
    assert np.all(after[:4] == 0) and np.any(after[4:] != 0)
    assert np.any(plain[:4] != 0)


@pytest.mark.parametrize("implementation", helpers.daily(["scan", "auto"], "auto"))
def test_where_truncation_leaves_the_first_carry_its_gradient(implementation):
    """The sequence's own beginning is not a cut, in either direction; a window's may be."""
    given = problem(LSTM_CASE, T=6)
    given = given._replace(xs=np.where(np.isfinite(given.xs), given.xs, 0.5), flags={})

    def carry_is_reached(**options):
        _, (_, _, dcarry) = solve(given, truncate=3, implementation=implementation, **options)
        return [bool(np.any(a != 0)) for a in dcarry]

    assert carry_is_reached(start=0) == [True, True]
    assert carry_is_reached(start=3) == [False, False]
    assert carry_is_reached(start=4) == [True, True]
    assert carry_is_reached(start=0, reverse=True) == [True, True]


# --- empty sequences -----------------------------------------------------------------------------


@laws_over("case", LAWFUL)
def test_all_steps_invalid(case):
    """The carry that was handed in comes back, and its gradient passes unchanged."""
    given = problem(case)
    for flags in ({"lengths": np.zeros(B, np.int32)}, {"mask": np.zeros((T, B), bool)}):
        absent = given._replace(xs=np.full_like(given.xs, np.nan), flags=given.flags | flags)
        (carry, (ys, carries)), (dparams, dxs, _) = solve(absent)
        assert_same(carry, jax.tree.map(jnp.asarray, given.carry), rtol=0, atol=0)
        assert_same(
            carries, jax.tree.map(lambda a: jnp.stack([jnp.asarray(a)] * T), given.carry), rtol=0, atol=0
        )
        assert every((ys, dxs, dparams), lambda a: a == 0)


@laws_over(
    "case, shape",
    [(case, shape) for case in LAWFUL for shape in ((0, 2), (4, 0))] + [(LSTM_CASE, (0, 0))],
    ids=_name,
)
def test_empty_sequences(case, shape):
    """No steps, no rows, neither."""
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
    assert ys.shape == (*shape, *event) and every(ys, lambda a: a == 0)
    assert all(a.shape[:2] == shape for a in jax.tree.leaves(carries))
    assert dxs.shape == empty.xs.shape and every((dparams, dxs), np.isfinite)


@pytest.mark.parametrize(
    "options", [{"checkpoint": "sqrt"}, {"checkpoint": 3}, {"reverse": True, "truncate": 2}]
)
@pytest.mark.parametrize("implementation", ["scan", "auto"])
def test_no_steps_under_every_option(options, implementation):
    given = problem(LSTM_CASE, T=1)
    flags = {"mask": np.ones((0, B), bool), "resets": np.ones((0, B), bool)}
    nothing = given._replace(xs=np.ones((0, B, D)), flags=flags)
    (carry, (ys, _)), (dparams, _, _) = solve(nothing, implementation=implementation, **options)
    assert_same(carry, jax.tree.map(jnp.asarray, given.carry), rtol=0, atol=0)
    assert ys.shape == (0, B, H) and every(dparams, lambda a: a == 0)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_lengths_of_any_integer_dtype(dtype):
    """More steps than an int8 counts."""
    given = problem(BY_NAME["rnn"], T=260, batch=(2,))
    xs = np.ones_like(given.xs)
    _, ys = lstm_jax.unroll(given.network, given.params, xs, lengths=jnp.asarray([5, 100], dtype))
    assert np.count_nonzero(np.any(ys != 0, axis=-1), axis=0).tolist() == [5, 100]


# --- learned initial carries --------------------------------------------------------------------


@pytest.mark.parametrize("implementation", helpers.daily(["scan", "auto"], "auto"))
def test_learned_initial_carry_receives_gradient(implementation):
    """Where it is used: at the beginning if no carry is given, and after resets."""
    given = problem(BY_NAME["lstm_learned"])
    xs = np.where(np.isfinite(given.xs), given.xs, 0.5)
    resets = np.zeros((T, B), bool)
    resets[4, 1] = True

    def reached(carry, flags):
        _, (dparams, _, _) = solve(
            Problem(given.network, given.params, xs, given.carry, flags),
            carry=carry,
            implementation=implementation,
        )
        return [bool(np.any(a != 0)) for a in dparams.initial]

    assert reached(False, {}) == [True, True]
    assert reached(True, {}) == [False, False]
    assert reached(True, {"resets": resets}) == [True, True]
    assert reached(True, {"resets": np.zeros_like(resets)}) == [False, False]
    assert reached(True, {"resets": resets, "mask": ~resets}) == [False, False]


# --- noise --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Echo:
    """A cell without state that says what it hears, so that a stack of two shows its dropout mask."""

    input_size: int = 20
    output_size: int = 20

    def init(self, key):
        return ()

    def initial_carry(self, batch_shape=(), params=None):
        return ()

    def step(self, params, carry, x):
        return carry, x


def masks(key, *, layers=2, T=40, rows=5, **options):
    """What dropout makes of ones."""
    arguments = {
        name: options.pop(name) for name in ("start", "reverse", "mask", "lengths") if name in options
    }
    network = Stack((Echo(),) * layers, **{"dropout": 0.25} | options)
    _, ys = lstm_jax.unroll(network, ((),) * layers, jnp.ones((T, rows, 20)), key=key, **arguments)
    return np.asarray(ys)


KEY, OTHER_KEY = jax.random.key(1), jax.random.key(2)
MASKS = pytest.mark.parametrize("dropout_mask", ["step", "sequence"])


@MASKS
def test_dropout_keeps_its_share_and_scales_it(dropout_mask):
    ys = masks(KEY, dropout_mask=dropout_mask, rows=100)
    np.testing.assert_allclose(np.unique(ys), [0, 4 / 3])
    assert abs(np.mean(ys == 0) - 0.25) < 0.03
    assert abs(np.mean(ys) - 1) < 0.04


@MASKS
def test_noise_needs_a_key_and_is_the_key(dropout_mask):
    assert np.all(masks(None, dropout_mask=dropout_mask) == 1)
    assert np.all(masks(KEY, dropout_mask=dropout_mask, dropout=0.0) == 1)
    np.testing.assert_array_equal(
        masks(KEY, dropout_mask=dropout_mask), masks(KEY, dropout_mask=dropout_mask)
    )
    assert np.any(masks(KEY, dropout_mask=dropout_mask) != masks(OTHER_KEY, dropout_mask=dropout_mask))


def test_old_style_keys_make_noise_too():
    ys = masks(jax.random.PRNGKey(1))
    assert 0 < np.mean(ys == 0) < 0.5


def test_a_mask_a_step_or_one_for_the_sequence():
    by_step, by_sequence = masks(KEY), masks(KEY, dropout_mask="sequence")
    assert len(np.unique(by_step, axis=0)) == len(by_step)
    assert len(np.unique(by_sequence, axis=0)) == 1
    for ys in (by_step, by_sequence):  # rows are never dropped together
        assert len(np.unique(ys, axis=1)) > 1 and len(np.unique(ys[0], axis=0)) == ys.shape[1]


@MASKS
def test_windows_repeat_the_noise_of_the_whole(dropout_mask):
    whole = masks(KEY, dropout_mask=dropout_mask, start=3)
    parts = [masks(KEY, dropout_mask=dropout_mask, T=20, start=start) for start in (3, 23)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    traced = jax.jit(partial(_masks_at, dropout_mask))(23)
    np.testing.assert_array_equal(traced, whole[20:])


def _masks_at(dropout_mask, start):
    network = Stack((Echo(), Echo()), dropout=0.25, dropout_mask=dropout_mask)
    return lstm_jax.unroll(network, ((), ()), jnp.ones((20, 5, 20)), key=KEY, start=start)[1]


def test_noise_belongs_to_the_time_index():
    """Neither the direction nor the other steps' absence moves it."""
    plain = masks(KEY)
    np.testing.assert_array_equal(masks(KEY, reverse=True), plain)
    mask = np.random.default_rng(0).random((40, 5)) < 0.5
    np.testing.assert_array_equal(masks(KEY, mask=mask), np.where(mask[..., None], plain, 0))


@MASKS
def test_every_gap_has_noise_of_its_own(dropout_mask):
    ys = masks(KEY, layers=3, dropout_mask=dropout_mask, rows=100)
    np.testing.assert_allclose(np.unique(ys), [0, 16 / 9])
    assert abs(np.mean(ys != 0) - 0.75**2) < 0.04


def test_what_residual_adds_is_not_dropped():
    np.testing.assert_allclose(np.unique(masks(KEY, residual=True)), [1, 1 + 4 / 3])


def test_both_directions_have_noise_of_their_own():
    network = Bidirectional(Stack((Echo(), Echo()), dropout=0.5))
    _, ys = lstm_jax.unroll(network, (((), ()),) * 2, jnp.ones((40, 5, 20)), key=KEY)
    assert np.any(ys[..., :20] != ys[..., 20:])
    np.testing.assert_allclose(np.unique(ys), [0, 2])


def test_stacks_inside_stacks_have_noise_of_their_own():
    inner = Stack((Echo(), Echo()), dropout=0.5)
    _, once = lstm_jax.unroll(inner, ((), ()), jnp.ones((40, 5, 20)), key=KEY)
    _, twice = lstm_jax.unroll(Stack((inner, inner)), (((), ()),) * 2, jnp.ones((40, 5, 20)), key=KEY)
    assert abs(np.mean(once == 0) - 0.5) < 0.05
    assert abs(np.mean(twice == 0) - 0.75) < 0.05


def test_a_step_has_no_noise():
    network = Stack((Echo(), Echo()), dropout=0.5)
    _, y = network.step(((), ()), ((), ()), jnp.ones((5, 20)))
    assert np.all(y == 1)


@pytest.mark.slow
@MASKS
def test_all_ways_see_the_same_noise(dropout_mask):
    """Values and gradients; a checkpointed backward pass draws what the forward drew; windows too."""
    network = Stack(
        (LSTM(D, 8, param_dtype="float64"), GRU(8, H, param_dtype="float64")),
        dropout=0.5,
        dropout_mask=dropout_mask,
    )
    given = problem(cell_case.CellCase("dropout", lambda **dtypes: network, None), seed=4)
    reference = solve(given, implementation="scan", key=KEY)
    _, quiet = lstm_jax.unroll(network, given.params, given.xs, given.carry, **given.flags)
    assert np.any(quiet != reference[0][1][0])
    assert_same(solve(given, key=KEY, checkpoint=3), reference)
    assert_same(solve(given, key=KEY, implementation="scan", checkpoint="sqrt"), reference)


@pytest.mark.slow
def test_windows_of_a_network_see_the_noise_of_the_whole():
    network = Stack((LSTM(D, 8, param_dtype="float64"), GRU(8, H, param_dtype="float64")), dropout=0.5)
    given = problem(cell_case.CellCase("dropout", lambda **dtypes: network, None), seed=4)
    whole = solve(given, key=KEY, start=2)
    parts = windows(
        network, (3, 4), given.params, given.xs, given.carry, given.flags, 2, as_is, False, key=KEY
    )
    assert_same(parts, whole)


# --- windows longer than the sequence -----------------------------------------------------------


@pytest.mark.parametrize(
    "which", helpers.daily(["lstm", "gru_reset_before", "min_gru", "stack_bidirectional"], "lstm", "min_gru")
)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_checkpoint_longer_than_the_sequence_changes_nothing(which, steps):
    """The last batch of a data set is often shorter than the window length."""
    given = problem(BY_NAME[which])
    given = given._replace(xs=np.zeros((steps, *given.xs.shape[1:])), flags={})
    expected = solve(given)
    for checkpoint in (steps + 1, 100, "sqrt"):
        assert_same(solve(given, checkpoint=checkpoint), expected)
        plan = lstm_jax.explain(given.network, given.params, given.xs, checkpoint=checkpoint)
        assert plan.implementation in ("fused", "scan", "fused+scan")


# --- reset_carry --------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["lstm", "slstm", "stack_bidirectional"])
def test_reset_carry_is_what_resets_do(which):
    """Rows with a reset go back to the initial carry, learned or not; the others are untouched."""
    case = BY_NAME[which]
    given = problem(case)
    batch = given.xs.shape[1:2]
    reset = np.arange(batch[0]) % 2 == 1
    initial = given.network.initial_carry(batch, given.params)
    found = lstm_jax.reset_carry(given.network, given.params, given.carry, reset)
    assert jax.tree.structure(found) == jax.tree.structure(initial)
    for after, before, first in zip(*map(jax.tree.leaves, (found, given.carry, initial)), strict=True):
        np.testing.assert_array_equal(after[reset], first[reset])
        np.testing.assert_array_equal(after[~reset], before[~reset])


def test_reset_carry_then_step_is_unroll_with_resets():
    """Acting step by step with reset_carry gives what unroll gives with resets."""
    given = problem(BY_NAME["lstm"])
    rng = np.random.default_rng(0)
    xs, resets = rng.normal(size=given.xs.shape), rng.random(given.xs.shape[:2]) < 0.4
    carry, ys = given.carry, []
    for x, reset in zip(xs, resets, strict=True):
        carry = lstm_jax.reset_carry(given.network, given.params, carry, reset)
        carry, y = given.network.step(given.params, carry, x)
        ys.append(y)
    expected = lstm_jax.unroll(given.network, given.params, xs, given.carry, resets=resets)
    assert_same((carry, jnp.stack(ys)), expected)


@pytest.mark.parametrize(
    "carry, reset, words",
    [
        ((np.ones((4, 2)),) * 2, np.ones(4), "reset of dtype float64; expected bool"),
        (np.ones((4, 2)), np.ones(4, bool), "expected (float"),
        ((np.ones((4, 2)),) * 2, np.ones(3, bool), "carry[0] of shape (4, 2); expected shape (3, 2)"),
    ],
    ids=["numbers", "structure", "shape"],
)
def test_reset_carry_refuses(carry, reset, words):
    cell = lstm_jax.LSTM(3, 2)
    with pytest.raises(ValueError, match="reset_carry got") as refusal:
        lstm_jax.reset_carry(cell, cell.init(jax.random.key(0)), carry, reset)
    assert words in str(refusal.value)
