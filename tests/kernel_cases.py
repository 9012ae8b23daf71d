"""Helpers for tests of kernels."""

import pytest

import lstm_jax
from lstm_jax import GRU, LSTM

DOUBLE = pytest.mark.usefixtures("x64")


def without_resets(problem):
    """The problem with lengths and mask only, because the kernels do not support resets."""
    return problem._replace(flags={name: problem.flags[name] for name in ("lengths", "mask")})


def unroll(implementation, cell, *args, **options):
    return lstm_jax.unroll(cell, *args, implementation=implementation, **options)


def both_cells(fast):
    """Parametrize over both cell types; the one that is not ``fast`` is slow."""
    other = pytest.param(*{LSTM, GRU} - {fast}, marks=pytest.mark.slow)
    return pytest.mark.parametrize("cell_type", [fast, other], ids=lambda cell_type: cell_type.__name__)
