"""The public names of ``lstm_jax.diagnostics`` and their arguments."""

import inspect
import subprocess
import sys

import pytest

import lstm_jax
from lstm_jax import diagnostics

PUBLIC = {
    name: value
    for name, value in vars(diagnostics).items()
    if not name.startswith("_") and not inspect.ismodule(value)
}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}


def test_what_is_public():
    expected = """
        gates Gates saturation Saturation activity Activity SLSTMGates MLSTMGates MinGRUGates MinLSTMGates
        time_constants TimeConstants memory Memory
        gradient_flow GradientFlow gradient_times_input integrated_gradients Attribution
        decomposition Decomposition
        jacobians Jacobians lyapunov_exponents Lyapunov fixed_points FixedPoints
        first_nonfinite NonFinite
    """
    assert set(PUBLIC) == set(expected.split())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_the_arguments_of_unroll(name):
    """The same kinds and defaults; every function shows an example."""
    unroll = inspect.signature(lstm_jax.unroll).parameters
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    shared = set(parameters) & set(unroll)
    assert {"cell", "params"} <= shared and ("xs" in shared or name == "fixed_points")
    for argument in shared - {"key"}:
        kind, default = unroll[argument].kind, unroll[argument].default
        assert (parameters[argument].kind, parameters[argument].default) == (kind, default)
    assert ">>> " in inspect.getdoc(FUNCTIONS[name])


def test_the_library_does_not_load_it():
    script = "import sys, lstm_jax; print('lstm_jax.diagnostics' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
