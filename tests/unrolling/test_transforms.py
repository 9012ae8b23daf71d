"""Every transform of JAX passes through ``unroll``: derivatives of both modes and second order, vmap."""

from functools import partial

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import lstm_jax
from lstm_jax import GRU, LSTM, RNN, Bidirectional, GRUVariant, IndRNN, Stack

# The numbers are under test, not how fast they come.
pytestmark = pytest.mark.usefixtures("quick_compiles")

T, B, D, H = 4, 2, 3, 3
CELLS = {
    "rnn": RNN(D, H, param_dtype="float64"),
    "lstm": LSTM(D, H, param_dtype="float64"),
    "gru": GRU(D, H, param_dtype="float64"),
    "gru_reset_before": GRUVariant(D, H, reset_after=False, param_dtype="float64"),
    "indrnn": IndRNN(D, H, activation=jnp.tanh, param_dtype="float64"),
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


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def drawn(tree, seed):
    """Random float64 arrays in the shapes of ``tree``."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.6), tree)


def problem(network, *, batch=(B,), seed=0):
    """Parameters, inputs and a first carry, all of them random (biases too)."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    carry = jax.eval_shape(lambda: network.initial_carry(batch))
    return drawn((shapes, jnp.zeros((T, *batch, D)), carry), seed)


def plain(cell, params, xs, carry):
    """The definition: a scan of the step."""
    return jax.lax.scan(partial(cell.step, params), carry, xs)


def total(tree):
    """One number in which every entry of every array has its own weight."""
    leaves = jax.tree.leaves(tree)
    return sum(jnp.sum(jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape) * a) for a in leaves)


def loss_of(run, cell, *, part=lambda out: out):
    return lambda params, xs, carry: total(part(run(cell, params, xs, carry)))


def assert_close(left, right, *, tolerance=1e-10):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def row(tree, index):
    return jax.tree.map(lambda a: a[index], tree)


# --- derivatives --------------------------------------------------------------------------------


def daily(*names, among=NETWORKS):
    """Parametrize over all networks; those not named are for ``make test-slow``."""
    return pytest.mark.parametrize("name", helpers.daily(among, *names))


@daily("lstm")
def test_both_modes_to_second_order_agree_with_finite_differences(name):
    network = NETWORKS[name]

    @jax.jit
    def run(params, xs, carry):
        return lstm_jax.unroll(network, params, xs, carry, **FLAGS)

    check_grads(run, problem(network), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5, eps=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["fused", "scan"])
def test_windows_of_a_checkpoint_agree_with_finite_differences(implementation):
    @jax.jit
    def run(params, xs, carry):
        options = {"checkpoint": 3, "implementation": implementation}
        return lstm_jax.unroll(CELLS["lstm"], params, xs, carry, **FLAGS, **options)

    args = problem(CELLS["lstm"])
    check_grads(run, args, order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5, eps=1e-5)


@pytest.mark.parametrize("name", [pytest.param("stack", marks=pytest.mark.slow), "gru_reset_before"])
def test_windows_of_a_checkpoint_keep_both_modes_and_second_order(name):
    network = NETWORKS[name]
    args = problem(network)
    along = problem(network, seed=1)

    def product(checkpoint):
        def loss(*args):
            return total(lstm_jax.unroll(network, *args, **FLAGS, checkpoint=checkpoint))

        return jax.jit(lambda a, t: jax.jvp(jax.grad(loss, argnums=(0, 1, 2)), a, t))(args, along)

    assert_close(product(3), product(None))


@daily("lstm", among=CELLS)
def test_jvp_is_that_of_the_plain_scan(name):
    cell = CELLS[name]
    primals = problem(cell)
    tangents = problem(cell, seed=1)

    @partial(jax.jit, static_argnums=0)
    def jvp(run, primals, tangents):
        return jax.jvp(partial(run, cell), primals, tangents)

    assert_close(jvp(lstm_jax.unroll, primals, tangents), jvp(plain, primals, tangents))


@daily("lstm", among=CELLS)
def test_gradients_of_all_arguments_are_those_of_the_plain_scan(name):
    """With respect to weights, inputs and the initial carry, from outputs and final carry."""
    cell = CELLS[name]
    args = problem(cell)
    ours, expected = (
        jax.jit(jax.value_and_grad(loss_of(run, cell), argnums=(0, 1, 2)))(*args)
        for run in (lstm_jax.unroll, plain)
    )
    assert_close(ours, expected)


@pytest.mark.parametrize("part", ["h", "c"])
def test_the_final_carry_alone_has_the_right_gradients(part):
    cell = CELLS["lstm"]
    args = problem(cell)
    pick = {"h": lambda out: out[0][0], "c": lambda out: out[0][1]}[part]
    ours, expected = (
        jax.jit(jax.grad(loss_of(run, cell, part=pick), argnums=(0, 1, 2)))(*args)
        for run in (lstm_jax.unroll, plain)
    )
    assert_close(ours, expected)


def test_the_carries_of_all_steps_have_the_right_gradients():
    """``return_carries`` gives no gradient but that of the carries a scan would stack."""
    cell = CELLS["lstm"]
    args = problem(cell)

    def ours(params, xs, carry):
        return total(lstm_jax.unroll(cell, params, xs, carry, return_carries=True))

    def expected(params, xs, carry):
        def step(carry, x):
            new, y = cell.step(params, carry, x)
            return new, (y, new)

        return total(jax.lax.scan(step, carry, xs))

    assert_close(
        jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(*args),
        jax.jit(jax.grad(expected, argnums=(0, 1, 2)))(*args),
    )


def test_a_row_without_steps_hands_its_gradient_to_the_initial_carry_alone():
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


def test_a_learned_initial_carry_gets_the_gradient_of_all_rows_and_of_every_restart():
    cell = LSTM(D, H, learn_initial_carry=True, param_dtype="float64")
    params = drawn(jax.eval_shape(cell.init, jax.random.key(0)), 0)
    xs = drawn(jnp.zeros((T, B, D)), 1)
    resets = np.zeros((T, B), bool)
    resets[2, 0] = True

    def ours(params):
        return total(lstm_jax.unroll(cell, params, xs, resets=resets)[1])

    def by_hand(params):
        start = cell.initial_carry((), params)
        pieces = [plain(cell, params, xs[:2, 0], start)[1], plain(cell, params, xs[2:, 0], start)[1]]
        first = jnp.concatenate(pieces)
        second = plain(cell, params, xs[:, 1], start)[1]
        return total(jnp.stack([first, second], axis=1))

    ours_, by_hand_ = jax.jit(jax.grad(ours))(params), jax.jit(jax.grad(by_hand))(params)
    assert all(np.all(np.asarray(a) != 0) for a in ours_.initial)
    assert_close(ours_, by_hand_)


@daily("lstm", among=CELLS)
def test_grad_of_grad_is_that_of_the_plain_scan(name):
    """The gradient of a gradient's norm, as a penalty on it would need."""
    cell = CELLS[name]
    args = problem(cell)

    def penalty(run):
        def norm(*args):
            return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss_of(run, cell))(*args)))

        return jax.jit(jax.grad(norm, argnums=(0, 1, 2)))(*args)

    assert_close(penalty(lstm_jax.unroll), penalty(plain))


@pytest.mark.parametrize("name", helpers.daily(["lstm", "gru"]))
def test_hessian_is_that_of_the_plain_scan(name):
    cell = CELLS[name]
    args = problem(cell)
    ours, expected = (jax.jit(jax.hessian(loss_of(run, cell)))(*args) for run in (lstm_jax.unroll, plain))
    assert_close(ours, expected)


@pytest.mark.slow
def test_hessian_vector_products_are_the_same_forward_over_reverse_and_reverse_over_forward():
    network = NETWORKS["bidirectional"]
    params, xs, carry = problem(network)
    along = drawn(params, 3)

    def loss(params):
        return total(lstm_jax.unroll(network, params, xs, carry, **FLAGS))

    forward_over_reverse = jax.jit(lambda p: jax.jvp(jax.grad(loss), (p,), (along,))[1])(params)
    reverse_over_forward = jax.jit(jax.grad(lambda p: jax.jvp(loss, (p,), (along,))[1]))(params)
    assert_close(forward_over_reverse, reverse_over_forward)


@pytest.mark.slow
def test_jacobians_are_the_same_in_both_modes():
    network = NETWORKS["stack"]
    params, xs, carry = problem(network)

    def final(xs):
        return lstm_jax.unroll(network, params, xs, carry, **FLAGS)[0]

    assert_close(jax.jit(jax.jacfwd(final))(xs), jax.jit(jax.jacrev(final))(xs))


@pytest.mark.parametrize("name", helpers.daily(["lstm", "gru", "bidirectional", "stack"]))
def test_the_linearised_map_transposes_to_the_vjp(name):
    network = NETWORKS[name]
    args = problem(network)

    def run(*args):
        return lstm_jax.unroll(network, *args, **FLAGS)

    outputs, linear = jax.linearize(run, *args)
    tangents = problem(network, seed=1)
    pushed = linear(*tangents)
    assert_close(pushed, jax.jit(lambda a, t: jax.jvp(run, a, t)[1])(args, tangents))
    cotangents = drawn(outputs, 4)
    pulled = jax.linear_transpose(linear, *args)(cotangents)
    assert_close(pulled, jax.jit(lambda a, c: jax.vjp(run, *a)[1](c))(args, cotangents))
    inner = [
        sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))
        for x, y in ((pushed, cotangents), (tangents, pulled))
    ]
    np.testing.assert_allclose(*inner, rtol=1e-12)


@pytest.mark.parametrize("policy", helpers.daily([None, jax.checkpoint_policies.dots_saveable]))
def test_remat_outside_changes_no_gradient(policy):
    network = NETWORKS["stack"]
    args = problem(network)

    def loss(*args):
        return total(lstm_jax.unroll(network, *args, **FLAGS))

    remat = jax.checkpoint(loss, policy=policy)
    assert_close(jax.jit(jax.value_and_grad(remat))(*args), jax.jit(jax.value_and_grad(loss))(*args))


# --- jit and vmap -------------------------------------------------------------------------------


@daily("lstm")
def test_jit_outside_changes_nothing(name):
    network = NETWORKS[name]
    args = problem(network)
    jitted = jax.jit(lstm_jax.unroll, static_argnums=0, static_argnames="reverse")
    flags = FLAGS | {"lengths": jnp.asarray(FLAGS["lengths"])}
    assert_close(jitted(network, *args, **flags), lstm_jax.unroll(network, *args, **FLAGS), tolerance=1e-14)


@daily("lstm")
def test_vmap_over_the_rows_is_the_batched_call(name):
    network = NETWORKS[name]
    params, xs, carry = problem(network)
    resets = FLAGS["resets"]

    def one_row(xs, carry, length, resets):
        options = {"lengths": length, "resets": resets, "reverse": True, "return_carries": True}
        return lstm_jax.unroll(network, params, xs, carry, **options)

    by_row = jax.vmap(one_row, in_axes=(1, 0, 0, 1), out_axes=(0, 1))
    ours = by_row(xs, carry, jnp.asarray(FLAGS["lengths"]), resets)
    assert_close(ours, lstm_jax.unroll(network, params, xs, carry, return_carries=True, **FLAGS))


@pytest.mark.parametrize("name", helpers.daily(["lstm", "bidirectional"]))
def test_vmap_over_lengths_is_one_call_a_length(name):
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
        assert_close(row(together, index), gradients(lengths[index]))


@daily("gru_reset_before")
def test_an_ensemble_under_vmap_is_its_members_one_by_one(name):
    """grad inside vmap, grad of vmap and jit inside all agree with case after case."""
    network = NETWORKS[name]
    count = 3
    _, xs, carry = problem(network)
    shapes = jax.vmap(network.init)(jax.random.split(jax.random.key(0), count))
    ensemble = drawn(shapes, 7)

    @jax.jit
    def gradient(params):
        return jax.value_and_grad(lambda p: total(lstm_jax.unroll(network, p, xs, carry, **FLAGS)))(params)

    values, inside = jax.vmap(gradient)(ensemble)
    for index in range(count):
        assert_close((values[index], row(inside, index)), gradient(row(ensemble, index)))

    def summed(ensemble):
        values = jax.vmap(lambda p: total(lstm_jax.unroll(network, p, xs, carry, **FLAGS)))(ensemble)
        return jnp.sum(values)

    assert_close(jax.jit(jax.grad(summed))(ensemble), inside)


def test_vmap_over_keys_draws_each_keys_noise():
    network = Stack((CELLS["rnn"], CELLS["gru"]), dropout=0.5)
    params, xs, carry = problem(network)
    keys = jax.random.split(jax.random.key(3), 4)

    def run(key):
        return lstm_jax.unroll(network, params, xs, carry, key=key)

    together = jax.vmap(run)(keys)
    for index in range(4):
        assert_close(row(together, index), run(keys[index]))
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

    assert_close(product(lstm_jax.unroll), product(plain))
