"""Random values, lengths, masks and resets: comparisons with the oracle and of gradients.

All examples of a test have the same shape, so each test compiles once.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cell_cases import BY_NAME
from helpers import assert_same, daily, problem, values_and_gradients
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as nps
from sequence_strategies import B, T, sequences

import lstm_jax

pytestmark = pytest.mark.usefixtures("x64")

NETWORKS = ["lstm_learned", "gru", "peephole", "stack_bidirectional"]


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("which", daily(NETWORKS, "lstm_learned", "gru"))
@given(sequence=sequences())
def test_values_agree_with_the_oracle(which, reverse, sequence):
    xs, _, flags = sequence
    case = BY_NAME[which]
    data = problem(case, T=T, batch=(B,))
    carry, (ys, carries) = lstm_jax.unroll(
        data.network, data.params, xs, data.carry, reverse=reverse, return_carries=True, **flags
    )
    expected = oracle.unroll(case.oracle, data.params, xs, data.carry, reverse=reverse, **flags)
    found = jax.tree.map(np.asarray, oracle.Result(carry, ys, carries))
    assert_same(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("which", daily(NETWORKS, "gru"))
@settings(max_examples=15)
@given(sequence=sequences())
def test_gradients_of_the_fused_and_the_plain_scan_agree(which, reverse, sequence):
    """They are finite, and zero at invalid steps."""
    xs, valid, flags = sequence
    data = problem(BY_NAME[which], T=T, batch=(B,))
    fast, plain = (
        values_and_gradients(
            data.network, data.params, xs, data.carry, reverse=reverse, implementation=how, **flags
        )
        for how in ("fused", "scan")
    )
    assert_same(fast, plain, rtol=1e-8, atol=1e-10)
    for _, (_, dxs, _) in (fast, plain):
        assert np.all(np.asarray(dxs)[~valid] == 0)


@pytest.mark.parametrize("which", daily(NETWORKS))
@settings(max_examples=25)
@given(sequence=sequences(), lengths=nps.arrays(np.int32, (B,), elements=st.integers(-3, T + 3)))
def test_lengths_of_jax_are_clipped(which, sequence, lengths):
    data = problem(BY_NAME[which], T=T, batch=(B,))
    xs = np.nan_to_num(sequence[0], nan=1, posinf=1, neginf=1)
    run = partial(lstm_jax.unroll, data.network, data.params, np.clip(xs, -3, 3))
    unclipped = run(lengths=jnp.asarray(lengths))
    clipped = run(lengths=np.clip(lengths, 0, T))
    assert_same(unclipped, clipped, rtol=0, atol=0)
