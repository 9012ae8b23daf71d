"""What the figures share: a new figure, colours, labels, and the checks of arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_jax._errors import is_number, listing, value_error
from lstm_jax._types import is_float

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The palette of Okabe and Ito (2008), which is distinguishable for colour-blind readers.
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
)
GREY, BLACK = "#8A8A8A", "#222222"
CATEGORIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
SEQUENTIAL, DIVERGING = "cividis", "PuOr"  # orange below 0, white at 0, purple above

FEW_POINTS = 50  # that are drawn large and without transparency

FONT_SIZE, SMALL = 8.0, 7.0  # points
MONOSPACE = "DejaVu Sans Mono"  # included in matplotlib
TOKEN_WIDTH, TOKEN_HEIGHT = 0.075, 0.1  # inches, of a character of size SMALL with some space
LONGEST_LABEL = 12  # characters of a token below or beside an axis
LEGEND_HANDLE, LEGEND_LETTER = 0.46, 0.056  # inches, of a handle with the spaces around it and a letter
SHOWN_AS = {" ": "␣", "\n": "↵", "\t": "→"}


def new_figure(owner: str, width: float, height: float) -> Figure:
    """An empty figure, of a size in inches, that belongs to no window."""
    if not is_number(width) or not 1 <= width <= 100:
        raise value_error(
            f"{owner} got width={width!r}",
            "a number of inches from 1 to 100",
            "Use 3.3 for one column of a paper.",
        )
    try:
        from matplotlib.figure import Figure
    except ImportError:
        message = 'The figures of lstm_jax.plots need matplotlib: pip install "lstm_jax[plots]"'
        raise ImportError(message) from None
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def style(ax: Any, x: str = "", y: str = "", title: str = "") -> None:
    """Set labels and font sizes; remove the upper and right borders."""
    ax.set_xlabel(x, fontsize=FONT_SIZE)
    ax.set_ylabel(y, fontsize=FONT_SIZE)
    ax.set_title(title, fontsize=FONT_SIZE, loc="left")
    ax.tick_params(which="both", labelsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)


def legend(ax: Any, **options: Any) -> None:
    """A legend above the axes, in the small font, with as many columns as the width permits."""
    _, labels = ax.get_legend_handles_labels()
    place: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (0, 1),
        "borderaxespad": 0.3,
        "columnspacing": 1.2,
        "ncols": _legend_columns(list(map(len, labels)), ax.figure.get_figwidth() - 0.6),
    }
    ax.legend(fontsize=SMALL, frameon=False, **place | options)


def _legend_columns(lengths: list[int], inches: float) -> int:
    """The number of columns for labels of these lengths; matplotlib fills column after column."""
    for count in range(len(lengths), 1, -1):
        columns = (max(column) for column in np.array_split(lengths, count))
        if sum(LEGEND_HANDLE + LEGEND_LETTER * longest for longest in columns) <= inches:
            return count
    return 1


def whole_numbers(axis: Any) -> None:
    """Ticks at whole numbers only, for axes of steps and of counts."""
    axis.get_major_locator().set_params(integer=True)


def colour_bar(figure: Figure, image: Any, ax: Any, label: str, **options: Any) -> None:
    """A colour bar with its label."""
    bar: Any = figure.colorbar(image, ax=ax, pad=0.02, **options)
    bar.set_label(label, fontsize=FONT_SIZE)
    bar.ax.tick_params(which="both", labelsize=SMALL)
    bar.outline.set_visible(False)


def marker(count: int) -> dict[str, Any]:
    """Options of a scatter plot: the more points, the smaller and more transparent."""
    size, alpha = (18, 0.9) if count <= FEW_POINTS else (9, 0.5) if count <= 2000 else (3, 0.25)
    return {"s": size, "alpha": alpha, "linewidths": 0, "rasterized": count > 2000}


# --- tokens ---------------------------------------------------------------------------------------


def token_ticks(axis: Any, tokens: Sequence[str] | None, inches: float) -> bool:
    """Label the positions of an axis with the tokens if there is space for them; return whether there is."""
    if not tokens:
        return False
    shown = list(map(tick_label, tokens))
    one_each = max(map(len, shown)) <= 1
    turn = axis.axis_name == "x" and not one_each  # longer tokens on the x axis are turned
    if len(shown) * (TOKEN_WIDTH if one_each and axis.axis_name == "x" else TOKEN_HEIGHT) > inches:
        return False
    turned: dict[str, Any] = {"rotation": "vertical"} if turn else {}
    axis.set_ticks(range(len(shown)), shown, family=MONOSPACE, parse_math=False, **turned)
    axis.set_tick_params(length=0, pad=3)
    return True


def tick_label(token: str) -> str:
    """A visible token; a long one ends after ``LONGEST_LABEL`` characters."""
    shown = visible(token)
    return shown if len(shown) <= LONGEST_LABEL else shown[: LONGEST_LABEL - 1] + "…"


def label_height(tokens: Sequence[str] | None) -> float:
    """Inches below an axis for tokens of more than one character, which are turned."""
    longest = max((len(tick_label(token)) for token in tokens or ()), default=0)
    return 0.06 * longest if longest > 1 else 0.0


def visible(token: str) -> str:
    """A token with marks for white space and for characters that the font lacks."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(MONOSPACE))
    marked = (SHOWN_AS.get(character, character) for character in token)
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "□" for c in marked)


def check_tokens(owner: str, tokens: Any, length: int) -> list[str] | None:
    """The tokens as a list of ``length`` strings."""
    if tokens is None:
        return None
    if len(tokens) != length or not all(isinstance(token, str) for token in tokens):
        raise value_error(
            f"{owner} got {len(tokens)} tokens, among them {listing(map(repr, tokens), 3)}",
            f"{length} strings, one for each step",
            "Decode the indices first: [vocabulary[k] for k in indices].",
        )
    return list(tokens)


# --- results of the diagnostics -------------------------------------------------------------------


def check_record(owner: str, name: str, value: Any, *types: type) -> None:
    """One layer's result of a function of ``lstm_jax.diagnostics``."""
    if isinstance(value, types):
        return
    got, hint = f"type {type(value).__name__}", "Call the function of lstm_jax.diagnostics first."
    if isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value):
        got = f"the results of the layers {listing(map(repr, value))}"
        hint = f"Choose one layer: {name}[{next(iter(value))!r}]."
    expected = " or ".join(f"lstm_jax.diagnostics.{kind.__name__}" for kind in types)
    raise value_error(f"{owner} got {name} of {got}", expected, hint)


def check_unit(owner: str, unit: Any, count: int) -> int:
    """The index of one of ``count`` units."""
    if isinstance(unit, bool) or not isinstance(unit, (int, np.integer)) or not 0 <= unit < count:
        raise value_error(f"{owner} got unit={unit!r}", f"an index from 0 to {count - 1}", "Choose one unit.")
    return int(unit)


def row_index(owner: str, row: Any, valid: np.ndarray) -> tuple[Any, ...]:
    """An index of all steps of a row that has valid steps; None is the first row of the batch axes."""
    batch = valid.shape[1:]
    index = (0,) * len(batch) if row is None else row if isinstance(row, tuple) else (row,)
    whole = all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in index)
    if (
        not whole
        or len(index) != len(batch)
        or not all(0 <= i < n for i, n in zip(index, batch, strict=True))
    ):
        raise value_error(
            f"{owner} got row={row!r} for the batch axes {batch}",
            "an index of one row that exists",
            "Give an int for one batch axis, a tuple for several, and nothing for none.",
        )
    if not valid[(slice(None), *index)].any():
        raise value_error(
            f"{owner} got row {index} without valid steps", "one valid step or more", "Choose another row."
        )
    return (slice(None), *map(int, index))


def numbers(value: Any) -> np.ndarray:
    """A NumPy array; low-precision floats become float32."""
    array = np.asarray(value)
    return array.astype(np.float32) if is_float(array.dtype) and array.dtype != np.float64 else array


def largest(values: np.ndarray) -> float:
    """The largest absolute value that is finite, or 1 if there is none but zeros."""
    return float(np.max(np.abs(values), initial=0, where=np.isfinite(values))) or 1.0
