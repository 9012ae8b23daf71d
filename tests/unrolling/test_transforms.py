"""Transforms of ``unroll``: derivatives in both modes, second derivatives, vmap, remat and jit."""

from functools import partial

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_same, finite_difference_check, random_like, total

import lstm_jax
from lstm_jax import GRU, LSTM, MLSTM, RNN, SLSTM, Bidirectional, GRUVariant, IndRNN, Stack

pytestmark = pytest.mark.usefixtures("x64")

T, B, D, H = 4, 2, 3, 3
CELLS = {
    "rnn": RNN(D, H, param_dtype="float64"),
    "lstm": LSTM(D, H, param_dtype="float64"),
    "gru": GRU(D, H, param_dtype="float64"),
    "gru_reset_before": GRUVariant(D, H, reset_after=False, param_dtype="float64"),
    "indrnn": IndRNN(D, H, activation=jnp.tanh, param_dtype="float64"),
    "slstm": SLSTM(D, H, param_dtype="float64"),
    "slstm_exp": SLSTM(D, H, forget_gate="exp", param_dtype="float64"),
    "mlstm": MLSTM(D, H, param_dtype="float64"),
    "mlstm_exp": MLSTM(D, H, forget_gate="exp", param_dtype="float64"),
}
NETWORKS = CELLS | {
    "bidirectional": Bidirectional(CELLS["lstm"]),
    "bidirectional_scan": Bidirectional(CELLS["gru_reset_before"]),
    "stack": Stack((CELLS["gru"], CELLS["lstm"]), residual=True),
}
FLAGS = {
    "lengths": [T - 1, T],
    "resets": np.array([[0, 1], [1, 0], [0, 0], [0, 1]], bool),
    "reverse": True,
}


def drawn(tree, seed):
    """Random arrays in the shapes of ``tree``."""
    return jax.tree.map(jnp.asarray, random_like(np.random.default_rng(seed), tree))


def problem(network, *, batch=(B,), seed=0):
    """Random parameters, inputs and initial carry."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    carry = jax.eval_shape(lambda: network.initial_carry(batch))
    params, xs, carry = drawn((shapes, jnp.zeros((T, *batch, D)), carry), seed)
    if isinstance(network, SLSTM):  # the normaliser of an sLSTM is positive
        h, c, n, m = carry
        carry = h, c, 1 + jnp.abs(n), m
    return params, xs, carry


def plain(cell, params, xs, carry):
    """A scan of the step."""
    return jax.lax.scan(partial(cell.step, params), carry, xs)


def loss_of(run, cell, *, part=lambda out: out):
    return lambda params, xs, carry: total(part(run(cell, params, xs, carry)))


def row(tree, index):
    return jax.tree.map(lambda a: a[index], tree)


# --- derivatives --------------------------------------------------------------------------------


def daily(*names, among=NETWORKS):
    """Parametrize over all networks; those that are not named are slow."""
    return pytest.mark.parametrize("name", helpers.daily(among, *names))


@daily("lstm")
def test_both_modes_to_second_order_agree_with_finite_differences(name):
    network = NETWORKS[name]

    @jax.jit
    def run(params, xs, carry):
        return lstm_jax.unroll(network, params, xs, carry, **FLAGS)

    finite_difference_check(run, problem(network))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["fused", "scan"])
def test_windows_of_a_checkpoint_agree_with_finite_differences(implementation):
    @jax.jit
    def run(params, xs, carry):
        options = {"checkpoint": 3, "implementation": implementation}
        return lstm_jax.unroll(CELLS["lstm"], params, xs, carry, **FLAGS, **options)

    finite_difference_check(run, problem(CELLS["lstm"]))


@pytest.mark.parametrize("name", [pytest.param("stack", marks=pytest.mark.slow), "gru_reset_before"])
def test_second_derivatives_with_a_checkpoint(name):
    network = NETWORKS[name]
    args = problem(network)
    along = problem(network, seed=1)

    def product(checkpoint):
        def loss(*args):
            return total(lstm_jax.unroll(network, *args, **FLAGS, checkpoint=checkpoint))

        return jax.jit(lambda a, t: jax.jvp(jax.grad(loss, argnums=(0, 1, 2)), a, t))(args, along)

    assert_same(product(3), product(None))


@daily("lstm", among=CELLS)
def test_jvp_agrees_with_the_plain_scan(name):
    cell = CELLS[name]
    primals = problem(cell)
    tangents = problem(cell, seed=1)

    @partial(jax.jit, static_argnums=0)
    def jvp(run, primals, tangents):
        return jax.jvp(partial(run, cell), primals, tangents)

    assert_same(jvp(lstm_jax.unroll, primals, tangents), jvp(plain, primals, tangents))


@daily("lstm", among=CELLS)
def test_gradients_of_all_arguments_agree_with_the_plain_scan(name):
    """With respect to weights, inputs and the initial carry, from outputs and final carry."""
    cell = CELLS[name]
    args = problem(cell)
    found, expected = (
        jax.jit(jax.value_and_grad(loss_of(run, cell), argnums=(0, 1, 2)))(*args)
        for run in (lstm_jax.unroll, plain)
    )
    assert_same(found, expected)


@pytest.mark.parametrize("part", ["h", "c"])
def test_gradients_of_the_final_carry(part):
    cell = CELLS["lstm"]
    args = problem(cell)
    pick = {"h": lambda out: out[0][0], "c": lambda out: out[0][1]}[part]
    found, expected = (
        jax.jit(jax.grad(loss_of(run, cell, part=pick), argnums=(0, 1, 2)))(*args)
        for run in (lstm_jax.unroll, plain)
    )
    assert_same(found, expected)


def test_gradients_of_the_carries_of_all_steps():
    """The carries of ``return_carries`` have the gradients of the carries that a scan stacks."""
    cell = CELLS["lstm"]
    args = problem(cell)

    def with_unroll(params, xs, carry):
        return total(lstm_jax.unroll(cell, params, xs, carry, return_carries=True))

    def expected(params, xs, carry):
        def step(carry, x):
            new, y = cell.step(params, carry, x)
            return new, (y, new)

        return total(jax.lax.scan(step, carry, xs))

    assert_same(
        jax.jit(jax.grad(with_unroll, argnums=(0, 1, 2)))(*args),
        jax.jit(jax.grad(expected, argnums=(0, 1, 2)))(*args),
    )


def test_a_row_without_steps_has_a_gradient_only_for_its_initial_carry():
    cell = CELLS["gru"]
    params, xs, carry = problem(cell)
    weight = jnp.asarray(np.random.default_rng(5).normal(size=(B, H)))

    @jax.jit
    def gradients(xs, carry):
        return jax.grad(
            lambda xs, carry: jnp.sum(weight * lstm_jax.unroll(cell, params, xs, carry, lengths=[0, T])[0]),
            argnums=(0, 1),
        )(xs, carry)

    of_xs, of_carry = gradients(xs, carry)
    assert not np.any(of_xs[:, 0]) and np.all(of_xs[:, 1])
    np.testing.assert_array_equal(of_carry[0], weight[0])


def test_the_gradient_of_a_learned_initial_carry_sums_over_rows_and_restarts():
    cell = LSTM(D, H, learn_initial_carry=True, param_dtype="float64")
    params = drawn(jax.eval_shape(cell.init, jax.random.key(0)), 0)
    xs = drawn(jnp.zeros((T, B, D)), 1)
    resets = np.zeros((T, B), bool)
    resets[2, 0] = True

    def with_unroll(params):
        return total(lstm_jax.unroll(cell, params, xs, resets=resets)[1])

    def by_hand(params):
        start = cell.initial_carry((), params)
        pieces = [plain(cell, params, xs[:2, 0], start)[1], plain(cell, params, xs[2:, 0], start)[1]]
        first = jnp.concatenate(pieces)
        second = plain(cell, params, xs[:, 1], start)[1]
        return total(jnp.stack([first, second], axis=1))

    found, expected = jax.jit(jax.grad(with_unroll))(params), jax.jit(jax.grad(by_hand))(params)
    assert all(np.all(np.asarray(a) != 0) for a in found.initial)
    assert_same(found, expected)


@daily("lstm", among=CELLS)
def test_grad_of_grad_agrees_with_the_plain_scan(name):
    """The gradient of the squared norm of a gradient."""
    cell = CELLS[name]
    args = problem(cell)

    def penalty(run):
        def norm(*args):
            return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss_of(run, cell))(*args)))

        return jax.jit(jax.grad(norm, argnums=(0, 1, 2)))(*args)

    assert_same(penalty(lstm_jax.unroll), penalty(plain))


@daily("lstm", among=CELLS)
def test_hessian_agrees_with_the_plain_scan(name):
    cell = CELLS[name]
    args = problem(cell)
    found, expected = (jax.jit(jax.hessian(loss_of(run, cell)))(*args) for run in (lstm_jax.unroll, plain))
    assert_same(found, expected)


@pytest.mark.slow
def test_hessian_vector_products_agree_forward_over_reverse_and_reverse_over_forward():
    network = NETWORKS["bidirectional"]
    params, xs, carry = problem(network)
    along = drawn(params, 3)

    def loss(params):
        return total(lstm_jax.unroll(network, params, xs, carry, **FLAGS))

    forward_over_reverse = jax.jit(lambda p: jax.jvp(jax.grad(loss), (p,), (along,))[1])(params)
    reverse_over_forward = jax.jit(jax.grad(lambda p: jax.jvp(loss, (p,), (along,))[1]))(params)
    assert_same(forward_over_reverse, reverse_over_forward)


@pytest.mark.slow
def test_jacobians_agree_in_both_modes():
    network = NETWORKS["stack"]
    params, xs, carry = problem(network)

    def final(xs):
        return lstm_jax.unroll(network, params, xs, carry, **FLAGS)[0]

    assert_same(jax.jit(jax.jacfwd(final))(xs), jax.jit(jax.jacrev(final))(xs))


@pytest.mark.parametrize("name", helpers.daily(["lstm", "gru", "bidirectional", "stack"]))
@pytest.mark.slow
def test_the_transpose_of_the_linearised_function_is_the_vjp(name):
    network = NETWORKS[name]
    args = problem(network)

    def run(*args):
        return lstm_jax.unroll(network, *args, **FLAGS)

    outputs, linear = jax.linearize(run, *args)
    tangents = problem(network, seed=1)
    pushed = linear(*tangents)
    assert_same(pushed, jax.jit(lambda a, t: jax.jvp(run, a, t)[1])(args, tangents))
    cotangents = drawn(outputs, 4)
    pulled = jax.linear_transpose(linear, *args)(cotangents)
    assert_same(pulled, jax.jit(lambda a, c: jax.vjp(run, *a)[1](c))(args, cotangents))
    inner = [
        sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))
        for x, y in ((pushed, cotangents), (tangents, pulled))
    ]
    np.testing.assert_allclose(*inner, rtol=1e-12)


@pytest.mark.parametrize("policy", helpers.daily([None, jax.checkpoint_policies.dots_saveable]))
@pytest.mark.slow
def test_remat_of_unroll_changes_no_gradient(policy):
    network = NETWORKS["stack"]
    args = problem(network)

    def loss(*args):
        return total(lstm_jax.unroll(network, *args, **FLAGS))

    remat = jax.checkpoint(loss, policy=policy)
    assert_same(jax.jit(jax.value_and_grad(remat))(*args), jax.jit(jax.value_and_grad(loss))(*args))


# --- jit and vmap -------------------------------------------------------------------------------


@daily("lstm")
def test_jit_of_unroll_changes_nothing(name):
    network = NETWORKS[name]
    args = problem(network)
    jitted = jax.jit(lstm_jax.unroll, static_argnums=0, static_argnames="reverse")
    flags = FLAGS | {"lengths": jnp.asarray(FLAGS["lengths"])}
    assert_same(
        jitted(network, *args, **flags), lstm_jax.unroll(network, *args, **FLAGS), rtol=1e-14, atol=1e-14
    )


@daily("lstm", "slstm", "mlstm", "indrnn")
def test_vmap_over_rows_equals_the_batched_call(name):
    network = NETWORKS[name]
    params, xs, carry = problem(network)
    resets = FLAGS["resets"]

    def one_row(xs, carry, length, resets):
        options = {"lengths": length, "resets": resets, "reverse": True, "return_carries": True}
        return lstm_jax.unroll(network, params, xs, carry, **options)

    by_row = jax.vmap(one_row, in_axes=(1, 0, 0, 1), out_axes=(0, 1))
    found = by_row(xs, carry, jnp.asarray(FLAGS["lengths"]), resets)
    assert_same(found, lstm_jax.unroll(network, params, xs, carry, return_carries=True, **FLAGS))


@pytest.mark.parametrize("name", helpers.daily(["lstm", "bidirectional"]))
def test_vmap_over_lengths_equals_one_call_per_length(name):
    network = NETWORKS[name]
    params, xs, carry = problem(network, batch=())
    lengths = jnp.arange(T + 1)

    @jax.jit
    def gradients(length):
        return jax.value_and_grad(
            lambda xs: total(lstm_jax.unroll(network, params, xs, carry, lengths=length, reverse=True))
        )(xs)

    together = jax.vmap(gradients)(lengths)
    for index in range(T + 1):
        assert_same(row(together, index), gradients(lengths[index]))


@daily("gru_reset_before")
def test_vmap_over_parameters_equals_separate_calls(name):
    """All results and their derivatives, of vmap around and inside the derivatives."""
    network = NETWORKS[name]
    count = 3
    _, xs, carry = problem(network)
    shapes = jax.vmap(network.init)(jax.random.split(jax.random.key(0), count))
    ensemble = drawn(shapes, 7)
    run = partial(lstm_jax.unroll, network, xs=xs, carry=carry, **FLAGS)
    weights = drawn(jax.eval_shape(jax.vmap(run), ensemble), 8)

    def gradient(run, params, weights):
        results, pullback = jax.vjp(run, params)
        return results, pullback(weights)[0]

    inside = jax.jit(jax.vmap(partial(gradient, run)))(ensemble, weights)
    assert_same(jax.jit(partial(gradient, jax.vmap(run)))(ensemble, weights), inside)
    for index in range(count):
        alone = jax.jit(partial(gradient, run))(row(ensemble, index), row(weights, index))
        assert_same(row(inside, index), alone)


@pytest.mark.parametrize("over", ["params", "xs"])
@pytest.mark.parametrize("options", [{}, {"checkpoint": 2}, {"return_carries": True}], ids=str)
def test_derivatives_of_vmap_on_a_single_cpu_device(is_single_cpu_device, over, options):
    """There, an ensemble has a rule of its own, which must map the same axes as the derivative's rule."""
    cell = CELLS["lstm"]
    params, xs, carry = problem(cell)
    many = drawn(jax.tree.map(lambda a: jnp.stack([a] * 3), {"params": params, "xs": xs}[over]), 7)

    def one(changed):
        arguments = {"params": params, "xs": xs} | {over: changed}
        return lstm_jax.unroll(cell, **arguments, carry=carry, **options)

    values, tangents = jax.jit(lambda many: jax.jvp(jax.vmap(one), (many,), (many,)))(many)
    for index in range(3):
        alone = row(many, index)
        assert_same(row((values, tangents), index), jax.jvp(one, (alone,), (alone,)))


def test_vmap_over_keys_equals_separate_calls():
    network = Stack((CELLS["rnn"], CELLS["gru"]), dropout=0.5)
    params, xs, carry = problem(network)
    keys = jax.random.split(jax.random.key(3), 4)

    def run(key):
        return lstm_jax.unroll(network, params, xs, carry, key=key)

    together = jax.vmap(run)(keys)
    for index in range(4):
        assert_same(row(together, index), run(keys[index]))
    assert not np.allclose(together[1][0], together[1][1])


@pytest.mark.slow
def test_second_derivatives_under_vmap_of_an_ensemble():
    cell = CELLS["lstm"]
    _, xs, carry = problem(cell)
    ensemble = drawn(jax.vmap(cell.init)(jax.random.split(jax.random.key(0), 2)), 7)

    def product(run):
        def one(params):
            return jax.jvp(jax.grad(lambda p: loss_of(run, cell)(p, xs, carry)), (params,), (params,))[1]

        return jax.jit(jax.vmap(one))(ensemble)

    assert_same(product(lstm_jax.unroll), product(plain))
