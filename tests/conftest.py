"""Settings for all tests: four devices (or TEST_DEVICES), no implicit promotion, deterministic examples."""

import os
from importlib.metadata import version

# Set before jax creates its devices, and appended to the flags of the caller. Tests run small programs, so
# compilation takes most of the time. With jax 0.10, XLA's fusion emitters and most passes of LLVM are left
# out, which takes a quarter of the time. `make test-latest` compiles the same tests as for users.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        f"--xla_force_host_platform_device_count={os.environ.get('TEST_DEVICES', 4)}",
        "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false"
        if version("jaxlib").startswith("0.10.")
        else "",
    ]
)

import gc
import itertools
from pathlib import Path

import hypothesis
import jax
import pytest

from lstm_jax.unrolling.kernels import select

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", version("jaxlib").startswith("0.10."))

hypothesis.settings.register_profile(
    "everyday",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    # All examples of a test may share the fixture x64.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("everyday")


def pytest_addoption(parser):
    """``--device`` names a device whose implementations must run."""
    parser.addoption("--device", choices=("gpu", "tpu"), help="the device that tests are expected to find")


#: A Linux process has at most 65,530 memory maps. Each compiled program uses some, and XLA crashes if none is
#: left, which happens after hundreds of tests.
MAPS = Path("/proc/self/maps")
MAX_MAPS = 30_000
TESTS = itertools.count(1)


def pytest_collection_finish():
    """Collect garbage less often: modules and tests are never freed, and tracing makes many objects."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_runtest_teardown():
    """Delete the compiled programs before there are too many. Counting is slow, so not every test does it."""
    if next(TESTS) % 5 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MAX_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64():
    """Float64 for one test: ``pytestmark = pytest.mark.usefixtures("x64")`` for a whole file."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def accelerator(monkeypatch):
    """``auto`` chooses as on an accelerator, where the associative scan is preferred."""
    from lstm_jax.unrolling import registry
    from lstm_jax.unrolling.api import _compiled

    monkeypatch.setattr(registry, "slower_than_a_loop", lambda: None)
    _compiled.clear_cache()
    yield
    _compiled.clear_cache()


@pytest.fixture
def reference():
    """``implementation="pallas"`` runs the plain JAX functions that replace the kernels."""
    with select.interpret("reference"):
        yield


@pytest.fixture
def interpreted():
    """``implementation="pallas"`` runs the TPU kernels in Pallas' interpreter."""
    with select.interpret("tpu"):
        yield
