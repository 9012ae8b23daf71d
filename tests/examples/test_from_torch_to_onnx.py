"""The example that takes PyTorch's network on: from its file, with and without ONNX."""

import sys
from pathlib import Path

import jax
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import from_torch_to_onnx as program  # noqa: E402


@pytest.fixture
def without(monkeypatch):
    """Some packages are not installed, whatever is; and JAX is as a user has it."""
    missing = set()
    found = program.installed
    monkeypatch.setattr(program, "installed", lambda name: name not in missing and found(name))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield missing.update


def run(*words):
    return program.main([str(word) for word in words])


def test_from_the_file_that_lies_beside_it(without, tmp_path, capsys):
    """Everywhere: no torch, no onnx. JAX has to give what PyTorch gave, and training has to help."""
    without(["torch", "onnx"])
    assert run("--out", tmp_path, "--steps", 40) == 0
    said = capsys.readouterr().out
    assert "JAX gives the same outputs" in said and "no model was written" in said
    before, after = (float(word) for word in said.split("not seen: ")[1].split(" after")[0].split(", and "))
    assert after < before < 0.01
    assert not list(tmp_path.iterdir())


def test_weights_that_say_something_else_are_not_taken_on(without, tmp_path, capsys):
    given = program.interop.load(program.WEIGHTS)
    given["weights.lstm.weight_hh_l0"] = given["weights.lstm.weight_hh_l0"] * 1.01
    program.interop.save(tmp_path / "other.npz", given)
    assert run("--weights", tmp_path / "other.npz", "--out", tmp_path) == 2
    assert "JAX is off PyTorch's outputs by" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (["--weights", "nowhere.npz"], "cannot read nowhere.npz: No such file"),
        (["--weights", "model.pt"], "model.pt"),
        (["--write", "out.npz"], "--write needs PyTorch"),
    ],
)
def test_mistakes_are_told_in_one_line(without, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04")
    without(["torch"])
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert said.startswith("from_torch_to_onnx: ") and message in said


def test_a_file_without_the_read_out(without, tmp_path, capsys):
    program.interop.save(tmp_path / "half.npz", {"outputs": program.sines(0)})
    assert run("--weights", tmp_path / "half.npz") == 2
    assert "has no weights.head.bias, weights.head.weight: write it with --write" in capsys.readouterr().err


@pytest.mark.peers
def test_all_the_way(without, tmp_path, capsys):
    for name in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(name, reason="the example from PyTorch to ONNX")
    assert (
        run("--torch-steps", 60, "--steps", 30, "--out", tmp_path, "--write", tmp_path / "w.safetensors") == 0
    )
    said = capsys.readouterr().out
    assert "trained in PyTorch just now" in said and "onnxruntime gives the same outputs" in said
    assert run("--weights", tmp_path / "w.safetensors", "--steps", 0, "--out", tmp_path) == 0
