"""Every refusal: a ValueError, raised while tracing, that names what came and what was expected."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax
from lstm_jax import GRU, LSTM, RNN, Bidirectional, GRUVariant, Readout, Stack

T, B, D, H = 5, 4, 3, 2
KEY = jax.random.key(0)
SHAPE = jax.ShapeDtypeStruct


def zeros_like(tree):
    return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), tree)


def params_of(network):
    """Zeros in the shapes of the parameters, which is all that errors look at."""
    return zeros_like(jax.eval_shape(network.init, KEY))


LSTM_CELL, GRU_CELL = LSTM(D, H), GRU(D, H)
LSTM_PARAMS, GRU_PARAMS = params_of(LSTM_CELL), params_of(GRU_CELL)
XS = np.zeros((T, B, D), np.float32)
X = XS[0]
STATE = np.zeros((B, H), np.float32)
CARRY = (STATE, STATE)


def call(cell=LSTM_CELL, params=LSTM_PARAMS, xs=XS, carry=None, **options):
    return lambda: lstm_jax.unroll(cell, params, xs, carry, **options)


class Three:
    """A user's cell; the ones below break one rule each."""

    def init(self, key):
        return ()

    def initial_carry(self, batch_shape=(), params=None):
        return jnp.zeros((*batch_shape, D), jnp.float32)

    def step(self, params, carry, x):
        return carry + x, x


class Two:
    def init(self, key): ...

    def initial_carry(self, batch_shape=(), params=None): ...


@dataclass
class Mutable(Three):
    """A dataclass that is not frozen compares by value and so has no hash."""


class OtherStructure(Three):
    def step(self, params, carry, x):
        return (carry, x), x


class OtherShape(Three):
    def step(self, params, carry, x):
        return carry[..., :1], x


class OtherDtype(Three):
    def step(self, params, carry, x):
        return carry.astype(jnp.float16), x


class Squared(Three):
    """Splits, but recur is not affine in the carry."""

    def project(self, params, x):
        return x

    def recur(self, params, carry, u):
        return u + carry**2

    def update(self, params, carry, z):
        return z, z

    def step(self, params, carry, x):
        return self.update(params, carry, self.recur(params, carry, x))


class NoParams(NamedTuple):
    weights: object = None


#: What is done, and words that its message holds: what came, what was expected.
ERRORS = {
    # xs
    "xs of the wrong size": (call(xs=XS[..., :2]), "xs of shape (5, 4, 2)", "(T, *batch, 3)", "LSTM"),
    "xs batch-major": (call(xs=np.moveaxis(XS, -1, 0)), "xs of shape (3, 5, 4)", "(T, *batch, 3)"),
    "xs without time": (call(xs=XS[0, 0]), "xs of shape (3,)", "(T, *batch, D)"),
    "xs a scalar": (call(xs=np.float32(0)), "xs of shape ()", "(T, *batch, D)"),
    "xs of whole numbers": (call(xs=XS.astype(np.int32)), "xs of dtype int32", "floating", "one-hot"),
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
    "half a carry": (call(carry=STATE), "carry float32[4,2]", "(float32[4,2], float32[4,2]) for LSTM"),
    "a carry of one row": (call(carry=(STATE, STATE[0])), "carry[1] of shape (2,)", "shape (4, 2)"),
    "a carry of another size": (call(carry=(XS[0], STATE)), "carry[0] of shape (4, 3)", "shape (4, 2)"),
    "a carry of whole numbers": (call(carry=(STATE.astype(int), STATE)), "carry[0] of dtype int", "float32"),
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
    "start a float": (call(start=1.5), "start=1.5", "whole number"),
    "start a bool": (call(start=True), "start=True", "whole number"),
    "start a name": (call(start="0"), "start='0'", "whole number"),
    "start an array": (call(start=np.zeros(2, int)), "start=array([0, 0])", "one whole number"),
    "start an array of a float": (call(start=jnp.float32(1)), "start=", "one whole number"),
    "checkpoint 0": (call(checkpoint=0), "checkpoint=0", "1 or more"),
    "checkpoint a bool": (call(checkpoint=True), "checkpoint=True", "whole number"),
    "checkpoint a float": (call(checkpoint=2.0), "checkpoint=2.0", "whole number"),
    "checkpoint another name": (call(checkpoint="log"), "checkpoint='log'", "'sqrt'", "window length"),
    "truncate 0": (call(truncate=0), "truncate=0", "1 or more"),
    "truncate a float": (call(truncate=1.5), "truncate=1.5", "whole number"),
    "truncate an array": (call(truncate=np.ones(2, int)), "truncate=", "whole number"),
    "unknown implementation": (
        call(implementation="fast"),
        "implementation='fast'",
        "'auto'",
        "'scan'",
        "'fused'",
    ),
    "unknown implementation of a network without a loop": (
        call(Stack((Readout(D, H),)), (params_of(Readout(D, H)),), implementation="fast"),
        "implementation='fast'",
        "'auto'",
    ),
    "the root of nobody knows what": (
        lambda: jax.eval_shape(
            lambda xs: lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS, xs, checkpoint="sqrt"),
            SHAPE(jax.export.symbolic_shape("T, 4, 3"), "float32"),
        ),
        "checkpoint='sqrt' with T steps",
        "a known number",
    ),
    "fused without a split": (
        call(Three(), (), implementation="fused"),
        "implementation='fused' for Three",
        "no project, recur, update",
        "'scan'",
    ),
    "fused before its reset gate": (
        call(
            GRUVariant(D, H, reset_after=False),
            params_of(GRUVariant(D, H, reset_after=False)),
            implementation="fused",
        ),
        "implementation='fused' for GRU",
        "reset_after=False",
        "two products",
    ),
    "fused with a square": (call(Squared(), (), implementation="fused"), "'fused' for Squared", "not affine"),
    "fused in a layer": (
        call(
            Stack((Three(), LSTM_CELL)),
            ((), LSTM_PARAMS),
            implementation="fused",
        ),
        "'fused' for Three",
    ),
    "a number for a key": (call(key=0), "key", "int32", "one PRNG key"),
    "many keys": (call(key=jax.random.split(KEY, 3)), "keys of shape (3,)", "one key"),
    "an array for a key": (call(key=np.zeros(2, np.float32)), "key of dtype float32", "one PRNG key"),
    # cells
    "the class of a cell": (call(LSTM), "the class LSTM", "an object with init, initial_carry and step"),
    "a function": (
        call(lstm_jax.lstm_step),
        "a function without init, initial_carry, step",
        "an object with",
    ),
    "no step": (call(Two(), ()), "a Two without step", "an object with init, initial_carry and step"),
    "no cell": (call(None), "a NoneType without", "an object with"),
    "a cell without a hash": (call(Mutable(), ()), "Mutable that cannot be hashed", "frozen=True"),
    "step returns another tree": (
        call(OtherStructure(), ()),
        "OtherStructure.step",
        "carry (float32[4,3], float32[4,3])",
        "it was given, float32[4,3]",
    ),
    "step returns another shape": (call(OtherShape(), ()), "OtherShape.step", "(4, 3)", "(4, 1)"),
    "step returns another dtype": (
        call(OtherDtype(), (), carry=X),
        "OtherDtype.step",
        "float32",
        "float16",
    ),
    "Bidirectional.step": (
        lambda: Bidirectional(LSTM_CELL).step((LSTM_PARAMS,) * 2, (CARRY,) * 2, X),
        "Bidirectional.step",
        "a whole sequence",
        "unroll",
    ),
    "a step of a stack with both directions": (
        lambda: Stack((Bidirectional(LSTM_CELL),)).step(((LSTM_PARAMS,) * 2,), ((CARRY,) * 2,), X),
        "Bidirectional.step",
        "a whole sequence",
    ),
    "learned initial carry without params": (
        lambda: LSTM(D, H, learn_initial_carry=True).initial_carry((B,)),
        "LSTM.initial_carry got no params",
        "learn_initial_carry=True",
    ),
    # params
    "params of another size": (call(params=params_of(LSTM(D, 3))), "w_hh of shape (3, 12)", "w_hh (2, 8)"),
    "params of another cell": (call(params=GRU_PARAMS), "LSTM", "type GRUParams", "LSTMParams"),
    "params of a dict": (call(params={"w_ih": X}), "type dict", "LSTMParams, the NamedTuple"),
    "params of another tuple": (call(params=NoParams()), "type NoParams", "LSTMParams, the NamedTuple"),
    "params None": (call(params=None), "type NoneType", "LSTMParams, the NamedTuple"),
    "params of whole numbers": (
        call(params=LSTM_PARAMS._replace(w_ih=LSTM_PARAMS.w_ih.astype(int))),
        "w_ih of dtype int",
        "floating",
    ),
    "an ensemble's params": (
        call(params=jax.tree.map(lambda a: np.stack([a, a]), LSTM_PARAMS)),
        "w_ih of shape (2, 3, 8)",
        "jax.vmap",
    ),
    "a bias too few": (call(params=LSTM_PARAMS._replace(bias=None)), "no params.bias", "use_bias=True"),
    "a bias too many": (
        call(LSTM(D, H, use_bias=False)),
        "params.bias with use_bias=False",
        "bias to be None",
    ),
    "a learned carry that is not there": (
        call(LSTM(D, H, learn_initial_carry=True), LSTM_PARAMS),
        "initial",
        "learn_initial_carry",
    ),
    "bias_hn before the reset gate": (
        call(GRUVariant(D, H, reset_after=False), params_of(GRUVariant(D, H))),
        "params.bias_hn with reset_after=False",
        "bias_hn to be None",
    ),
    "bias_hn of whole numbers": (
        call(GRU_CELL, GRU_PARAMS._replace(bias_hn=GRU_PARAMS.bias_hn.astype(int))),
        "bias_hn of dtype int",
        "floating",
    ),
    "bias_hn of another size": (
        call(GRU_CELL, GRU_PARAMS._replace(bias_hn=np.zeros(3, np.float32))),
        "bias_hn of shape (3,)",
        "bias_hn (2,)",
    ),
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
    "one direction's params": (
        call(Bidirectional(LSTM_CELL), (LSTM_PARAMS,)),
        "Bidirectional",
        "1 entries",
        "tuple of 2",
    ),
    "a stack's carry of too few layers": (
        lambda: Stack((LSTM_CELL,)).step((LSTM_PARAMS,), (), X),
        "Stack got a carry of 0 entries",
        "tuple of 1",
    ),
    "a read-out's params of another size": (
        call(Stack((LSTM_CELL, Readout(H, 3))), (LSTM_PARAMS, params_of(Readout(H, 4)))),
        "Readout",
        "w",
        "(2, 4)",
        "(2, 3)",
    ),
    "a read-out without its bias": (
        lambda: Readout(H, 3)(params_of(Readout(H, 3))._replace(bias=None), STATE),
        "Readout got no params.bias",
        "(3,)",
    ),
    # steps
    "a step on another size": (
        lambda: LSTM_CELL.step(LSTM_PARAMS, CARRY, STATE),
        "x of shape (4, 2)",
        "(..., 3)",
    ),
    "a step with a carry of another batch": (
        lambda: LSTM_CELL.step(LSTM_PARAMS, (STATE[0], STATE), X),
        "LSTM.step got h of shape (2,)",
        "(4, 2)",
    ),
    "a step with half a carry": (lambda: LSTM_CELL.step(LSTM_PARAMS, STATE, X), "carry of 1 parts", "(h, c)"),
    "a step with a carry of whole numbers": (
        lambda: LSTM_CELL.step(LSTM_PARAMS, (STATE, STATE.astype(int)), X),
        "LSTM.step got c of dtype int",
        "floating",
    ),
    "an initial carry for a dict": (
        lambda: LSTM_CELL.initial_carry((B,), {"w_ih": X}),
        "LSTM.initial_carry got parameters of type dict",
        "LSTMParams, the NamedTuple",
    ),
    "a step on whole numbers": (
        lambda: RNN(D, H).step(params_of(RNN(D, H)), STATE, X.astype(np.int32)),
        "x of dtype int32",
        "floating",
    ),
    "lstm_step with a GRU's params": (
        lambda: lstm_jax.lstm_step(GRU_PARAMS, CARRY, X),
        "lstm_step got parameters of type GRUParams",
        "LSTMParams",
    ),
    "gru_step with an LSTM's carry": (
        lambda: lstm_jax.gru_step(GRU_PARAMS, CARRY, X),
        "carry of 2 parts",
        "(h)",
    ),
    "rnn_step on another size": (
        lambda: lstm_jax.rnn_step(params_of(RNN(D, H)), STATE, STATE, activation=jnp.tanh),
        "rnn_step got x of shape (4, 2)",
        "(..., 3)",
    ),
    "lstm_gates without params": (lambda: lstm_jax.lstm_gates(None, CARRY, X), "lstm_gates", "NoneType"),
    # constructors
    "a size of 0": (lambda: LSTM(0, H), "LSTM got input_size=0", "1 or more"),
    "a size of a half": (lambda: GRU(D, 2.5), "GRU got hidden_size=2.5", "whole number"),
    "a size True": (lambda: RNN(D, True), "RNN got hidden_size=True", "whole number"),
    "a size of a name": (lambda: Readout(D, "3"), "Readout got output_size='3'", "whole number"),
    "a dtype of whole numbers": (lambda: LSTM(D, H, dtype="int8"), "dtype=int8", "floating"),
    "an unknown dtype": (lambda: LSTM(D, H, param_dtype="float33"), "param_dtype='float33'", "floating"),
    "an initialiser's name": (lambda: LSTM(D, H, w_ih_init="glorot"), "w_ih_init='glorot'", "a function"),
    "an activation's name": (lambda: RNN(D, H, activation="tanh"), "activation='tanh'", "a function"),
    "a read-out's activation's name": (
        lambda: Readout(D, H, activation="relu"),
        "activation='relu'",
        "a function",
    ),
    "init without a key": (lambda: LSTM_CELL.init(0), "LSTM.init got key=0", "one PRNG key"),
    "init with many keys": (lambda: GRU_CELL.init(jax.random.split(KEY, 2)), "keys of shape (2,)", "one key"),
    "init of a stack without a key": (lambda: Stack((LSTM_CELL,)).init(None), "key=None", "one PRNG key"),
    "init of both directions without a key": (
        lambda: Bidirectional(LSTM_CELL).init(1.0),
        "key=1.0",
        "one PRNG key",
    ),
    "torch_init without a key": (
        lambda: lstm_jax.torch_init(LSTM_CELL, 0),
        "torch_init got key=0",
        "one PRNG key",
    ),
    "keras_init of a user's cell": (
        lambda: lstm_jax.keras_init(Stack((Weighted(), LSTM_CELL)), KEY),
        "keras_init",
        "parameters of type",
        "RNN, LSTM, GRU and Readout",
    ),
    "no layers": (lambda: Stack(()), "layers=()", "a tuple of one cell or more"),
    "a cell for layers": (lambda: Stack(LSTM_CELL), "layers=LSTM(", "a tuple of one cell or more"),
    "a class in a stack": (lambda: Stack((LSTM_CELL, GRU)), "Stack got <class", "a cell"),
    "a function in a stack": (lambda: Stack((jnp.tanh,)), "without init, initial_carry, step", "a cell"),
    "a class both ways": (lambda: Bidirectional(LSTM), "Bidirectional got <class", "a cell"),
    "None both ways": (lambda: Bidirectional(None), "without init, initial_carry, step", "a cell"),
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
    "all dropped": (lambda: Stack((LSTM_CELL,), dropout=1.0), "dropout=1.0", "[0, 1)"),
    "less than nothing dropped": (lambda: Stack((LSTM_CELL,), dropout=-0.1), "dropout=-0.1", "[0, 1)"),
    "dropout True": (lambda: Stack((LSTM_CELL,), dropout=True), "dropout=True", "[0, 1)"),
    "dropout of a name": (lambda: Stack((LSTM_CELL,), dropout="half"), "dropout='half'", "[0, 1)"),
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
    "an unknown merge": (
        lambda: Bidirectional(LSTM_CELL, merge="max"),
        "merge='max'",
        "'concat', 'sum', 'mean', 'product'",
    ),
}


def _for_each_cell():
    """What every classic cell checks for itself."""
    steps = {
        RNN: partial(lstm_jax.rnn_step, activation=jnp.tanh),
        LSTM: lstm_jax.lstm_step,
        GRU: lstm_jax.gru_step,
    }
    for kind, step in steps.items():
        cell, name = kind(D, H), kind.__name__
        params, carry = params_of(cell), zeros_like(cell.initial_carry((B,)))
        other = params_of(kind(2, H))
        row = zeros_like(cell.initial_carry())
        yield (
            f"{name}: params of another size",
            (call(cell, params_of(kind(D, 5))), name, "w_hh of shape (5, "),
        )
        yield (
            f"{name}: a step with another's params",
            (
                lambda cell=cell, carry=carry, other=other: cell.step(other, carry, X),
                "w_ih of shape (2, ",
            ),
        )
        yield (
            f"{name}: a step with another's carry",
            (
                lambda cell=cell, params=params, row=row: cell.step(params, row, X),
                f"{name}.step got h",
                "(4, 2)",
            ),
        )
        yield (
            f"{name}: a free step with another's carry",
            (
                lambda step=step, params=params, row=row: step(params, row, X),
                f"{name.lower()}_step got h",
                "(4, 2)",
            ),
        )
        yield (
            f"{name}: a free step on another size",
            (
                lambda step=step, params=params, carry=carry: step(params, carry, STATE),
                f"{name.lower()}_step got x of shape (4, 2)",
                "(..., 3)",
            ),
        )
        yield (
            f"{name}: init without a key",
            (lambda cell=cell: cell.init(7), f"{name}.init got key=7", "one PRNG key"),
        )


ERRORS |= dict(_for_each_cell())
ERRORS |= {
    "a read-out of another size": (
        lambda: Readout(H, 3)(params_of(Readout(H, 3)), X),
        "Readout got x of shape (4, 3)",
        "(..., 2)",
    ),
    "a read-out of whole numbers": (
        lambda: Readout(H, 3)(params_of(Readout(H, 3)), STATE.astype(int)),
        "Readout got x of dtype int",
        "floating",
    ),
    "a read-out's init without a key": (
        lambda: Readout(H, 3).init(7),
        "Readout.init got key=7",
        "one PRNG key",
    ),
    "a read-out's initialiser's name": (
        lambda: Readout(H, 3, w_init="zeros"),
        "w_init='zeros'",
        "a function",
    ),
}


class Weighted(Three):
    input_size = output_size = D

    def init(self, key):
        return NoParams(jnp.zeros(3))


@pytest.mark.parametrize("what", ERRORS)
def test_refused(what):
    attempt, *words = ERRORS[what]
    with pytest.raises(ValueError) as refusal:
        attempt()
    message = str(refusal.value)
    for word in words:
        assert any(choice in message for choice in word.split("|")), message
    assert "expected" in message


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
    "transform", [lambda f: f, jax.jit, jax.checkpoint], ids=["alone", "jit", "checkpoint"]
)
def test_refused_while_tracing(what, transform):
    """From shapes and dtypes alone: nothing is compiled, nothing computed."""
    f, shape = TRACED[what]
    with pytest.raises(ValueError, match=rf"(?s){what}.*expected"):
        jax.eval_shape(transform(f), shape)


@pytest.mark.parametrize(
    "what", [w for w, (attempt, *_) in ERRORS.items() if attempt.__qualname__.startswith("call.")]
)
def test_refused_under_an_enclosing_jit(what):
    """The same refusal where the call is part of a compiled program."""
    attempt, *_ = ERRORS[what]
    with pytest.raises(ValueError, match="expected"):
        jax.eval_shape(jax.jit(attempt))


def test_a_carry_may_be_a_list():
    """What a file or a JSON document gives back is the same carry."""
    expected = lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS, XS, (STATE, STATE))
    found = lstm_jax.unroll(LSTM_CELL, LSTM_PARAMS, XS, [STATE, STATE])
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


class HiddenAndCell(NamedTuple):
    """A user's own type for the carry of an LSTM."""

    h: object
    c: object


def test_a_carry_may_be_another_named_tuple():
    """The nesting counts. The carries that come back have the cell's own types."""
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


def test_explain_refuses_what_unroll_refuses():
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


def test_lengths_of_jax_are_clipped_not_refused():
    """They are never fetched to the host, so nobody can look at them."""
    cell = RNN(D, H)
    params = cell.init(KEY)
    _, ys = lstm_jax.unroll(cell, params, jnp.ones((T, B, D)), lengths=jnp.array([-3, 2, 5, 99]))
    assert np.count_nonzero(np.any(ys != 0, axis=-1), axis=0).tolist() == [0, 2, 5, 5]
