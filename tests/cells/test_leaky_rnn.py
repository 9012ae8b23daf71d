"""The leaky network: its two forms, time constants and noise."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle_leaky
import pytest
from cell_cases import BY_NAME
from helpers import assert_raises, assert_same, daily, problem, random_like, slow, zero_params
from jax.test_util import check_grads

import lstm_jax
from lstm_jax import RNN, LeakyRNN, LeakyRNNParams, RNNParams, Stack, leaky_rnn_step
from lstm_jax.cells.readout import identity

KEY = jax.random.key(0)
FORMS = pytest.mark.parametrize("form", ["current", "rate"])
#: The options of the free step, which has no defaults.
FREE = {
    "tau": 100.0,
    "dt": 20.0,
    "sigma": 0.0,
    "form": "current",
    "integration": "euler",
    "activation": jnp.tanh,
}


def drawn(cell, *batch, dtype=np.float64, seed=0):
    """Random parameters, a carry, an input and noise for one step."""
    rng = np.random.default_rng(seed)
    params = random_like(rng, jax.eval_shape(cell.init, KEY))
    carry = random_like(rng, jax.eval_shape(lambda p: cell.initial_carry(batch, p), params))
    return params, carry, *(rng.normal(size=(*batch, n)).astype(dtype) for n in (3, 2))


# --- equations ----------------------------------------------------------------------------------

OPTIONS = {
    "euler": {"tau": 50.0, "dt": 20.0},
    "exponential": {"tau": 50.0, "dt": 70.0, "integration": "exponential"},
    "learned": {"tau": 2.0, "dt": 1.0, "integration": "exponential"},
    "relu": {"activation": jax.nn.relu},
}


@pytest.mark.usefixtures("x64")
@FORMS
@pytest.mark.parametrize("which", OPTIONS)
@pytest.mark.parametrize("noisy", [False, True], ids=["quiet", "noisy"])
def test_step_and_free_step_agree_with_the_equations(form, which, noisy):
    options = OPTIONS[which]
    cell = LeakyRNN(
        3, 2, form=form, noise=0.3, learn_tau=which == "learned", param_dtype="float64", **options
    )
    params, carry, x, noise = drawn(cell)
    equation_options = dict(options, sigma=0.3, noise=noise if noisy else None)
    f = equation_options.pop("activation", None)
    f = np.tanh if f is None else (lambda a: np.maximum(a, 0))
    expected = getattr(oracle_leaky, form)(params, carry, x, f=f, **equation_options)
    step = jax.jit(cell.step)(params, carry, x, *([noise] if noisy else []))
    free = jax.jit(partial(leaky_rnn_step, **FREE | {"form": form, "sigma": 0.3} | options))(
        params, carry, x, equation_options["noise"]
    )
    assert_same(jax.device_get(step), expected)
    assert_same(jax.device_get(free), expected)


@pytest.mark.usefixtures("x64")
@FORMS
def test_with_alpha_1_it_is_the_simple_network(form):
    cell = LeakyRNN(3, 2, tau=20.0, dt=20.0, form=form, param_dtype="float64")
    given = problem(BY_NAME["rnn"])
    params = LeakyRNNParams(*given.params[:3])
    _, ys = lstm_jax.unroll(cell, params, given.xs, **given.flags)
    _, expected = lstm_jax.unroll(given.network, given.params, given.xs, **given.flags)
    np.testing.assert_allclose(ys, expected, atol=1e-12)
    assert isinstance(given.network, RNN) and isinstance(given.params, RNNParams)


def response(steps, **options):
    """The response of one linear unit without recurrence to a constant input of 1."""
    cell = LeakyRNN(1, 1, dt=1.0, activation=identity, param_dtype="float64", **options)
    params = cell.init(KEY)._replace(w_ih=jnp.ones((1, 1)), w_hh=jnp.zeros((1, 1)))
    return np.asarray(lstm_jax.unroll(cell, params, jnp.ones((steps, 1)))[1])[:, 0]


@pytest.mark.usefixtures("x64")
@FORMS
def test_the_step_response_is_exponential(form):
    tau = 50
    exact = 1 - np.exp(-np.arange(1, 201) / tau)
    for learned in (False, True):
        ys = response(200, tau=tau, form=form, integration="exponential", learn_tau=learned)
        np.testing.assert_allclose(ys, exact, atol=1e-12)
        assert math.isclose(ys[tau - 1], 1 - 1 / math.e, abs_tol=1e-12)
    by_euler = response(200, tau=tau, form=form)
    np.testing.assert_allclose(by_euler, 1 - (1 - 1 / tau) ** np.arange(1, 201), atol=1e-12)
    np.testing.assert_allclose(by_euler, exact, atol=0.005)


# --- time constants -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@FORMS
def test_learned_time_constants_are_initially_tau_and_have_gradients(form):
    cell = LeakyRNN(
        3, 2, tau=80.0, learn_tau=True, integration="exponential", form=form, param_dtype="float64"
    )
    params = cell.init(KEY)
    np.testing.assert_allclose(np.exp(params.log_tau), [80.0, 80.0])
    fixed = LeakyRNN(3, 2, tau=80.0, integration="exponential", form=form, param_dtype="float64")
    assert fixed.init(KEY).log_tau is None
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4, 3)))

    @jax.jit
    def last(params):
        return lstm_jax.unroll(cell, params, xs)[1][-1]

    assert_same(last(params), lstm_jax.unroll(fixed, fixed.init(KEY), xs)[1][-1])
    slope = jax.jacrev(last)(params).log_tau
    assert np.all(np.any(slope != 0, axis=(0, 1)))
    check_grads(last, (params,), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


def test_alpha_is_between_0_and_1_for_all_learned_time_constants():
    cell = LeakyRNN(1, 3, learn_tau=True, integration="exponential", use_bias=False, activation=identity)
    params = cell.init(KEY)._replace(log_tau=jnp.array([-30.0, 0.0, 30.0]), w_hh=jnp.zeros((3, 3)))
    (v, _), _ = cell.step(params, (jnp.ones(3), jnp.ones(3)), jnp.zeros(1))
    np.testing.assert_allclose(v, [0.0, math.exp(-20), 1.0], atol=1e-7)


def test_equal_hyperparameters_are_equal_cells():
    assert LeakyRNN(3, 2, tau=100, dt=20, noise=0) == LeakyRNN(3, 2)
    assert hash(LeakyRNN(3, 2, tau=np.float64(100))) == hash(LeakyRNN(3, 2))
    assert LeakyRNN(3, 2, form="rate") != LeakyRNN(3, 2)


def test_initial_rates_are_those_of_the_initial_current():
    cell = LeakyRNN(3, 2, activation=jax.nn.softplus, learn_initial_carry=True)
    params = cell.init(KEY)
    v, r = cell.initial_carry((4,), params)
    np.testing.assert_allclose(v, np.zeros((4, 2)))
    np.testing.assert_allclose(r, np.full((4, 2), math.log(2)), rtol=1e-6)
    xs = jnp.ones((3, 4, 3))
    slope = jax.grad(lambda p: jnp.sum(lstm_jax.unroll(cell, p, xs)[1] ** 2))(params).initial
    assert np.all(slope != 0)


# --- noise --------------------------------------------------------------------------------------


def noisy_run(cell, params, x, key, steps):
    """A scan of the step with the noise of ``draw``."""
    carry = cell.initial_carry(x.shape[:-1], params)

    def one(carry, t):
        return cell.step(params, carry, x, cell.draw(jax.random.fold_in(key, t), carry))

    return jax.jit(lambda: jax.lax.scan(one, carry, jnp.arange(steps, dtype=jnp.int32)))()[1]


@pytest.mark.usefixtures("x64")
@FORMS
@pytest.mark.parametrize("alpha, integration", [(0.05, "euler"), slow(0.8, "euler"), (0.5, "exponential")])
def test_the_stationary_variance(form, alpha, integration):
    """That of a linear unit without recurrence is 2 alpha sigma^2 / (1 - (1 - alpha)^2), in both forms."""
    sigma, rows = 0.7, 20_000
    dt = alpha if integration == "euler" else -math.log(1 - alpha)
    cell = LeakyRNN(
        1,
        1,
        tau=1.0,
        dt=dt,
        noise=sigma,
        form=form,
        integration=integration,
        activation=identity,
        param_dtype="float64",
    )
    params = cell.init(KEY)._replace(w_hh=jnp.zeros((1, 1)))
    ys = noisy_run(cell, params, jnp.zeros((rows, 1)), jax.random.key(1), math.ceil(8 / alpha))
    expected = 2 * alpha * sigma**2 / (1 - (1 - alpha) ** 2)
    assert abs(np.mean(ys[-1])) < 5 * math.sqrt(expected / rows)
    assert abs(np.var(ys[-1]) / expected - 1) < 5 * math.sqrt(2 / rows)
    # The correlation of consecutive steps is 1 - alpha.
    correlation = np.corrcoef(ys[-1][:, 0], ys[-2][:, 0])[0, 1]
    assert abs(correlation - (1 - alpha)) < 5 / math.sqrt(rows)


@FORMS
def test_draw_returns_noise_in_the_shape_of_the_state(form):
    cell = LeakyRNN(3, 2, noise=0.1, form=form, dtype="bfloat16")
    carry = cell.initial_carry((5, 4))
    noise = cell.draw(KEY, carry)
    assert noise.shape == (5, 4, 2) and noise.dtype == jnp.float32
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), carry)
    np.testing.assert_array_equal(cell.draw(KEY, shapes), noise)
    assert np.any(noise != cell.draw(jax.random.key(1), carry))
    without = LeakyRNN(3, 2, form=form)
    assert without.draw(KEY, carry) is None


def test_without_noise_the_results_are_those_of_noise_0():
    params, carry, x, noise = drawn(LeakyRNN(3, 2), 4, dtype=np.float32)
    expected = LeakyRNN(3, 2).step(params, carry, x, noise)
    assert_same(expected, LeakyRNN(3, 2, noise=0.5).step(params, carry, x), rtol=0, atol=0)


# --- stacks, low precision ----------------------------------------------------------------------


def test_stacks():
    network = Stack((LeakyRNN(3, 4), LeakyRNN(4, 4, form="rate")), residual=True)
    params = network.init(KEY)
    plan = lstm_jax.explain(network, params, jnp.ones((5, 2, 3)))
    assert plan.implementation == "fused" and plan.layers[0].cell == "LeakyRNN(3 -> 4)"
    assert lstm_jax.unroll(network, params, jnp.ones((5, 2, 3)))[1].shape == (5, 2, 4)


@FORMS
@pytest.mark.parametrize("compute, tolerance", [("bfloat16", 3e-2), slow("float16", 4e-3)])
@pytest.mark.parametrize("implementation", daily(["fused", "scan"]))
def test_low_precision(form, compute, tolerance, implementation):
    """Rates and outputs have the compute dtype; current, parameters and gradients are float32."""
    cell = LeakyRNN(3, 2, form=form)
    params = random_like(np.random.default_rng(0), jax.eval_shape(cell.init, KEY))
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(7, 4, 3)), jnp.float32)
    expected = lstm_jax.unroll(cell, params, xs)
    low = LeakyRNN(3, 2, form=form, dtype=compute)

    def loss(params):
        carry, ys = lstm_jax.unroll(low, params, xs, implementation=implementation)
        return jnp.sum(ys.astype(jnp.float32)), (carry, ys)

    grads, found = jax.grad(loss, has_aux=True)(params)
    dtypes = [a.dtype.name for a in jax.tree.leaves(found)]
    assert dtypes == (["float32", compute, compute] if form == "current" else [compute, compute])
    assert {a.dtype.name for a in jax.tree.leaves(grads)} == {"float32"}
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(a.astype(jnp.float32) - b)) < tolerance


@FORMS
@pytest.mark.parametrize("given", ["float16", "bfloat16", "float32"])
def test_step_returns_the_dtypes_of_the_given_carry(form, given):
    cell = LeakyRNN(3, 2, form=form, noise=0.1, learn_tau=True, integration="exponential")
    params = cell.init(KEY)
    carry = jax.tree.map(lambda a: a.astype(given), cell.initial_carry((2,)))
    x, noise = jnp.ones((2, 3)), jnp.ones((2, 2))
    free = partial(leaky_rnn_step, **FREE | {"form": form, "sigma": 0.1, "integration": "exponential"})
    for step in (cell.step, free):
        found = jax.eval_shape(step, params, carry, x, noise)
        assert {a.dtype.name for a in jax.tree.leaves(found)} == {given}


# --- errors -------------------------------------------------------------------------------------

CELL = LeakyRNN(3, 2, noise=0.1)
LEARNING = LeakyRNN(3, 2, learn_tau=True, integration="exponential")
PARAMS = zero_params(CELL)
LOG_TAU = np.zeros(2, np.float32)
STATE, X = np.zeros((4, 2), np.float32), np.zeros((4, 3), np.float32)
CARRY = (STATE, STATE)

ERRORS = {
    "tau of 0": (lambda: LeakyRNN(3, 2, tau=0.0), "tau=0.0", "above 0"),
    "tau below 0": (lambda: LeakyRNN(3, 2, tau=-1, integration="exponential"), "tau=-1", "above 0"),
    "tau of infinity": (lambda: LeakyRNN(3, 2, tau=math.inf), "tau=inf", "above 0"),
    "tau of nothing": (lambda: LeakyRNN(3, 2, tau=None), "tau=None", "above 0"),
    "dt of 0": (lambda: LeakyRNN(3, 2, dt=0), "dt=0", "above 0"),
    "dt above tau": (lambda: LeakyRNN(3, 2, tau=10.0), "dt=20.0 and tau=10.0", "dt <= tau", "exponential"),
    "noise below 0": (lambda: LeakyRNN(3, 2, noise=-0.1), "noise=-0.1", "0 or more"),
    "noise not a number": (lambda: LeakyRNN(3, 2, noise=math.nan), "noise=nan", "0 or more"),
    "noise that is True": (lambda: LeakyRNN(3, 2, noise=True), "noise=True", "a number"),
    "another form": (lambda: LeakyRNN(3, 2, form="voltage"), "form='voltage'", "'current'", "'rate'"),
    "another integration": (lambda: LeakyRNN(3, 2, integration="rk4"), "integration='rk4'", "'euler'"),
    "learned tau by Euler": (
        lambda: LeakyRNN(3, 2, learn_tau=True),
        "learned time constants with integration='euler'",
        "integration='exponential'",
    ),
    "a size of 0": (lambda: LeakyRNN(3, 0), "LeakyRNN got hidden_size=0", "1 or more"),
    "an unknown activation": (lambda: LeakyRNN(3, 2, activation="relux"), "activation='relux'", "a function"),
    "init without a key": (lambda: CELL.init(1), "LeakyRNN.init got key=1", "one PRNG key"),
    "an initial carry of a number": (lambda: CELL.initial_carry(4), "batch_shape=4", "tuple"),
    "half a carry": (lambda: CELL.step(PARAMS, STATE, X), "LeakyRNN.step got a carry of 1 parts", "(v, r)"),
    "a carry too many": (
        lambda: LeakyRNN(3, 2, form="rate").step(PARAMS, CARRY, X),
        "a carry of 2 parts",
        "(r)",
    ),
    "a carry of another batch": (
        lambda: CELL.step(PARAMS, (STATE, STATE[0]), X),
        "r of shape (2,)",
        "(4, 2)",
    ),
    "x of another size": (lambda: CELL.step(PARAMS, CARRY, STATE), "x of shape (4, 2)", "(..., 3)"),
    "x of whole numbers": (lambda: CELL.step(PARAMS, CARRY, X.astype(int)), "x of dtype int", "floating"),
    "xs of another size": (
        lambda: lstm_jax.unroll(CELL, PARAMS, STATE),
        "xs of shape (4, 2)",
        "(T, *batch, 3)",
    ),
    "a log_tau too few": (lambda: LEARNING.step(PARAMS, CARRY, X), "no params.log_tau with learn_tau=True"),
    "a log_tau too many": (
        lambda: CELL.step(PARAMS._replace(log_tau=LOG_TAU), CARRY, X),
        "params.log_tau with learn_tau=False",
    ),
    "a log_tau of another size": (
        lambda: LEARNING.step(PARAMS._replace(log_tau=LOG_TAU[:1]), CARRY, X),
        "log_tau of shape (1,)",
        "(2,)",
    ),
    "a log_tau of whole numbers": (
        lambda: LEARNING.step(PARAMS._replace(log_tau=LOG_TAU.astype(int)), CARRY, X),
        "log_tau of dtype int",
        "floating",
    ),
    "a bias too few": (
        lambda: CELL.step(PARAMS._replace(bias=None), CARRY, X),
        "no params.bias",
        "use_bias=True",
    ),
    "noise of another shape": (
        lambda: CELL.step(PARAMS, CARRY, X, STATE[0]),
        "noise of shape (2,)",
        "(4, 2)",
    ),
    "noise of whole numbers": (
        lambda: CELL.step(PARAMS, CARRY, X, STATE.astype(int)),
        "noise of dtype int",
        "floating",
    ),
    "the step function with dt above tau": (
        lambda: leaky_rnn_step(PARAMS, CARRY, X, **FREE | {"tau": 1.0}),
        "leaky_rnn_step got dt=20.0 and tau=1.0",
        "dt <= tau",
    ),
    "the step function with noise below 0": (
        lambda: leaky_rnn_step(PARAMS, CARRY, X, **FREE | {"sigma": -1}),
        "leaky_rnn_step got sigma=-1",
    ),
    "the step function with learned tau by Euler": (
        lambda: leaky_rnn_step(PARAMS._replace(log_tau=LOG_TAU), CARRY, X, **FREE),
        "leaky_rnn_step got learned time constants",
    ),
    "the step function with another form's carry": (
        lambda: leaky_rnn_step(PARAMS, CARRY, X, **FREE | {"form": "rate"}),
        "leaky_rnn_step got a carry of 2 parts",
    ),
    "torch_init": (lambda: lstm_jax.torch_init(CELL, KEY), "torch_init got", "RNN, LSTM, GRU and Readout"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    assert_raises(*ERRORS[what])
