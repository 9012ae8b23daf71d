"""The TPU kernels: compared with the reference, lowered for a TPU, and called through ``unroll``.

Pallas interprets them on a CPU. tests/unrolling/kernels tests the code that calls them.
"""

from functools import partial

import cell_cases
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cell_cases import BY_NAME
from helpers import equations, problem, values_and_gradients
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh
from kernel_cases import both_cells, unroll, without_resets

from lstm_jax import LSTM
from lstm_jax.experimental import tpu
from lstm_jax.unrolling.kernels import reference
from lstm_jax.unrolling.kernels.engine import Inputs, residuals_of
from lstm_jax.unrolling.kernels.formulas import FORMULAS, GRU_FORMULA, LSTM_FORMULA
from lstm_jax.unrolling.kernels.reference import REFERENCES

# --- the TPU kernels, as functions of arrays ----------------------------------------------------


def kernel_problem(formula, T, B, H, dtype, *, masked, biased):
    """Inputs of forward and cotangents of its states."""
    rng = np.random.default_rng(0)

    def normal(*shape, scale=0.6):
        return jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)

    valid = jnp.asarray(rng.random((T, B)) < 0.7) if masked else None
    dtypes = (dtype, "float32")[: formula.num_states]
    inputs = Inputs(
        normal(T, B, len(formula.input_columns) * H).astype(dtype),
        normal(H, len(formula.recurrent_columns) * H, scale=0.6 / H**0.5).astype(dtype),
        normal(4 * H) if biased else None,
        tuple(normal(B, H).astype(state_dtype) for state_dtype in dtypes),
        valid,
    )
    return inputs, tuple(normal(T, B, H).astype(state_dtype) for state_dtype in dtypes)


def in_float64(tree):
    return jax.tree.map(lambda a: a if a.dtype == bool else a.astype(jnp.float64), tree)


#: T, B, H, dtype, masked, biased, rows per block, steps per chunk.
SHAPES = {
    "small": (5, 3, 5, "float32", True, True, 3, 5),
    "chunks that do not divide T": (7, 2, 5, "float32", True, False, 2, 3),
    "one step a chunk": (3, 2, 5, "float32", False, True, 2, 1),
    "blocks that do not divide B": (5, 35, 130, "float32", True, True, 16, 2),
    "whole lanes": (4, 16, 128, "float32", False, True, 16, 2),
    "bfloat16": (7, 20, 140, "bfloat16", True, True, 16, 4),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("formula", "case"),
    [
        pytest.param(formula, case, id=f"{formula.name}, {case}", marks=() if fast else pytest.mark.slow)
        for formula in FORMULAS
        for case in SHAPES
        for fast in [(formula.name, case) == ("LSTM", "blocks that do not divide B")]
    ],
)
def test_tpu_kernels_against_the_reference_in_float64(formula, case, monkeypatch):
    T, B, H, dtype, masked, biased, rows, chunk = SHAPES[case]
    monkeypatch.setattr(tpu, "choose_blocks", lambda *sizes: tpu.Blocks(rows, chunk))
    problem = kernel_problem(formula, T, B, H, dtype, masked=masked, biased=biased)
    check_kernels(tpu.INTERPRETED[formula], *problem, dtype)


def check_kernels(engine, inputs, cotangents, dtype):
    reference = REFERENCES[engine.formula]
    output = jax.jit(engine.forward, static_argnums=1)(inputs, True)
    expected = jax.jit(reference.forward, static_argnums=1)(in_float64(inputs), True)
    check = partial(assert_near, tolerance=2e-5 if dtype == "float32" else 0.04)
    check(output, expected)
    for a, b in zip(engine.forward(inputs, False).states, output.states, strict=True):
        # A different program may round differently.
        a, b, rounding = np.float64(a), np.float64(b), float(jnp.finfo(b.dtype).eps)
        np.testing.assert_allclose(a, b, rtol=2 * rounding, atol=2e-6)
    residuals = residuals_of(inputs, output)
    gradients = jax.jit(engine.backward)(residuals, cotangents)
    check(gradients, jax.jit(reference.backward)(*in_float64((residuals, cotangents))))
    state_dtypes = [dtype, "float32"][: engine.formula.num_states]
    assert [str(a.dtype) for a in jax.tree.leaves(output)] == [*state_dtypes, "float32"]
    assert [str(a.dtype) for a in jax.tree.leaves(gradients)] == [dtype, *state_dtypes]
    if inputs.valid is not None:
        assert np.all(np.asarray(gradients.zs)[~np.asarray(inputs.valid)] == 0)


def assert_near(left, right, *, tolerance):
    """Compare relative to the largest entry of each array, because entries are sums of many terms."""
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


@pytest.mark.slow
def test_tpu_kernels_in_the_simulator(monkeypatch):
    """In Pallas' TPU simulator, unwritten memory is NaN; out-of-bounds reads and races are errors."""
    monkeypatch.setattr(tpu, "CHUNK", 2)
    simulator = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    forward, backward = (partial(f, LSTM_FORMULA, interpret=simulator) for f in (tpu.forward, tpu.backward))
    inputs, cotangents = kernel_problem(LSTM_FORMULA, 3, 2, 5, "float32", masked=True, biased=True)
    expected = reference.forward(LSTM_FORMULA, inputs, True)
    assert_near(jax.jit(forward, static_argnums=1)(inputs, True), expected, tolerance=1e-6)
    residuals = residuals_of(inputs, expected)
    expected = reference.backward(LSTM_FORMULA, residuals, cotangents)
    assert_near(jax.jit(backward)(residuals, cotangents), expected, tolerance=1e-6)


def argument_types(formula, *sizes, **options):
    """Types of the arguments of forward and of backward."""
    inputs, cotangents = jax.eval_shape(lambda: kernel_problem(formula, *sizes, **options))
    output = jax.eval_shape(partial(reference.forward, formula, save=True), inputs)
    return inputs, residuals_of(inputs, output), cotangents


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.name)
def test_tpu_kernels_lower_without_a_device(formula, dtype, masked):
    """Lowering rejects what Pallas cannot compile for a TPU, and does not require a TPU."""
    inputs, residuals, cotangents = argument_types(formula, 40, 20, 200, dtype, masked=masked, biased=True)
    calls = {
        "save": (partial(tpu.forward, formula, save=True), inputs),
        "plain": (partial(tpu.forward, formula, save=False), inputs),
        "backward": (partial(tpu.backward, formula), residuals, cotangents),
    }
    device = AbstractMesh((), (), abstract_device=AbstractDevice("TPU v5 lite", 1, "tpu"))
    for f, *args in calls.values():
        with jax.sharding.use_abstract_mesh(device):
            program = jax.jit(f).trace(*args).lower(lowering_platforms=("tpu",)).as_text()
        assert program.count("tpu_custom_call") == 1


#: From jax_default_matmul_precision to the precision of float32 products. Mosaic does not support "high", and
#: supports only the default precision for bfloat16.
PRECISIONS = {"bfloat16": "DEFAULT", "high": "HIGHEST", "highest": "HIGHEST"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("setting", PRECISIONS)
def test_tpu_kernels_lower_in_any_precision(setting, dtype):
    inputs, *_ = argument_types(LSTM_FORMULA, 4, 8, 128, dtype, masked=False, biased=True)
    with jax.default_matmul_precision(setting):
        traced = jax.jit(partial(tpu.forward, LSTM_FORMULA, save=False)).trace(inputs)
        assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
    (kernel,) = (
        eqn.params["jaxpr"] for eqn in equations(traced.jaxpr.jaxpr) if eqn.primitive.name == "pallas_call"
    )
    precisions = [eqn.params["precision"] for eqn in equations(kernel) if eqn.primitive.name == "dot_general"]
    expected = jax.lax.Precision["DEFAULT" if dtype == "bfloat16" else PRECISIONS[setting]]
    assert precisions == [(expected, expected)]


@pytest.mark.usefixtures("x64")
def test_tpu_kernels_have_no_64_bit_values_with_x64():
    """Mosaic does not support 64-bit types."""
    formula = GRU_FORMULA
    inputs, residuals, cotangents = argument_types(formula, 9, 20, 5, "float32", masked=True, biased=True)
    calls = (
        (partial(tpu.forward, formula, save=True), inputs),
        (partial(tpu.backward, formula), residuals, cotangents),
    )
    for f, *args in calls:
        (call,) = (
            eqn for eqn in equations(jax.make_jaxpr(f)(*args).jaxpr) if eqn.primitive.name == "pallas_call"
        )
        maps = [block.index_map_jaxpr.jaxpr for block in call.params["grid_mapping"].block_mappings]
        dtypes = {str(v.aval.dtype) for jaxpr in maps for v in (*jaxpr.invars, *jaxpr.outvars)}
        dtypes |= {str(v.aval.dtype) for eqn in equations(call.params["jaxpr"]) for v in eqn.outvars}
        assert dtypes and not [dtype for dtype in dtypes if dtype.endswith("64")]


# --- the TPU kernels under unroll ---------------------------------------------------------------


def oracle_unroll(cell, data, reverse):
    arrays = data.params, data.xs, data.carry
    params, xs, carry = jax.tree.map(lambda a: np.asarray(a, np.float64), arrays)
    result = oracle.unroll(cell, params, xs, carry, reverse=reverse, **data.flags)
    return result.carry, (result.ys, result.carries)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("name", "reverse"), [("lstm", False), helpers.slow("gru", True)])
def test_tpu_kernels_against_the_oracle(name, reverse, monkeypatch):
    """Values, and the derivative of a loss along a random direction, by finite differences of the oracle."""
    monkeypatch.setattr(tpu, "CHUNK", 3)
    data = without_resets(problem(BY_NAME[name], dtype=np.float32))
    expected = partial(oracle_unroll, {"lstm": cell_cases.ORACLE_LSTM, "gru": cell_cases.ORACLE_GRU}[name])
    options = {"return_carries": True, "reverse": reverse, "implementation": "pallas", **data.flags}
    arguments = data.params, data.xs, data.carry
    out, gradients = values_and_gradients(data.network, *arguments, **options)
    assert_near(out, expected(data, reverse), tolerance=1e-6)

    direction = helpers.random_like(np.random.default_rng(1), arguments)
    direction = direction[0], np.where(np.isfinite(data.xs), direction[1], 0), direction[2]

    def loss(step):
        params, xs, carry = jax.tree.map(
            lambda a, d: np.asarray(a, np.float64) + step * d, arguments, direction
        )
        leaves = jax.tree.leaves(expected(data._replace(params=params, xs=xs, carry=carry), reverse))
        return sum(np.sum(np.cos(np.arange(a.size) + i).reshape(a.shape) * a) for i, a in enumerate(leaves))

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    products = jax.tree.map(lambda a, d: np.sum(np.asarray(a, np.float64) * d), gradients, direction)
    assert sum(jax.tree.leaves(products)) == pytest.approx(slope, rel=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@both_cells(LSTM)
def test_tpu_kernels_of_a_whole_layer(cell_type, dtype, monkeypatch):
    """All gradients of a layer with windows and lengths equal those of the scan."""
    monkeypatch.setattr(tpu, "CHUNK", 4)
    cell = cell_type(20, 130, dtype=dtype, learn_initial_carry=True)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (11, 18, 20))
    lengths = jnp.arange(18) % 12

    def loss(name, params, xs):
        out = unroll(name, cell, params, xs, lengths=lengths, checkpoint=5)
        return sum(jnp.sum(jnp.sin(a.astype(jnp.float32))) for a in jax.tree.leaves(out))

    def gradients(name):
        return jax.jit(jax.value_and_grad(partial(loss, name), argnums=(0, 1)))(params, xs)

    tolerance = 1e-5 if dtype == "float32" else 0.05
    assert_near(gradients("pallas"), gradients("scan"), tolerance=tolerance)


# --- arithmetic -------------------------------------------------------------------------


def test_vmem_bytes_counts_all_buffers():
    """The sizes are multiples of lanes and tiles, so no padding is counted."""
    rows, units, chunk = 32, 256, 4
    for dtype, e in (("float32", 4), ("bfloat16", 2)):
        streamed = {"gates": 16, "c": 4, "h_bar": e, "c_bar": 4, "z": 4 * e}
        blocks = 2 * chunk * rows * (units * sum(streamed.values()) + 128 * 4)
        weights = units * 4 * units * e
        need = tpu.vmem_bytes(rows, units, dtype, chunk)
        assert need > blocks + weights
        assert need - blocks - weights == rows * units * 4 * 20  # h, c and intermediate values
        # A GRU has three columns of W, h instead of c, and no c_bar.
        streamed = {"gates": 16, "h": e, "h_bar": e, "z": 4 * e}
        blocks = 2 * chunk * rows * (units * sum(streamed.values()) + 128 * 4)
        weights = units * 3 * units * e
        need = tpu.vmem_bytes(rows, units, dtype, chunk, GRU_FORMULA)
        assert need - blocks - weights == rows * units * 4 * 20
    assert tpu.choose_blocks(100, 64, 256, "float32") == (64, 8)  # shorter chunks first
    assert tpu.choose_blocks(100, 64, 700, "float32").rows == 32  # then smaller blocks
