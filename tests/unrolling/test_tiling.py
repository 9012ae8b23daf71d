"""How the fast path is cut: by which rules, and that no cut changes a result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_case import D
from cell_cases import BY_NAME, CELL_CASES
from helpers import daily

import lstm_jax
from lstm_jax import GRU, LSTM, _devices
from lstm_jax.cells import _linear
from lstm_jax.unrolling import fused_scan, tiling, windows
from lstm_jax.unrolling.api import _compiled

T, B = 7, 6
SPLIT = [m for m in CELL_CASES if "fused" in m.implementation and not m.variant]


@pytest.fixture
def is_single_cpu_device(monkeypatch):
    """As on a machine with one CPU device. Compiled loops are found again by their cell, so: forgotten."""
    monkeypatch.setattr(tiling, "is_single_cpu_device", lambda: True)
    monkeypatch.setattr(_linear, "is_single_cpu_device", lambda: True)
    monkeypatch.setattr(windows, "is_single_cpu_device", lambda: True)
    _compiled.clear_cache()
    yield
    _compiled.clear_cache()


@pytest.fixture
def cut_small(is_single_cpu_device, monkeypatch):
    """Chunks of three steps, one left over, of two for tangents; lanes of two rows; two steps a body."""
    monkeypatch.setattr(fused_scan, "choose_tiling", lambda *_, **__: tiling.Tiling(3, 2, 3, 2))


def seen_by(case):
    """What the schedule is asked about one layer of LSTM: B, T, D, H."""
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
        ((64, 20, 128, 128), (None, 5, 12)),
        ((32, 100, 32, 32), (None, 25, 1)),  # a quarter of the steps; too little work for lanes
        ((32, 40, 32, 32), (None, None, 1)),  # 0.6 MiB
        ((0, 100, 128, 128), (None, None, 1)),
        ((32, 0, 128, 128), (None, None, 1)),
    ],
)
def test_the_rules_by_example(is_single_cpu_device, case, expected):
    assert seen_by(case) == tiling.Tiling(*expected)


@pytest.mark.parametrize("batch", [(), (64,)], ids=str)
def test_images_are_not_cut_into_lanes(is_single_cpu_device, batch):
    """Neither along an axis of space, nor, since no one has measured that it pays, along the batch."""
    cell = lstm_jax.ConvLSTM((64, 128), 128, (3,))
    params = jax.eval_shape(cell.init, jax.random.key(0))
    carry = jax.eval_shape(lambda: cell.initial_carry(batch))
    xs = jax.ShapeDtypeStruct((20, *batch, 64, 128), jnp.float32)
    assert fused_scan.tiling_of(cell, params, carry, xs).batch_splits == 1
    # Vectors of the same sizes are.
    state, u = (jax.ShapeDtypeStruct((64, n), jnp.float32) for n in (128, 512))
    assert tiling.choose_tiling(20, state, u).batch_splits > 1
    assert tiling.choose_tiling(20, state, u, rows=False).batch_splits == 1


def test_two_directions_share_the_lanes(is_single_cpu_device):
    network = lstm_jax.Bidirectional(LSTM(128, 128))
    params = jax.eval_shape(network.init, jax.random.key(0))
    plan = lstm_jax.explain(network, params, jax.ShapeDtypeStruct((20, 32, 128), jnp.float32))
    assert plan.layers[0].tiling == str(tiling.Tiling(None, 5, 6))


def test_the_steps_of_a_body_reach_both_loops(monkeypatch):
    cell = LSTM(D, 2)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((T, B, D))

    def loops(steps):
        monkeypatch.setattr(tiling, "UNROLL", steps)
        _compiled.clear_cache()
        text = str(jax.make_jaxpr(jax.grad(lambda p: jnp.sum(lstm_jax.unroll(cell, p, xs)[1])))(params))
        return [text.count(f"unroll={n}\n") for n in (1, 3)]

    assert loops(1)[0] >= 2 and loops(1)[1] == 0
    assert loops(3)[0] == 0 and loops(3)[1] >= 2
    _compiled.clear_cache()


def test_nothing_is_cut_where_arrays_may_be_spread_over_devices():
    assert jax.device_count() == 4  # conftest
    assert not _devices.is_single_cpu_device()
    assert seen_by((64, 128, 256, 256)) == tiling.Tiling()


@pytest.mark.parametrize("devices, backend", [(2, "cpu"), (1, "gpu")])
def test_alone_is_one_cpu(monkeypatch, devices, backend):
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
def test_pieces_are_even_where_a_number_near_divides(T, steps, expected):
    assert tiling.even_divisor(T, steps) == expected


def waves(leaf):
    """Numbers of no symmetry, one for each of the leaf's."""
    return np.sin(1.0 + np.arange(leaf.size)).reshape(leaf.shape).astype(leaf.dtype)


def everything(network, implementation, event):
    """Values and gradients through every part of the time contract."""
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
        return sum(jnp.sum(leaf * waves(leaf)) for leaf in jax.tree.leaves(run(params, xs, carry, reverse)))

    results = []
    for reverse in (False, True):
        results.append(run(params, xs, carry, reverse))
        results.append(jax.grad(loss, (0, 1, 2))(params, xs, carry, reverse))
    return results


@pytest.mark.usefixtures("x64", "quick_compiles", "cut_small")
@pytest.mark.parametrize(
    "case",
    daily(SPLIT, BY_NAME["lstm"]),
    ids=lambda case: case.name,
)
def test_chunks_and_lanes_change_no_value_and_no_gradient(case):
    network = case.build(param_dtype=jnp.float64)
    cut = everything(network, "auto", case.event)
    whole = everything(network, "scan", case.event)
    for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("x64", "quick_compiles", "cut_small")
@pytest.mark.parametrize("checkpoint", [None, 4])
def test_a_cut_walk_keeps_second_order_and_both_modes(checkpoint):
    cell = GRU(D, 2, param_dtype=jnp.float64)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (T, 3, D))

    def loss(params, implementation):
        ys = lstm_jax.unroll(cell, params, xs, checkpoint=checkpoint, implementation=implementation)[1]
        return jnp.sum(jnp.sin(ys) * waves(ys))

    def products(implementation):
        def gradient(params):
            return jax.grad(loss)(params, implementation)

        along = jax.tree.map(waves, params)
        forward_over_reverse = jax.jvp(gradient, (params,), (along,))
        reverse_over_reverse = jax.vjp(gradient, params)[1](along)
        return forward_over_reverse, reverse_over_reverse

    for a, b in zip(jax.tree.leaves(products("fused")), jax.tree.leaves(products("scan")), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)


def loop_products(jaxpr, inside=False):
    """Products inside of loops."""
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


def test_lanes_multiply_apart_and_only_where_nothing_is_saved(is_single_cpu_device):
    cell = LSTM(4, 128)
    params = cell.init(jax.random.key(0))
    xs = jnp.ones((3, 64, 4))

    def outputs(params):
        return lstm_jax.unroll(cell, params, xs)[1]

    shapes = [eqn.invars[0].aval.shape for eqn in loop_products(jax.make_jaxpr(outputs)(params).jaxpr)]
    assert len(shapes) == tiling.SPLIT_PRODUCTS and sum(rows for rows, _ in shapes) == 64
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: outputs(p).sum()))(params).jaxpr
    assert all(64 in eqn.invars[0].aval.shape for eqn in loop_products(jaxpr))


@pytest.mark.parametrize("joined", [True, False])
def test_a_weight_gradient_sums_over_one_axis_where_nothing_is_spread(request, joined):
    """Time and batch joined: XLA for CPUs copies before it sums over two axes."""
    if joined:
        request.getfixturevalue("is_single_cpu_device")
    cell = LSTM(4, 8)
    params = cell.init(jax.random.key(0))
    text = str(
        jax.make_jaxpr(jax.grad(lambda p: lstm_jax.unroll(cell, p, jnp.ones((5, 3, 4)))[1].sum()))(params)
    )
    assert ("dimension_numbers=(([0, 1], [0, 1])" in text) != joined
    assert ("dimension_numbers=(([0], [0])" in text) == joined


@pytest.mark.usefixtures("cut_small")
def test_a_batch_of_several_axes_is_cut_along_the_first():
    cell = LSTM(D, 4)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (T, 3, 2, D))
    cut, whole = (lstm_jax.unroll(cell, params, xs, implementation=name)[1] for name in ("fused", "scan"))
    np.testing.assert_allclose(cut, whole, atol=1e-6)


def test_windows_of_one_row_are_joined_without_copies(is_single_cpu_device):
    """Beside the outputs and what their loss sends back, windows cost little."""
    T, H = 40_000, 8
    cell = LSTM(4, H)
    params = jax.eval_shape(cell.init, jax.random.key(0))
    xs, weights = (jax.ShapeDtypeStruct((T, 1, n), jnp.float32) for n in (4, H))

    def loss(params, xs, weights):
        return jnp.sum(lstm_jax.unroll(cell, params, xs, checkpoint="sqrt")[1] * weights)

    compiled = jax.jit(jax.value_and_grad(loss)).lower(params, xs, weights).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2.3 * (4 * T * H)
