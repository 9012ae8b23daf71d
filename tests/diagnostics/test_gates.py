"""Gates and pre-activations of all cells, saturation and activity, against loops over single steps."""

from functools import partial

import cell_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trajectories
from helpers import assert_raises, assert_same, daily, finite, problem, random_arrays, random_params, slow

import lstm_jax
from lstm_jax import GRU, LSTM, RNN, SLSTM, Bidirectional, LSTMVariant, Readout, Stack, Zoneout, diagnostics

pytestmark = pytest.mark.usefixtures("x64")

CELLS = [
    case
    for case in cell_cases.CELL_CASES
    if getattr(case.build(param_dtype="float64"), "has_gates", False) and case.name != "lstm_no_bias"
]
NAMES = {case.name: case for case in CELLS}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_all_gated_cells_are_tested():
    built = {type(case.build(param_dtype="float64")).__name__ for case in CELLS}
    expected = "LSTM LSTMVariant FullGateLSTM ConvLSTM GRU GRUVariant SLSTM MLSTM MinGRU MinLSTM Zoneout"
    assert set(expected.split()) <= built


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("which", daily(NAMES, "lstm", "slstm"))
def test_gates_are_those_of_single_steps(which, reverse):
    given = problem(NAMES[which], T=8)
    cell, params = given.network, given.params
    found = diagnostics.gates(cell, params, given.xs, given.carry, reverse=reverse, **given.flags)
    assert np.array_equal(found.valid, given.valid)
    options = {"carry": given.carry, "valid": given.valid, "resets": given.flags["resets"]}
    count = 0
    for t, b, before, *_ in trajectories.visited(cell, params, given.xs, reverse=reverse, **options):
        for values, method in zip(found, (cell.gates, cell.preactivations), strict=False):
            assert_same(
                trajectories.row(values, t, b), jax.device_get(method(params, before, given.xs[t, b]))
            )
        count += 1
    assert count == np.sum(given.valid) > 2
    outside = jax.tree.map(lambda a: np.asarray(a)[~given.valid], found[:2])
    assert all(np.all(a == 0) for a in jax.tree.leaves(outside))


#: Gates from pre-activations, and the new state from both, in NumPy.
def lstm_state(g, carry):
    return g.f * carry[1] + g.i * g.g


def min_lstm_state(g, carry):
    return (g.f * carry + g.i * g.h) / (g.f + g.i)


EQUATIONS = {
    "lstm": ({"i": sigmoid, "f": sigmoid, "g": np.tanh, "o": sigmoid}, lstm_state, 1),
    "lstm_peepholes": ({"i": sigmoid, "f": sigmoid, "g": np.tanh, "o": sigmoid}, lstm_state, 1),
    "full_gate_lstm": ({"i": sigmoid, "f": sigmoid, "g": np.tanh, "o": sigmoid}, lstm_state, 1),
    "gru": (
        {"r": sigmoid, "z": sigmoid, "n": np.tanh},
        lambda g, h: g.z * h + (1 - g.z) * g.n,
        None,
    ),
    "gru_reset_before": (
        {"r": sigmoid, "z": sigmoid, "n": np.tanh},
        lambda g, h: g.z * h + (1 - g.z) * g.n,
        None,
    ),
    "min_gru": (
        {"z": sigmoid, "h": lambda a: np.where(a >= 0, a + 0.5, sigmoid(a))},
        lambda g, h: (1 - g.z) * h + g.z * g.h,
        None,
    ),
    "min_lstm": (
        {"f": sigmoid, "i": sigmoid, "h": lambda a: np.where(a >= 0, a + 0.5, sigmoid(a))},
        min_lstm_state,
        None,
    ),
}


@pytest.mark.parametrize("which", EQUATIONS)
def test_gates_follow_the_equations(which):
    """The activations of the pre-activations are the gates, and the gates give the next state."""
    activations, state, index = EQUATIONS[which]
    given = problem(NAMES[which], T=4)
    cell, params, x = given.network, given.params, random_arrays((3, 3), dtype=np.float64)[0]
    gates = cell.gates(params, given.carry, x)
    pre = cell.preactivations(params, given.carry, x)
    assert gates._fields == pre._fields == tuple(activations)
    for name, activation in activations.items():
        np.testing.assert_allclose(getattr(gates, name), activation(getattr(pre, name)), rtol=1e-12)
    new, _ = cell.step(params, given.carry, x)
    np.testing.assert_allclose(state(gates, given.carry), new if index is None else new[index], rtol=1e-12)


@pytest.mark.parametrize("forget_gate", ["sigmoid", slow("exp")])
@pytest.mark.parametrize("kind", [SLSTM, partial(lstm_jax.MLSTM, heads=2)], ids=["slstm", "mlstm"])
def test_exponential_gates_are_those_of_the_definition(kind, forget_gate):
    """From c = n = 0 without a stabiliser: n = f n + i (times k), which the cell stores times exp(-m)."""
    cell = kind(3, 4, forget_gate=forget_gate, param_dtype="float64")
    params, (xs,) = random_params(cell), random_arrays((3, 3), dtype=np.float64)
    carry, definition = cell.initial_carry(), 0.0
    for x in xs:
        g = cell.gates(params, carry, x)
        added = g.i
        if kind is not SLSTM:
            key = np.split(x @ params.w_ih + params.bias, 4)[1].reshape(2, 2) / np.sqrt(2)
            added = np.asarray(g.i)[:, None] * key
        if kind is not SLSTM:
            output = np.split(x @ params.w_ih + params.bias, 4)[3]
            np.testing.assert_allclose(g.o, sigmoid(output), rtol=1e-12)
        definition = (g.f if kind is SLSTM else np.asarray(g.f)[:, None]) * definition + added
        carry, _ = cell.step(params, carry, x)
        n, m = carry[-2], np.asarray(carry[-1])
        np.testing.assert_allclose(n * np.exp(m if kind is SLSTM else m[:, None]), definition, rtol=1e-10)


def test_gates_without_weights_have_no_preactivation():
    cell = LSTMVariant(3, 2, coupled=True, ablation="no_output_gate")
    params, xs = random_params(cell), jnp.ones((4, 3))
    found = diagnostics.gates(cell, params, xs)
    assert found.preactivations.f is None and found.preactivations.o is None
    np.testing.assert_allclose(found.gates.f, 1 - found.gates.i, rtol=1e-6)
    assert np.all(found.gates.o == 1)


NETWORK = Stack((LSTM(3, 4), RNN(4, 4), Bidirectional(GRU(4, 2)), Readout(4, 2)))


@pytest.mark.parametrize("reverse", [False, slow(True)])
def test_layers_of_a_network(reverse):
    """Each layer reads the outputs of the layer below; layers without gates are left out."""
    params, (xs,) = random_params(NETWORK), random_arrays((6, 2, 3))
    lengths, resets = jnp.array([6, 4]), np.zeros((6, 2), bool)
    resets[3, 0] = True
    flags = {"lengths": lengths, "resets": resets}
    found = diagnostics.gates(NETWORK, params, xs, reverse=reverse, **flags)
    assert list(found) == ["0", "2.forward", "2.backward"]
    ys = xs
    for index in (0, 1):
        if index == 0:
            assert_same(
                found["0"], diagnostics.gates(NETWORK.layers[0], params[0], ys, reverse=reverse, **flags)
            )
        ys = lstm_jax.unroll(NETWORK.layers[index], params[index], ys, reverse=reverse, **flags)[1]
    both = NETWORK.layers[2].cell
    for name, way in (("2.forward", reverse), ("2.backward", not reverse)):
        p = params[2].forward if name == "2.forward" else params[2].backward
        assert_same(found[name], diagnostics.gates(both, p, ys, reverse=way, **flags), rtol=1e-5, atol=1e-6)


def test_a_learned_carry_and_reset_to():
    cell = LSTM(3, 2, learn_initial_carry=True, param_dtype="float64")
    params, (xs, h, c) = random_params(cell), random_arrays((4, 2, 3), (4, 2, 2), (4, 2, 2), dtype=np.float64)
    resets = np.zeros((4, 2), bool)
    resets[2, 1] = True
    found = diagnostics.gates(cell, params, xs, resets=resets, reset_to=(h, c))
    assert_same(
        trajectories.row(found.gates, 2, 1),
        jax.device_get(cell.gates(params, (h[2, 1], c[2, 1]), xs[2, 1])),
    )
    assert_same(
        trajectories.row(found.gates, 0, 1), jax.device_get(cell.gates(params, params.initial, xs[0, 1]))
    )


def test_saturation_counts_valid_steps():
    given = problem(NAMES["lstm"], T=6)
    arguments = given.network, given.params, given.xs, given.carry
    found = diagnostics.saturation(*arguments, low=0.3, high=0.6, **given.flags)
    gates = diagnostics.gates(*arguments, **given.flags).gates
    assert found.low.g is None and found.high.g is None and found.steps == np.sum(given.valid)
    for name in "ifo":
        values = np.asarray(getattr(gates, name))[given.valid]
        np.testing.assert_allclose(getattr(found.low, name), np.mean(values < 0.3, axis=0))
        np.testing.assert_allclose(getattr(found.high, name), np.mean(values > 0.6, axis=0))
    assert 0 < np.mean(found.low.i) < 1 and 0 < np.mean(found.high.f) < 1


#: The gates with values in [0, 1].
SATURATING = {
    "gru": "rz",
    "slstm": "fo",
    "mlstm": "fo",
    "min_gru": "z",
    "min_lstm": "fi",
    "lstm_no_input_gate": "ifo",
}


@pytest.mark.parametrize("which", daily(SATURATING))
def test_saturation_of_other_cells(which):
    """Shares are in [0, 1] and only of gates in [0, 1]."""
    given = problem(NAMES[which], T=4)
    found = diagnostics.saturation(given.network, given.params, given.xs, given.carry, **given.flags)
    assert {n for n, a in found.low._asdict().items() if a is not None} == set(SATURATING[which])
    assert all(np.all((a >= 0) & (a <= 1)) for a in jax.tree.leaves(found[:2]))


def test_activity():
    given = problem(cell_cases.BY_NAME["rnn"], T=6)
    arguments = given.network, given.params, given.xs, given.carry
    found = diagnostics.activity(*arguments, high=0.4, **given.flags)
    _, ys = lstm_jax.unroll(*arguments, **given.flags)
    ys = np.asarray(ys)[given.valid]
    np.testing.assert_allclose(found.mean, ys.mean(0))
    np.testing.assert_allclose(found.std, ys.std(0))
    np.testing.assert_allclose(found.saturated, np.mean(np.abs(ys) > 0.4, axis=0))
    assert 0 < np.mean(found.saturated) < 1
    assert not np.any(found.dead) and found.steps == len(ys)


def test_dead_units():
    cell = RNN(3, 3, activation=jax.nn.relu)
    params = random_params(cell)._replace(bias=np.array([-50, 5, 0], np.float32))
    params = params._replace(w_hh=np.zeros((3, 3), np.float32))
    (xs,) = random_arrays((5, 2, 3))
    assert diagnostics.activity(cell, params, xs).dead.tolist() == [True, False, False]


def test_jit_and_vmap():
    cell = Zoneout(LSTM(3, 2, param_dtype="float64"), 0.2)
    params, (xs,) = random_params(cell), random_arrays((4, 5, 3), dtype=np.float64)
    lengths = jnp.array([4, 2, 0, 1, 3])
    expected = diagnostics.gates(cell, params, xs, lengths=lengths)

    def of_row(xs, n):
        return diagnostics.gates(cell, params, xs, lengths=n)

    assert_same(jax.jit(jax.vmap(of_row, (1, 0), 1))(xs, lengths), expected)


#: All functions that take a sequence, as functions of cell, parameters and inputs.
FUNCTIONS = {name: getattr(diagnostics, name) for name in ("gates", "saturation", "activity", "memory")} | {
    "time_constants": diagnostics.time_constants,
    "gradient_flow": partial(diagnostics.gradient_flow, jnp.sum),
    "gradient_times_input": partial(diagnostics.gradient_times_input, jnp.sum),
    "integrated_gradients": partial(diagnostics.integrated_gradients, jnp.sum),
    "decomposition": diagnostics.decomposition,
    "jacobians": diagnostics.jacobians,
    "lyapunov_exponents": diagnostics.lyapunov_exponents,
}


@pytest.mark.parametrize("shape", [(0, 4), slow((3, 0))], ids=str)
@pytest.mark.parametrize("which", daily(FUNCTIONS, "gates", "memory", "decomposition", "jacobians"))
def test_empty_sequences_and_batches(which, shape):
    cell = LSTM(3, 2)
    found = FUNCTIONS[which](cell, random_params(cell), jnp.ones((*shape, 3)))
    if hasattr(found, "valid"):
        assert found.valid.shape == shape
    else:
        assert found.steps == 0


def test_shares_without_valid_steps():
    cell = LSTM(3, 2)
    shares = diagnostics.saturation(cell, random_params(cell), jnp.ones((2, 4, 3)), lengths=jnp.zeros(4, int))
    assert shares.steps == 0 and np.all(shares.low.f == 0)


def test_a_users_cell():
    """Without gates it is named in the error; with the two methods it works as any other."""
    case = cell_cases.BY_NAME["leaky"]
    cell = case.build(param_dtype="float64")
    given = finite(problem(case))
    assert_raises(
        lambda: diagnostics.gates(cell, given.params, given.xs), "gates got Leaky", "a cell with gates"
    )

    class Gated(type(cell)):
        def gates(self, params, carry, x):
            return lstm_jax.GRUGates(x, x, carry["h"])

        preactivations = gates

    found = diagnostics.gates(Gated("float64"), given.params, given.xs)
    assert np.all(found.gates.n[0] == 0.5) and np.array_equal(found.gates.r, given.xs)


def test_errors():
    network = Stack((RNN(3, 2), Readout(2, 1)))
    params = random_params(network)
    xs = jnp.ones((4, 3))
    assert_raises(lambda: diagnostics.gates(network, params, xs), "gates got Stack(layers=(RNN(")
    assert_raises(lambda: diagnostics.saturation(RNN(3, 2), params[0], xs), "saturation got RNN")
    assert_raises(lambda: diagnostics.activity(Readout(3, 2), random_params(Readout(3, 2)), xs), "Readout")
    given = LSTM(3, 2), random_params(LSTM(3, 2)), xs
    assert_raises(lambda: diagnostics.saturation(*given, low="x"), "saturation got low='x'", "a number")
    assert_raises(lambda: diagnostics.activity(*given, tolerance=None), "activity got tolerance=None")
    assert_raises(lambda: diagnostics.gates(LSTM, None, xs), "gates got the class LSTM")
    assert_raises(lambda: diagnostics.gates(LSTM(3, 2), None, xs), "NoneType")
    assert_raises(lambda: diagnostics.gates(LSTM(3, 2), None, jnp.ones((4, 2))), "shape")
