"""Data as a function of the step: what a resumed run needs is the number of its step, and nothing else."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import UserError

# --- texts -----------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """A UTF-8 text that is not empty."""
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
        raise UserError(f"{path} is not UTF-8: byte {error.start} (0x{byte:02x}) cannot be read") from None


def python_help() -> str:
    """The help pages inside Python, without the paragraphs that several of them share.

    A paragraph that came before would make the held-out part easy for whoever learned it by heart.
    """
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    return "\n\n".join(dict.fromkeys(paragraphs))


def digest(*parts: Any) -> str:
    """A SHA-256 of texts, bytes and arrays: equal where the data are."""
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


def order_of(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits ``count`` examples: decided by seed and epoch alone."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def shuffled(arrays: Any, batch: int, seed: int, axis: int = 0) -> tuple[Callable[[int], Any], int]:
    """``(batch_of, per_epoch)``: batches of a pytree of arrays whose ``axis`` counts the examples.

    Each epoch has an order of its own; what does not fill a batch is left to other epochs.

    >>> batch_of, per_epoch = shuffled({"x": np.arange(5), "y": np.arange(5) ** 2}, batch=2, seed=0)
    >>> per_epoch, all(batch_of(3)["y"] == batch_of(3)["x"] ** 2)
    (2, True)
    """
    import jax

    count = jax.tree.leaves(arrays)[0].shape[axis]
    per_epoch = count // batch
    if not per_epoch:
        raise UserError(f"there are {count} examples, fewer than a batch of {batch}: make --batch smaller")
    last: tuple[int, Any] = (-1, None)  # the order of one epoch is kept

    def batch_of(step: int) -> Any:
        nonlocal last
        epoch, place = divmod(step, per_epoch)
        if last[0] != epoch:
            last = (epoch, order_of(count, seed, epoch))
        rows = last[1][place * batch : (place + 1) * batch]
        return jax.tree.map(lambda a: np.take(a, rows, axis), arrays)

    return batch_of, per_epoch


def streams(ids: np.ndarray, batch: int) -> np.ndarray:
    """A sequence as ``batch`` streams side by side: (length, batch); what does not fill them is left out."""
    length = len(ids) // batch
    return ids[: length * batch].reshape(batch, length).T


def prefetch(
    batch_of: Callable[[int], Any], steps: Sequence[int], place: Callable[[Any], Any], ahead: int = 2
) -> Iterator[Any]:
    """``place(batch_of(step))`` for each step, made on a thread while the one before is used.

    What goes wrong on the thread is raised here. The thread ends when the iterator is closed.
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
        except BaseException as error:  # whatever it is, the main thread has to hear of it
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
