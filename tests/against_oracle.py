"""Values and gradients of one call of ``unroll`` beside the float64 oracle's (slopes by differences)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle

import lstm_jax

T, B, D, H = 6, 4, 3, 5
STEP = 1e-5  # of a central difference, in float64


class Problem(NamedTuple):
    """One call, with the same network in NumPy."""

    network: Any
    same: Any  # the oracle's
    params: Any
    xs: Any
    carry: Any  # None: the network's own
    options: dict[str, Any]


def problem(network, same, dtype="float32", *, given=True, **options):
    """Random parameters, inputs and, if ``given``, a first carry."""
    rng = np.random.default_rng(0)

    def drawn(tree):
        return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / 2, a.dtype), tree)

    params = drawn(jax.eval_shape(network.init, jax.random.key(0)))
    carry = drawn(jax.eval_shape(lambda p: network.initial_carry((B,), p), params)) if given else None
    xs = jnp.asarray(rng.normal(size=(T, B, D)), dtype)
    return Problem(network, same, params, xs, carry, options)


def ours(problem, implementation):
    """``((carry, ys), gradients)`` for parameters, inputs and carry, by one compiled program."""

    def loss(args):
        params, xs, carry = args
        results = lstm_jax.unroll(
            problem.network, params, xs, carry, implementation=implementation, **problem.options
        )
        return scalar(results), results

    args = problem.params, problem.xs, problem.carry
    (_, results), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(args)
    return results, gradients


def scalar(results):
    """A linear loss that looks at every number, each with a weight of its own; NumPy's stays NumPy's."""
    total = 0
    for index, a in enumerate(jax.tree.leaves(results)):
        weights = np.random.default_rng(100 + index).normal(size=a.shape)
        total = total + (a * weights.astype(a.dtype)).astype(np.promote_types(a.dtype, np.float32)).sum()
    return total


def double(tree):
    """NumPy's float64."""
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def assert_agrees(problem, implementation, *, atol):
    """Carry and outputs, and the slope of the loss along one random direction for every array given."""
    results, gradients = ours(problem, implementation)
    args = double((problem.params, problem.xs, problem.carry))

    def run(args):
        params, xs, carry = args
        found = oracle.unroll(problem.same, params, xs, carry, **problem.options)
        return found.carry, found.ys

    expected = run(args)
    for a, b in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=atol)
    leaves, structure = jax.tree.flatten(args)
    for index, (a, slope) in enumerate(zip(leaves, jax.tree.leaves(double(gradients)), strict=True)):
        along = np.random.default_rng(index).choice([-1.0, 1.0], a.shape)

        def moved(by, index=index, a=a, along=along):
            there = [*leaves[:index], a + by * along, *leaves[index + 1 :]]
            return scalar(run(jax.tree.unflatten(structure, there)))

        wanted = (moved(STEP) - moved(-STEP)) / (2 * STEP)
        scale = np.sqrt((slope**2).sum()) + 1
        assert abs((slope * along).sum() - wanted) < 3 * atol * scale, (index, a.shape)
