"""Gradients with respect to states and inputs, against finite differences and loops over single steps."""

import cell_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trajectories
from helpers import assert_raises, assert_same, daily, problem, random_arrays, random_params, slow, total

import lstm_jax
from lstm_jax import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    LSTMVariant,
    Readout,
    Stack,
    VariationalDropout,
    Zoneout,
    diagnostics,
)

pytestmark = pytest.mark.usefixtures("x64")


def outputs_of_row(step, initial, params, xs, given, at, b, addition, reverse):
    """The outputs of row b by single steps, with an addition to the carry after step ``at``."""
    outputs, state = {}, trajectories.row(given.carry, b)
    times = [t for t in range(len(xs)) if given.valid[t, b]]
    previous = None
    for t in times[::-1] if reverse else times:
        flagged = t if not reverse else previous
        if flagged is not None and given.flags["resets"][flagged, b]:
            state = initial
        state, y = step(params, state, xs[t, b])
        if t == at:
            tied = [k for k, a in enumerate(jax.tree.leaves(state)) if np.array_equal(a, y)]
            state = jax.tree.map(lambda a, e: a + e, state, addition)
            y = jax.tree.leaves(state)[tied[0]] if tied else y
        outputs[t] = y
        previous = t
    return outputs


@pytest.mark.parametrize("reverse", [False, slow(True)])
@pytest.mark.parametrize("which", daily(["lstm", "gru", "slstm", "lstm_projected", "zoneout", "leaky_rnn"]))
def test_gradients_of_states_by_finite_differences(which, reverse):
    """Change one number of the carry after one step, and run the rest by single steps."""
    case = cell_cases.BY_NAME.get(which) or cell_cases.BY_NAME["lstm"]
    given = problem(case, T=5, seed=2)
    cell, params = given.network, given.params
    xs = np.where(np.isfinite(given.xs), given.xs, 0)
    flow = diagnostics.gradient_flow(
        total, cell, params, given.xs, given.carry, reverse=reverse, **given.flags
    )
    weights = jax.device_get(jax.grad(total)(lstm_jax.unroll(cell, params, xs, given.carry)[1]))
    step, initial = jax.jit(cell.step), cell.initial_carry((), params)
    zero = jax.tree.map(lambda a: np.zeros(a.shape[1:]), given.carry)
    leaves, structure = jax.tree.flatten(zero)
    names = list(flow.gradients)
    checked = 0
    for t, b in [(t, b) for t in range(5) for b in range(3) if given.valid[t, b]][:3]:
        for k, leaf in enumerate(leaves):
            changed = [np.zeros_like(a) for a in leaves]
            changed[k].flat[0] = 1e-5
            losses = []
            for sign in (1, -1):
                addition = jax.tree.unflatten(structure, [sign * a for a in changed])
                ys = outputs_of_row(step, initial, params, xs, given, t, b, addition, reverse)
                losses.append(sum(np.sum(y * weights[time, b]) for time, y in ys.items()))
            found = np.asarray(flow.gradients[sorted(names, key=order(cell).index)[k]])[t, b]
            np.testing.assert_allclose(found.flat[0], (losses[0] - losses[1]) / 2e-5, rtol=1e-5, atol=1e-8)
            checked += leaf.size > 0
    assert checked >= 3


def order(cell):
    """The states of a cell in the order of the carry."""
    while hasattr(cell, "cell"):
        cell = cell.cell
    return list(cell.state_shapes)


def test_norms_and_lags():
    given = problem(cell_cases.BY_NAME["lstm"], T=6)
    flow = diagnostics.gradient_flow(total, *given[:4], **given.flags)
    for name in "hc":
        expected = np.linalg.norm(np.asarray(flow.gradients[name]), axis=-1)
        np.testing.assert_allclose(flow.norms[name], expected)
        assert np.all(expected[~given.valid] == 0)
    for reverse in (False, True):
        flow = diagnostics.gradient_flow(total, *given[:4], reverse=reverse, **given.flags)
        for b in range(3):
            times = [t for t in range(6) if given.valid[t, b]]
            lags = [int(flow.lag[t, b]) for t in times]
            assert lags == (list(range(len(times))) if reverse else list(range(len(times)))[::-1])


def test_the_gradient_of_a_linear_network_decays_by_its_weight():
    cell = RNN(1, 1, activation=jnp.asarray, use_bias=False, param_dtype="float64")
    params = lstm_jax.RNNParams(np.ones((1, 1)), np.full((1, 1), 0.5))
    flow = diagnostics.gradient_flow(lambda ys: jnp.sum(ys[-1]), cell, params, np.ones((6, 1)))
    np.testing.assert_allclose(flow.norms["h"], 0.5 ** np.arange(6)[::-1])


@pytest.mark.slow
def test_layers_of_a_network():
    """The gradient with respect to the carry after a step is that of the suffix's initial carry."""
    network = Stack((LSTM(3, 2, param_dtype="float64"), VariationalDropout(GRU(2, 2, param_dtype="float64"))))
    params, (xs,) = random_params(network), random_arrays((5, 4, 3), dtype=np.float64)
    flow = diagnostics.gradient_flow(lambda ys: total(ys[-1]), network, params, xs)
    _, (_, carries) = lstm_jax.unroll(network, params, xs, return_carries=True)
    after = jax.tree.map(lambda a: a[2], carries)
    (d_h, d_c), d_gru = jax.grad(lambda c: total(lstm_jax.unroll(network, params, xs[3:], c)[1][-1]))(after)
    assert list(flow) == ["0", "1"]
    # The output of layer 0 at step 2 also reaches the state of layer 1.
    assert not np.allclose(flow["0"].gradients["h"][2], d_h)
    assert_same(flow["0"].gradients["c"][2], d_c)
    assert_same(flow["1"].gradients["h"][2], d_gru)


def test_both_directions_and_a_users_cell():
    network = Stack((Bidirectional(LSTM(3, 2)), Readout(4, 1)))
    params, (xs,) = random_params(network), random_arrays((5, 4, 3))
    flow = diagnostics.gradient_flow(lambda ys: jnp.sum(ys[2]), network, params, xs)
    assert list(flow) == ["0.forward", "0.backward"]
    for name, past in (("0.forward", slice(3, None)), ("0.backward", slice(0, 2))):
        norms = np.asarray(flow[name].norms["h"])
        assert np.all(norms[past] == 0) and np.count_nonzero(norms) == 12
    cell = cell_cases.BY_NAME["leaky"].build(param_dtype="float64")
    params = random_params(cell)
    flow = diagnostics.gradient_flow(total, cell, params, np.ones((3, 2, 3)))
    assert set(flow.gradients) == {"h"} and np.all(flow.norms["h"][:-1] > 0)


# --- inputs -------------------------------------------------------------------------------------


def last(ys):
    return jnp.sum(ys[-1]) + jnp.sum(ys[2])


def test_gradient_times_input_by_finite_differences():
    given = problem(cell_cases.BY_NAME["gru"], T=4)
    cell, params, xs, carry, flags = given
    found = diagnostics.gradient_times_input(total, cell, params, xs, carry, **flags)
    clean = np.where(np.isfinite(xs), xs, 0)

    def score(xs):
        return float(total(lstm_jax.unroll(cell, params, xs, carry, **flags)[1]))

    expected = np.zeros(xs.shape)
    for index in np.ndindex(xs.shape):
        step = np.zeros(xs.shape)
        step[index] = 1e-5
        expected[index] = clean[index] * (score(clean + step) - score(clean - step)) / 2e-5
    np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-9)
    assert np.array_equal(found.valid, given.valid) and np.any(expected)


@pytest.mark.parametrize("which", daily(["lstm", "stack_bidirectional"], "lstm"))
def test_integrated_gradients_add_up(which):
    given = problem(cell_cases.BY_NAME[which], T=4)
    network, params, xs, carry, flags = given
    (baseline,) = random_arrays(xs.shape, dtype=np.float64)
    found = diagnostics.integrated_gradients(total, network, params, xs, carry, baseline=baseline, **flags)
    scores = [total(lstm_jax.unroll(network, params, a, carry, **flags)[1]) for a in (xs, baseline)]
    np.testing.assert_allclose(np.sum(found.values), scores[0] - scores[1], rtol=1e-6)
    assert np.all(np.asarray(found.values)[~given.valid] == 0)


def test_integrated_gradients_of_a_linear_network_are_gradient_times_input():
    cell = RNN(3, 2, activation=jnp.asarray, param_dtype="float64")
    params, (xs,) = random_params(cell), random_arrays((4, 2, 3), dtype=np.float64)
    exact = diagnostics.gradient_times_input(last, cell, params, xs)
    assert_same(diagnostics.integrated_gradients(last, cell, params, xs, nodes=1), exact)


@pytest.mark.slow
def test_integrated_gradients_against_a_fine_sum():
    cell = LSTM(3, 2, param_dtype="float64")
    params, (xs,) = random_params(cell), random_arrays((4, 3), dtype=np.float64)
    gradient = jax.grad(lambda xs: last(lstm_jax.unroll(cell, params, xs)[1]))
    scales = (np.arange(400) + 0.5) / 400
    expected = xs * np.mean(jax.vmap(lambda a: gradient(a * xs))(scales), axis=0)
    found = diagnostics.integrated_gradients(last, cell, params, xs)
    np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-8)


# --- decomposition ------------------------------------------------------------------------------

DECOMPOSED = ["lstm", "lstm_peepholes", "lstm_coupled", "full_gate_lstm", "conv_lstm"]


@pytest.mark.parametrize("reverse", [False, slow(True)])
@pytest.mark.parametrize("which", daily(DECOMPOSED))
def test_parts_add_up_to_the_last_output(which, reverse):
    given = problem(cell_cases.BY_NAME[which], T=6)
    found = diagnostics.decomposition(*given[:4], reverse=reverse, **given.flags)
    carry, _ = lstm_jax.unroll(*given[:4], reverse=reverse, **given.flags)
    rows = given.valid.any(axis=0)
    assert 0 < np.count_nonzero(rows) < len(rows)
    total = np.sum(found.parts, axis=0) + found.initial
    np.testing.assert_allclose(np.asarray(total)[rows], np.asarray(carry[0])[rows], rtol=1e-9)
    assert np.all(np.asarray(found.parts)[~given.valid] == 0)
    assert np.all(np.asarray(total)[~rows] == 0)


def test_parts_by_a_loop():
    """The published formula, term by term."""
    cell = LSTM(3, 2, param_dtype="float64")
    params, (xs,) = random_params(cell), random_arrays((5, 3), dtype=np.float64)
    i, f, g, o = jax.device_get(diagnostics.gates(cell, params, xs).gates)
    e = np.array([np.prod(f[s + 1 :], axis=0) * i[s] * g[s] for s in range(5)])
    expected = [o[-1] * (np.tanh(e[: s + 1].sum(0)) - np.tanh(e[:s].sum(0))) for s in range(5)]
    np.testing.assert_allclose(diagnostics.decomposition(cell, params, xs).parts, expected, rtol=1e-9)


@pytest.mark.slow
def test_logits_of_a_readout():
    network = Stack((Bidirectional(LSTM(3, 2)), LSTM(4, 5), Readout(5, 3)))
    params, (xs,) = random_params(network), random_arrays((6, 2, 3))
    found = diagnostics.decomposition(network, params, xs, lengths=jnp.array([6, 4]))
    assert list(found) == ["0.forward", "0.backward", "1"]
    parts, initial = np.asarray(found["1"].parts), np.asarray(found["1"].initial)
    logits = np.sum(parts @ params[2].w, axis=0) + initial @ params[2].w + params[2].bias
    ys = lstm_jax.unroll(network, params, xs, lengths=jnp.array([6, 4]))[1]
    np.testing.assert_allclose(logits, [ys[5, 0], ys[3, 1]], rtol=1e-5)


# --- transformations and errors -----------------------------------------------------------------


@pytest.mark.slow
def test_jit_and_vmap():
    cell = LSTM(3, 2, param_dtype="float64")
    params, (xs,) = random_params(cell), random_arrays((4, 3, 3), dtype=np.float64)
    lengths = jnp.array([4, 2, 0])
    functions = {
        "flow": lambda xs, n: diagnostics.gradient_flow(jnp.sum, cell, params, xs, lengths=n).gradients,
        "times": lambda xs, n: diagnostics.gradient_times_input(jnp.sum, cell, params, xs, lengths=n).values,
        "integrated": lambda xs, n: (
            diagnostics.integrated_gradients(jnp.sum, cell, params, xs, lengths=n, nodes=4).values
        ),
        "decomposition": lambda xs, n: diagnostics.decomposition(cell, params, xs, lengths=n).parts,
    }
    for function in functions.values():
        assert_same(jax.jit(jax.vmap(function, (1, 0), 1))(xs, lengths), function(xs, lengths))


def test_errors():
    cell = LSTM(3, 2)
    params, xs = random_params(cell), jnp.ones((4, 3))
    for name in ("gradient_flow", "gradient_times_input", "integrated_gradients"):
        attempt = lambda name=name: getattr(diagnostics, name)(lambda ys: ys, cell, params, xs)  # noqa: E731
        assert_raises(attempt, f"{name} got a", "[4,2]", "one floating number")
        attempt = lambda name=name: getattr(diagnostics, name)(3.0, cell, params, xs)  # noqa: E731
        assert_raises(attempt, f"{name} got", "=3.0", "a function of the outputs")
    baseline = jnp.zeros(3)
    attempt = lambda: diagnostics.integrated_gradients(jnp.sum, cell, params, xs, baseline=baseline)  # noqa: E731
    assert_raises(attempt, "baseline of shape (3,)", "(4, 3)")
    for other in (
        GRU(3, 2),
        Zoneout(cell, 0.1),
        LSTMVariant(3, 2, proj_size=1),
        LSTMVariant(3, 2, activation="relu"),
        LSTMVariant(3, 2, ablation="no_output_activation"),
    ):
        attempt = lambda other=other: diagnostics.decomposition(other, random_params(other), xs)  # noqa: E731
        assert_raises(attempt, f"decomposition got {type(other).__name__}", "o tanh(c)")
