"""The picture of the gates that ``char_lm.py`` makes, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from training import plots

MONOSPACE = "DejaVu Sans Mono"  # comes with matplotlib
SHOWN_AS = {" ": "␣", "\n": "↵", "\t": "→"}


def draw_units(text: str, panels: Mapping[str, np.ndarray], units: Sequence[int], title: str) -> bytes:
    """A heat map for each panel (T, units): a row for each unit, a column for each character of ``text``.

    The last panel is a state in [-1, 1], those before it are gates in [0, 1].
    """
    figure = Figure(figsize=(14, 1.0 + len(panels) * (0.75 + 0.16 * len(units))), layout="constrained")
    figure.suptitle(title, fontsize=15)
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for ax, (name, values) in zip(axes, panels.items(), strict=True):
        low, colours = (-1, "PuOr_r") if ax is axes[-1] else (0, "cividis")
        image = ax.imshow(values.T, aspect="auto", cmap=colours, vmin=low, vmax=1, interpolation="nearest")
        ax.set_title(name, loc="left", fontsize=12)
        ax.set_ylabel("unit")
        ax.set_yticks(range(len(units)), [str(unit) for unit in units], fontsize=8)
        shown = [_visible(character) for character in text]
        ax.set_xticks(range(len(text)), shown, family=MONOSPACE, fontsize=11, parse_math=False)
        ax.tick_params(length=0)
        figure.colorbar(image, ax=ax, pad=0.01, aspect=12)
    axes[-1].set_xlabel("what was read, character by character (␣ a space, ↵ the end of a line)", fontsize=11)
    return plots.png(figure)


def _visible(character: str) -> str:
    """What stands on the axis for a character: itself, if there is something to see of it."""
    shown = SHOWN_AS.get(character, character)
    font = font_manager.get_font(font_manager.findfont(MONOSPACE))
    return shown if shown.isprintable() and font.get_char_index(ord(shown)) else "□"
