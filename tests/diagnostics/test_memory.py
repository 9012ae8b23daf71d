"""Time constants, and the contributions of steps to the memory, against loops in NumPy."""

import cell_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trajectories
from helpers import assert_raises, assert_same, daily, problem, random_arrays, random_params, slow

import lstm_jax
from lstm_jax import GRU, LSTM, MLSTM, RNN, Bidirectional, LSTMVariant, Readout, Stack, Zoneout, diagnostics

pytestmark = pytest.mark.usefixtures("x64")

#: Cells by name, with the index of their memory in the carry.
MEMORIES = {
    "lstm": 1,
    "gru": None,
    "lstm_peepholes": 1,
    "lstm_coupled": 1,
    "lstm_no_forget_gate": 1,
    "lstm_norm_haste": 1,
    "full_gate_lstm": 1,
    "conv_lstm": 1,
    "gru_reset_before": None,
    "min_gru": None,
    "min_lstm": None,
    "slstm": 1,
    "zoneout": 1,
}


def memory_of(carry, index):
    return np.asarray(carry if index is None else carry[index])


@pytest.mark.parametrize("reverse", [False, slow(True)])
@pytest.mark.parametrize("which", daily(MEMORIES, "lstm", "gru"))
def test_contributions_add_up_to_the_memory(which, reverse):
    given = problem(cell_cases.BY_NAME[which], T=6)
    arguments = given.network, given.params, given.xs, given.carry
    found = diagnostics.memory(*arguments, reverse=reverse, **given.flags)
    _, (_, carries) = lstm_jax.unroll(*arguments, reverse=reverse, return_carries=True, **given.flags)
    total = np.sum(found.contributions, axis=1) + found.initial
    np.testing.assert_allclose(total, memory_of(carries, MEMORIES[which]), rtol=1e-9, atol=1e-12)
    assert np.array_equal(found.valid, given.valid)
    t, s = np.indices((6, 6))
    assert np.all(np.asarray(found.contributions)[(t > s) if reverse else (t < s)] == 0)
    assert np.all(np.asarray(found.contributions)[:, ~given.valid] == 0)


@pytest.mark.parametrize("reverse", [False, True])
def test_contributions_are_products_of_forget_gates(reverse):
    """A Python loop over single steps of each row: no contribution crosses a reset or an invalid step."""
    given = problem(cell_cases.BY_NAME["lstm"], T=7, seed=3)
    cell, params, flags = given.network, given.params, given.flags
    found = diagnostics.memory(cell, params, given.xs, given.carry, reverse=reverse, **flags)
    expected = np.zeros(found.contributions.shape)
    options = {"carry": given.carry, "valid": given.valid, "resets": flags["resets"], "reverse": reverse}
    last = {}
    for t, b, before, after, _ in trajectories.visited(cell, params, given.xs, **options):
        gates = jax.device_get(cell.gates(params, before, given.xs[t, b]))
        restarted = b in last and not np.array_equal(last[b][1][1], before[1])
        if b in last and not restarted:
            expected[t, :, b] = gates.f * expected[last[b][0], :, b]
        expected[t, t, b] = gates.i * gates.g
        last[b] = t, after
    invalid = ~given.valid
    np.testing.assert_allclose(
        np.where(invalid[:, None, :, None], 0, found.contributions), expected, rtol=1e-9, atol=1e-12
    )
    assert np.count_nonzero(expected.any(-1)) > np.count_nonzero(given.valid)


def test_average():
    given = problem(cell_cases.BY_NAME["conv_lstm"], T=4, batch=(2,))
    arguments = given.network, given.params, given.xs, given.carry
    full = diagnostics.memory(*arguments, **given.flags)
    found = diagnostics.memory(*arguments, average=True, **given.flags)
    units = tuple(range(3, full.contributions.ndim))
    np.testing.assert_allclose(found.contributions, np.mean(np.abs(full.contributions), axis=units))
    np.testing.assert_allclose(found.initial, np.mean(np.abs(full.initial), axis=tuple(u - 1 for u in units)))


@pytest.mark.parametrize("forget_gate", ["sigmoid", slow("exp")])
def test_weights_of_an_mlstm(forget_gate):
    """The weighted outer products of values and keys are the matrix memory."""
    cell = MLSTM(3, 4, heads=2, forget_gate=forget_gate, param_dtype="float64")
    params, (xs,) = random_params(cell), random_arrays((5, 3), dtype=np.float64)
    found = diagnostics.memory(cell, params, xs)
    _, (_, (C, _, _)) = lstm_jax.unroll(cell, params, xs, return_carries=True)
    _, k, v, _ = (a.reshape(5, 2, 2) for a in np.split(xs @ params.w_ih + params.bias, 4, axis=-1))
    outer = v[..., :, None] * k[..., None, :] / np.sqrt(2)
    np.testing.assert_allclose(np.einsum("tsn,snvk->tnvk", found.contributions, outer), C, rtol=1e-9)
    np.testing.assert_allclose(found.initial, 0, atol=1e-30)


@pytest.mark.parametrize("which", daily(["lstm", "gru", "min_gru", "min_lstm", "slstm", "mlstm"]))
def test_time_constants(which):
    given = problem(cell_cases.BY_NAME[which], T=6)
    arguments = given.network, given.params, given.xs, given.carry
    found = diagnostics.time_constants(*arguments, **given.flags)
    g = jax.device_get(diagnostics.gates(*arguments, **given.flags).gates)
    keep = {
        "lstm": lambda: g.f,
        "gru": lambda: g.z,
        "min_gru": lambda: 1 - g.z,
        "min_lstm": lambda: g.f / (g.f + g.i),
    }.get(which, lambda: g.f)
    with np.errstate(divide="ignore", invalid="ignore"):
        keep = keep()[given.valid]
    np.testing.assert_allclose(np.asarray(found.tau)[given.valid], -1 / np.log(keep), rtol=1e-9)
    np.testing.assert_allclose(found.mean, -1 / np.mean(np.log(keep), axis=0), rtol=1e-9)
    assert np.all(np.asarray(found.tau)[~given.valid] == 0)


def test_time_constant_of_a_decay():
    """With input and output gates closed, c decays to 1/e in tau steps."""
    cell = LSTM(3, 1, param_dtype="float64")
    params = jax.tree.map(np.zeros_like, random_params(cell))
    params = params._replace(bias=np.array([-900.0, 2.0, 0.0, 0.0]))
    xs = np.zeros((9, 3))
    tau = float(diagnostics.time_constants(cell, params, xs).mean[0])
    (_, c), _ = lstm_jax.unroll(cell, params, xs, (np.zeros(1), np.ones(1)))
    np.testing.assert_allclose(c, np.exp(-9 / tau), rtol=1e-12)


@pytest.mark.parametrize("kind", [LSTM, slow(GRU), slow(lstm_jax.SLSTM)])
def test_time_constants_with_zoneout(kind):
    """The memory keeps r + (1 - r) f of its value, in expectation."""
    cell = kind(3, 2, param_dtype="float64")
    params, (xs,) = random_params(cell), random_arrays((4, 3), dtype=np.float64)
    zoneout = Zoneout(cell, 0.25)
    found = diagnostics.time_constants(zoneout, params, xs)
    gates = diagnostics.gates(zoneout, params, xs).gates
    keep = 0.25 + 0.75 * np.asarray(gates.z if kind is GRU else gates.f)
    np.testing.assert_allclose(found.tau, -1 / np.log(keep), rtol=1e-9)


def test_gates_that_keep_everything_or_nothing():
    cell = LSTMVariant(3, 2, ablation="no_forget_gate")
    found = diagnostics.time_constants(cell, random_params(cell), jnp.ones((3, 3)))
    assert np.all(np.isinf(found.tau)) and np.all(np.isinf(found.mean)) and np.all(found.mean > 0)
    cell = LSTM(3, 1)
    params = random_params(cell)._replace(bias=np.array([0, -np.inf, 0, 0], np.float32))
    assert np.all(diagnostics.time_constants(cell, params, jnp.ones((3, 3))).tau == 0)


@pytest.mark.slow
def test_layers_jit_and_vmap():
    network = Stack((Bidirectional(LSTM(3, 2)), RNN(4, 3), Zoneout(GRU(3, 2), 0.1), Readout(2, 1)))
    params, (xs,) = random_params(network), random_arrays((4, 5, 3))
    lengths = jnp.array([4, 2, 0, 1, 3])
    expected = diagnostics.memory(network, params, xs, lengths=lengths)
    assert list(expected) == ["0.forward", "0.backward", "2"]

    def of_row(xs, n):
        found = diagnostics.memory(network, params, xs, lengths=n)
        return {name: layer.contributions for name, layer in found.items()}

    found = jax.jit(jax.vmap(of_row, (1, 0), 2))(xs, lengths)
    expected = {name: layer.contributions for name, layer in expected.items()}
    assert_same(found, expected, rtol=1e-5, atol=1e-6)


def test_errors():
    for cell in (LSTMVariant(3, 2, cell_clip=1.0), LSTMVariant(3, 2, layer_norm="tfa"), RNN(3, 2)):
        attempt = lambda cell=cell: diagnostics.memory(cell, random_params(cell), jnp.ones((4, 3)))  # noqa: E731
        assert_raises(attempt, f"memory got {type(cell).__name__}", "kept by a gate")
    cell = RNN(3, 2)
    attempt = lambda: diagnostics.time_constants(cell, random_params(cell), jnp.ones((4, 3)))  # noqa: E731
    assert_raises(attempt, "time_constants got RNN", "forget or update gate")
