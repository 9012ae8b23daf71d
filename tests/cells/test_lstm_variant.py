"""What every option of the classic cells does is what its paper says; contradictions are refused."""

from functools import partial

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_lstm
import pytest
import variant_cases
from cell_case import D
from cell_cases import BY_NAME
from helpers import assert_same, problem

import lstm_jax
from lstm_jax import (
    LSTM,
    RNN,
    FullGateLSTM,
    GRUVariant,
    LSTMVariant,
    greff2017,
    unroll,
)

pytestmark = pytest.mark.usefixtures("x64", "quick_compiles")

H = 4
WIDE = {"param_dtype": "float64"}


def sequence(T=6, B=3, seed=1):
    return np.random.default_rng(seed).normal(size=(T, B, D))


def scanned(cell, params, xs=None, **options):
    return unroll(cell, params, sequence() if xs is None else xs, return_carries=True, **options)


# --- options that reduce to the LSTM itself -----------------------------------------------------


def test_no_peepholes_are_peepholes_of_zero():
    cell, plain = LSTMVariant(D, H, peepholes=True, **WIDE), LSTM(D, H, **WIDE)
    params = helpers.random_params(plain)
    with_zeros = lstm_jax.LSTMVariantParams(*params[:3], peepholes=np.zeros(3 * H))
    assert_same(scanned(cell, with_zeros), scanned(plain, params))


def test_fresh_options_begin_as_the_lstm_does():
    """From one key, an LSTM with peepholes and wide limits is the one without."""
    key, plain = jax.random.key(3), LSTM(D, H, **WIDE)
    cell = LSTMVariant(D, H, peepholes=True, clip=1e6, cell_clip=1e6, **WIDE)
    assert_same(scanned(cell, cell.init(key)), scanned(plain, plain.init(key)))


def test_coupled_is_the_lstm_with_tied_gates():
    """f = 1 - i = sigmoid of the negative: tie the forget gate's weights to minus the input gate's."""
    cell, plain = LSTMVariant(D, H, coupled=True, **WIDE), LSTM(D, H, **WIDE)
    params = helpers.random_params(cell)

    def tied(w):
        i, g, o = np.split(w, 3, axis=-1)
        return np.concatenate([i, -i, g, o], axis=-1)

    full = lstm_jax.LSTMParams(*map(tied, (params.w_ih, params.w_hh, params.bias)))
    assert_same(scanned(cell, params), scanned(plain, full))


def test_the_forget_bias_of_coupled_gates_makes_them_remember():
    cell = LSTMVariant(D, H, coupled=True, forget_bias=2.0, **WIDE)
    params = cell.init(jax.random.key(0))
    np.testing.assert_array_equal(params.bias, [-2.0] * H + [0.0] * (2 * H))
    gates = cell.gates(params, cell.initial_carry(), np.zeros(D))
    np.testing.assert_allclose(gates.f, oracle.sigmoid(2.0))


@pytest.mark.parametrize("gate, index", [("input", 0), ("forget", 1), ("output", 3)])
def test_a_gate_taken_away_is_a_gate_held_open(gate, index):
    """A bias of 1000 opens a gate for good."""
    cell, plain = LSTMVariant(D, H, ablation=f"no_{gate}_gate", **WIDE), LSTM(D, H, **WIDE)
    params = helpers.random_params(cell)

    def with_gate(w, value):
        parts = np.split(w, 3, axis=-1)
        parts.insert(index, np.full_like(parts[0], value))
        return np.concatenate(parts, axis=-1)

    full = lstm_jax.LSTMParams(
        with_gate(params.w_ih, 0), with_gate(params.w_hh, 0), with_gate(params.bias, 1000.0)
    )
    assert_same(scanned(cell, params), scanned(plain, full))


def test_a_projection_to_h_itself_changes_nothing():
    cell, plain = LSTMVariant(D, H, proj_size=H, **WIDE), LSTM(D, H, **WIDE)
    params = helpers.random_params(plain)
    projected = lstm_jax.LSTMVariantParams(*params[:3], w_hr=np.eye(H))
    assert_same(scanned(cell, projected), scanned(plain, params))


@pytest.mark.parametrize("build", [RNN, LSTMVariant, GRUVariant, partial(GRUVariant, reset_after=False)])
def test_heads_are_cells_apart(build):
    """Two heads of two units: each half of h is a cell of its own that reads the same inputs."""
    cell, small = build(D, H, heads=2, **WIDE), build(D, H // 2, **WIDE)
    params = helpers.random_params(cell)
    gates = params.w_hh.shape[-1] // 2

    def half(a, head):
        return a.reshape(*a.shape[:-1], -1, 2, H // 2)[..., head, :].reshape(*a.shape[:-1], -1)

    whole = scanned(cell, params)[1][0]
    for head in range(2):
        own = params._replace(
            w_ih=half(params.w_ih, head), w_hh=params.w_hh[head], bias=half(params.bias, head)
        )
        if getattr(params, "bias_hn", None) is not None:
            own = own._replace(bias_hn=half(params.bias_hn, head))
        assert own.w_ih.shape[-1] == gates * 2
        assert_same(whole[..., 2 * head : 2 * head + 2], scanned(small, own)[1][0])


def test_heads_are_drawn_one_by_one():
    """Each block is orthogonal, as one matrix without heads would be."""
    params = LSTMVariant(D, 6, heads=2, **WIDE).init(jax.random.key(0))
    assert params.w_hh.shape == (2, 3, 12)
    for head in params.w_hh:
        for block in np.split(head, 4, axis=-1):
            np.testing.assert_allclose(block.T @ block, np.eye(3), atol=1e-12)
    assert not np.allclose(params.w_hh[0], params.w_hh[1])


# --- limits and norms ---------------------------------------------------------------------------


def test_clip_limits_what_the_gates_see():
    cell = LSTMVariant(D, H, clip=0.5, **WIDE)
    params = helpers.random_params(cell)
    gates = cell.gates(params, cell.initial_carry((3,)), 1e9 * sequence()[0])
    for gate, f in zip(gates, (oracle.sigmoid, oracle.sigmoid, np.tanh, oracle.sigmoid), strict=True):
        assert np.all(np.isclose(gate, f(0.5)) | np.isclose(gate, f(-0.5)))


@pytest.mark.parametrize("layer_norm", [None, "tfa", "haste"])
def test_cell_clip_limits_the_cell_state(layer_norm):
    cell = LSTMVariant(D, H, cell_clip=0.3, layer_norm=layer_norm, **WIDE)
    (_, c), (_, (_, carries)) = scanned(cell, helpers.random_params(cell))
    assert np.max(np.abs(carries)) == 0.3 and np.all(np.abs(c) <= 0.3)


def test_the_two_layer_norms_carry_different_cell_states():
    """With scales of one, tfa's c has mean 0 and variance 1 after each step; haste's is the sum it was."""
    xs, made = sequence(), {}
    for which in ("tfa", "haste"):
        cell = LSTMVariant(D, H, layer_norm=which, **WIDE)
        params = helpers.random_params(cell)._replace(norm=cell.init(jax.random.key(0)).norm)
        _, (_, (_, made[which])) = scanned(cell, params, xs)
    np.testing.assert_allclose(np.mean(made["tfa"], axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose(np.var(made["tfa"], axis=-1), 1, atol=0.1)
    assert np.all(np.abs(np.mean(made["haste"][0], axis=-1)) > 1e-3)


@pytest.mark.parametrize("layer_norm", ["tfa", "haste"])
def test_layer_norm_does_not_see_the_scale_of_the_weights(layer_norm):
    cell = LSTMVariant(D, H, layer_norm=layer_norm, **WIDE)
    params = helpers.random_params(cell)
    scaled = params._replace(w_ih=1e4 * params.w_ih, w_hh=1e4 * params.w_hh)
    # But for the constant in the square root.
    big = params._replace(w_ih=1e8 * params.w_ih, w_hh=1e8 * params.w_hh)
    assert_same(scanned(cell, scaled), scanned(cell, big), rtol=1e-5, atol=1e-6)


# --- by name, and their gates -------------------------------------------------------------

NAMES = {
    "V": LSTMVariant(D, H, peepholes=True),
    "NIG": LSTMVariant(D, H, peepholes=True, ablation="no_input_gate"),
    "NFG": LSTMVariant(D, H, peepholes=True, ablation="no_forget_gate"),
    "NOG": LSTMVariant(D, H, peepholes=True, ablation="no_output_gate"),
    "NIAF": LSTMVariant(D, H, peepholes=True, ablation="no_input_activation"),
    "NOAF": LSTMVariant(D, H, peepholes=True, ablation="no_output_activation"),
    "CIFG": LSTMVariant(D, H, peepholes=True, coupled=True),
    "NP": LSTM(D, H),
    "FGR": FullGateLSTM(D, H),
}


def test_the_study_by_name():
    assert {name: greff2017(name, D, H) for name in NAMES} == NAMES
    assert greff2017("NOG", D, H, use_bias=False).use_bias is False
    with pytest.raises(ValueError, match=r"greff2017 got name='XYZ'.*'CIFG'.*'FGR'"):
        greff2017("XYZ", D, H)


def test_the_study_s_parameters():
    """Weights of inputs, of the recurrence, biases and peepholes, by the number of gates."""

    def count(name):
        params = jax.eval_shape(greff2017(name, D, H).init, jax.random.key(0))
        return sum(a.size for a in jax.tree.leaves(params))

    def by_hand(gates, peepholes):
        return gates * (D * H + H * H + H) + peepholes * H

    assert count("V") == count("NIAF") == count("NOAF") == by_hand(4, 3)
    assert count("NIG") == count("NFG") == count("NOG") == count("CIFG") == by_hand(3, 2)
    assert count("NP") == by_hand(4, 0)
    assert count("FGR") == by_hand(4, 3) + 9 * H * H


@pytest.mark.parametrize("which", [row.name for row in variant_cases.LSTMS])
def test_a_step_is_its_equations(which):
    given = problem(BY_NAME[which], batch=())
    x = sequence()[0, 0]
    expected = BY_NAME[which].oracle.step(given.params, given.carry, x)
    assert_same(jax.device_get(jax.jit(given.network.step)(given.params, given.carry, x)), expected)


@pytest.mark.parametrize("which", [row.name for row in variant_cases.LSTMS])
def test_gates_are_those_of_the_step(which):
    """The step again, from its gates."""
    given = problem(BY_NAME[which])
    cell, params, x = given.network, given.params, sequence()[0]
    i, f, g, o = cell.gates(params, given.carry, x)

    def normalised(c):
        epsilon = {"tfa": 1e-3, "haste": 1e-5}[cell.layer_norm]
        rows = [oracle_lstm.layer_norm(row, params.norm.c, epsilon) for row in np.asarray(c)]
        return np.stack(rows) + params.norm.c_offset

    c = f * given.carry[1] + i * g
    c = normalised(c) if cell.layer_norm == "tfa" else c
    c = c if cell.cell_clip is None else np.clip(c, -cell.cell_clip, cell.cell_clip)
    shown = normalised(c) if cell.layer_norm == "haste" else c
    h = o * (shown if cell.ablation == "no_output_activation" else np.tanh(shown))
    h = h if cell.proj_size is None else h @ params.w_hr
    assert_same(cell.step(params, given.carry, x), ((jnp.asarray(h), jnp.asarray(c)), jnp.asarray(h)))


def test_full_gate_step_is_the_cells():
    given = problem(BY_NAME["full_gate_lstm"])
    x = sequence()[0]
    assert_same(
        lstm_jax.full_gate_lstm_step(given.params, given.carry, x),
        given.network.step(given.params, given.carry, x),
    )


def test_what_is_not_used_costs_nothing():
    """The programs of a plain LSTM and of one built with every option off are one program."""
    plain = LSTM(D, H)
    off = LSTMVariant(
        D,
        H,
        proj_size=None,
        peepholes=False,
        coupled=False,
        ablation=None,
        heads=1,
        clip=None,
        cell_clip=None,
        layer_norm=None,
    )
    params = off.init(jax.random.key(0))
    assert params[3:] == (None,) * 4
    xs = jnp.ones((5, 2, D), jnp.float32)
    program = str(jax.make_jaxpr(jax.grad(lambda p: unroll(off, p, xs)[1].sum()))(params))
    of_plain = plain.init(jax.random.key(0))
    assert_same(scanned(off, params, xs), scanned(plain, of_plain, xs), rtol=0, atol=0)
    # x W and its weight's gradient; in the loops h R forward and its transpose backward, and once
    # more all h R's for the pre-activations' tangents; R's gradient.
    assert program.count("dot_general[") == 6


# --- contradictions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build, message",
    [
        (
            lambda: LSTMVariant(D, 4, proj_size=5),
            "proj_size=5 with hidden_size=4; expected a projection to at most",
        ),
        (lambda: LSTMVariant(D, 4, proj_size=0), "proj_size=0; expected a whole number, 1 or more"),
        (lambda: LSTMVariant(D, 4, heads=3), "heads=3 with hidden_size=4; expected heads of equal size"),
        (lambda: LSTMVariant(D, 4, heads=2, proj_size=3), "heads=2 with proj_size=3"),
        (lambda: RNN(D, 4, heads=3), "RNN got heads=3 with hidden_size=4"),
        (lambda: GRUVariant(D, 4, heads=8), "GRUVariant got heads=8 with hidden_size=4"),
        (lambda: GRUVariant(D, 4, heads=0), "heads=0; expected a whole number"),
        (
            lambda: LSTMVariant(D, 4, coupled=True, ablation="no_input_gate"),
            "coupled=True with ablation='no_input_gate'; expected one of the two: coupled gates are one gate",
        ),
        (lambda: LSTMVariant(D, 4, coupled=True, ablation="no_forget_gate"), "coupled gates are one gate"),
        (lambda: LSTMVariant(D, 4, ablation="NIG"), "ablation='NIG'; expected one of 'no_input_gate'"),
        (lambda: LSTMVariant(D, 4, clip=0), "clip=0; expected a positive number"),
        (lambda: LSTMVariant(D, 4, cell_clip=-1.0), "cell_clip=-1.0; expected a positive number"),
        (lambda: LSTMVariant(D, 4, clip=True), "clip=True; expected a positive number"),
        (lambda: LSTMVariant(D, 4, layer_norm="keras"), "layer_norm='keras'; expected one of 'tfa', 'haste'"),
    ],
)
def test_contradictions(build, message):
    with pytest.raises(ValueError) as caught:
        build()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "options, change, message",
    [
        (
            {},
            {"peepholes": np.zeros(12)},
            "got params.peepholes with peepholes=False; expected peepholes to be None",
        ),
        ({"peepholes": True}, {"peepholes": None}, "got no params.peepholes with peepholes=True"),
        (
            {"peepholes": True},
            {"peepholes": np.zeros(8)},
            "peepholes of shape (8,); expected peepholes (12,)",
        ),
        ({"proj_size": 2}, {"w_hr": np.zeros((4, 3))}, "w_hr of shape (4, 3); expected w_hr (4, 2)"),
        ({"layer_norm": "tfa"}, {"norm": None}, "got no params.norm with layer_norm='tfa'"),
        ({"heads": 2}, {"w_hh": np.zeros((4, 16))}, "w_hh of shape (4, 16); expected w_hh (2, 2, 8)"),
    ],
)
def test_parameters_of_other_options(options, change, message):
    cell = LSTMVariant(D, H, **options, **WIDE)
    params = helpers.random_params(cell)._replace(**change)
    with pytest.raises(ValueError) as caught:
        unroll(cell, params, sequence())
    assert message in str(caught.value)


def test_free_steps_take_no_parameters_of_variants():
    given = problem(BY_NAME["lstm_norm_tfa"])
    with pytest.raises(ValueError, match="lstm_step got parameters of type LSTMVariantParams"):
        lstm_jax.lstm_step(given.params, given.carry, sequence()[0])
    with pytest.raises(ValueError, match="gru_step got parameters of type GRUVariantParams"):
        lstm_jax.gru_step(
            helpers.random_params(GRUVariant(D, H, reset_after=False)), np.zeros((3, H)), sequence()[0]
        )
