"""The two pictures of ``char_lm.py``, as PNG bytes. No global state: each figure is its own object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind too.
BLUE, ORANGE, GREY, BLACK = "#0072B2", "#D55E00", "#999999", "#222222"
MONOSPACE = "DejaVu Sans Mono"  # comes with matplotlib
SHOWN_AS = {" ": "␣", "\n": "↵", "\t": "→"}


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def draw_curve(rows: Sequence[Mapping[str, float]], baselines: Mapping[str, float], title: str) -> bytes:
    """Bits per character against characters seen, with a line for each of the baselines."""
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    ax = figure.add_subplot()
    end = rows[-1]["characters"]
    unit, name = (1e6, "million ") if end >= 1e6 else (1e3, "thousand ") if end >= 1e3 else (1, "")
    train = [(row["characters"] / unit, row["train_bits"]) for row in rows]
    valid = [(row["characters"] / unit, row["valid_bits"]) for row in rows if "valid_bits" in row]
    ax.plot(*zip(*train, strict=True), color=BLUE, linewidth=1.2, label="on the text it learns from")
    ax.plot(*zip(*valid, strict=True), color=ORANGE, linewidth=2, marker="o", label="on held-out text")
    for bits in baselines.values():
        ax.axhline(bits, color=GREY, linestyle="--", linewidth=1.3, zorder=0)
    ax.set_xlim(0, end / unit)
    ax.set_xlabel(f"{name}characters seen in training", fontsize=12)
    ax.set_ylabel("bits per character (lower is better)", fontsize=12)
    ax.set_title(title, fontsize=13, parse_math=False)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper right", fontsize=11)

    # The ends of the lines are named in the margin, one above the other where lines lie close.
    ends = [(bits, f"{label} {bits:.2f}", BLACK) for label, bits in baselines.items()]
    ends.append((valid[-1][1], f"held out {valid[-1][1]:.2f}", ORANGE))
    low, high = ax.get_ylim()
    place = -np.inf
    for bits, label, colour in sorted(ends):
        place = max(bits, place + 0.045 * (high - low))
        ax.text(
            1.015, place, label, transform=ax.get_yaxis_transform(), color=colour, fontsize=11, va="center"
        )
    return _png(figure)


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
    return _png(figure)


def _visible(character: str) -> str:
    """What stands on the axis for a character: itself, if there is something to see of it."""
    shown = SHOWN_AS.get(character, character)
    font = font_manager.get_font(font_manager.findfont(MONOSPACE))
    return shown if shown.isprintable() and font.get_char_index(ord(shown)) else "□"
