"""The convolutional LSTM: equations, shapes, transforms, low precision, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle_conv
import pytest
from cell_cases import BY_NAME
from helpers import (
    assert_raises,
    assert_same,
    daily,
    finite_difference_check,
    problem,
    random_like,
    several_devices,
    slow,
    total,
    zero_params,
)
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import lstm_jax
from lstm_jax import GRU, LSTM, Bidirectional, ConvLSTM, Readout, Stack, conv_lstm_step

KEY = jax.random.key(0)
CELL = ConvLSTM((5, 4, 3), 2, (3, 2))
NETWORK = Stack((Bidirectional(CELL), ConvLSTM((5, 4, 4), 2, (3, 3)), Readout(2, 3)))


def drawn(network, *batch, T=4, dtype=None, seed=0):
    """Random parameters, inputs and lengths."""
    rng = np.random.default_rng(seed)
    params = random_like(rng, jax.eval_shape(network.init, KEY))
    xs = jnp.asarray(rng.normal(size=(T, *batch, *network.input_shape)), dtype or jnp.float32)
    return params, xs, jnp.asarray(rng.integers(0, T + 1, batch), jnp.int32)


# --- equations ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "which, options",
    [
        ("conv_lstm", {}),
        ("conv_lstm_2d", {"strides": (2, 1), "padding": "VALID"}),
        ("conv_lstm_2d_same", {"strides": (2, 3)}),
        ("conv_lstm_3d", {}),
    ],
)
def test_step_agrees_with_the_equations(which, options):
    given = problem(BY_NAME[which], batch=(), T=1)
    x = np.where(np.isfinite(given.xs[0]), given.xs[0], 0.5)
    options = {"strides": None, "padding": "SAME"} | options
    found = jax.jit(lambda *a: conv_lstm_step(*a, **options))(given.params, given.carry, x)
    expected = oracle_conv.conv_lstm(given.params, given.carry, x, **options)
    assert_same(jax.device_get(found), expected)


@pytest.mark.usefixtures("x64")
def test_a_kernel_of_one_pixel_equals_an_lstm_at_every_pixel():
    cell, plain = ConvLSTM((4, 3), 2, (1,), param_dtype="float64"), LSTM(3, 2, param_dtype="float64")
    params, xs, lengths = drawn(cell, 5, dtype="float64")
    equal = lstm_jax.LSTMParams(params.w_ih[0], params.w_hh[0], params.bias)
    found = lstm_jax.unroll(cell, params, xs, lengths=lengths)
    expected = lstm_jax.unroll(plain, equal, xs, lengths=jnp.tile(lengths[:, None], 4))
    assert_same(found, expected)


@pytest.mark.usefixtures("x64")
def test_a_shifted_image_gives_shifted_states():
    """The image is zero near its edges."""
    cell = ConvLSTM((12, 3), 2, (3,), use_bias=False, param_dtype="float64")
    params, xs, _ = drawn(cell, T=2, dtype="float64")
    xs = jnp.where((jnp.abs(jnp.arange(12) - 5) < 3)[None, :, None], xs, 0)
    ys, shifted = (lstm_jax.unroll(cell, params, a)[1] for a in (xs, jnp.roll(xs, 1, axis=1)))
    np.testing.assert_allclose(jnp.roll(ys, 1, axis=1), shifted, atol=1e-12)


# --- hyperparameters and initial values ---------------------------------------------------------


def test_equal_hyperparameters_are_equal_cells():
    cell = ConvLSTM([5, np.int64(4), 3], 2, [3, 2], strides=[1, 1], dtype=jnp.bfloat16)
    same = ConvLSTM((5, 4, 3), 2, (3, 2), dtype="bfloat16")
    assert cell == same and hash(cell) == hash(same)
    assert cell != CELL


def test_init_draws_each_gate_as_the_lstm_does():
    cell = ConvLSTM((6, 6, 10), 20, (3, 3), forget_bias=0.5, learn_initial_carry=True)
    params = cell.init(KEY)
    assert params.bias.tolist() == [0.0] * 20 + [0.5] * 20 + [0.0] * 40
    bound = np.sqrt(6 / (9 * (10 + 20)))
    for gate in np.split(np.asarray(params.w_ih), 4, axis=-1):
        assert 0.99 * bound < np.max(np.abs(gate)) <= bound * (1 + 1e-6)
    for gate in np.split(np.asarray(params.w_hh), 4, axis=-1):
        columns = gate.reshape(-1, 20).astype(np.float64)
        np.testing.assert_allclose(columns.T @ columns, np.eye(20), atol=1e-5)
    assert [a.shape for a in params.initial] == [(20,), (20,)] and not np.any(params.initial)
    assert ConvLSTM((6, 6, 10), 20, (3, 3), use_bias=False).init(KEY).bias is None


def test_a_learned_carry_is_the_same_at_every_pixel_and_has_gradients():
    cell = ConvLSTM((5, 3), 2, (2,), learn_initial_carry=True, strides=(2,))
    params, xs, _ = drawn(cell, 4)
    h, c = cell.initial_carry((4,), params)
    assert h.shape == c.shape == (4, 3, 2)
    np.testing.assert_array_equal(h, np.broadcast_to(params.initial[0], h.shape))
    grads = jax.grad(lambda p: jnp.sum(lstm_jax.unroll(cell, p, xs)[1] ** 2))(params)
    assert all(np.all(a != 0) for a in grads.initial)


@pytest.mark.parametrize(
    "cell, shape",
    [
        (CELL, (5, 4, 2)),
        (ConvLSTM((5, 4, 3), 2, (3, 2), padding="VALID"), (3, 3, 2)),
        (ConvLSTM((5, 4, 3), 2, (3, 2), padding="VALID", strides=(2, 2)), (2, 2, 2)),
        (ConvLSTM((5, 3), 7, (4,), strides=(3,)), (2, 7)),
        (NETWORK, (5, 4, 3)),
        (Bidirectional(CELL), (5, 4, 4)),
    ],
)
def test_output_shape(cell, shape):
    assert cell.output_shape == shape and cell.output_size == shape[-1]
    params, xs, _ = drawn(cell, 2)
    assert lstm_jax.unroll(cell, params, xs)[1].shape == (4, 2, *shape)


def test_the_plan_contains_shapes():
    params, xs, _ = drawn(NETWORK, 2)
    cells = [layer.cell for layer in lstm_jax.explain(NETWORK, params, xs).layers]
    assert cells == [
        "ConvLSTM(5x4x3 -> 5x4x2), both directions",
        "ConvLSTM(5x4x4 -> 5x4x2)",
        "Readout(2 -> 3)",
    ]


# --- transforms ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_both_modes_to_second_order_agree_with_finite_differences():
    cell = ConvLSTM((3, 2), 2, (2,), strides=(2,), param_dtype="float64")
    params, xs, lengths = drawn(cell, 2, T=3, dtype="float64")

    def run(params, xs, carry):
        return lstm_jax.unroll(cell, params, xs, carry, lengths=lengths, reverse=True)

    carry = random_like(np.random.default_rng(1), cell.initial_carry((2,)))
    finite_difference_check(run, (params, xs, carry))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("implementation", ["fused", pytest.param("scan", marks=pytest.mark.slow)])
def test_vmap_over_parameters_equals_separate_calls(implementation):
    cell = ConvLSTM((4, 3, 2), 2, (3, 2), param_dtype="float64")
    sets, xs, lengths = zip(*(drawn(cell, 2, dtype="float64", seed=s) for s in range(3)), strict=True)

    def run(params, xs, lengths):
        def loss(params, xs):
            out = lstm_jax.unroll(cell, params, xs, lengths=lengths, implementation=implementation)
            return total(out), out

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, xs)

    stacked = jax.tree.map(lambda *a: jnp.stack(a), *zip(sets, xs, lengths, strict=True))
    together = jax.jit(jax.vmap(run))(*stacked)
    for index, one in enumerate(zip(sets, xs, lengths, strict=True)):
        assert_same(jax.tree.map(lambda a, i=index: a[i], together), jax.jit(run)(*one))


def gradients_of(network):
    def loss(params, xs, lengths):
        out = lstm_jax.unroll(network, params, xs, lengths=lengths, reverse=True)
        return sum(jnp.sum(a.astype(jnp.float32) ** 2) for a in jax.tree.leaves(out)), out

    return jax.grad(loss, argnums=(0, 1), has_aux=True)


def assert_close(left, right, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_one_exported_program_for_all_sizes():
    scope = export.SymbolicScope()
    xs = jax.ShapeDtypeStruct(export.symbolic_shape("T, B, 5, 4, 3", scope=scope), jnp.float32)
    lengths = jax.ShapeDtypeStruct(export.symbolic_shape("B", scope=scope), jnp.int32)
    params = jax.eval_shape(CELL.init, KEY)
    program = export.export(jax.jit(gradients_of(CELL)))(params, xs, lengths)
    written = export.deserialize(program.serialize())
    for T, B in ((5, 2), (9, 3)):
        given = drawn(CELL, B, T=T)
        assert_close(written.call(*given), jax.jit(gradients_of(CELL))(*given))


@several_devices
@pytest.mark.parametrize("axis_type", daily([AxisType.Auto, AxisType.Explicit]), ids=str)
@pytest.mark.parametrize(
    "network", [pytest.param(CELL, id="cell"), pytest.param(NETWORK, id="network", marks=pytest.mark.slow)]
)
def test_sharded_rows(network, axis_type):
    """Values and gradients; devices exchange only the weights' gradients."""
    given = drawn(network, 8)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(a, NamedSharding(mesh, spec))
            for a, spec in zip(given, (P(), P(None, "data"), P("data")), strict=True)
        ]
        if axis_type == AxisType.Explicit:  # unsharded weights work as well
            placed[0] = given[0]
        compiled = jax.jit(gradients_of(network)).lower(*placed).compile()
        (dparams, dxs), (carry, ys) = compiled(*placed)
        assert dxs.sharding.spec[1] == ys.sharding.spec[1] == "data"
    text = compiled.as_text()
    assert not any(f" {what}(" in text for what in ("all-gather", "all-to-all", "collective-permute"))
    assert_close(jax.device_get(((dparams, dxs), (carry, ys))), jax.jit(gradients_of(network))(*given))


@several_devices
@pytest.mark.slow
def test_sharded_rows_in_shard_map():
    params, xs, lengths = drawn(CELL, 8)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    row, steps = P("data"), P(None, "data")
    run = jax.shard_map(
        gradients_of(CELL),
        mesh=mesh,
        in_specs=(P(), steps, row),
        out_specs=((P(), steps), (row, steps)),
    )
    assert_close(jax.jit(run)(params, xs, lengths), gradients_of(CELL)(params, xs, lengths))


def test_dropout_in_a_stack():
    network = Stack((CELL, ConvLSTM((5, 4, 2), 2, (3, 3))), dropout=0.5, residual=True)
    params, xs, _ = drawn(network, 2)
    without, first, second = (
        lstm_jax.unroll(network, params, xs, key=key)[1] for key in (None, *[jax.random.key(1)] * 2)
    )
    assert np.any(without != first) and np.array_equal(first, second)


# --- low precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("compute, tolerance", [("bfloat16", 3e-2), slow("float16", 4e-3)])
@pytest.mark.parametrize("implementation", daily(["fused", "scan"]))
def test_low_precision(compute, tolerance, implementation):
    """h and the outputs have the compute dtype; c, parameters and gradients are float32."""
    params, xs, _ = drawn(CELL, 2)
    expected = lstm_jax.unroll(CELL, params, xs)
    low = ConvLSTM((5, 4, 3), 2, (3, 2), dtype=compute)

    def loss(params):
        (h, c), ys = lstm_jax.unroll(low, params, xs, implementation=implementation)
        return jnp.sum(c) + jnp.sum(ys.astype(jnp.float32)), ((h, c), ys)

    grads, ((h, c), ys) = jax.grad(loss, has_aux=True)(params)
    assert (h.dtype, c.dtype, ys.dtype) == (compute, "float32", compute)
    assert {a.dtype.name for a in jax.tree.leaves(grads)} == {"float32"}
    for a, b in zip(jax.tree.leaves(((h, c), ys)), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(a.astype(jnp.float32) - b)) < tolerance


@pytest.mark.parametrize("given", ["float16", "bfloat16", "float32"])
def test_step_returns_the_dtypes_of_the_given_carry(given):
    params, xs, _ = drawn(CELL)
    carry = jax.tree.map(lambda a: a.astype(given), CELL.initial_carry())
    for step in (CELL.step, partial(conv_lstm_step, strides=None, padding="SAME")):
        found = jax.eval_shape(step, params, carry, xs[0])
        assert {a.dtype.name for a in jax.tree.leaves(found)} == {given}


# --- errors -------------------------------------------------------------------------------------

PARAMS = zero_params(CELL)
STATE, X = np.zeros((6, 5, 4, 2), np.float32), np.zeros((6, 5, 4, 3), np.float32)
XS = np.zeros((7, 6, 5, 4, 3), np.float32)

ERRORS = {
    "no space": (lambda: ConvLSTM((3,), 2, ()), "input_shape=(3,)", "1, 2 or 3 spatial axes"),
    "too much space": (lambda: ConvLSTM((2,) * 5, 2, (1,) * 4), "1, 2 or 3 spatial axes"),
    "a shape of a number": (lambda: ConvLSTM(5, 2, (3,)), "input_shape=5", "a tuple"),
    "a size of 0": (lambda: ConvLSTM((5, 0, 3), 2, (3, 3)), "an entry of input_shape=0", "1 or more"),
    "features of a half": (lambda: ConvLSTM((5, 3), 2.5, (3,)), "features=2.5", "whole number"),
    "a kernel of a number": (lambda: ConvLSTM((5, 3), 2, 3), "kernel_size=3", "1 spatial axes", "(3,)"),
    "a kernel of too few": (lambda: ConvLSTM((5, 4, 3), 2, (3,)), "kernel_size=(3,)", "2 spatial axes"),
    "a kernel of 0": (lambda: ConvLSTM((5, 3), 2, (0,)), "an entry of kernel_size=0", "1 or more"),
    "strides of too many": (lambda: ConvLSTM((5, 3), 2, (3,), strides=(1, 1)), "strides=(1, 1)"),
    "another padding": (lambda: ConvLSTM((5, 3), 2, (3,), padding="same"), "padding='same'", "'SAME'"),
    "a kernel too large": (
        lambda: ConvLSTM((5, 3), 2, (6,), padding="VALID"),
        "(5,) pixels and a kernel of (6,)",
        "fits",
    ),
    "an initialiser's name": (lambda: ConvLSTM((5, 3), 2, (3,), w_hh_init="x"), "w_hh_init='x'"),
    "init without a key": (lambda: CELL.init(0), "ConvLSTM.init got key=0", "one PRNG key"),
    "an initial carry of a number": (lambda: CELL.initial_carry(6), "batch_shape=6", "tuple"),
    "xs of other space": (
        lambda: lstm_jax.unroll(CELL, PARAMS, np.moveaxis(XS, 2, 3)),
        "x of shape (6, 4, 5, 3)",
        "(..., 5, 4, 3)",
    ),
    "xs of other channels": (lambda: lstm_jax.unroll(CELL, PARAMS, XS[..., :2]), "(..., 5, 4, 3)"),
    "xs without time": (
        lambda: lstm_jax.unroll(CELL, PARAMS, X[0]),
        "xs of shape (5, 4, 3)",
        "(T, *batch, *features): 4 axes",
    ),
    "xs of whole numbers": (lambda: CELL.step(PARAMS, (STATE, STATE), X.astype(int)), "x of dtype int"),
    "params of an LSTM": (
        lambda: CELL.step(zero_params(LSTM(3, 2)), (STATE, STATE), X),
        "parameters of type LSTMParams",
        "ConvLSTMParams",
    ),
    "params of another kernel": (
        lambda: CELL.step(zero_params(ConvLSTM((5, 4, 3), 2, (2, 2))), (STATE, STATE), X),
        "w_ih of shape (2, 2, 3, 8)",
        "w_hh (3, 2, 2, 8)",
    ),
    "params without a kernel": (lambda: CELL.step({}, (STATE, STATE), X), "type dict"),
    "params of many": (
        lambda: CELL.step(jax.tree.map(lambda a: np.stack([a] * 2), PARAMS), (STATE, STATE), X),
        "w_ih of shape (2, 3, 2, 3, 8)",
        "jax.vmap",
    ),
    "a bias too few": (lambda: CELL.step(PARAMS._replace(bias=None), (STATE, STATE), X), "no params.bias"),
    "a learned carry too many": (
        lambda: CELL.step(PARAMS._replace(initial=(np.zeros(2), np.zeros(2))), (STATE, STATE), X),
        "params.initial with learn_initial_carry=False",
    ),
    "half a carry": (lambda: CELL.step(PARAMS, STATE, X), "ConvLSTM.step got a carry of 1 parts", "(h, c)"),
    "a carry of other space": (
        lambda: CELL.step(PARAMS, (STATE[:, 1:], STATE), X),
        "ConvLSTM.step got h of shape (6, 4, 4, 2)",
        "(6, 5, 4, 2)",
    ),
    "a carry of whole numbers": (lambda: CELL.step(PARAMS, (STATE, STATE.astype(int)), X), "c of dtype int"),
    "a carry of another batch for unroll": (
        lambda: lstm_jax.unroll(CELL, PARAMS, XS, (STATE[:2], STATE)),
        "carry[0] of shape (2, 5, 4, 2)",
        "(6, 5, 4, 2)",
    ),
    "the step function on other channels": (
        lambda: conv_lstm_step(PARAMS, (STATE, STATE), X[..., :2], strides=None, padding="SAME"),
        "conv_lstm_step got x of shape (6, 5, 4, 2)",
        "(*batch, *space, 3)",
    ),
    "the step function on a row of pixels": (
        lambda: conv_lstm_step(PARAMS, (STATE, STATE), X[0, 0], strides=None, padding="SAME"),
        "conv_lstm_step got x of shape (4, 3)",
    ),
    "the step function with a strided carry": (
        lambda: conv_lstm_step(PARAMS, (STATE, STATE), X, strides=(2, 2), padding="SAME"),
        "h of shape (6, 5, 4, 2)",
        "(6, 3, 2, 2)",
    ),
    "the step function with params that do not fit": (
        lambda: conv_lstm_step(
            PARAMS._replace(w_hh=PARAMS.w_ih), (STATE, STATE), X, strides=None, padding="SAME"
        ),
        "w_ih of shape (3, 2, 3, 8)",
        "(C=3, F=3, 4 gates)",
    ),
    "a layer of other space": (
        lambda: Stack((CELL, ConvLSTM((4, 5, 2), 2, (3, 3)))),
        "layer 1 with spatial axes (4, 5) -> (4, 5) over (5, 4)",
    ),
    "a layer of other channels": (
        lambda: Stack((CELL, ConvLSTM((5, 4, 3), 2, (3, 3)))),
        "input_size=3",
        "2 outputs",
    ),
    "vectors over images": (lambda: Stack((CELL, GRU(2, 2))), "axes () -> () over (5, 4)"),
    "images over vectors": (lambda: Stack((LSTM(3, 3), CELL)), "axes (5, 4) -> (5, 4) over ()"),
    "images over a read-out of vectors": (
        lambda: Stack((LSTM(3, 3), Readout(3, 3), CELL)),
        "layer 2 with spatial axes (5, 4)",
    ),
    "a residual that shrinks": (
        lambda: Stack((CELL, ConvLSTM((5, 4, 2), 2, (3, 3), strides=(2, 2))), residual=True),
        "(5, 4) -> (3, 2) over (5, 4)",
    ),
    "a skip that does not fit": (
        lambda: Stack((ConvLSTM((5, 3), 2, (3,), strides=(2,)), ConvLSTM((3, 5), 2, (3,))), skip=True),
        "equal spatial axes",
    ),
    "keras_init": (lambda: lstm_jax.keras_init(CELL, KEY), "keras_init got", "RNN, LSTM, GRU and Readout"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    assert_raises(*ERRORS[what])


def test_stacks_of_images():
    """The spatial axes of adjacent layers fit, also through readouts and nested stacks."""
    shrinking = ConvLSTM((5, 4, 3), 2, (3, 3), strides=(2, 2))
    Stack((shrinking, Readout(2, 6), ConvLSTM((3, 2, 6), 3, (2, 2))))
    inner = Stack((shrinking, Readout(2, 6)))
    network = Stack((inner, Bidirectional(ConvLSTM((3, 2, 6), 3, (2, 2))), Readout(6, 1)))
    assert network.output_shape == (3, 2, 1)
    params, xs, _ = drawn(network, 2)
    assert lstm_jax.unroll(network, params, xs)[1].shape == (4, 2, 3, 2, 1)
