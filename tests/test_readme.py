"""The programs of the README print the output that it shows, and its table has the benchmark's results."""

import re
import runpy

import jax
import pytest
from code_blocks import ROOT, assert_printed, run_page

README = ROOT / "README.md"


@pytest.mark.slow
def test_the_programs_run_and_print_what_is_shown():
    assert run_page(README, lambda block: block.language == "python" and "flax" not in block.text) == 3


@pytest.mark.slow
def test_the_quickstart_learns(capsys):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(ROOT / "examples" / "quickstart.py"), run_name="__main__")
    errors = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(errors) == 6 and errors[-1] < 0.02 < 1 / 6 < errors[0]


def test_a_wrong_output_is_noticed():
    assert_printed("loss 0.099\n", "loss 0.100")
    for wrong in ("loss 0.200", "loss 0.100 0.100", "step 0.100"):
        with pytest.raises(AssertionError):
            assert_printed(wrong, "loss 0.100")


def tables(markdown):
    """The tables of a page: for each the rows, as dicts of column to cell."""
    for table in re.findall(r"(?:^\|.*\n)+", markdown + "\n", re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
        yield [dict(zip(head, row, strict=True)) for row in rows]


def test_the_speeds_are_those_of_the_run_that_the_readme_names():
    page = README.read_text(encoding="utf-8")
    (name,) = set(re.findall(r"benchmarks/results/cpu[\w.-]+\.md", page))
    results = (ROOT / name).read_text(encoding="utf-8").split("**forward+backward**: median of lstm_jax")[1]
    measured = {row["B,T,D,H"]: row for row in next(tables(results))}
    (shown,) = [table for table in tables(page) if "B,T,D,H" in table[0]]
    assert len(shown) >= 5
    for row in shown:
        assert row == {column: measured[row["B,T,D,H"]][column] for column in row}
    for what in ("lstm_jax / torch", "lstm_jax / plain scan", "best other JAX library / lstm_jax"):
        for mode in ("forward", "forward+backward") if what.startswith("lstm_jax") else ("forward+backward",):
            mean = re.search(rf"time, {what}, {re.escape(mode)}: (\S+)", results)
            assert mean and mean[1] in page
