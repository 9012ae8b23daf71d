"""The README's table of cells: every cell is there, and its formula counts its parameters."""

import inspect
import re
from pathlib import Path

import jax
import pytest

import lstm_jax

README = (Path(__file__).parents[1] / "README.md").read_text()
#: Sizes of which no two formulas agree by chance; n divides H.
SIZES = {"D": 5, "H": 12, "P": 7, "n": 3, "C": 4, "F": 6, "k": 15, "K": 11}


def rows():
    """(call, parallel, formula) of each cell."""
    table = README.split("| Cell | Paper | Parallel over time | Parameters |\n")[1].split("\n\n")[0]
    for line in table.splitlines()[1:]:
        call, _, parallel, formula = (cell.strip() for cell in line.strip("|").split(" | "))
        yield call.strip("`"), parallel, formula


def value(formula):
    """A formula as one writes it: letters beside each other are multiplied."""
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
    assert parallel.startswith("yes") == (hasattr(cell, "coefficients") or stateless)


def test_every_cell_and_regulariser_is_in_the_readme():
    kinds = [
        name
        for name, kind in vars(lstm_jax).items()
        if inspect.isclass(kind) and hasattr(kind, "init") and not getattr(kind, "_is_protocol", False)
    ]
    assert len(kinds) > 15
    missing = [name for name in kinds if f"`{name}" not in README]
    assert not missing
