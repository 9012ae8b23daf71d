"""All members of the library, in one table that every law runs over.

To add a cell: write its equations as a function of one row into ``oracle.py`` or a file like it,
then add one row, here or in ``family.py``:

    Member("name", build, oracle, implementation)

``build(**dtypes)`` returns the cell or network; it is called with ``param_dtype`` and, in the tests
of low precision, with ``dtype``. ``oracle`` is an ``oracle.Cell``, ``oracle.Stack`` or
``oracle.Bidirectional`` that says the same. ``implementation`` is what ``implementation="auto"``
takes ("fused", "scan", or "fused+scan" where layers differ). Inputs have D features; use sizes that
differ from each other (D, H) so that a mistaken axis is noticed. ``variant=True`` marks a row that
differs from another only in what the oracle and the edges see, so that the dearer laws (with
gradients) pass it over. ``family=True`` marks a row that goes through the loop as others do: of its
two directions the oracle sees one every day. All else, the laws and gradients of ``DAILY`` apart, is
for ``make test-slow``.
``event`` is the shape of one input where it is not (D,), ``carry`` turns random arrays into a carry
that the cell could have come to. That is all: nothing else has to be written for a new cell.
"""

from dataclasses import is_dataclass
from functools import partial
from typing import Any, NamedTuple

import family
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from member import D as D, H as H, Member as Member
from user_cells import Leaky as Leaky, Peephole as Peephole, leaky, peephole

import lstm_jax
from lstm_jax import GRU, LSTM, RNN, Bidirectional, GRUVariant, Readout, Stack

ORACLE_RNN = oracle.Cell(oracle.rnn, oracle.zeros)
ORACLE_LSTM = oracle.Cell(oracle.lstm, oracle.two_zeros)
ORACLE_GRU = oracle.Cell(oracle.gru_reset_after, oracle.zeros)
ORACLE_LEARNED = oracle.Cell(oracle.lstm, lambda params: tuple(params.initial))
ORACLE_READOUT = oracle.Cell(oracle.readout, lambda params: ())


def _bidirectional(merge, **dtypes):
    return Bidirectional(LSTM(D, H, **dtypes), merge=merge)


def _stack(**dtypes):
    return Stack((LSTM(D, 4, **dtypes), GRU(4, H, **dtypes)))


def _stack_residual_skip(**dtypes):
    layers = (RNN(D, H, **dtypes), LSTM(H + D, H, learn_initial_carry=True, **dtypes))
    return Stack(layers, residual=True, skip=True)


def _stack_of_three(**dtypes):
    layers = (RNN(D, H, **dtypes), GRU(H + D, H, **dtypes), LSTM(H + D, H, **dtypes))
    return Stack(layers, residual=True, skip=True)


def _stack_bidirectional(**dtypes):
    return Stack((Bidirectional(GRU(D, H, **dtypes)), LSTM(2 * H, H, **dtypes), Readout(H, 4, **dtypes)))


def _both_ways_stack(**dtypes):
    return Bidirectional(
        Stack((LSTM(D, H, **dtypes), GRUVariant(H, H, reset_after=False, **dtypes)), residual=True),
        merge="sum",
    )


MEMBERS = (
    Member("rnn", partial(RNN, D, H), ORACLE_RNN, family=True),
    Member(
        "rnn_relu",
        partial(RNN, D, H, activation=jax.nn.relu),
        oracle.Cell(partial(oracle.rnn, f=lambda a: np.maximum(a, 0)), oracle.zeros),
        variant=True,
    ),
    Member("lstm", partial(LSTM, D, H), ORACLE_LSTM),
    Member("lstm_no_bias", partial(LSTM, D, H, use_bias=False), ORACLE_LSTM, variant=True),
    Member("lstm_learned", partial(LSTM, D, H, learn_initial_carry=True), ORACLE_LEARNED, family=True),
    Member("gru", partial(GRU, D, H), ORACLE_GRU),
    Member("gru_no_bias", partial(GRU, D, H, use_bias=False), ORACLE_GRU, variant=True),
    Member(
        "gru_reset_before",
        partial(GRUVariant, D, H, reset_after=False),
        oracle.Cell(oracle.gru_reset_before, oracle.zeros),
        "scan",
        family=True,
    ),
    Member(
        "bidirectional", partial(_bidirectional, "concat"), oracle.Bidirectional(ORACLE_LSTM), family=True
    ),
    *(
        Member(
            f"bidirectional_{merge}",
            partial(_bidirectional, merge),
            oracle.Bidirectional(ORACLE_LSTM, merge),
            variant=True,
        )
        for merge in ("sum", "mean", "product")
    ),
    Member(
        "bidirectional_reset_before",
        lambda **dtypes: Bidirectional(GRUVariant(D, H, reset_after=False, **dtypes)),
        oracle.Bidirectional(oracle.Cell(oracle.gru_reset_before, oracle.zeros)),
        "scan",
        variant=True,
    ),
    Member("stack", _stack, oracle.Stack((ORACLE_LSTM, ORACLE_GRU)), family=True),
    Member(
        "stack_residual_skip",
        _stack_residual_skip,
        oracle.Stack((ORACLE_RNN, ORACLE_LEARNED), residual=True, skip=True),
        family=True,
    ),
    Member(
        "stack_of_three",
        _stack_of_three,
        oracle.Stack((ORACLE_RNN, ORACLE_GRU, ORACLE_LSTM), residual=True, skip=True),
        variant=True,
    ),
    Member(
        "stack_bidirectional",
        _stack_bidirectional,
        oracle.Stack((oracle.Bidirectional(ORACLE_GRU), ORACLE_LSTM, ORACLE_READOUT)),
    ),
    Member(
        "both_ways_stack",
        _both_ways_stack,
        oracle.Bidirectional(
            oracle.Stack((ORACLE_LSTM, oracle.Cell(oracle.gru_reset_before, oracle.zeros)), residual=True),
            "sum",
        ),
        "fused+scan",
        variant=True,
    ),
    Member(
        "leaky",
        lambda param_dtype, dtype=None: Leaky(param_dtype),
        oracle.Cell(leaky, lambda params: {"h": np.full(2, 0.5), "steps": np.array(0)}),
        "scan",
    ),
    Member(
        "peephole",
        lambda param_dtype, dtype=None: Peephole(param_dtype),
        oracle.Cell(peephole, lambda params: (np.full(2, -0.25), np.full(2, 0.75))),
    ),
    *family.ROWS,
)
BY_NAME = {member.name: member for member in MEMBERS}
#: Whose laws run every day; those of all others take minutes.
DAILY = "lstm", "gru"


def table(keep=lambda member: True):
    """The members for ``pytest.mark.parametrize("member", table(...), ids=name)``."""
    return [member for member in MEMBERS if keep(member)]


def name(member):
    return member.name


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
    """A member with random parameters, inputs and first carry, and what is said about its steps."""

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


def problem(member, *, T=7, batch=(3,), seed=0, dtype=np.float64, compute=None):
    """Random everything, biases and learned carries too. Lengths hold T and 0, the mask opens with a hole."""
    rng = np.random.default_rng(seed)
    network = (
        member.build(param_dtype=dtype) if compute is None else member.build(param_dtype=dtype, dtype=compute)
    )
    params = random_like(rng, jax.eval_shape(network.init, jax.random.key(0)))
    carry = member.carry(random_like(rng, jax.eval_shape(lambda p: network.initial_carry(batch, p), params)))
    lengths = rng.integers(1, T + 1, batch)
    mask = rng.random((T, *batch)) < 0.75
    resets = rng.random((T, *batch)) < 0.3
    if batch and min(batch):
        lengths.flat[0], lengths.flat[-1] = T, 0
        mask[0].flat[0], mask[T // 2].flat[0] = False, False
        resets[T // 2].flat[0] = True  # at an invalid step: not to be seen
        mask[-1].flat[0] = resets[-1].flat[0] = True
    xs = np.asarray(rng.normal(size=(T, *batch, *member.event)), dtype)
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
