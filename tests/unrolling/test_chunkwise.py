"""MLSTM in chunks of time: results equal those of the plain scan."""

import itertools
from functools import partial

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_newer
import pytest
from helpers import assert_same
from jax.test_util import check_grads

import lstm_jax
from lstm_jax.unrolling.chunkwise import MIN_STEPS, chunk_length

D, H, HEADS = 3, 6, 2
DOUBLE = pytest.mark.usefixtures("x64")
#: Steps that fill one chunk, more than one, and not a whole number of them.
STEPS = {"one chunk": 16, "a chunk and a step": 17, "three chunks": 48, "less than a chunk": 5, "one step": 1}


class Problem:
    """Random parameters, inputs, carry and flags."""

    def __init__(self, T=17, batch=(3,), forget_gate="sigmoid", seed=0):
        rng = np.random.default_rng(seed)
        self.cell = lstm_jax.MLSTM(D, H, heads=HEADS, forget_gate=forget_gate, param_dtype=np.float64)
        self.params = helpers.random_like(rng, jax.eval_shape(self.cell.init, jax.random.key(0)))
        self.carry = helpers.random_like(rng, self.cell.initial_carry(batch))
        self.xs = rng.normal(size=(T, *batch, D)) * 2
        self.lengths = rng.integers(0, T + 1, batch).astype(np.int32)
        self.mask, self.resets = rng.random((T, *batch)) < 0.7, rng.random((T, *batch)) < 0.2
        self.stored = jax.tree.map(lambda a: rng.normal(size=(T, *a.shape)), self.carry)
        self.flags = {"lengths": self.lengths, "mask": self.mask, "resets": self.resets}

    def solve(self, how, *, reset_to=None, flags=None, **options):
        """Values, and gradients for parameters, inputs, carry and stored states."""
        flags = self.flags if flags is None else flags

        def f(params, xs, carry, reset_to):
            return lstm_jax.unroll(
                self.cell, params, xs, carry, reset_to=reset_to, implementation=how, **flags, **options
            )

        def loss(*arguments):
            out = f(*arguments)
            return helpers.total(out), out

        grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
        return grad(self.params, self.xs, self.carry, reset_to)


@DOUBLE
@pytest.mark.parametrize(
    ("T", "reverse", "forget_gate"),
    [
        row if row in ((17, False, "exp"), (48, True, "sigmoid")) else helpers.slow(*row)
        for row in itertools.product(STEPS.values(), (False, True), ("sigmoid", "exp"))
    ],
)
def test_values_and_gradients_are_those_of_the_loop(T, reverse, forget_gate):
    given = Problem(T, forget_gate=forget_gate)
    for flags in ({}, None):
        results = [given.solve(how, reverse=reverse, flags=flags) for how in ("parallel", "scan")]
        assert_same(*results, rtol=1e-8, atol=1e-9)


@DOUBLE
@pytest.mark.parametrize("reverse", helpers.daily([False, True], True), ids=["forward", "reverse"])
@pytest.mark.slow
def test_restarts_from_stored_states(reverse):
    given = Problem(20)
    results = [given.solve(how, reset_to=given.stored, reverse=reverse) for how in ("parallel", "scan")]
    assert_same(*results, rtol=1e-8, atol=1e-9)
    assert any(np.any(a != 0) for a in jax.tree.leaves(results[0][0][3]))


@DOUBLE
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_the_oracle(reverse):
    given = Problem(19)
    cell = oracle.Cell(oracle_newer.mlstm, partial(oracle_newer.mlstm_initial, heads=HEADS))
    expected = oracle.unroll(cell, given.params, given.xs, None, reverse=reverse, **given.flags)
    carry, ys = lstm_jax.unroll(
        given.cell, given.params, given.xs, reverse=reverse, implementation="parallel", **given.flags
    )
    assert_same((carry, ys), jax.tree.map(jnp.asarray, (expected.carry, expected.ys)), rtol=1e-8, atol=1e-9)


@DOUBLE
@pytest.mark.parametrize(
    ("T", "batch"), [(0, (3,)), helpers.slow(18, (0,)), (18, ()), helpers.slow(18, (2, 2))], ids=str
)
def test_edges(T, batch):
    given = Problem(T, batch)
    assert_same(*(given.solve(how) for how in ("parallel", "scan")), rtol=1e-8, atol=1e-9)


@DOUBLE
def test_invalid_inputs_are_not_read():
    given = Problem(20)
    valid = given.mask & (np.arange(20)[:, None] < given.lengths)
    given.xs = np.where(valid[..., None], given.xs, np.nan)
    out = given.solve("parallel")
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(out))
    assert np.all(np.asarray(out[1][1])[~valid] == 0) and np.all(np.asarray(out[0][1])[~valid] == 0)


@DOUBLE
@pytest.mark.slow
def test_windows_are_the_whole():
    given = Problem(40)
    del given.flags["lengths"]
    whole = given.solve("parallel")
    assert_same(given.solve("parallel", checkpoint=11), whole, rtol=1e-8, atol=1e-9)
    carry, parts = given.carry, []
    for at in (slice(0, 17), slice(17, 40)):
        flags = {name: flag[at] for name, flag in given.flags.items()}
        carry, ys = lstm_jax.unroll(
            given.cell, given.params, given.xs[at], carry, implementation="parallel", **flags
        )
        parts.append(ys)
    assert_same((carry, jnp.concatenate(parts)), whole[1], rtol=1e-8, atol=1e-9)


@DOUBLE
@pytest.mark.slow
def test_forward_mode_and_vmap():
    given = Problem(18, (2,))

    def f(how, params, xs):
        return lstm_jax.unroll(given.cell, params, xs, implementation=how)[1]

    primals = given.params, given.xs
    tangents = helpers.random_like(np.random.default_rng(1), primals)
    jvps = [jax.jit(partial(jax.jvp, partial(f, how)))(primals, tangents) for how in ("parallel", "scan")]
    assert_same(*jvps, rtol=1e-8, atol=1e-9)
    ensemble = jax.tree.map(lambda a: np.stack([a, -a]), given.params)
    mapped = [jax.vmap(partial(f, how), (0, None))(ensemble, given.xs) for how in ("parallel", "scan")]
    assert_same(*mapped, rtol=1e-8, atol=1e-9)


@DOUBLE
@pytest.mark.slow
def test_second_derivatives():
    given = Problem(4, (2,))

    def f(how, params, xs):
        return lstm_jax.unroll(given.cell, params, xs, implementation=how)[1]

    small = given.xs * 0.3
    check_grads(lambda p: helpers.total(f("parallel", p, small)), (given.params,), order=2, eps=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_low_precision_and_float32(dtype):
    cell = lstm_jax.MLSTM(8, 32, heads=2, dtype=dtype)
    params, xs = cell.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (50, 3, 8))
    (parallel, ys), (plain, zs) = (
        lstm_jax.unroll(cell, params, xs, implementation=how) for how in ("parallel", "scan")
    )
    assert ys.dtype == zs.dtype and [a.dtype for a in parallel] == [a.dtype for a in plain]
    np.testing.assert_allclose(
        np.asarray(ys, np.float32), np.asarray(zs, np.float32), atol=1e-5 if dtype is None else 2e-2
    )


def test_auto_chooses_chunks_where_they_are_faster():
    def chosen(heads, T, **options):
        cell = lstm_jax.MLSTM(8, 32, heads=heads)
        params = jax.eval_shape(cell.init, jax.random.key(0))
        xs = jax.ShapeDtypeStruct((T, 3, 8), "float32")
        return lstm_jax.explain(cell, params, xs, **options).implementation

    assert chosen(2, 100) == "parallel"
    assert chosen(2, MIN_STEPS - 1) == chosen(8, 100) == "fused"
    assert chosen(2, 100, truncate=5) == chosen(2, 100, return_carries=True) == "fused"
    for options, reason in (({"truncate": 5}, "truncate"), ({"return_carries": True}, "return_carries")):
        with pytest.raises(ValueError, match=reason):
            chosen(2, 100, implementation="parallel", **options)


@pytest.mark.slow
def test_no_memory_of_every_step_is_stored():
    """The gradient of T steps needs less than half of T matrix memories."""
    cell = lstm_jax.MLSTM(8, 64, heads=1)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((512, 2, 8))

    def loss(params):
        return jnp.sum(lstm_jax.unroll(cell, params, xs, implementation="parallel")[1])

    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 512 * 2 * 64 * 64 * 4 / 2
    assert chunk_length(64, 512) < 512 / 4
