"""The mLSTM: its definition without a stabiliser, heads, large pre-activations, memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_newer
import pytest
from helpers import (
    all_finite,
    assert_raises,
    assert_same,
    daily,
    gate_sequences,
    random_arrays,
    random_params,
    residual_size,
    total,
)

import lstm_jax
from lstm_jax import MLSTM

D, H = 3, 4
KEY = jax.random.key(0)
X = jnp.ones((2, D))


def unstabilised_step(params, heads, forget):
    """A step of the definition without a stabiliser, (C, n) -> (h, (C, n)), for one row."""

    def step(state, x):
        (q, k, v, o), (i, f) = (
            np.split(x @ w + b, count)
            for w, b, count in ((params.w_ih, params.bias, 4), (params.w_gates, params.bias_gates, 2))
        )
        q, k, v = (part.reshape(heads, -1) for part in (q, k, v))
        i, f = np.exp(i)[:, None], (np.exp(f) if forget == "exp" else 1 / (1 + np.exp(-f)))[:, None]
        k = k / np.sqrt(k.shape[1])
        C = f[:, :, None] * state[0] + i[:, :, None] * v[:, :, None] * k[:, None, :]
        n = f * state[1] + i * k
        h = np.einsum("nvk,nk->nv", C, q) / np.maximum(np.abs(np.sum(n * q, axis=1, keepdims=True)), 1)
        return h.reshape(-1) / (1 + np.exp(-o)), (C, n)

    return step


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
@pytest.mark.parametrize("shift", [-2.0, 0.0, 2.0])
def test_the_stabiliser_does_not_change_the_outputs(forget_gate, shift):
    """The input gates vary, so that each term of the denominator is the larger one at some step."""
    cell = MLSTM(D, 6, heads=2, forget_gate=forget_gate, param_dtype="float64")
    params, (xs,) = random_params(cell), random_arrays((9, D), dtype=np.float64)
    params = params._replace(bias_gates=params.bias_gates + np.array([shift, shift, 0, 0]))
    (C, n, m), ys = lstm_jax.unroll(cell, params, xs)
    step, state = unstabilised_step(params, 2, forget_gate), (np.zeros((2, 3, 3)), np.zeros((2, 3)))
    for t, x in enumerate(xs):
        y, state = step(state, x)
        np.testing.assert_allclose(ys[t], y, rtol=1e-12)
    raw = jnp.exp(m)[:, None]
    assert_same((C * raw[..., None], n * raw), jax.tree.map(jnp.asarray, state))


@pytest.mark.usefixtures("x64")
def test_these_shifts_reach_both_terms_of_the_denominator():
    """This checks the parameters of the test above."""
    cell = MLSTM(D, 6, heads=2, param_dtype="float64")
    (xs,) = random_arrays((9, D), dtype=np.float64)
    fractions = []
    for shift in (-2.0, 2.0):
        params = random_params(cell)
        params = params._replace(bias_gates=params.bias_gates + np.array([shift, shift, 0, 0]))
        _, (_, (_, n, m)) = lstm_jax.unroll(cell, params, xs, return_carries=True)
        q = np.split(xs @ params.w_ih + params.bias, 4, axis=-1)[0].reshape(9, 2, 3)
        fractions.append(np.mean(np.abs(np.sum(n * q, axis=-1) * np.exp(m)) < 1))
    assert fractions[0] > 0.5 and fractions[1] < 0.5


@pytest.mark.usefixtures("x64")
def test_heads_equal_separate_cells():
    cell, one = (MLSTM(D, width, heads=heads, param_dtype="float64") for width, heads in ((6, 3), (2, 1)))
    params, (xs,) = random_params(cell), random_arrays((5, 2, D), dtype=np.float64)
    carry, ys = lstm_jax.unroll(cell, params, xs)
    for head in range(3):
        units = slice(2 * head, 2 * head + 2)
        columns, gates = (np.arange(4)[:, None] * 6 + np.arange(6)[units]).ravel(), [head, 3 + head]
        of_head = lstm_jax.MLSTMParams(
            params.w_ih[:, columns], params.w_gates[:, gates], params.bias[columns], params.bias_gates[gates]
        )
        expected = lstm_jax.unroll(one, of_head, xs)
        parts = tuple(part[:, head : head + 1] for part in carry)
        assert_same((parts, ys[..., units]), expected)


@pytest.mark.parametrize("size", [2.0**125, 100.0])
@pytest.mark.parametrize("implementation", daily(["auto", "scan"]))
@pytest.mark.parametrize("compute", daily(["float32", "bfloat16"]))
@pytest.mark.parametrize("forget_gate", daily(["sigmoid", "exp"]))
def test_large_gates(size, forget_gate, compute, implementation):
    """The results are finite up to the limit of the docstring. The queries of the last row are zero."""
    sequences = gate_sequences(size)
    qkvo = np.random.default_rng(0).normal(size=(*sequences.shape[:2], 4))
    qkvo[:, -1, 0] = 0
    cell = MLSTM(6, 1, forget_gate=forget_gate, dtype=compute)
    params = cell.init(KEY)
    params = params._replace(w_ih=jnp.eye(6)[:, 2:], w_gates=jnp.eye(6)[:, :2], bias_gates=jnp.zeros(2))
    xs = jnp.asarray(np.concatenate([sequences, qkvo], axis=-1), compute)

    def run(params, xs):
        return lstm_jax.unroll(cell, params, xs, implementation=implementation, return_carries=True)

    _, (ys, (C, n, _)) = run(params, xs)
    assert ys.dtype == compute and C.dtype == np.float32
    assert all_finite((ys, C, n)) and np.any(ys != 0) and np.all(ys[:, -1] == 0)
    dparams, dxs = jax.grad(lambda *a: total(run(*a)[1][0]).astype(jnp.float32), (0, 1))(params, xs)
    assert all_finite(dxs)
    assert size > 100 or all_finite(dparams)  # products with the inputs


@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_large_queries_keys_and_values(forget_gate):
    """Values and gradients up to the limit of the docstring."""
    cell = MLSTM(4, 1, forget_gate=forget_gate)
    params = cell.init(KEY)._replace(w_ih=jnp.eye(4), w_gates=jnp.zeros((4, 2)))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (6, 3, 4))
    xs = 2.0**42 * signs * np.array([1, 1, 1, 0])  # the output gate is 1/2
    _, ys = lstm_jax.unroll(cell, params, jnp.asarray(xs, jnp.float32))
    np.testing.assert_allclose(ys[0, :, 0], 2.0**41 * signs[0, :, :3].prod(-1))
    equations = oracle.Cell(
        partial(oracle_newer.mlstm, forget=forget_gate), partial(oracle_newer.mlstm_initial, heads=1)
    )
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    np.testing.assert_allclose(ys, oracle.unroll(equations, wide, xs).ys, rtol=1e-4)
    grads = jax.grad(lambda *args: jnp.sum(lstm_jax.unroll(cell, *args)[1]), (0, 1))
    assert all_finite(grads(params, jnp.asarray(xs, jnp.float32)))


def test_step_keeps_the_dtypes_of_the_given_carry():
    """The output, which is not part of the carry, has the compute dtype."""
    for compute, out in ((None, "float32"), ("bfloat16", "bfloat16")):
        cell = MLSTM(D, H, heads=2, dtype=compute)
        params = cell.init(KEY)
        for handed in ("float16", "bfloat16", "float32"):
            carry = jax.tree.map(lambda a, dtype=handed: a.astype(dtype), cell.initial_carry((2,), params))
            new, y = jax.eval_shape(cell.step, params, carry, jnp.ones((2, D)))
            assert {part.dtype.name for part in new} == {handed} and y.dtype == out
            new, y = jax.eval_shape(
                partial(lstm_jax.mlstm_step, forget_gate="sigmoid"), params, carry, jnp.ones((2, D))
            )
            assert {part.dtype.name for part in new} == {handed} and y.dtype == "float32"


@pytest.mark.parametrize("implementation", ["fused", "scan"])
def test_a_checkpoint_bounds_how_many_matrices_are_stored(implementation):
    cell, steps = MLSTM(D, 16), 64
    shapes = jax.eval_shape(cell.init, KEY), jax.ShapeDtypeStruct((steps, 2, D), "float32")

    def stored(checkpoint):
        options = {"checkpoint": checkpoint, "implementation": implementation}
        size = residual_size(lambda *args: lstm_jax.unroll(cell, *args, **options)[1], *shapes)
        return size / (2 * 16 * 16)

    assert stored(None) >= steps
    assert 8 <= stored("sqrt") < 12  # one for each of eight windows, and smaller arrays
    assert stored("sqrt") < stored(None) / 5


def test_forget_bias():
    params = MLSTM(D, H, heads=2).init(KEY)
    assert params.bias.tolist() == [0.0] * 16 and params.bias_gates.tolist() == [0, 0, 1, 1]
    bare = MLSTM(D, H, use_bias=False).init(KEY)
    assert bare.bias is None and bare.bias_gates is None


# --- errors -------------------------------------------------------------------------------------

#: A call, and a part of its error message.
ERRORS = {
    "mlstm: heads": (lambda: MLSTM(D, H, heads=3), "MLSTM got heads=3 with hidden_size=4; expected heads"),
    "mlstm: forget gate": (lambda: MLSTM(D, H, forget_gate=None), "MLSTM got forget_gate=None"),
    "mlstm: key": (lambda: MLSTM(D, H).init(0), "MLSTM.init got key=0"),
    "mlstm: another number of heads": (
        lambda: lstm_jax.unroll(MLSTM(D, H, heads=2), MLSTM(D, H).init(KEY), X),
        "MLSTM got w_gates of shape (3, 2), bias_gates of shape (2,); expected w_gates (3, 4), bias",
    ),
    "mlstm: an LSTM's params": (
        lambda: lstm_jax.unroll(MLSTM(D, H), lstm_jax.LSTM(D, H).init(KEY), X),
        "parameters of type LSTMParams; expected MLSTMParams",
    ),
    "mlstm: params None": (
        lambda: lstm_jax.unroll(MLSTM(D, H), None, X),
        "type NoneType; expected MLSTMParams",
    ),
    "mlstm: no bias": (
        lambda: lstm_jax.unroll(MLSTM(D, H), MLSTM(D, H, use_bias=False).init(KEY), X),
        "MLSTM got no params.bias with use_bias=True",
    ),
    "mlstm: one bias": (
        lambda: lstm_jax.unroll(MLSTM(D, H), MLSTM(D, H).init(KEY)._replace(bias=None), X),
        "MLSTM got no params.bias with use_bias=True",
    ),
    "mlstm: x": (
        lambda: MLSTM(D, H).step(MLSTM(D, H).init(KEY), MLSTM(D, H).initial_carry((2,)), jnp.ones((2, 5))),
        "MLSTM got x of shape (2, 5)",
    ),
    "mlstm: parts of the carry": (
        lambda: MLSTM(D, H).step(MLSTM(D, H).init(KEY), jnp.ones((2, H)), X),
        "MLSTM.step got a carry of 1 parts; expected (C, n, m)",
    ),
    "mlstm: a part of the carry": (
        lambda: MLSTM(D, H).step(MLSTM(D, H).init(KEY), MLSTM(D, H, heads=2).initial_carry((2,)), X),
        "MLSTM.step got C of shape (2, 2, 2, 2) with x of batch axes (2,); expected C of shape (2, 1, 4, 4)",
    ),
    "mlstm_step: params that disagree": (
        lambda: lstm_jax.mlstm_step(
            MLSTM(D, H).init(KEY)._replace(bias=jnp.ones(8)),
            MLSTM(D, H).initial_carry((2,)),
            X,
            forget_gate="sigmoid",
        ),
        "mlstm_step got bias of shape (8,); expected bias (16,)",
    ),
    "mlstm_step: no heads": (
        lambda: lstm_jax.mlstm_step(
            MLSTM(D, H, use_bias=False).init(KEY)._replace(w_gates=jnp.ones((D, 0))),
            (X, X, X),
            X,
            forget_gate="sigmoid",
        ),
        "mlstm_step got w_gates of shape (3, 0)",
    ),
    "mlstm_step: a carry of lists": (
        lambda: lstm_jax.mlstm_step(MLSTM(D, H).init(KEY), ([0.0], [0.0], [0.0]), X, forget_gate="sigmoid"),
        "mlstm_step got C of type list",
    ),
    "mlstm_step: forget gate": (
        lambda: lstm_jax.mlstm_step(
            MLSTM(D, H).init(KEY), MLSTM(D, H).initial_carry((2,)), X, forget_gate="none"
        ),
        "mlstm_step got forget_gate='none'",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    assert_raises(*ERRORS[what])
