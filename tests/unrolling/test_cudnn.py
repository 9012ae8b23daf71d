"""cuDNN's LSTM, replaced by ``lstm_ref`` of ``jax.experimental.rnn`` on machines without cuDNN.

``lstm_ref`` reads the same vector of weights, so these tests cover layouts, layers, directions, lengths,
carries, gradients and transforms. On a GPU they run cuDNN as well.
"""

import re
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from against_oracle import B, D, H, T, assert_agrees, problem
from jax.experimental import rnn
from jax.sharding import AxisType, PartitionSpec as P

from lstm_jax import (
    GRU,
    LSTM,
    Bidirectional,
    LSTMVariant,
    Readout,
    Stack,
    VariationalDropout,
    explain,
    unroll,
)
from lstm_jax.interop import to_cudnn
from lstm_jax.unrolling.run import Options

cudnn = import_module("lstm_jax.unrolling.cudnn")
api = import_module("lstm_jax.unrolling.api")
CELL = oracle.Cell(oracle.lstm, oracle.two_zeros)


@pytest.fixture
def reference(monkeypatch):
    """Replace cuDNN's forward and backward call by ``lstm_ref``; returns the list of calls."""
    calls = []

    def lstm_ref(call, xs, h, c, weights, lengths):
        calls.append(call)
        D, H, layers, dropout, both, _ = call.options
        weights = jnp.where(jnp.all(lengths > 0), weights, jnp.nan)  # cuDNN requires a step in each row
        parts = rnn.unpack_lstm_weights(weights, D, H, layers, both)
        return rnn.lstm_ref(xs, h, c, *parts, lengths, D, H, layers, dropout, both)

    def reserve_space(xs, h, c, weights, lengths):
        """An array from which ``backward`` recognises the arguments. Its size is not proportional to B."""
        return jnp.concatenate([xs.ravel(), h.ravel(), c.ravel(), lengths.astype(xs.dtype), jnp.zeros(3)])

    def forward(call, *arrays):
        return *lstm_ref(call, *arrays), reserve_space(*arrays)

    def backward(call, xs, h, c, weights, lengths, ys, reserve, *cotangents):
        saved = reserve_space(xs, h, c, weights, lengths)
        assert saved.shape == reserve.shape
        weights = jnp.where(jnp.all(saved == reserve), weights, jnp.nan)
        function = lambda *arrays: lstm_ref(call, *arrays, lengths)  # noqa: E731
        return jax.vjp(function, xs, h, c, weights)[1](cotangents)

    monkeypatch.setattr(cudnn, "_forward", forward)
    monkeypatch.setattr(cudnn, "_backward", backward)
    monkeypatch.setattr(cudnn, "no_device", lambda: None)
    api._compiled.clear_cache()
    with jax.numpy_rank_promotion("allow"):  # lstm_ref broadcasts implicitly
        yield calls
    api._compiled.clear_cache()  # its programs contain the replacement


@pytest.fixture(params=["reference", "cudnn"])
def either(request):
    """The replacement, and cuDNN if the machine has it."""
    if request.param == "reference":
        request.getfixturevalue("reference")
    elif reason := cudnn.no_device():
        expected = request.config.getoption("device") == "gpu"
        (pytest.fail if expected else pytest.skip)(reason)
    with jax.default_matmul_precision("highest"):
        yield request.param


def calls_in(function, *arrays):
    """The operations of cuDNN's primitive in a program."""
    program = jax.make_jaxpr(function)(*arrays)
    return [eqn for eqn in helpers.equations(program.jaxpr) if eqn.primitive is cudnn.cudnn_p]


def two_layers(cell, size):
    return Stack((cell(D), cell(size)))


NETWORKS = {
    "lstm": (LSTM(D, H), CELL),
    "no_bias_learned": (
        LSTM(D, H, use_bias=False, learn_initial_carry=True),
        oracle.Cell(oracle.lstm, lambda params: params.initial),
    ),
    "stack": (two_layers(lambda size: LSTM(size, H), H), oracle.Stack((CELL, CELL))),
    "bidirectional_sum": (Bidirectional(LSTM(D, H), merge="sum"), oracle.Bidirectional(CELL, merge="sum")),
    "bidirectional_stack": (
        two_layers(lambda size: Bidirectional(LSTM(size, H)), 2 * H),
        oracle.Stack((oracle.Bidirectional(CELL), oracle.Bidirectional(CELL))),
    ),
}
CALLS = {
    "lstm": {"lengths": np.array([T, 3, 0, 1]), "reverse": True},
    "no_bias_learned": {"given": False, "reverse": True},
    "stack": {"lengths": np.array([2, T, 0, 5])},
    "bidirectional_sum": {"given": False},
    "bidirectional_stack": {"lengths": np.array([T, 3, 0, 1]), "reverse": True},
}


@pytest.mark.parametrize("name", helpers.daily(NETWORKS, "lstm"))
def test_values_and_gradients_agree_with_the_oracle(name, either):
    given = problem(*NETWORKS[name], **CALLS[name])
    plan = explain(
        given.network, given.params, given.xs, given.carry, implementation="cudnn", **given.options
    )
    assert plan.implementation == "cudnn" and len(plan.layers) == 1
    assert_agrees(given, "cudnn", atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_layers_and_directions_are_one_call(name, reference):
    network, _ = NETWORKS[name]
    params = jax.eval_shape(network.init, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((T, B, D), "float32")
    (call,) = calls_in(partial(unroll, network, implementation="cudnn"), params, xs)
    layers = 2 if "stack" in name else 1
    assert call.params["call"].options[2:5] == (layers, 0.0, "bidirectional" in name)


@pytest.mark.slow
def test_no_batch_axis_and_several(either):
    cell = LSTM(D, H)
    params = cell.init(jax.random.key(0))
    for batch in ((), (2, 3)):
        xs = jax.random.normal(jax.random.key(1), (T, *batch, D))
        lengths = jnp.full(batch, 4) if batch else None
        (h, c), ys = unroll(cell, params, xs, lengths=lengths, implementation="cudnn")
        expected = unroll(cell, params, xs, lengths=lengths)
        assert h.shape == c.shape == (*batch, H)
        for a, b in zip(jax.tree.leaves(((h, c), ys)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_nan_at_invalid_steps_reaches_nothing(either):
    given = problem(LSTM(D, H), CELL, lengths=np.array([T, 3, 0, 1]))
    valid = np.arange(T)[:, None] < given.options["lengths"]

    def gradients(xs):
        def loss(params, xs):
            carry, ys = unroll(given.network, params, xs, implementation="cudnn", **given.options)
            return jnp.sum(ys**2) + jnp.sum(carry[1] ** 2)

        return jax.grad(loss, (0, 1))(given.params, xs)

    with_nan = jnp.where(valid[..., None], given.xs, jnp.nan)
    for a, b in zip(jax.tree.leaves(gradients(with_nan)), jax.tree.leaves(gradients(given.xs)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_layers_of_different_sizes_are_separate_calls(either):
    network = Stack((LSTM(D, H), LSTM(H, 2), Bidirectional(LSTM(2, H)), Readout(2 * H, 1)), residual=False)
    params, xs = network.init(jax.random.key(0)), jnp.ones((T, B, D))
    plan = explain(network, params, xs, implementation="cudnn")
    assert [layer.implementation for layer in plan.layers] == ["cudnn"] * 3 + ["vmap"]
    assert plan.layers[2].cell.endswith("both directions")
    ys = unroll(network, params, xs, implementation="cudnn")[1]
    np.testing.assert_allclose(ys, unroll(network, params, xs)[1], atol=1e-5)


def test_the_vector_of_weights_agrees_with_to_cudnn():
    network = NETWORKS["bidirectional_stack"][0]
    params = network.init(jax.random.key(0))
    weights = cudnn.flat_weights(cudnn._params_list(params))
    np.testing.assert_array_equal(weights, to_cudnn(network, params))
    assert weights.size == rnn.get_num_params_in_lstm(D, H, 2, True)


# --- transforms ----------------------------------------------------------------------------------

ARGUMENTS = (0, 1, 2)  # params, xs and carry; the fourth argument is lengths


def grad(f):
    return jax.grad(f, ARGUMENTS)


def jvp(f, args, along):
    """The derivative of ``f`` along a direction of params, xs and carry."""
    return jax.jvp(lambda *args3: f(*args3, args[3]), args[:3], along)[1]


def along_gradient(f, along):
    """The inner product of the gradient and a direction."""
    return lambda *args: helpers.total(jax.tree.map(jnp.multiply, grad(f)(*args), along))


def twice(f, axes, args, two):
    """vmap of ``f`` over two examples of each argument that has an axis."""
    return jax.vmap(f, axes)(*mixed(axes, args, two))


def mixed(axes, args, two):
    """Two examples of each argument that has an axis, one of the others."""
    return [a if axis is None else b for a, b, axis in zip(args, two, axes, strict=True)]


def grad_of_vmap(f, axes, args, two):
    """The gradient of the sum of :func:`twice`."""
    return grad(lambda *args: jax.vmap(f, axes)(*args).sum())(*mixed(axes, args, two))


def grad_of_scan(f, args, two):
    """The gradient of the sum over a scan of ``unroll`` over two sequences."""

    def loss(params, scale):
        body = lambda total, xs: (total + f(params, scale * xs, *args[2:]), None)  # noqa: E731
        return jax.lax.scan(body, 0.0, two[1])[0]

    return jax.vmap(jax.grad(loss, (0, 1)), (None, 0))(args[0], jnp.arange(2.0))


def derivative_by_xs(mode, f, args):
    return mode(lambda xs: f(args[0], xs, *args[2:]))(args[1])


def vjps_that_leave_vmap(f, args, two):
    """``jax.vjp`` inside of vmap, and its results outside of it."""
    pullbacks = jax.vmap(lambda xs: jax.vjp(lambda p: f(p, xs, *args[2:]), args[0])[1])(two[1])
    return [jax.tree.map(lambda a, i=i: a[i], pullbacks)(1.0) for i in range(2)]


#: Functions of the network ``run``, the loss ``f`` of its results, arguments, a direction, and two examples.
TRANSFORMS = {
    "jvp": lambda run, f, args, along, two: jvp(run, args, along),
    "jacfwd": lambda run, f, args, along, two: derivative_by_xs(jax.jacfwd, run, args),
    "jacrev": lambda run, f, args, along, two: derivative_by_xs(jax.jacrev, run, args),
    "jvp_of_grad": lambda run, f, args, along, two: jvp(grad(f), args, along),
    "grad_of_jvp": lambda run, f, args, along, two: grad(lambda *args: jvp(f, args, along))(*args),
    "grad_of_grad": lambda run, f, args, along, two: grad(along_gradient(f, along))(*args),
    "grad_of_grad_by_xs": lambda run, f, args, along, two: jax.grad(along_gradient(f, along), 1)(*args),
    "hessian_by_xs": lambda run, f, args, along, two: derivative_by_xs(jax.hessian, f, args),
    "third": lambda run, f, args, along, two: jvp(grad(along_gradient(f, along)), args, along),
    "vmap_xs": lambda run, f, args, along, two: twice(run, (None, 0, None, None), args, two),
    "vmap_carry": lambda run, f, args, along, two: twice(run, (None, None, 0, None), args, two),
    "vmap_lengths": lambda run, f, args, along, two: twice(run, (None, None, None, 0), args, two),
    "vmap_weights": lambda run, f, args, along, two: twice(run, (0, None, None, None), args, two),
    "vmap_all": lambda run, f, args, along, two: twice(run, (0, 0, 0, 0), args, two),
    "vmap_of_grad": lambda run, f, args, along, two: twice(grad(f), (None, 0, 0, 0), args, two),
    "vmap_of_grad_weights": lambda run, f, args, along, two: twice(grad(f), (0, None, None, None), args, two),
    "grad_of_vmap": lambda run, f, args, along, two: grad_of_vmap(f, (None, 0, None, 0), args, two),
    "grad_of_vmap_weights": lambda run, f, args, along, two: grad_of_vmap(
        f, (0, None, None, None), args, two
    ),
    "grad_of_scan": lambda run, f, args, along, two: grad_of_scan(f, args, two),
    "vmap_of_vmap_of_grad": lambda run, f, args, along, two: twice(
        lambda *args: twice(grad(f), (None, None, 0, None), args, two), (None, 0, None, None), args, two
    ),
    "vmap_of_jvp": lambda run, f, args, along, two: twice(
        lambda *args: jvp(run, args, along), (None, 0, 0, 0), args, two
    ),
    "vmap_of_jvp_of_grad": lambda run, f, args, along, two: twice(
        lambda *args: jvp(grad(f), args, along), (None, 0, None, 0), args, two
    ),
    "vjps_that_leave_vmap": lambda run, f, args, along, two: vjps_that_leave_vmap(f, args, two),
    "remat": lambda run, f, args, along, two: grad(jax.checkpoint(f))(*args),
    "jvp_of_remat": lambda run, f, args, along, two: jvp(grad(jax.checkpoint(f)), args, along),
}


def call_of(network, implementation, reverse=False):
    def run(params, xs, carry, lengths):
        return unroll(
            network, params, xs, carry, lengths=lengths, reverse=reverse, implementation=implementation
        )

    return run


def loss_of(run):
    """A loss whose second derivative by the outputs is not zero."""
    return lambda *args: helpers.total(jax.tree.map(jnp.sin, run(*args)))


def arrays_of(network):
    """Arguments with rows of all lengths, a direction, and two examples."""
    given = problem(network, None)
    args = given.params, given.xs, given.carry, jnp.array([T, 3, 0, 1])
    along = jax.tree.map(jnp.asarray, helpers.random_like(np.random.default_rng(1), args[:3]))
    two = *jax.tree.map(lambda a: jnp.stack([a, a / 2]), args[:3]), jnp.array([[T, 3, 0, 1], [1, 0, T, 2]])
    return args, along, two


def transformed(name, network, implementation, jitted):
    """The result of a transform of ``unroll`` in reverse."""
    run = call_of(network, implementation, reverse=True)
    function = partial(TRANSFORMS[name], run, loss_of(run))
    return (jax.jit(function) if jitted else function)(*arrays_of(network))


DAILY = ("jvp", "grad_of_grad_by_xs", "vmap_xs", "vmap_of_grad")


@pytest.mark.parametrize(
    ("network", "jitted"),
    [("lstm", True), helpers.slow("lstm", False), helpers.slow("bidirectional_stack", True)],
    ids=["lstm", "lstm_eager", "bidirectional_stack"],
)
@pytest.mark.parametrize("name", helpers.daily(TRANSFORMS, *DAILY))
def test_transforms_agree_with_the_fused_scan(name, network, jitted, either):
    network = NETWORKS[network][0]
    found, expected = (transformed(name, network, which, jitted) for which in ("cudnn", "fused"))
    helpers.assert_same(found, expected, rtol=2e-5, atol=2e-5)


def test_a_tangent_of_ys_alone_adds_nothing(reference):
    """ys is a function of xs, h, c and weights, so the derivative of ``backward`` by these is complete."""
    (params, xs, (h, c), lengths), _, _ = arrays_of(LSTM(D, H))
    call = cudnn.Call(D, H, 1, 1, jax.lax.Precision.HIGHEST, Options())
    arguments = jnp.swapaxes(xs, 0, 1), h[None], c[None], cudnn.flat_weights([params]), lengths.at[2].set(1)
    bind = partial(cudnn.cudnn_p.bind, *arguments, call=call)
    *results, reserve = bind(operation="forward", save=True)

    def backward(ys):
        return bind(ys, reserve, *results, operation="backward", save=False)

    gradient, tangent = jax.jvp(backward, results[:1], results[:1])
    assert helpers.every(tangent, helpers.is_zero) and not helpers.every(gradient, helpers.is_zero)


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 2, reason="requires two devices, which may be virtual")
@pytest.mark.parametrize("name", ["grad", "jvp_of_grad", "vmap_of_grad", "vmap_xs"])
def test_inside_shard_map_each_device_runs_its_own_rows(name, either):
    """The gradient of the weights, which are on all devices, is the sum over the devices."""
    network = NETWORKS["bidirectional_stack"][0]
    params, xs = (getattr(problem(network, None), field) for field in ("params", "xs"))

    def sharded(implementation):
        def loss(params, xs):
            out = unroll(network, params, xs, lengths=jnp.full(xs.shape[1], 4), implementation=implementation)
            return jax.lax.psum(sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(out)), "data")

        def run(params, xs):
            gradient = jax.grad(loss, (0, 1))
            if name == "grad":
                return gradient(params, xs)
            if name == "jvp_of_grad":
                return jax.jvp(gradient, (params, xs), (params, xs))[1]
            two = jnp.stack([xs, xs / 2])
            if name == "vmap_of_grad":
                return jax.tree.map(lambda a: a.sum(0), jax.vmap(gradient, (None, 0))(params, two))
            return params, jax.vmap(loss, (None, 0))(params, two).sum() * xs

        specs = P(), P(None, "data")
        mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
        return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=specs))(params, xs)

    helpers.assert_same(sharded("cudnn"), sharded("fused"), rtol=2e-5, atol=2e-5)


# --- programs ------------------------------------------------------------------------------------


@pytest.fixture
def cuda_lowering(monkeypatch):
    """Lower cuDNN's calls on a machine without it: jax needs two functions of its CUDA plugin."""
    from jax.interpreters import mlir
    from jaxlib import gpu_rnn

    monkeypatch.setattr(cudnn, "no_device", lambda: None)
    api._compiled.clear_cache()
    if gpu_rnn._cuda_rnn is None:
        sizes = lambda D, H, layers, B, T, *_: (1, B * T * H * layers + 7)  # noqa: E731
        monkeypatch.setattr(gpu_rnn, "compute_rnn_workspace_reserve_space_sizes", sizes, raising=False)
        plugin = SimpleNamespace(build_rnn_descriptor=lambda *_: "sizes")
        rules = {"rnn_fwd_p": gpu_rnn._rnn_fwd_lowering, "rnn_bwd_p": gpu_rnn._rnn_bwd_lowering}
        for name, rule in rules.items():
            mlir.register_lowering(getattr(rnn, name), partial(rule, plugin, "cu"), platform="cuda")
    yield
    api._compiled.clear_cache()
    mlir.register_lowering(rnn.rnn_fwd_p, gpu_rnn.cudnn_rnn_lowering, platform="cuda")
    mlir.register_lowering(rnn.rnn_bwd_p, gpu_rnn.cudnn_rnn_bwd_lowering, platform="cuda")


VALUE_AND_GRADIENT = {
    "run": lambda run, f, args, *_: run(*args),
    "grad": lambda run, f, args, *_: grad(f)(*args),
}
#: The operations of the primitive in a program, and what its lowered text contains: the numbers of cuDNN's
#: forward and backward calls, and whether there are loops. The text has no operations whose results are not
#: read, and one copy of each function.
PROGRAMS = {
    "run": (["forward"], (1, 0, False)),
    "grad": (["forward", "backward"], (1, 1, False)),
    "remat": (["forward", "forward", "backward"], (1, 1, False)),
    "vmap_xs": (["forward"], (1, 0, False)),
    "vmap_lengths": (["forward"], (1, 0, False)),
    "grad_of_vmap": (["forward", "backward"], (1, 1, False)),
    "jvp": (["forward", "tangents"], (1, 0, True)),
    "vmap_weights": ([], (0, 0, True)),
    "jvp_of_grad": (["forward", "tangents", "backward", "backward"], (1, 1, True)),
    "vmap_of_grad": (["forward", "forward"], (1, 0, True)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_for_cuda(name, cuda_lowering):
    network = NETWORKS["bidirectional_stack"][0]
    run = call_of(network, "cudnn")
    function = jax.jit(partial((TRANSFORMS | VALUE_AND_GRADIENT)[name], run, loss_of(run)))
    arrays = arrays_of(network)
    operations = [eqn.params["operation"] for eqn in calls_in(function, *arrays)]
    text = function.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    calls = text.count("@cudnn_rnn_ffi"), text.count("@cudnn_rnn_bwd_ffi")
    assert (operations, (*calls, "stablehlo.while" in text)) == PROGRAMS[name]


def test_the_fused_scan_has_the_precision_of_the_call(cuda_lowering):
    """Also if the program is lowered outside of the context in which it was traced."""
    arrays = arrays_of(LSTM(D, H))
    run = call_of(LSTM(D, H), "cudnn")
    with jax.default_matmul_precision("highest"):
        traced = jax.jit(partial(TRANSFORMS["jvp"], run, None)).trace(*arrays)
    products = re.findall("precision = .*", traced.lower(lowering_platforms=("cuda",)).as_text())
    assert products and all("[HIGHEST, HIGHEST]" in product for product in products)


def test_vmap_over_data_makes_more_rows(reference):
    network = NETWORKS["stack"][0]
    args, _, two = arrays_of(network)
    run = call_of(network, "cudnn")
    nested = jax.vmap(jax.vmap(run, (None, 0, None, None)), (None, None, 0, 0))
    (call,) = calls_in(nested, args[0], *two[1:])
    shapes = [a.aval.shape for a in call.invars]
    assert shapes[:3] == [(4 * B, T, D), (2, 4 * B, H), (2, 4 * B, H)] and shapes[4] == (4 * B,)


# --- unsupported calls ---------------------------------------------------------------------------


UNSUPPORTED = {
    "mask": (LSTM(D, H), {"mask": np.ones((T, B), bool)}, "cuDNN does not support mask, only lengths"),
    "mask_and_lengths": (LSTM(D, H), {"mask": np.ones((T, B), bool), "lengths": np.full(B, 2)}, "mask"),
    "resets": (LSTM(D, H), {"resets": np.zeros((T, B), bool)}, "resets"),
    "truncate": (LSTM(D, H), {"truncate": 2}, "truncate"),
    "checkpoint": (LSTM(D, H), {"checkpoint": 2}, "checkpoint"),
    "return_carries": (LSTM(D, H), {"return_carries": True}, "return_carries"),
    "cell": (GRU(D, H), {}, "GRU is not an LSTM"),
    "wrapper": (VariationalDropout(LSTM(D, H), inputs=0.5), {}, "VariationalDropout is not an LSTM"),
    "option": (LSTMVariant(D, H, peepholes=True, clip=1.0), {}, "LSTMVariant is not an LSTM"),
    "dtype": (LSTM(D, H, dtype="bfloat16"), {}, "only float32, got bfloat16, float32"),
    "both_ways": (Bidirectional(LSTM(D, H)), {"mask": np.ones((T, B), bool)}, "mask"),
    "inside": (Stack((LSTM(D, H), GRU(H, H))), {}, "GRU is not an LSTM"),
    "no_rows": (LSTM(D, H), {"rows": 0}, "at least one step and one row"),
}


@pytest.mark.skipif(jax.device_count() < 2, reason="requires two devices, which may be virtual")
def test_an_explicit_mesh_raises(reference):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    params, xs = helpers.random_params(LSTM(D, H)), jnp.ones((T, B, D))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="explicit mesh; use shard_map"):
        unroll(LSTM(D, H), params, jax.device_put(xs, P(None, "data")), implementation="cudnn")


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_unsupported_calls_raise(what, reference):
    network, options, reason = UNSUPPORTED[what]
    options = dict(options)
    xs = jnp.ones((T, options.pop("rows", B), D))
    params = network.init(jax.random.key(0))
    for call in (unroll, explain):
        with pytest.raises(ValueError, match=r"implementation='cudnn'.*which cannot run it") as error:
            call(network, params, xs, implementation="cudnn", **options)
        assert reason in str(error.value)


def test_a_stack_with_dropout_is_one_call_without_a_key(reference):
    network = Stack((LSTM(D, H), LSTM(H, H)), dropout=0.5)
    params, xs = network.init(jax.random.key(0)), jnp.ones((T, B, D))
    assert len(explain(network, params, xs, implementation="cudnn").layers) == 1
    noisy = explain(network, params, xs, implementation="cudnn", key=jax.random.key(1))
    assert [layer.implementation for layer in noisy.layers] == [
        "cudnn",
        "cudnn",
    ]  # with dropout between the calls


def test_the_precision_is_that_of_jax(reference):
    cell = LSTM(D, H)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((T, B, D))

    def reason_and_precision(precision):
        with jax.default_matmul_precision(precision):
            unroll(cell, params, xs, implementation="cudnn")
            return explain(cell, params, xs, implementation="cudnn").layers[0].reason, reference[-1].precision

    assert (
        reason_and_precision(None)
        == reason_and_precision("tensorfloat32")
        == ("requested by name: one call of cuDNN, TF32 allowed", jax.lax.Precision.HIGH)
    )
    assert reason_and_precision("highest") == reason_and_precision("float32")
    assert reason_and_precision("highest") == (
        "requested by name: one call of cuDNN, float32 without TF32",
        jax.lax.Precision.HIGHEST,
    )
    with pytest.raises(ValueError, match="jax_default_matmul_precision is 'bfloat16'"):
        reason_and_precision("bfloat16")


def test_without_a_gpu_it_raises():
    if jax.default_backend() == "gpu":
        pytest.skip("requires a machine without a GPU")
    cell = LSTM(D, H)
    with pytest.raises(ValueError, match="cuDNN requires an NVIDIA GPU, got platform 'cpu'"):
        unroll(cell, cell.init(jax.random.key(0)), jnp.ones((T, B, D)), implementation="cudnn")


def test_the_options_are_in_the_order_of_the_call():
    """``jax.experimental.rnn`` takes them by position."""
    import inspect

    call = cudnn.Call(3, 5, 2, 2, jax.lax.Precision.HIGHEST, None)
    forward = list(inspect.signature(rnn.lstm_fwd).parameters)
    backward = list(inspect.signature(rnn.lstm_bwd).parameters)
    named = ["input_size", "hidden_size", "num_layers", "dropout", "bidirectional", "precision"]
    assert forward == ["x", "h_0", "c_0", "w", "seq_lengths", *named]
    assert backward == [*named, "residuals", "gradients"]
    assert dict(zip(named, call.options, strict=True))["bidirectional"] is True
