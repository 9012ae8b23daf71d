"""Hypothesis strategies for sequences with lengths, masks and resets, all of one shape."""

import numpy as np
from cell_case import D
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

T, B = 4, 2
FLAGS = nps.arrays(bool, (T, B), elements=st.booleans(), fill=st.nothing())
VALUES = st.one_of(st.floats(-3, 3, width=32), st.sampled_from([0.0, -0.0, 50.0, -50.0]))
INVALID = st.sampled_from([np.nan, np.inf, -np.inf, 1e308])


@st.composite
def sequences(draw):
    """Inputs, which steps are valid, and flags. Inputs of invalid steps are NaN, infinite or huge."""
    lengths = draw(nps.arrays(np.int32, (B,), elements=st.integers(0, T), fill=st.nothing()))
    mask, resets = draw(FLAGS), draw(FLAGS)
    xs = draw(nps.arrays(np.float64, (T, B, D), elements=VALUES))
    valid = mask & (np.arange(T)[:, None] < lengths)
    return (
        np.where(valid[..., None], xs, draw(INVALID)),
        valid,
        {"lengths": lengths, "mask": mask, "resets": resets},
    )
