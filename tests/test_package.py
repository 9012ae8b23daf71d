"""The package: import order, dependencies, public names and their documentation."""

import ast
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

import lstm_jax

PACKAGE = Path(lstm_jax.__file__).parent
ROOT = PACKAGE.parent

#: A module imports modules of its own row or of rows above it. A package includes all its modules.
LAYERS = [
    {"_types"},
    {"_errors", "_devices", "_random", "_fills"},
    {"cells"},
    {"unrolling"},
    {"regularizers", "networks", "experimental"},
    {"sharding"},
    {""},  # lstm_jax itself
    {"_flax", "interop", "diagnostics"},
    {"nnx", "linen", "plots"},
]
#: Optional dependencies of modules. Without it, importing the module raises an error that names it.
EXTRAS = {"lstm_jax.nnx": "flax", "lstm_jax.linen": "flax"}
MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for path in PACKAGE.rglob("*.py")
)


def layer(module):
    """The index of a module's row in ``LAYERS``."""
    package = "" if module == "__init__" else module.split(".")[0]
    found = [index for index, names in enumerate(LAYERS) if package in names]
    assert found, f"lstm_jax/{package} is in no row of LAYERS"
    return found[0]


def imports(module):
    """Modules of the library that ``module`` imports, at its top level or inside functions."""
    path = PACKAGE / (module.replace(".", "/") + ".py")
    here = ("lstm_jax." + module).split(".")
    known = {"lstm_jax." + name.removesuffix(".__init__") for name in MODULES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            source = ".".join(filter(None, [base, node.module]))
            names = []
            for alias in node.names:  # ``from package import module`` imports the module
                inner = f"{source}.{alias.name}"
                names.append(inner if inner in known else source)
        else:
            continue
        for name in names:
            if name == "lstm_jax":
                yield "__init__"
            elif name.startswith("lstm_jax."):
                yield name.removeprefix("lstm_jax.")


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_in_one_direction(module):
    wrong = [name for name in imports(module) if layer(name) > layer(module)]
    assert not wrong, f"{module} imports {wrong}, which are built upon it"


def test_imports_are_found():
    assert {"_types", "unrolling.steps", "unrolling.validation"} <= set(imports("unrolling.run"))
    assert {"_types", "cells._base"} <= set(imports("cells.lstm"))
    assert layer("cells.lstm") < layer("unrolling.run") < layer("networks.stack") < layer("__init__")


def test_no_import_cycles():
    """Any module can be imported first."""
    graph = {module: set(imports(module)) - {module} for module in MODULES if module != "__init__"}
    while graph:
        free = [module for module, needs in graph.items() if not needs & set(graph)]
        assert free, f"a circle among {sorted(graph)}"
        for module in free:
            del graph[module]


def test_importing_the_library_loads_only_jax_and_numpy():
    script = """
import sys
import jax, jax.numpy
before = {name.split(".")[0] for name in sys.modules}
import lstm_jax
print(*sorted({name.split(".")[0] for name in sys.modules} - before))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    beyond = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert beyond == {"lstm_jax"}


@pytest.mark.parametrize(("module", "extra"), EXTRAS.items())
def test_modules_that_need_an_extra_name_it(module, extra):
    """Also where it is installed: None in sys.modules makes an import fail."""
    script = f"""
import sys
sys.modules[{extra!r}] = None
try:
    import {module}
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert f'pip install "lstm_jax[{extra}]"' in done.stdout
    assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_importing_the_library_computes_nothing():
    """JAX's backends are not initialised, so XLA_FLAGS and jax.config can still be set."""
    script = """
import lstm_jax, jax
jax.config.update("jax_num_cpu_devices", 2)
assert jax.device_count("cpu") == 2
"""
    flags = [
        flag
        for flag in os.environ.get("XLA_FLAGS", "").split()
        if "xla_force_host_platform_device_count" not in flag
    ]
    env = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", script], check=True, env=env)


# --- documentation ------------------------------------------------------------------------------

PUBLIC = {
    name: value
    for name, value in vars(lstm_jax).items()
    if not name.startswith("_") and not inspect.ismodule(value)
}


def test_what_is_public():
    """The exact set, so accidental and missing exports are errors."""
    expected = """
        RNN RNNParams rnn_step LSTM LSTMParams LSTMGates lstm_step lstm_gates GRU GRUParams gru_step
        Readout ReadoutParams Stack Bidirectional BidirectionalParams unroll explain reset_carry Plan
        LayerPlan
        flatten_params unflatten_params torch_init keras_init
        Cell SplitCell NoisyCell ParallelCell implementations Implementation
        IndRNN IndRNNParams indrnn_step SLSTM SLSTMParams slstm_step MLSTM MLSTMParams mlstm_step
        ConvLSTM ConvLSTMParams conv_lstm_step LeakyRNN LeakyRNNParams leaky_rnn_step
        MinGRU MinGRUParams min_gru_step MinLSTM MinLSTMParams min_lstm_step
        FullGateLSTM FullGateLSTMParams full_gate_lstm_step greff2017
        LSTMVariant LSTMVariantParams LSTMNorm GRUVariant GRUVariantParams GRUGates
        VariationalDropout WeightDrop CandidateDropout Zoneout
        activation_regularization temporal_activation_regularization
        Sharded shard shardings Communication communication
    """
    assert set(PUBLIC) == set(expected.split())


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_explained_by_example(name):
    """Functions, cells and networks have an example; records and protocols have a docstring."""
    value = PUBLIC[name]
    doc = inspect.getdoc(value)
    assert doc and not doc.startswith(f"{name}(")  # the default docstring of a record
    runs = inspect.isfunction(value) or hasattr(value, "init")
    protocol = getattr(value, "_is_protocol", False)
    if runs and not protocol:
        assert ">>> " in doc, f"{name} shows no example"


def functions_and_classes():
    for info in pkgutil.walk_packages([str(PACKAGE)], "lstm_jax."):
        if not find_spec(EXTRAS.get(info.name, "jax")):
            continue
        module = import_module(info.name)
        yield info.name, module
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != info.name:
                continue
            if inspect.isfunction(value) or inspect.isclass(value):
                yield f"{info.name}.{name}", value
            if inspect.isclass(value):
                for method, body in vars(value).items():
                    function = body.fget if isinstance(body, property) else body
                    field = method in inspect.get_annotations(value)  # an initialiser, not a method
                    if not method.startswith("_") and not field and inspect.isfunction(function):
                        yield f"{info.name}.{name}.{method}", function


def test_everything_without_an_underscore_has_a_docstring():
    named = list(functions_and_classes())
    assert len(named) > 80
    bare = [
        name
        for name, value in named
        if not (value.__doc__ or "").strip() or value.__doc__.startswith(f"{name.rsplit('.', 1)[-1]}(")
    ]
    assert not bare


def test_networks_share_signatures():
    """``init``, ``initial_carry`` and ``step`` have the same signatures in every cell and network."""
    kinds = [value for value in PUBLIC.values() if inspect.isclass(value) and hasattr(value, "init")]
    assert len(kinds) >= 6
    for method in ("init", "initial_carry", "step"):
        for kind in kinds:
            parameters = dict(inspect.signature(getattr(kind, method)).parameters)
            if "noise" in parameters:  # optional
                assert parameters.pop("noise").default is None, kind
            assert list(parameters) == list(inspect.signature(getattr(lstm_jax.Cell, method)).parameters), (
                kind
            )


def test_explain_takes_what_unroll_takes():
    of_explain, of_unroll = (inspect.signature(f).parameters for f in (lstm_jax.explain, lstm_jax.unroll))
    assert {name: (p.kind, p.default) for name, p in of_explain.items()} == {
        name: (p.kind, p.default) for name, p in of_unroll.items()
    }


# --- packaging ----------------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == lstm_jax.__version__
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert headings, "the changelog has no version"
    assert not released or released[0] == lstm_jax.__version__


def test_jax_and_numpy_are_the_only_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert names == {"jax", "numpy"}
    least = re.search(r"jax>=([\d.]+)", " ".join(project["dependencies"]))[1]
    assert tuple(map(int, least.split("."))) <= jax.__version_info__


def test_the_types_are_shipped():
    assert (PACKAGE / "py.typed").is_file()
