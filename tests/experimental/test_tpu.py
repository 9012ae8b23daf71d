"""The kernels for TPUs: as functions of arrays against the reference, lowered, and under unroll.

Pallas interprets them on a CPU; what surrounds them is in unrolling/kernels/test_primitive.py.
"""

from functools import partial

import jax
import jax.numpy as jnp
import members
import numpy as np
import oracle
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh
from members import BY_NAME, problem, values_and_gradients
from test_primitive import QUICK, equations, interpreted, mostly, unrolled, without_resets  # noqa: F401

from lstm_jax import LSTM
from lstm_jax.experimental import tpu
from lstm_jax.unrolling.kernels import reference as plain
from lstm_jax.unrolling.kernels.engine import Inputs, saved_of
from lstm_jax.unrolling.kernels.formulas import GRU_KIND, KINDS, LSTM_KIND
from lstm_jax.unrolling.kernels.reference import REFERENCES

# --- the TPU kernels, as functions of arrays ----------------------------------------------------


def drawn(kind, T, B, H, dtype, *, masked, biased):
    """What forward and backward read, the latter beside what forward saves."""
    rng = np.random.default_rng(0)

    def normal(*shape, scale=0.6):
        return jnp.asarray(rng.normal(size=shape) * scale, jnp.float32)

    valid = jnp.asarray(rng.random((T, B)) < 0.7) if masked else None
    dtypes = (dtype, "float32")[: kind.count]
    inputs = Inputs(
        normal(T, B, len(kind.of_x) * H).astype(dtype),
        normal(H, len(kind.of_h) * H, scale=0.6 / H**0.5).astype(dtype),
        normal(4 * H) if biased else None,
        tuple(normal(B, H).astype(one) for one in dtypes),
        valid,
    )
    return inputs, tuple(normal(T, B, H).astype(one) for one in dtypes)


def in_float64(tree):
    return jax.tree.map(lambda a: a if a.dtype == bool else a.astype(jnp.float64), tree)


#: T, B, H, dtype, whether there is a mask, a bias; rows of a block and steps of a chunk.
SHAPES = {
    "small": (5, 3, 5, "float32", True, True, 3, 5),
    "chunks that do not divide T": (7, 2, 5, "float32", True, False, 2, 3),
    "one step a chunk": (3, 2, 5, "float32", False, True, 2, 1),
    "blocks that do not divide B": (5, 35, 130, "float32", True, True, 16, 2),
    "whole lanes": (4, 16, 128, "float32", False, True, 16, 2),
    "bfloat16": (7, 20, 140, "bfloat16", True, True, 16, 4),
}


@QUICK
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("kind", "case"),
    [
        pytest.param(kind, case, id=f"{kind.name}, {case}", marks=() if daily else pytest.mark.slow)
        for kind in KINDS
        for case in SHAPES
        for daily in [(kind.name, case) == ("LSTM", "blocks that do not divide B")]
    ],
)
def test_tpu_kernels_against_the_reference_in_float64(kind, case, monkeypatch):
    T, B, H, dtype, masked, biased, rows, chunk = SHAPES[case]
    monkeypatch.setattr(tpu, "blocks", lambda *sizes: tpu.Blocks(rows, chunk))
    check_kernels(tpu.INTERPRETED[kind], drawn(kind, T, B, H, dtype, masked=masked, biased=biased), dtype)


def check_kernels(engine, given, dtype):
    (inputs, wanted), plain = given, REFERENCES[engine.kind]
    ours = jax.jit(engine.forward, static_argnums=1)(inputs, True)
    expected = jax.jit(plain.forward, static_argnums=1)(in_float64(inputs), True)
    close = partial(assert_near, tolerance=2e-5 if dtype == "float32" else 0.04)
    close(ours, expected)
    for a, b in zip(engine.forward(inputs, False).states, ours.states, strict=True):
        # Another program, which may round a number the other way.
        a, b, rounding = np.float64(a), np.float64(b), float(jnp.finfo(b.dtype).eps)
        np.testing.assert_allclose(a, b, rtol=2 * rounding, atol=2e-6)
    saved = saved_of(inputs, ours)
    found = jax.jit(engine.backward)(saved, wanted)
    close(found, jax.jit(plain.backward)(*in_float64((saved, wanted))))
    of_states = [dtype, "float32"][: engine.kind.count]
    assert [str(a.dtype) for a in jax.tree.leaves(ours)] == [*of_states, "float32"]
    assert [str(a.dtype) for a in jax.tree.leaves(found)] == [dtype, *of_states]
    if inputs.valid is not None:
        assert np.all(np.asarray(found.zs)[~np.asarray(inputs.valid)] == 0)


def assert_near(left, right, *, tolerance):
    """Beside the largest entry of each array: of a sum of many terms, no entry is better known."""
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


@QUICK
@pytest.mark.slow
def test_tpu_kernels_in_the_simulator(monkeypatch):
    """Pallas' simulator of a TPU: unwritten memory is NaN, reads out of bounds and races are errors."""
    monkeypatch.setattr(tpu, "CHUNK", 2)
    how = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    forward, backward = (partial(f, LSTM_KIND, interpret=how) for f in (tpu.forward, tpu.backward))
    inputs, wanted = drawn(LSTM_KIND, 3, 2, 5, "float32", masked=True, biased=True)
    expected = plain.forward(LSTM_KIND, inputs, True)
    assert_near(jax.jit(forward, static_argnums=1)(inputs, True), expected, tolerance=1e-6)
    saved = saved_of(inputs, expected)
    assert_near(jax.jit(backward)(saved, wanted), plain.backward(LSTM_KIND, saved, wanted), tolerance=1e-6)


def shapes_of(kind, *sizes, **options):
    """What forward reads, and what backward does."""
    inputs, wanted = jax.eval_shape(lambda: drawn(kind, *sizes, **options))
    walk = jax.eval_shape(partial(plain.forward, kind, save=True), inputs)
    return inputs, saved_of(inputs, walk), wanted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_tpu_kernels_lower_without_a_device(kind, dtype, masked):
    """What Pallas cannot make a TPU's program of is found without a TPU."""
    inputs, saved, wanted = shapes_of(kind, 40, 20, 200, dtype, masked=masked, biased=True)
    calls = {
        "save": (partial(tpu.forward, kind, save=True), inputs),
        "plain": (partial(tpu.forward, kind, save=False), inputs),
        "backward": (partial(tpu.backward, kind), saved, wanted),
    }
    device = AbstractMesh((), (), abstract_device=AbstractDevice("TPU v5 lite", 1, "tpu"))
    for f, *args in calls.values():
        with jax.sharding.use_abstract_mesh(device):
            program = jax.jit(f).trace(*args).lower(lowering_platforms=("tpu",)).as_text()
        assert program.count("tpu_custom_call") == 1


#: What the user asks for, and the precision of products of float32; of bfloat16, Mosaic takes no other than
#: the default, and it knows no "high".
PRECISIONS = {"bfloat16": "DEFAULT", "high": "HIGHEST", "highest": "HIGHEST"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("asked", PRECISIONS)
def test_tpu_kernels_lower_in_any_precision(asked, dtype):
    inputs, *_ = shapes_of(LSTM_KIND, 4, 8, 128, dtype, masked=False, biased=True)
    with jax.default_matmul_precision(asked):
        traced = jax.jit(partial(tpu.forward, LSTM_KIND, save=False)).trace(inputs)
        assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
    (kernel,) = (
        eqn.params["jaxpr"] for eqn in equations(traced.jaxpr.jaxpr) if eqn.primitive.name == "pallas_call"
    )
    found = [eqn.params["precision"] for eqn in equations(kernel) if eqn.primitive.name == "dot_general"]
    expected = jax.lax.Precision["DEFAULT" if dtype == "bfloat16" else PRECISIONS[asked]]
    assert found == [(expected, expected)]


@pytest.mark.usefixtures("x64")
def test_tpu_kernels_hold_nothing_of_64_bits():
    """Of which Mosaic knows nothing, also where x64 is on."""
    kind = GRU_KIND
    inputs, saved, wanted = shapes_of(kind, 9, 20, 5, "float32", masked=True, biased=True)
    calls = (
        (partial(tpu.forward, kind, save=True), inputs),
        (partial(tpu.backward, kind), saved, wanted),
    )
    for f, *args in calls:
        (call,) = (
            eqn for eqn in equations(jax.make_jaxpr(f)(*args).jaxpr) if eqn.primitive.name == "pallas_call"
        )
        maps = [block.index_map_jaxpr.jaxpr for block in call.params["grid_mapping"].block_mappings]
        kinds = {str(v.aval.dtype) for jaxpr in maps for v in (*jaxpr.invars, *jaxpr.outvars)}
        kinds |= {str(v.aval.dtype) for eqn in equations(call.params["jaxpr"]) for v in eqn.outvars}
        assert kinds and not [kind for kind in kinds if kind.endswith("64")]


# --- the TPU kernels under unroll ---------------------------------------------------------------


def by_oracle(cell, given, reverse):
    params, xs, carry = jax.tree.map(
        lambda a: np.asarray(a, np.float64), (given.params, given.xs, given.carry)
    )
    result = oracle.unroll(cell, params, xs, carry, reverse=reverse, **given.flags)
    return result.carry, (result.ys, result.carries)


@QUICK
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("name", "reverse"), [("lstm", False), members.slow("gru", True)])
def test_tpu_kernels_against_the_oracle(name, reverse, monkeypatch):
    """Values, and the slope of a loss along a random direction, from differences of the oracle's."""
    monkeypatch.setattr(tpu, "CHUNK", 3)
    given = without_resets(problem(BY_NAME[name], dtype=np.float32))
    by = partial(by_oracle, {"lstm": members.ORACLE_LSTM, "gru": members.ORACLE_GRU}[name])
    options = {"return_carries": True, "reverse": reverse, "implementation": "pallas", **given.flags}
    arguments = given.params, given.xs, given.carry
    out, gradients = values_and_gradients(given.network, *arguments, **options)
    assert_near(out, by(given, reverse), tolerance=1e-6)

    rng = np.random.default_rng(1)
    along = members.random_like(rng, arguments)
    along = along[0], np.where(np.isfinite(given.xs), along[1], 0), along[2]

    def loss(step):
        moved = jax.tree.map(lambda a, d: np.asarray(a, np.float64) + step * d, arguments, along)
        leaves = jax.tree.leaves(by(given._replace(params=moved[0], xs=moved[1], carry=moved[2]), reverse))
        return sum(np.sum(np.cos(np.arange(a.size) + i).reshape(a.shape) * a) for i, a in enumerate(leaves))

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    products = jax.tree.map(lambda a, d: np.sum(np.asarray(a, np.float64) * d), gradients, along)
    assert sum(jax.tree.leaves(products)) == pytest.approx(slope, rel=1e-4)


@pytest.mark.slow
@QUICK
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@mostly(LSTM)
def test_tpu_kernels_of_a_whole_layer(kind, dtype, monkeypatch):
    """Every gradient of a layer with windows and lengths, beside the scan's."""
    monkeypatch.setattr(tpu, "CHUNK", 4)
    cell = kind(20, 130, dtype=dtype, learn_initial_carry=True)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (11, 18, 20))
    lengths = jnp.arange(18) % 12

    def loss(name, params, xs):
        out = unrolled(name, cell, params, xs, lengths=lengths, checkpoint=5)
        return sum(jnp.sum(jnp.sin(a.astype(jnp.float32))) for a in jax.tree.leaves(out))

    def gradients(name):
        return jax.jit(jax.value_and_grad(partial(loss, name), argnums=(0, 1)))(params, xs)

    tolerance = 1e-5 if dtype == "float32" else 0.05
    assert_near(gradients("pallas"), gradients("scan"), tolerance=tolerance)


# --- arithmetic -------------------------------------------------------------------------


def test_vmem_counts_what_lies_there():
    """Sizes of whole lanes and tiles, so that the blocks themselves can be counted."""
    rows, units, chunk = 32, 256, 4
    for dtype, e in (("float32", 4), ("bfloat16", 2)):
        streamed = {"gates": 16, "c": 4, "wanted h": e, "wanted c": 4, "z": 4 * e}
        blocks = 2 * chunk * rows * (units * sum(streamed.values()) + 128 * 4)
        weights = units * 4 * units * e
        need = tpu.vmem_bytes(rows, units, dtype, chunk)
        assert need > blocks + weights
        assert need - blocks - weights == rows * units * 4 * 20  # h and c, and what a step keeps
        # Of a GRU three columns of W, h where c was, and nothing wanted of c.
        streamed = {"gates": 16, "h": e, "wanted h": e, "z": 4 * e}
        blocks = 2 * chunk * rows * (units * sum(streamed.values()) + 128 * 4)
        weights = units * 3 * units * e
        found = tpu.vmem_bytes(rows, units, dtype, chunk, GRU_KIND)
        assert found - blocks - weights == rows * units * 4 * 20
    assert tpu.blocks(100, 64, 256, "float32") == (64, 8)  # chunks are halved first
    assert tpu.blocks(100, 64, 700, "float32").rows == 32  # then blocks
