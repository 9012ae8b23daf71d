"""The options of LSTMVariant, heads of other cells, FullGateLSTM and greff2017."""

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

pytestmark = pytest.mark.usefixtures("x64")

H = 4
WIDE = {"param_dtype": "float64"}


def sequence(T=6, B=3, seed=1):
    return np.random.default_rng(seed).normal(size=(T, B, D))


def run(cell, params, xs=None, **options):
    return unroll(cell, params, sequence() if xs is None else xs, return_carries=True, **options)


# --- options that reduce to the LSTM itself -----------------------------------------------------


def test_peepholes_of_zero_change_nothing():
    cell, plain = LSTMVariant(D, H, peepholes=True, **WIDE), LSTM(D, H, **WIDE)
    params = helpers.random_params(plain)
    with_zeros = lstm_jax.LSTMVariantParams(*params[:3], peepholes=np.zeros(3 * H))
    assert_same(run(cell, with_zeros), run(plain, params))


def test_initial_peepholes_and_wide_limits_change_nothing():
    key, plain = jax.random.key(3), LSTM(D, H, **WIDE)
    cell = LSTMVariant(D, H, peepholes=True, clip=1e6, cell_clip=1e6, **WIDE)
    assert_same(run(cell, cell.init(key)), run(plain, plain.init(key)))


def test_coupled_equals_an_lstm_with_tied_gates():
    """f = 1 - i is the sigmoid of the negative pre-activation of i."""
    cell, plain = LSTMVariant(D, H, coupled=True, **WIDE), LSTM(D, H, **WIDE)
    params = helpers.random_params(cell)

    def tied(w):
        i, g, o = np.split(w, 3, axis=-1)
        return np.concatenate([i, -i, g, o], axis=-1)

    full = lstm_jax.LSTMParams(*map(tied, (params.w_ih, params.w_hh, params.bias)))
    assert_same(run(cell, params), run(plain, full))


def test_the_forget_bias_of_coupled_gates():
    cell = LSTMVariant(D, H, coupled=True, forget_bias=2.0, **WIDE)
    params = cell.init(jax.random.key(0))
    np.testing.assert_array_equal(params.bias, [-2.0] * H + [0.0] * (2 * H))
    gates = cell.gates(params, cell.initial_carry(), np.zeros(D))
    np.testing.assert_allclose(gates.f, oracle.sigmoid(2.0))


@pytest.mark.parametrize("gate, index", [("input", 0), ("forget", 1), ("output", 3)])
def test_an_ablated_gate_equals_a_gate_of_1(gate, index):
    """A bias of 1000 sets the gate to 1."""
    cell, plain = LSTMVariant(D, H, ablation=f"no_{gate}_gate", **WIDE), LSTM(D, H, **WIDE)
    params = helpers.random_params(cell)

    def with_gate(w, value):
        parts = np.split(w, 3, axis=-1)
        parts.insert(index, np.full_like(parts[0], value))
        return np.concatenate(parts, axis=-1)

    full = lstm_jax.LSTMParams(
        with_gate(params.w_ih, 0), with_gate(params.w_hh, 0), with_gate(params.bias, 1000.0)
    )
    assert_same(run(cell, params), run(plain, full))


def test_the_identity_as_projection_changes_nothing():
    cell, plain = LSTMVariant(D, H, proj_size=H, **WIDE), LSTM(D, H, **WIDE)
    params = helpers.random_params(plain)
    projected = lstm_jax.LSTMVariantParams(*params[:3], w_hr=np.eye(H))
    assert_same(run(cell, projected), run(plain, params))


@pytest.mark.parametrize("build", [RNN, LSTMVariant, GRUVariant, partial(GRUVariant, reset_after=False)])
def test_heads_equal_separate_cells(build):
    cell, small = build(D, H, heads=2, **WIDE), build(D, H // 2, **WIDE)
    params = helpers.random_params(cell)
    gates = params.w_hh.shape[-1] // 2

    def half(a, head):
        return a.reshape(*a.shape[:-1], -1, 2, H // 2)[..., head, :].reshape(*a.shape[:-1], -1)

    whole = run(cell, params)[1][0]
    for head in range(2):
        of_head = params._replace(
            w_ih=half(params.w_ih, head), w_hh=params.w_hh[head], bias=half(params.bias, head)
        )
        if getattr(params, "bias_hn", None) is not None:
            of_head = of_head._replace(bias_hn=half(params.bias_hn, head))
        assert of_head.w_ih.shape[-1] == gates * 2
        assert_same(whole[..., 2 * head : 2 * head + 2], run(small, of_head)[1][0])


def test_init_draws_an_orthogonal_block_for_each_head_and_gate():
    params = LSTMVariant(D, 6, heads=2, **WIDE).init(jax.random.key(0))
    assert params.w_hh.shape == (2, 3, 12)
    for head in params.w_hh:
        for block in np.split(head, 4, axis=-1):
            np.testing.assert_allclose(block.T @ block, np.eye(3), atol=1e-12)
    assert not np.allclose(params.w_hh[0], params.w_hh[1])


# --- limits and norms ---------------------------------------------------------------------------


def test_clip_limits_the_preactivations():
    cell = LSTMVariant(D, H, clip=0.5, **WIDE)
    params = helpers.random_params(cell)
    gates = cell.gates(params, cell.initial_carry((3,)), 1e9 * sequence()[0])
    for gate, f in zip(gates, (oracle.sigmoid, oracle.sigmoid, np.tanh, oracle.sigmoid), strict=True):
        assert np.all(np.isclose(gate, f(0.5)) | np.isclose(gate, f(-0.5)))


@pytest.mark.parametrize("layer_norm", [None, "tfa", "haste"])
def test_cell_clip_limits_the_cell_state(layer_norm):
    cell = LSTMVariant(D, H, cell_clip=0.3, layer_norm=layer_norm, **WIDE)
    (_, c), (_, (_, carries)) = run(cell, helpers.random_params(cell))
    assert np.max(np.abs(carries)) == 0.3 and np.all(np.abs(c) <= 0.3)


def test_the_two_layer_norms_carry_different_cell_states():
    """With scales of 1, the c of "tfa" has mean 0 and variance 1; that of "haste" does not."""
    xs, states = sequence(), {}
    for which in ("tfa", "haste"):
        cell = LSTMVariant(D, H, layer_norm=which, **WIDE)
        params = helpers.random_params(cell)._replace(norm=cell.init(jax.random.key(0)).norm)
        _, (_, (_, states[which])) = run(cell, params, xs)
    np.testing.assert_allclose(np.mean(states["tfa"], axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose(np.var(states["tfa"], axis=-1), 1, atol=0.1)
    assert np.all(np.abs(np.mean(states["haste"][0], axis=-1)) > 1e-3)


@pytest.mark.parametrize("layer_norm", ["tfa", "haste"])
def test_layer_norm_is_invariant_to_the_scale_of_the_weights(layer_norm):
    cell = LSTMVariant(D, H, layer_norm=layer_norm, **WIDE)
    params = helpers.random_params(cell)
    scaled = params._replace(w_ih=1e4 * params.w_ih, w_hh=1e4 * params.w_hh)
    # Large scales, because of the epsilon in the square root.
    big = params._replace(w_ih=1e8 * params.w_ih, w_hh=1e8 * params.w_hh)
    assert_same(run(cell, scaled), run(cell, big), rtol=1e-5, atol=1e-6)


# --- greff2017, steps and gates -----------------------------------------------------------------

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


def test_greff2017():
    assert {name: greff2017(name, D, H) for name in NAMES} == NAMES
    assert greff2017("NOG", D, H, use_bias=False).use_bias is False
    with pytest.raises(ValueError, match=r"greff2017 got name='XYZ'.*'CIFG'.*'FGR'"):
        greff2017("XYZ", D, H)


def test_numbers_of_parameters():

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
def test_step_agrees_with_the_equations(which):
    given = problem(BY_NAME[which], batch=())
    x = sequence()[0, 0]
    expected = BY_NAME[which].oracle.step(given.params, given.carry, x)
    assert_same(jax.device_get(jax.jit(given.network.step)(given.params, given.carry, x)), expected)


@pytest.mark.parametrize("which", [row.name for row in variant_cases.LSTMS])
def test_gates_agree_with_the_step(which):
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
    visible = normalised(c) if cell.layer_norm == "haste" else c
    h = o * (visible if cell.ablation == "no_output_activation" else np.tanh(visible))
    h = h if cell.proj_size is None else h @ params.w_hr
    assert_same(cell.step(params, given.carry, x), ((jnp.asarray(h), jnp.asarray(c)), jnp.asarray(h)))


def test_full_gate_lstm_step_equals_the_step_of_the_cell():
    given = problem(BY_NAME["full_gate_lstm"])
    x = sequence()[0]
    assert_same(
        lstm_jax.full_gate_lstm_step(given.params, given.carry, x),
        given.network.step(given.params, given.carry, x),
    )


def test_options_that_are_off_cost_nothing():
    """The gradient has as many matrix products as that of an LSTM."""
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
    of_plain = plain.init(jax.random.key(0))

    def products(cell, params):
        program = jax.make_jaxpr(jax.grad(lambda p: unroll(cell, p, xs)[1].sum()))(params)
        return sum(eqn.primitive.name == "dot_general" for eqn in helpers.equations(program.jaxpr))

    assert_same(run(off, params, xs), run(plain, of_plain, xs), rtol=0, atol=0)
    assert products(off, params) == products(plain, of_plain) > 0


# --- errors -------------------------------------------------------------------------------------


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
            "coupled=True with ablation='no_input_gate'; expected at most one of the two",
        ),
        (lambda: LSTMVariant(D, 4, coupled=True, ablation="no_forget_gate"), "coupled gates are one gate"),
        (lambda: LSTMVariant(D, 4, ablation="NIG"), "ablation='NIG'; expected one of 'no_input_gate'"),
        (lambda: LSTMVariant(D, 4, clip=0), "clip=0; expected a positive number"),
        (lambda: LSTMVariant(D, 4, cell_clip=-1.0), "cell_clip=-1.0; expected a positive number"),
        (lambda: LSTMVariant(D, 4, clip=True), "clip=True; expected a positive number"),
        (lambda: LSTMVariant(D, 4, layer_norm="keras"), "layer_norm='keras'; expected one of 'tfa', 'haste'"),
    ],
)
def test_errors_of_options(build, message):
    helpers.assert_raises(build, message)


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
def test_errors_of_parameters(options, change, message):
    cell = LSTMVariant(D, H, **options, **WIDE)
    params = helpers.random_params(cell)._replace(**change)
    helpers.assert_raises(lambda: unroll(cell, params, sequence()), message)


def test_free_steps_raise_on_parameters_of_variants():
    given = problem(BY_NAME["lstm_norm_tfa"])
    with pytest.raises(ValueError, match="lstm_step got parameters of type LSTMVariantParams"):
        lstm_jax.lstm_step(given.params, given.carry, sequence()[0])
    with pytest.raises(ValueError, match="gru_step got parameters of type GRUVariantParams"):
        lstm_jax.gru_step(
            helpers.random_params(GRUVariant(D, H, reset_after=False)), np.zeros((3, H)), sequence()[0]
        )
