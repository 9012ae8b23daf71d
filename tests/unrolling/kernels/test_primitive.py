"""The kernel primitive: values, gradients and transforms.

``interpret("reference")`` replaces the kernels by plain JAX, which is fast, and changes nothing else. The
kernels themselves are functions of arrays, with tests of their own in tests/experimental.
"""

import sys
from functools import partial
from types import SimpleNamespace

import cell_case
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_cases import BY_NAME
from helpers import (
    assert_same,
    daily,
    equations,
    finite_difference_check,
    problem,
    several_devices,
    values_and_gradients,
)
from jax.sharding import AxisType, PartitionSpec as P
from kernel_cases import DOUBLE, both_cells, unroll, without_resets

import lstm_jax
from lstm_jax import GRU, LSTM, Bidirectional, Stack
from lstm_jax.unrolling.kernels import select
from lstm_jax.unrolling.kernels.engine import Engine
from lstm_jax.unrolling.kernels.formulas import LSTM_FORMULA
from lstm_jax.unrolling.kernels.primitive import kernel_p
from lstm_jax.unrolling.kernels.reference import REFERENCES

D, H = cell_case.D, cell_case.H


# --- around the kernels: values and gradients ---------------------------------------------------


#: The cell, options of the problem, options of the call, and whether an initial carry is given.
CASES = {
    "plain": ("lstm", {}, {}, True),
    "in reverse": ("lstm", {}, {"reverse": True}, True),
    "own carry": ("lstm", {}, {}, False),
    "learned carry": ("lstm_learned", {}, {}, False),
    "no bias": ("lstm_no_bias", {}, {"reverse": True}, True),
    "GRU": ("gru", {}, {"reverse": True}, False),
    "GRU without bias": ("gru_no_bias", {}, {"checkpoint": 3}, True),
    "windows": ("lstm", {}, {"checkpoint": 3}, True),
    "windows in reverse": ("lstm", {}, {"checkpoint": "sqrt", "reverse": True}, True),
    "no batch axis": ("lstm", {"batch": ()}, {"reverse": True}, True),
    "two batch axes": ("lstm", {"batch": (2, 2)}, {}, True),
    "no rows": ("lstm", {"batch": (0,)}, {}, True),
    "one step": ("lstm", {"T": 1}, {}, True),
}


@DOUBLE
@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("case", daily(CASES, "plain", "GRU without bias", "one step"))
def test_values_and_gradients_equal_those_of_the_scan(case):
    """The inputs are NaN at invalid steps, which affects neither values nor gradients."""
    name, problem_options, options, has_carry = CASES[case]
    data = without_resets(problem(BY_NAME[name], **problem_options))
    solve = partial(values_and_gradients, data.network, data.params, data.xs)
    solve = partial(solve, data.carry if has_carry else None, return_carries=True, **data.flags, **options)
    assert_same(solve(implementation="pallas"), solve(implementation="scan"))


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("bias", daily([None, "bfloat16"]))
def test_gru_biases(bias):
    """A GRU may have only one of its two biases, and they may differ in dtype."""
    cell = GRU(D, H, dtype="float32", use_bias=bias is not None)
    params = cell.init(jax.random.key(0))
    rzn = None if bias is None else jnp.full(3 * H, 0.25, bias)
    params = params._replace(bias=rzn, bias_hn=jnp.full(H, 1 / 3), w_hh=params.w_hh.astype("bfloat16"))
    assert_same(*(unroll(name, cell, params, jnp.ones((4, 2, D))) for name in ("pallas", "scan")))


@DOUBLE
@pytest.mark.usefixtures("reference")
def test_no_steps():
    data = problem(BY_NAME["lstm"])
    carry, ys = unroll("pallas", data.network, data.params, data.xs[:0], data.carry)
    assert_same(carry, jax.tree.map(jnp.asarray, data.carry), rtol=0, atol=0)
    assert ys.shape == (0, 3, H)


@DOUBLE
@pytest.mark.usefixtures("reference")
def test_networks_of_cells():
    """Each direction of each layer runs as one kernel."""
    network = Stack((Bidirectional(LSTM(D, H, param_dtype="float64")), LSTM(2 * H, 2, param_dtype="float64")))
    rng = np.random.default_rng(0)
    params = helpers.random_like(rng, jax.eval_shape(network.init, jax.random.key(0)))
    xs = rng.normal(size=(4, 2, D))
    flags = {"lengths": np.array([4, 2], np.int32)}
    kernel, scan = (
        values_and_gradients(network, params, xs, None, implementation=name, **flags)
        for name in ("pallas", "scan")
    )
    assert_same(kernel, scan)
    plan = lstm_jax.explain(network, params, xs, implementation="pallas", **flags)
    assert [layer.implementation for layer in plan.layers] == ["pallas"] * 3


# --- around the kernels: transforms -------------------------------------------------------------


def small_problem(cell_type, seed=0, shape=(4, 2)):
    """A cell, and float64 parameters, inputs and carry."""
    cell = cell_type(D, H, param_dtype="float64")
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(cell.init, jax.random.key(0))
    carry = jax.eval_shape(lambda: cell.initial_carry(shape[1:]))
    return cell, *helpers.random_like(rng, (shapes, jnp.zeros((*shape, D)), carry))


def assert_same_as_fused(transform, cell_type, *args, **options):
    """Compare the transform of the kernels with that of the fused scan. One compilation computes both."""
    cell = cell_type(D, H, param_dtype="float64")
    kernel, fused = (
        partial(transform, partial(unroll, name, cell, **options)) for name in ("pallas", "fused")
    )
    assert_same(*jax.jit(lambda *args: (kernel(*args), fused(*args)))(*args))


@DOUBLE
@pytest.mark.usefixtures("reference")
@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [None, 3], ids=["whole", "windows"])
@pytest.mark.parametrize("cell_type", [GRU, LSTM], ids=lambda cell_type: cell_type.__name__)
def test_both_modes_to_second_order_agree_with_finite_differences(cell_type, checkpoint):
    cell, *args = small_problem(cell_type)
    options = {"lengths": np.array([3, 4], np.int32), "reverse": True, "checkpoint": checkpoint}
    run = jax.jit(partial(unroll, "pallas", cell, return_carries=True, **options))
    finite_difference_check(run, args)


def loss_of(f):
    return lambda *args: helpers.total(f(*args))


@DOUBLE
@pytest.mark.usefixtures("reference")
@both_cells(LSTM)
@pytest.mark.slow
def test_second_derivatives(cell_type):
    """Forward over reverse, reverse over reverse, and third order along one direction."""
    _, *args = small_problem(cell_type)
    direction = small_problem(cell_type, seed=1)[1:]

    def transform(f, args, direction):
        gradient = jax.grad(loss_of(f), argnums=(0, 1, 2))
        forward = jax.jvp(gradient, args, direction)[1]
        reverse = jax.grad(lambda args: helpers.total(gradient(*args)))(args)
        third = jax.jvp(lambda *args: jax.jvp(gradient, args, direction)[1], args, direction)[1]
        return forward, reverse, third

    assert_same_as_fused(transform, cell_type, tuple(args), tuple(direction))


@DOUBLE
@pytest.mark.usefixtures("reference")
@pytest.mark.slow
def test_hessian_and_remat():
    _, params, xs, carry = small_problem(GRU, shape=(3, 1))

    def transform(f, xs):
        loss = jax.checkpoint(lambda xs: loss_of(f)(params, xs, carry))
        return jax.hessian(loss)(xs)

    assert_same_as_fused(transform, GRU, xs)


#: The vmap axes of parameters, inputs, carry and lengths.
MAPPED = {
    "data": (None, 1, 1, 0),
    "data of a GRU": (None, 1, 1, 0),
    "inputs alone": (None, 0, None, None),
    "lengths alone": (None, None, None, 0),
    "an ensemble": (0, None, None, None),
    "an ensemble, each with its own data": (0, 1, 0, 0),
    "biases": (lstm_jax.LSTMParams(None, None, 0), None, None, None),
}


@DOUBLE
@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("case", daily(MAPPED, "data of a GRU"))
@pytest.mark.slow
def test_vmap_before_and_after_derivatives(case):
    axes = *differentiable_axes, lengths_axis = MAPPED[case]
    params_axis, xs_axis, carry_axis = differentiable_axes
    cell_type = GRU if case.endswith("GRU") else LSTM
    _, params, xs, carry = small_problem(cell_type)
    lengths = np.array([3, 1], np.int32)

    def stack_copies(axis, tree):
        """Stack three different copies along ``axis``; None returns the tree itself."""
        if axis is None:
            return tree
        return jax.tree.map(lambda a: np.stack([a, a * 0.5, -a], axis), tree)

    if case == "biases":
        params = params._replace(bias=stack_copies(0, params.bias))
    else:
        params = stack_copies(params_axis, params)
    args = params, stack_copies(xs_axis, xs), jax.tree.map(partial(stack_copies, carry_axis), carry)
    lengths = lengths if lengths_axis is None else np.stack([lengths, lengths[::-1], lengths * 0 + 4])

    def transform(run, *args):
        def f(*args):
            return run(*args[:3], lengths=args[3])

        def loss(*args):
            return helpers.total(f(*args))

        direction = [jax.tree.map(jnp.cos, a) for a in args[:3]]
        tangent_axes = *axes, *differentiable_axes
        tangent = jax.vmap(lambda *a: jax.jvp(lambda *b: f(*b, a[3]), a[:3], a[4:])[1], tangent_axes)
        return (
            jax.vmap(jax.grad(loss, argnums=(0, 1, 2)), axes)(*args),
            jax.grad(lambda *a: jnp.sum(jax.vmap(loss, axes)(*a)), argnums=(0, 1, 2))(*args),
            tangent(*args, *direction),
        )

    assert_same_as_fused(transform, cell_type, *args, lengths)


class RecordingEngine:
    """The reference engine, with a record of the shapes of its calls."""

    def __init__(self):
        self.calls = []
        self.engine = Engine(LSTM_FORMULA, "recording", self.unsupported_reason, self.forward, self.backward)

    def unsupported_reason(self, T, B, H, dtype):
        return "too many rows" if B > 50 else None

    def forward(self, inputs, save):
        self.calls.append(("forward", inputs.u.shape, save))
        return REFERENCES[LSTM_FORMULA].forward(inputs, save)

    def backward(self, residuals, cotangents):
        self.calls.append(("backward", residuals.gates.shape))
        return REFERENCES[LSTM_FORMULA].backward(residuals, cotangents)


@pytest.fixture
def calls(monkeypatch, request):
    """The calls of a recording engine. Each test has its own platform name, so it compiles anew."""
    recording, name = RecordingEngine(), request.node.name
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(INTERPRETED={LSTM_FORMULA: recording.engine}))
    monkeypatch.setitem(select.MODULES, name, name)
    with select.interpret(name):
        yield recording.calls


def test_a_value_runs_one_kernel_and_a_gradient_two(calls):
    cell = LSTM(D, H)
    params, xs = jax.eval_shape(cell.init, jax.random.key(0)), jnp.ones((5, 3, D))
    jax.jit(partial(unroll, "pallas", cell)).lower(params, xs)
    assert calls == [("forward", (5, 3, 4 * H), False)]
    del calls[:]
    jax.jit(jax.grad(lambda p: unroll("pallas", cell, p, xs)[1].sum())).lower(params)
    assert calls == [("forward", (5, 3, 4 * H), True), ("backward", (5, 3, 4 * H))]


@pytest.mark.slow
def test_vmap_adds_batch_rows(calls):
    cell = LSTM(D, H)
    params, xs = jax.eval_shape(cell.init, jax.random.key(0)), jnp.ones((5, 3, 7, D))
    loss = jax.vmap(lambda p, xs: unroll("pallas", cell, p, xs)[1].sum(), (None, 2))
    jax.jit(jax.grad(lambda p: loss(p, xs).sum())).lower(params)
    assert calls == [("forward", (5, 21, 4 * H), True), ("backward", (5, 21, 4 * H))]
    del calls[:]
    ensemble = jax.eval_shape(jax.vmap(cell.init), jax.random.split(jax.random.key(0), 2))
    jax.jit(jax.vmap(partial(unroll, "pallas", cell), (0, None))).lower(ensemble, xs)
    assert calls == []  # a kernel takes one W, so this runs plain JAX
    jax.jit(jax.vmap(partial(unroll, "pallas", cell), (None, 1))).lower(params, jnp.ones((5, 9, 6, D)))
    assert calls == []  # plain JAX, because the engine does not support this many rows
    with pytest.raises(ValueError, match="too many rows"):
        unroll("pallas", cell, params, jnp.ones((5, 54, D)))


def test_the_weights_gradient_is_one_product_after_the_loop():
    """A gradient consists of forward, backward and products, without the loop of ``tangents``."""
    cell = LSTM(D, H)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((5, 3, D))
    with select.interpret("reference"):
        program = jax.make_jaxpr(jax.grad(lambda p: unroll("pallas", cell, p, xs)[1].sum()))(params)
    kernels = (eqn for eqn in equations(program.jaxpr) if eqn.primitive is kernel_p)
    assert [eqn.params["params"].operation for eqn in kernels] == ["forward", "backward"]


@several_devices
@pytest.mark.parametrize(("platform", "cell_type"), [("reference", GRU), helpers.slow("tpu", LSTM)])
@pytest.mark.slow
def test_inside_shard_map_each_device_runs_its_own_kernel(platform, cell_type):
    cell = cell_type(D, H)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (3, 8, D))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def loss(name, params, xs):
        out = unroll(name, cell, params, xs, lengths=jnp.full(xs.shape[1], 2))
        return jax.lax.psum(sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(out)), "data")

    def gradient(name):
        f = jax.grad(partial(loss, name), argnums=(0, 1))
        specs = P(), P(None, "data")
        return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=specs))(params, xs)

    with select.interpret(platform):
        assert_same(gradient("pallas"), gradient("fused"), rtol=1e-5, atol=1e-5)
