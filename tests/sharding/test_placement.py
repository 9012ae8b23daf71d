"""``unroll`` on four devices equals ``unroll`` on one: in ``shard_map`` and on both types of meshes."""

from functools import cache, partial

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import lstm_jax
from lstm_jax import GRU, LSTM, MLSTM, RNN, SLSTM, Bidirectional, GRUVariant, Readout, Stack

T, B, D, H = 5, 8, 3, 4
NETWORKS = {
    "rnn": RNN(D, H),
    "lstm": LSTM(D, H),
    "lstm_learned": LSTM(D, H, learn_initial_carry=True),
    "gru": GRU(D, H),
    "gru_reset_before": GRUVariant(D, H, reset_after=False),
    "bidirectional": Bidirectional(LSTM(D, H)),
    "stack": Stack((GRU(D, H), Bidirectional(RNN(H, 2)), LSTM(4, H), Readout(H, H))),
    "slstm": SLSTM(D, H, heads=2),
    "mlstm": MLSTM(D, H, heads=2),
}
SPECS = {"xs": P(None, "data"), "lengths": P("data"), "mask": P(None, "data"), "resets": P(None, "data")}

pytestmark = helpers.several_devices


def mesh_of(kind, **axes):
    axes = axes or {"data": 4}
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes))


@cache
def problem(network):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda a: np.asarray(rng.normal(size=a.shape) * 0.5, a.dtype), shapes)
    xs = rng.normal(size=(T, B, D)).astype(np.float32)
    flags = {
        "lengths": rng.integers(0, T + 1, B).astype(np.int32),
        "mask": rng.random((T, B)) < 0.8,
        "resets": rng.random((T, B)) < 0.3,
    }
    return params, xs, flags


def gradients_of(network, **options):
    """``f(params, xs, flags)``: carry and outputs, and the gradients of weights and inputs."""

    def loss(params, xs, flags):
        out = lstm_jax.unroll(network, params, xs, **flags, **options)
        return sum(jnp.sum(a**2) for a in jax.tree.leaves(out)), out

    def run(params, xs, flags):
        (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, xs, flags)
        return out, grads

    return run


@cache
def unsharded(network):
    return jax.device_get(jax.jit(gradients_of(network, reverse=True))(*problem(network)))


def placed(mesh, xs, flags):
    xs = jax.device_put(xs, NamedSharding(mesh, SPECS["xs"]))
    return xs, {name: jax.device_put(flag, NamedSharding(mesh, SPECS[name])) for name, flag in flags.items()}


def assert_close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


# --- shard_map ----------------------------------------------------------------------------------


def in_shard_map(mesh, network, run, *args):
    """Rows are sharded; weights and their gradients are replicated."""
    (carry, _), (dparams, _) = jax.eval_shape(run, *args)
    out_specs = (
        (jax.tree.map(lambda _: P("data"), carry), SPECS["xs"]),
        (jax.tree.map(lambda _: P(), dparams), SPECS["xs"]),
    )
    specs = (P(), SPECS["xs"], {flag: SPECS[flag] for flag in args[2]})
    return jax.device_get(jax.jit(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=out_specs))(*args))


@pytest.mark.parametrize(
    "name",
    helpers.daily(["lstm_learned", "stack", "rnn", "lstm", "gru", "slstm", "mlstm"]),
)
def test_sharded_rows_in_shard_map(name):
    network = NETWORKS[name]
    run = gradients_of(network, reverse=True)
    found = in_shard_map(mesh_of(AxisType.Auto), network, run, *problem(network))
    assert_close(found, unsharded(network))


@pytest.mark.parametrize("implementation", helpers.daily(["fused", "scan"]))
@pytest.mark.slow
def test_windows_in_shard_map(implementation):
    network = NETWORKS["bidirectional"]
    params, xs, _ = problem(network)
    run = gradients_of(network, checkpoint=2, implementation=implementation)
    found = in_shard_map(mesh_of(AxisType.Auto), network, run, params, xs, {})
    assert_close(found, jax.jit(gradients_of(network))(params, xs, {}))


@pytest.mark.slow
def test_in_shard_map_over_an_explicit_mesh():
    network = NETWORKS["lstm"]
    params, xs, flags = problem(network)
    run = gradients_of(network, reverse=True)
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, NamedSharding(mesh, P()))
        found = in_shard_map(mesh, network, run, params, *placed(mesh, xs, flags))
    assert_close(found, unsharded(network))


def test_a_replicated_carry_in_shard_map():
    cell = NETWORKS["gru"]
    params, xs, _ = problem(cell)
    carry = jnp.full((B // 4, H), 0.5)

    def run(params, carry, xs):
        return lstm_jax.unroll(cell, params, xs, carry)

    specs = (P(), P(), SPECS["xs"])
    out_specs = (P("data"), SPECS["xs"])
    mesh = mesh_of(AxisType.Auto)
    found = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=out_specs))(params, carry, xs)
    assert_close(jax.device_get(found), jax.device_get(run(params, jnp.full((B, H), 0.5), xs)))


# --- an automatic mesh --------------------------------------------------------------------------


@pytest.mark.parametrize("name", helpers.daily(["lstm", "gru_reset_before", "stack"]))
def test_rows_sharded_in_an_automatic_mesh(name):
    network = NETWORKS[name]
    params, xs, flags = problem(network)
    mesh = mesh_of(AxisType.Auto)
    run = jax.jit(gradients_of(network, reverse=True))
    found = run(jax.device_put(params, NamedSharding(mesh, P())), *placed(mesh, xs, flags))
    assert "data" in found[0][1].sharding.spec
    assert_close(jax.device_get(found), unsharded(network))


@pytest.mark.parametrize("name", helpers.daily(["lstm", "gru", "bidirectional"]))
def test_hidden_units_sharded_in_an_automatic_mesh(name):
    """Rows over one axis of the mesh, weights over the other."""
    network = NETWORKS[name]
    params, xs, flags = problem(network)
    mesh = mesh_of(AxisType.Auto, data=2, model=2)

    def shard(a):
        return jax.device_put(a, NamedSharding(mesh, P(*[None] * (a.ndim - 1), "model")))

    run = jax.jit(gradients_of(network, reverse=True))
    found = run(jax.tree.map(shard, params), *placed(mesh, xs, flags))
    assert_close(jax.device_get(found), unsharded(network))


# --- an explicit mesh ---------------------------------------------------------------------------


def explicitly(network, run, flags=None):
    """``run`` on an explicit mesh; checks that rows are sharded in the results."""
    params, xs, given = problem(network)
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, NamedSharding(mesh, P()))
        found = jax.jit(run)(params, *placed(mesh, xs, given if flags is None else flags))
        (carry, ys), (dparams, dxs) = found
        assert {jax.typeof(a).sharding.spec[1] for a in (*jax.tree.leaves(ys), dxs)} == {"data"}
        assert all(jax.typeof(a).sharding.spec[0] == "data" for a in jax.tree.leaves(carry))
        assert not any(any(jax.typeof(a).sharding.spec) for a in jax.tree.leaves(dparams))
        return jax.device_get(found)


@pytest.mark.parametrize("name", helpers.daily(NETWORKS, "lstm", "gru_reset_before"))
def test_rows_sharded_in_an_explicit_mesh(name):
    network = NETWORKS[name]
    assert_close(explicitly(network, gradients_of(network, reverse=True)), unsharded(network))


#: Only the cells in ``DAILY``, with flags, are not slow.
OPTIONS = [
    ("lstm", {"implementation": "fused", "checkpoint": 2, "return_carries": True}),
    ("gru", {"implementation": "scan", "checkpoint": "sqrt", "reverse": True}),
    ("bidirectional", {"implementation": "scan", "checkpoint": 3, "return_carries": True}),
]
TRUNCATED = [
    ("rnn", {"implementation": "fused", "truncate": 2, "start": 1}),
    ("bidirectional", {"implementation": "fused", "truncate": 2, "reverse": True}),
]
DAILY = "gru", "rnn"


@pytest.mark.parametrize(
    ("flagged", "name", "options"),
    [
        *((True, *row) if row[0] in DAILY else helpers.slow(True, *row) for row in OPTIONS + TRUNCATED),
        *(helpers.slow(False, *row) for row in OPTIONS),
    ],
    ids=str,
)
def test_options_in_an_explicit_mesh(flagged, name, options):
    network = NETWORKS[name]
    params, xs, flags = problem(network)
    flags = flags if flagged else {}
    expected = jax.jit(gradients_of(network, **options))(params, xs, flags)
    assert_close(explicitly(network, gradients_of(network, **options), flags), jax.device_get(expected))


@pytest.mark.parametrize("dropout_mask", helpers.daily(["step", "sequence"]))
def test_dropout_in_an_explicit_mesh(dropout_mask):
    network = Stack((GRU(D, H), RNN(H, H)), dropout=0.5, dropout_mask=dropout_mask, residual=True)
    params, xs, flags = problem(network)
    expected = lstm_jax.unroll(network, params, xs, **flags, key=jax.random.key(1))
    without_key = lstm_jax.unroll(network, params, xs, **flags)
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        xs, flags = placed(mesh, xs, flags)
        found = jax.device_get(lstm_jax.unroll(network, params, xs, **flags, key=jax.random.key(1)))
    assert_close(found, expected)
    assert not np.allclose(found[1], without_key[1])


@pytest.mark.parametrize("name", helpers.daily(["lstm", "bidirectional", "stack"]))
def test_a_given_carry_in_an_explicit_mesh(name):
    """A replicated carry from ``initial_carry``, and a sharded one from a window."""
    network = NETWORKS[name]
    params, xs, _ = problem(network)
    zeros = network.initial_carry((B,))
    run = jax.jit(partial(lstm_jax.unroll, network))
    expected = run(params, xs, run(params, xs, zeros)[0])
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        xs, _ = placed(mesh, xs, {})
        carry, _ = run(params, xs, zeros)
        found = jax.device_get(run(params, xs, carry))
    assert_close(found, jax.device_get(expected))


def test_two_sharded_batch_axes_in_an_explicit_mesh():
    cell = NETWORKS["gru"]
    params, xs, _ = problem(cell)
    xs = xs.reshape(T, 4, 2, D)
    expected = lstm_jax.unroll(cell, params, xs)
    mesh = mesh_of(AxisType.Explicit, data=2, more=2)
    with jax.set_mesh(mesh):
        xs = jax.device_put(xs, NamedSharding(mesh, P(None, "data", "more")))
        found = jax.device_get(lstm_jax.unroll(cell, params, xs))
    assert_close(found, jax.device_get(expected))
