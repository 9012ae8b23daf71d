"""The laws of ``laws.py`` over the table of cells, and parts of the time contract for single cells.

``make test`` runs the LSTM and the GRU under a few options, ``make test-slow`` everything else.
"""

import itertools
from functools import partial

import cell_case
import cell_cases
import helpers
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import user_cells
from cell_case import D, H
from cell_cases import BY_NAME
from helpers import Problem, assert_same, every, finite, is_zero, problem, total
from laws import LSTM_CASE, B, T, solve, windows

import lstm_jax
from lstm_jax import LSTM

pytestmark = pytest.mark.usefixtures("x64")

CASES = cell_cases.table(lambda case: not case.variant)
CAUSAL = [case for case in CASES if case.causal]


def is_daily(case, *_):
    return case.name in cell_cases.DAILY


def over_cases(names, rows, ids=cell_cases.name, daily=is_daily):
    """Parametrize over rows that begin with a case. Rows that are not ``daily`` are slow."""

    def marked(row):
        entries = row if isinstance(row, tuple) and not isinstance(row, cell_case.CellCase) else (row,)
        return pytest.param(*entries, marks=() if daily(*entries) else pytest.mark.slow)

    return pytest.mark.parametrize(names, [marked(row) for row in rows], ids=ids)


def over_directions(cases):
    """Each case with one direction, in turn; the LSTM with both directions and implementations.

    Only two rows of the LSTM are not slow: one for each direction and implementation.
    """
    rows = []
    for index, case in enumerate(cases):
        if case is LSTM_CASE:
            rows += [(case, reverse, how) for reverse in (False, True) for how in ("scan", "auto")]
        else:
            rows.append((case, index % 2 == 1, "auto"))

    def daily(case, reverse, implementation):
        return case is LSTM_CASE and reverse == (implementation == "scan")

    return over_cases("case, reverse, implementation", rows, ids=_name, daily=daily)


def _name(value):
    if isinstance(value, bool):
        return "reverse" if value else "forward"
    return getattr(value, "name", str(value))


# --- implementations and checkpoints ------------------------------------------------------------


def pairwise(**axes):
    """Rows such that every pair of values of two axes occurs in some row; greedy and deterministic."""

    def pairs(row):
        return set(itertools.combinations(enumerate(row), 2))

    rows = list(itertools.product(*(range(len(values)) for values in axes.values())))
    missing = set().union(*map(pairs, rows))
    while missing:
        row = max(rows, key=lambda row: len(pairs(row) & missing))
        missing -= pairs(row)
        yield tuple(values[index] for values, index in zip(axes.values(), row, strict=True))


#: Pairs of implementation and checkpoint.
WAYS = [("auto", None), ("auto", 4), ("auto", "sqrt"), ("scan", 1), ("auto", T + 2)]
CONDITIONS = {"reverse": [False, True], "truncate": [None, 2], "flagged": [False, True]}
OTHERS = [case for case in CASES if case is not LSTM_CASE]
#: All rows of the LSTM; for each other case one fixed row and a pairwise cover.
ROWS = [(LSTM_CASE, *row) for row in itertools.product(WAYS, *CONDITIONS.values())]
ROWS += [(case, ("auto", 4), n % 2 == 1, (None, 2)[n % 2], True) for n, case in enumerate(OTHERS)]
ROWS += [row for row in pairwise(case=OTHERS, way=WAYS[:4], **CONDITIONS) if row not in ROWS]
#: One test for all ways under the same conditions, so that the reference is compiled once.
WAYS_OF = {}
for _case, _way, *_conditions in ROWS:
    WAYS_OF.setdefault((_case.name, *_conditions), []).append(_way)

#: Any two values of direction, truncation and flags occur together in one of these four.
DAILY_CONDITIONS = [(False, None, False), (False, 2, True), (True, None, True), (True, 2, False)]
GRU_ROW = next(row for row in WAYS_OF if row[0] == "gru" and row[3])
#: Two ways for each condition of the LSTM, and one row of the GRU.
DAILY_WAYS = {("lstm", *row): WAYS[n : n + 2] for n, row in enumerate(DAILY_CONDITIONS)}
DAILY_WAYS[GRU_ROW] = [("auto", 4)]


@pytest.mark.parametrize("row", DAILY_WAYS, ids=lambda row: "-".join(map(str, row)))
def test_implementations_and_checkpoints_agree_with_the_plain_scan(row):
    check_row(row, DAILY_WAYS[row])


@pytest.mark.slow
@pytest.mark.parametrize("row", WAYS_OF, ids=lambda row: "-".join(map(str, row)))
def test_all_implementations_and_checkpoints_agree_with_the_plain_scan(row):
    check_row(row, WAYS_OF[row])


def check_row(row, ways):
    name, reverse, truncate, flagged = row
    laws.check_implementations(BY_NAME[name], ways, reverse=reverse, truncate=truncate, flagged=flagged)


@pytest.mark.parametrize("which", helpers.daily(["gru", "peephole", "stack_residual_skip"]))
def test_forward_mode_of_the_fused_scan_agrees_with_the_plain_scan(which):
    """Two of the cells have a constant in ``recur``, which does not appear in tangents."""
    given = problem(BY_NAME[which])
    tangents = helpers.random_like(np.random.default_rng(1), (given.params, given.xs, given.carry))

    @partial(jax.jit, static_argnames="implementation")
    def jvp(primals, tangents, implementation):
        def f(params, xs, carry):
            options = {"return_carries": True, "implementation": implementation} | given.flags
            return lstm_jax.unroll(given.network, params, xs, carry, **options)

        return jax.jvp(f, primals, tangents)

    primals = given.params, given.xs, given.carry
    fused, plain = (jvp(primals, tangents, implementation) for implementation in ("auto", "scan"))
    assert_same(fused, plain)
    assert np.any(fused[1][1][0] != 0)


class Counting(user_cells.Peephole):
    """A split cell that also counts its steps in integers, which have no tangents."""

    def initial_carry(self, batch_shape=(), params=None):
        return super().initial_carry(batch_shape), jnp.zeros(batch_shape, jnp.int32)

    def recur(self, params, carry, u):
        return super().recur(params, carry[0], u)

    def update(self, params, carry, z):
        floats, y = super().update(params, carry[0], z)
        steps = carry[1] + 1
        return (floats, steps), y / steps[..., None].astype(y.dtype)


def test_auto_supports_a_split_cell_with_integers_in_its_carry():
    given = problem(cell_case.CellCase("counting", Counting, None))
    assert_same(solve(given), solve(given, implementation="scan"))


@pytest.mark.parametrize("implementation", helpers.daily(["scan", "auto"], "auto"))
def test_checkpoint_determines_how_much_the_backward_pass_stores(implementation):
    cell, steps = LSTM(D, 16), 64
    shapes = jax.eval_shape(cell.init, jax.random.key(0)), jax.ShapeDtypeStruct((steps, B, D), "float32")

    def stored(checkpoint):
        options = {"checkpoint": checkpoint, "implementation": implementation}
        return helpers.residual_size(lambda *args: lstm_jax.unroll(cell, *args, **options)[1], *shapes)

    carry = 2 * B * 16
    assert stored("sqrt") == stored(8)
    assert stored("sqrt") - stored(16) == 4 * carry  # eight carries between windows, and four
    assert stored(1) - stored("sqrt") == (64 - 8) * carry
    assert stored(1) < stored(None)
    assert stored(steps + 1) < stored(16)


# --- windows and single steps -------------------------------------------------------------------


@over_cases(
    "case, truncate, implementation",
    [(LSTM_CASE, truncate, how) for truncate in (None, 2) for how in ("scan", "auto")]
    + [(m, (None, 2)[index % 2], "auto") for index, m in enumerate(CAUSAL) if m is not LSTM_CASE],
    ids=_name,
    daily=lambda case, *how: case is LSTM_CASE and how == (2, "auto"),
)
def test_windows_equal_the_whole_sequence(case, truncate, implementation):
    laws.check_windows(case, truncate, implementation)


@over_cases("case", CAUSAL)
def test_single_steps_equal_unroll(case):
    laws.check_single_steps(case)


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


# --- segments, invalid steps, direction ---------------------------------------------------------


@over_directions(CASES)
def test_packed_segments_equal_separate_segments(case, reverse, implementation):
    laws.check_packed_segments(case, reverse, implementation)


@over_directions(CASES)
def test_deleting_invalid_steps_changes_nothing_else(case, reverse, implementation):
    laws.check_deleted_steps(case, reverse, implementation)


@over_cases("case", CAUSAL)
def test_reverse_equals_flipped_inputs(case):
    laws.check_reverse_is_flip(case)


def test_reverse_exchanges_the_directions_of_a_bidirectional():
    """It equals the call with exchanged parameters, carries and halves of the output."""
    given = problem(BY_NAME["bidirectional"])
    for flags in (given.flags, given.flags | {"truncate": 2}):
        run = partial(lstm_jax.unroll, given.network, xs=given.xs, return_carries=True, **flags)
        one, (ys, carries) = run(given.params, carry=given.carry, reverse=True)
        swapped = lstm_jax.BidirectionalParams(given.params.backward, given.params.forward)
        other, (other_ys, other_carries) = run(swapped, carry=given.carry[::-1])
        assert_same((one, carries), (other[::-1], other_carries[::-1]))
        assert_same(ys, jnp.concatenate([other_ys[..., H:], other_ys[..., :H]], axis=-1))


# --- truncation ---------------------------------------------------------------------------------


@over_directions(CAUSAL)
def test_truncate_equals_windows_with_stopped_gradients(case, reverse, implementation):
    """With start 1 and period 3, the cuts are before steps 2 and 5, near invalid steps."""
    period, sizes = (3, (2, 3, 2)) if case is LSTM_CASE else (4, (3, 4))
    given = problem(case)
    given.flags["resets"][:] = False
    given.flags["mask"][[2, 3, 5], 1] = False
    valid = helpers.over_events(given.valid, given.xs)
    given = given._replace(xs=np.where(valid, np.nan_to_num(given.xs, posinf=1, neginf=1), np.nan))
    options = {"implementation": implementation}
    whole = solve(given, reverse=reverse, truncate=period, start=1, **options)
    arguments = given.params, given.xs, given.carry, given.flags
    parts = windows(given.network, sizes, *arguments, 1, jax.lax.stop_gradient, reverse, **options)
    (carry, out), (dparams, dxs, _) = whole
    (parts_carry, parts_out), (parts_dparams, parts_dxs, _) = parts
    assert_same((carry, out, dparams, dxs), (parts_carry, parts_out, parts_dparams, parts_dxs))
    arguments = given.params, given.xs, given.carry
    untruncated = lstm_jax.unroll(
        given.network, *arguments, reverse=reverse, return_carries=True, **given.flags
    )
    assert_same((carry, out), untruncated)


@pytest.mark.parametrize("which", helpers.daily(["lstm", "leaky", "bidirectional", "stack_bidirectional"]))
@pytest.mark.parametrize("implementation", helpers.daily(["scan", "auto"], "auto"))
def test_truncate_stops_all_gradients_across_a_cut(which, implementation):
    given = finite(problem(BY_NAME[which]))

    @jax.jit
    def jacobians(params, xs):
        def before_and_after(xs):
            run = partial(lstm_jax.unroll, given.network, params, xs, implementation=implementation)
            _, ys = run(truncate=4)
            _, plain = run()
            return total(ys[:4]), total(ys[4:]), total(plain[4:])

        return jax.jacrev(before_and_after)(xs)

    before, after, plain = jacobians(given.params, given.xs)
    assert np.all(before[4:] == 0) and np.any(before[:4] != 0)
    assert np.all(after[:4] == 0) and np.any(after[4:] != 0)
    assert np.any(plain[:4] != 0)


@pytest.mark.parametrize("implementation", helpers.daily(["scan", "auto"], "auto"))
def test_truncate_and_the_gradient_of_the_given_carry(implementation):
    """The beginning of the sequence is not a cut, in either direction; that of a later window may be."""
    given = finite(problem(LSTM_CASE, T=6))

    def has_gradient(**options):
        _, (_, _, dcarry) = solve(given, truncate=3, implementation=implementation, **options)
        return [bool(np.any(a != 0)) for a in dcarry]

    assert has_gradient(start=0) == [True, True]
    assert has_gradient(start=3) == [False, False]
    assert has_gradient(start=4) == [True, True]
    assert has_gradient(start=0, reverse=True) == [True, True]


# --- empty sequences -----------------------------------------------------------------------------


@over_cases("case", CASES)
def test_all_steps_invalid(case):
    laws.check_all_steps_invalid(case)


@over_cases(
    "case, shape",
    [(case, shape) for case in CASES for shape in ((0, 2), (4, 0))] + [(LSTM_CASE, (0, 0))],
    ids=_name,
)
def test_empty_sequences(case, shape):
    laws.check_empty(case, shape)


@pytest.mark.parametrize(
    "options", [{"checkpoint": "sqrt"}, {"checkpoint": 3}, {"reverse": True, "truncate": 2}]
)
@pytest.mark.parametrize("implementation", ["scan", "auto"])
def test_no_steps_with_options(options, implementation):
    given = problem(LSTM_CASE, T=1)
    flags = {"mask": np.ones((0, B), bool), "resets": np.ones((0, B), bool)}
    empty = given._replace(xs=np.ones((0, B, D)), flags=flags)
    (carry, (ys, _)), (dparams, _, _) = solve(empty, implementation=implementation, **options)
    assert_same(carry, jax.tree.map(jnp.asarray, given.carry), rtol=0, atol=0)
    assert ys.shape == (0, B, H) and every(dparams, is_zero)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_lengths_of_any_integer_dtype(dtype):
    """Also if T does not fit into an int8."""
    given = problem(BY_NAME["rnn"], T=260, batch=(2,))
    xs = np.ones_like(given.xs)
    _, ys = lstm_jax.unroll(given.network, given.params, xs, lengths=jnp.asarray([5, 100], dtype))
    assert np.count_nonzero(np.any(ys != 0, axis=-1), axis=0).tolist() == [5, 100]


# --- learned initial carries --------------------------------------------------------------------


@pytest.mark.parametrize("implementation", helpers.daily(["scan", "auto"], "auto"))
def test_learned_initial_carry_receives_a_gradient_where_it_is_used(implementation):
    """It is used at the beginning if no carry is given, and after resets of valid steps."""
    given = finite(problem(BY_NAME["lstm_learned"]))
    resets = np.zeros((T, B), bool)
    resets[4, 1] = True

    def has_gradient(carry, flags):
        with_flags = Problem(given.network, given.params, given.xs, given.carry, flags)
        _, (dparams, _, _) = solve(with_flags, carry=carry, implementation=implementation)
        return [bool(np.any(a != 0)) for a in dparams.initial]

    assert has_gradient(False, {}) == [True, True]
    assert has_gradient(True, {}) == [False, False]
    assert has_gradient(True, {"resets": resets}) == [True, True]
    assert has_gradient(True, {"resets": np.zeros_like(resets)}) == [False, False]
    assert has_gradient(True, {"resets": resets, "mask": ~resets}) == [False, False]
