"""The table of cells in docs/cells.md is complete and correct, and links between pages work."""

import inspect
import re

import jax
import pytest
from code_blocks import ROOT

import lstm_jax
from lstm_jax.cells._base import BaseCell

CELLS = (ROOT / "docs" / "cells.md").read_text(encoding="utf-8")
#: Sizes for which no two formulas have equal values; n divides H.
SIZES = {"D": 5, "H": 12, "P": 7, "n": 3, "C": 4, "F": 6, "k": 15, "K": 11}


def rows():
    """(call, parallel, formula) of each cell."""
    table = CELLS.split("| Cell | Paper | Parallel | Parameters |\n")[1].split("\n\n")[0]
    for line in table.splitlines()[1:]:
        call, _, parallel, formula = (cell.strip() for cell in line.strip("|").split(" | "))
        yield call.strip("`"), parallel, formula


def value(formula):
    """The value of a formula in which adjacent letters are multiplied."""
    spelled = formula.replace("²", "**2").replace(" ", "")
    spelled = re.sub(r"(?<=[\w)])(?=[A-Za-z(])(?<!\*\*)", "*", spelled)
    return eval(spelled, {}, SIZES)


def test_formulas_are_read_as_written():
    assert value("4H(D + H/n + 1)") == 4 * 12 * (5 + 4 + 1)
    assert value("9H² + 3H") == 9 * 144 + 36
    assert value("(D + 1)(4H + 2n)") == 6 * 54
    assert value("4F(kC + kF + 1)") == 24 * (60 + 90 + 1)


@pytest.mark.parametrize(("call", "parallel", "formula"), list(rows()), ids=str)
def test_the_formula_counts_the_parameters(call, parallel, formula):
    cell = eval(call, vars(lstm_jax) | SIZES)
    params = jax.eval_shape(cell.init, jax.random.key(0))
    assert sum(a.size for a in jax.tree.leaves(params)) == value(formula)
    stateless = not jax.tree.leaves(cell.initial_carry())
    assert parallel.startswith("yes") == (cell.linear_recurrence or cell.chunks or stateless)


@pytest.mark.parametrize("page", ["README.md", "docs/cells.md", "docs/regularisation.md"])
def test_every_cell_and_regulariser_is_listed(page):
    values = vars(lstm_jax).values()
    classes = [value for value in values if inspect.isclass(value) and issubclass(value, BaseCell)]
    assert len(classes) > 15
    regularisers = {c.__name__ for c in classes if c.__module__.startswith("lstm_jax.regularizers")}
    cells = {c.__name__ for c in classes} - regularisers - {"Sharded"}
    expected = {"README.md": cells | regularisers, "docs/cells.md": cells}
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not {name for name in expected.get(page, regularisers) if not re.search(rf"`{name}\b", text)}


def results(page):
    """{program: its rows} of the tables of programs on a page."""
    found = {}
    for program, row in re.findall(r"^\| `(\w+\.py)(.*)$", (ROOT / page).read_text(encoding="utf-8"), re.M):
        found[program] = found.get(program, "") + row
    return found


def test_every_program_has_a_result():
    programs = {path.name for path in (ROOT / "examples").glob("[!_]*.py")}
    assert set(results("examples/README.md")) == programs


def test_both_tables_of_results_have_the_same_figures():
    complete = results("examples/README.md")
    for program, row in results("docs/examples.md").items():
        figures = set(re.findall(r"\d+\.\d+", row))
        assert figures <= set(re.findall(r"\d+\.\d+", complete[program])), program


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md"])
def test_links_to_files_have_a_target(page):
    """The build of the documentation checks the links between its own pages."""
    text = (ROOT / page).read_text(encoding="utf-8")
    links = {link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link}
    assert not {link for link in links if not (ROOT / page).parent.joinpath(link).exists()}
