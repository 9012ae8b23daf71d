"""Files of named arrays: safetensors and NumPy archives. Reading them executes nothing."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import listing, shorten, value_error
from lstm_jax.cells._named import flatten_params, unflatten_params
from lstm_jax.interop._entries import flatten_mapping
from lstm_jax.interop._writing import write_whole

_SAFE = """\
import torch, safetensors.torch
safetensors.torch.save_file(torch.load({path!r}, weights_only=True), {new!r})"""
_KERAS = """\
model = keras.saving.load_model({path!r})
numpy.savez({new!r}, **{{w.path: w.numpy() for w in model.get_layer(name).weights}})"""
#: File formats that can contain programs, and the code that converts a trusted file to another format.
_OTHER_KINDS = {
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), (_SAFE, ".safetensors")),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), (_KERAS, ".npz")),
}
_RUNS = "may hold programs, which reading it would run"
_DAMAGED = "Write the file again from its source."
#: The dtypes of both formats by their names in safetensors; NumPy archives have all but bfloat16.
_DTYPES = {
    **{name: np.dtype(kind) for name, kind in (("BOOL", "?"), ("F16", "f2"), ("F32", "f4"), ("F64", "f8"))},
    **{
        f"{letter.upper()}{8 * size}": np.dtype(f"{letter}{size}") for letter in "iu" for size in (1, 2, 4, 8)
    },
    "BF16": np.dtype(jnp.bfloat16),
}
_DTYPES_TEXT = "bool, integers, float16, float32, float64, and bfloat16 in .safetensors"
#: The longest name of an array, in bytes of UTF-8.
MAX_NAME = 4096
#: The arrays of a compressed archive may take this many times the size of the file, plus 16 MiB.
MAX_INFLATION = 64


def load(path: str | os.PathLike[str], like: Any = None) -> Any:
    """The arrays of a ``.safetensors`` file or of a NumPy archive ``.npz``, or parameters made of them.

    Neither format can contain a program, and nothing in a file is executed. Archives with pickled objects
    and files in other formats raise an error; for some formats it contains the code that converts them. Sizes
    that a file declares are checked before memory is reserved. The arrays of a compressed archive may take 64
    times the size of the file plus 16 MiB.

    Args:
        path: a regular file whose name ends in ``.safetensors`` or ``.npz`` and whose content agrees.
        like: a cell or network, or parameters of it; None: return a dict of arrays.

    Returns:
        Without ``like``, ``{name: NumPy array}`` in the file's dtypes; with it, parameters of JAX arrays
        (:func:`lstm_jax.unflatten_params`).

    Raises:
        ValueError: the file has another format, is damaged, or contains anything but arrays of numbers; or
            its arrays are not those of ``like``.
        OSError: the file cannot be read.
        ImportError: a ``.safetensors`` file without the package ``safetensors``
            (``pip install 'lstm_jax[interop]'``).

    >>> import jax, lstm_jax, tempfile
    >>> cell = lstm_jax.LSTM(3, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(folder + "/weights.npz", cell.init(jax.random.key(0)))
    ...     print({name: array.shape for name, array in load(folder + "/weights.npz").items()})
    ...     type(load(folder + "/weights.npz", like=cell)).__name__
    {'w_ih': (3, 8), 'w_hh': (2, 8), 'bias': (8,)}
    'LSTMParams'
    """
    path = Path(path)
    suffix = _suffix("load", path)
    if not stat.S_ISREG(os.stat(path).st_mode) and not path.is_dir():  # reading a folder is an OSError
        raise value_error(f"load got {path.name}, which is a device or a pipe", "a regular file", "Copy it.")
    try:
        data = path.read_bytes()
    except MemoryError:
        got = f"load got {path.name} of {path.stat().st_size:,} bytes"
        raise value_error(got, "a file that fits into memory", "Load it on a larger machine.") from None
    found = _format_of(data)
    if found != suffix:
        raise value_error(
            f"load got {path.name}, which is no {suffix} file"
            + (f" but {found}" if found is not None else ""),
            "content in the format that the name gives",
            f"Rename it to end in {found}." if found in (".npz", ".safetensors") else _DAMAGED,
        )
    arrays = (_read_npz if suffix == ".npz" else _read_safetensors)(path.name, data)
    return arrays if like is None else unflatten_params(like, arrays)


def save(path: str | os.PathLike[str], arrays: Any) -> None:
    """Write parameters, or arrays by name, into a ``.safetensors`` file or a NumPy archive ``.npz``.

    The write is atomic: an older file of that name is replaced at once. Equal arrays make equal bytes. Arrays
    that could not be read back equal are an error.

    Args:
        path: where to write; the end of the name decides the format.
        arrays: the parameters of a cell or network, whose names are those of
            :func:`lstm_jax.flatten_params`; or a mapping of names to arrays of numbers, as
            :func:`lstm_jax.interop.to_torch` returns it.

    Raises:
        ValueError: another ending, an entry that is no array of numbers, a dtype other than bool, integers,
            float16, float32, float64 and (in safetensors) bfloat16, or a name that the format cannot hold.
        OSError: the file cannot be written; nothing has changed then.
        ImportError: a ``.safetensors`` file without the package ``safetensors``
            (``pip install 'lstm_jax[interop]'``).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(folder + "/weights.npz", {"kernel": np.ones((2, 3))})
    ...     os.listdir(folder)
    ['weights.npz']
    """
    path = Path(path)
    suffix = _suffix("save", path)
    if isinstance(arrays, Mapping):
        arrays, names = flatten_mapping("save", arrays, "."), arrays
        unexpected = [repr(name) for name in names if not isinstance(name, str)]
        if unexpected:
            raise value_error(f"save got the names {listing(unexpected)}", "strings", "Use str(name).")
        empty = [name for name, value in arrays.items() if value is None]
        if empty:
            raise value_error(f"save got None as {listing(empty)}", "an array", "Leave it out.")
    checked = {name: _writable(name, value, suffix) for name, value in flatten_params(arrays).items()}
    write_whole(path, _npz(checked) if suffix == ".npz" else _safetensors("save").numpy.save(checked))


def _suffix(owner: str, path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in (".safetensors", ".npz"):
        return suffix
    got, expected = f"{owner} got {path.name}", "a name that ends in .safetensors or .npz"
    if owner == "load" and suffix in _OTHER_KINDS:
        lines, ending = _OTHER_KINDS[suffix]
        lines = lines.format(path=path.name, new=path.with_suffix(ending).name)
        raise value_error(
            f"{got}, which {_RUNS}", expected, f"If you trust it, convert it once:\n\n{lines}\n"
        )
    if owner == "load" and suffix in (".pkl", ".pickle", ".joblib"):
        raise value_error(
            f"{got}, which {_RUNS} (pickle)",
            expected,
            "If you trust it, unpickle it yourself and save the arrays.",
        )
    raise value_error(got, expected, "Choose .safetensors where there are bfloat16 arrays.")


def _format_of(data: bytes) -> str | None:
    """The format of a file by its first bytes."""
    if len(data) > 8 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        return ".safetensors"
    if data[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return ".npz"
    if data[:1] == b"\x80":
        return "a pickle"
    if data[:8] == b"\x89HDF\r\n\x1a\n":
        return "HDF5"
    if data[:6] == b"\x93NUMPY":
        return "one array (.npy)"
    return None


# --- NumPy archives ------------------------------------------------------------------------------


def _read_npz(file: str, data: bytes) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(file, entries, len(data))
            found = {}
            for entry in entries:
                with archive.open(entry) as stream:  # read(size) inflates no more than size
                    data = stream.read(entry.file_size)
                found[entry.filename.removesuffix(".npy")] = _read_npy(file, entry, data)
            return found
    except _LoadError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy's header reader raise many types
        raise _damaged(file, error) from error


class _LoadError(ValueError):
    """An error with a complete message, which :func:`load` raises as it is."""


def _damaged(file: str, error: Exception) -> ValueError:
    reason = shorten(f"{type(error).__name__}: {error}", 200)
    return ValueError(f"load got {file}, which is damaged ({reason}). {_DAMAGED}")


def _check_entries(file: str, entries: list[zipfile.ZipInfo], size: int) -> None:
    """Check the archive's directory before anything is decompressed."""
    names = [entry.filename for entry in entries]
    unexpected = [name for name in names if not name.endswith(".npy")]
    if unexpected:
        raise _load_error(
            f"load got {file} with {listing(unexpected)} inside",
            "nothing but arrays (.npy)",
            "A file of torch.save is an archive too: load('model.pt') raises the code that converts it.",
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise _load_error(f"load got {file} with {listing(twice)} twice", "one entry of each name", _DAMAGED)
    if any(entry.flag_bits & 1 for entry in entries):
        raise _load_error(f"load got {file}, which is encrypted", "an archive without a password", _DAMAGED)
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
        raise _load_error(
            f"load got {file} with a compression that NumPy does not write", "stored or deflated", _DAMAGED
        )
    total, limit = sum(entry.file_size for entry in entries), MAX_INFLATION * size + 2**24
    if total > limit:
        raise _load_error(
            f"load got {file} of {size} bytes, whose arrays take {total} bytes",
            f"at most {limit}, the limit for compressed archives of this size",
            "Save such arrays without compression.",
        )


def _load_error(got: str, expected: str, hint: str) -> _LoadError:
    return _LoadError(str(value_error(got, expected, hint)))


def _read_npy(file: str, entry: zipfile.ZipInfo, data: bytes) -> np.ndarray:
    """One array, after checking that its header agrees with the number of bytes."""
    name = shorten(entry.filename.removesuffix(".npy"), 60)
    stream = BytesIO(data)
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise _load_error(f"load got {file} with {name} in version {version} of .npy", "1.0 or 2.0", _DAMAGED)
    shape, columns_first, dtype = readers[version](stream)
    if dtype.hasobject:
        raise _load_error(
            f"load got {file} with objects inside", "arrays of numbers", f"Such a file {_RUNS}."
        )
    if dtype.newbyteorder("=") not in _DTYPES.values():
        raise _load_error(
            f"load got {name} of dtype {dtype} in {file}",
            f"an array of numbers ({_DTYPES_TEXT})",
            "Write bfloat16 arrays as .safetensors.",
        )
    remaining = len(data) - stream.tell()
    if any(size < 0 for size in shape) or prod(shape) * dtype.itemsize != remaining:
        raise _load_error(
            f"load got {name} of shape {shorten(str(shape), 80)} with {remaining} bytes in {file}",
            "as many bytes as the shape has",
            _DAMAGED,
        )
    array = np.frombuffer(data, dtype, offset=stream.tell())
    array = array.reshape(shape[::-1]).T if columns_first else array.reshape(shape)
    return np.array(array, dtype.newbyteorder("="), order="C")


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            # A fixed time, so that equal arrays give equal bytes.
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()


# --- safetensors ---------------------------------------------------------------------------------


def _read_safetensors(file: str, data: bytes) -> dict[str, np.ndarray]:
    package = _safetensors("load")
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size], object_pairs_hook=_unique)
        entries = dict(package.deserialize(data))
    except Exception as error:  # the package's own error, and those of JSON and of deep nesting
        raise _damaged(file, error) from error
    unexpected = [f"{name} of dtype {e['dtype']}" for name, e in entries.items() if e["dtype"] not in _DTYPES]
    if unexpected or len(entries) != len(header) - ("__metadata__" in header):
        raise value_error(
            f"load got {file} with {listing(unexpected)}", f"the dtypes {_DTYPES_TEXT}", "Cast them to F32."
        )
    return {
        name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
        for name, entry in entries.items()
    }


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises if a key occurs twice."""
    pairs = list(pairs)
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice in the header")
    return dict(pairs)


def _safetensors(owner: str) -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f"{owner} of a .safetensors file needs the package safetensors: pip install 'lstm_jax[interop]'"
        ) from error
    return safetensors


def _writable(name: str, value: Any, suffix: str) -> np.ndarray:
    """The array, contiguous and in native byte order; raises if it could not be read back equal."""
    shown = shorten(repr(name), 60)
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = MAX_NAME + 1
    reserved = name == "__metadata__" if suffix == ".safetensors" else name.endswith(".npy")
    if size > MAX_NAME or "\0" in name or reserved:
        raise value_error(
            f"save got the name {shown}",
            f"at most {MAX_NAME} bytes of UTF-8 without NUL, and "
            + ("not __metadata__" if suffix == ".safetensors" else "no .npy at the end, which NumPy drops"),
            "Rename the array.",
        )
    try:
        is_array = hasattr(value, "dtype") and not isinstance(value, np.ma.MaskedArray)
        array = np.asarray(value) if is_array else None
    except Exception as error:  # __array__ may raise anything
        reason = shorten(f"{type(error).__name__}: {error}", 200)
        raise ValueError(f"save got {shown}, which NumPy cannot read ({reason}).") from error
    if array is None:
        raise value_error(
            f"save got {shown} of type {type(value).__name__}", "an array of numbers", "Use np.asarray."
        )
    dtype = array.dtype.newbyteorder("=")
    if dtype not in _DTYPES.values() or (suffix == ".npz" and dtype == jnp.bfloat16):
        raise value_error(
            f"save got {shown} of dtype {array.dtype}, which {suffix} files lack here",
            f"an array of numbers ({_DTYPES_TEXT})",
            "Write .safetensors, or cast it to float32."
            if dtype == jnp.bfloat16
            else "Cast it, or leave it out.",
        )
    return np.asarray(array, dtype, order="C")
