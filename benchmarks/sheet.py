"""A small table that is written whole after every row: a run that is stopped leaves what it has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import report


@dataclass
class Sheet:
    """Rows of named values, as JSON and as a page beside it."""

    folder: Path
    part: str  # in the file's name
    title: str
    columns: Sequence[str]
    about: dict[str, Any]  # where and with what: report.machine
    remarks: Sequence[str] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Of the JSON file."""
        return self.folder / f"{report.stem(self.about)}-{self.part}.json"

    def begin(self, **row: Any) -> None:
        """A row that is being measured: should the process die, it is known at what."""
        self.rows.append(row | {"note": "began, and did not end"})
        self.write()

    def end(self, **values: Any) -> None:
        """The last row's values."""
        self.rows[-1] |= {"note": ""} | values
        self.write()
        print(" | ".join(map(shown, self.cells(self.rows[-1]))), flush=True)

    def cells(self, row: dict[str, Any]) -> list[Any]:
        """In the order of the columns."""
        return [row.get(name) for name in self.columns]

    def write(self) -> None:
        """Both files."""
        tree = {"about": self.about, "title": self.title, "remarks": self.remarks, "rows": self.rows}
        report.write(self.path, json.dumps(tree, indent=1) + "\n")
        report.write(self.path.with_suffix(".md"), self.markdown())

    def markdown(self) -> str:
        """The page."""
        lines = [f"# {self.title}", "", report.headline(self.about), "", *self.remarks, ""]
        lines += ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        lines += ["| " + " | ".join(map(shown, self.cells(row))) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """
    >>> shown(None), shown(0.123456), shown("a")
    ('', '0.1235', 'a')
    """
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
