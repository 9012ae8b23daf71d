"""Atomic writes of files."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: temporary files of killed processes remain
    fcntl = None  # type: ignore[assignment]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically: write a temporary file in its folder, and rename it.

    Several threads and processes may write one path at once: all succeed, and the last one wins. The
    temporary file that a killed process left behind is removed by the next call for the same path.

    Raises:
        OSError: the file cannot be written. The error names ``path``, not the temporary file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder, "notes"), b"h = o * tanh(c)")
    ...     Path(folder, "notes").read_text()
    'h = o * tanh(c)'
    """
    beginning = f".{path.name[:100]}."
    try:
        _remove_abandoned(path.parent, beginning)
        file, temporary = _open_locked(path.parent, beginning)
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
                if fcntl is not None:
                    os.replace(temporary, path)
            if fcntl is None:  # Windows renames closed files only
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _open_locked(folder: Path, beginning: str) -> tuple[int, Path]:
    """Open a new file and lock it while it is open, which shows that its process is running."""
    while True:
        temporary = folder / f"{beginning}{secrets.token_hex(8)}.tmp"
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if fcntl is None:
            return file, temporary
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:  # else another process removed it before it was locked
            return file, temporary
        os.close(file)


def _remove_abandoned(folder: Path, beginning: str) -> None:
    """Remove temporary files that no process has locked."""
    if fcntl is None:
        return
    for temporary in folder.glob(f"{_literal(beginning)}{'[0-9a-f]' * 16}.tmp"):
        try:
            file = os.open(temporary, os.O_WRONLY)
        except OSError:
            continue  # it is gone, or belongs to another user
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # it is being written
        finally:
            os.close(file)


def _literal(text: str) -> str:
    """The text with the special characters of a glob pattern in brackets."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)
