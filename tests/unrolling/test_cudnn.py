"""cuDNN's LSTM, replaced by ``lstm_ref`` of ``jax.experimental.rnn`` on machines without cuDNN.

``lstm_ref`` reads the same vector of weights, so these tests cover layouts, layers, directions, lengths,
carries and gradients. ``test_registry.py`` tests cuDNN on a GPU.
"""

from importlib import import_module

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from against_oracle import B, D, H, T, assert_agrees, problem
from jax.experimental import rnn

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

    def forward(call, xs, h, c, weights, lengths):
        return lstm_ref(call, xs, h, c, weights, lengths), (xs, h, c, weights, lengths)

    def backward(call, residuals, cotangents):
        *arrays, lengths = residuals
        return jax.vjp(lambda *arrays: lstm_ref(call, *arrays, lengths), *arrays)[1](cotangents)

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
    explain(network, params, jax.ShapeDtypeStruct((T, B, D), "float32"), implementation="cudnn")
    (call,) = reference
    assert call.options[2:5] == (2 if "stack" in name else 1, 0.0, "bidirectional" in name)


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


# --- unsupported calls ---------------------------------------------------------------------------


def loss_of(xs, **options):
    cell = LSTM(D, H)
    params = cell.init(jax.random.key(0))
    return lambda xs: jnp.sum(unroll(cell, params, xs, implementation="cudnn", **options)[1] ** 2)


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("transformed", "reason"),
    [
        (lambda f, xs: jax.vmap(f)(jnp.stack([xs, xs])), "cannot be mapped by jax.vmap"),
        (lambda f, xs: jax.vmap(jax.grad(f))(jnp.stack([xs, xs])), "cannot be mapped by jax.vmap"),
        (lambda f, xs: jax.jvp(f, (xs,), (xs,)), "cannot be differentiated in forward mode"),
        (lambda f, xs: jax.grad(lambda xs: jnp.sum(jax.grad(f)(xs)))(xs), "cannot be differentiated twice"),
        (lambda f, xs: jax.jvp(jax.grad(f), (xs,), (xs,)), "cannot be differentiated twice"),
        (lambda f, xs: jax.hessian(f)(xs), "cannot be"),
    ],
    ids=["vmap", "vmap_grad", "jvp", "grad_grad", "jvp_grad", "hessian"],
)
def test_unsupported_transforms_raise(transformed, reason, jitted, either):
    xs = jnp.ones((3, 2, D))
    run = lambda xs: transformed(loss_of(xs), xs)  # noqa: E731
    with pytest.raises(ValueError, match=f"implementation='cudnn', which {reason}"):
        (jax.jit(run) if jitted else run)(xs)


@pytest.mark.slow
def test_remat_of_unroll_gives_the_same_gradients(either):
    xs = jax.random.normal(jax.random.key(1), (3, 2, D))
    f = loss_of(xs)
    np.testing.assert_array_equal(jax.grad(jax.checkpoint(f))(xs), jax.grad(f)(xs))


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

    call = cudnn.Call(3, 5, 2, 2, jax.lax.Precision.HIGHEST)
    forward = list(inspect.signature(rnn.lstm_fwd).parameters)
    backward = list(inspect.signature(rnn.lstm_bwd).parameters)
    named = ["input_size", "hidden_size", "num_layers", "dropout", "bidirectional", "precision"]
    assert forward == ["x", "h_0", "c_0", "w", "seq_lengths", *named]
    assert backward == [*named, "residuals", "gradients"]
    assert dict(zip(named, call.options, strict=True))["bidirectional"] is True
