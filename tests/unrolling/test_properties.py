"""Whatever the values, lengths, masks and resets: the oracle's answer, and one gradient.

All examples of a test have one shape, so that nothing is compiled twice.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cell_case import D
from cell_cases import BY_NAME
from helpers import assert_same, daily, problem, values_and_gradients
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as nps

import lstm_jax

pytestmark = pytest.mark.usefixtures("x64", "quick_compiles")

T, B = 4, 2
NETWORKS = ["lstm_learned", "gru", "peephole", "stack_bidirectional"]
FLAGS = nps.arrays(bool, (T, B), elements=st.booleans(), fill=st.nothing())
VALUES = st.one_of(st.floats(-3, 3, width=32), st.sampled_from([0.0, -0.0, 50.0, -50.0]))
ABSENT = st.sampled_from([np.nan, np.inf, -np.inf, 1e308])


@st.composite
def sequences(draw):
    """Inputs, and what is said about their steps; the inputs of invalid steps are the worst there are."""
    lengths = draw(nps.arrays(np.int32, (B,), elements=st.integers(0, T), fill=st.nothing()))
    mask, resets = draw(FLAGS), draw(FLAGS)
    xs = draw(nps.arrays(np.float64, (T, B, D), elements=VALUES))
    valid = mask & (np.arange(T)[:, None] < lengths)
    return (
        np.where(valid[..., None], xs, draw(ABSENT)),
        valid,
        {"lengths": lengths, "mask": mask, "resets": resets},
    )


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("which", daily(NETWORKS, "lstm_learned", "gru"))
@given(sequence=sequences())
def test_oracle(which, reverse, sequence):
    xs, _, flags = sequence
    case = BY_NAME[which]
    made = problem(case, T=T, batch=(B,))
    carry, (ys, carries) = lstm_jax.unroll(
        made.network, made.params, xs, made.carry, reverse=reverse, return_carries=True, **flags
    )
    expected = oracle.unroll(case.oracle, made.params, xs, made.carry, reverse=reverse, **flags)
    found = jax.tree.map(np.asarray, oracle.Result(carry, ys, carries))
    assert_same(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("which", daily(NETWORKS, "gru"))
@settings(max_examples=15)
@given(sequence=sequences())
def test_one_gradient(which, reverse, sequence):
    """The fast path's and the plain scan's, finite, and zero where nothing was read."""
    xs, valid, flags = sequence
    made = problem(BY_NAME[which], T=T, batch=(B,))
    fast, plain = (
        values_and_gradients(
            made.network, made.params, xs, made.carry, reverse=reverse, implementation=how, **flags
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
    made = problem(BY_NAME[which], T=T, batch=(B,))
    xs = np.nan_to_num(sequence[0], nan=1, posinf=1, neginf=1)
    run = partial(lstm_jax.unroll, made.network, made.params, np.clip(xs, -3, 3))
    asked = run(lengths=jnp.asarray(lengths))
    clipped = run(lengths=np.clip(lengths, 0, T))
    assert_same(asked, clipped, rtol=0, atol=0)
