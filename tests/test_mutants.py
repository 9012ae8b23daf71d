"""The table of ``tools/mutants.py`` fits the code."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_text_of_each_mutant_occurs_once():
    mutants = runpy.run_path(str(ROOT / "tools" / "mutants.py"))["MUTANTS"]
    counts = {m.name: (ROOT / m.path).read_text().count(m.before) for m in mutants}
    assert {name: count for name, count in counts.items() if count != 1} == {}
