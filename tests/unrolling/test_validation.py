"""Errors of ``unroll``: a ValueError raised while tracing, with the given and the expected value."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_raises, zero_params

import lstm_jax
from lstm_jax import LSTM, RNN, Bidirectional, GRUVariant, Readout, Stack

T, B, D, H = 5, 4, 3, 2
KEY = jax.random.key(0)
SHAPE = jax.ShapeDtypeStruct


LSTM_CELL = LSTM(D, H)
LSTM_PARAMS = zero_params(LSTM_CELL)
XS = np.zeros((T, B, D), np.float32)
X = XS[0]
STATE = np.zeros((B, H), np.float32)
CARRY = (STATE, STATE)


def call(cell=LSTM_CELL, params=LSTM_PARAMS, xs=XS, carry=None, **options):
    return lambda: lstm_jax.unroll(cell, params, xs, carry, **options)


class UserCell:
    """A user's cell. Each of the classes below violates one requirement."""

    def init(self, key):
        return ()

    def initial_carry(self, batch_shape=(), params=None):
        return jnp.zeros((*batch_shape, D), jnp.float32)

    def step(self, params, carry, x):
        return carry + x, x


class WithoutStep:
    def init(self, key): ...

    def initial_carry(self, batch_shape=(), params=None): ...


@dataclass
class Mutable(UserCell):
    """A dataclass that is not frozen compares by value, so it cannot be hashed."""


class OtherStructure(UserCell):
    def step(self, params, carry, x):
        return (carry, x), x


class OtherShape(UserCell):
    def step(self, params, carry, x):
        return carry[..., :1], x


class OtherDtype(UserCell):
    def step(self, params, carry, x):
        return carry.astype(jnp.float16), x


class Squared(UserCell):
    """A split cell whose ``recur`` is not affine in the carry."""

    def project(self, params, x):
        return x

    def recur(self, params, carry, u):
        return u + carry**2

    def update(self, params, carry, z):
        return z, z

    def step(self, params, carry, x):
        return self.update(params, carry, self.recur(params, carry, x))


#: A call, and words of its error message: the given and the expected value.
ERRORS = {
    # xs
    "xs of the wrong size": (call(xs=XS[..., :2]), "xs of shape (5, 4, 2)", "(T, *batch, 3)", "LSTM"),
    "xs batch-major": (call(xs=np.moveaxis(XS, -1, 0)), "xs of shape (3, 5, 4)", "(T, *batch, 3)"),
    "xs without time": (call(xs=XS[0, 0]), "xs of shape (3,)", "(T, *batch, D)"),
    "xs a scalar": (call(xs=np.float32(0)), "xs of shape ()", "(T, *batch, D)"),
    "xs of integers": (call(xs=XS.astype(np.int32)), "xs of dtype int32", "floating", "one-hot"),
    "xs of bools": (call(xs=XS > 0), "xs of dtype bool", "floating"),
    "xs complex": (call(xs=XS.astype(np.complex64)), "xs of dtype complex64", "floating"),
    "xs a list": (call(xs=XS.tolist()), "xs of type list", "an array"),
    "xs None": (call(xs=None), "xs of type NoneType", "an array"),
    # lengths
    "a length below 0": (call(lengths=[-1, 0, 1, 2]), "lengths from -1 to 2 with 5 steps", "[0, 5]"),
    "a length above T": (call(lengths=np.array([0, 6, 1, 2])), "lengths from 0 to 6 with 5 steps", "[0, 5]"),
    "one number above T": (call(xs=XS[:, 0], lengths=6), "lengths from 6 to 6 with 5 steps", "[0, 5]"),
    "lengths of floats": (call(lengths=[1.0, 2.0, 3.0, 4.0]), "lengths of dtype float64", "whole numbers"),
    "lengths of floats in jax": (call(lengths=jnp.zeros(B)), "lengths of dtype float32", "whole numbers"),
    "too few lengths": (call(lengths=[1, 2]), "lengths of shape (2,)", "(5, 4, 3)", "shape (4,)"),
    "lengths with a time axis": (call(lengths=np.ones((T, B), int)), "lengths of shape (5, 4)", "shape (4,)"),
    "ragged lengths": (call(lengths=[[1], [1, 2]]), "lengths=[[1], [1, 2]]", "whole numbers"),
    # mask and resets
    "a mask of numbers": (call(mask=np.ones((T, B), np.float32)), "mask of dtype float32", "bool"),
    "a mask batch-major": (call(mask=np.ones((B, T), bool)), "mask of shape (4, 5)", "(5, 4)"),
    "a mask without batch": (call(mask=np.ones(T, bool)), "mask of shape (5,)", "(5, 4)"),
    "a mask a list": (call(mask=[[True] * B] * T), "mask of type list", "array"),
    "resets of numbers": (call(resets=np.ones((T, B), np.int32)), "resets of dtype int32", "bool"),
    "resets with features": (call(resets=XS > 0), "resets of shape (5, 4, 3)", "(5, 4)"),
    "resets a list": (call(resets=[[True] * B] * T), "resets of type list", "array"),
    # carry
    "a carry with one state": (
        call(carry=STATE),
        "carry float32[4,2]",
        "(float32[4,2], float32[4,2]) for LSTM",
    ),
    "a carry of one row": (call(carry=(STATE, STATE[0])), "carry[1] of shape (2,)", "shape (4, 2)"),
    "a carry of another size": (call(carry=(XS[0], STATE)), "carry[0] of shape (4, 3)", "shape (4, 2)"),
    "a carry of integers": (call(carry=(STATE.astype(int), STATE)), "carry[0] of dtype int", "float32"),
    "a cell's carry for a stack": (
        call(Stack((LSTM_CELL,)), (LSTM_PARAMS,), carry=CARRY),
        "carry (float32[4,2], float32[4,2])",
        "((float32[4,2], float32[4,2]),) for Stack",
    ),
    "a cell's carry for both directions": (
        call(Bidirectional(LSTM_CELL), (LSTM_PARAMS,) * 2, carry=CARRY),
        "carry (float32[4,2], float32[4,2])",
        "((float32[4,2], float32[4,2]), (float32[4,2], float32[4,2])) for Bidirectional",
    ),
    # options
    "start below 0": (call(start=-1), "start=-1", "0 or more"),
    "start of type float": (call(start=1.5), "start=1.5", "whole number"),
    "start of type bool": (call(start=True), "start=True", "whole number"),
    "start of type str": (call(start="0"), "start='0'", "whole number"),
    "start an array": (call(start=np.zeros(2, int)), "start=array([0, 0])", "one whole number"),
    "start an array of a float": (call(start=jnp.float32(1)), "start=", "one whole number"),
    "checkpoint 0": (call(checkpoint=0), "checkpoint=0", "1 or more"),
    "checkpoint of type bool": (call(checkpoint=True), "checkpoint=True", "whole number"),
    "checkpoint of type float": (call(checkpoint=2.0), "checkpoint=2.0", "whole number"),
    "another checkpoint name": (call(checkpoint="log"), "checkpoint='log'", "'sqrt'", "window length"),
    "truncate 0": (call(truncate=0), "truncate=0", "1 or more"),
    "truncate of type float": (call(truncate=1.5), "truncate=1.5", "whole number"),
    "truncate of type array": (call(truncate=np.ones(2, int)), "truncate=", "whole number"),
    "unknown implementation": (
        call(implementation="fast"),
        "implementation='fast'",
        "'auto'",
        "'scan'",
        "'fused'",
    ),
    "unknown implementation of a network without a loop": (
        call(Stack((Readout(D, H),)), (zero_params(Readout(D, H)),), implementation="fast"),
        "implementation='fast'",
        "'auto'",
    ),
    "checkpoint='sqrt' with symbolic T": (
        lambda: jax.eval_shape(
            lambda xs: lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS, xs, checkpoint="sqrt"),
            SHAPE(jax.export.symbolic_shape("T, 4, 3"), "float32"),
        ),
        "checkpoint='sqrt' with T steps",
        "a static number",
    ),
    "fused without a split": (
        call(UserCell(), (), implementation="fused"),
        "implementation='fused' for UserCell",
        "no project, recur, update",
        "'scan'",
    ),
    "fused with reset_after=False": (
        call(
            GRUVariant(D, H, reset_after=False),
            zero_params(GRUVariant(D, H, reset_after=False)),
            implementation="fused",
        ),
        "implementation='fused' for GRU",
        "reset_after=False",
        "two products",
    ),
    "fused with a recur that is not affine": (
        call(Squared(), (), implementation="fused"),
        "'fused' for Squared",
        "not affine",
    ),
    "fused in a layer": (
        call(
            Stack((UserCell(), LSTM_CELL)),
            ((), LSTM_PARAMS),
            implementation="fused",
        ),
        "'fused' for UserCell",
    ),
    "a key of type int": (call(key=0), "key", "int32", "one PRNG key"),
    "many keys": (call(key=jax.random.split(KEY, 3)), "keys of shape (3,)", "one key"),
    "a key of floats": (call(key=np.zeros(2, np.float32)), "key of dtype float32", "one PRNG key"),
    # cells
    "a class as a cell": (call(LSTM), "the class LSTM", "an object with init, initial_carry and step"),
    "a function as a cell": (
        call(lstm_jax.lstm_step),
        "a function without init, initial_carry, step",
        "an object with",
    ),
    "a cell without step": (
        call(WithoutStep(), ()),
        "a WithoutStep without step",
        "an object with init, initial_carry and step",
    ),
    "None as a cell": (call(None), "a NoneType without", "an object with"),
    "a cell without a hash": (call(Mutable(), ()), "Mutable that cannot be hashed", "frozen=True"),
    "step returns another tree": (
        call(OtherStructure(), ()),
        "OtherStructure.step",
        "carry (float32[4,3], float32[4,3])",
        "the structure of the given carry, float32[4,3]",
    ),
    "step returns another shape": (call(OtherShape(), ()), "OtherShape.step", "(4, 3)", "(4, 1)"),
    "step returns another dtype": (
        call(OtherDtype(), (), carry=X),
        "OtherDtype.step",
        "float32",
        "float16",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    assert_raises(*ERRORS[what])


TRACED = {
    "xs": (lambda a: lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS, a), SHAPE((T, B, 2), "float32")),
    "mask": (lambda a: lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS, XS, mask=a), SHAPE((T, B), "float32")),
    "resets": (lambda a: lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS, XS, resets=a), SHAPE((B, T), "bool")),
    "lengths": (lambda a: lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS, XS, lengths=a), SHAPE((T,), "int32")),
    "carry": (lambda a: lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS, XS, (a, a)), SHAPE((H,), "float32")),
    "start": (lambda a: lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS, XS, start=a), SHAPE((), "float32")),
    "key": (lambda a: lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS, XS, key=a), SHAPE((), "uint32")),
    "w_hh": (
        lambda a: lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS._replace(w_hh=a), XS),
        SHAPE((H, H), "float32"),
    ),
}


@pytest.mark.parametrize("what", TRACED)
@pytest.mark.parametrize(
    "transform", [lambda f: f, jax.jit, jax.checkpoint], ids=["plain", "jit", "checkpoint"]
)
def test_errors_are_raised_while_tracing(what, transform):
    """They depend only on shapes and dtypes. Nothing is compiled or computed."""
    f, shape = TRACED[what]
    with pytest.raises(ValueError, match=rf"(?s){what}.*expected"):
        jax.eval_shape(transform(f), shape)


@pytest.mark.parametrize(
    "what", [w for w, (attempt, *_) in ERRORS.items() if attempt.__qualname__.startswith("call.")]
)
def test_errors_inside_jit(what):
    attempt, *_ = ERRORS[what]
    with pytest.raises(ValueError, match="expected"):
        jax.eval_shape(jax.jit(attempt))


def test_a_carry_may_be_a_list():
    """For instance if the carry is read from a file."""
    expected = lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS, XS, (STATE, STATE))
    found = lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS, XS, [STATE, STATE])
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


class HiddenAndCell(NamedTuple):
    """A user's own type for the carry of an LSTM."""

    h: object
    c: object


def test_a_carry_may_be_another_named_tuple():
    """Only the nesting matters. The returned carries have the cell's own types."""
    given = HiddenAndCell(STATE + 0.5, STATE - 0.25)
    expected = lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS, XS, tuple(given), return_carries=True)
    found = lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS, XS, given, return_carries=True)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_narrow_carry_is_promoted_by_unroll_and_kept_by_step():
    narrow = tuple(jnp.full((B, H), value, jnp.bfloat16) for value in (0.3, -1.7))
    wide = tuple(part.astype(jnp.float32) for part in narrow)
    params = LSTM_CELL.init(KEY)
    found = lstm_jax.unroll(LSTM_CELL, params, XS + 1, narrow)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32"}
    jax.tree.map(np.testing.assert_array_equal, found, lstm_jax.unroll(LSTM_CELL, params, XS + 1, wide))
    carry, y = LSTM_CELL.step(params, narrow, X)
    assert {leaf.dtype.name for leaf in (*carry, y)} == {"bfloat16"}


def test_explain_raises_the_same_errors():
    for options in (
        {"mask": SHAPE((B, T), "bool")},
        {"lengths": [6] * B},
        {"truncate": 0},
        {"implementation": "cudnn"},
        {"carry": (STATE,)},
        {"start": -1},
        {"start": 1.5},
    ):
        with pytest.raises(ValueError, match="expected"):
            lstm_jax.explain(LSTM_CELL, LSTM_PARAMS, SHAPE(XS.shape, "float32"), **options)


def test_lengths_in_jax_arrays_are_clipped():
    """They are not copied to the host, so they cannot be checked."""
    cell = RNN(D, H)
    params = cell.init(KEY)
    _, ys = lstm_jax.unroll(cell, params, jnp.ones((T, B, D)), lengths=jnp.array([-3, 2, 5, 99]))
    assert np.count_nonzero(np.any(ys != 0, axis=-1), axis=0).tolist() == [0, 2, 5, 5]
