"""Files of arrays: atomic writes, reads that execute nothing, errors for wrong names and damaged content.

The fuzz tests are seeded; ``make test-slow`` runs more rounds of them.
"""

import errno
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax
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
    np.savez(tmp_path / "w.npz", w=values)  # NumPy reads it as two bytes without a type
    with pytest.raises(ValueError, match="safetensors"):
        load(tmp_path / "w.npz")


def test_numpy_reads_what_was_written(tmp_path):
    save(tmp_path / "w.npz", ARRAYS)
    with np.load(tmp_path / "w.npz") as archive:
        np.testing.assert_array_equal(archive["weight_ih_l0"], ARRAYS["weight_ih_l0"])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_writes_are_atomic(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"w{suffix}"
    save(path, {"w": np.ones(2)})
    with pytest.raises(ValueError, match="array of numbers"):
        save(path, {"w": np.zeros(2), "v": np.array([None])})

    def fail(*_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        save(path, {"w": np.zeros(2)})
    assert os.listdir(tmp_path) == [path.name]
    np.testing.assert_array_equal(load(path)["w"], np.ones(2))


class MakesFolder:
    """An object that makes a folder when its pickle is read."""

    def __reduce__(self):
        return os.mkdir, (os.environ["FOLDER"],)


@pytest.fixture
def nothing_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("FOLDER", str(tmp_path / "made"))
    yield
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "w.PT"])
def test_pytorch_files_raise_with_the_lines_that_convert_them(tmp_path, name, nothing_runs):
    (tmp_path / name).write_bytes(pickle.dumps(MakesFolder()))
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
def test_other_suffixes_raise(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=words):
        load(tmp_path / name)
    with pytest.raises(ValueError, match=r"ends in \.safetensors or \.npz"):
        save(tmp_path / name, {})


def test_content_that_is_not_what_its_name_says(tmp_path, nothing_runs):
    save(tmp_path / "a.npz", ARRAYS)
    save(tmp_path / "b.safetensors", ARRAYS)
    contents = {
        "is no .safetensors file but .npz": ("c.safetensors", (tmp_path / "a.npz").read_bytes()),
        "is no .npz file but .safetensors": ("c.npz", (tmp_path / "b.safetensors").read_bytes()),
        "a pickle": ("d.npz", pickle.dumps(MakesFolder())),
        "HDF5": ("e.npz", b"\x89HDF\r\n\x1a\n" + bytes(99)),
        "is no .npz file;": ("f.npz", b""),
        "is no .safetensors file;": ("g.safetensors", b"hello, world"),
    }
    for words, (name, data) in contents.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=words):
            load(tmp_path / name)


def test_objects_within_an_archive_are_never_read(tmp_path, nothing_runs):
    np.savez(tmp_path / "w.npz", w=np.array([MakesFolder()], dtype=object))
    with pytest.raises(ValueError, match="objects inside"):
        load(tmp_path / "w.npz")
    with zipfile.ZipFile(tmp_path / "v.npz", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(MakesFolder()))
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
    if suffix == ".npz":  # the archive's checksum detects a flipped bit
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


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_parameters_of_a_network(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    network = lstm_jax.Stack((lstm_jax.Bidirectional(lstm_jax.GRU(3, 4)), lstm_jax.MLSTM(8, 6, heads=2)))
    params = network.init(jax.random.key(0))
    save(path, params)
    assert "0.backward.bias_hn" in load(path)
    for like in (network, params):
        again = load(path, like=like)
        assert jax.tree.structure(again) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, again, params)
    with pytest.raises(ValueError, match="do not fit"):
        load(path, like=lstm_jax.LSTM(3, 4))


# --- what cannot be read back equal is not written -----------------------------------------------


def endless_mapping():
    arrays = {}
    arrays["a"] = arrays
    return arrays


class FailingMapping(Mapping):
    def __getitem__(self, name):
        raise LookupError(name)

    def __iter__(self):
        return iter(["a"])

    def __len__(self):
        return 1


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    "arrays",
    [
        {"a": np.ones(2, np.complex64)},
        {"a": np.ones(2, np.longdouble)},
        {"a": np.ones(2, jnp.float8_e4m3fn)},
        {"a": np.array(["text"])},
        {"a": [1.0, 2.0]},
        {"a": None},
        {"a": 3},
        {1: np.ones(2), "1": np.zeros(2)},
        {"a\0b": np.ones(2)},
        {"a" * 70_000: np.ones(2)},
        {"\ud800": np.ones(2)},
        {"a.b": np.ones(2), "a": {"b": np.zeros(2)}},
        {"a": {1: np.ones(2), "1": np.zeros(2)}},
        {"a": {"b": None}},
        {"a": np.ma.masked_array(np.ones(2), [True, False])},
        endless_mapping(),
        FailingMapping(),
    ],
    ids=lambda arrays: repr(arrays)[:30],
)
def test_what_cannot_be_written(tmp_path, suffix, arrays):
    with pytest.raises(ValueError) as error:
        save(tmp_path / f"w{suffix}", arrays)
    assert len(str(error.value)) < 1000
    assert not os.listdir(tmp_path)


def test_names_that_one_format_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match=r"a\.npy"):  # NumPy's own reader would find "a"
        save(tmp_path / "w.npz", {"a": np.ones(2), "a.npy": np.zeros(2)})
    with pytest.raises(ValueError, match="__metadata__"):
        save(tmp_path / "w.safetensors", {"__metadata__": np.ones(2)})
    save(tmp_path / "w.npz", {"__metadata__": np.ones(2)})
    save(tmp_path / "w.safetensors", {"a.npy": np.ones(2)})
    assert list(load(tmp_path / "w.npz")) == ["__metadata__"]
    assert list(load(tmp_path / "w.safetensors")) == ["a.npy"]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_odd_names_and_byte_orders(tmp_path, suffix):
    arrays = {
        "": np.arange(3),
        "ü/../x\\y": np.arange(3, dtype=">f4"),
        "a b\n": np.asfortranarray(np.ones((2, 3))),
    }
    save(tmp_path / f"w{suffix}", arrays)
    found = load(tmp_path / f"w{suffix}")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_equal_arrays_make_equal_bytes(tmp_path, suffix, monkeypatch):
    save(tmp_path / f"a{suffix}", ARRAYS)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    save(tmp_path / f"b{suffix}", dict(reversed(ARRAYS.items())))
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


# --- crafted files -------------------------------------------------------------------------------


def npy(header, data=b"", version=(1, 0)):
    """An entry of an array with the given header."""
    text = header.encode()
    return (
        b"\x93NUMPY"
        + bytes(version)
        + len(text).to_bytes(2 if version == (1, 0) else 4, "little")
        + text
        + data
    )


def archive(path, entries, **options):
    """An archive with the given (name, bytes)."""
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in entries:
            file.writestr(name, data)


def declaring(entry, compressed):
    """An archive whose only entry declares the size of ``entry``; ``compressed`` may inflate to more."""
    with zipfile.ZipFile(buffer := BytesIO(), "w") as file:
        file.writestr("a.npy", compressed)
    data = bytearray(buffer.getvalue())
    for at in (8, data.index(b"PK\x01\x02") + 10):  # the method, the time, the checksum, both sizes
        struct.pack_into("<HIIII", data, at, 8, 0, zlib.crc32(entry), len(compressed), len(entry))
    return bytes(data)


HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s,), }\n"
FLOATS = npy(HUGE % 2, np.ones(2).tobytes())


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (npy(HUGE % 6_250_000_000), "as many bytes"),  # 50 GB
        (npy(HUGE % (2**70)), "as many bytes"),
        (npy(HUGE % -2), "damaged|as many bytes"),
        (npy(HUGE % "10**9"), "damaged"),
        (npy(HUGE % 2, bytes(17)), "as many bytes"),
        (npy("{'descr': '<f8', 'shape': (2,)}\n"), "damaged"),
        (npy("(" * 5000), "damaged"),
        (npy("\xff" * 40), "damaged"),
        (npy("{'descr': 'ß', 'fortran_order': False, 'shape': (), }"), "damaged"),
        (npy("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (), }", bytes(8)), "array of numbers"),
        (
            npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (), }", bytes(8)),
            "numbers|damaged",
        ),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (), }", bytes(8)), "objects"),
        (npy("{'descr': '<c8', 'fortran_order': False, 'shape': (), }", bytes(8)), "array of numbers"),
        (npy(HUGE % 2, bytes(16), (3, 0)), "version"),
        (npy(HUGE % 2, bytes(16), (9, 9)), "damaged|version"),
        (b"", "damaged"),
    ],
)
def test_crafted_arrays(tmp_path, entry, words):
    archive(tmp_path / "w.npz", [("a.npy", entry)])
    with pytest.raises(ValueError, match=words) as error:
        load(tmp_path / "w.npz")
    assert "w.npz" in str(error.value) and len(str(error.value)) < 1000


def test_crafted_archives(tmp_path):
    path = tmp_path / "w.npz"
    with pytest.warns(UserWarning, match="Duplicate"):
        archive(path, [("a.npy", FLOATS), ("a.npy", FLOATS)])
    with pytest.raises(ValueError, match=r"a\.npy twice"):
        load(path)
    zeros = npy(HUGE % 2**27, bytes(2**30))  # a megabyte on disk
    archive(path, [("a.npy", zeros)], compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="the limit for compressed archives"):
        load(path)
    archive(path, [("a.npy", FLOATS)], compression=zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match="stored or deflated"):
        load(path)
    archive(path, [("a.npy", FLOATS)])
    whole = bytearray(path.read_bytes())
    for at in (6, whole.index(b"PK\x01\x02") + 8):  # the flag of an encrypted entry
        whole[at] |= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="encrypted"):
        load(path)
    archive(path, [(f"{'x' * 100}{index}", b"") for index in range(5000)])
    with pytest.raises(ValueError, match="and 4994 more") as error:
        load(path)
    assert len(str(error.value)) < 1000
    archive(path, [("a.npy", FLOATS)], compression=zipfile.ZIP_DEFLATED)
    assert load(path)["a"].tolist() == [1.0, 1.0]


def test_an_entry_inflates_to_its_declared_size_only(tmp_path):
    deflate = zlib.compressobj(wbits=-15)
    compressed = deflate.compress(FLOATS + bytes(2**26)) + deflate.flush()
    (tmp_path / "w.npz").write_bytes(declaring(FLOATS, compressed))
    tracemalloc.start()
    try:
        load(tmp_path / "w.npz")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def safetensors_file(header, data=b""):
    """A safetensors file with the given header."""
    text = header if isinstance(header, bytes) else header.encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[12500000000],"data_offsets":[0,50000000000]}}',
        '{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}',
        '{"a":' + "[" * 100_000,
        b'{"a\xff":1}',
        "{}",
        '{"a":1e999}',
    ],
    ids=lambda header: header[:40],
)
def test_crafted_safetensors(tmp_path, header):
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors_file(header, bytes(4)))
    with pytest.raises(ValueError) as error:
        load(path)
    assert "w.safetensors" in str(error.value) and len(str(error.value)) < 1000


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "w.npz")
    with pytest.raises(ValueError, match="a device or a pipe"):
        load(tmp_path / "w.npz")
    os.symlink("/dev/zero", tmp_path / "z.npz")
    with pytest.raises(ValueError, match="a device or a pipe"):
        load(tmp_path / "z.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(IsADirectoryError):
        load(tmp_path / "folder.npz")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing.npz")
    save(tmp_path / "target.npz", ARRAYS)
    os.symlink(tmp_path / "target.npz", tmp_path / "link.npz")
    assert load(tmp_path / "link.npz").keys() == ARRAYS.keys()


def mutated(data, rng):
    """Data with some bytes changed, removed, doubled or moved."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at, kind = int(rng.integers(len(data))), rng.integers(4)
        length = int(rng.integers(1, 20))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + length] = rng.bytes(length)
        elif kind == 2:
            del data[at : at + length]
        else:
            data[at:at] = data[int(rng.integers(len(data))) :][:length]
    return bytes(data)


def sources(tmp_path):
    """Small valid files in both formats, with and without compression."""
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3)}
    save(tmp_path / "a.npz", arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    save(tmp_path / "c.safetensors", arrays)
    return [(path.suffix, path.read_bytes()) for path in sorted(tmp_path.iterdir())]


@pytest.mark.parametrize("rounds", [400, pytest.param(8000, marks=pytest.mark.slow)])
def test_mutated_files_load_or_raise_one_error(tmp_path, rounds):
    rng = np.random.default_rng(rounds)
    files = sources(tmp_path)
    raised = 0
    for index in range(rounds):
        suffix, data = files[index % len(files)]
        path = tmp_path / f"mutated{suffix}"
        path.write_bytes(mutated(data, rng))
        try:
            found = load(path)
        except ValueError as error:  # no other exception
            raised += 1
            assert path.name in str(error) and len(str(error)) < 1000
        else:
            assert sum(array.nbytes for array in found.values()) < 2**20
    assert raised > rounds // 2


# --- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_concurrent_saves_all_succeed(tmp_path, suffix):
    errors = []

    def write(value):
        try:
            for _ in range(25):
                save(tmp_path / f"w{suffix}", {"w": np.full(100, value)})
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(float(k),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert os.listdir(tmp_path) == [f"w{suffix}"]
    assert len(set(load(tmp_path / f"w{suffix}")["w"])) == 1


WRITER = """
import sys
from pathlib import Path
from lstm_jax.interop._writing import write_whole
print("ready", flush=True)
while True:
    write_whole(Path(sys.argv[1]), bytes(10_000_000))
"""


@pytest.mark.slow
def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    path = tmp_path / "w.npz"
    for wait in (0.05, 0.06, 0.07, 0.08):
        child = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(wait)
        child.kill()
        child.wait()
        child.stdout.close()
        assert len(os.listdir(tmp_path)) <= 2
    leftover = tmp_path / f".w.npz.{'0' * 16}.tmp"  # at least one leftover
    leftover.write_bytes(b"half")
    other = tmp_path / ".w.npz.keep"
    other.write_bytes(b"kept")
    save(path, ARRAYS)
    assert sorted(os.listdir(tmp_path)) == [other.name, path.name]
    assert load(path).keys() == ARRAYS.keys()


def test_temporary_files_of_running_processes_remain(tmp_path):
    import fcntl

    living = tmp_path / f".w.npz.{'a' * 16}.tmp"
    with open(living, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        save(tmp_path / "w.npz", ARRAYS)
        assert living.exists()


def test_permissions_are_the_usual_ones(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path / "w.npz", ARRAYS)
    finally:
        os.umask(before)
    assert (tmp_path / "w.npz").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["missing/w.npz", "folder.npz"])
def test_errors_of_writing_name_the_file(tmp_path, name):
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(OSError) as error:
        save(tmp_path / name, {"w": np.ones(2)})
    assert error.value.filename == str(tmp_path / name)
    assert os.listdir(tmp_path) == ["folder.npz"]


def test_a_file_larger_than_memory(tmp_path, monkeypatch):
    def fail(path):
        raise MemoryError

    save(tmp_path / "w.npz", {"w": np.ones(2)})
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"w\.npz of \d+ bytes.*memory"):
        patch.setattr(type(tmp_path), "read_bytes", fail)
        load(tmp_path / "w.npz")


def test_a_full_disk_changes_nothing(tmp_path, monkeypatch):
    import resource
    import signal

    path = tmp_path / "w.npz"
    save(path, {"w": np.ones(2)})
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(path, {"w": np.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == ["w.npz"]
    assert load(path)["w"].tolist() == [1.0, 1.0]
