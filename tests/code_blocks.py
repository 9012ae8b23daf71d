"""The code blocks of the README and of the pages in docs/."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A code block: its language, its text, and the line on which the text begins."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The code blocks of a Markdown page."""
    source = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(source):
        yield Block(match[1], match[2], source.count("\n", 0, match.start(2)) + 1)


def run(page: Path, block: Block, names: dict) -> None:
    """Execute a block; a traceback shows its line in the page."""
    exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
