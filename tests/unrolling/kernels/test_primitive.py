"""Kernels of a whole sequence: what they compute, against the oracle, and every transform around them.

``interpret("reference")`` puts plain JAX in a kernel's place: it is cheap, and all around it is as it is
with a kernel. Of the kernels themselves there is then little to test: two functions of arrays.
"""

import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import members
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P
from jax.test_util import check_grads
from members import BY_NAME, assert_same, daily, problem, values_and_gradients

import lstm_jax
from lstm_jax import GRU, LSTM, RNN, Bidirectional, GRUVariant, LSTMVariant, Stack
from lstm_jax.unrolling.kernels import select
from lstm_jax.unrolling.kernels.engine import Engine
from lstm_jax.unrolling.kernels.formulas import LSTM_KIND
from lstm_jax.unrolling.kernels.reference import REFERENCES

D, H = members.D, members.H
QUICK = pytest.mark.usefixtures("quick_compiles")
DOUBLE = pytest.mark.usefixtures("x64", "quick_compiles")


@pytest.fixture
def reference():
    with select.interpret("reference"):
        yield


@pytest.fixture
def interpreted():
    with select.interpret("tpu"):
        yield


def without_resets(given):
    return given._replace(flags={name: given.flags[name] for name in ("lengths", "mask")})


def unrolled(implementation, cell, *args, **options):
    return lstm_jax.unroll(cell, *args, implementation=implementation, **options)


# --- around the kernels: values and gradients ---------------------------------------------------


#: The member, what is asked of the problem, of the call, and whether the first carry is given.
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
def test_values_and_gradients_are_those_of_the_scan(case):
    """NaN stands at invalid steps: it reaches nothing."""
    name, asked, options, has_carry = CASES[case]
    given = without_resets(problem(BY_NAME[name], **asked))
    solve = partial(values_and_gradients, given.network, given.params, given.xs)
    solve = partial(solve, given.carry if has_carry else None, return_carries=True, **given.flags, **options)
    assert_same(solve(implementation="pallas"), solve(implementation="scan"))


@QUICK
@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("bias", members.daily([None, "bfloat16"]))
def test_a_gru_keeps_each_bias_as_it_is(bias):
    """Also where only one is there, or they differ in dtype."""
    cell = GRU(D, H, dtype="float32", use_bias=bias is not None)
    params = cell.init(jax.random.key(0))
    rzn = None if bias is None else jnp.full(3 * H, 0.25, bias)
    params = params._replace(bias=rzn, bias_hn=jnp.full(H, 1 / 3), w_hh=params.w_hh.astype("bfloat16"))
    assert_same(*(unrolled(name, cell, params, jnp.ones((4, 2, D))) for name in ("pallas", "scan")))


@DOUBLE
@pytest.mark.usefixtures("reference")
def test_no_steps():
    given = problem(BY_NAME["lstm"])
    carry, ys = unrolled("pallas", given.network, given.params, given.xs[:0], given.carry)
    assert_same(carry, jax.tree.map(jnp.asarray, given.carry), rtol=0, atol=0)
    assert ys.shape == (0, 3, H)


@DOUBLE
@pytest.mark.usefixtures("reference")
def test_networks_of_cells():
    """Each direction and each layer is a kernel."""
    network = Stack((Bidirectional(LSTM(D, H, param_dtype="float64")), LSTM(2 * H, 2, param_dtype="float64")))
    rng = np.random.default_rng(0)
    params = members.random_like(rng, jax.eval_shape(network.init, jax.random.key(0)))
    xs = rng.normal(size=(4, 2, D))
    flags = {"lengths": np.array([4, 2], np.int32)}
    ours, scanned = (
        values_and_gradients(network, params, xs, None, implementation=name, **flags)
        for name in ("pallas", "scan")
    )
    assert_same(ours, scanned)
    plan = lstm_jax.explain(network, params, xs, implementation="pallas", **flags)
    assert [layer.implementation for layer in plan.layers] == ["pallas"] * 3


# --- around the kernels: transforms -------------------------------------------------------------


def mostly(one):
    """Asked of both cells; of the other one by ``make test-slow``."""
    other = pytest.param(*{LSTM, GRU} - {one}, marks=pytest.mark.slow)
    return pytest.mark.parametrize("kind", [one, other], ids=lambda kind: kind.__name__)


def small(kind, seed=0, shape=(4, 2)):
    """A cell, and float64 parameters, inputs and carry."""
    cell = kind(D, H, param_dtype="float64")
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(cell.init, jax.random.key(0))
    carry = jax.eval_shape(lambda: cell.initial_carry(shape[1:]))
    return cell, *members.random_like(rng, (shapes, jnp.zeros((*shape, D)), carry))


def compared(transform, kind, *args, **options):
    """Both ways, compiled together."""
    cell = kind(D, H, param_dtype="float64")
    ours, others = (
        partial(transform, partial(unrolled, name, cell, **options)) for name in ("pallas", "fused")
    )
    assert_same(*jax.jit(lambda *args: (ours(*args), others(*args)))(*args))


@DOUBLE
@pytest.mark.usefixtures("reference")
@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [None, 3], ids=["whole", "windows"])
@pytest.mark.parametrize("kind", [GRU, LSTM], ids=lambda kind: kind.__name__)
def test_both_modes_to_second_order_agree_with_finite_differences(kind, checkpoint):
    cell, *args = small(kind)
    options = {"lengths": np.array([3, 4], np.int32), "reverse": True, "checkpoint": checkpoint}
    run = jax.jit(partial(unrolled, "pallas", cell, return_carries=True, **options))
    check_grads(run, args, order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5, eps=1e-5)


def loss_of(f):
    return lambda *args: members.total(f(*args))


@DOUBLE
@pytest.mark.usefixtures("reference")
@mostly(LSTM)
def test_second_derivatives(kind):
    """Forward over reverse, reverse over reverse, and third order along one direction."""
    _, *args = small(kind)
    along = small(kind, seed=1)[1:]

    def transform(f, args, along):
        gradient = jax.grad(loss_of(f), argnums=(0, 1, 2))
        forward = jax.jvp(gradient, args, along)[1]
        reverse = jax.grad(lambda args: members.total(gradient(*args)))(args)
        third = jax.jvp(lambda *args: jax.jvp(gradient, args, along)[1], args, along)[1]
        return forward, reverse, third

    compared(transform, kind, tuple(args), tuple(along))


@DOUBLE
@pytest.mark.usefixtures("reference")
@pytest.mark.slow
def test_hessian_and_remat():
    _, params, xs, carry = small(GRU, shape=(3, 1))

    def transform(f, xs):
        loss = jax.checkpoint(lambda xs: loss_of(f)(params, xs, carry))
        return jax.hessian(loss)(xs)

    compared(transform, GRU, xs)


#: Which of parameters, inputs, carry and lengths are mapped.
MAPPED = {
    "data": (None, 1, 1, 0),
    "data of a GRU": (None, 1, 1, 0),
    "inputs alone": (None, 0, None, None),
    "lengths alone": (None, None, None, 0),
    "an ensemble": (0, None, None, None),
    "an ensemble, each on its data": (0, 1, 0, 0),
    "biases": (lstm_jax.LSTMParams(None, None, 0), None, None, None),
}


@DOUBLE
@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("case", daily(MAPPED, "data of a GRU"))
def test_vmap_before_and_after_derivatives(case):
    mapped = *some, of_lengths = MAPPED[case]
    kind = GRU if case.endswith("GRU") else LSTM
    _, *args = small(kind)
    lengths = np.array([3, 1], np.int32)

    def copies(axis, tree):
        """Three that differ, where they are mapped."""
        if axis is None:
            return tree
        return jax.tree.map(lambda a: np.stack([a, a * 0.5, -a], axis), tree)

    params, xs, carry = args
    if case == "biases":
        params = params._replace(bias=copies(0, params.bias))
    else:
        params = copies(some[0], params)
    args = params, copies(some[1], xs), jax.tree.map(partial(copies, some[2]), carry)
    lengths = lengths if of_lengths is None else np.stack([lengths, lengths[::-1], lengths * 0 + 4])

    def transform(run, *args):
        def f(*args):
            return run(*args[:3], lengths=args[3])

        def loss(*args):
            return members.total(f(*args))

        along = [jax.tree.map(jnp.cos, a) for a in args[:3]]
        tangent = jax.vmap(lambda *a: jax.jvp(lambda *b: f(*b, a[3]), a[:3], a[4:])[1], (*mapped, *some))
        return (
            jax.vmap(jax.grad(loss, argnums=(0, 1, 2)), mapped)(*args),
            jax.grad(lambda *a: jnp.sum(jax.vmap(loss, mapped)(*a)), argnums=(0, 1, 2))(*args),
            tangent(*args, *along),
        )

    compared(transform, kind, *args, lengths)


class Watched:
    """The reference engine, and the shapes that it was called with."""

    def __init__(self):
        self.calls = []
        self.engine = Engine(LSTM_KIND, "watched", self.unsupported_reason, self.forward, self.backward)

    def unsupported_reason(self, T, B, H, dtype):
        return "too many rows" if B > 50 else None

    def forward(self, inputs, save):
        self.calls.append(("forward", inputs.u.shape, save))
        return REFERENCES[LSTM_KIND].forward(inputs, save)

    def backward(self, saved, wanted):
        self.calls.append(("backward", saved.gates.shape))
        return REFERENCES[LSTM_KIND].backward(saved, wanted)


@pytest.fixture
def watched(monkeypatch, request):
    """What is compiled is found by the platform's name: each test has its own."""
    watched, name = Watched(), request.node.name
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(INTERPRETED={LSTM_KIND: watched.engine}))
    monkeypatch.setitem(select.MODULES, name, name)
    with select.interpret(name):
        yield watched.calls


def test_a_value_is_one_kernel_and_a_gradient_two(watched):
    cell = LSTM(D, H)
    params, xs = jax.eval_shape(cell.init, jax.random.key(0)), jnp.ones((5, 3, D))
    jax.jit(partial(unrolled, "pallas", cell)).lower(params, xs)
    assert watched == [("forward", (5, 3, 4 * H), False)]
    del watched[:]
    jax.jit(jax.grad(lambda p: unrolled("pallas", cell, p, xs)[1].sum())).lower(params)
    assert watched == [("forward", (5, 3, 4 * H), True), ("backward", (5, 3, 4 * H))]


@pytest.mark.slow
def test_what_is_mapped_becomes_rows_of_the_kernel(watched):
    cell = LSTM(D, H)
    params, xs = jax.eval_shape(cell.init, jax.random.key(0)), jnp.ones((5, 3, 7, D))
    loss = jax.vmap(lambda p, xs: unrolled("pallas", cell, p, xs)[1].sum(), (None, 2))
    jax.jit(jax.grad(lambda p: loss(p, xs).sum())).lower(params)
    assert watched == [("forward", (5, 21, 4 * H), True), ("backward", (5, 21, 4 * H))]
    del watched[:]
    ensemble = jax.eval_shape(jax.vmap(cell.init), jax.random.split(jax.random.key(0), 2))
    jax.jit(jax.vmap(partial(unrolled, "pallas", cell), (0, None))).lower(ensemble, xs)
    assert watched == []  # a kernel has one W: this is plain JAX
    jax.jit(jax.vmap(partial(unrolled, "pallas", cell), (None, 1))).lower(params, jnp.ones((5, 9, 6, D)))
    assert watched == []  # and so are more rows than the engine takes
    with pytest.raises(ValueError, match="too many rows"):
        unrolled("pallas", cell, params, jnp.ones((5, 54, D)))


def test_the_weights_gradient_is_one_product_after_the_loop():
    """The program of a gradient is forward, backward and products; no loop of tangents is left."""
    cell = LSTM(D, H)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((5, 3, D))
    with select.interpret("reference"):
        program = jax.make_jaxpr(jax.grad(lambda p: unrolled("pallas", cell, p, xs)[1].sum()))(params)
    walks = [
        eqn.params["which"].walk for eqn in equations(program.jaxpr) if eqn.primitive.name == "kernel_walk"
    ]
    assert walks == ["forward", "backward"]


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices; virtual ones will do")
@pytest.mark.parametrize(("platform", "kind"), [("reference", GRU), members.slow("tpu", LSTM)])
@QUICK
def test_inside_shard_map_each_device_runs_its_own(platform, kind):
    cell = kind(D, H)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (3, 8, D))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def loss(name, params, xs):
        out = unrolled(name, cell, params, xs, lengths=jnp.full(xs.shape[1], 2))
        return jax.lax.psum(sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(out)), "data")

    def gradient(name):
        f = jax.grad(partial(loss, name), argnums=(0, 1))
        specs = P(), P(None, "data")
        return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=specs))(params, xs)

    with select.interpret(platform):
        assert_same(gradient("pallas"), gradient("fused"), rtol=1e-5, atol=1e-5)


# --- what is refused, what is told --------------------------------------------------------------

CELL = LSTM(D, H)
XS = jax.ShapeDtypeStruct((5, 3, D), "float32")


def plan(cell=CELL, xs=XS, **options):
    params = jax.eval_shape(cell.init, jax.random.key(0))
    return lstm_jax.explain(cell, params, xs, implementation="pallas", **options)


REFUSED = {
    "cell": (lambda: plan(RNN(D, H)), "the kernels are for LSTM and GRU, and this is RNN"),
    "options": (
        lambda: plan(LSTMVariant(D, H, peepholes=True, clip=3.0)),
        "the kernels are for LSTM and GRU, and this is LSTMVariant",
    ),
    "reset before": (lambda: plan(GRUVariant(D, H, reset_after=False)), "and this is GRUVariant"),
    "resets": (lambda: plan(resets=jax.ShapeDtypeStruct((5, 3), bool)), "no kernel knows resets"),
    "truncate": (lambda: plan(truncate=2), "no kernel knows truncate"),
    "carry": (
        lambda: plan(LSTM(D, H, dtype="bfloat16"), carry=(jnp.zeros((3, H), "float32"),) * 2),
        "dtypes float32, float32, where a kernel has bfloat16, float32",
    ),
    "carry of a GRU": (
        lambda: plan(GRU(D, H, dtype="bfloat16"), carry=jnp.zeros((3, H), "float32")),
        "the carry h has dtype float32, where a kernel has bfloat16",
    ),
    "dtype": (lambda: plan(LSTM(D, H, dtype="float16")), "in float32 or bfloat16, and this is float16"),
    "VMEM": (lambda: plan(LSTM(D, 2000)), "2000 units in float32 need 69.3 MiB of VMEM"),
}


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("case", REFUSED)
def test_a_reason_is_given(case):
    call, reason = REFUSED[case]
    with pytest.raises(ValueError, match=r"implementation='pallas' for .*" + reason):
        call()


@pytest.mark.usefixtures("interpreted")
def test_sizes_must_be_known():
    T = jax.export.symbolic_shape("T")[0]
    with pytest.raises(ValueError, match="sizes that are known when tracing"):
        plan(xs=jax.ShapeDtypeStruct((T, 3, D), "float32"))


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices; virtual ones will do")
@pytest.mark.usefixtures("reference")
def test_an_explicit_mesh_is_declined():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="explicit mesh"):
        xs = jax.device_put(np.ones((5, 4, D), np.float32), jax.NamedSharding(mesh, P(None, "data")))
        unrolled("pallas", CELL, CELL.init(jax.random.key(0)), xs)


def test_without_a_device_it_says_so_and_the_interpreter_leaves_no_trace():
    """The switch is part of what a compiled program is found by."""
    params, xs = CELL.init(jax.random.key(0)), jnp.ones((5, 3, D))
    run = jax.jit(partial(unrolled, "pallas", CELL))
    for call in (run, partial(unrolled, "pallas", CELL)):
        with pytest.raises(ValueError, match="no TPU or Hopper GPU here"):
            call(params, xs)
        with select.interpret("reference"):
            call(params, xs)
        with pytest.raises(ValueError, match="no TPU or Hopper GPU here"):
            call(params, xs)
    with pytest.raises(ValueError, match="interpret got platform='cpu'"):
        select.interpret("cpu")


def test_explain_names_the_kernel():
    with select.interpret("tpu"):
        told = plan(lengths=[5, 3, 1], checkpoint=2)
        assert "TPU kernel, interpreted" in told.layers[0].reason
    assert told.implementation == "pallas"
    assert plan_of_auto() == "fused"  # not taken before it has been measured


def plan_of_auto():
    with select.interpret("reference"):
        params = jax.eval_shape(CELL.init, jax.random.key(0))
        return lstm_jax.explain(CELL, params, XS).implementation
