"""The images of ``digits.py`` as sequences of pixels."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from training import UserError, order_of

SPLIT = (0.15, 0.15)  # shares of the validation and of the test images


class Images(NamedTuple):
    """Images with ink in [0, 1], and what they show."""

    images: np.ndarray  # (N, height, width)
    labels: np.ndarray  # (N,)

    def take(self, rows: np.ndarray) -> Images:
        return Images(self.images[rows], self.labels[rows])


def read_images(path: Path | None) -> Images:
    """The file's images, or scikit-learn's."""
    if path is None:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UserError(
                "the digits are in scikit-learn: pip install 'lstm_jax[examples]', or give --images"
            ) from None
        digits = load_digits()
        return Images(digits.images.astype(np.float32) / 16, digits.target.astype(np.int32))
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or 'it is no .npz file'}") from None
    except (KeyError, ValueError, TypeError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} does not hold arrays 'images' and 'labels': {error}") from None
    if images.ndim != 3 or labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{path} has images {images.shape} and labels {labels.shape} of {labels.dtype}; "
            "expected (N, height, width) and N whole numbers"
        )
    images = images.astype(np.float32)
    drawn = images.size and np.isfinite(images).all() and images.min() >= 0 and images.max() > 0
    if not drawn or labels.min() < 0:
        raise UserError(f"{path}: ink has to be finite and from 0, some of it above, and labels from 0")
    return Images(images / images.max(), labels.astype(np.int32))


def split(data: Images, seed: int) -> tuple[Images, Images, Images]:
    """Training, validation and test images, in an order decided by the seed."""
    order = order_of(len(data.labels), seed, 0)
    valid, test = (round(share * len(order)) for share in SPLIT)
    if min(valid, test) == 0:
        raise UserError(f"there are {len(order)} images; 10 are needed at least")
    return data.take(order[valid + test :]), data.take(order[:valid]), data.take(order[valid : valid + test])


def shifted(images: np.ndarray, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """Each image moved by up to ``pixels`` up or down and left or right; what moves out is lost."""
    padded = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels)))
    _, height, width = images.shape
    moves = rng.integers(0, 2 * pixels + 1, (len(images), 2))
    return np.stack(
        [image[i : i + height, j : j + width] for image, (i, j) in zip(padded, moves, strict=True)]
    )


def pixels_of(images: np.ndarray) -> np.ndarray:
    """An image as a sequence of its pixels, row by row: (N, height, width) -> (N, T, 1)."""
    return images.reshape(len(images), -1, 1)


def lengths_of(images: np.ndarray) -> np.ndarray:
    """How many pixels there are until the last one with ink, (N,): the blank ones after it tell nothing."""
    ink = images.reshape(len(images), -1) > 0
    return np.where(ink.any(1), ink.shape[1] - np.argmax(ink[:, ::-1], axis=1), 0).astype(np.int32)


def batch_from(data: Images, ragged: bool) -> dict[str, np.ndarray]:
    """What the network reads: pixels (N, T, 1), lengths (N,), labels (N,)."""
    images, labels = data
    lengths = lengths_of(images) if ragged else np.full(len(images), images[0].size, np.int32)
    return {"x": pixels_of(images), "lengths": lengths, "label": labels}
