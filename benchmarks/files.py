"""Result files: names, atomic writes and Markdown tables. Imports the standard library only."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def write(path: Path, text: str) -> None:
    """Write a file atomically, making its folder where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def dumps(tree: Any, indent: int = 0) -> str:
    """JSON with every list or object of plain values on one line.

    >>> print(dumps({"a": [1, 2], "b": {"c": {"d": None}}}))
    {
     "a": [1, 2],
     "b": {
      "c": {"d": null}
     }
    }
    """
    pairs = tree.items() if isinstance(tree, dict) else [(None, a) for a in tree]
    if not any(isinstance(a, dict | list | tuple) for _, a in pairs):
        return json.dumps(tree)
    space = " " * (indent + 1)
    lines = []
    for name, a in pairs:
        text = dumps(a, indent + 1) if isinstance(a, dict | list | tuple) else json.dumps(a)
        lines.append(f"{space}{json.dumps(name)}: {text}" if isinstance(tree, dict) else space + text)
    begin, end = "{}" if isinstance(tree, dict) else "[]"
    return f"{begin}\n" + ",\n".join(lines) + f"\n{' ' * indent}{end}"


def stem(*words: str) -> str:
    """A file name without its suffix.

    >>> stem("gpu", "NVIDIA H100 80GB HBM3", "2026-11-23T0329")
    'gpu-NVIDIA-H100-80GB-HBM3-2026-11-23T0329'
    """
    return re.sub(r"[^A-Za-z0-9.]+", "-", " ".join(words))


def number(value: float | None, form: str, scale: float = 1.0) -> str:
    """A formatted number, or a dash for None."""
    return "-" if value is None else format(value * scale, form)


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table, all columns but the first aligned to the right."""
    rules = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (heads, rules, *rows))


def aligned(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a terminal, its columns padded to one width each.

    >>> print(aligned(("a", "b"), [("long", "c")]))
    a     b
    long  c
    """
    lines = [tuple(heads), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
