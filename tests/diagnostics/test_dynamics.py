"""Jacobians, Lyapunov exponents and fixed points of systems for which they are known."""

import cell_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trajectories
from helpers import assert_raises, assert_same, daily, problem, random_arrays, random_params, slow

import lstm_jax
from lstm_jax import GRU, LSTM, RNN, Bidirectional, Readout, RNNParams, Stack, diagnostics
from lstm_jax.cells.activations import identity
from lstm_jax.diagnostics import _dynamics

pytestmark = pytest.mark.usefixtures("x64")


def linear(matrix):
    """h_t = x_t + h_{t-1} R with R the transpose of ``matrix``, so that ``matrix`` is the Jacobian."""
    H = len(matrix)
    cell = RNN(H, H, activation=identity, use_bias=False, param_dtype="float64")
    return cell, RNNParams(np.eye(H), np.asarray(matrix, np.float64).T)


# --- Jacobians ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, slow(True)])
@pytest.mark.parametrize("which", daily(["lstm", "gru", "slstm", "mlstm", "leaky", "zoneout", "indrnn"]))
def test_jacobians_by_finite_differences(which, reverse):
    given = problem(cell_cases.BY_NAME[which], T=6)
    cell, params, xs, carry, flags = given
    found = diagnostics.jacobians(cell, params, xs, carry, reverse=reverse, **flags)
    step, checked = jax.jit(cell.step), 0

    def to_vector(carry):
        return np.concatenate([np.ravel(a) for a in jax.tree.leaves(carry) if a.dtype == np.float64])

    options = {"carry": carry, "valid": given.valid, "resets": flags["resets"], "reverse": reverse}
    for t, b, before, *_ in trajectories.visited(cell, params, xs, **options):
        leaves, structure = jax.tree.flatten(jax.device_get(before))
        columns = []
        for k, leaf in enumerate(leaves):
            for index in np.ndindex(leaf.shape) if leaf.dtype == np.float64 else ():
                ends = []
                for sign in (1, -1):
                    changed = [np.array(a) for a in leaves]
                    changed[k][index] += sign * 1e-6
                    new, _ = step(params, jax.tree.unflatten(structure, changed), xs[t, b])
                    ends.append(to_vector(new))
                columns.append((ends[0] - ends[1]) / 2e-6)
        expected = np.stack(columns, axis=1)
        if np.all(np.abs(to_vector(before)) < 1e6):  # differences from the stabiliser's -2^127 are lost
            np.testing.assert_allclose(found.jacobians[t, b], expected, rtol=1e-5, atol=1e-7)
            checked += 1
    assert checked >= 2
    outside = np.asarray(found.jacobians)[~given.valid]
    assert np.array_equal(outside, np.broadcast_to(np.eye(outside.shape[-1]), outside.shape))


def test_singular_values_and_eigenvalues():
    (matrix,) = random_arrays((4, 4), dtype=np.float64)
    found = diagnostics.jacobians(*linear(matrix), np.ones((3, 2, 4)), lengths=jnp.array([3, 1]))
    np.testing.assert_allclose(found.jacobians[2, 0], matrix)
    np.testing.assert_allclose(found.singular_values[2, 0], np.linalg.svd(matrix, compute_uv=False))
    eigenvalues = np.sort_complex(np.asarray(found.eigenvalues[2, 0]))
    np.testing.assert_allclose(eigenvalues, np.sort_complex(np.linalg.eigvals(matrix)), atol=1e-12)
    np.testing.assert_allclose(found.singular_values[2, 1], np.ones(4))


# --- Lyapunov exponents -------------------------------------------------------------------------


def test_exponents_of_a_linear_network_are_logarithms_of_eigenvalues():
    """Also of a matrix that is not normal, whose singular values differ from its eigenvalues."""
    basis = np.array([[1, 2, 0], [0, 1, 3], [1, 0, 1.0]])
    matrix = basis @ np.diag([1.5, -0.8, 0.1]) @ np.linalg.inv(basis)
    xs = random_arrays((400, 2, 3), dtype=np.float64)[0]
    arguments = (*linear(matrix), xs)
    expected = np.log([1.5, 0.8, 0.1])
    found = diagnostics.lyapunov_exponents(*arguments, transient=100)
    np.testing.assert_allclose(found.exponents, [expected, expected], rtol=1e-6)
    few = diagnostics.lyapunov_exponents(*arguments, transient=100, count=2, key=jax.random.key(7))
    np.testing.assert_allclose(few.exponents, [expected[:2], expected[:2]], rtol=1e-6)
    assert few.growth.shape == (400, 2, 2) and np.sum(few.valid) == 600


def test_the_sum_of_exponents_is_the_mean_logarithm_of_determinants():
    given = problem(cell_cases.BY_NAME["gru"], T=7)
    flags = {name: given.flags[name] for name in ("lengths", "mask")}
    for reverse in (False, True):
        found = diagnostics.lyapunov_exponents(*given[:4], reverse=reverse, **flags)
        matrices = diagnostics.jacobians(*given[:4], reverse=reverse, **flags).jacobians
        logs = np.linalg.slogdet(np.asarray(matrices)).logabsdet
        expected = np.sum(logs, axis=0) / np.maximum(np.sum(given.valid, axis=0), 1)
        np.testing.assert_allclose(np.sum(found.exponents, axis=-1), expected, rtol=1e-9, atol=1e-12)
        assert np.all(np.asarray(found.growth)[~given.valid] == 0)
        assert np.array_equal(found.valid, given.valid)


def test_exponents_are_those_of_the_valid_steps():
    cell = LSTM(3, 2, param_dtype="float64")
    params, (xs,) = random_params(cell), random_arrays((9, 3), dtype=np.float64)
    mask = np.array([True, False, True, True, False, False, True, True, False])
    found = diagnostics.lyapunov_exponents(cell, params, xs, mask=mask, count=2)
    expected = diagnostics.lyapunov_exponents(cell, params, xs[mask], count=2)
    np.testing.assert_allclose(found.exponents, expected.exponents, rtol=1e-9)


@pytest.mark.parametrize("reverse", [False, True])
def test_transient_counts_valid_steps_in_the_order_of_the_loop(reverse):
    given = problem(cell_cases.BY_NAME["rnn"], T=7, seed=1)
    flags = {name: given.flags[name] for name in ("lengths", "mask")}
    found = diagnostics.lyapunov_exponents(*given[:4], transient=1, reverse=reverse, **flags)
    expected = given.valid.copy()
    for b in range(3):
        times = np.flatnonzero(given.valid[:, b])
        if len(times):
            expected[times[-1 if reverse else 0], b] = False
    assert np.array_equal(found.valid, expected) and np.any(expected)


def test_the_exponents_of_a_chaotic_network():
    """Strong random weights: a small difference grows along the trajectory at the rate of the exponent."""
    cell = RNN(1, 40, use_bias=False, param_dtype="float64")
    weights = np.random.default_rng(2).normal(size=(40, 40)) * 3 / np.sqrt(40)
    params, xs = RNNParams(np.zeros((1, 40)), weights), np.zeros((600, 1))
    h = np.random.default_rng(1).normal(size=40)
    found = diagnostics.lyapunov_exponents(cell, params, xs, h, count=1, transient=100)
    _, ys = jax.device_get(lstm_jax.unroll(cell, params, xs, h))
    delta, rates = np.ones(40), []
    for t in range(600):
        delta = delta / np.linalg.norm(delta) * 1e-7
        before = h if t == 0 else ys[t - 1]
        delta = np.tanh((before + delta) @ weights) - ys[t]
        rates.append(np.log(np.linalg.norm(delta) / 1e-7))
    assert found.exponents[0] > 0.1
    np.testing.assert_allclose(found.exponents[0], np.mean(rates[100:]), rtol=0.01)


# --- fixed points -------------------------------------------------------------------------------


def test_the_fixed_point_of_a_linear_network():
    matrix = np.array([[0.5, 0.3], [0.0, -0.2]])
    candidates, x = random_arrays((5, 2), (2,), dtype=np.float64)
    found = diagnostics.fixed_points(*linear(matrix), x, candidates)
    expected = np.linalg.solve(np.eye(2) - matrix, x)
    np.testing.assert_allclose(found.carry, np.tile(expected, (5, 1)), rtol=1e-9)
    assert found.fixed.all() and found.stable.all() and found.distinct.tolist() == [True] + [False] * 4
    np.testing.assert_allclose(np.sort(found.eigenvalues.real, axis=-1)[0], [-0.2, 0.5], atol=1e-12)


def test_fixed_points_of_a_bistable_unit():
    cell = RNN(1, 1, use_bias=False, param_dtype="float64")
    params = RNNParams(np.zeros((1, 1)), np.full((1, 1), 2.0))
    starts = np.array([[-0.9], [0.1], [0.8], [-0.1], [1.0]])
    found = diagnostics.fixed_points(cell, params, np.zeros(1), starts)
    h = np.asarray(found.carry)[:, 0]
    np.testing.assert_allclose(h, np.tanh(2 * h), atol=1e-9)
    assert [round(float(v), 4) for v in h] == [-0.9575, 0.0, 0.9575, 0.0, 0.9575]
    assert found.stable.tolist() == [True, False, True, False, True]
    assert found.distinct.tolist() == [True, True, True, False, False] and found.fixed.all()
    np.testing.assert_allclose(found.eigenvalues[:, 0], 2 * (1 - h**2), rtol=1e-9)


def test_a_slow_point():
    """h + 0.01 (1 + h^2) is nowhere h; it changes least at 0."""
    cell = RNN(
        1, 1, activation=lambda z: z + 0.01 * (1 + jnp.square(z)), use_bias=False, param_dtype="float64"
    )
    params = RNNParams(np.zeros((1, 1)), np.ones((1, 1)))
    found = diagnostics.fixed_points(cell, params, np.zeros(1), np.array([[0.7], [-0.4]]))
    np.testing.assert_allclose(found.carry, 0, atol=1e-4)
    np.testing.assert_allclose(found.speed, 0.01**2 / 2, rtol=1e-6)
    assert not found.fixed.any()


@pytest.mark.parametrize("dtype", ["float32", slow("float64")])
def test_fixed_points_of_a_network(dtype):
    """All states of a stack together; the candidates are visited states."""
    dtypes = {"param_dtype": dtype}
    network = Stack((LSTM(3, 4, **dtypes), GRU(4, 2, **dtypes), Readout(2, 1, **dtypes)))
    params = jax.tree.map(lambda a: a.astype(dtype), random_params(network))
    xs = random_arrays((6, 2, 3), dtype=dtype)[0]
    _, (_, carries) = lstm_jax.unroll(network, params, xs, return_carries=True)
    candidates = jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), carries)
    found = diagnostics.fixed_points(network, params, xs[0, 0], candidates)
    assert found.fixed.sum() >= 6
    next_carry, _ = network.step(params, found.carry, jnp.tile(xs[0, 0], (12, 1)))
    for a, b in zip(jax.tree.leaves(found.carry), jax.tree.leaves(next_carry), strict=True):
        np.testing.assert_allclose(a[found.fixed], b[found.fixed], atol=1e-4)
    assert found.eigenvalues.shape == (12, 4 + 4 + 2)


def test_the_minimisation_ends_when_it_has_converged():
    evaluations = []

    def residual(s):
        jax.debug.callback(lambda: evaluations.append(1))
        return s**2 - 4

    found = jax.jit(lambda s: _dynamics.minimise(residual, s, 10_000))(np.array([3.0, -1.0]))
    jax.effects_barrier()
    np.testing.assert_allclose(found, [2, -2], rtol=1e-12)
    assert 5 < len(evaluations) < 300


@pytest.mark.parametrize("N", [0, 7])
def test_batches_of_candidates(N, monkeypatch):
    """The number of candidates that are minimised at the same time changes nothing."""
    cell = RNN(1, 2, param_dtype="float64")
    params, (x, h) = random_params(cell), random_arrays((1,), (N, 2), dtype=np.float64)
    expected = diagnostics.fixed_points(cell, params, x, h)
    monkeypatch.setattr(_dynamics, "MATRIX_VALUES", 8)
    found = diagnostics.fixed_points(cell, params, x, h, iterations=101)  # another program than with 100
    assert found.speed.shape == (N,)
    assert_same(found._replace(eigenvalues=None), expected._replace(eigenvalues=None), rtol=1e-6)


# --- transformations and errors -----------------------------------------------------------------


@pytest.mark.slow
def test_layers_jit_and_vmap():
    network = Stack((Bidirectional(LSTM(3, 2)), RNN(4, 3), Readout(3, 1)))
    params, (xs,) = random_params(network), random_arrays((4, 3, 3))
    lengths = jnp.array([4, 2, 0])
    for function, kept in ((diagnostics.jacobians, 2), (diagnostics.lyapunov_exponents, 1)):
        expected = function(network, params, xs, lengths=lengths)
        assert list(expected) == ["0.forward", "0.backward", "1"]

        def of_row(xs, n, function=function, kept=kept):
            return [layer[:kept] for layer in function(network, params, xs, lengths=n).values()]

        found = jax.jit(jax.vmap(of_row, (1, 0), 1 if kept == 2 else 0))(xs, lengths)
        expected = [layer[:kept] for layer in expected.values()]
        if kept == 1:
            found, expected = ([layer[0] for layer in a] for a in (found, expected))
        assert_same(found, expected, rtol=1e-4, atol=1e-5)


def test_errors():
    cell, xs = RNN(3, 2), jnp.ones((4, 3))
    params = random_params(cell)
    attempt = lambda **options: diagnostics.lyapunov_exponents(cell, params, xs, **options)  # noqa: E731
    assert_raises(lambda: attempt(count=3), "count=3", "at most 2")
    assert_raises(lambda: attempt(count=0), "count=0")
    assert_raises(lambda: attempt(transient=-1), "transient=-1")
    assert_raises(lambda: attempt(key=3), "lyapunov_exponents got key=3")
    readout = Readout(3, 2)
    assert_raises(lambda: diagnostics.jacobians(readout, random_params(readout), xs), "jacobians got Readout")
    attempt = lambda: diagnostics.fixed_points(readout, random_params(readout), xs[0], ())  # noqa: E731
    assert_raises(attempt, "fixed_points got Readout", "a cell with a state")
    attempt = lambda **options: diagnostics.fixed_points(cell, params, xs[0], xs[:, :2], **options)  # noqa: E731
    assert_raises(lambda: attempt(tolerance="small"), "fixed_points got tolerance='small'", "a number")
    assert_raises(lambda: attempt(distance=None), "fixed_points got distance=None", "a number")
    assert_raises(
        lambda: diagnostics.fixed_points(cell, params, xs[0], [1, 2]), "fixed_points got candidates"
    )
    both = Bidirectional(cell)
    p, h = random_params(both), jnp.zeros((5, 2))
    assert_raises(lambda: diagnostics.fixed_points(both, p, xs[0], (h, h)), "Bidirectional.step was called")
    assert_raises(
        lambda: diagnostics.fixed_points(cell, params, xs[0], (h, h)), "fixed_points got candidates"
    )
    assert_raises(lambda: diagnostics.fixed_points(cell, params, xs[0, :2], h), "fixed_points got x")
