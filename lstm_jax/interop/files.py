"""Arrays by name in files that hold nothing else: safetensors and NumPy archives, never pickle."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_jax._errors import value_error

_SAFE = """\
import torch, safetensors.torch
safetensors.torch.save_file(torch.load({path!r}, weights_only=True), {new!r})"""
_KERAS = """\
model = keras.saving.load_model({path!r})
numpy.savez({new!r}, **{{w.path: w.numpy() for w in model.get_layer(name).weights}})"""
#: Files that are refused, and how somebody who trusts them turns them into one that is read.
_ELSEWHERE = {
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), (_SAFE, ".safetensors")),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), (_KERAS, ".npz")),
}
_RUNS = "may hold programs, which reading it would run"
#: The dtypes of safetensors; its own reader for NumPy lacks bfloat16.
_DTYPES = {
    **{name: np.dtype(kind) for name, kind in (("BOOL", "?"), ("F16", "f2"), ("F32", "f4"), ("F64", "f8"))},
    **{
        f"{letter.upper()}{8 * size}": np.dtype(f"{letter}{size}") for letter in "iu" for size in (1, 2, 4, 8)
    },
    "BF16": np.dtype(jnp.bfloat16),
}


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The arrays of a ``.safetensors`` file or of a NumPy archive ``.npz``, by their names.

    Neither kind can hold a program, and nothing in a file is ever run: archives with pickled objects
    are refused, and so are files of other kinds, with the lines that convert them.

    Args:
        path: a file whose name ends in ``.safetensors`` or ``.npz``, and which is what its name says.

    Returns:
        Names to NumPy arrays, in the file's dtypes; bfloat16 too (safetensors).

    Raises:
        ValueError: the file is of another kind, damaged, or holds what is no array of numbers.
        ImportError: a ``.safetensors`` file without the package ``safetensors``
            (``pip install 'lstm_jax[interop]'``).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(folder + "/weights.npz", {"kernel": np.ones((2, 3))})
    ...     {name: array.shape for name, array in load(folder + "/weights.npz").items()}
    {'kernel': (2, 3)}
    """
    path = Path(path)
    suffix = _suffix("load", path)
    data = path.read_bytes()
    found = _kind(data)
    if found != suffix:
        raise value_error(
            f"load got {path.name}, which is no {suffix} file"
            + (f" but {found}" if found is not None else ""),
            "a file that is what its name says",
            f"Rename it to end in {found}." if found in (".npz", ".safetensors") else "Write it anew.",
        )
    return _read_npz(path, data) if suffix == ".npz" else _read_safetensors(path, data)


def save(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write arrays by name into a ``.safetensors`` file or a NumPy archive ``.npz``.

    The file appears whole or not at all, also where one of that name is there already: it is written
    beside it and then renamed.

    Args:
        path: where to; the end of its name says which kind.
        arrays: names to arrays of numbers, as :func:`lstm_jax.interop.to_torch` returns them.

    Raises:
        ValueError: the name ends otherwise, an entry is no array of numbers, or its dtype is one that
            NumPy archives forget (bfloat16).
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
    named = {str(name): _numbers(name, array) for name, array in arrays.items()}
    data = _npz(named) if suffix == ".npz" else _safetensors("save").numpy.save(named)
    write_whole(path, data)


def write_whole(path: Path, data: bytes) -> None:
    """The whole file or none of it: written beside its place, and then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _suffix(owner: str, path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in (".safetensors", ".npz"):
        return suffix
    got, expected = f"{owner} got {path.name}", "a name that ends in .safetensors or .npz"
    if owner == "load" and suffix in _ELSEWHERE:
        lines, ending = _ELSEWHERE[suffix]
        lines = lines.format(path=str(path), new=str(path.with_suffix(ending)))
        raise value_error(
            f"{got}, which {_RUNS}", expected, f"If you trust it, convert it once:\n\n{lines}\n"
        )
    if owner == "load" and suffix in (".pkl", ".pickle", ".joblib"):
        raise value_error(
            f"{got}, which {_RUNS} (pickle)", expected, "If you trust it, read it and write the arrays anew."
        )
    raise value_error(got, expected, "Safetensors also keep bfloat16.")


def _kind(data: bytes) -> str | None:
    """What the first bytes say."""
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


def _read_npz(path: Path, data: bytes) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            unexpected = [name for name in archive.namelist() if not name.endswith(".npy")]
        if unexpected:
            raise value_error(
                f"load got {path.name} with {', '.join(unexpected[:3])} inside",
                "nothing but arrays (.npy)",
                "A file of torch.save is an archive too: see what load('model.pt') says.",
            )
        with np.load(BytesIO(data), allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"load got {path.name}, which is damaged ({error}). Write it anew.") from error
    except ValueError as error:
        if "pickle" not in str(error) or "load got" in str(error):
            raise
        raise ValueError(f"load got {path.name} with objects inside: it {_RUNS}. Write arrays.") from error
    return {name: _numbers(name, array, "load") for name, array in found.items()}


def _read_safetensors(path: Path, data: bytes) -> dict[str, Any]:
    package = _safetensors("load")
    try:
        entries = package.deserialize(data)
    except package.SafetensorError as error:
        raise ValueError(f"load got {path.name}, which is damaged ({error}). Write it anew.") from error
    unexpected = [
        f"{name} of dtype {entry['dtype']}" for name, entry in entries if entry["dtype"] not in _DTYPES
    ]
    if unexpected:
        raise value_error(
            f"load got {path.name} with {', '.join(unexpected)}", "dtypes that JAX has", "Cast them to F32."
        )
    return {
        name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
        for name, entry in entries
    }


def _safetensors(owner: str) -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f"{owner} of a .safetensors file needs the package safetensors: pip install 'lstm_jax[interop]'"
        ) from error
    return safetensors


def _npz(arrays: Mapping[str, Any]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            if array.dtype.kind == "V":
                raise value_error(
                    f"save got {name} of {array.dtype}, which a NumPy archive forgets",
                    "a dtype of NumPy's own",
                    "Write .safetensors, or cast it to float32.",
                )
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()


def _numbers(name: Any, value: Any, owner: str = "save") -> np.ndarray:
    """An array of numbers with contiguous rows, which is what a file holds."""
    array = np.asarray(value, order="C")
    read = owner == "load"
    if array.dtype.kind in "OUSMm" or (read and array.dtype.kind == "V"):
        raise value_error(
            f"{owner} got {name} of dtype {array.dtype}",
            "an array of numbers",
            "Write such arrays as .safetensors." if read else "Pass a flat mapping of names to arrays.",
        )
    return array
