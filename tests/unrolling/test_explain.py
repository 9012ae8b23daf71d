"""``explain`` agrees with ``unroll``, from arrays and from shapes, and gives reasons."""

import re
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax
from lstm_jax import GRU, LSTM, RNN, Bidirectional, GRUVariant, LayerPlan, Plan, Readout, Stack, explain

T, B, D, H = 6, 2, 3, 4


@dataclass(frozen=True)
class Average:
    """A user's cell of three methods: a moving average."""

    input_size: int = D
    output_size: int = D

    def init(self, key):
        return jax.random.uniform(key, (D,))

    def initial_carry(self, batch_shape=(), params=None):
        return jnp.zeros((*batch_shape, D))

    def step(self, params, carry, x):
        rate = jnp.expand_dims(params, range(x.ndim - 1))
        new = rate * carry + (1 - rate) * x
        return new, new


class SplitParams(NamedTuple):
    w: jax.Array  # (D, D)
    r: jax.Array  # (D, D)


@dataclass(frozen=True)
class Split:
    """A user's cell that splits. With ``nonlinear``, ``recur`` is not affine in the carry."""

    nonlinear: bool = False
    input_size: int = D
    output_size: int = D

    def init(self, key):
        return SplitParams(*jax.random.normal(key, (2, D, D)))

    def initial_carry(self, batch_shape=(), params=None):
        return jnp.zeros((*batch_shape, D))

    def project(self, params, x):
        return x @ params.w

    def recur(self, params, carry, u):
        return u + (jnp.sin(carry) if self.nonlinear else carry) @ params.r

    def update(self, params, carry, z):
        new = jnp.tanh(z) + 0.5 * carry
        return new, new

    def step(self, params, carry, x):
        return self.update(params, carry, self.recur(params, carry, self.project(params, x)))


@dataclass(frozen=True)
class Product(Split):
    """``recur`` is affine in the carry, but its factors depend on the input."""

    def recur(self, params, carry, u):
        return u * (carry @ params.r)


NETWORKS = {
    "rnn": (RNN(D, H), ["fused"]),
    "rnn_relu": (RNN(D, H, activation=jax.nn.relu), ["fused"]),
    "lstm": (LSTM(D, H, learn_initial_carry=True), ["fused"]),
    "lstm_bfloat16": (LSTM(D, H, dtype="bfloat16"), ["fused"]),
    "gru": (GRU(D, H), ["fused"]),
    "gru_reset_before": (GRUVariant(D, H, reset_after=False), ["scan"]),
    "readout": (Readout(D, H), []),
    "average": (Average(), ["scan"]),
    "split": (Split(), ["fused"]),
    "nonlinear": (Split(nonlinear=True), ["scan"]),
    "bidirectional": (Bidirectional(LSTM(D, H)), ["fused"]),
    "bidirectional_before": (Bidirectional(GRUVariant(D, H, reset_after=False)), ["scan"]),
    "bidirectional_average": (Bidirectional(Average()), ["scan", "scan"]),
    "stack": (
        Stack((GRUVariant(D, H, reset_after=False), Bidirectional(RNN(H, 2)), LSTM(4, H), Readout(H, 1))),
        ["scan", "fused", "fused"],
    ),
}


def loops(jaxpr):
    """The implementation of each loop of a program: a scan inside a custom derivative is the fused scan."""
    for eqn in jaxpr.eqns:
        inside = []
        for value in eqn.params.values():
            part = getattr(value, "jaxpr", value)
            if hasattr(part, "eqns"):
                inside += loops(part)
        if eqn.primitive.name == "scan":
            yield from inside or ["scan"]  # a checkpoint's windows are a scan around the time loop
        elif eqn.primitive.name == "custom_jvp_call" and inside == ["scan"]:
            yield "fused"
        else:
            yield from inside


def shapes(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


def problem(network):
    params = network.init(jax.random.key(0))
    return params, jnp.ones((T, B, D))


FLAGS = {
    "mask": jnp.ones((T, B), bool),
    "resets": jnp.zeros((T, B), bool),
    "key": jax.random.key(1),
    "start": jnp.asarray(3),
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        helpers.slow({"reverse": True, "return_carries": True}),
        {"checkpoint": 3},
        helpers.slow({"implementation": "scan"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NETWORKS)
def test_explain_agrees_with_the_program_of_unroll(name, options):
    network, expected = NETWORKS[name]
    if options.get("implementation") == "scan":
        expected = ["scan" for _ in expected]
    params, xs = problem(network)
    run = partial(lstm_jax.unroll, network, **options)
    ran = list(loops(jax.make_jaxpr(run)(params, xs).jaxpr))
    plan = explain(network, params, xs, **options)
    explained = [layer.implementation for layer in plan.layers if layer.implementation != "vmap"]
    assert explained == ran == expected
    assert plan.implementation == ("+".join(dict.fromkeys(expected)) or "vmap")


@pytest.mark.parametrize("name", helpers.daily(NETWORKS, "lstm", "bidirectional", "stack"))
def test_shapes_and_arrays_give_the_same_plan(name):
    network, _ = NETWORKS[name]
    params, xs = problem(network)
    carry = network.initial_carry((B,), params)
    with_arrays = explain(network, params, xs, carry, **FLAGS)
    assert explain(network, *shapes((params, xs, carry)), **shapes(FLAGS)) == with_arrays
    assert explain(network, *shapes((params, xs)), **shapes(FLAGS)) == explain(network, params, xs)


def test_lengths_may_be_a_shape():
    network, _ = NETWORKS["lstm"]
    params, xs = problem(network)
    lengths = jnp.array([T, 2])
    assert explain(network, params, xs, lengths=shapes(lengths)) == explain(
        network, params, xs, lengths=lengths
    )


def test_truncated_directions_share_a_loop():
    network, _ = NETWORKS["bidirectional"]
    params, xs = problem(network)
    ran = list(loops(jax.make_jaxpr(partial(lstm_jax.unroll, network, truncate=2))(params, xs).jaxpr))
    plan = explain(network, params, xs, truncate=2)
    assert [layer.implementation for layer in plan.layers] == ran == ["fused"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lstm", "the cell splits into project, recur and update"),
        ("gru_reset_before", "multiplies by R_n after its reset gate"),
        ("average", "Average has no project, recur, update"),
        ("nonlinear", "Split.recur is not affine in the carry"),
        ("readout", "no state"),
    ],
)
def test_reasons(name, reason):
    network, implementations = NETWORKS[name]
    params, xs = problem(network)
    plan = explain(network, params, xs)
    (layer,) = plan.layers
    assert reason in layer.reason and layer.cell.startswith(type(network).__name__)
    if implementations == ["scan"]:
        with pytest.raises(ValueError, match="implementation='fused'") as error:
            explain(network, params, xs, implementation="fused")
        assert reason in str(error.value)
        with pytest.raises(ValueError, match="implementation='fused'") as error:
            lstm_jax.unroll(network, params, xs, implementation="fused")
        assert reason in str(error.value)
    else:
        explain(network, params, xs, implementation="fused")
    if implementations:
        by_name = explain(network, params, xs, implementation="scan").layers[0]
        assert by_name.implementation == "scan" and "by name" in by_name.reason


def test_a_plan_prints_as_a_table():
    network, _ = NETWORKS["stack"]
    plan = explain(network, *problem(network))
    assert isinstance(plan, Plan) and all(isinstance(layer, LayerPlan) for layer in plan.layers)
    lines = str(plan).splitlines()
    columns = [re.split(r" {2,}", line)[:2] for line in lines[:4]]
    assert [cell.split(" ")[0] for cell, _ in columns] == ["GRUVariant(3", "RNN(4", "LSTM(4", "Readout(4"]
    assert [cell.endswith(", both directions") for cell, _ in columns] == [False, True, False, False]
    assert [name for _, name in columns] == ["scan", "fused", "fused", "vmap"]
    assert [line.split(":")[0] for line in lines[4:] if not line.startswith(" ")] == ["scan", "fused"]


def test_explaining_computes_nothing_and_raises_what_unroll_raises():
    network, _ = NETWORKS["lstm"]
    params, xs = problem(network)
    huge = jax.ShapeDtypeStruct((10**6, 10**4, D), jnp.float32)
    assert explain(network, shapes(params), huge).implementation == "fused"
    for wrong in ({"lengths": [1]}, {"lengths": [1, T + 1]}, {"mask": jnp.ones((T, B))}, {"checkpoint": 0}):
        messages = []
        for call in (lstm_jax.unroll, explain):
            with pytest.raises(ValueError) as error:
                call(network, params, xs, **wrong)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


# --- users' cells -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell",
    [Average(), Split(), Split(nonlinear=True), Product()],
    ids=["average", "split", "nonlinear", "product"],
)
def test_users_cells_agree_with_the_plain_scan(cell):
    rng = np.random.default_rng(0)
    params = cell.init(jax.random.key(0))
    xs = jnp.asarray(rng.normal(size=(T, B, D)), jnp.float32)
    carry = jnp.asarray(rng.normal(size=(B, D)), jnp.float32)

    def gradients(run):
        def loss(params, xs, carry):
            carry, ys = run(params, carry, xs)
            return jnp.sum(ys**2) + jnp.sum(jnp.sin(carry)), (carry, ys)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(params, xs, carry)

    found = gradients(lambda params, carry, xs: lstm_jax.unroll(cell, params, xs, carry))
    expected = gradients(lambda params, carry, xs: jax.lax.scan(partial(cell.step, params), carry, xs))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_cell_with_only_some_of_the_three_methods_does_not_split():
    @dataclass(frozen=True)
    class Recurring(Average):
        def recur(self):
            raise AssertionError("not the protocol's recur")

    network = Bidirectional(Recurring())
    params, xs = problem(network)
    plan = explain(network, params, xs)
    assert [layer.implementation for layer in plan.layers] == ["scan", "scan"]
    assert "Recurring has no project, update" in plan.layers[0].reason
    np.testing.assert_array_equal(
        lstm_jax.unroll(network, params, xs)[1], lstm_jax.unroll(Bidirectional(Average()), params, xs)[1]
    )


def test_the_plan_contains_the_tiling():
    cell = LSTM(D, H)
    plan = explain(cell, *problem(cell))
    assert plan.layers[0].tiling == "undivided" and "(undivided)" in str(plan)
    assert explain(cell, *problem(cell), implementation="scan").layers[0].tiling == ""
