"""Fixtures of the example programs. The program of a test file is its global variable ``program``."""

import jax
import pytest
from training_runs import outcome, run


@pytest.fixture(scope="module", autouse=True)
def jax_defaults():
    """JAX's default promotion rules, which optax needs."""
    pytest.importorskip("optax", reason="the programs train with optax")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def finished(request, arguments, tmp_path_factory):
    """The run folder of one run, with the arguments that the test file's fixture ``arguments`` returns."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(request.module.program, *arguments, "--out", folder) == 0
    return folder


@pytest.fixture(scope="module")
def whole(finished):
    """The outcome of an uninterrupted run."""
    return outcome(finished)


@pytest.fixture(scope="module")
def no_plots(request, jax_defaults):
    """No learning curve, because drawing is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request.module.program.plots, "learning_curve", lambda *args, **more: None)
        yield


@pytest.fixture
def fails(request, capsys):
    """``fails(*arguments)`` runs the program, which must print one line and return 2. It returns the line."""
    program = request.module.program

    def fails(*arguments):
        capsys.readouterr()
        assert run(program, *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{program.make_parser().prog}: ") and error.count("\n") == 1
        return error

    return fails
