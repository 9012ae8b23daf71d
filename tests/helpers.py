"""Random problems for the cases of ``cell_cases.py``, values with gradients, and comparisons."""

from dataclasses import is_dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import lstm_jax


def brief(value):
    """A test id that is the same in every process: the type of a cell, the text of other values."""
    return type(value).__name__ if is_dataclass(value) else str(value)


def slow(*row):
    """A row for ``pytest.mark.parametrize`` that only ``make test-slow`` runs."""
    return pytest.param(*row, marks=pytest.mark.slow)


#: For tests of arrays on several devices, and of programs that differ on a single CPU device.
several_devices = pytest.mark.skipif(
    jax.device_count() < 4, reason="requires four devices, which may be virtual"
)


def daily(values, *kept):
    """Values for ``pytest.mark.parametrize``: all but those in ``kept`` (default: the first) are slow."""
    kept = kept or (next(iter(values)),)
    return [value if value in kept else slow(value) for value in values]


# --- problems -----------------------------------------------------------------------------------

STATIC = ("reverse", "checkpoint", "truncate", "return_carries", "implementation")


class Problem(NamedTuple):
    """A network with random parameters, inputs, initial carry and flags."""

    network: Any
    params: Any
    xs: Any  # (T, *batch, *event), NaN or infinite at invalid steps
    carry: Any
    flags: dict[str, Any]  # lengths, mask, resets

    @property
    def valid(self):
        valid = np.asarray(self.flags["mask"])
        t = np.arange(len(valid)).reshape(-1, *(1,) * (valid.ndim - 1))
        return valid & (t < np.asarray(self.flags["lengths"]))


def problem(case, *, T=7, batch=(3,), seed=0, dtype=np.float64, compute=None):
    """A random problem for a case. Biases and learned carries are random, too.

    The lengths include T and 0, and the mask has an invalid step before a valid one.
    """
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
        resets[T // 2].flat[0] = True  # at an invalid step, so it has no effect
        mask[-1].flat[0] = resets[-1].flat[0] = True
    xs = np.asarray(rng.normal(size=(T, *batch, *case.event)), dtype)
    flags = {"lengths": lengths.astype(np.int32), "mask": mask, "resets": resets}
    given = Problem(network, params, xs, carry, flags)
    not_finite = rng.choice([np.nan, np.inf, -np.inf], xs.shape)
    return given._replace(xs=np.where(over_events(given.valid, xs), xs, not_finite.astype(dtype)))


def finite(given, **flags):
    """The problem with finite inputs at all steps, and only these flags."""
    return given._replace(xs=np.where(np.isfinite(given.xs), given.xs, 0.5), flags=flags)


def over_events(flags, xs):
    """Flags of steps, with axes of length 1 for the features of the inputs."""
    return flags.reshape(*flags.shape, *(1,) * (xs.ndim - flags.ndim))


def random_like(rng, tree):
    """Random floats in the shapes of ``tree``; 2 in arrays of integers."""

    def one(a):
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return np.full(a.shape, 2, a.dtype)
        return np.asarray(rng.normal(size=a.shape) * 0.6, a.dtype)

    return jax.tree.map(one, tree)


def random_params(cell, seed=0):
    """Random parameters of a cell, also where ``init`` returns zeros or ones."""
    return random_like(np.random.default_rng(seed), jax.eval_shape(cell.init, jax.random.key(0)))


def zero_params(cell):
    """Zeros in the shapes of a cell's parameters, for tests of errors."""
    return zeros_like(jax.eval_shape(cell.init, jax.random.key(0)))


def zeros_like(tree):
    """NumPy arrays of zeros in the shapes of ``tree``."""
    return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), tree)


def random_arrays(*shapes, seed=1, dtype=np.float32):
    """One random array for each shape."""
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def gate_sequences(size):
    """Pre-activations of input and forget gates: all pairs of -size, 0 and size in 9 orders, (T=9, 9, 2)."""
    pairs = np.array([(i, f) for i in (-size, 0.0, size) for f in (-size, 0.0, size)])
    return np.stack([np.roll(pairs, -k, axis=0) for k in range(len(pairs))], axis=1)


# --- values and gradients -----------------------------------------------------------------------


def total(tree):
    """A weighted sum of all floats of a tree, in which all weights differ."""
    terms = [
        jnp.sum(jnp.cos(jnp.arange(a.size, dtype=a.dtype) + index).reshape(a.shape) * a)
        for index, a in enumerate(jax.tree.leaves(tree))
        if jnp.issubdtype(a.dtype, jnp.floating)
    ]
    return sum(terms, start=jnp.zeros((), terms[0].dtype))


def gradients(f, params, xs, carry):
    """``f(params, xs, carry)`` and the gradients of its ``total`` with respect to all three."""

    def loss(*arguments):
        out = f(*arguments)
        return total(out), out

    grads, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True, allow_int=True)(params, xs, carry)
    return out, grads


@partial(jax.jit, static_argnames=("network", *STATIC))
def values_and_gradients(network, params, xs, carry=None, **options):
    """The results of ``unroll`` and their gradients, compiled once for each network and options."""

    def f(params, xs, carry):
        return lstm_jax.unroll(network, params, xs, carry, **options)

    return gradients(f, params, xs, carry)


def assert_same(left, right, *, rtol=1e-9, atol=1e-11, note=""):
    """Check that two trees have equal structures, dtypes and values. NaN is never equal."""
    assert jax.tree.structure(left) == jax.tree.structure(right), note
    pairs = zip(jax.tree.leaves_with_path(left), jax.tree.leaves(right), strict=True)
    for (path, a), b in pairs:
        where = f"{note} at {jax.tree_util.keystr(path)}"
        assert a.dtype == b.dtype, where
        if a.dtype == jax.dtypes.float0:
            continue
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, equal_nan=False, err_msg=where)


def every(tree, predicate):
    """Whether ``predicate`` holds for all entries of a tree."""
    leaves = (a for a in jax.tree.leaves(tree) if a.dtype != jax.dtypes.float0)
    return all(bool(np.all(predicate(np.asarray(a)))) for a in leaves)


def all_finite(tree):
    """Whether all entries of a tree are finite."""
    return every(tree, lambda a: np.isfinite(a.astype(np.float64)))


def is_zero(a):
    return a == 0


def finite_difference_check(f, args):
    """Check derivatives of first and second order, in both modes, by finite differences."""
    check_grads(f, args, order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5, eps=1e-5)


# --- programs and errors ------------------------------------------------------------------------


def equations(jaxpr):
    """All equations of a jaxpr, including nested ones."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def residual_size(f, *shapes):
    """The number of values that the backward pass of ``f`` stores. Nothing is computed."""

    def residuals(params, *args):
        return jax.vjp(lambda params: f(params, *args), params)[1]

    return sum(a.size for a in jax.tree.leaves(jax.eval_shape(residuals, *shapes)))


def assert_raises(attempt, *words):
    """Check for a ``ValueError`` in the library's form whose message contains the words.

    Alternatives in a word are separated by ``|``.
    """
    with pytest.raises(ValueError, match="expected") as error:
        attempt()
    message = str(error.value)
    assert len(message) < 1100
    for word in words:
        assert any(choice in message for choice in word.split("|")), message


def assert_x64_changes_nothing(f):
    """Check that ``f()`` has the same dtypes, and the same values up to rounding, with and without x64.

    The programs are compiled twice and may round differently; other random numbers differ by far more.
    """
    results = []
    for enabled in (False, True):
        with jax.enable_x64(enabled):
            results.append(jax.device_get(f()))
    assert_same(*results, rtol=1e-4, atol=1e-5)
