"""The programs of the README run and print what it shows; its table is that of the benchmark."""

import contextlib
import io
import re
import runpy

import jax
import numpy as np
import pytest
from code_blocks import ROOT, blocks, run

README = ROOT / "README.md"
NUMBER = re.compile(r"\d+\.\d+")


def assert_printed(printed, expected):
    """Equal up to the digits of floats, which depend on the machine."""
    assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", expected).split()
    floats = [np.array(NUMBER.findall(text), float) for text in (printed, expected)]
    np.testing.assert_allclose(*floats, rtol=0.1, atol=0.05)


def run_page(page, wanted):
    """Run the wanted Python blocks one after the other, and compare their output with the block below each."""
    names, ran, everything = {}, 0, list(blocks(page))
    # Readers have JAX's own settings; conftest.py makes the tests' stricter.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block, following in zip(everything, [*everything[1:], None], strict=True):
            if block.language == "python" and wanted(block):
                with contextlib.redirect_stdout(io.StringIO()) as output:
                    run(page, block, names)
                assert_printed(output.getvalue(), following.text)
                ran += 1
    return ran


def test_the_programs_run_and_print_what_is_shown():
    assert run_page(README, lambda block: "flax" not in block.text) == 3


def test_the_flax_program_runs():
    pytest.importorskip("flax", reason="the extra flax is not installed")
    assert run_page(README, lambda block: True) == 4


def test_a_wrong_output_is_noticed():
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
    results = (ROOT / name).read_text(encoding="utf-8").split("**forward+backward**: our median")[1]
    measured = {row["B,T,D,H"]: row for row in next(tables(results))}
    (shown,) = [table for table in tables(page) if "B,T,D,H" in table[0]]
    assert len(shown) >= 5
    for row in shown:
        assert row == {column: measured[row["B,T,D,H"]][column] for column in row}
    for mode, other in (("forward+backward", "torch"), ("forward", "torch"), ("forward", "plain scan")):
        mean = re.search(rf"time, ours / {other}, {re.escape(mode)}: (\S+)", results)
        assert mean and mean[1] in page


@pytest.mark.parametrize("program", ["quickstart", "quickstart_nnx"])
def test_quickstarts_learn(program, capsys):
    if program == "quickstart_nnx":
        pytest.importorskip("flax", reason="the extra flax is not installed")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(ROOT / "examples" / f"{program}.py"), run_name="__main__")
    errors = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(errors) == 6 and errors[-1] < 0.02 < 1 / 6 < errors[0]
