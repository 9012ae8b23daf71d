"""Stacks: dropout between layers, and errors."""

from dataclasses import dataclass
from functools import partial

import cell_case
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_case import D, H
from helpers import assert_raises, assert_same, problem, zero_params
from laws import identity, solve, windows

import lstm_jax
from lstm_jax import GRU, LSTM, Bidirectional, Readout, Stack

pytestmark = pytest.mark.usefixtures("x64")

# --- dropout ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """A cell without state that returns its input, so that a stack of two returns its dropout mask."""

    input_size: int = 20
    output_size: int = 20

    def init(self, key):
        return ()

    def initial_carry(self, batch_shape=(), params=None):
        return ()

    def step(self, params, carry, x):
        return carry, x


def masks(key, *, layers=2, T=40, rows=5, **options):
    """The outputs of a stack with dropout for inputs of ones."""
    arguments = {name: options.pop(name) for name in ("start", "reverse", "mask") if name in options}
    network = Stack((Identity(),) * layers, **{"dropout": 0.25} | options)
    _, ys = lstm_jax.unroll(network, ((),) * layers, jnp.ones((T, rows, 20)), key=key, **arguments)
    return np.asarray(ys)


KEY, OTHER_KEY = jax.random.key(1), jax.random.key(2)
MASKS = pytest.mark.parametrize("dropout_mask", ["step", "sequence"])


@MASKS
def test_dropout_drops_at_its_rate_and_scales_the_rest(dropout_mask):
    ys = masks(KEY, dropout_mask=dropout_mask, rows=100)
    np.testing.assert_allclose(np.unique(ys), [0, 4 / 3])
    assert abs(np.mean(ys == 0) - 0.25) < 0.03
    assert abs(np.mean(ys) - 1) < 0.04


@MASKS
def test_dropout_requires_a_key_and_depends_on_it(dropout_mask):
    assert np.all(masks(None, dropout_mask=dropout_mask) == 1)
    assert np.all(masks(KEY, dropout_mask=dropout_mask, dropout=0.0) == 1)
    np.testing.assert_array_equal(
        masks(KEY, dropout_mask=dropout_mask), masks(KEY, dropout_mask=dropout_mask)
    )
    assert np.any(masks(KEY, dropout_mask=dropout_mask) != masks(OTHER_KEY, dropout_mask=dropout_mask))


def test_dropout_with_old_style_keys():
    ys = masks(jax.random.PRNGKey(1))
    assert 0 < np.mean(ys == 0) < 0.5


def test_dropout_masks_per_step_and_per_sequence():
    by_step, by_sequence = masks(KEY), masks(KEY, dropout_mask="sequence")
    assert len(np.unique(by_step, axis=0)) == len(by_step)
    assert len(np.unique(by_sequence, axis=0)) == 1
    for ys in (by_step, by_sequence):  # rows have different masks
        assert len(np.unique(ys, axis=1)) > 1 and len(np.unique(ys[0], axis=0)) == ys.shape[1]


@MASKS
def test_dropout_of_windows_equals_that_of_the_whole_sequence(dropout_mask):
    whole = masks(KEY, dropout_mask=dropout_mask, start=3)
    parts = [masks(KEY, dropout_mask=dropout_mask, T=20, start=start) for start in (3, 23)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    traced = jax.jit(partial(_masks_at, dropout_mask))(23)
    np.testing.assert_array_equal(traced, whole[20:])


def _masks_at(dropout_mask, start):
    network = Stack((Identity(), Identity()), dropout=0.25, dropout_mask=dropout_mask)
    return lstm_jax.unroll(network, ((), ()), jnp.ones((20, 5, 20)), key=KEY, start=start)[1]


def test_dropout_depends_on_the_time_index_only():
    """It depends neither on the direction nor on which other steps are valid."""
    plain = masks(KEY)
    np.testing.assert_array_equal(masks(KEY, reverse=True), plain)
    mask = np.random.default_rng(0).random((40, 5)) < 0.5
    np.testing.assert_array_equal(masks(KEY, mask=mask), np.where(mask[..., None], plain, 0))


@MASKS
def test_dropout_masks_differ_between_layers(dropout_mask):
    ys = masks(KEY, layers=3, dropout_mask=dropout_mask, rows=100)
    np.testing.assert_allclose(np.unique(ys), [0, 16 / 9])
    assert abs(np.mean(ys != 0) - 0.75**2) < 0.04


def test_dropout_does_not_apply_to_residual_connections():
    np.testing.assert_allclose(np.unique(masks(KEY, residual=True)), [1, 1 + 4 / 3])


def test_dropout_masks_differ_between_directions():
    network = Bidirectional(Stack((Identity(), Identity()), dropout=0.5))
    _, ys = lstm_jax.unroll(network, (((), ()),) * 2, jnp.ones((40, 5, 20)), key=KEY)
    assert np.any(ys[..., :20] != ys[..., 20:])
    np.testing.assert_allclose(np.unique(ys), [0, 2])


def test_dropout_masks_differ_between_nested_stacks():
    inner = Stack((Identity(), Identity()), dropout=0.5)
    _, once = lstm_jax.unroll(inner, ((), ()), jnp.ones((40, 5, 20)), key=KEY)
    _, twice = lstm_jax.unroll(Stack((inner, inner)), (((), ()),) * 2, jnp.ones((40, 5, 20)), key=KEY)
    assert abs(np.mean(once == 0) - 0.5) < 0.05
    assert abs(np.mean(twice == 0) - 0.75) < 0.05


def test_step_has_no_dropout():
    network = Stack((Identity(), Identity()), dropout=0.5)
    _, y = network.step(((), ()), ((), ()), jnp.ones((5, 20)))
    assert np.all(y == 1)


@pytest.mark.slow
@MASKS
def test_dropout_is_the_same_in_all_implementations_and_checkpoints(dropout_mask):
    """Values and gradients agree, so a checkpointed backward pass draws the masks of the forward pass."""
    network = Stack(
        (LSTM(D, 8, param_dtype="float64"), GRU(8, H, param_dtype="float64")),
        dropout=0.5,
        dropout_mask=dropout_mask,
    )
    given = problem(cell_case.CellCase("dropout", lambda **dtypes: network, None), seed=4)
    reference = solve(given, implementation="scan", key=KEY)
    _, without = lstm_jax.unroll(network, given.params, given.xs, given.carry, **given.flags)
    assert np.any(without != reference[0][1][0])
    assert_same(solve(given, key=KEY, checkpoint=3), reference)
    assert_same(solve(given, key=KEY, implementation="scan", checkpoint="sqrt"), reference)


@pytest.mark.slow
def test_dropout_gradients_of_windows_equal_those_of_the_whole_sequence():
    network = Stack((LSTM(D, 8, param_dtype="float64"), GRU(8, H, param_dtype="float64")), dropout=0.5)
    given = problem(cell_case.CellCase("dropout", lambda **dtypes: network, None), seed=4)
    whole = solve(given, key=KEY, start=2)
    parts = windows(
        network, (3, 4), given.params, given.xs, given.carry, given.flags, 2, identity, False, key=KEY
    )
    assert_same(parts, whole)


# --- errors -------------------------------------------------------------------------------------

LSTM_CELL = LSTM(D, H)
LSTM_PARAMS = zero_params(LSTM_CELL)
XS = np.zeros((5, 4, D), np.float32)
X = XS[0]
STATE = np.zeros((4, H), np.float32)
CARRY = (STATE, STATE)


def call(cell, params):
    return lambda: lstm_jax.unroll(cell, params, XS)


#: A call, and words of its error message: the given and the expected value.
ERRORS = {
    # params
    "params for more layers": (
        call(Stack((LSTM_CELL,)), (LSTM_PARAMS,) * 2),
        "Stack",
        "2 entries",
        "tuple of 1",
    ),
    "a layer's params for a stack": (
        call(Stack((LSTM_CELL,)), X),
        "Stack",
        "ndarray|Array|Tracer",
        "tuple of 1",
    ),
    "a stack's carry of too few layers": (
        lambda: Stack((LSTM_CELL,)).step((LSTM_PARAMS,), (), X),
        "Stack got a carry of 0 entries",
        "tuple of 1",
    ),
    "a readout's params of another size": (
        call(Stack((LSTM_CELL, Readout(H, 3))), (LSTM_PARAMS, zero_params(Readout(H, 4)))),
        "Readout",
        "w",
        "(2, 4)",
        "(2, 3)",
    ),
    # constructors
    "init of a stack without a key": (lambda: Stack((LSTM_CELL,)).init(None), "key=None", "one PRNG key"),
    "no layers": (lambda: Stack(()), "layers=()", "a tuple of one cell or more"),
    "a cell for layers": (lambda: Stack(LSTM_CELL), "layers=LSTM(", "a tuple of one cell or more"),
    "a class in a stack": (lambda: Stack((LSTM_CELL, GRU)), "Stack got <class", "a cell"),
    "a function in a stack": (lambda: Stack((jnp.tanh,)), "without init, initial_carry, step", "a cell"),
    "layers that do not fit": (
        lambda: Stack((LSTM(3, 4), LSTM(3, 4))),
        "layer 1 with input_size=3",
        "4 outputs",
        "input_size=4",
    ),
    "a layer over both directions": (
        lambda: Stack((Bidirectional(LSTM(3, 4)), LSTM(4, 4))),
        "input_size=4",
        "8 outputs",
        "input_size=8",
    ),
    "skip without its input": (
        lambda: Stack((LSTM(3, 4), LSTM(4, 4)), skip=True),
        "input_size=4",
        "input_size=7 (4 outputs and, with skip, 3 inputs)",
    ),
    "residual of another width": (
        lambda: Stack((LSTM(3, 4), LSTM(4, 5)), residual=True),
        "layer 1 with 5 outputs over 4",
        "as many outputs",
    ),
    "dropout of 1": (lambda: Stack((LSTM_CELL,), dropout=1.0), "dropout=1.0", "[0, 1)"),
    "negative dropout": (lambda: Stack((LSTM_CELL,), dropout=-0.1), "dropout=-0.1", "[0, 1)"),
    "dropout of True": (lambda: Stack((LSTM_CELL,), dropout=True), "dropout=True", "[0, 1)"),
    "dropout of type str": (lambda: Stack((LSTM_CELL,), dropout="half"), "dropout='half'", "[0, 1)"),
    "dropout in one layer": (
        lambda: Stack((LSTM_CELL,), dropout=0.5),
        "dropout=0.5 with one layer",
        "between layers",
    ),
    "an unknown dropout mask": (
        lambda: Stack((LSTM_CELL,), dropout_mask="batch"),
        "dropout_mask='batch'",
        "'step', 'sequence'",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    assert_raises(*ERRORS[what])
