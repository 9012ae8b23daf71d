"""Sharded units: results equal those of one device, and the collective operations are as documented."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from collectives import KINDS, collectives, counted
from helpers import several_devices
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import lstm_jax
from lstm_jax import (
    GRU,
    LSTM,
    MLSTM,
    RNN,
    Bidirectional,
    GRUVariant,
    IndRNN,
    LSTMVariant,
    MinGRU,
    MinLSTM,
    Readout,
    Sharded,
    Stack,
    Zoneout,
)

T, B, D, H = 6, 8, 6, 8
NETWORKS = {
    "rnn": RNN(D, H),
    "lstm": LSTM(D, H, learn_initial_carry=True),
    "lstm_odd_input": LSTM(5, H),
    "lstm_options": LSTMVariant(D, H, peepholes=True, coupled=True, clip=2.0, use_bias=False),
    "lstm_heads": LSTMVariant(D, H, heads=4),
    "gru": GRU(D, H),
    "gru_a_head_each": GRUVariant(D, H, heads=2),
    "indrnn": IndRNN(D, H),
    "min_gru": MinGRU(D, H, learn_initial_carry=True),
    "min_lstm": MinLSTM(D, H),
    "bidirectional": Bidirectional(LSTM(D, H)),
    "stack": Stack((LSTM(D, H), GRU(H, H), Readout(H, 10, activation=jax.nn.softmax)), dropout=0.3),
}
EXCHANGING = {
    "rnn": 1,
    "lstm": 1,
    "lstm_odd_input": 1,
    "lstm_options": 1,
    "gru": 1,
    "bidirectional": 2,
    "stack": 2,
}


def slow_except(names, everyday):
    """Values for ``pytest.mark.parametrize``; those not in ``everyday`` are slow."""
    return [name if name in everyday else pytest.param(name, marks=pytest.mark.slow) for name in names]


pytestmark = several_devices


def mesh_of(kind=AxisType.Auto, data=2, model=2):
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(kind,) * 2)


def problem(network, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda a: np.asarray(rng.normal(size=a.shape) * 0.5, a.dtype), shapes)
    xs = rng.normal(size=(T, B, network.input_size)).astype(np.float32)
    return params, xs


def flags_of(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "lengths": rng.integers(0, T + 1, B).astype(np.int32),
        "mask": rng.random((T, B)) < 0.8,
        "resets": rng.random((T, B)) < 0.3,
    }


def gradients_of(network, **options):
    """``f(params, xs, flags)``: carry and outputs, and the gradients of weights and inputs."""

    def loss(params, xs, flags):
        out = lstm_jax.unroll(network, params, xs, **flags, **options)
        return sum(jnp.sum(a**2) for a in jax.tree.leaves(out)), out

    def run(params, xs, flags):
        (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, xs, flags)
        return out, grads

    return jax.jit(run)


def placed(network, mesh, params, xs):
    params = jax.device_put(params, lstm_jax.shardings(network, params))
    return params, jax.device_put(xs, NamedSharding(mesh, P(None, "data")))


def assert_close(found, expected, tolerance=2e-5):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


# --- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_except(NETWORKS, {"lstm"}))
def test_values_and_gradients_equal_those_of_one_device(name):
    network = NETWORKS[name]
    (params, xs), flags = problem(network), flags_of()
    key = jax.random.key(1) if name == "stack" else None
    expected = gradients_of(network, reverse=True, key=key)(params, xs, flags)
    mesh = mesh_of()
    sharded = lstm_jax.shard(network, mesh)
    params, xs = placed(sharded, mesh, params, xs)
    found = gradients_of(sharded, reverse=True, key=key)(params, xs, flags)
    assert_close(found, expected)
    for gradient, param in zip(jax.tree.leaves(found[1][0]), jax.tree.leaves(params), strict=True):
        assert gradient.sharding.is_equivalent_to(param.sharding, param.ndim)


@pytest.mark.parametrize("name", slow_except(["lstm", "stack"], {"lstm"}))
def test_under_an_explicit_mesh(name):
    network = NETWORKS[name]
    (params, xs), flags = problem(network), flags_of()
    expected = gradients_of(network)(params, xs, flags)
    mesh = mesh_of(AxisType.Explicit)
    sharded = lstm_jax.shard(network, mesh)
    params, xs = placed(sharded, mesh, params, xs)
    assert_close(gradients_of(sharded)(params, xs, flags), expected)


OPTIONS = {
    "windows": {"checkpoint": 4, "return_carries": True},
    "truncated": {"truncate": 2, "start": 1},
    "scan": {"implementation": "scan"},
}


@pytest.mark.parametrize("options", slow_except(OPTIONS, set()))
def test_options_with_a_given_carry(options):
    cell, options = NETWORKS["lstm"], OPTIONS[options]
    (params, xs), flags = problem(cell), flags_of()
    mesh = mesh_of()
    sharded = Sharded(cell, mesh)

    def twice(network, params, xs):
        carry, _ = lstm_jax.unroll(network, params, xs, **flags)
        return gradients_of(network, carry=carry, **options)(params, xs, flags)

    assert_close(twice(sharded, *placed(sharded, mesh, params, xs)), twice(cell, params, xs))


BATCHES = {"no rows": (), "two batch axes": (4, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("batch", BATCHES)
def test_other_batches(batch):
    cell, mesh = NETWORKS["gru"], mesh_of()
    params, _ = problem(cell)
    xs = np.random.default_rng(0).normal(size=(T, *BATCHES[batch], D)).astype(np.float32)
    expected = gradients_of(cell)(params, xs, {})
    assert_close(gradients_of(Sharded(cell, mesh))(params, xs, {}), expected)
    assert_close(gradients_of(Sharded(cell, mesh, data=None))(params, xs, {}), expected)


@pytest.mark.parametrize("name", slow_except(["lstm", "stack"], {"lstm"}))
def test_one_step(name):
    network = NETWORKS[name]
    params, xs = problem(network)
    carry = network.initial_carry((B,), params)
    step = lstm_jax.shard(network, mesh_of()).step
    assert_close(jax.jit(step)(params, carry, xs[0]), network.step(params, carry, xs[0]))


@pytest.mark.slow
def test_forward_mode_and_second_derivatives():
    cell, mesh = NETWORKS["lstm"], mesh_of()
    params, xs = problem(cell)
    direction = problem(cell, seed=1)[0]

    def of(network):
        def loss(params):
            return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(lstm_jax.unroll(network, params, xs)))

        return jax.jit(lambda params, d: jax.jvp(jax.grad(loss), (params,), (d,)))(params, direction)

    assert_close(of(Sharded(cell, mesh)), of(cell), 1e-4)


# --- collective operations -------------------------------------------------------------------------


def compiled_gradient(network, mesh, batch=B):
    params, _ = problem(network)
    xs = np.zeros((T, batch, network.input_size), np.float32)
    sharded = lstm_jax.shard(network, mesh)
    params, xs = placed(sharded, mesh, params, xs)

    def loss(params, xs):
        return jnp.sum(lstm_jax.unroll(sharded, params, xs)[1] ** 2)

    found = collectives(jax.jit(jax.grad(loss)).lower(params, xs).compile())
    return found, lstm_jax.communication(sharded, params, batch)


def test_sharding_the_last_axis_directly_needs_more_collective_operations():
    """At least five per step in the forward pass."""
    mesh = mesh_of()
    cell = LSTM(D, H)
    params, xs = problem(cell)
    columns = jax.tree.map(
        lambda a: jax.device_put(a, NamedSharding(mesh, P(*[None] * (a.ndim - 1), "model"))), params
    )
    run = jax.jit(lambda params, xs: lstm_jax.unroll(cell, params, xs))
    found = collectives(run.lower(columns, xs).compile())
    assert sum(counted(found, in_loop=True).values()) >= 5


@pytest.mark.parametrize("name", slow_except(NETWORKS, {"lstm", "gru"}))
def test_a_loop_has_one_collective_operation_for_h_in_each_direction(name):
    found, expected = compiled_gradient(NETWORKS[name], mesh_of())
    count = EXCHANGING.get(name, 0)
    assert counted(found, in_loop=True) == ({"all-gather": count, "reduce-scatter": count} if count else {})
    assert expected.forward == expected.backward == count * (B // 2) * H * 4 // 2
    received = {
        kind: sum(one.received for one in found if one.in_loop and one.kind == kind) for kind in KINDS
    }
    assert received == dict.fromkeys(KINDS, 0) | {
        "all-gather": expected.forward,
        "reduce-scatter": expected.backward,
    }


MESHES = {"data": (4, 1), "both": (2, 2), "model": (1, 4)}


@pytest.mark.parametrize("mesh", slow_except(MESHES, {"both"}))
def test_gradients_are_summed_over_rows_once_after_the_loop(mesh):
    data, model = MESHES[mesh]
    found, expected = compiled_gradient(
        LSTM(D - 2, H, learn_initial_carry=True), mesh_of(data=data, model=model)
    )
    summed = [one for one in found if one.kind == "all-reduce"]
    assert not any(one.in_loop for one in summed)
    assert sum(one.received for one in summed) == expected.gradients
    weights = ((D - 2 + H + 1) * 4 * H + 2 * H) * 4
    assert expected == (B // data * H * 4 * (model - 1) // model,) * 2 + (
        2 * weights // model * (data - 1) // data,
    )
    assert sum(one.received for one in found if one.in_loop) == expected.forward + expected.backward


def test_each_device_has_its_part_of_the_parameters():
    network, mesh = NETWORKS["stack"], mesh_of()
    sharded = lstm_jax.shard(network, mesh)
    (lstm, gru, readout), _ = placed(sharded, mesh, *problem(network))
    parts = {
        name: array.addressable_data(0).shape
        for name, array in {
            "w_ih": lstm.w_ih,
            "w_hh": lstm.w_hh,
            "bias_hn": gru.bias_hn,
            "w": readout.w,
            "b": readout.bias,
        }.items()
    }
    assert parts == {"w_ih": (3, 32), "w_hh": (4, 32), "bias_hn": (4,), "w": (8, 5), "b": (5,)}
    assert sum(leaf.is_fully_replicated for leaf in (lstm.bias, gru.bias)) == 2


def test_a_loss_over_a_sharded_vocabulary_does_not_gather_the_logits():
    """Devices exchange a maximum, a sum and the label's logit of each row and step."""
    V, mesh = 20, mesh_of()
    network = lstm_jax.shard(Stack((LSTM(D, H), Readout(H, V))), mesh)
    params = problem(network)[0]
    params = jax.device_put(params, lstm_jax.shardings(network, params))
    embedding = jax.device_put(np.ones((V, D), np.float32), NamedSharding(mesh, P("model")))
    ids = jax.device_put(np.zeros((T + 1, B), np.int32), NamedSharding(mesh, P(None, "data")))

    @jax.jit
    @jax.value_and_grad
    def loss(params, embedding, ids):
        _, logits = lstm_jax.unroll(network, params, embedding[ids[:-1]])
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[1:]).mean()

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        found = collectives(loss.lower(params, embedding, ids).compile())
    of_steps = {shape for one in found for shape in one.shapes if shape[:2] == (T, B // 2)}
    assert of_steps and not any(shape[2:] in ((V,), (V // 2,)) for shape in of_steps)
    assert {shape[2:] for shape in of_steps} <= {(), (1,), (D,), (H,), (H // 2,)}


# --- cells, explain, errors ------------------------------------------------------------------------


def test_equal_meshes_make_equal_cells():
    cells = [Sharded(LSTM(D, H), mesh_of()) for _ in range(2)]
    assert cells[0] == cells[1] and hash(cells[0]) == hash(cells[1])
    assert cells[0] != Sharded(LSTM(D, H), mesh_of(), data=None)
    assert lstm_jax.shard(cells[0], mesh_of()) == cells[0]


def test_explain_describes_the_cell_of_a_device():
    cell = Sharded(LSTM(D, H), mesh_of())
    params, xs = problem(cell)
    plan = lstm_jax.explain(cell, params, xs)
    assert plan.implementation == "fused" and "LSTM(6 -> 4)" in str(plan)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Sharded(LSTM(D, 9), mesh_of()), "hidden_size=9 over model=2 devices.*hidden_size=10"),
        (lambda: Sharded(LSTMVariant(D, 9, heads=3), mesh_of()), "hidden_size=9"),
        (lambda: Sharded(GRUVariant(D, 6, heads=3), mesh_of()), "heads=3 over model=2"),
        (lambda: lstm_jax.shard(Stack((RNN(D, H), Readout(H, 5))), mesh_of()), "output_size=5 over model=2"),
        (lambda: Sharded(GRUVariant(D, H, reset_after=False), mesh_of()), "two consecutive products"),
        (lambda: Sharded(LSTMVariant(D, H, layer_norm="tfa"), mesh_of()), "mean over all units"),
        (lambda: Sharded(LSTMVariant(D, H, proj_size=4), mesh_of()), "proj_size"),
        (lambda: Sharded(Zoneout(LSTM(D, H), 0.1), mesh_of()), "Zoneout draws its noise"),
        (lambda: Sharded(MLSTM(D, H, heads=2), mesh_of()), "layout of its units"),
        (lambda: Sharded(LSTM(D, H), mesh_of(), model="units"), "axes .*'data': 2.*'units'"),
        (lambda: Sharded(LSTM(D, H), None), "a mesh.*NoneType|NoneType"),
        (
            lambda: Sharded(
                LSTM(D, H),
                jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Explicit)),
            ),
            "Auto, Explicit",
        ),
        (
            lambda: lstm_jax.shardings(LSTM(D, H), LSTM(D, H).init(jax.random.key(0))),
            "without a Sharded layer",
        ),
        (
            lambda: lstm_jax.unroll(
                Sharded(LSTM(D, H), mesh_of()), LSTM(D, H).init(jax.random.key(0)), jnp.ones((T, 3, D))
            ),
            "data=2 devices got a batch of 3 rows",
        ),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()
