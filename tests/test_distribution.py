"""The wheel and the sdist install into a clean environment, where the README's first program runs."""

import os
import subprocess
import tarfile
import venv
import zipfile

import jax
import pytest
from code_blocks import ROOT, blocks

pytestmark = pytest.mark.slow


def python(environment, *args, **options):
    """Run Python of a virtual environment, without this process's paths."""
    clean = {n: a for n, a in os.environ.items() if not n.startswith("PYTHON")}
    executable = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    return subprocess.run(
        [executable, *args], env=clean, capture_output=True, text=True, timeout=600, **options
    )


def checked(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """An environment that can build packages."""
    path = tmp_path_factory.mktemp("tools")
    venv.create(path, with_pip=True)
    checked(python(path, "-m", "pip", "install", "-q", "build"))
    return path


@pytest.fixture(scope="module")
def built(tools, tmp_path_factory):
    """The wheel and the sdist; the wheel is built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    checked(python(tools, "-m", "build", "--outdir", out, ROOT))
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def test_contents(built):
    wheel, sdist = built
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "lstm_jax").rglob("*.py")}
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    assert sources | {"lstm_jax/py.typed"} <= in_wheel
    assert {name.split("/")[0] for name in in_wheel if ".dist-info/" not in name} == {"lstm_jax"}
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    pages = {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"}
    assert sources | pages | {"Makefile", "tests/test_distribution.py"} <= in_sdist


def test_the_first_program_of_the_readme_runs_where_only_the_wheel_is_installed(built, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    here = tmp_path / "elsewhere"
    here.mkdir()
    checked(python(tmp_path / "venv", "-m", "pip", "install", "-q", built[0], f"jax=={jax.__version__}"))
    installed = checked(
        python(tmp_path / "venv", "-c", "import lstm_jax; print(lstm_jax.__file__)", cwd=here)
    )
    assert installed.startswith(str(tmp_path))
    checked(python(tmp_path / "venv", "-m", "pip", "install", "-q", "optax"))
    first, shown = first_program()
    printed = checked(python(tmp_path / "venv", "-c", first, cwd=here))
    assert [line.split("loss")[0] for line in printed.splitlines()] == [
        line.split("loss")[0] for line in shown.splitlines()
    ]
    assert float(printed.split()[-1]) < 0.05


def first_program():
    """The README's first Python block and the output that it shows."""
    found = list(blocks(ROOT / "README.md"))
    index = next(i for i, block in enumerate(found) if block.language == "python")
    return found[index].text, found[index + 1].text
