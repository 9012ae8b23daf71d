"""The images of ``digits.py``: reading them, sequences of their pixels, and pictures of the predictions."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from matplotlib.figure import Figure
from training import UserError, permutation, plots

SPLIT = (0.15, 0.15)  # fractions of validation and of test images
SHOWN = 12  # maximum number of misread images in a picture


class Images(NamedTuple):
    """Images with pixels in [0, 1] (ink is positive), and their classes."""

    images: np.ndarray  # (N, height, width)
    labels: np.ndarray  # (N,)

    def take(self, rows: np.ndarray) -> Images:
        return Images(self.images[rows], self.labels[rows])


# --- reading ---------------------------------------------------------------------------------------


def read_images(path: Path | None) -> Images:
    """Read an .npz file; without a path, scikit-learn's digits."""
    if path is None:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UserError(
                "the digits need scikit-learn: pip install 'lstm_jax[examples]', or use --images"
            ) from None
        digits = load_digits()
        return Images(digits.images.astype(np.float32) / 16, digits.target.astype(np.int32))
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or 'not an .npz file'}") from None
    except (KeyError, ValueError, TypeError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} does not contain the arrays 'images' and 'labels': {error}") from None
    if images.ndim != 3 or labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{path} has images {images.shape} and labels {labels.shape} of {labels.dtype}; "
            "expected (N, height, width) and N integers"
        )
    images = images.astype(np.float32)
    valid = images.size and np.isfinite(images).all() and images.min() >= 0 and images.max() > 0
    if not valid or labels.min() < 0:
        raise UserError(f"{path}: pixels must be finite and >= 0, some of them > 0, and labels >= 0")
    return Images(images / images.max(), labels.astype(np.int32))


def split(data: Images, seed: int) -> tuple[Images, Images, Images]:
    """Training, validation and test images, in an order that depends on the seed."""
    order = permutation(len(data.labels), seed, 0)
    valid, test = (round(fraction * len(order)) for fraction in SPLIT)
    if min(valid, test) == 0:
        raise UserError(f"there are {len(order)} images; at least 10 are needed")
    return data.take(order[valid + test :]), data.take(order[:valid]), data.take(order[valid : valid + test])


# --- sequences -------------------------------------------------------------------------------------


def shifted(images: np.ndarray, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """Shift each image vertically and horizontally by at most ``pixels``. Pixels outside are lost."""
    padded = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels)))
    _, height, width = images.shape
    moves = rng.integers(0, 2 * pixels + 1, (len(images), 2))
    return np.stack(
        [image[i : i + height, j : j + width] for image, (i, j) in zip(padded, moves, strict=True)]
    )


def lengths_of(images: np.ndarray) -> np.ndarray:
    """The number of pixels up to the last one with ink, (N,)."""
    ink = images.reshape(len(images), -1) > 0
    return np.where(ink.any(1), ink.shape[1] - np.argmax(ink[:, ::-1], axis=1), 0).astype(np.int32)


def batch_from(data: Images, ragged: bool) -> dict[str, np.ndarray]:
    """The network's inputs: pixels row by row (N, T, 1), lengths (N,), labels (N,)."""
    images, labels = data
    lengths = lengths_of(images) if ragged else np.full(len(images), images[0].size, np.int32)
    return {"x": images.reshape(len(images), -1, 1), "lengths": lengths, "label": labels}


# --- pictures --------------------------------------------------------------------------------------


def draw_confusion(labels: np.ndarray, predicted: np.ndarray, classes: int, title: str) -> bytes:
    """The confusion matrix: how often each digit (row) was predicted as each digit (column)."""
    table = np.zeros((classes, classes), int)
    np.add.at(table, (labels, predicted), 1)
    figure = Figure(figsize=(6.6, 6.4), layout="constrained")
    ax = figure.add_subplot()
    # Colours show fractions of a row, so that every digit has the same scale.
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
    ax.set_xlabel("predicted digit (errors in orange)", fontsize=12)
    ax.set_ylabel("true digit", fontsize=12)
    ax.set_title(title, fontsize=13)
    return plots.png(figure)


def draw_misread(images: np.ndarray, labels: np.ndarray, predicted: np.ndarray, title: str) -> bytes:
    """The first misread images. If there are none, the title states it."""
    count = min(len(images), SHOWN)
    columns = max(min(count, 6), 1)
    rows = max(-(-count // columns), 1)
    figure = Figure(figsize=(max(1.7 * columns, 6), 0.6 + 1.9 * rows), layout="constrained")
    more = f" (the first {count} of {len(images)})" if len(images) > count else ""
    figure.suptitle(f"Misread digits{more}: {title}" if count else f"No misread digit: {title}", fontsize=12)
    for index, ax in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        ax.set_axis_off()
        if index < count:
            ax.imshow(images[index], cmap="Greys", vmin=0, vmax=1)
            ax.set_title(f"{labels[index]}, read as {predicted[index]}", fontsize=11)
    return plots.png(figure)
