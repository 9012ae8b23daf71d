"""Files of arrays: written whole, read without running anything, refused by name and by content."""

import os
import pickle
import sys
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.interop import load, save

ARRAYS = {
    "weight_ih_l0": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # columns contiguous
    "a/b.c": np.array(2.5),
    "empty": np.zeros((0, 3), np.float16),
    "file": np.arange(3),
}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".NPZ"])
def test_there_and_back(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    save(path, ARRAYS)
    found = load(str(path))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, strict=True)
    assert os.listdir(tmp_path) == [path.name]


def test_bfloat16(tmp_path):
    values = jnp.arange(4, dtype=jnp.bfloat16)
    save(tmp_path / "w.safetensors", {"w": values})
    found = load(tmp_path / "w.safetensors")["w"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, values)
    with pytest.raises(ValueError, match=r"bfloat16.*\.safetensors"):
        save(tmp_path / "w.npz", {"w": values})
    np.savez(tmp_path / "w.npz", w=values)  # which is NumPy's two nameless bytes
    with pytest.raises(ValueError, match="safetensors"):
        load(tmp_path / "w.npz")


def test_numpy_reads_what_was_written(tmp_path):
    save(tmp_path / "w.npz", ARRAYS)
    with np.load(tmp_path / "w.npz") as archive:
        np.testing.assert_array_equal(archive["weight_ih_l0"], ARRAYS["weight_ih_l0"])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_the_whole_file_or_none_of_it(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"w{suffix}"
    save(path, {"w": np.ones(2)})
    with pytest.raises(ValueError, match="array of numbers"):
        save(path, {"w": np.zeros(2), "v": np.array([None])})

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        save(path, {"w": np.zeros(2)})
    assert os.listdir(tmp_path) == [path.name]
    np.testing.assert_array_equal(load(path)["w"], np.ones(2))


class Shout:
    """What a pickle runs when it is read."""

    def __reduce__(self):
        return os.mkdir, (os.environ["HEARD"],)


@pytest.fixture
def heard(tmp_path, monkeypatch):
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))
    yield
    assert not (tmp_path / "heard").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.PT"])
def test_files_of_torch_are_refused_with_two_lines(tmp_path, name, heard):
    (tmp_path / name).write_bytes(pickle.dumps(Shout()))
    with pytest.raises(ValueError, match="programs") as error:
        load(tmp_path / name)
    assert "weights_only=True" in str(error.value) and "w.safetensors" in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("w.keras", "load_model"),
        ("w.h5", "load_model"),
        ("w.pkl", "pickle"),
        ("w.json", "ends in"),
        ("w", "ends in"),
    ],
)
def test_other_names_are_refused(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=words):
        load(tmp_path / name)
    with pytest.raises(ValueError, match=r"ends in \.safetensors or \.npz"):
        save(tmp_path / name, {})


def test_content_that_is_not_what_its_name_says(tmp_path, heard):
    save(tmp_path / "a.npz", ARRAYS)
    save(tmp_path / "b.safetensors", ARRAYS)
    contents = {
        "is no .safetensors file but .npz": ("c.safetensors", (tmp_path / "a.npz").read_bytes()),
        "is no .npz file but .safetensors": ("c.npz", (tmp_path / "b.safetensors").read_bytes()),
        "a pickle": ("d.npz", pickle.dumps(Shout())),
        "HDF5": ("e.npz", b"\x89HDF\r\n\x1a\n" + bytes(99)),
        "is no .npz file;": ("f.npz", b""),
        "is no .safetensors file;": ("g.safetensors", b"hello, world"),
    }
    for words, (name, data) in contents.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=words):
            load(tmp_path / name)


def test_objects_within_an_archive_are_never_read(tmp_path, heard):
    np.savez(tmp_path / "w.npz", w=np.array([Shout()], dtype=object))
    with pytest.raises(ValueError, match="objects inside"):
        load(tmp_path / "w.npz")
    with zipfile.ZipFile(tmp_path / "v.npz", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Shout()))
    with pytest.raises(ValueError, match=r"data\.pkl inside"):
        load(tmp_path / "v.npz")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    save(path, ARRAYS)
    whole = path.read_bytes()
    for cut in (9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"damaged|is no"):
            load(path)
    if suffix == ".npz":  # a flipped bit, which the archive's checksum sees
        at = whole.index(np.float64(2.5).tobytes())
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            load(path)


def test_without_safetensors(tmp_path, monkeypatch):
    save(tmp_path / "w.safetensors", ARRAYS)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"lstm_jax\[interop\]"):
        load(tmp_path / "w.safetensors")
    with pytest.raises(ImportError, match=r"lstm_jax\[interop\]"):
        save(tmp_path / "v.safetensors", ARRAYS)
    save(tmp_path / "w.npz", ARRAYS)
    assert load(tmp_path / "w.npz").keys() == ARRAYS.keys()
