"""The associative scan: comparisons with the plain scan, laws of the time contract, transforms."""

from functools import partial

import cell_case
import helpers
import jax
import jax.numpy as jnp
import laws
import numpy as np
import oracle
import pytest
import sequence_strategies
from cell_cases import BY_NAME
from helpers import (
    assert_same,
    equations,
    every,
    finite,
    finite_difference_check,
    is_zero,
    problem,
    random_arrays,
    several_devices,
    total,
    values_and_gradients,
)
from hypothesis import given as examples, settings
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from user_cells import Average

import lstm_jax
from lstm_jax import MinGRU, MinLSTM, explain

D, H = cell_case.D, cell_case.H
MINIMAL = ["min_gru", "min_lstm"]  # min_lstm learns its initial carry
WHICH = pytest.mark.parametrize("which", MINIMAL)
DAILY_ONE = pytest.mark.parametrize("which", helpers.daily(MINIMAL))
DOUBLE = pytest.mark.usefixtures("x64")


def solve(given, implementation, *, carry="given", **options):
    first = {"given": given.carry, "own": None}[carry]
    options = {"return_carries": True, "implementation": implementation} | options
    return values_and_gradients(given.network, given.params, given.xs, first, **given.flags, **options)


# --- comparisons with the plain scan ------------------------------------------------------------

#: Options of the problem, options of the call, and whether there are flags.
CASES = {
    "plain": ({}, {}, False),
    "plain, own carry": ({}, {"carry": "own"}, False),
    "flags": ({}, {}, True),
    "flags, own carry": ({}, {"carry": "own"}, True),
    "flags in reverse": ({}, {"reverse": True}, True),
    "windows": ({}, {"checkpoint": 3}, True),
    "windows in reverse": ({}, {"checkpoint": "sqrt", "reverse": True}, True),
    "no batch axis": ({"batch": ()}, {"reverse": True}, True),
    "two batch axes": ({"batch": (2, 2)}, {}, True),
    "no rows": ({"batch": (0,)}, {}, True),
    "one step": ({"T": 1}, {}, True),
    "two steps": ({"T": 2}, {"reverse": True}, True),
    "odd and even levels": ({"T": 13, "batch": (4,)}, {}, True),
}
DAILY = "plain", "flags, own carry", "flags in reverse", "no rows", "one step"


@DOUBLE
@pytest.mark.parametrize(
    ("which", "case"),
    # The cases in DAILY run with one of the two cells, in turn; all others are slow.
    [
        pytest.param(which, case, marks=pytest.mark.slow if (row + column) % 2 or case not in DAILY else ())
        for row, case in enumerate(CASES)
        for column, which in enumerate(MINIMAL)
    ],
)
def test_values_and_gradients_agree_with_the_plain_scan(which, case):
    problem_options, options, flagged = CASES[case]
    given = problem(BY_NAME[which], **problem_options)
    given = given if flagged else finite(given)
    parallel = solve(given, "parallel", **options)
    assert_same(parallel, solve(given, "scan", **options), note="scan")
    if flagged and given.xs.size:
        (_, (ys, _)), (_, dxs, _) = parallel
        assert every(parallel, np.isfinite)
        assert np.all(ys[~given.valid] == 0) and np.all(dxs[~given.valid] == 0)


@DOUBLE
@WHICH
@pytest.mark.parametrize("first", helpers.daily([-1.5, 0.0, "mixed"], "mixed"))
def test_an_initial_carry_of_any_sign(which, first):
    given = problem(BY_NAME[which])
    carry = np.array([-2.0, 0.0]) if first == "mixed" else np.full(2, first)
    given = given._replace(carry=np.broadcast_to(carry, (3, 2)).copy())
    parallel = solve(given, "parallel")
    assert every(parallel, np.isfinite)
    assert np.any(np.asarray(parallel[1][2]) != 0)
    assert_same(parallel, solve(given, "scan"))


@DOUBLE
def test_an_initial_carry_that_is_not_read_has_no_effect():
    """The first step has a reset, so NaN in the initial carry reaches no value and no gradient."""
    given = finite(problem(BY_NAME["min_lstm"]))
    resets = np.zeros((7, 3), bool)
    resets[0] = True
    given = given._replace(carry=np.full((3, 2), np.nan), flags={"resets": resets})
    (_, (ys, _)), (dparams, dxs, dcarry) = solve(given, "parallel")
    assert every((ys, dparams, dxs), np.isfinite) and np.all(dcarry == 0)


@DOUBLE
@WHICH
def test_no_steps(which):
    given = problem(BY_NAME[which], T=1)
    flags = {"mask": np.ones((0, 3), bool), "resets": np.ones((0, 3), bool)}
    empty = given._replace(xs=np.ones((0, 3, D)), flags=flags)
    (carry, (ys, carries)), (dparams, _, dcarry) = solve(empty, "parallel")
    assert_same(carry, jnp.asarray(given.carry), rtol=0, atol=0)
    assert ys.shape == carries.shape == (0, 3, H) and every(dparams, is_zero)
    assert np.any(dcarry != 0)


@pytest.mark.slow
@DOUBLE
@WHICH
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_laws_of_the_time_contract(which, reverse):
    case = BY_NAME[which]
    laws.check_packed_segments(case, reverse, "parallel")
    laws.check_deleted_steps(case, reverse, "parallel")
    if not reverse:
        laws.check_windows(case, None, "parallel")
    ways = [("parallel", None), ("parallel", 4), ("parallel", "sqrt")]
    laws.check_implementations(case, ways, reverse=reverse, truncate=None, flagged=True)


@DOUBLE
@pytest.mark.usefixtures("accelerator")
@pytest.mark.slow
@WHICH
def test_laws_of_the_time_contract_on_an_accelerator(which):
    case = BY_NAME[which]
    laws.check_single_steps(case)
    laws.check_reverse_is_flip(case)
    laws.check_all_steps_invalid(case)
    for shape in ((0, 2), (4, 0)):
        laws.check_empty(case, shape)


@DOUBLE
@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("reverse", helpers.daily([False, True]), ids=["forward", "reverse"])
@pytest.mark.slow
def test_networks_of_parallel_cells(reverse):
    """A bidirectional layer below another layer."""
    given = problem(BY_NAME["min_both_ways"])
    plan = explain(given.network, given.params, given.xs, reverse=reverse)
    assert [layer.implementation for layer in plan.layers] == ["parallel"] * 3
    parallel = solve(given, "auto", reverse=reverse)
    assert_same(parallel, solve(given, "scan", reverse=reverse))
    expected = oracle.unroll(
        BY_NAME["min_both_ways"].oracle, given.params, given.xs, given.carry, reverse=reverse, **given.flags
    )
    found = jax.tree.map(np.asarray, (parallel[0][0], *parallel[0][1]))
    assert_same(found, tuple(expected), rtol=1e-8, atol=1e-10)


@DOUBLE
@pytest.mark.parametrize(
    ("which", "reverse"),
    [
        pytest.param("min_gru", False, id="min_gru-forward"),
        pytest.param("min_lstm", True, id="min_lstm-reverse", marks=pytest.mark.slow),
        pytest.param("min_gru", True, id="min_gru-reverse", marks=pytest.mark.slow),
        pytest.param("min_lstm", False, id="min_lstm-forward", marks=pytest.mark.slow),
    ],
)
@settings(max_examples=25)
@examples(sequence=sequence_strategies.sequences())
def test_random_values_and_flags(which, reverse, sequence):
    xs, _, flags = sequence
    data = problem(BY_NAME[which], T=sequence_strategies.T, batch=(sequence_strategies.B,))
    carry, (ys, carries) = lstm_jax.unroll(
        data.network,
        data.params,
        xs,
        data.carry,
        reverse=reverse,
        return_carries=True,
        implementation="parallel",
        **flags,
    )
    expected = oracle.unroll(BY_NAME[which].oracle, data.params, xs, data.carry, reverse=reverse, **flags)
    found = jax.tree.map(np.asarray, oracle.Result(carry, ys, carries))
    assert_same(found, expected, rtol=1e-8, atol=1e-10)
    grads = [
        values_and_gradients(
            data.network, data.params, xs, data.carry, reverse=reverse, implementation=how, **flags
        )
        for how in ("parallel", "scan")
    ]
    assert_same(*grads, rtol=1e-8, atol=1e-10)


# --- transforms ---------------------------------------------------------------------------------


def function_of(given, implementation="parallel", **options):
    def f(params, xs, carry):
        return lstm_jax.unroll(
            given.network, params, xs, carry, implementation=implementation, **given.flags, **options
        )

    return f


@DOUBLE
@DAILY_ONE
def test_forward_mode(which):
    given = problem(BY_NAME[which])
    primals = given.params, given.xs, given.carry
    tangents = helpers.random_like(np.random.default_rng(1), primals)
    parallel, plain = (
        jax.jit(partial(jax.jvp, function_of(given, how, return_carries=True)))(primals, tangents)
        for how in ("parallel", "scan")
    )
    assert_same(parallel, plain)
    assert np.any(parallel[1][1][0] != 0)


@DOUBLE
@pytest.mark.slow
@WHICH
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_both_modes_to_second_order(which, reverse):
    """No candidate is near the kink of g at 0."""
    given = problem(BY_NAME[which], T=5, batch=(2,))
    given = finite(given, **given.flags)
    run = function_of(given, reverse=reverse)

    def loss(params, xs, carry):
        return total(run(params, xs, carry))

    pre = given.xs @ given.params.w_ih + given.params.bias
    assert np.min(np.abs(pre[given.valid][:, -H:])) > 1e-3
    finite_difference_check(loss, (given.params, given.xs, given.carry))


@DOUBLE
@pytest.mark.slow
def test_the_hessian_agrees_with_the_plain_scan():
    given = finite(problem(BY_NAME["min_lstm"], T=4, batch=()))

    def hessian(how):
        run = function_of(given, how)
        return jax.jit(jax.hessian(lambda params: total(run(params, given.xs, given.carry))))(given.params)

    assert_same(hessian("parallel"), hessian("scan"))


@DOUBLE
@DAILY_ONE
def test_vmap_over_data_and_over_parameters(which):
    given = problem(BY_NAME[which])
    rows = jax.vmap(
        lambda x, c, length, mask, resets: lstm_jax.unroll(
            given.network,
            given.params,
            x,
            c,
            lengths=length,
            mask=mask,
            resets=resets,
            implementation="parallel",
        ),
        in_axes=(1, 0, 0, 1, 1),
        out_axes=(0, 1),
    )(given.xs, given.carry, *(given.flags[name] for name in ("lengths", "mask", "resets")))
    assert_same(rows, function_of(given)(given.params, given.xs, given.carry))
    ensemble = jax.tree.map(lambda a: np.stack([a, -a]), given.params)
    both = jax.vmap(lambda params: function_of(given)(params, given.xs, given.carry))(ensemble)
    for index in range(2):
        separate = function_of(given)(take(ensemble, index), given.xs, given.carry)
        assert_same(take(both, index), separate)


def take(tree, index):
    return jax.tree.map(lambda a: a[index], tree)


@several_devices
@pytest.mark.parametrize("how", helpers.daily(["shard_map", "explicit", "auto"]))
def test_four_devices(how):
    rng = np.random.default_rng(0)
    cell = MinLSTM(D, H, learn_initial_carry=True)
    params = helpers.random_like(rng, jax.eval_shape(cell.init, jax.random.key(0)))
    xs = rng.normal(size=(6, 8, D)).astype(np.float32)
    mask, resets = rng.random((6, 8)) < 0.8, rng.random((6, 8)) < 0.3

    def run(params, xs, mask, resets):
        return lstm_jax.unroll(cell, params, xs, mask=mask, resets=resets, implementation="parallel")

    expected = run(params, xs, mask, resets)
    kind = AxisType.Explicit if how == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    spec = P(None, "data")
    if how == "shard_map":
        mapped = jax.shard_map(run, mesh=mesh, in_specs=(P(), spec, spec, spec), out_specs=(P("data"), spec))
        found = jax.jit(mapped)(params, xs, mask, resets)
    else:
        placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a in (xs, mask, resets)]
        with jax.set_mesh(mesh):
            found = jax.jit(run)(params, *placed)
        assert found[1].sharding.spec[1] == "data"
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# --- the program --------------------------------------------------------------------------------


@DAILY_ONE
def test_there_is_no_loop_over_time(which):
    given = problem(BY_NAME[which], T=40, dtype=np.float32)

    def found(how):
        def f(params, xs, carry):
            return helpers.gradients(function_of(given, how, reverse=True), params, xs, carry)

        arguments = given.params, given.xs, given.carry
        names = {eqn.primitive.name for eqn in equations(jax.make_jaxpr(f)(*arguments).jaxpr)}
        return {"scan", "while"} & names

    assert found("parallel") == set()
    assert found("fused") == {"scan"}


def test_the_program_grows_with_the_logarithm_of_the_steps():
    cell = MinGRU(D, H)
    params = cell.init(jax.random.key(0))

    def length(steps):
        run = partial(lstm_jax.unroll, cell, params, implementation="parallel")
        return len(list(equations(jax.make_jaxpr(run)(jnp.ones((steps, 2, D))).jaxpr)))

    assert length(2**14) - length(2**12) < 2.2 * (length(2**12) - length(2**11))


# --- a user's cell ------------------------------------------------------------------------------


def test_a_users_cell_with_terms_of_both_signs():
    cell = Average()
    xs, carry = random_arrays((9, 2, D), (2, D))
    flags = {"resets": np.random.default_rng(0).random((9, 2)) < 0.3}
    given = helpers.Problem(cell, cell.init(jax.random.key(0)), xs, carry, flags)
    assert_same(solve(given, "parallel"), solve(given, "scan"), rtol=1e-4, atol=1e-5)
