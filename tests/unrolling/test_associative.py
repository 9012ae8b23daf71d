"""All steps at once: what the plain scan gives, without a loop."""

from dataclasses import dataclass
from functools import partial

import cell_case
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import test_properties
import test_time_contract
from cell_cases import BY_NAME
from helpers import assert_same, problem, total, values_and_gradients
from hypothesis import given as examples, settings
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jax.test_util import check_grads

import lstm_jax
from lstm_jax import LSTM, Bidirectional, MinGRU, MinLSTM, Stack, explain
from lstm_jax.unrolling import registry
from lstm_jax.unrolling.api import _compiled
from lstm_jax.unrolling.associative import LOG_ZERO, associative_scan
from lstm_jax.unrolling.run import Options
from lstm_jax.unrolling.steps import Flags

D, H = cell_case.D, cell_case.H
MINIMAL = ["min_gru", "min_lstm"]  # the second one learns its initial carry
WHICH = pytest.mark.parametrize("which", MINIMAL)
MOSTLY_ONE = pytest.mark.parametrize("which", helpers.daily(MINIMAL))
DOUBLE = pytest.mark.usefixtures("x64", "quick_compiles")


@pytest.fixture
def accelerator(monkeypatch):
    """The rule as it is where there is a GPU."""
    monkeypatch.setattr(registry, "slower_than_a_loop", lambda: None)
    _compiled.clear_cache()
    yield
    _compiled.clear_cache()


def finite(given):
    """All steps valid, nothing said about any."""
    return given._replace(xs=np.where(np.isfinite(given.xs), given.xs, 0.5), flags={})


def solve(given, implementation, *, carry="given", **options):
    first = {"given": given.carry, "own": None}[carry]
    options = {"return_carries": True, "implementation": implementation} | options
    return values_and_gradients(given.network, given.params, given.xs, first, **given.flags, **options)


# --- the same answer ----------------------------------------------------------------------------

#: What is asked of the problem, of the call, and whether something is said about the steps.
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
    # A few cases every day, with one of the two in turn; all others in make test-slow.
    [
        pytest.param(which, case, marks=pytest.mark.slow if (row + column) % 2 or case not in DAILY else ())
        for row, case in enumerate(CASES)
        for column, which in enumerate(MINIMAL)
    ],
)
def test_values_and_gradients_are_those_of_the_loop(which, case):
    """The plain scan's, to which ``test_time_contract`` holds the fast path."""
    asked, options, flagged = CASES[case]
    given = problem(BY_NAME[which], **asked)
    given = given if flagged else finite(given)
    parallel = solve(given, "parallel", **options)
    assert_same(parallel, solve(given, "scan", **options), note="scan")
    if flagged and given.xs.size:
        (_, (ys, _)), (_, dxs, _) = parallel
        assert test_time_contract.every(parallel, np.isfinite)
        assert np.all(ys[~given.valid] == 0) and np.all(dxs[~given.valid] == 0)


@DOUBLE
@WHICH
@pytest.mark.parametrize("first", helpers.daily([-1.5, 0.0, "mixed"], "mixed"))
def test_the_first_carry_may_have_any_sign(which, first):
    given = problem(BY_NAME[which])
    carry = np.array([-2.0, 0.0]) if first == "mixed" else np.full(2, first)
    given = given._replace(carry=np.broadcast_to(carry, (3, 2)).copy())
    parallel = solve(given, "parallel")
    assert test_time_contract.every(parallel, np.isfinite)
    assert np.any(np.asarray(parallel[1][2]) != 0)
    assert_same(parallel, solve(given, "scan"))


@DOUBLE
def test_a_first_carry_that_nobody_reads_is_not_seen():
    """The first step begins a segment: NaN in the first carry reaches neither a value nor a gradient."""
    given = finite(problem(BY_NAME["min_lstm"]))
    resets = np.zeros((7, 3), bool)
    resets[0] = True
    given = given._replace(carry=np.full((3, 2), np.nan), flags={"resets": resets})
    (_, (ys, _)), (dparams, dxs, dcarry) = solve(given, "parallel")
    assert test_time_contract.every((ys, dparams, dxs), np.isfinite) and np.all(dcarry == 0)


@DOUBLE
@WHICH
def test_no_steps(which):
    given = problem(BY_NAME[which], T=1)
    flags = {"mask": np.ones((0, 3), bool), "resets": np.ones((0, 3), bool)}
    nothing = given._replace(xs=np.ones((0, 3, D)), flags=flags)
    (carry, (ys, carries)), (dparams, _, dcarry) = solve(nothing, "parallel")
    assert_same(carry, jnp.asarray(given.carry), rtol=0, atol=0)
    assert ys.shape == carries.shape == (0, 3, H) and test_time_contract.every(dparams, lambda a: a == 0)
    assert np.any(dcarry != 0)


@pytest.mark.slow
@DOUBLE
@WHICH
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_laws_of_the_time_contract(which, reverse):
    case = BY_NAME[which]
    test_time_contract.test_packed_segments_are_the_segments_apart(case, reverse, "parallel")
    test_time_contract.test_deleting_invalid_steps_changes_nothing_else(case, reverse, "parallel")
    if not reverse:
        test_time_contract.test_windows_are_the_whole(case, None, "parallel")
    row = (which, reverse, None, True)
    test_time_contract.every_way_is_the_plain_scan(
        row, [("parallel", None), ("parallel", 4), ("parallel", "sqrt")]
    )


@DOUBLE
@pytest.mark.usefixtures("accelerator")
@MOSTLY_ONE
def test_laws_where_auto_is_parallel(which):
    case = BY_NAME[which]
    test_time_contract.test_steps_are_windows_of_one(case)
    test_time_contract.test_reverse_is_flip_with_resets_shifted(case)
    test_time_contract.test_all_steps_invalid(case)
    for shape in ((0, 2), (4, 0)):
        test_time_contract.test_empty_sequences(case, shape)


@DOUBLE
@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("reverse", helpers.daily([False, True]), ids=["forward", "reverse"])
def test_networks_of_parallel_cells(reverse):
    """Both directions, each at once, below a third one."""
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
@examples(sequence=test_properties.sequences())
def test_whatever_the_values_and_flags(which, reverse, sequence):
    xs, _, flags = sequence
    made = problem(BY_NAME[which], T=test_properties.T, batch=(test_properties.B,))
    carry, (ys, carries) = lstm_jax.unroll(
        made.network,
        made.params,
        xs,
        made.carry,
        reverse=reverse,
        return_carries=True,
        implementation="parallel",
        **flags,
    )
    expected = oracle.unroll(BY_NAME[which].oracle, made.params, xs, made.carry, reverse=reverse, **flags)
    found = jax.tree.map(np.asarray, oracle.Result(carry, ys, carries))
    assert_same(found, expected, rtol=1e-8, atol=1e-10)
    grads = [
        values_and_gradients(
            made.network, made.params, xs, made.carry, reverse=reverse, implementation=how, **flags
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
@MOSTLY_ONE
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
    """Where no candidate comes near the kink of g at 0."""
    given = problem(BY_NAME[which], T=5, batch=(2,))
    given = given._replace(xs=np.where(np.isfinite(given.xs), given.xs, 0.5))
    run = function_of(given, reverse=reverse)

    def loss(params, xs, carry):
        return total(run(params, xs, carry))

    pre = given.xs @ given.params.w_ih + given.params.bias
    assert np.min(np.abs(pre[given.valid][:, -H:])) > 1e-3
    check_grads(loss, (given.params, given.xs, given.carry), order=2, modes=("fwd", "rev"), eps=1e-5)


@DOUBLE
def test_the_hessian_is_that_of_the_plain_scan():
    given = finite(problem(BY_NAME["min_lstm"], T=4, batch=()))

    def hessian(how):
        run = function_of(given, how)
        return jax.jit(jax.hessian(lambda params: total(run(params, given.xs, given.carry))))(given.params)

    assert_same(hessian("parallel"), hessian("scan"))


@DOUBLE
@MOSTLY_ONE
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
        alone = function_of(given)(members_of(ensemble, index), given.xs, given.carry)
        assert_same(members_of(both, index), alone)


def members_of(tree, index):
    return jax.tree.map(lambda a: a[index], tree)


@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices; virtual ones will do")
@pytest.mark.parametrize("how", helpers.daily(["shard_map", "explicit", "auto"]))
def test_over_four_devices(how):
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


# --- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [0.0, 6.0, 12.0])
@pytest.mark.parametrize("kind", helpers.daily([MinGRU, MinLSTM]))
def test_long_sequences_in_float32(kind, bias):
    """20,000 steps; with the larger biases the cell forgets over thousands of them, and over more."""
    rng = np.random.default_rng(0)
    cell = kind(D, 8)
    params = helpers.random_like(rng, jax.eval_shape(cell.init, jax.random.key(0)))
    keeps = np.zeros_like(params.bias)
    keeps[:8] = -bias if kind is MinGRU else bias
    params = params._replace(bias=params.bias + keeps)
    xs, carry = rng.normal(size=(20_000, 1, D)).astype(np.float32), np.full((1, 8), -1.0, np.float32)
    ys = np.asarray(lstm_jax.unroll(cell, params, xs, carry, implementation="parallel")[1], np.float64)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, xs, carry))
        exact = np.asarray(lstm_jax.unroll(cell, *wide, implementation="scan")[1])
    assert np.max(np.abs(ys - exact) / np.maximum(np.abs(exact), 1)) < 1e-5


def scanned(log_a, b):
    """The implementation alone, over given coefficients."""

    class Given:
        def coefficients(self, params, xs):
            return xs

    zero = jnp.zeros(b.shape[1:], b.dtype)
    return associative_scan(Given(), Options(), (), None, None, zero, ((log_a, b), None), Flags())[1][0]


@pytest.mark.slow
def test_gates_that_are_nearly_open_keep_their_digits():
    """a = exp(-6e-7) is about ten of float32's steps below 1: products of it would be off by 2e-4."""
    steps, log_a = 20_000, np.float32(-6e-7)
    b = np.full((steps, 1), 1e-6, np.float32)
    exact = np.cumsum(np.exp(np.arange(steps) * np.float64(log_a))) * np.float64(b[0, 0])
    found = np.asarray(scanned(jnp.full((steps, 1), log_a), jnp.asarray(b)))[:, 0]
    np.testing.assert_allclose(found, exact, rtol=2e-6)
    one_by_one = np.zeros(steps, np.float32)
    for t in range(steps):
        one_by_one[t] = np.exp(log_a) * one_by_one[t - 1] + b[t, 0]
    assert np.max(np.abs(one_by_one - exact) / exact) > 2e-5


@pytest.mark.parametrize("compute", helpers.daily(["float32", "bfloat16", "float16"]))
@pytest.mark.parametrize("kind", [MinGRU, MinLSTM])
@pytest.mark.parametrize("implementation", helpers.daily(["parallel", "fused", "scan"]))
@pytest.mark.usefixtures("quick_compiles")
def test_saturated_gates_give_finite_values_and_gradients(kind, compute, implementation):
    """Every pair and triple of -100, 0 and 100: among them both gates of a minimal LSTM shut."""
    gates = 2 if kind is MinGRU else 3
    extremes = np.stack(np.meshgrid(*[[-100.0, 0.0, 100.0]] * gates), -1).reshape(-1, 1, gates)
    cell = kind(gates, 1, dtype=compute)
    params = cell.init(jax.random.key(0))._replace(w_ih=np.eye(gates, dtype=np.float32))
    rng = np.random.default_rng(0)
    xs = rng.permutation(np.repeat(extremes, 3, axis=0)).astype(np.float32)
    resets = rng.random((len(xs), 1)) < 0.2

    def loss(params, xs, carry):
        carry, ys = lstm_jax.unroll(cell, params, xs, carry, resets=resets, implementation=implementation)
        return jnp.sum(ys.astype(jnp.float32)) + jnp.sum(carry.astype(jnp.float32))

    carry = jnp.full((1, 1), -3, compute)
    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(params, xs, carry)
    assert np.isfinite(value) and test_time_contract.every(jax.tree.map(jnp.float32, grads), np.isfinite)


@pytest.mark.usefixtures("x64")
def test_what_is_forgotten_is_forgotten_in_every_dtype():
    assert np.exp(np.float64(LOG_ZERO)) == 0 and np.isfinite(np.float32(LOG_ZERO) * 2**31)


@pytest.mark.parametrize("compute", ["bfloat16", "float16", None])
@WHICH
def test_dtypes_are_those_of_the_scan(which, compute):
    cell = BY_NAME[which].build(param_dtype="float32", dtype=compute)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((4, 2, D))
    for carry in (None, cell.initial_carry((2,), params), jnp.zeros((2, H), "float16")):
        told = [
            [a.dtype.name for a in jax.tree.leaves(jax.eval_shape(run, carry))]
            for how in ("parallel", "scan")
            for run in [partial(unrolled, cell, params, xs, how)]
        ]
        assert told[0] == told[1]


def unrolled(cell, params, xs, how, carry):
    return lstm_jax.unroll(cell, params, xs, carry, return_carries=True, implementation=how)


# --- it is parallel -----------------------------------------------------------------------------


def primitives(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "jaxpr")):
            part = getattr(value, "jaxpr", value)
            if hasattr(part, "eqns"):
                yield from primitives(part)


@MOSTLY_ONE
def test_there_is_no_loop_over_time(which):
    given = problem(BY_NAME[which], T=40, dtype=np.float32)

    def found(how):
        def f(params, xs, carry):
            return helpers.gradients(function_of(given, how, reverse=True), params, xs, carry)

        arguments = given.params, given.xs, given.carry
        program = jax.jit(f).lower(*arguments).compile().as_text()
        return {"scan", "while"} & set(primitives(jax.make_jaxpr(f)(*arguments).jaxpr)), " while(" in program

    assert found("parallel") == (set(), False)
    assert found("fused") == ({"scan"}, True)


def test_the_program_grows_with_the_logarithm_of_the_steps():
    cell = MinGRU(D, H)
    params = cell.init(jax.random.key(0))

    def length(steps):
        run = partial(lstm_jax.unroll, cell, params, implementation="parallel")
        return len(list(primitives(jax.make_jaxpr(run)(jnp.ones((steps, 2, D))).jaxpr)))

    assert length(2**14) - length(2**12) < 2.2 * (length(2**12) - length(2**11))


# --- which way is taken -------------------------------------------------------------------------


@dataclass(frozen=True)
class Average:
    """A user's cell: an average with summands of both signs, that does not split."""

    wrong: bool = False
    input_size = output_size = D

    def init(self, key):
        return jax.random.normal(key, (D,))

    def initial_carry(self, batch_shape=(), params=None):
        return jnp.full((*batch_shape, D), -0.25)

    def coefficients(self, params, x):
        log_a = -jax.nn.softplus(jnp.expand_dims(params, range(x.ndim - 1)) * x)
        return log_a, (x[..., :1] if self.wrong else jnp.sin(3 * x))

    def step(self, params, carry, x):
        log_a, b = Average().coefficients(params, x)
        carry = jnp.exp(log_a) * carry + b
        return carry, carry


def shapes(cell, *, T=6):
    params = jax.eval_shape(cell.init, jax.random.key(0))
    return params, jax.ShapeDtypeStruct((T, 2, D), jnp.float32)


def test_a_cpu_takes_the_loop_and_says_why():
    (layer,) = explain(MinGRU(D, H), *shapes(MinGRU(D, H))).layers
    assert layer.implementation == "fused" and "not parallel: on CPUs" in layer.reason
    (layer,) = explain(Average(), *shapes(Average())).layers
    assert layer.implementation == "scan" and "not parallel: on CPUs" in layer.reason


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(
    "cell, options, expected, reason",
    [
        (MinGRU(D, H), {}, ["parallel"], "the recurrence is linear"),
        (MinGRU(D, H), {"checkpoint": 2, "reverse": True}, ["parallel"], "the recurrence is linear"),
        (MinLSTM(D, H), {"truncate": 2}, ["fused"], "not parallel: truncate stops gradients"),
        (MinLSTM(D, H), {"implementation": "fused"}, ["fused"], "splits"),
        (MinLSTM(D, H), {"implementation": "scan"}, ["scan"], "by name"),
        (Average(), {}, ["parallel"], "the recurrence is linear"),
        (Average(wrong=True), {}, ["scan"], "not parallel: Average.coefficients returned shapes"),
        (Bidirectional(MinGRU(D, H)), {}, ["parallel"] * 2, "the recurrence is linear"),
        (Stack((LSTM(D, H), MinGRU(H, H))), {}, ["fused", "parallel"], ""),
    ],
    ids=helpers.brief,
)
def test_an_accelerator_takes_it_where_it_can(cell, options, expected, reason):
    params, xs = shapes(cell)
    plan = explain(cell, params, xs, **options)
    assert [layer.implementation for layer in plan.layers] == expected
    assert all(reason in layer.reason for layer in plan.layers)
    jax.eval_shape(lambda params, xs: lstm_jax.unroll(cell, params, xs, **options), params, xs)
    if expected == ["parallel"]:
        assert plan.layers[0].tiling == ""


@pytest.mark.usefixtures("accelerator")
def test_steps_whose_number_is_not_known():
    """Time unknown: auto takes the loop, by name it is refused. Rows unknown: no matter."""
    cell = MinGRU(D, H)
    params = cell.init(jax.random.key(0))
    T, B = export.symbolic_shape("T, B")

    def program(shape, how):
        run = jax.jit(lambda xs: lstm_jax.unroll(cell, params, xs, implementation=how))
        return export.export(run)(jax.ShapeDtypeStruct(shape, jnp.float32))

    xs = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, D)), jnp.float32)
    expected = lstm_jax.unroll(cell, params, xs, implementation="scan")
    for shape in ((T, B, D), (5, B, D)):
        for a, b in zip(program(shape, "auto").call(xs), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
    with pytest.raises(ValueError, match=r"cannot run it.*number of steps is not known"):
        program((T, B, D), "parallel")


@pytest.mark.parametrize(
    "cell, options, words",
    [
        (LSTM(D, H), {}, ["'parallel' for LSTM", "no coefficients (see lstm_jax.ParallelCell)"]),
        (MinGRU(D, H), {"truncate": 2}, ["'parallel' for MinGRU", "truncate stops gradients"]),
        (Average(wrong=True), {}, ["'parallel' for Average", "shapes [(6, 2, 3), (6, 2, 1)]"]),
        (Stack((MinGRU(D, H), LSTM(H, H))), {}, ["'parallel' for LSTM"]),
        (Bidirectional(LSTM(D, H)), {}, ["cannot run it"]),
    ],
    ids=helpers.brief,
)
def test_by_name_it_runs_or_raises(cell, options, words):
    params, xs = shapes(cell)
    for call in (lstm_jax.unroll, explain):
        with pytest.raises(ValueError) as error:
            jax.eval_shape(
                lambda params, xs: jax.tree.leaves(
                    call(cell, params, xs, implementation="parallel", **options)  # noqa: B023
                ),
                params,
                xs,
            )
        assert all(word in str(error.value) for word in (*words, "expected", "Use implementation='auto'"))


def test_a_users_cell_with_summands_of_both_signs():
    cell, rng = Average(), np.random.default_rng(0)
    params = cell.init(jax.random.key(0))
    given = helpers.Problem(
        cell, params, rng.normal(size=(9, 2, D)).astype("f"), rng.normal(size=(2, D)).astype("f"), {}
    )
    given = given._replace(flags={"resets": rng.random((9, 2)) < 0.3})
    assert_same(solve(given, "parallel"), solve(given, "scan"), rtol=1e-4, atol=1e-5)


# --- memory -------------------------------------------------------------------------------------
