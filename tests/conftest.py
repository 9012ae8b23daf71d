"""What holds for all tests: four devices, no implicit promotion, the same examples at every run."""

import os

# Before jax makes its devices. Appended, so that what the caller asks for stays.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import contextlib
import gc
import itertools
from pathlib import Path

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "everyday",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    # The fixture x64 is a switch: it does not matter that all examples share it.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("everyday")


def pytest_addoption(parser):
    """With it, what belongs on that device and cannot run is a failure (unrolling/test_registry.py)."""
    parser.addoption("--device", choices=("gpu", "tpu"), help="the device that tests are expected to find")


#: Pieces of memory that a process of Linux has at most are 65,530. Each compiled program takes some, and XLA
#: crashes when there are no more: a process that runs hundreds of tests gets there.
MAPS = Path("/proc/self/maps")
MOST_MAPS = 30_000
TESTS = itertools.count(1)


def pytest_runtest_teardown():
    """Forget the compiled programs before they are too many. Counting takes a while: not after each test."""
    if next(TESTS) % 5 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64():
    """Float64 for one test: ``pytestmark = pytest.mark.usefixtures("x64")`` for a whole file."""
    with jax.enable_x64(True):
        yield


@contextlib.contextmanager
def hardly_optimized():
    """For many small programs whose speed does not matter: compiling takes most of the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def quick_compiles():
    """Of one test."""
    with hardly_optimized():
        yield
