"""Fixtures of the tests of ``unroll``."""

import pytest

from lstm_jax.cells import _linear, gru, lstm_variant
from lstm_jax.unrolling import fused_scan, tiling, windows
from lstm_jax.unrolling.api import _compiled


@pytest.fixture
def is_single_cpu_device(monkeypatch):
    """Tiling as on a machine with one CPU device; compiled programs are deleted before and after."""
    for module in (tiling, _linear, windows, fused_scan, gru, lstm_variant):
        monkeypatch.setattr(module, "is_single_cpu_device", lambda: True)
    _compiled.clear_cache()
    yield
    _compiled.clear_cache()
