"""Random problems for the cases of ``cell_cases.py``, values with gradients, and comparisons."""

from dataclasses import is_dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax


def brief(value):
    """A test's name that is the same in every process: of a cell, its type alone."""
    return type(value).__name__ if is_dataclass(value) else str(value)


def slow(*row):
    """A row for ``pytest.mark.parametrize`` that ``make test-slow`` runs."""
    return pytest.param(*row, marks=pytest.mark.slow)


def daily(values, *kept):
    """Values for ``pytest.mark.parametrize``: every day those kept, or the first; the others are slow."""
    kept = kept or (next(iter(values)),)
    return [value if value in kept else slow(value) for value in values]


# --- one problem, and the two ways to solve it --------------------------------------------------

STATIC = ("reverse", "checkpoint", "truncate", "return_carries", "implementation")


class Problem(NamedTuple):
    """A case with random parameters, inputs and first carry, and what is said about its steps."""

    network: Any
    params: Any
    xs: Any  # (T, *batch, *event), NaN and infinities where a step is invalid
    carry: Any
    flags: dict[str, Any]  # lengths, mask, resets

    @property
    def valid(self):
        valid = np.asarray(self.flags["mask"])
        t = np.arange(len(valid)).reshape(-1, *(1,) * (valid.ndim - 1))
        return valid & (t < np.asarray(self.flags["lengths"]))


def problem(case, *, T=7, batch=(3,), seed=0, dtype=np.float64, compute=None):
    """Random everything, biases and learned carries too. Lengths hold T and 0, the mask opens with a hole."""
    rng = np.random.default_rng(seed)
    network = (
        case.build(param_dtype=dtype) if compute is None else case.build(param_dtype=dtype, dtype=compute)
    )
    params = random_like(rng, jax.eval_shape(network.init, jax.random.key(0)))
    carry = case.carry(random_like(rng, jax.eval_shape(lambda p: network.initial_carry(batch, p), params)))
    lengths = rng.integers(1, T + 1, batch)
    mask = rng.random((T, *batch)) < 0.75
    resets = rng.random((T, *batch)) < 0.3
    if batch and min(batch):
        lengths.flat[0], lengths.flat[-1] = T, 0
        mask[0].flat[0], mask[T // 2].flat[0] = False, False
        resets[T // 2].flat[0] = True  # at an invalid step: not to be seen
        mask[-1].flat[0] = resets[-1].flat[0] = True
    xs = np.asarray(rng.normal(size=(T, *batch, *case.event)), dtype)
    made = Problem(
        network, params, xs, carry, {"lengths": lengths.astype(np.int32), "mask": mask, "resets": resets}
    )
    poison = rng.choice([np.nan, np.inf, -np.inf], xs.shape)
    return made._replace(xs=np.where(over_events(made.valid, xs), xs, poison.astype(dtype)))


def over_events(flags, xs):
    """Flags of steps, with axes to meet the inputs' features."""
    return flags.reshape(*flags.shape, *(1,) * (xs.ndim - flags.ndim))


def random_like(rng, tree):
    def one(a):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return np.full(a.shape, 2, a.dtype)
        return np.asarray(rng.normal(size=a.shape) * 0.6, a.dtype)

    return jax.tree.map(one, tree)


def random_params(cell, seed=0):
    """Random parameters of a cell, also where ``init`` gives zeros or ones."""
    return random_like(np.random.default_rng(seed), jax.eval_shape(cell.init, jax.random.key(0)))


def random_arrays(*shapes, seed=1, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def total(tree):
    """One number in which every entry of every array of floats has its own weight."""
    parts = [
        jnp.sum(jnp.cos(jnp.arange(a.size, dtype=a.dtype) + index).reshape(a.shape) * a)
        for index, a in enumerate(jax.tree.leaves(tree))
        if jnp.issubdtype(a.dtype, jnp.floating)
    ]
    return sum(parts, start=jnp.zeros((), parts[0].dtype))


def gradients(f, params, xs, carry):
    """``f(params, xs, carry)`` and the gradients of its ``total`` with respect to all three."""

    def loss(*arguments):
        out = f(*arguments)
        return total(out), out

    grads, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True, allow_int=True)(params, xs, carry)
    return out, grads


@partial(jax.jit, static_argnames=("network", *STATIC))
def values_and_gradients(network, params, xs, carry=None, **options):
    """What ``unroll`` returns, and its gradients: compiled once for each network and set of options."""

    def f(params, xs, carry):
        return lstm_jax.unroll(network, params, xs, carry, **options)

    return gradients(f, params, xs, carry)


def assert_same(left, right, *, rtol=1e-9, atol=1e-11, note=""):
    """Two trees of one structure, dtypes and values; NaN equals nothing."""
    assert jax.tree.structure(left) == jax.tree.structure(right), note
    pairs = zip(jax.tree.leaves_with_path(left), jax.tree.leaves(right), strict=True)
    for (path, a), b in pairs:
        where = f"{note} at {jax.tree_util.keystr(path)}"
        assert a.dtype == b.dtype, where
        if a.dtype == jax.dtypes.float0:
            continue
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, equal_nan=False, err_msg=where)


def bits(tree):
    """The dtype and the bytes of every array."""
    return [(a.dtype, np.asarray(a).tobytes()) for a in jax.tree.leaves(tree)]


def assert_x64_changes_nothing(f):
    """``f()`` returns the same dtypes and bits with and without ``jax_enable_x64``."""
    results = []
    for enabled in (False, True):
        with jax.enable_x64(enabled):
            results.append(bits(f()))
    assert results[0] == results[1]
