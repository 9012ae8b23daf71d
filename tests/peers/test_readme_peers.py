"""The README's programs for users of other libraries run as they stand there."""

import re
from pathlib import Path

import jax
import pytest

pytest.importorskip("flax", reason="the README's Flax models")
pytest.importorskip("haiku", reason="the README's Haiku module")
pytest.importorskip("equinox", reason="the README's Equinox module")

pytest.importorskip("onnxruntime", reason="the README's ONNX model")

pytestmark = pytest.mark.peers

README = (Path(__file__).parents[2] / "README.md").read_text()
#: Python without prompts: what the everyday run does not execute.
PROGRAMS = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if ">>>" not in block]


def test_the_programs_of_the_readme_run(tmp_path, monkeypatch, capsys):
    """One after the other, as a reader would, with what came before at hand."""
    monkeypatch.chdir(tmp_path)
    assert len(PROGRAMS) >= 6
    names = {}
    # Readers have JAX's own settings; conftest.py makes ours stricter.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for program in PROGRAMS:
            exec(compile(program, "README.md", "exec"), names)
    said = capsys.readouterr().out
    assert "(4, 100, 8)" in said and "(4, 100, 16)" in said
    assert names["value"] > 0 and names["ys"].shape
