"""The sLSTM: its definition without a stabiliser, heads, large pre-activations."""

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
    total,
)

import lstm_jax
from lstm_jax import SLSTM

D, H = 3, 4
KEY = jax.random.key(0)
X = jnp.ones((2, D))


def unstabilised_step(params, forget):
    """A step of the definition without a stabiliser, (h, c, n) -> (h, c, n), for one row."""

    def step(carry, x):
        h, c, n = carry
        w_hh = params.w_hh if params.w_hh.ndim == 3 else params.w_hh[None]
        heads, d, _ = w_hh.shape
        parts = h.reshape(heads, d)
        product = np.stack([parts[k] @ w_hh[k] for k in range(heads)]).reshape(heads, 4, d)
        i, f, z, o = np.split(x @ params.w_ih + product.transpose(1, 0, 2).reshape(-1) + params.bias, 4)
        i, f = np.exp(i), np.exp(f) if forget == "exp" else 1 / (1 + np.exp(-f))
        c, n = f * c + i * np.tanh(z), f * n + i
        return c / n / (1 + np.exp(-o)), c, n

    return step


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_the_stabiliser_does_not_change_the_outputs(forget_gate):
    cell = SLSTM(D, H, heads=2, forget_gate=forget_gate, param_dtype="float64")
    params, (xs,) = random_params(cell), random_arrays((9, D), dtype=np.float64)
    carry, ys = lstm_jax.unroll(cell, params, xs)
    step, state = unstabilised_step(params, forget_gate), (np.zeros(H),) * 3
    for t, x in enumerate(xs):
        state = step(state, x)
        np.testing.assert_allclose(ys[t], state[0], rtol=1e-12)
    h, c, n, m = carry
    assert_same((h, c * jnp.exp(m), n * jnp.exp(m)), jax.tree.map(jnp.asarray, state))


@pytest.mark.usefixtures("x64")
def test_heads_equal_separate_cells():
    cell, one = (SLSTM(D, width, heads=heads, param_dtype="float64") for width, heads in ((6, 3), (2, 1)))
    params, (xs,) = random_params(cell), random_arrays((5, 2, D), dtype=np.float64)
    carry, ys = lstm_jax.unroll(cell, params, xs)
    for head in range(3):
        units = slice(2 * head, 2 * head + 2)
        columns = (np.arange(4)[:, None] * 6 + np.arange(6)[units]).ravel()
        of_head = lstm_jax.SLSTMParams(params.w_ih[:, columns], params.w_hh[head], params.bias[columns])
        expected = lstm_jax.unroll(one, of_head, xs)
        assert_same((tuple(part[..., units] for part in carry), ys[..., units]), expected)


def test_init_draws_an_orthogonal_block_for_each_head_and_gate():
    w_hh = np.asarray(SLSTM(D, 6, heads=2).init(KEY).w_hh)
    blocks = [gate for head in w_hh for gate in np.split(head, 4, axis=1)]
    for block in blocks:
        np.testing.assert_allclose(block @ block.T, np.eye(3), atol=1e-5)
    assert len({block.tobytes() for block in blocks}) == 8


def test_forget_bias():
    assert SLSTM(D, 2).init(KEY).bias.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert SLSTM(D, 2, forget_bias=-1.0).init(KEY).bias.tolist() == [0, 0, -1, -1, 0, 0, 0, 0]
    assert SLSTM(D, 2, use_bias=False).init(KEY).bias is None


def test_only_h_0_is_learned():
    cell = SLSTM(D, 2, learn_initial_carry=True)
    params = cell.init(KEY)._replace(initial=jnp.array([0.5, -0.5]))
    h, c, n, m = cell.initial_carry((3,), params)
    assert h.tolist() == [[0.5, -0.5]] * 3
    assert not np.any(c) and not np.any(n) and np.all(m == -(2.0**127))


# --- large pre-activations ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [2.0**125, 100.0])
@pytest.mark.parametrize("implementation", daily(["auto", "scan"]))
@pytest.mark.parametrize("compute", daily(["float32", "bfloat16"]))
@pytest.mark.parametrize("forget_gate", daily(["sigmoid", "exp"]))
def test_large_preactivations(size, forget_gate, compute, implementation):
    """The results are finite and agree with the oracle up to the limit of the docstring."""
    sequences = gate_sequences(size)
    gates = np.concatenate([sequences, np.ones((*sequences.shape[:2], 2))], axis=-1)
    # The inputs are the pre-activations.
    cell = SLSTM(4, 1, forget_gate=forget_gate, dtype=compute)
    params = cell.init(KEY)._replace(w_ih=jnp.eye(4), w_hh=jnp.zeros((1, 4)), bias=jnp.zeros(4))
    xs = jnp.asarray(gates, jnp.float32)

    def run(params, xs):
        return lstm_jax.unroll(cell, params, xs, implementation=implementation, return_carries=True)

    _, (ys, (_, c, n, _)) = run(params, xs)
    assert ys.dtype == compute and n.dtype == np.float32
    assert all_finite((ys, c, n)) and np.all(np.abs(ys) <= 1) and np.all(n >= 1)
    equations = oracle.Cell(partial(oracle_newer.slstm, forget=forget_gate), oracle_newer.slstm_initial)
    expected = oracle.unroll(equations, jax.tree.map(lambda a: np.asarray(a, np.float64), params), gates)
    np.testing.assert_allclose(np.asarray(ys, np.float64), expected.ys, atol=2e-3)
    np.testing.assert_allclose(ys[0].astype(np.float32), np.tanh(1) / (1 + np.exp(-1)), rtol=5e-3)
    assert all_finite(jax.grad(lambda *a: total(run(*a)[1][0]).astype(jnp.float32), (0, 1))(params, xs))


# --- errors -------------------------------------------------------------------------------------

#: A call, and a part of its error message.
ERRORS = {
    "slstm: heads": (
        lambda: SLSTM(D, H, heads=3),
        "SLSTM got heads=3 with hidden_size=4; expected heads",
    ),
    "slstm: no heads": (lambda: SLSTM(D, H, heads=0), "SLSTM got heads=0"),
    "slstm: forget gate": (lambda: SLSTM(D, H, forget_gate="tanh"), "SLSTM got forget_gate='tanh'"),
    "slstm: key": (lambda: SLSTM(D, H).init(0), "SLSTM.init got key=0"),
    "slstm: another number of heads": (
        lambda: lstm_jax.unroll(SLSTM(D, H, heads=2), SLSTM(D, H).init(KEY), X),
        "SLSTM got w_hh of shape (4, 16); expected w_hh (2, 2, 8)",
    ),
    "slstm: params None": (
        lambda: lstm_jax.unroll(SLSTM(D, H), None, X),
        "type NoneType; expected SLSTMParams",
    ),
    "slstm: no bias": (
        lambda: lstm_jax.unroll(SLSTM(D, H), SLSTM(D, H, use_bias=False).init(KEY), X),
        "SLSTM got no params.bias with use_bias=True",
    ),
    "slstm: x": (
        lambda: lstm_jax.unroll(SLSTM(D, H), SLSTM(D, H).init(KEY), jnp.ones((2, 5))),
        "got x",
    ),
    "slstm: an LSTM's carry": (
        lambda: SLSTM(D, H).step(SLSTM(D, H).init(KEY), (jnp.ones((2, H)),) * 2, X),
        "SLSTM.step got a carry of 2 parts; expected (h, c, n, m)",
    ),
    "slstm: a part of the carry": (
        lambda: SLSTM(D, H).step(SLSTM(D, H).init(KEY), (*(jnp.ones((2, H)),) * 3, jnp.ones(H)), X),
        "SLSTM.step got m of shape (4,)",
    ),
    "slstm_step: params that disagree": (
        lambda: lstm_jax.slstm_step(
            SLSTM(D, H).init(KEY)._replace(w_ih=jnp.ones((D, 8))),
            (jnp.ones((2, H)),) * 4,
            X,
            forget_gate="sigmoid",
        ),
        "slstm_step got w_ih of shape (3, 8); expected w_ih (3, 16)",
    ),
    "slstm_step: forget gate": (
        lambda: lstm_jax.slstm_step(SLSTM(D, H).init(KEY), (jnp.ones((2, H)),) * 4, X, forget_gate="none"),
        "slstm_step got forget_gate='none'",
    ),
    "slstm_step: x of whole numbers": (
        lambda: lstm_jax.slstm_step(
            SLSTM(D, H).init(KEY), (jnp.ones((2, H)),) * 4, jnp.ones((2, D), int), forget_gate="sigmoid"
        ),
        "slstm_step got x of dtype int32",
    ),
    "slstm: learned without params": (
        lambda: SLSTM(D, H, learn_initial_carry=True).initial_carry(),
        "SLSTM.initial_carry got no params",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    assert_raises(*ERRORS[what])
