"""The code blocks of the README and of the pages in docs/, and how the tests run them."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\S*)[^\n]*\n((?::[^\n]*\n)*)(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+\.\d+")


class Block(NamedTuple):
    """A code block: its language, its text, and the line on which the text begins."""

    language: str  # "python": run by the tests; "{code-cell}": run by the build of the documentation
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The code blocks of a Markdown page."""
    source = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(source):
        yield Block(match[1], match[3], source.count("\n", 0, match.start(3)) + 1)


def run_page(page: Path, wanted: Callable[[Block], bool]) -> int:
    """Run the wanted blocks one after the other; return their number.

    If a block of the language ``text`` follows, it has to be what the program prints.
    """
    names: dict[str, object] = {}
    ran, everything = 0, list(blocks(page))
    # Readers have JAX's own settings; conftest.py makes the tests' stricter.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block, following in zip(everything, [*everything[1:], None], strict=True):
            if not wanted(block):
                continue
            with contextlib.redirect_stdout(io.StringIO()) as output:
                # A traceback shows the line of the page.
                exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
            if following is not None and following.language == "text":
                assert_printed(output.getvalue(), following.text)
            ran += 1
    return ran


def assert_printed(printed: str, expected: str) -> None:
    """Equal up to the digits of floats, which depend on the machine."""
    assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", expected).split()
    floats = [np.array(NUMBER.findall(text), float) for text in (printed, expected)]
    np.testing.assert_allclose(*floats, rtol=0.1, atol=0.05)
