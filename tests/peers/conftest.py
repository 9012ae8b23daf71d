"""Fixtures of the comparisons with other libraries."""

import jax
import pytest


@pytest.fixture
def default_promotion():
    """JAX's implicit promotion, on which the other libraries rely and which this library's tests forbid."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
