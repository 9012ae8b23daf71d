"""Words as integers: corpora, vocabularies, and the windows of a training run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from training import UserError, digest, python_help, read_text, streams

END, UNKNOWN = "<eos>", "<unk>"
PARTS = ("train", "valid", "test")
#: The file names of a corpus.
FORMATS = {"Penn Treebank": "ptb.{}.txt", "WikiText": "wiki.{}.tokens"}
VOCABULARY = 2000  # default size for plain text, in which rare words are not replaced yet


class Corpus(NamedTuple):
    """A text in three parts, as indices into its vocabulary."""

    name: str
    vocabulary: list[str]
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    def about(self) -> dict[str, int | str]:
        """The description of the corpus in a run folder."""
        sizes = {part: len(getattr(self, part)) for part in PARTS}
        everything = digest("\n".join(self.vocabulary), self.train, self.valid, self.test)
        return {"vocabulary": len(self.vocabulary), **sizes, "sha256": everything}


def read_corpus(path: Path | None, limit: int | None) -> Corpus:
    """Read a folder in the format of Penn Treebank or WikiText, or a text file.

    Args:
        path: the folder or file; None for Python's help pages.
        limit: size of the vocabulary. Less frequent words become ``<unk>``.
    """
    if path is None or not path.is_dir():
        text = python_help() if path is None else read_text(path)
        name = "Python's help pages" if path is None else path.name
        return corpus_of(name, *split_lines(text), limit=limit or VOCABULARY)
    for name, pattern in FORMATS.items():
        files = [path / pattern.format(part) for part in PARTS]
        if any(file.exists() for file in files):
            return corpus_of(name, *(words(read_text(file)) for file in files), limit=limit)
    names = " or ".join(pattern.format("{train,valid,test}") for pattern in FORMATS.values())
    raise UserError(f"{path} contains no corpus: expected {names}")


def words(text: str) -> list[str]:
    """The words of a tokenised file. Every line ends with ``<eos>``, including empty lines and headings."""
    return [word for line in text.splitlines() for word in (*line.split(), END)]


def split_lines(text: str) -> list[list[str]]:
    """Plain text as lower-case words and punctuation, split into 90, 5 and 5 percent of its lines."""
    lines = [re.findall(r"\w+|[^\w\s]", line.lower()) for line in text.splitlines()]
    lines = [line for line in lines if line]
    cuts = [0, round(0.9 * len(lines)), round(0.95 * len(lines)), len(lines)]
    return [[word for line in lines[i:j] for word in (*line, END)] for i, j in pairwise(cuts)]


def corpus_of(name: str, *parts: Sequence[str], limit: int | None) -> Corpus:
    """Encode the parts. The vocabulary is that of the first part, ordered by decreasing frequency."""
    for part, found in zip(PARTS, parts, strict=True):
        if not any(word != END for word in found):
            raise UserError(f"the {part} part of {name} has no words")
    vocabulary = [word for word, _ in sorted(Counter(parts[0]).items(), key=lambda item: (-item[1], item[0]))]
    if limit and len(vocabulary) > limit:
        common = [word for word in vocabulary if word not in (END, UNKNOWN)]
        vocabulary = [END, UNKNOWN, *common[: limit - 2]]
    place = {word: index for index, word in enumerate(vocabulary)}
    unknown = {word for part in parts for word in part} - set(place)
    if unknown and UNKNOWN not in place:
        shown = ", ".join(map(repr, sorted(unknown)[:3]))
        raise UserError(
            f"{name} has {len(unknown)} words that are not in its training part ({shown}), which has no "
            f"{UNKNOWN}: set --vocabulary, which replaces rare words by {UNKNOWN}"
        )
    ids = [np.array([place.get(word, place.get(UNKNOWN)) for word in part], np.int32) for part in parts]
    return Corpus(name, vocabulary, *ids)


class Windows:
    """The training part as ``batch`` parallel streams, cut into consecutive windows.

    Every epoch starts at the beginning of the streams. With ``vary_seed``, lengths are random as in Merity et
    al. 2018: normal with standard deviation 5, and mean ``window`` or, with probability 1/20, half of it.
    Every window is padded to ``longest``, so that the step is compiled once.
    """

    def __init__(self, ids: np.ndarray, batch: int, window: int, vary_seed: int | None = None):
        self.data, self.window, self.vary_seed = streams(ids, batch), window, vary_seed
        self.longest = window if vary_seed is None else window + 25
        if len(self.data) <= self.longest:
            needed = batch * (self.longest + 1)
            raise UserError(
                f"the training part is too short: it has {len(ids):,} words, but {batch} streams of "
                f"{self.longest} words need {needed:,}; decrease --batch or --window"
            )

    def lengths(self, epoch: int) -> np.ndarray:
        """The lengths of the windows of an epoch, in order."""
        targets = len(self.data) - 1
        if self.vary_seed is None:
            return np.full(targets // self.window, self.window)
        rng = np.random.default_rng((self.vary_seed, epoch))
        count = targets // 5 + 1
        around = np.where(rng.random(count) < 0.95, self.window, self.window / 2)
        lengths = np.clip(rng.normal(around, 5).astype(int), 5, self.longest)
        ends = np.minimum(np.cumsum(lengths), targets)
        return np.diff(ends[: np.searchsorted(ends, targets) + 1], prepend=0)

    def plan(self, epochs: float | None, steps: int | None) -> Plan:
        """The windows of a whole run, whose duration is given in epochs or in steps."""
        each: list[np.ndarray] = []
        while sum(map(len, each)) < steps if steps else len(each) < epochs:
            each.append(self.lengths(len(each)))
        last = epochs - len(each) + 1 if not steps else 1
        total = steps or max(1, sum(map(len, each[:-1])) + round(last * len(each[-1])))
        starts = np.concatenate([np.cumsum(lengths) - lengths for lengths in each])
        done = np.concatenate([epoch + np.cumsum(e) / e.sum() for epoch, e in enumerate(each)])
        return Plan(starts[:total], np.concatenate(each)[:total], done[:total])

    def cut(self, start: int, length: int) -> np.ndarray:
        """A window and the target of its last word, padded with zeros: (longest + 1, batch)."""
        window = self.data[start : start + length + 1]
        return np.pad(window, ((0, self.longest + 1 - len(window)), (0, 0)))


class Plan(NamedTuple):
    """For each step of a run: the start and length of its window, and the epochs completed after it."""

    starts: np.ndarray
    lengths: np.ndarray
    done: np.ndarray

    def ends(self) -> set[int]:
        """The numbers, counted from 1, of the steps that complete an epoch."""
        return {int(index) + 1 for index in np.flatnonzero(self.done == np.round(self.done))}
