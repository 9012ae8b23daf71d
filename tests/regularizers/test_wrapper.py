"""Noise of all regularisers: the same in every implementation, in windows and over devices."""

from functools import partial

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import user_cells
from cell_case import D
from helpers import assert_same, gradients, random_arrays, random_params, residual_size, total
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
    unroll,
)
from lstm_jax._random import ONCE

pytestmark = pytest.mark.usefixtures("x64")

T, B, H = 6, 3, 4
KEY = jax.random.key(5)
WIDE = {"param_dtype": "float64"}
CELL = LSTM(D, H, **WIDE)

#: Each regulariser, and combinations.
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
    "all_reversed": WeightDrop(
        VariationalDropout(CandidateDropout(Zoneout(CELL, rates=0.3), 0.5, mask="sequence"), inputs=0.2), 0.5
    ),
    "leaky": LeakyRNN(D, H, noise=0.5, **WIDE),
    "zoneout_leaky": Zoneout(LeakyRNN(D, H, noise=0.5, form="rate", **WIDE), rates=0.5),
    "user": Zoneout(user_cells.Leaky("float64"), rates=(0.5, 0.0)),
    "minimal": VariationalDropout(WeightDrop(MinGRU(D, H, **WIDE), 0.3, weights=("w_ih",)), inputs=0.3),
    "readout": VariationalDropout(Readout(D, H, **WIDE), inputs=0.5),
}
EVERY = pytest.mark.parametrize("name", NOISY)
#: Only the combinations of all regularisers are not slow.
DAILY = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("all", "minimal") else pytest.mark.slow) for name in NOISY],
)
FUSED = {"zoneout_scan": "scan", "zoneout_projected": "scan", "user": "scan", "readout": "vmap"}


def arguments(cell):
    """Random parameters and inputs."""
    return random_params(cell), *random_arrays((T, B, D), dtype=np.float64)


@partial(jax.jit, static_argnames=("cell", "sizes", "options"))
def solve(cell, params, xs, key, flags, sizes=(T,), options=()):
    """Values and gradients, in windows of these sizes."""

    def f(params, xs, carry):
        options_, parts, at = dict(options), [], 0
        for size in sizes:
            window_flags = {name: flag[at : at + size] for name, flag in flags.items()}
            carry, out = unroll(
                cell,
                params,
                xs[at : at + size],
                carry,
                key=key,
                start=at,
                return_carries=True,
                **window_flags,
                **options_,
            )
            parts.append(out)
            at += size
        return carry, jax.tree.map(lambda *a: jnp.concatenate(a), *parts)

    return gradients(f, params, xs, cell.initial_carry((B,), params))


def problem(cell):
    """Random parameters, inputs with NaN at invalid steps, and flags."""
    params, xs = arguments(cell)
    rng = np.random.default_rng(1)
    flags = {"mask": rng.random((T, B)) < 0.7, "resets": rng.random((T, B)) < 0.2}
    return params, np.where(flags["mask"][..., None], xs, np.nan), flags


@EVERY
def test_the_implementation_of_auto(name):
    cell = NOISY[name]
    params, xs = arguments(cell)
    for key in (None, KEY):
        assert lstm_jax.explain(cell, params, xs, key=key).implementation == FUSED.get(name, "fused")


@pytest.mark.parametrize("name", helpers.daily(NOISY, "zoneout"))
def test_noise_is_the_same_in_all_implementations_checkpoints_and_windows(name):
    cell = NOISY[name]
    params, xs, flags = problem(cell)
    run = partial(solve, cell, params, xs, KEY, flags)
    expected = run(options=(("implementation", "scan"),))
    assert_same(run(), expected)
    assert_same(run(options=(("checkpoint", 4),)), expected)
    assert_same(run(sizes=(2, 3, 1)), expected)
    (_, (ys, _)), (_, dxs, _) = expected
    assert np.all(np.isfinite(ys)) and np.all(np.isfinite(dxs)) and np.any(dxs != 0)
    other = solve(cell, params, xs, jax.random.key(6), flags, options=(("implementation", "scan"),))
    assert np.any(np.asarray(other[0][1][0]) != np.asarray(ys))


def test_noise_is_the_same_in_the_associative_scan():
    params, xs, flags = problem(NOISY["minimal"])
    run = partial(solve, NOISY["minimal"], params, xs, KEY, flags)
    assert_same(run(options=(("implementation", "parallel"),)), run())


def test_zoneout_is_not_a_parallel_cell():
    """It changes the recurrence, so the coefficients of the wrapped cell do not apply."""
    assert not hasattr(Zoneout(MinGRU(D, H), rates=0.5), "coefficients")


@pytest.mark.parametrize("name", helpers.daily(["all", "zoneout_projected"], "zoneout_projected"))
@pytest.mark.slow
def test_noise_in_reverse(name):
    cell = NOISY[name]
    params, xs, flags = problem(cell)
    run = partial(solve, cell, params, xs, KEY, flags)
    expected = run(options=(("implementation", "scan"), ("reverse", True)))
    assert_same(run(options=(("reverse", True), ("checkpoint", 4))), expected)


@DAILY
def test_unroll_equals_a_loop_over_perturb_draw_and_step(name):
    cell, start = NOISY[name], 3
    params, xs = arguments(cell)
    carry, stepped = cell.initial_carry((B,), params), []
    noisy = params
    if hasattr(cell, "perturb"):
        noisy = cell.perturb(params, jax.random.fold_in(KEY, ONCE), carry, xs[0])
    for t in range(T):
        carry, y = cell.step(noisy, carry, xs[t], cell.draw(jax.random.fold_in(KEY, start + t), carry))
        stepped.append(y)
    assert_same(unroll(cell, params, xs, key=KEY, start=start), (carry, jnp.stack(stepped)))


@DAILY
def test_without_a_key_there_is_no_noise(name):
    """The results are those of the wrapped cell, except for Zoneout, which then uses its expectation."""
    cell = NOISY[name]
    params, xs = arguments(cell)
    noiseless = unroll(cell, params, xs)
    assert_same(noiseless, unroll(cell, params, xs, implementation="auto", start=5))
    inside, zoned = cell, False
    while hasattr(inside, "cell"):
        zoned |= isinstance(inside, Zoneout)
        inside = inside.cell
    same = np.allclose(noiseless[1], unroll(inside, params, xs)[1], rtol=1e-12)
    assert same != zoned


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_any_generator(impl):
    """Also generators that draw other numbers under vmap."""
    cell = NOISY["all"]
    params, xs = arguments(cell)
    for key in (jax.random.key(3, impl=impl), jax.random.key_data(jax.random.key(3, impl=impl))):
        whole = unroll(cell, params, xs, key=key)
        assert_same(unroll(cell, params, xs, key=key, implementation="scan"), whole)
        carry, first = unroll(cell, params, xs[:4], key=key)
        carry, last = unroll(cell, params, xs[4:], carry, key=key, start=4)
        assert_same((carry, jnp.concatenate([first, last])), whole)
        assert np.any(whole[1] != unroll(cell, params, xs)[1])


@pytest.mark.slow
def test_networks_of_noisy_cells():
    """Noise differs between layers and between directions."""
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
def test_transforms_of_noisy_cells():
    """vmap over keys, forward mode and second derivatives."""
    cell = NOISY["all"]
    params, xs = arguments(cell)
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
    cell = NOISY["all"]
    params, _ = arguments(cell)
    xs = np.ones((*shape, D))
    ys = {how: unroll(cell, params, xs, key=KEY, implementation=how) for how in ("auto", "scan")}
    assert_same(ys["auto"], ys["scan"])
    grads = jax.grad(lambda p: total(unroll(cell, p, xs, key=KEY)))(params)
    assert ys["auto"][1].shape == (*shape, H) and all(map(np.all, map(np.isfinite, jax.tree.leaves(grads))))


@pytest.mark.parametrize(
    "axis_type", helpers.daily([AxisType.Auto, AxisType.Explicit]), ids=lambda axis_type: axis_type.name
)
@pytest.mark.slow
@helpers.several_devices
def test_noise_does_not_depend_on_sharding(axis_type):
    """Rows on four devices have the noise of one device."""
    cell = NOISY["all"]
    params, _ = arguments(cell)
    xs = np.random.default_rng(1).normal(size=(T, 8, D))
    expected = unroll(cell, params, xs, key=KEY)[1]
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(xs, NamedSharding(mesh, PartitionSpec(None, "rows")))
        run = jax.jit(lambda params, xs: unroll(cell, params, xs, key=KEY)[1])
        found = run(params, sharded)
        jax.jit(jax.grad(lambda params, xs: run(params, xs).sum()))(params, sharded)
    assert found.sharding.spec[:2] == (None, "rows")
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12)


@pytest.mark.slow
def test_noise_with_symbolic_sizes():
    cell = NOISY["all"]
    params, xs = arguments(cell)
    steps, rows = export.symbolic_shape("T, B")
    run = jax.jit(lambda xs: unroll(cell, params, xs, key=KEY)[1])
    program = export.export(run)(jax.ShapeDtypeStruct((steps, rows, D), "float64"))
    np.testing.assert_allclose(program.call(xs), run(xs), rtol=1e-12)


def test_noise_is_not_stored_for_the_backward_pass():
    """Only the indices of the steps are stored."""
    steps = 50
    shapes = jax.eval_shape(CELL.init, KEY), jax.ShapeDtypeStruct((steps, B, D), "float64")

    def stored(cell, **options):
        return residual_size(lambda *args: unroll(cell, *args, key=KEY, **options)[1], *shapes)

    for name in ("candidate", "zoneout"):
        assert stored(NOISY[name]) - stored(CELL) < 2 * steps
        assert stored(NOISY[name], checkpoint=5) - stored(CELL, checkpoint=5) < 2 * steps
        assert stored(NOISY[name], checkpoint=5, implementation="scan") < stored(CELL) / 2


def test_equal_wrappers_are_equal():
    assert Zoneout(CELL, rates=[0.1, 0]) == Zoneout(CELL, rates=(0.1, 0.0))
    assert hash(WeightDrop(CELL, 0.5, weights=["w_hh"])) == hash(WeightDrop(CELL, 0.5))
