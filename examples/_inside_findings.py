"""Units whose state follows a feature of the text. Each is chosen on one half and checked on the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

SHIFTS = 200
#: The features that are flags, in words.
PLACES = {
    "inside quotes": "inside quotes",
    "inside brackets": "inside brackets",
    "is space": "at spaces",
    "is line break": "at line breaks",
    "is capital": "at capital letters",
    "is vowel": "at vowels",
    "is digit": "at digits",
    "is punctuation": "at punctuation",
}


class Finding(NamedTuple):
    """The unit with the largest score for a feature. It prints as a sentence.

    A score is between -1 and 1: Spearman's rank correlation for a number, 2 AUC - 1 for a flag, where AUC is
    the probability that the state is larger at a character with the flag than at one without it.
    """

    feature: str
    is_flag: bool
    unit: int
    score: float  # on the first half of the text, where the unit was chosen
    check: float  # of this unit on the second half
    chance: float  # the largest absolute score of any unit with the feature shifted, on the first half
    others: int  # further units with scores above chance on both halves

    @property
    def holds(self) -> bool:
        """Whether both scores have the same sign and are above chance."""
        return _above(self.score, self.check, self.chance)

    def __str__(self) -> str:
        sign = 1 if self.score > 0 else -1
        numbers = self.score, self.check, self.chance
        if self.is_flag:
            claim = f"is {'high' if sign > 0 else 'low'} {PLACES[self.feature]}"
            name, numbers = (
                "AUC",
                tuple((1 + x) / 2 for x in (sign * self.score, sign * self.check, self.chance)),
            )
        else:
            claim = f"{'rises' if sign > 0 else 'falls'} with the {self.feature.replace(' in ', ' in the ')}"
            name = "correlation"
        score, check, chance = (f"{x:z.2f}".replace("-", "−") for x in numbers)
        measure = f"{name} {score}, on the other half {check}, by chance {chance}"
        others = f" Above chance: {self.others} other unit{'s' * (self.others > 1)}." if self.others else ""
        sentence = f"Unit {self.unit} {claim}"
        if not self.holds:
            sentence += ", but not above chance on both halves"
        return f"{sentence}: {measure}.{others}"


def _above(score: float, check: float, chance: float) -> bool:
    return min(score, check) > chance or max(score, check) < -chance


def find_units(
    states: np.ndarray, features: Mapping[str, np.ndarray], rng: np.random.Generator
) -> list[Finding]:
    """The best unit for each feature, those that hold first, by their score on the second half.

    The first half of the text chooses the unit. Chance is measured there: the feature is shifted in time,
    which keeps its own statistics and those of the states and destroys what they have in common. The largest
    score of all units and all shifts is the level that both halves must exceed. Features that do not vary in
    both halves are left out.

    Args:
        states: (T, H).
        features: (T,) each. Those that are named in ``PLACES`` are flags, 0 or 1.
    """
    half = len(states) // 2
    first, second = (_ranks(part) for part in (states[:half], states[half:]))
    findings = []
    for name, column in features.items():
        early, late = column[:half], column[half:]
        if np.ptp(early) == 0 or np.ptp(late) == 0:
            continue
        is_flag = name in PLACES
        scores, checks = (_scores(ranks, part, is_flag) for ranks, part in ((first, early), (second, late)))
        shifts = rng.integers(half // 10, half - half // 10, SHIFTS)
        shifted = np.stack([np.roll(early, shift) for shift in shifts], axis=1)
        chance = float(np.abs(_scores(first, shifted, is_flag)).max())
        unit = int(np.abs(scores).argmax())
        above = sum(_above(*pair, chance) for pair in zip(scores, checks, strict=True))
        best = float(scores[unit]), float(checks[unit])
        others = int(above - _above(*best, chance))
        findings.append(Finding(name, is_flag, unit, *best, chance, others))
    return sorted(findings, key=lambda finding: (-finding.holds, -abs(finding.check)))


def _ranks(states: np.ndarray) -> np.ndarray:
    """Ranks of each column in (-1/2, 1/2); equal values have their mean rank."""
    return (rankdata(states, axis=0) - (len(states) + 1) / 2) / len(states)


def _scores(ranks: np.ndarray, feature: np.ndarray, is_flag: bool) -> np.ndarray:
    """The score of each unit (T, H) for a feature (T,) or for several ones (T, K): (H,) or (H, K)."""
    if is_flag:
        rate = feature.mean(axis=0)
        return 2 * (ranks.T @ (feature - rate)) / (len(ranks) * rate * (1 - rate))
    column = _ranks(feature)
    norms = np.sqrt(np.square(column).sum(axis=0)) * np.sqrt(np.square(ranks).sum(axis=0)).reshape(
        -1, *(1,) * (feature.ndim - 1)
    )
    return ranks.T @ column / np.where(norms > 0, norms, 1)
