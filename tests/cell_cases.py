"""The table of all cells and networks, over which the tests of the time contract are parametrized.

To add a cell, write its equations as a function of one row in ``oracle.py`` or a similar file, and add one
row here or in ``variant_cases.py``::

    CellCase("name", build, oracle, implementation)

``cell_case.py`` documents the fields.
"""

from functools import partial

import jax
import numpy as np
import oracle
import variant_cases
from cell_case import CellCase, D, H
from user_cells import Leaky, Peephole, leaky, peephole

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


def _bidirectional_of_stack(**dtypes):
    return Bidirectional(
        Stack((LSTM(D, H, **dtypes), GRUVariant(H, H, reset_after=False, **dtypes)), residual=True),
        merge="sum",
    )


CELL_CASES = (
    CellCase("rnn", partial(RNN, D, H), ORACLE_RNN),
    CellCase(
        "rnn_relu",
        partial(RNN, D, H, activation=jax.nn.relu),
        oracle.Cell(partial(oracle.rnn, f=lambda a: np.maximum(a, 0)), oracle.zeros),
        variant=True,
    ),
    CellCase("lstm", partial(LSTM, D, H), ORACLE_LSTM),
    CellCase("lstm_no_bias", partial(LSTM, D, H, use_bias=False), ORACLE_LSTM, variant=True),
    CellCase("lstm_learned", partial(LSTM, D, H, learn_initial_carry=True), ORACLE_LEARNED),
    CellCase("gru", partial(GRU, D, H), ORACLE_GRU),
    CellCase("gru_no_bias", partial(GRU, D, H, use_bias=False), ORACLE_GRU, variant=True),
    CellCase(
        "gru_reset_before",
        partial(GRUVariant, D, H, reset_after=False),
        oracle.Cell(oracle.gru_reset_before, oracle.zeros),
        "scan",
    ),
    CellCase("bidirectional", partial(_bidirectional, "concat"), oracle.Bidirectional(ORACLE_LSTM)),
    *(
        CellCase(
            f"bidirectional_{merge}",
            partial(_bidirectional, merge),
            oracle.Bidirectional(ORACLE_LSTM, merge),
            variant=True,
        )
        for merge in ("sum", "mean", "product")
    ),
    CellCase(
        "bidirectional_reset_before",
        lambda **dtypes: Bidirectional(GRUVariant(D, H, reset_after=False, **dtypes)),
        oracle.Bidirectional(oracle.Cell(oracle.gru_reset_before, oracle.zeros)),
        "scan",
        variant=True,
    ),
    CellCase(
        "bidirectional_two_cells",
        lambda **dtypes: Bidirectional(LSTM(D, H, **dtypes), backward=GRU(D, 4, **dtypes)),
        oracle.Bidirectional(ORACLE_LSTM, backward=ORACLE_GRU),
    ),
    CellCase(
        "bidirectional_fused_and_scan",
        lambda **dtypes: Bidirectional(
            RNN(D, H, **dtypes), merge="sum", backward=GRUVariant(D, H, reset_after=False, **dtypes)
        ),
        oracle.Bidirectional(ORACLE_RNN, "sum", oracle.Cell(oracle.gru_reset_before, oracle.zeros)),
        "fused+scan",
        variant=True,
    ),
    CellCase("stack", _stack, oracle.Stack((ORACLE_LSTM, ORACLE_GRU))),
    CellCase(
        "stack_residual_skip",
        _stack_residual_skip,
        oracle.Stack((ORACLE_RNN, ORACLE_LEARNED), residual=True, skip=True),
    ),
    CellCase(
        "stack_of_three",
        _stack_of_three,
        oracle.Stack((ORACLE_RNN, ORACLE_GRU, ORACLE_LSTM), residual=True, skip=True),
        variant=True,
    ),
    CellCase(
        "stack_bidirectional",
        _stack_bidirectional,
        oracle.Stack((oracle.Bidirectional(ORACLE_GRU), ORACLE_LSTM, ORACLE_READOUT)),
    ),
    CellCase(
        "bidirectional_of_stack",
        _bidirectional_of_stack,
        oracle.Bidirectional(
            oracle.Stack((ORACLE_LSTM, oracle.Cell(oracle.gru_reset_before, oracle.zeros)), residual=True),
            "sum",
        ),
        "fused+scan",
        variant=True,
    ),
    CellCase(
        "leaky",
        lambda param_dtype, dtype=None: Leaky(param_dtype),
        oracle.Cell(leaky, lambda params: {"h": np.full(2, 0.5), "steps": np.array(0)}),
        "scan",
    ),
    CellCase(
        "peephole",
        lambda param_dtype, dtype=None: Peephole(param_dtype),
        oracle.Cell(peephole, lambda params: (np.full(2, -0.25), np.full(2, 0.75))),
    ),
    *variant_cases.ROWS,
)
BY_NAME = {case.name: case for case in CELL_CASES}
#: The cases whose laws are checked by ``make test``; those of the others are slow.
DAILY = "lstm", "gru"


def table(keep=lambda case: True):
    """The cases for ``pytest.mark.parametrize("case", table(...), ids=name)``."""
    return [case for case in CELL_CASES if keep(case)]


def name(case):
    return case.name
