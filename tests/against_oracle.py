"""Comparison of values and gradients of ``unroll`` with the float64 oracle."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle

import lstm_jax

T, B, D, H = 6, 4, 3, 5
STEP = 1e-5  # of a central difference, in float64


class Problem(NamedTuple):
    """The arguments of one call of ``unroll``."""

    network: Any
    equations: Any  # the network of the oracle
    params: Any
    xs: Any
    carry: Any  # None: the network's own
    options: dict[str, Any]


def problem(network, equations, dtype="float32", *, given=True, **options):
    """Random parameters, inputs and, if ``given``, an initial carry."""
    rng = np.random.default_rng(0)

    def random(tree):
        return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) / 2, a.dtype), tree)

    params = random(jax.eval_shape(network.init, jax.random.key(0)))
    carry = random(jax.eval_shape(lambda p: network.initial_carry((B,), p), params)) if given else None
    xs = jnp.asarray(rng.normal(size=(T, B, D)), dtype)
    return Problem(network, equations, params, xs, carry, options)


def values_and_gradients(problem, implementation):
    """``((carry, ys), gradients)`` with gradients for parameters, inputs and carry."""

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
    """A weighted sum of all entries, as a loss; works for NumPy and JAX arrays."""
    total = 0
    for index, a in enumerate(jax.tree.leaves(results)):
        weights = np.random.default_rng(100 + index).normal(size=a.shape)
        total = total + (a * weights.astype(a.dtype)).astype(np.promote_types(a.dtype, np.float32)).sum()
    return total


def double(tree):
    """The tree in float64."""
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def assert_agrees(problem, implementation, *, atol):
    """Compare carry, outputs, and the derivative of the loss along a random direction of each array."""
    results, gradients = values_and_gradients(problem, implementation)
    args = double((problem.params, problem.xs, problem.carry))

    def run(args):
        params, xs, carry = args
        result = oracle.unroll(problem.equations, params, xs, carry, **problem.options)
        return result.carry, result.ys

    expected = run(args)
    for a, b in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=atol)
    leaves, structure = jax.tree.flatten(args)
    for index, (a, gradient) in enumerate(zip(leaves, jax.tree.leaves(double(gradients)), strict=True)):
        direction = np.random.default_rng(index).choice([-1.0, 1.0], a.shape)

        def loss(step, index=index, a=a, direction=direction):
            changed = [*leaves[:index], a + step * direction, *leaves[index + 1 :]]
            return scalar(run(jax.tree.unflatten(structure, changed)))

        expected = (loss(STEP) - loss(-STEP)) / (2 * STEP)
        scale = np.sqrt((gradient**2).sum()) + 1
        assert abs((gradient * direction).sum() - expected) < 3 * atol * scale, (index, a.shape)
