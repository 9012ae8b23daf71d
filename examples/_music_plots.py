"""The picture of a piece that the network went on with."""

from __future__ import annotations

import numpy as np
from _midi import LOWEST
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from training.plots import BLUE, GREY, ORANGE, png


def draw_continuation(prompt: np.ndarray, drawn: np.ndarray, p: np.ndarray, title: str) -> bytes:
    """Above, the prompt's keys and those that were drawn; below, the probabilities they were drawn from."""
    heard = np.concatenate([prompt != 0, 2 * (drawn != 0)])
    given = np.concatenate([np.full(prompt.shape, np.nan), p])
    used = np.flatnonzero(heard.any(0) | (np.nan_to_num(given) > 0.1).any(0))
    low, high = max(used.min(initial=39) - 2, 0), min(used.max(initial=39) + 3, heard.shape[1])
    box = (0, len(heard), LOWEST + low - 0.5, LOWEST + high - 0.5)

    figure = Figure(figsize=(10, 7.6), layout="constrained")
    figure.suptitle(title, fontsize=13, parse_math=False)
    above, below = figure.subplots(2, sharex=True)
    colours = ListedColormap(["white", GREY, BLUE])
    look = {"aspect": "auto", "origin": "lower", "interpolation": "nearest", "extent": box}
    above.imshow(heard[:, low:high].T, cmap=colours, vmin=0, vmax=2, **look)
    above.set_title("which keys sound", fontsize=11, loc="left")
    patches = [Patch(color=GREY, label="given: a beginning"), Patch(color=BLUE, label="drawn by the network")]
    above.legend(
        handles=patches, loc="lower right", bbox_to_anchor=(1, 1), fontsize=10, ncols=2, frameon=False
    )

    shades = LinearSegmentedColormap.from_list("probability", ["white", ORANGE, "#401500"])
    image = below.imshow(given[:, low:high].T, cmap=shades, vmin=0, vmax=1, **look)
    below.set_title("how probable the network found each key, before it drew", fontsize=11, loc="left")
    bar = figure.colorbar(image, ax=[above, below], location="right", shrink=0.45, anchor=(0, 0))
    bar.set_label("probability that the key sounds")
    below.set_xlabel("frame", fontsize=12)
    for ax in (above, below):
        octaves = [note for note in range(LOWEST, LOWEST + 88) if note % 12 == 0 and box[2] < note < box[3]]
        ax.set_yticks(octaves, [f"C{note // 12 - 1}" for note in octaves])
        ax.set_ylabel("key", fontsize=12)
        ax.grid(axis="y", alpha=0.3)
        ax.axvline(len(prompt), color="#222222", linewidth=1.2, linestyle="--")
    return png(figure)
