"""Polyphonic music as piano rolls: from a .mat file, or made by a few rules of harmony."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _midi import LOWEST
from training import UserError

KEYS = 88  # of a piano


class Pieces(NamedTuple):
    """Pieces side by side, padded with silence at their ends to the longest."""

    frames: np.ndarray  # (N, T, 88), uint8: 1 where a key sounds
    lengths: np.ndarray  # (N,), int32: how many frames each piece has


class Corpus(NamedTuple):
    """Pieces to learn from, to choose by, and to be judged on, once."""

    train: Pieces
    valid: Pieces
    test: Pieces


def side_by_side(rolls: Sequence[np.ndarray]) -> Pieces:
    """Rolls of (frames, 88) as one padded array."""
    lengths = np.array([len(roll) for roll in rolls], np.int32)
    frames = np.zeros((len(rolls), lengths.max(), KEYS), np.uint8)
    for row, roll in zip(frames, rolls, strict=True):
        row[: len(roll)] = roll
    return Pieces(frames, lengths)


def transposed(pieces: Pieces, semitones: int, seed: Any) -> Pieces:
    """Each piece shifted up or down by at most so many semitones; what leaves the piano is not heard."""
    if not semitones:
        return pieces
    shifts = np.random.default_rng(seed).integers(-semitones, semitones + 1, len(pieces.lengths))
    wide = np.pad(pieces.frames, ((0, 0), (0, 0), (semitones, semitones)))
    moved = [row[:, semitones - shift :][:, :KEYS] for row, shift in zip(wide, shifts, strict=True)]
    return pieces._replace(frames=np.stack(moved))


def baselines(corpus: Corpus) -> dict[str, float]:
    """Nats a frame on the test pieces, by counts in the training pieces that look at each key alone."""

    def pairs(pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
        """Frames with one after them, and those after them: (frames, 88) each."""
        rolls = [roll[:length] for roll, length in zip(pieces.frames, pieces.lengths, strict=True)]
        return np.concatenate([r[:-1] for r in rolls]), np.concatenate([r[1:] for r in rolls])

    (before, now), (test_before, test_now) = pairs(corpus.train), pairs(corpus.test)

    def nll(p: np.ndarray) -> float:
        return float(-np.log(np.where(test_now, p, 1 - p)).sum(1).mean())

    often = (now.sum(0) + 0.5) / (len(now) + 1)  # half a count more of each: no probability is 0 or 1
    after = [((now * (before == was)).sum(0) + 0.5) / ((before == was).sum(0) + 1) for was in (0, 1)]
    return {
        "how often each key sounds": nll(often),
        "and whether it just sounded": nll(np.where(test_before, *after[::-1])),
    }


# --- from a file -----------------------------------------------------------------------------------


def read_mat(path: Path) -> Corpus:
    """JSB chorales, Nottingham and their like: cell arrays ``traindata``, ``validdata``, ``testdata``."""
    from scipy.io import loadmat

    try:
        contents = loadmat(BytesIO(path.read_bytes()))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # scipy has many ways of saying that a file is no MATLAB file
        raise UserError(f"{path} is not a .mat file that scipy can read: {error}") from None
    return Corpus(*(_part(path, contents, name) for name in ("traindata", "validdata", "testdata")))


def _part(path: Path, contents: dict[str, Any], name: str) -> Pieces:
    if name not in contents:
        there = ", ".join(sorted(key for key in contents if not key.startswith("__"))) or "nothing"
        raise UserError(f"{path} has no {name}: it holds {there}")
    cells = contents[name].ravel()
    if not cells.size or cells.dtype != object:
        raise UserError(f"{path}: {name} is not a cell array of piano rolls")
    for number, roll in enumerate(cells, 1):
        shape = np.shape(roll)
        if len(shape) != 2 or shape[0] < 2 or shape[1] != KEYS:
            raise UserError(
                f"{path}: {name}{{{number}}} has shape {shape}, not (2 frames or more, {KEYS} keys)"
            )
        if not np.isin(roll, (0, 1)).all():
            raise UserError(f"{path}: {name}{{{number}}} has values that are neither 0 nor 1")
    return side_by_side(list(cells))


# --- made by rules ---------------------------------------------------------------------------------

#: Which degree of the scale may follow which (I is 0), the likelier ones more than once.
FOLLOWS = {
    0: (1, 3, 3, 4, 4, 5),
    1: (4, 4, 6),
    2: (5, 3),
    3: (0, 1, 4, 4),
    4: (0, 0, 0, 5),
    5: (1, 3, 2),
    6: (0,),
}
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 11))  # major, harmonic minor; semitones over the tonic
RANGES = ((43, 60), (48, 67), (55, 72), (60, 79))  # bass, tenor, alto, soprano: MIDI notes


def generate(seed: int, train: int = 120, valid: int = 30, test: int = 30) -> Corpus:
    """Made-up pieces for four voices, no composer's: chords that follow a few rules, led smoothly."""
    rng = np.random.default_rng(seed)
    pieces = [_piece(rng) for _ in range(train + valid + test)]
    parts = pieces[:train], pieces[train : train + valid], pieces[train + valid :]
    return Corpus(*map(side_by_side, parts))


def _piece(rng: np.random.Generator) -> np.ndarray:
    """Phrases of eight chords in one key, each ending V I; a chord lasts two frames."""
    tonic, scale = int(rng.integers(12)), SCALES[rng.integers(2)]
    voices: list[tuple[int, ...]] = []
    for _ in range(rng.integers(2, 5)):
        degrees = [0]
        while len(degrees) < 6:
            degrees.append(int(rng.choice(FOLLOWS[degrees[-1]])))
        for degree in (*degrees, 4, 0):
            chord = [(tonic + scale[(degree + third) % 7]) % 12 for third in (0, 2, 4)]
            voices += [_voicing(chord, voices[-1] if voices else (48, 55, 64, 72))]
    roll = np.zeros((2 * len(voices), KEYS), np.uint8)
    for time, (chord, after) in enumerate(zip(voices, [*voices[1:], voices[-1]], strict=True)):
        roll[2 * time : 2 * time + 2, np.array(chord) - LOWEST] = 1
        for voice in (1, 2, 3):  # a leap of a third is often filled by the note between
            between = [n for n in range(*sorted((chord[voice], after[voice]))) if (n - tonic) % 12 in scale][
                1:
            ]
            if abs(after[voice] - chord[voice]) in (3, 4) and between and rng.random() < 0.5:
                roll[2 * time + 1, chord[voice] - LOWEST] = 0
                roll[2 * time + 1, between[0] - LOWEST] = 1
    return roll


def _voicing(chord: list[int], before: tuple[int, ...]) -> tuple[int, ...]:
    """The nearest way from the chord before: the root in the bass, no voice missing, none crossing."""
    root, third, _ = chord
    choices = [[n for n in range(low, high + 1) if n % 12 in chord] for low, high in RANGES]
    choices[0] = [n for n in choices[0] if n % 12 == root]

    def effort(notes: tuple[int, ...]) -> int:
        leaps = sum(abs(n - b) for n, b in zip(notes[1:], before[1:], strict=True))
        parallels = sum(
            (notes[j] - notes[i]) % 12 == (before[j] - before[i]) % 12 in (0, 7) and notes[i] != before[i]
            for i in range(4)
            for j in range(i + 1, 4)
        )  # in fifths or octaves
        return 4 * leaps + abs(notes[0] - before[0]) + 20 * parallels

    complete = [
        n for n in product(*choices) if list(n) == sorted(set(n)) and {k % 12 for k in n} >= {root, third}
    ]
    return min(complete, key=effort)
