"""from_torch_to_onnx.py: from its file of weights, with and without the optional packages."""

import from_torch_to_onnx as program
import pytest
from training_runs import run


@pytest.fixture
def without(monkeypatch):
    """``without(names)`` hides packages, as if they were not installed."""
    missing = set()
    installed = program.installed
    monkeypatch.setattr(program, "installed", lambda name: name not in missing and installed(name))
    return missing.update


def test_without_torch_and_onnx(without, tmp_path, capsys):
    """The outputs agree with the file's, and training decreases the error."""
    without(["torch", "onnx"])
    assert run(program, "--out", tmp_path, "--steps", 40) == 0
    printed = capsys.readouterr().out
    assert "JAX differ by at most" in printed and "No ONNX model is written" in printed
    errors = printed.split("unseen sines: ")[1].splitlines()[0]
    before, after = float(errors.split(";")[0]), float(errors.split(": ")[1])
    assert after < before < 0.01
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_the_outputs(fails, tmp_path):
    given = program.interop.load(program.WEIGHTS)
    given["weights.lstm.weight_hh_l0"] = given["weights.lstm.weight_hh_l0"] * 1.01
    program.interop.save(tmp_path / "other.npz", given)
    assert "JAX differ by" in fails("--weights", tmp_path / "other.npz", "--out", tmp_path)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--weights", "nowhere.npz"], "cannot read nowhere.npz: No such file"),
        (["--write", "out.npz"], "--write needs PyTorch"),
    ],
)
def test_errors(without, fails, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    without(["torch"])
    assert message in fails(*words)


def test_a_pickle_file(tmp_path, capsys):
    """The library's error has several lines, because it contains a script that converts the file."""
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04")
    assert run(program, "--weights", tmp_path / "model.pt") == 2
    assert "model.pt" in capsys.readouterr().err


def test_a_file_without_the_readout(fails, tmp_path):
    program.interop.save(tmp_path / "half.npz", {"outputs": program.sines(0)})
    assert "has no weights.head.bias, weights.head.weight" in fails("--weights", tmp_path / "half.npz")


@pytest.mark.peers
def test_all_steps(tmp_path, capsys):
    for name in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(name, reason="the example from PyTorch to ONNX")
    written = tmp_path / "w.safetensors"
    assert run(program, "--torch-steps", 60, "--steps", 30, "--out", tmp_path, "--write", written) == 0
    printed = capsys.readouterr().out
    assert "PyTorch (trained in PyTorch in this run) and JAX differ by at most" in printed
    assert "JAX and onnxruntime" in printed
    assert run(program, "--weights", written, "--steps", 0, "--out", tmp_path) == 0
