"""Noise by one rule whichever implementation runs; and what each regulariser does is what its paper says."""

import itertools
from functools import partial

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import user_cells
from cell_case import D
from helpers import assert_same, gradients, total
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lstm_jax
from lstm_jax import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    CandidateDropout,
    GRUVariant,
    LeakyRNN,
    LSTMVariant,
    MinGRU,
    Readout,
    Stack,
    VariationalDropout,
    WeightDrop,
    Zoneout,
    activation_regularization,
    temporal_activation_regularization,
    unroll,
)
from lstm_jax._random import ONCE

pytestmark = pytest.mark.usefixtures("x64", "quick_compiles")

T, B, H = 6, 3, 4
KEY = jax.random.key(5)
WIDE = {"param_dtype": "float64"}
CELL = LSTM(D, H, **WIDE)
#: Each regulariser, and any of them around any other.
NOISY = {
    "variational": VariationalDropout(CELL, inputs=0.3, recurrent=0.4),
    "weight_drop": WeightDrop(CELL, 0.5),
    "candidate": CandidateDropout(CELL, 0.5),
    "candidate_sequence": CandidateDropout(GRU(D, H, **WIDE), 0.5, mask="sequence"),
    "zoneout": Zoneout(CELL, rates=(0.3, 0.5)),
    "zoneout_scan": Zoneout(GRUVariant(D, H, reset_after=False, **WIDE), rates=0.5),
    "projected": VariationalDropout(LSTMVariant(D, H, proj_size=2, peepholes=True, **WIDE), recurrent=0.4),
    "zoneout_projected": Zoneout(LSTMVariant(D, H, proj_size=2, **WIDE), rates=0.5),
    "all": Zoneout(
        CandidateDropout(VariationalDropout(WeightDrop(CELL, 0.5), inputs=0.2, recurrent=0.2), 0.5), rates=0.3
    ),
    "all_the_other_way": WeightDrop(
        VariationalDropout(CandidateDropout(Zoneout(CELL, rates=0.3), 0.5, mask="sequence"), inputs=0.2), 0.5
    ),
    "leaky": LeakyRNN(D, H, noise=0.5, **WIDE),
    "zoneout_leaky": Zoneout(LeakyRNN(D, H, noise=0.5, form="rate", **WIDE), rates=0.5),
    "user": Zoneout(user_cells.Leaky("float64"), rates=(0.5, 0.0)),
    "minimal": VariationalDropout(
        WeightDrop(MinGRU(D, H, **WIDE), 0.3, weights=("w_ih",)), inputs=0.3, recurrent=0.3
    ),
    "readout": VariationalDropout(Readout(D, H, **WIDE), inputs=0.5),
}
EVERY = pytest.mark.parametrize("name", NOISY)
#: Whole programs of all at once every day, those of each for ``make test-slow``.
DAILY = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("all", "minimal") else pytest.mark.slow) for name in NOISY],
)
FUSED = {"zoneout_scan": "scan", "zoneout_projected": "scan", "user": "scan", "readout": "vmap"}


def drawn(cell, seed=0):
    """Random parameters and inputs."""
    rng = np.random.default_rng(seed)
    params = helpers.random_like(rng, jax.eval_shape(cell.init, jax.random.key(0)))
    return params, rng.normal(size=(T, B, D))


@partial(jax.jit, static_argnames=("cell", "sizes", "options"))
def solved(cell, params, xs, key, flags, sizes=(T,), options=()):
    """Values and gradients, in windows of these sizes."""

    def f(params, xs, carry):
        options_, parts, at = dict(options), [], 0
        for size in sizes:
            said = {name: flag[at : at + size] for name, flag in flags.items()}
            carry, out = unroll(
                cell,
                params,
                xs[at : at + size],
                carry,
                key=key,
                start=at,
                return_carries=True,
                **said,
                **options_,
            )
            parts.append(out)
            at += size
        return carry, jax.tree.map(lambda *a: jnp.concatenate(a), *parts)

    return gradients(f, params, xs, cell.initial_carry((B,), params))


def problem(cell, seed=0):
    params, xs = drawn(cell, seed)
    rng = np.random.default_rng(seed + 1)
    flags = {"mask": rng.random((T, B)) < 0.7, "resets": rng.random((T, B)) < 0.2}
    return params, np.where(flags["mask"][..., None], xs, np.nan), flags


# --- one rule -----------------------------------------------------------------------------------


@EVERY
def test_what_runs(name):
    cell = NOISY[name]
    params, xs = drawn(cell)
    for key in (None, KEY):
        assert lstm_jax.explain(cell, params, xs, key=key).implementation == FUSED.get(name, "fused")


@pytest.mark.parametrize("name", helpers.daily(NOISY, "zoneout"))
def test_every_implementation_sees_the_same_noise(name):
    """Forward and in reverse, with windows of the memory policy, and handed on from window to window."""
    cell = NOISY[name]
    params, xs, flags = problem(cell)
    run = partial(solved, cell, params, xs, KEY, flags)
    expected = run(options=(("implementation", "scan"),))
    assert_same(run(), expected)
    assert_same(run(options=(("checkpoint", 4),)), expected)
    assert_same(run(sizes=(2, 3, 1)), expected)
    (_, (ys, _)), (_, dxs, _) = expected
    assert np.all(np.isfinite(ys)) and np.all(np.isfinite(dxs)) and np.any(dxs != 0)
    other = solved(cell, params, xs, jax.random.key(6), flags, options=(("implementation", "scan"),))
    assert np.any(np.asarray(other[0][1][0]) != np.asarray(ys))


def test_all_steps_at_once_see_it_too():
    params, xs, flags = problem(NOISY["minimal"])
    run = partial(solved, NOISY["minimal"], params, xs, KEY, flags)
    assert_same(run(options=(("implementation", "parallel"),)), run())


def test_zoneout_is_a_matter_of_steps():
    """It would change the recurrence, so the coefficients of the cell inside are not its own."""
    assert not hasattr(Zoneout(MinGRU(D, H), rates=0.5), "coefficients")


@pytest.mark.parametrize("name", helpers.daily(["all", "zoneout_projected"], "zoneout_projected"))
def test_in_reverse_too(name):
    cell = NOISY[name]
    params, xs, flags = problem(cell)
    run = partial(solved, cell, params, xs, KEY, flags)
    expected = run(options=(("implementation", "scan"), ("reverse", True)))
    assert_same(run(options=(("reverse", True), ("checkpoint", 4))), expected)


@DAILY
def test_noise_is_what_the_contract_says_it_is(name):
    """By hand: ``perturb`` once, ``draw`` at each absolute step, and a Python loop over ``step``."""
    cell, start = NOISY[name], 3
    params, xs = drawn(cell)
    carry, stepped = cell.initial_carry((B,), params), []
    noisy = params
    if hasattr(cell, "perturb"):
        noisy = cell.perturb(params, jax.random.fold_in(KEY, ONCE), carry, xs[0])
    for t in range(T):
        carry, y = cell.step(noisy, carry, xs[t], cell.draw(jax.random.fold_in(KEY, start + t), carry))
        stepped.append(y)
    assert_same(unroll(cell, params, xs, key=KEY, start=start), (carry, jnp.stack(stepped)))


@DAILY
def test_no_key_no_noise(name):
    """Evaluation is that of the cell inside, but for Zoneout, which then is its own expectation."""
    cell = NOISY[name]
    params, xs = drawn(cell)
    quiet = unroll(cell, params, xs)
    assert_same(quiet, unroll(cell, params, xs, implementation="auto", start=5))
    inside, zoned = cell, False
    while hasattr(inside, "cell"):
        zoned |= isinstance(inside, Zoneout)
        inside = inside.cell
    same = np.allclose(quiet[1], unroll(inside, params, xs)[1], rtol=1e-12)
    assert same != zoned


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_any_generator(impl):
    """Those that draw otherwise under vmap, too, give windows and implementations one noise."""
    cell = NOISY["all"]
    params, xs = drawn(cell)
    for key in (jax.random.key(3, impl=impl), jax.random.key_data(jax.random.key(3, impl=impl))):
        whole = unroll(cell, params, xs, key=key)
        assert_same(unroll(cell, params, xs, key=key, implementation="scan"), whole)
        carry, first = unroll(cell, params, xs[:4], key=key)
        carry, last = unroll(cell, params, xs[4:], carry, key=key, start=4)
        assert_same((carry, jnp.concatenate([first, last])), whole)
        assert np.any(whole[1] != unroll(cell, params, xs)[1])


@pytest.mark.slow
def test_networks_of_noisy_cells():
    """Layers and directions draw for themselves; both directions of one cell, too."""
    zoned = Zoneout(RNN(D, H, **WIDE), rates=0.5)
    network = Stack(
        (Bidirectional(zoned), VariationalDropout(GRU(2 * H, H, **WIDE), recurrent=0.5)), dropout=0.5
    )
    params = helpers.random_like(np.random.default_rng(0), jax.eval_shape(network.init, KEY))
    xs = np.random.default_rng(1).normal(size=(T, B, D))
    expected = unroll(network, params, xs, key=KEY, implementation="scan", return_carries=True)
    assert_same(unroll(network, params, xs, key=KEY, return_carries=True, checkpoint=4), expected)
    assert np.any(expected[1][0] != unroll(network, params, xs)[1])
    same = params[0]._replace(backward=params[0].forward)
    _, (_, carries) = unroll(Bidirectional(zoned), same, np.ones_like(xs), key=KEY, return_carries=True)
    forward, backward = carries
    assert np.any(forward != backward[::-1])  # without noise they would be equal
    _, (_, carries) = unroll(Bidirectional(zoned), same, np.ones_like(xs), return_carries=True)
    np.testing.assert_allclose(carries[0], carries[1][::-1])


@pytest.mark.slow
def test_transforms_pass_through_the_noise():
    """An ensemble over keys; forward mode; second derivatives."""
    cell = NOISY["all"]
    params, xs = drawn(cell)
    keys = jax.random.split(KEY, 2)
    many = jax.vmap(lambda key: unroll(cell, params, xs, key=key)[1])(keys)
    each = jnp.stack([unroll(cell, params, xs, key=key)[1] for key in keys])
    np.testing.assert_allclose(many, each, rtol=1e-12)

    def f(implementation, w):
        given = params._replace(w_hh=params.w_hh * w)
        return total(unroll(cell, given, xs, key=KEY, implementation=implementation))

    for derivative in (jax.jacfwd(f, 1), jax.hessian(f, 1)):
        np.testing.assert_allclose(derivative("fused", 1.0), derivative("scan", 1.0), rtol=1e-9)


@pytest.mark.parametrize("shape", helpers.daily([(0, 2), (4, 0), (3,), (2, 2, 2)], (4, 0)), ids=str)
def test_batches_and_sequences_of_any_shape(shape):
    """Also where there is nothing to draw for."""
    cell = NOISY["all"]
    params, _ = drawn(cell)
    xs = np.ones((*shape, D))
    ys = {how: unroll(cell, params, xs, key=KEY, implementation=how) for how in ("auto", "scan")}
    assert_same(ys["auto"], ys["scan"])
    grads = jax.grad(lambda p: total(unroll(cell, p, xs, key=KEY)))(params)
    assert ys["auto"][1].shape == (*shape, H) and all(map(np.all, map(np.isfinite, jax.tree.leaves(grads))))


@pytest.mark.parametrize(
    "kind", helpers.daily([AxisType.Auto, AxisType.Explicit]), ids=lambda kind: kind.name
)
def test_the_noise_does_not_depend_on_where_the_rows_are(kind):
    """Rows spread over four devices draw what they draw on one."""
    cell = NOISY["all"]
    params, _ = drawn(cell)
    xs = np.random.default_rng(1).normal(size=(T, 8, D))
    expected = unroll(cell, params, xs, key=KEY)[1]
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        spread = jax.device_put(xs, NamedSharding(mesh, PartitionSpec(None, "rows")))
        run = jax.jit(lambda params, xs: unroll(cell, params, xs, key=KEY)[1])
        found = run(params, spread)
        jax.jit(jax.grad(lambda params, xs: run(params, xs).sum()))(params, spread)
    assert found.sharding.spec[:2] == (None, "rows")
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12)


def test_noise_of_an_unknown_number_of_steps():
    cell = NOISY["all"]
    params, xs = drawn(cell)
    steps, rows = export.symbolic_shape("T, B")
    run = jax.jit(lambda xs: unroll(cell, params, xs, key=KEY)[1])
    program = export.export(run)(jax.ShapeDtypeStruct((steps, rows, D), "float64"))
    np.testing.assert_allclose(program.call(xs), run(xs), rtol=1e-12)


def test_noise_is_drawn_again_rather_than_kept():
    """What the forward pass hands to the backward pass is no larger for it, but for the steps' numbers."""
    steps = 50
    shapes = jax.eval_shape(CELL.init, KEY), jax.ShapeDtypeStruct((steps, B, D), "float64")

    def kept(cell, **options):
        def residuals(params, xs):
            return jax.vjp(lambda params: unroll(cell, params, xs, key=KEY, **options)[1], params)[1]

        return sum(a.size for a in jax.tree.leaves(jax.eval_shape(residuals, *shapes)))

    for name in ("candidate", "zoneout"):
        assert kept(NOISY[name]) - kept(CELL) < 2 * steps
        assert kept(NOISY[name], checkpoint=5) - kept(CELL, checkpoint=5) < 2 * steps
        assert kept(NOISY[name], checkpoint=5, implementation="scan") < kept(CELL) / 2


# --- each by its paper --------------------------------------------------------------------------


def test_a_zoneout_of_one_keeps_the_state():
    """And one of zero is not there."""
    params, xs = drawn(CELL)
    carry = helpers.random_like(np.random.default_rng(2), CELL.initial_carry((B,)))
    for key in (None, KEY):
        after, ys = unroll(Zoneout(CELL, rates=1.0), params, xs, carry, key=key)
        assert_same(after, jax.tree.map(jnp.asarray, carry), rtol=0, atol=0)
        assert np.all(np.asarray(ys) == carry[0])
        assert_same(
            unroll(Zoneout(CELL, rates=(0.0, 0)), params, xs, key=key), unroll(CELL, params, xs), atol=0
        )


@pytest.mark.parametrize("rates", helpers.daily([(0.0, 0.5), (0.25, 0.0), (0.25, 0.5)], (0.25, 0.5)))
def test_zoneout_keeps_its_share_of_each_state(rates):
    """Every entry is the old one or the new one; the expectation lies between them."""
    cell, rows = LSTM(D, 50, **WIDE), 100
    params = helpers.random_like(np.random.default_rng(0), jax.eval_shape(cell.init, KEY))
    old = helpers.random_like(np.random.default_rng(1), cell.initial_carry((rows,)))
    xs = np.random.default_rng(2).normal(size=(1, rows, D))
    new, _ = cell.step(params, old, xs[0])
    zoned, ys = unroll(Zoneout(cell, rates=rates), params, xs, old, key=KEY)
    mean, mean_ys = unroll(Zoneout(cell, rates=rates), params, xs, old)
    for a, b, drawn_, expected, rate in zip(old, new, zoned, mean, rates, strict=True):
        kept = np.asarray(drawn_ == a)
        assert np.all(kept | np.isclose(drawn_, b, rtol=1e-12))
        assert abs(np.mean(kept) - rate) < 0.03
        np.testing.assert_allclose(expected, rate * a + (1 - rate) * b)
    assert np.all(ys[0] == zoned[0]) and np.all(mean_ys[0] == mean[0])


def test_an_invalid_step_is_neither_zoned_out_nor_counted():
    """The carry passes it unchanged, and what comes later draws as it would have."""
    cell = Zoneout(CELL, rates=0.5)
    params, xs = drawn(cell)
    mask = np.ones((T, B), bool)
    mask[2] = False
    poisoned = np.where(mask[..., None], xs, np.nan)
    _, (ys, (h, c)) = unroll(cell, params, poisoned, mask=mask, key=KEY, return_carries=True)
    assert np.all(h[2] == h[1]) and np.all(c[2] == c[1]) and np.all(ys[2] == 0)
    after, rest = unroll(cell, params, xs[3:], (h[1], c[1]), key=KEY, start=3)
    assert_same((after, rest), (jax.tree.map(lambda a: a[-1], (h, c)), ys[3:]))


def identity_rnn(**weights):
    """h_t = x_t W + h_{t-1} R, with W and R what is given, else zeros."""
    cell = RNN(D, D, activation=jnp.positive, use_bias=False, **WIDE)
    return cell, lstm_jax.RNNParams(*(weights.get(name, np.zeros((D, D))) for name in ("w_ih", "w_hh")))


def test_variational_dropout_has_one_mask_for_all_steps():
    """Of each row's inputs, and of each row's state; what is left is scaled up."""
    rows, ones = 400, np.ones((T, 400, D))
    cell, params = identity_rnn(w_ih=np.eye(D))
    _, ys = unroll(VariationalDropout(cell, inputs=0.25), params, ones, key=KEY)
    ys = np.asarray(ys)
    assert np.all(ys == ys[0])
    np.testing.assert_allclose(np.unique(ys), [0, 4 / 3])
    assert abs(np.mean(ys == 0) - 0.25) < 0.05 and len(np.unique(ys[0], axis=0)) > 4
    cell, params = identity_rnn(w_hh=np.eye(D))
    _, ys = unroll(VariationalDropout(cell, recurrent=0.5), params, 0 * ones, np.ones((rows, D)), key=KEY)
    ys = np.asarray(ys)
    assert np.all((ys == 0) | (ys == 2.0 ** np.arange(1, T + 1)[:, None, None]))
    assert abs(np.mean(ys[-1] == 0) - 0.5) < 0.05


def test_variational_dropout_leaves_what_the_state_hands_on_to_itself():
    """A GRU whose update gate is open keeps its state through any mask."""
    cell = GRU(D, H, **WIDE)
    params = jax.tree.map(jnp.zeros_like, cell.init(KEY))
    params = params._replace(bias=params.bias.at[H : 2 * H].set(1000.0))
    h = np.random.default_rng(0).normal(size=(B, H))
    after, _ = unroll(VariationalDropout(cell, recurrent=0.5), params, np.zeros((T, B, D)), h, key=KEY)
    np.testing.assert_array_equal(after, h)


def test_weight_drop_drops_weights_for_good():
    """The same ones at all steps and in all rows; nothing is learned of them in this sequence."""
    cell = WeightDrop(LSTM(D, 30, **WIDE), 0.25)
    params, xs = drawn(cell)
    noisy = cell.perturb(params, KEY, None, None).params
    left = np.asarray(noisy.w_hh) != 0
    assert abs(np.mean(~left) - 0.25) < 0.03
    np.testing.assert_allclose(noisy.w_hh[left], params.w_hh[left] / 0.75)
    for name in ("w_ih", "bias"):
        assert np.all(getattr(noisy, name) == getattr(params, name))
    grads = jax.grad(lambda p: total(unroll(cell, p, xs, key=KEY)))(params)
    dropped = np.asarray(grads.w_hh) == 0
    assert abs(np.mean(dropped) - 0.25) < 0.03
    by_hand = params._replace(w_hh=np.where(dropped, 0, params.w_hh / 0.75))
    assert_same(unroll(cell.cell, by_hand, xs), unroll(cell, params, xs, key=KEY))


def test_weight_drop_of_other_weights():
    cell = WeightDrop(CELL, 0.5, weights=("w_ih", "bias"))
    params, _ = drawn(cell)
    noisy = cell.perturb(params, KEY, None, None).params
    assert np.all(noisy.w_hh == params.w_hh)
    assert np.any(noisy.w_ih == 0) and np.any(noisy.bias == 0)


@pytest.mark.parametrize("mask", ["step", "sequence"])
def test_candidate_dropout_loses_no_memory(mask):
    """With both gates open, c grows by g / (1 - rate) or not at all, and never shrinks."""
    units = 300
    cell = LSTMVariant(D, units, ablation="no_forget_gate", **WIDE)
    params = jax.tree.map(jnp.zeros_like, cell.init(KEY))
    params = params._replace(bias=params.bias.at[:units].set(1000.0).at[units : 2 * units].set(0.5))
    wrapped = CandidateDropout(cell, 0.25, mask=mask)
    _, (_, (_, c)) = unroll(wrapped, params, np.zeros((T, 1, D)), key=KEY, return_carries=True)
    growth = np.diff(np.asarray(c), axis=0, prepend=0)
    full = np.isclose(growth, np.tanh(0.5) / 0.75)
    assert np.all(full | (np.abs(growth) < 1e-12))
    assert abs(np.mean(~full) - 0.25) < 0.05
    assert np.all(full == full[0]) == (mask == "sequence")


# --- terms of the loss --------------------------------------------------------------------------


def test_penalties_without_padding():
    ys = np.random.default_rng(0).normal(size=(T, B, H))
    np.testing.assert_allclose(activation_regularization(ys), np.mean(ys**2))
    np.testing.assert_allclose(temporal_activation_regularization(ys), np.mean(np.diff(ys, axis=0) ** 2))


def test_penalties_see_valid_steps_alone():
    """By a loop over rows without their invalid steps; NaN there reaches neither value nor gradient."""
    rng = np.random.default_rng(3)
    ys, mask = rng.normal(size=(T, B, H)), rng.random((T, B)) < 0.6
    lengths, resets = np.array([T, 4, 0], np.int32), rng.random((T, B)) < 0.3
    valid = mask & (np.arange(T)[:, None] < lengths)
    squares, changes, unbroken = [], [], []
    for row in range(B):
        steps = np.flatnonzero(valid[:, row])
        squares += list(ys[steps, row] ** 2)
        for a, b in itertools.pairwise(steps):
            changes.append((ys[b, row] - ys[a, row]) ** 2)
            if not resets[b, row]:
                unbroken.append(changes[-1])
    assert len(changes) > len(unbroken) > 0
    poisoned = np.where(valid[..., None], ys, np.nan)
    flags = {"lengths": lengths, "mask": mask}
    for penalty, expected in (
        (partial(activation_regularization, **flags), squares),
        (partial(temporal_activation_regularization, **flags), changes),
        (partial(temporal_activation_regularization, resets=resets, **flags), unbroken),
    ):
        value, grad = jax.value_and_grad(penalty)(poisoned)
        np.testing.assert_allclose(value, np.mean(expected))
        assert np.all(np.isfinite(grad)) and np.all(grad[~valid] == 0) and np.any(grad != 0)


@pytest.mark.parametrize("steps", helpers.daily([0, 1, 2], 0, 2))
def test_penalties_of_nothing_are_zero(steps):
    ys = np.ones((steps, B, H))
    nothing = {"mask": np.zeros((steps, B), bool)}
    for penalty in (activation_regularization, temporal_activation_regularization):
        assert penalty(ys, **nothing) == 0
        assert np.all(jax.grad(lambda ys, penalty=penalty: penalty(ys, **nothing))(ys) == 0)
    assert temporal_activation_regularization(ys) == 0
    assert temporal_activation_regularization(ys, resets=np.ones((steps, B), bool)) == 0


def test_penalties_check_their_arguments():
    with pytest.raises(ValueError, match=r"activation_regularization got mask of shape \(3,\)"):
        activation_regularization(np.ones((T, B, H)), mask=np.ones(3, bool))
    with pytest.raises(ValueError, match="temporal_activation_regularization got lengths from 9 to 9"):
        temporal_activation_regularization(np.ones((T, B, H)), lengths=[9, 9, 9])


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Zoneout(CELL, rates=1.5), "Zoneout got rates=1.5; expected a rate in [0, 1]"),
        (lambda: Zoneout(CELL, rates=()), "Zoneout got rates=()"),
        (lambda: Zoneout(CELL, rates=(0.1, True)), "Zoneout got rates=(0.1, True)"),
        (lambda: Zoneout(LSTM, rates=0.5), "a cell: an object with init"),
        (lambda: WeightDrop(CELL, 1.0), "WeightDrop got rate=1.0; expected a rate in [0, 1)"),
        (lambda: WeightDrop(CELL, 0.5, weights="w_hh"), "a tuple of names"),
        (lambda: VariationalDropout(CELL, inputs=-0.1), "VariationalDropout got inputs=-0.1"),
        (
            lambda: VariationalDropout(user_cells.Leaky(), recurrent=0.5),
            "recurrent=0.5 for Leaky; expected a cell with project, recur and update",
        ),
        (
            lambda: CandidateDropout(RNN(D, H), 0.5),
            "CandidateDropout got a RNN; expected a cell whose update",
        ),
        (lambda: CandidateDropout(CELL, 0.5, mask="row"), "mask='row'; expected one of 'step', 'sequence'"),
        (lambda: Zoneout(Stack((CELL,)), rates=0.5), "Zoneout got a Stack; expected a cell. Wrap the cells"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError) as caught:
        build()
    assert message in str(caught.value)


def test_refusals_when_it_is_run():
    params, xs = drawn(CELL)
    with pytest.raises(ValueError, match="Zoneout got 3 rates for a carry of 2 states"):
        unroll(Zoneout(CELL, rates=(0.1, 0.2, 0.3)), params, xs)
    with pytest.raises(ValueError, match=r"WeightDrop got weights=\('w_xx',\) .*names among w_ih, w_hh"):
        unroll(WeightDrop(CELL, 0.5, weights=("w_xx",)), params, xs, key=KEY)


def test_equal_wrappers_are_equal():
    assert Zoneout(CELL, rates=[0.1, 0]) == Zoneout(CELL, rates=(0.1, 0.0))
    assert hash(WeightDrop(CELL, 0.5, weights=["w_hh"])) == hash(WeightDrop(CELL, 0.5))
