"""The programs for users of other libraries, in the README, docs/ and examples/, run as shown."""

import doctest
import importlib
import runpy

import pytest
from code_blocks import ROOT, blocks, run_page

for package in ("flax", "haiku", "equinox", "keras", "torch", "onnxruntime", "optax"):
    pytest.importorskip(package, reason=f"the documentation's programs use {package}")

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras' own
]

PYTHON = ("python", "{code-cell}")
#: The pages with programs that the build of the documentation does not run.
PAGES = [
    page.relative_to(ROOT)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if any(block.language == "python" for block in blocks(page))
]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_the_programs_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_page(ROOT / page, lambda block: block.language in PYTHON) > 1


def test_the_pages_are_found():
    assert {page.stem for page in PAGES} == {"README", "pytorch", "keras", "haiku", "equinox", "deployment"}


def test_the_flax_quickstart_learns(capsys, default_promotion):
    runpy.run_path(str(ROOT / "examples" / "quickstart_nnx.py"), run_name="__main__")
    errors = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(errors) == 6 and errors[-1] < 0.02 < 1 / 6 < errors[0]


@pytest.mark.parametrize("module", ["_activations", "_export", "_import"])
def test_the_examples_of_the_onnx_functions_print_what_they_show(module, default_promotion):
    results = doctest.testmod(importlib.import_module(f"lstm_jax.interop.onnx.{module}"))
    assert results.failed == 0 and results.attempted >= 2
