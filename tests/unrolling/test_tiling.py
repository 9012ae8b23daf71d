"""The tiling of the fused scan: its rules, and that it changes no result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_case import D
from cell_cases import BY_NAME, CELL_CASES
from helpers import brief, daily, equations, several_devices

import lstm_jax
from lstm_jax import GRU, LSTM, _devices
from lstm_jax.unrolling import fused_scan, tiling
from lstm_jax.unrolling.api import _compiled

T, B = 7, 6
SPLIT = [m for m in CELL_CASES if "fused" in m.implementation and not m.variant]


@pytest.fixture
def small_tiles(is_single_cpu_device, monkeypatch):
    """Chunks of 3 steps (2 for tangents), which do not divide T, 3 batch splits and 2 steps per loop body."""
    tilings = {rows: tiling.Tiling(3, 2, 3 if rows else 1, 2) for rows in (True, False)}
    monkeypatch.setattr(fused_scan, "choose_tiling", lambda *_, rows: tilings[rows])


def tiling_for(case):
    """The tiling of an LSTM with B, T, D, H."""
    rows, steps, features, units = case
    cell = LSTM(features, units)
    xs = jax.ShapeDtypeStruct((steps, rows, features), jnp.float32)
    carry = jax.ShapeDtypeStruct((rows, units), jnp.float32)
    return fused_scan.tiling_of(cell, jax.eval_shape(cell.init, jax.random.key(0)), (carry, carry), xs)


@pytest.mark.parametrize(
    "case, expected",
    [
        ((1, 100, 128, 128), (None, None, 1)),
        ((32, 100, 128, 128), (None, 25, 1)),  # 6.25 MiB of projected inputs
        ((20, 35, 200, 200), (None, None, 1)),  # the weights are nearly a third of the projected inputs
        ((64, 128, 256, 256), (8, 8, 1)),  # 32 MiB
        ((32, 128, 512, 512), (8, 16, 1)),  # tangents: as many rows (16 * 32) as units
        ((20, 35, 650, 650), (None, None, 1)),  # heavy weights
        ((128, 28, 28, 128), (None, 7, 12)),
        ((8, 1000, 64, 64), (None, 250, 1)),  # 7.8 MiB
        ((512, 40, 32, 32), (8, 8, 1)),
        ((256, 30, 32, 256), (2, 2, 1, 1, True)),  # chunks of few steps
        ((600, 4, 20, 128), (None, 1, 1, 1, True)),  # the same size of a step, but no chunks
        ((128, 60, 30, 256), (4, 4, 1)),
        ((64, 8, 1024, 1024), (None, None, 1)),  # few rows
        ((500, 15, 32, 128), (1, 1, 1, 1, True)),  # 15.6 million multiplications a step
        ((600, 20, 20, 64), (2, 2, 12)),
        ((64, 20, 128, 128), (None, 5, 12)),
        ((32, 100, 32, 32), (None, 25, 1)),  # a quarter of the steps; too little work for batch splits
        ((32, 40, 32, 32), (None, None, 1)),  # 0.6 MiB
        ((0, 100, 128, 128), (None, None, 1)),
        ((32, 0, 128, 128), (None, None, 1)),
    ],
)
def test_the_rules_by_example(is_single_cpu_device, case, expected):
    assert tiling_for(case) == tiling.Tiling(*expected)


@pytest.mark.parametrize("batch", [(), (64,)], ids=str)
def test_batches_of_images_are_not_split(is_single_cpu_device, batch):
    cell = lstm_jax.ConvLSTM((64, 128), 128, (3,))
    params = jax.eval_shape(cell.init, jax.random.key(0))
    carry = jax.eval_shape(lambda: cell.initial_carry(batch))
    xs = jax.ShapeDtypeStruct((20, *batch, 64, 128), jnp.float32)
    assert fused_scan.tiling_of(cell, params, carry, xs).batch_splits == 1
    # A batch of vectors with the same sizes is split.
    state, u = (jax.ShapeDtypeStruct((64, n), jnp.float32) for n in (128, 512))
    assert tiling.choose_tiling(20, state, u).batch_splits > 1
    assert tiling.choose_tiling(20, state, u, rows=False).batch_splits == 1


def test_two_directions_have_half_the_batch_splits(is_single_cpu_device):
    network = lstm_jax.Bidirectional(LSTM(128, 128))
    params = jax.eval_shape(network.init, jax.random.key(0))
    plan = lstm_jax.explain(network, params, jax.ShapeDtypeStruct((20, 32, 128), jnp.float32))
    assert plan.layers[0].tiling == str(tiling.Tiling(None, 5, 6))


def test_both_loops_have_the_number_of_steps_per_body(monkeypatch):
    cell = LSTM(D, 2)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((T, B, D))

    def loops(steps):
        monkeypatch.setattr(tiling, "UNROLL", steps)
        _compiled.clear_cache()
        program = jax.make_jaxpr(jax.grad(lambda p: jnp.sum(lstm_jax.unroll(cell, p, xs)[1])))(params)
        return [eqn.params["unroll"] for eqn in equations(program.jaxpr) if eqn.primitive.name == "scan"]

    assert loops(1) == [1, 1]
    assert loops(3) == [3, 3]
    _compiled.clear_cache()


@several_devices
def test_nothing_is_divided_on_several_devices():
    assert jax.device_count() == 4  # conftest
    assert not _devices.is_single_cpu_device()
    assert tiling_for((64, 128, 256, 256)) == tiling.Tiling()


@pytest.mark.parametrize("devices, backend", [(2, "cpu"), (1, "gpu")])
def test_is_single_cpu_device(monkeypatch, devices, backend):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert _devices.is_single_cpu_device()
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert not _devices.is_single_cpu_device()


@pytest.mark.parametrize(
    "T, steps, expected",
    [(100, 32, 25), (128, 8, 8), (35, 33, None), (7, 3, 3), (13, 5, 5), (10, 0, 1), (5, 9, None), (4, 2, 2)],
)
def test_even_divisor(T, steps, expected):
    assert tiling.even_divisor(T, steps) == expected


def weights_for(leaf):
    """Different weights for all entries of an array."""
    return np.sin(1.0 + np.arange(leaf.size)).reshape(leaf.shape).astype(leaf.dtype)


def results_with_all_options(network, implementation, event):
    """Values and gradients with lengths, resets, truncation and all carries, in both directions."""
    keys = jax.random.split(jax.random.key(0), 5)
    params = network.init(keys[0])
    xs = jax.random.normal(keys[1], (T, B, *event))
    carry = jax.tree.map(lambda a: a + 0.1, network.initial_carry((B,), params))
    lengths = np.array([7, 6, 0, 3, 1, 5])
    resets = jax.random.bernoulli(keys[2], 0.3, (T, B))

    def run(params, xs, carry, reverse):
        return lstm_jax.unroll(
            network,
            params,
            xs,
            carry,
            lengths=lengths,
            resets=resets,
            reverse=reverse,
            truncate=4,
            return_carries=True,
            implementation=implementation,
        )

    def loss(params, xs, carry, reverse):
        return sum(
            jnp.sum(leaf * weights_for(leaf)) for leaf in jax.tree.leaves(run(params, xs, carry, reverse))
        )

    results = []
    for reverse in (False, True):
        results.append(run(params, xs, carry, reverse))
        results.append(jax.grad(loss, (0, 1, 2))(params, xs, carry, reverse))
    return results


def assert_same_as_scan(case):
    """Values and gradients of "auto" are those of the plain scan, with all options."""
    network = case.build(param_dtype=jnp.float64)
    tiled = results_with_all_options(network, "auto", case.event)
    whole = results_with_all_options(network, "scan", case.event)
    for a, b in zip(jax.tree.leaves(tiled), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.usefixtures("x64", "small_tiles")
@pytest.mark.parametrize("case", daily(SPLIT, BY_NAME["lstm"]), ids=lambda case: case.name)
def test_chunks_and_batch_splits_change_no_value_and_no_gradient(case):
    assert_same_as_scan(case)


@pytest.mark.usefixtures("x64", "is_single_cpu_device")
@pytest.mark.parametrize("case", daily(SPLIT, BY_NAME["gru"]), ids=lambda case: case.name)
def test_projecting_in_the_loop_changes_no_value_and_no_gradient(monkeypatch, case):
    inside = tiling.Tiling(3, 2, project_inside=True)
    monkeypatch.setattr(fused_scan, "choose_tiling", lambda *_, rows: inside)
    assert_same_as_scan(case)


def test_chunks_of_few_steps_are_projected_in_the_loop_unless_residuals_are_stored(is_single_cpu_device):
    cell = LSTM(8, 256)
    params = cell.init(jax.random.key(0))
    xs = jnp.ones((12, 256, 8))

    def outputs(params):
        return lstm_jax.unroll(cell, params, xs)[1]

    def rows(f):
        return {eqn.invars[0].aval.shape[0] for eqn in loop_products(jax.make_jaxpr(f)(params).jaxpr)}

    chunk = tiling_for((256, 12, 8, 256)).chunk
    assert chunk == 2
    assert rows(outputs) == {256}
    program = jax.make_jaxpr(outputs)(params).jaxpr
    assert sum(eqn.primitive.name == "scan" for eqn in equations(program)) == 1
    assert rows(lambda p: jax.vjp(outputs, p)[0]) == {256, chunk * 256}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "cell",
    [
        lstm_jax.VariationalDropout(LSTM(D, 4), recurrent=0.5),
        lstm_jax.VariationalDropout(GRU(D, 4), inputs=0.5),
        lstm_jax.Zoneout(LSTM(D, 4), rates=0.5),
        lstm_jax.CandidateDropout(GRU(D, 4), rate=0.5),
    ],
    ids=brief,
)
def test_a_batch_with_noise_is_not_split(cell):
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (T, B, D))
    tiled, whole = (
        lstm_jax.unroll(cell, params, xs, key=jax.random.key(2), implementation=name)[1]
        for name in ("fused", "scan")
    )
    np.testing.assert_allclose(tiled, whole, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("x64", "small_tiles")
@pytest.mark.parametrize("checkpoint", [None, 4])
def test_second_derivatives_of_a_tiled_scan(checkpoint):
    cell = GRU(D, 2, param_dtype=jnp.float64)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (T, 3, D))

    def loss(params, implementation):
        ys = lstm_jax.unroll(cell, params, xs, checkpoint=checkpoint, implementation=implementation)[1]
        return jnp.sum(jnp.sin(ys) * weights_for(ys))

    def products(implementation):
        def gradient(params):
            return jax.grad(loss)(params, implementation)

        direction = jax.tree.map(weights_for, params)
        forward_over_reverse = jax.jvp(gradient, (params,), (direction,))
        reverse_over_reverse = jax.vjp(gradient, params)[1](direction)
        return forward_over_reverse, reverse_over_reverse

    for a, b in zip(jax.tree.leaves(products("fused")), jax.tree.leaves(products("scan")), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)


def loop_products(jaxpr, inside=False):
    """The matrix products inside loops."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general" and inside:
            found.append(eqn)
        loops = inside or eqn.primitive.name == "scan"
        for part in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda a: hasattr(a, "eqns")):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                found += loop_products(inner, loops)
    return found


@pytest.mark.slow
def test_batch_splits_have_separate_products_unless_residuals_are_stored(is_single_cpu_device):
    cell = LSTM(4, 128)
    params = cell.init(jax.random.key(0))
    xs = jnp.ones((3, 64, 4))

    def outputs(params):
        return lstm_jax.unroll(cell, params, xs)[1]

    shapes = [eqn.invars[0].aval.shape for eqn in loop_products(jax.make_jaxpr(outputs)(params).jaxpr)]
    assert len(shapes) == tiling.SPLIT_PRODUCTS and sum(rows for rows, _ in shapes) == 64
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: outputs(p).sum()))(params).jaxpr
    assert all(64 in eqn.invars[0].aval.shape for eqn in loop_products(jaxpr))


@pytest.mark.parametrize("joined", [True, pytest.param(False, marks=several_devices)])
def test_a_weight_gradient_sums_over_one_axis_on_a_single_cpu_device(request, joined):
    """Time and batch are joined, because XLA for CPUs copies before it sums over two axes."""
    if joined:
        request.getfixturevalue("is_single_cpu_device")
    cell = LSTM(4, 8)
    params = cell.init(jax.random.key(0))
    program = jax.make_jaxpr(jax.grad(lambda p: lstm_jax.unroll(cell, p, jnp.ones((5, 3, 4)))[1].sum()))(
        params
    )
    products = [eqn for eqn in equations(program.jaxpr) if eqn.primitive.name == "dot_general"]
    sums = [tuple(map(len, eqn.params["dimension_numbers"][0])) for eqn in products]
    assert ((2, 2) in sums) != joined
    assert all(n == (1, 1) for n in sums) == joined


@pytest.mark.usefixtures("small_tiles")
def test_several_batch_axes_are_split_along_the_first():
    cell = LSTM(D, 4)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (T, 3, 2, D))
    tiled, whole = (lstm_jax.unroll(cell, params, xs, implementation=name)[1] for name in ("fused", "scan"))
    np.testing.assert_allclose(tiled, whole, atol=1e-6)


def test_windows_of_one_row_need_no_copies(is_single_cpu_device):
    """Temporary memory is little more than the outputs and their cotangents."""
    T, H = 40_000, 8
    cell = LSTM(4, H)
    params = jax.eval_shape(cell.init, jax.random.key(0))
    xs, weights = (jax.ShapeDtypeStruct((T, 1, n), jnp.float32) for n in (4, H))

    def loss(params, xs, weights):
        return jnp.sum(lstm_jax.unroll(cell, params, xs, checkpoint="sqrt")[1] * weights)

    compiled = jax.jit(jax.value_and_grad(loss)).lower(params, xs, weights).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2.3 * (4 * T * H)


@pytest.mark.parametrize("cell", [LSTM(16, 32), GRU(16, 32)], ids=["lstm", "gru"])
@pytest.mark.parametrize("data_too", daily([False, True]), ids=["one vmap", "inside a vmap over data"])
def test_an_ensemble_stores_no_projected_inputs(is_single_cpu_device, cell, data_too):
    """Networks mapped over by ``vmap`` project in the loop; the results are those of each network alone."""
    params = jax.vmap(cell.init)(jax.random.split(jax.random.key(0), 3))
    xs = jax.random.normal(jax.random.key(1), (2, 3, 40, 8, 16) if data_too else (3, 40, 8, 16))

    def outputs(params, xs):
        return lstm_jax.unroll(cell, params, xs)[1]

    ensemble = jax.vmap(outputs)
    program = jax.jit(jax.vmap(ensemble, (None, 0)) if data_too else ensemble).lower(params, xs).compile()
    projected = xs[..., :1].size * params.w_ih.shape[-1] * 4
    assert program.memory_analysis().temp_size_in_bytes < projected
    for index in np.ndindex(xs.shape[:-3]):
        alone = outputs(jax.tree.map(lambda a, last=index[-1]: a[last], params), xs[index])
        np.testing.assert_allclose(program(params, xs)[index], alone, atol=1e-6)
