"""Comparison of all cases with the NumPy oracle, under all parts of the time contract."""

from functools import partial

import cell_case
import cell_cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_newer
import pytest
from cell_cases import BY_NAME
from helpers import assert_same, daily, finite, problem, slow

import lstm_jax

#: Each case under "auto", and under the plain scan if "auto" chooses another implementation.
ROWS = [(case, "auto") for case in cell_cases.CELL_CASES]
ROWS += [
    (case, "scan") for case in cell_cases.CELL_CASES if case.implementation != "scan" and not case.variant
]


#: Cases that the everyday tests run in both directions.
BOTH = ("lstm", "gru", "stack_bidirectional")


def _name(value):
    if isinstance(value, bool):
        return "reverse" if value else "forward"
    return getattr(value, "name", value)


def both_directions(offset, flags):
    """Forward and in reverse; one of the two, in turn, is slow, except for the cells of ``BOTH``.

    With ``flags``, variants are slow. Without, the plain scan is slow where "auto" does not choose it.
    """
    rows = []
    for index, (case, implementation) in enumerate(ROWS):
        for reverse in (False, True):
            is_slow = case.name not in BOTH and reverse == ((index + offset) % 2 == 0)
            is_slow |= case.variant if flags else implementation == "scan"
            rows.append(
                pytest.param(case, implementation, reverse, marks=pytest.mark.slow if is_slow else ())
            )
    return pytest.mark.parametrize("case, implementation, reverse", rows, ids=_name)


def as_float64(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def by_oracle(case, given, flags, *, carry, reverse=False):
    """The oracle's result, in the structure of ``unroll`` with ``return_carries``."""
    params, xs = as_float64((given.params, given.xs))
    options = {name: np.asarray(flag) for name, flag in flags.items()}
    carry = as_float64(given.carry) if carry else None
    options["event_ndim"] = len(case.event)
    result = oracle.unroll(case.oracle, params, xs, carry, reverse=reverse, **options)
    return result.carry, (result.ys, result.carries)


def check(case, given, *, carry, reverse, implementation):
    expected = by_oracle(case, given, given.flags, carry=carry, reverse=reverse)
    result = lstm_jax.unroll(
        given.network,
        given.params,
        given.xs,
        given.carry if carry else None,
        reverse=reverse,
        return_carries=True,
        implementation=implementation,
        **given.flags,
    )
    assert_same(as_float64(result), as_float64(expected), note=f"{case.name} with {list(given.flags)}")


@pytest.mark.usefixtures("x64")
@both_directions(0, flags=False)
def test_plain_sequences(case, implementation, reverse):
    check(case, finite(problem(case)), carry=False, reverse=reverse, implementation=implementation)


@pytest.mark.usefixtures("x64")
@both_directions(1, flags=True)
def test_lengths_mask_and_resets(case, implementation, reverse):
    """Flags without effect replace those that are not tested, so there is one compiled program."""
    given = problem(case)
    assert np.isnan(given.xs).any() and np.isinf(given.xs).any()
    flags, shape = given.flags, given.valid.shape
    no_effect = {
        "lengths": np.full(shape[1], 7, np.int32),
        "mask": np.ones(shape, bool),
        "resets": np.zeros(shape, bool),
    }
    problems = [given, problem(case, seed=1)]
    problems += [finite(given, **(no_effect | {name: flags[name]})) for name in flags]
    for one in problems:
        check(case, one, carry=True, reverse=reverse, implementation=implementation)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "case",
    daily(cell_cases.table(lambda m: not m.variant), *(BY_NAME[name] for name in (*BOTH, "slstm", "mlstm"))),
    ids=cell_cases.name,
)
def test_resets_without_a_given_carry(case):
    check(case, problem(case, seed=2), carry=False, reverse=False, implementation="auto")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("which", ["lstm", "gru_reset_before"])
@pytest.mark.parametrize("one", ["lengths", "mask", "resets"])
def test_each_flag_alone(which, one):
    given = problem(BY_NAME[which])
    given = finite(given, **{one: given.flags[one]})
    check(BY_NAME[which], given, carry=True, reverse=True, implementation="auto")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("batch", [(), (2, 2)], ids=str)
@pytest.mark.parametrize(
    "which",
    [
        "lstm",
        "bidirectional",
        "stack_bidirectional",
        "leaky",
        "peephole",
        "indrnn",
        "slstm",
        "mlstm",
        "conv_lstm",
        "conv_lstm_2d",
        "leaky_rnn",
        "min_gru",
        "min_both_ways",
    ],
)
def test_batch_axes(which, batch):
    given = problem(BY_NAME[which], batch=batch, T=5)
    check(BY_NAME[which], given, carry=True, reverse=batch == (), implementation="auto")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", cell_cases.table(), ids=cell_cases.name)
def test_auto_chooses_the_implementation_of_the_table(case):
    given = problem(case)
    assert lstm_jax.explain(given.network, given.params, given.xs).implementation == case.implementation


@pytest.mark.usefixtures("x64")
def test_fused_by_name_equals_auto():
    given = problem(BY_NAME["lstm"])
    by_name, auto = (
        lstm_jax.unroll(given.network, given.params, given.xs, implementation=how, **given.flags)
        for how in ("fused", "auto")
    )
    assert_same(by_name, auto, rtol=0, atol=0)


# --- the free step functions --------------------------------------------------------------------

STEPS = {
    "rnn": (partial(lstm_jax.rnn_step, activation=jnp.tanh), oracle.rnn),
    "lstm": (lstm_jax.lstm_step, oracle.lstm),
    "gru": (lstm_jax.gru_step, oracle.gru_reset_after),
    "gru_reset_before": (None, oracle.gru_reset_before),  # cell.step: variants have no free step
    "indrnn": (partial(lstm_jax.indrnn_step, activation=jax.nn.relu), oracle_newer.indrnn),
    "slstm": (partial(lstm_jax.slstm_step, forget_gate="sigmoid"), oracle_newer.slstm),
    "mlstm": (partial(lstm_jax.mlstm_step, forget_gate="sigmoid"), oracle_newer.mlstm),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("which", STEPS)
def test_step_functions(which):
    step, equations = STEPS[which]
    given = problem(BY_NAME[which], batch=())
    x = np.array([0.3, -1.2, 2.0])
    result = jax.jit(step or given.network.step)(given.params, given.carry, x)
    assert_same(as_float64(result), equations(given.params, given.carry, x))


@pytest.mark.usefixtures("x64")
def test_gates_agree_with_the_step():
    given = problem(BY_NAME["lstm"], batch=())
    (h, c), x = given.carry, np.array([0.3, -1.2, 2.0])
    gates = jax.jit(lstm_jax.lstm_gates)(given.params, given.carry, x)
    for index, (gate, f) in enumerate(
        zip(gates, (oracle.sigmoid, oracle.sigmoid, np.tanh, oracle.sigmoid), strict=True)
    ):
        np.testing.assert_allclose(gate, f(oracle.preactivation(given.params, index, h, x)), rtol=1e-12)
    (h_t, c_t), _ = jax.jit(lstm_jax.lstm_step)(given.params, given.carry, x)
    np.testing.assert_allclose(c_t, gates.f * c + gates.i * gates.g, rtol=1e-12)
    np.testing.assert_allclose(h_t, gates.o * np.tanh(c_t), rtol=1e-12)


# --- low precision ------------------------------------------------------------------------------

#: Absolute tolerances after seven steps. The error of a wrong gate is larger, as a test below checks.
TOLERANCES = {"float32": 2e-6, "float16": 4e-3, "bfloat16": 3e-2}
CLASSIC = ("rnn", "lstm", "lstm_learned", "gru", "gru_reset_before", "bidirectional", "stack_residual_skip")
NEWER = ("indrnn", "slstm", "mlstm", "min_gru", "min_lstm")


def error(result, expected):
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True)
    return max(np.max(np.abs(np.asarray(a, np.float64) - b)) for a, b in pairs)


@pytest.mark.parametrize("which", CLASSIC + NEWER)
@pytest.mark.parametrize(
    "compute, implementation, reverse",
    [
        slow("float32", "auto", True),
        ("bfloat16", "auto", False),
        slow("bfloat16", "scan", True),
        slow("float16", "auto", True),
    ],
)
def test_low_precision(which, compute, implementation, reverse):
    case = BY_NAME[which]
    given = problem(case, dtype=np.float32, compute=compute)
    expected = by_oracle(case, given, given.flags, carry=False, reverse=reverse)
    result = lstm_jax.unroll(
        given.network,
        given.params,
        given.xs,
        reverse=reverse,
        return_carries=True,
        implementation=implementation,
        **given.flags,
    )
    assert result[1][0].dtype == compute
    assert error(result, expected) < TOLERANCES[compute]


@pytest.mark.parametrize("which", ["lstm", "gru", "gru_reset_before"])
@pytest.mark.parametrize("swap", [(0, 1), (1, 2), (0, 2)], ids=str)
def test_the_error_of_a_wrong_gate_exceeds_the_tolerances(which, swap):
    case = BY_NAME[which]
    given = problem(case, dtype=np.float32)
    order = np.arange(given.params.w_hh.shape[1] // cell_case.H)
    order[list(swap)] = order[list(swap)[::-1]]
    columns = (order[:, None] * cell_case.H + np.arange(cell_case.H)).ravel()
    wrong = given.params._replace(
        w_ih=given.params.w_ih[:, columns],
        w_hh=given.params.w_hh[:, columns],
        bias=given.params.bias[columns],
    )
    right, swapped = (
        by_oracle(case, given._replace(params=params), given.flags, carry=False)
        for params in (given.params, wrong)
    )
    assert error(right, swapped) > 5 * max(TOLERANCES.values())


def dtypes(f, *arguments):
    """The dtypes of the result of ``f``."""
    return [a.dtype.name for a in jax.tree.leaves(jax.eval_shape(f, *arguments))]


@pytest.mark.parametrize("which", STEPS)
@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
@pytest.mark.parametrize("implementation", ["scan", "auto"])
def test_low_precision_keeps_sums_in_float32(which, compute, implementation):
    """h and the outputs have the compute dtype; c and the parameters are float32."""
    cell = BY_NAME[which].build(dtype=compute, param_dtype="float32")
    assert set(dtypes(cell.init, jax.random.key(0))) == {"float32"}
    params = cell.init(jax.random.key(0))
    for given in (None, cell.initial_carry((2,), params)):
        carry_and_ys = dtypes(
            lambda carry: lstm_jax.unroll(
                cell, params, jnp.ones((4, 2, 3)), carry, implementation=implementation
            ),
            given,
        )
        own = {"lstm": [compute, "float32"], "slstm": [compute, *["float32"] * 3], "mlstm": ["float32"] * 3}
        assert carry_and_ys == [*own.get(which, [compute]), compute]


@pytest.mark.usefixtures("x64")
def test_low_precision_with_float64_parameters():
    cell = lstm_jax.LSTM(3, 2, dtype="bfloat16", param_dtype="float64")
    params = cell.init(jax.random.key(0))
    assert dtypes(lambda: lstm_jax.unroll(cell, params, jnp.ones((4, 2, 3)))) == [
        "bfloat16",
        "float64",
        "bfloat16",
    ]


@pytest.mark.parametrize("which", [which for which in STEPS if which != "mlstm"])  # its carry has no h
@pytest.mark.parametrize("given", ["float16", "bfloat16", "float32"])
def test_step_returns_the_dtypes_of_the_given_carry(which, given):
    x = jnp.ones((2, 3))
    for compute in (None, "bfloat16"):
        cell = BY_NAME[which].build(param_dtype="float32", dtype=compute)
        params = cell.init(jax.random.key(0))
        carry = jax.tree.map(lambda a: a.astype(given), cell.initial_carry((2,), params))
        assert set(dtypes(cell.step, params, carry, x)) == {given}
        assert set(dtypes(STEPS[which][0] or cell.step, params, carry, x)) == {given}


@pytest.mark.usefixtures("x64")
def test_float64_inputs_or_parameters_compute_in_float64():
    cell = lstm_jax.LSTM(3, 2)
    params = cell.init(jax.random.key(0))
    wide = jax.tree.map(lambda a: a.astype(jnp.float64), params)
    xs = jnp.ones((4, 3), jnp.float32)
    assert set(dtypes(lambda: lstm_jax.unroll(cell, params, xs))) == {"float32"}
    assert set(dtypes(lambda: lstm_jax.unroll(cell, params, xs.astype(jnp.float64)))) == {"float64"}
    assert set(dtypes(lambda: lstm_jax.unroll(cell, wide, xs))) == {"float64"}
