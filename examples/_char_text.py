"""A text, its characters as integers, and the n-gram baseline that the network is compared with."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from training import UserError, python_help, read_text


def load_text(path: Path | None) -> tuple[str, str]:
    """``(text, name)`` of a file, or of Python's help pages."""
    return (read_text(path), path.name) if path else (python_help(), "Python's help pages")


def encode(text: str, vocabulary: str) -> np.ndarray:
    """Characters as indices into the vocabulary."""
    place = {character: index for index, character in enumerate(vocabulary)}
    return np.array([place[character] for character in text], np.int32)


def windows(ids: np.ndarray, batch: int, window: int) -> np.ndarray:
    """The text as ``batch`` parallel streams, cut into windows: (windows, T + 1, batch).

    Row b of window k + 1 continues row b of window k. Consecutive windows share a character, because the
    last target of one is the first input of the next.
    """
    count = (len(ids) - 1) // (batch * window)
    starts = np.arange(batch) * count * window
    offsets = np.arange(count)[:, None] * window + np.arange(window + 1)
    return ids[offsets[:, :, None] + starts]


def split(ids: np.ndarray, valid_fraction: float, batch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the text into a training part and a held-out part at its end."""

    def cut(length: int) -> int:
        return length - max(2, round(length * valid_fraction))

    least = batch * window + 1  # one window per stream, and the last target
    if cut(len(ids)) < least:
        needed = next(length for length in itertools.count(least) if cut(length) >= least)
        raise UserError(
            f"the text is too short: it has {len(ids):,} characters, but {batch} streams of {window} "
            f"characters and the held-out part need {needed:,}; decrease --batch or --window"
        )
    return ids[: cut(len(ids))], ids[cut(len(ids)) :]


def witten_bell(train: np.ndarray, held_out: np.ndarray, vocabulary_size: int, order: int) -> np.ndarray:
    """Probability of every held-out character given the ``order - 1`` characters before it.

    Only ``train`` is counted; ``held_out`` continues it. With c(h) the number of occurrences of a history h,
    and u(h) the number of different characters that follow it (Witten & Bell 1991),

        p_k(x | h) = (c(h x) + u(h) p_{k-1}(x | h without its oldest character)) / (c(h) + u(h))

    and p_0 = 1 / vocabulary_size, so every character has a positive probability.
    """
    text = np.concatenate([train, held_out]).astype(np.int64)
    n = len(train)
    probability = np.full(len(held_out), 1 / vocabulary_size)
    # history[t] is a number that identifies the k - 1 characters before text[t].
    history = np.zeros(len(text), np.int64)
    for k in range(1, order + 1):
        _, gram = np.unique(history * vocabulary_size + text, return_inverse=True)
        seen = slice(k - 1, n)  # the k-grams that are completely in the training part
        grams = np.bincount(gram[seen], minlength=len(text))
        histories = np.bincount(history[seen], minlength=len(text))
        _, first = np.unique(gram[seen], return_index=True)
        followers = np.bincount(history[seen][first], minlength=len(text))

        c, u = histories[history[n:]], followers[history[n:]]
        smoothed = (grams[gram[n:]] + u * probability) / np.maximum(c + u, 1)
        probability = np.where(c > 0, smoothed, probability)
        # The next history at t is the k-gram that ends at t - 1.
        history = np.concatenate([gram[:1], gram[:-1]])
    return probability


def bits(probability: np.ndarray) -> float:
    """Mean information content, in bits per character."""
    return float(-np.log2(probability).mean())
