"""The pictures of ``digits.py``, as PNG bytes."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from training import plots

SHOWN = 12  # misread images at most


def draw_confusion(labels: np.ndarray, predicted: np.ndarray, classes: int, title: str) -> bytes:
    """How often each digit (row) was taken for each (column)."""
    table = np.zeros((classes, classes), int)
    np.add.at(table, (labels, predicted), 1)
    figure = Figure(figsize=(6.6, 6.4), layout="constrained")
    ax = figure.add_subplot()
    # By shares of a row, so that every digit counts the same.
    ax.imshow(table / np.maximum(table.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(table):
        if number:
            wrong = row != column
            colour = plots.ORANGE if wrong else "white" if number > table[row].sum() / 2 else plots.BLACK
            ax.text(
                column, row, str(number), ha="center", va="center", color=colour,
                fontsize=13 if wrong else 12, fontweight="bold" if wrong else "normal",
            )  # fmt: skip
    ax.set_xticks(range(classes))
    ax.set_yticks(range(classes))
    ax.set_xlabel("read as (mistakes in orange)", fontsize=12)
    ax.set_ylabel("what it is", fontsize=12)
    ax.set_title(title, fontsize=13)
    return plots.png(figure)


def draw_misread(images: np.ndarray, labels: np.ndarray, predicted: np.ndarray, title: str) -> bytes:
    """The first few images that were misread; a figure that says so where there is none."""
    count = min(len(images), SHOWN)
    columns = max(min(count, 6), 1)
    rows = max(-(-count // columns), 1)
    figure = Figure(figsize=(max(1.7 * columns, 6), 0.6 + 1.9 * rows), layout="constrained")
    more = f" (the first {count} of {len(images)})" if len(images) > count else ""
    figure.suptitle(
        f"Misread digits{more}: {title}" if count else f"No digit was misread: {title}", fontsize=12
    )
    for index, ax in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        ax.set_axis_off()
        if index < count:
            ax.imshow(images[index], cmap="Greys", vmin=0, vmax=1)
            ax.set_title(f"a {labels[index]}, read as {predicted[index]}", fontsize=11)
    return plots.png(figure)
