"""What is particular to the newer cells: independent units, exponential gates, memories that are matrices."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_newer
import pytest
from cell_cases import BY_NAME
from helpers import assert_same, daily, problem, random_params, total
from jax.test_util import check_grads

import lstm_jax
from lstm_jax import MLSTM, SLSTM, IndRNN

pytestmark = pytest.mark.usefixtures("quick_compiles")

D, H = 3, 4
KEY = jax.random.key(0)


def inputs(*shape, seed=1, dtype=np.float64):
    return np.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def every_finite(tree):
    return all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves(tree))


# --- independent units --------------------------------------------------------------------------


def test_a_unit_hears_itself_alone():
    cell = IndRNN(D, H, activation=jnp.tanh)
    params, xs = random_params(cell), inputs(5, D, dtype=np.float32)
    heard = jax.jacobian(lambda h: lstm_jax.unroll(cell, params, xs, h)[0])(jnp.full(H, 0.1))
    assert np.all((heard != 0) == np.eye(H, dtype=bool))


def test_recurrent_weights_are_uniform_below_one():
    w_hh = np.sort(IndRNN(D, 1000).init(KEY).w_hh)
    assert np.all((w_hh >= 0) & (w_hh < 1))
    assert np.max(np.abs(w_hh - np.linspace(0, 1, 1000))) < 0.07
    constant = IndRNN(D, H, w_hh_init=jax.nn.initializers.constant(0.5)).init(KEY)
    assert constant.w_hh.tolist() == [0.5] * H


def test_a_unit_at_the_papers_bound_doubles_over_the_sequence():
    cell, steps = IndRNN(D, 1, use_bias=False), 50
    params = cell.init(KEY)._replace(w_hh=jnp.full(1, 2.0 ** (1 / steps)))
    h, _ = lstm_jax.unroll(cell, params, jnp.zeros((steps, D)), jnp.ones(1))
    np.testing.assert_allclose(h, 2, rtol=1e-5)


# --- exponential gates --------------------------------------------------------------------------


def slstm_as_defined(params, forget):
    """The definition without a stabiliser: (h, c, n) -> (h, c, n) for a row."""

    def step(carry, x):
        h, c, n = carry
        w_hh = params.w_hh if params.w_hh.ndim == 3 else params.w_hh[None]
        heads, d, _ = w_hh.shape
        own = h.reshape(heads, d)
        mixed = np.stack([own[k] @ w_hh[k] for k in range(heads)]).reshape(heads, 4, d)
        i, f, z, o = np.split(x @ params.w_ih + mixed.transpose(1, 0, 2).reshape(-1) + params.bias, 4)
        i, f = np.exp(i), np.exp(f) if forget == "exp" else 1 / (1 + np.exp(-f))
        c, n = f * c + i * np.tanh(z), f * n + i
        return c / n / (1 + np.exp(-o)), c, n

    return step


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
def test_slstm_is_its_definition_without_the_stabiliser(forget_gate):
    cell = SLSTM(D, H, heads=2, forget_gate=forget_gate, param_dtype="float64")
    params, xs = random_params(cell), inputs(9, D)
    carry, ys = lstm_jax.unroll(cell, params, xs)
    step, state = slstm_as_defined(params, forget_gate), (np.zeros(H),) * 3
    for t, x in enumerate(xs):
        state = step(state, x)
        np.testing.assert_allclose(ys[t], state[0], rtol=1e-12)
    h, c, n, m = carry
    assert_same((h, c * jnp.exp(m), n * jnp.exp(m)), jax.tree.map(jnp.asarray, state))


@pytest.mark.usefixtures("x64")
def test_heads_are_cells_of_one_head():
    cell, one = (SLSTM(D, width, heads=heads, param_dtype="float64") for width, heads in ((6, 3), (2, 1)))
    params, xs = random_params(cell), inputs(5, 2, D)
    carry, ys = lstm_jax.unroll(cell, params, xs)
    for head in range(3):
        units = slice(2 * head, 2 * head + 2)
        columns = (np.arange(4)[:, None] * 6 + np.arange(6)[units]).ravel()
        own = lstm_jax.SLSTMParams(params.w_ih[:, columns], params.w_hh[head], params.bias[columns])
        expected = lstm_jax.unroll(one, own, xs)
        assert_same((tuple(part[..., units] for part in carry), ys[..., units]), expected)


def test_recurrent_blocks_are_orthogonal_head_by_head_and_gate_by_gate():
    w_hh = np.asarray(SLSTM(D, 6, heads=2).init(KEY).w_hh)
    blocks = [gate for head in w_hh for gate in np.split(head, 4, axis=1)]
    for block in blocks:
        np.testing.assert_allclose(block @ block.T, np.eye(3), atol=1e-5)
    assert len({block.tobytes() for block in blocks}) == 8


def test_the_forget_bias_is_that_of_the_second_gate():
    assert SLSTM(D, 2).init(KEY).bias.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert SLSTM(D, 2, forget_bias=-1.0).init(KEY).bias.tolist() == [0, 0, -1, -1, 0, 0, 0, 0]
    assert SLSTM(D, 2, use_bias=False).init(KEY).bias is None


def test_slstm_learns_h_0_alone():
    cell = SLSTM(D, 2, learn_initial_carry=True)
    params = cell.init(KEY)._replace(initial=jnp.array([0.5, -0.5]))
    h, c, n, m = cell.initial_carry((3,), params)
    assert h.tolist() == [[0.5, -0.5]] * 3
    assert not np.any(c) and not np.any(n) and np.all(m == -(2.0**127))


EXTREMES = [(i, f) for i in (-100.0, 0.0, 100.0) for f in (-100.0, 0.0, 100.0)]


@pytest.mark.parametrize("implementation", ["auto", pytest.param("scan", marks=pytest.mark.slow)])
@pytest.mark.parametrize("compute", daily(["float32", "bfloat16"]))
@pytest.mark.parametrize("forget_gate", daily(["sigmoid", "exp"]))
def test_slstm_survives_large_preactivations(forget_gate, compute, implementation):
    """One after the other in any order, from the first step on; all rows in one program."""
    pairs = np.array(EXTREMES)
    sequences = np.stack([np.roll(pairs, -k, axis=0) for k in range(len(pairs))], axis=1)  # (9, 9, 2)
    gates = np.concatenate([sequences, np.ones((*sequences.shape[:2], 2))], axis=-1)
    # x brings each gate's pre-activation itself.
    cell = SLSTM(4, 1, forget_gate=forget_gate, dtype=compute)
    params = cell.init(KEY)._replace(w_ih=jnp.eye(4), w_hh=jnp.zeros((1, 4)), bias=jnp.zeros(4))
    xs = jnp.asarray(gates, jnp.float32)

    def run(params, xs):
        return lstm_jax.unroll(cell, params, xs, implementation=implementation, return_carries=True)

    _, (ys, (_, c, n, _)) = run(params, xs)
    assert ys.dtype == compute and n.dtype == np.float32
    assert every_finite((ys, c, n)) and np.all(np.abs(ys) <= 1) and np.all(n >= 1)
    equations = oracle.Cell(partial(oracle_newer.slstm, forget=forget_gate), oracle_newer.slstm_begins)
    expected = oracle.unroll(equations, jax.tree.map(lambda a: np.asarray(a, np.float64), params), gates)
    np.testing.assert_allclose(np.asarray(ys, np.float64), expected.ys, atol=2e-3)
    np.testing.assert_allclose(ys[0].astype(np.float32), np.tanh(1) / (1 + np.exp(-1)), rtol=5e-3)
    assert every_finite(jax.grad(lambda *a: total(run(*a)[1][0]).astype(jnp.float32), (0, 1))(params, xs))


# --- memories that are matrices -----------------------------------------------------------------


def mlstm_as_defined(params, heads, forget):
    """The definition without a stabiliser: (C, n) -> h and (C, n) for a row."""

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
def test_mlstm_is_its_definition_without_the_stabiliser(forget_gate, shift):
    """Input gates of all sizes, so that either of the denominator's two parts is the larger somewhere."""
    cell = MLSTM(D, 6, heads=2, forget_gate=forget_gate, param_dtype="float64")
    params, xs = random_params(cell), inputs(9, D)
    params = params._replace(bias_gates=params.bias_gates + np.array([shift, shift, 0, 0]))
    (C, n, m), ys = lstm_jax.unroll(cell, params, xs)
    step, state = mlstm_as_defined(params, 2, forget_gate), (np.zeros((2, 3, 3)), np.zeros((2, 3)))
    for t, x in enumerate(xs):
        y, state = step(state, x)
        np.testing.assert_allclose(ys[t], y, rtol=1e-12)
    raw = jnp.exp(m)[:, None]
    assert_same((C * raw[..., None], n * raw), jax.tree.map(jnp.asarray, state))


@pytest.mark.usefixtures("x64")
def test_both_parts_of_the_denominator_are_met():
    cell = MLSTM(D, 6, heads=2, param_dtype="float64")
    xs = inputs(9, D)
    ones = []
    for shift in (-2.0, 2.0):
        params = random_params(cell)
        params = params._replace(bias_gates=params.bias_gates + np.array([shift, shift, 0, 0]))
        _, (_, (_, n, m)) = lstm_jax.unroll(cell, params, xs, return_carries=True)
        q = np.split(xs @ params.w_ih + params.bias, 4, axis=-1)[0].reshape(9, 2, 3)
        ones.append(np.mean(np.abs(np.sum(n * q, axis=-1) * np.exp(m)) < 1))
    assert ones[0] > 0.5 and ones[1] < 0.5


@pytest.mark.usefixtures("x64")
def test_heads_of_a_matrix_memory_are_cells_of_one_head():
    cell, one = (MLSTM(D, width, heads=heads, param_dtype="float64") for width, heads in ((6, 3), (2, 1)))
    params, xs = random_params(cell), inputs(5, 2, D)
    carry, ys = lstm_jax.unroll(cell, params, xs)
    for head in range(3):
        units = slice(2 * head, 2 * head + 2)
        columns, gates = (np.arange(4)[:, None] * 6 + np.arange(6)[units]).ravel(), [head, 3 + head]
        own = lstm_jax.MLSTMParams(
            params.w_ih[:, columns], params.w_gates[:, gates], params.bias[columns], params.bias_gates[gates]
        )
        expected = lstm_jax.unroll(one, own, xs)
        parts = tuple(part[:, head : head + 1] for part in carry)
        assert_same((parts, ys[..., units]), expected)


@pytest.mark.parametrize("implementation", ["auto", pytest.param("scan", marks=pytest.mark.slow)])
@pytest.mark.parametrize("compute", daily(["float32", "bfloat16"]))
@pytest.mark.parametrize("forget_gate", daily(["sigmoid", "exp"]))
def test_mlstm_survives_large_gates(forget_gate, compute, implementation):
    """As above; the last row's queries are zero, whatever the gates are."""
    pairs = np.array(EXTREMES)
    sequences = np.stack([np.roll(pairs, -k, axis=0) for k in (*range(len(pairs)), 2)], axis=1)
    own = np.random.default_rng(0).normal(size=(*sequences.shape[:2], 4))
    own[:, -1, 0] = 0
    cell = MLSTM(6, 1, forget_gate=forget_gate, dtype=compute)
    params = cell.init(KEY)
    params = params._replace(w_ih=jnp.eye(6)[:, 2:], w_gates=jnp.eye(6)[:, :2], bias_gates=jnp.zeros(2))
    xs = jnp.asarray(np.concatenate([sequences, own], axis=-1), compute)

    def run(params, xs):
        return lstm_jax.unroll(cell, params, xs, implementation=implementation, return_carries=True)

    _, (ys, (C, n, _)) = run(params, xs)
    assert ys.dtype == compute and C.dtype == np.float32
    assert every_finite((ys, C, n)) and np.any(ys != 0) and np.all(ys[:, -1] == 0)
    grads = jax.grad(lambda *a: total(run(*a)[1][0]).astype(jnp.float32), (0, 1))(params, xs)
    assert every_finite(grads)


def test_mlstm_carry_keeps_the_dtype_it_was_handed():
    """The output, which is no part of the carry, is of the compute dtype."""
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
def test_a_checkpoint_bounds_how_many_memories_are_kept(implementation):
    """By the sizes of what the forward pass hands to the backward pass; nothing is computed."""
    cell, steps = MLSTM(D, 16), 64
    shapes = jax.eval_shape(cell.init, KEY), jax.ShapeDtypeStruct((steps, 2, D), "float32")

    def memories(checkpoint):
        options = {"checkpoint": checkpoint, "implementation": implementation}

        def residuals(params, xs):
            return jax.vjp(lambda params: lstm_jax.unroll(cell, params, xs, **options)[1], params)[1]

        kept = sum(a.size for a in jax.tree.leaves(jax.eval_shape(residuals, *shapes)))
        return kept / (2 * 16 * 16)

    assert memories(None) >= steps
    assert 8 <= memories("sqrt") < 12  # one for each of eight windows, and what lies beside them
    assert memories("sqrt") < memories(None) / 5


def test_the_forget_gates_bias_is_behind_the_input_gates():
    params = MLSTM(D, H, heads=2).init(KEY)
    assert params.bias.tolist() == [0.0] * 16 and params.bias_gates.tolist() == [0, 0, 1, 1]
    bare = MLSTM(D, H, use_bias=False).init(KEY)
    assert bare.bias is None and bare.bias_gates is None


# --- what all of them have to keep --------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
@pytest.mark.parametrize("which", ["slstm", "slstm_exp", "mlstm", "mlstm_exp"])
def test_both_modes_to_second_order_agree_with_finite_differences(which):
    given = problem(BY_NAME[which], T=4, batch=(2,))
    xs = np.where(np.isfinite(given.xs), given.xs, 0.5)

    @jax.jit
    def run(params, xs, carry):
        return lstm_jax.unroll(given.network, params, xs, carry, **given.flags)

    check_grads(
        run, (given.params, xs, given.carry), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5, eps=1e-5
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("which", daily(["slstm", "mlstm"]))
def test_hessian_is_that_of_the_plain_scan(which):
    given = problem(BY_NAME[which], T=3, batch=(2,))
    xs = np.where(np.isfinite(given.xs), given.xs, 0.5)

    @partial(jax.jit, static_argnames="implementation")
    def hessian(xs, carry, implementation):
        def loss(xs, carry):
            return total(
                lstm_jax.unroll(given.network, given.params, xs, carry, implementation=implementation)
            )

        return jax.hessian(loss, argnums=(0, 1))(xs, carry)

    assert_same(hessian(xs, given.carry, "fused"), hessian(xs, given.carry, "scan"))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("which", daily(["indrnn", "slstm", "mlstm"]))
def test_vmap_over_the_rows_is_the_batched_call(which):
    given = problem(BY_NAME[which])

    def one_row(xs, carry, length, mask, resets):
        flags = {"lengths": length, "mask": mask, "resets": resets}
        return lstm_jax.unroll(given.network, given.params, xs, carry, **flags)

    flags = given.flags
    by_row = jax.vmap(one_row, in_axes=(1, 0, 0, 1, 1), out_axes=(0, 1))
    ours = by_row(given.xs, given.carry, flags["lengths"], flags["mask"], flags["resets"])
    assert_same(ours, lstm_jax.unroll(given.network, given.params, given.xs, given.carry, **flags))


@pytest.mark.parametrize("kind", [IndRNN, SLSTM, MLSTM])
def test_equal_hyperparameters_are_equal_cells(kind):
    heads = {} if kind is IndRNN else {"heads": 2}
    cell = kind(D, H, dtype=jnp.bfloat16, **heads)
    same = kind(np.int32(D), H, dtype="bfloat16", **{name: np.int64(n) for name, n in heads.items()})
    assert cell == same and hash(cell) == hash(same)
    assert all(cell != replace(cell, **change) for change in ({"use_bias": False}, {"dtype": None}))


@pytest.mark.parametrize("kind", daily([SLSTM, MLSTM]))
@pytest.mark.parametrize("forget_gate", daily(["sigmoid", "exp"], "exp"))
def test_thousands_of_steps_stay_finite(kind, forget_gate):
    cell, steps = kind(D, H, forget_gate=forget_gate), 4000
    params = cell.init(KEY)

    @jax.jit
    def run(params):
        out = lstm_jax.unroll(cell, params, jnp.ones((steps, 2, D)), checkpoint="sqrt")
        return total(out[1]), out

    grads, out = jax.grad(run, has_aux=True)(params)
    assert every_finite((grads, out))


# --- errors -------------------------------------------------------------------------------------

X = jnp.ones((2, D))
ERRORS = {
    "indrnn: a matrix for the units": (
        lambda: lstm_jax.indrnn_step(
            lstm_jax.IndRNNParams(jnp.ones((D, H)), jnp.ones((H, H))),
            jnp.ones((2, H)),
            X,
            activation=jax.nn.relu,
        ),
        "indrnn_step got w_hh of shape (4, 4); expected w_hh (4,)",
    ),
    "indrnn: another size": (
        lambda: lstm_jax.unroll(IndRNN(D, 2), IndRNN(D, H).init(KEY), X),
        "IndRNN got w_ih of shape (3, 4), w_hh of shape (4,)",
    ),
    "indrnn: x": (
        lambda: IndRNN(D, H).step(IndRNN(D, H).init(KEY), jnp.ones((2, H)), jnp.ones((2, 5))),
        "IndRNN got x of shape (2, 5)",
    ),
    "indrnn: carry": (
        lambda: IndRNN(D, H).step(IndRNN(D, H).init(KEY), jnp.ones(H), X),
        "IndRNN.step got h of shape (4,)",
    ),
    "indrnn: activation": (lambda: IndRNN(D, H, activation="relu"), "IndRNN got activation='relu'"),
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
    "slstm: learned without params": (
        lambda: SLSTM(D, H, learn_initial_carry=True).initial_carry(),
        "SLSTM.initial_carry got no params",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_refused(what):
    attempt, message = ERRORS[what]
    with pytest.raises(ValueError) as refusal:
        attempt()
    assert message in str(refusal.value)
