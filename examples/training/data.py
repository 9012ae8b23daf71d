"""Data as a function of the step, so that a resumed run only needs its step number."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from training.errors import UserError

# --- texts -----------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """Read a UTF-8 text file that is not empty."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not data:
        raise UserError(f"{path} is empty")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise UserError(f"{path} is not UTF-8: byte {error.start} (0x{byte:02x}) cannot be decoded") from None


def python_help() -> str:
    """Python's built-in help pages, each paragraph once.

    A repeated paragraph could be in both the training part and the held-out part.
    """
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))


def digest(*parts: Any) -> str:
    """SHA-256 of texts, bytes and arrays. Dtypes and shapes of arrays are included."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            part = part.encode()
        elif not isinstance(part, bytes):
            array = np.ascontiguousarray(part)
            part = f"{array.dtype} {array.shape} ".encode() + array.tobytes()
        sha.update(f"{len(part)} ".encode() + part)
    return sha.hexdigest()


# --- batches ---------------------------------------------------------------------------------------


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of ``count`` examples in an epoch. It depends only on the seed and the epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def shuffled(arrays: Any, batch: int, seed: int, axis: int = 0) -> tuple[Callable[[int], Any], int]:
    """``(batch_of, per_epoch)``: batches of a pytree of arrays whose ``axis`` indexes the examples.

    Every epoch has its own order. Examples that do not fill a batch are left out of that epoch.

    >>> batch_of, per_epoch = shuffled({"x": np.arange(5), "y": np.arange(5) ** 2}, batch=2, seed=0)
    >>> per_epoch, all(batch_of(3)["y"] == batch_of(3)["x"] ** 2)
    (2, True)
    """
    count = jax.tree.leaves(arrays)[0].shape[axis]
    per_epoch = count // batch
    if not per_epoch:
        raise UserError(f"there are {count} examples, fewer than a batch of {batch}: decrease --batch")
    last: tuple[int, Any] = (-1, None)  # caches the order of one epoch

    def batch_of(step: int) -> Any:
        nonlocal last
        epoch, place = divmod(step, per_epoch)
        if last[0] != epoch:
            last = (epoch, permutation(count, seed, epoch))
        rows = last[1][place * batch : (place + 1) * batch]
        return jax.tree.map(lambda a: np.take(a, rows, axis), arrays)

    return batch_of, per_epoch


def streams(ids: np.ndarray, batch: int) -> np.ndarray:
    """A sequence as ``batch`` parallel streams: (length, batch). The remainder is dropped."""
    length = len(ids) // batch
    return ids[: length * batch].reshape(batch, length).T


def prefetch(
    batch_of: Callable[[int], Any], steps: Sequence[int], place: Callable[[Any], Any], ahead: int = 2
) -> Iterator[Any]:
    """Yield ``place(batch_of(step))`` for each step, computed up to ``ahead`` steps early on a thread.

    Exceptions of the thread are raised here. The thread ends when the iterator is closed.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=ahead)
    closed = threading.Event()

    def put(item: tuple[Any, BaseException | None]) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def work() -> None:
        try:
            for step in steps:
                if not put((place(batch_of(step)), None)):
                    return
        except BaseException as error:  # any exception is passed on to the main thread
            put((None, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in steps:
            item, error = ready.get()
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        thread.join()
