"""Features of a text, one number per character. They have the definitions of the viewer page."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator

import numpy as np

OPENING, CLOSING = "([{", ")]}"
VOWELS = frozenset("aeiouäöüáéíóúàèìòùâêîôû")


def text_features(text: str) -> dict[str, np.ndarray]:
    """Arrays (T,) by name. A feature at t is the state after character t, as the network's state is."""
    columns = {
        "position in line": _position_in_line(text),
        "indentation": _indentation(text),
        "position in word": _position_in_word(text),
        "inside quotes": _inside_quotes(text),
        "inside brackets": _inside_brackets(text),
        "is space": (character.isspace() and character != "\n" for character in text),
        "is line break": (character == "\n" for character in text),
        "is capital": map(_category("Lu"), text),
        "is vowel": (character.lower() in VOWELS for character in text),
        "is digit": map(_category("N"), text),
        "is punctuation": map(_category("P"), text),
    }
    return {name: np.fromiter(column, np.float64, len(text)) for name, column in columns.items()}


def _category(prefix: str) -> Callable[[str], bool]:
    """Whether a character has a Unicode category."""
    return lambda character: unicodedata.category(character).startswith(prefix)


def _position_in_line(text: str) -> Iterator[int]:
    position, previous = 0, "\n"
    for character in text:
        position = 1 if previous == "\n" else position + 1
        yield position
        previous = character


def _indentation(text: str) -> Iterator[int]:
    """Columns of white space at the beginning of the line, of those read so far."""
    columns, counting, previous = 0, True, "\n"
    for character in text:
        if previous == "\n":
            columns, counting = 0, True
        counting = counting and character.isspace()
        if counting and character != "\n":
            columns += 4 - columns % 4 if character == "\t" else 1
        yield columns
        previous = character


def _position_in_word(text: str) -> Iterator[int]:
    length = 0
    for character in text:
        length = length + 1 if character.isalnum() or character == "_" else 0
        yield length


def _inside_quotes(text: str) -> Iterator[bool]:
    """An empty line ends a quotation."""
    inside, previous = False, ""
    for character in text:
        if character == '"':
            inside = not inside
        elif character in "“«":
            inside = True
        elif character in "”»" or character == previous == "\n":
            inside = False
        yield inside
        previous = character


def _inside_brackets(text: str) -> Iterator[bool]:
    depth = 0
    for character in text:
        depth = depth + (character in OPENING) - (character in CLOSING and depth > 0)
        yield depth > 0
