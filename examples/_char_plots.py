"""The picture ``gates.png`` of ``char_lm.py``: gates and cell states while the network reads a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from _char_model import Model, Params, features
from _char_text import encode
from matplotlib import font_manager
from matplotlib.figure import Figure
from training import plots

import lstm_jax

BEFORE, SHOWN = 500, 72  # characters: read before the picture, shown in it
MONOSPACE = "DejaVu Sans Mono"  # included in matplotlib
SHOWN_AS = {" ": "␣", "\n": "↵", "\t": "→"}


def draw_gates(model: Model, params: Params, text: str) -> bytes:
    """A few units while the network reads a line near the beginning of ``text``, as PNG bytes."""
    text, last = excerpt(text)
    values = activity(model, params, encode(text, model.vocabulary))
    *gates, (name, state) = [(name, np.asarray(values)[-last:]) for name, values in values.items()]
    state = state / np.abs(state).max(0)
    units = choose_units(state)
    panels = [*gates, (f"{name} (each unit divided by its largest absolute value)", state)]
    title = f"{model.cell.upper()}, layer {model.layers}, on held-out text: units from slow to fast"
    return draw_units(text[-last:], {name: values[:, units] for name, values in panels}, units, title)


def excerpt(text: str) -> tuple[str, int]:
    """The beginning of the text, and the number of characters at its end to show, which start a line."""
    at_most = max(0, min(BEFORE, len(text) - SHOWN))
    begin = text.rfind("\n", 0, at_most) + 1
    text = text[: begin + SHOWN]
    return text, len(text) - begin


def activity(model: Model, params: Params, ids: np.ndarray) -> dict[str, jax.Array]:
    """Gates and state of the last recurrent layer at each character, (T, H) each. The state comes last."""
    network, layer = model.network(), model.layers - 1
    xs = features(network, params, ids)
    _, (_, carries) = lstm_jax.unroll(network, params["layers"], xs, return_carries=True)
    if model.cell != "lstm":
        return {"hidden state h": carries[layer]}
    # The gates at step t depend on the carry after step t - 1 and on the layer's input at step t.
    first = network.initial_carry((), params["layers"])[layer]
    before = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), first, carries[layer])
    inputs = carries[layer - 1][0] if layer else xs
    i, f, _, o = lstm_jax.lstm_gates(params["layers"][layer], before, inputs)
    return {
        "forget gate f: 1 keeps the cell state, 0 erases it": f,
        "input gate i: 1 adds the new value, 0 ignores it": i,
        "output gate o: 1 outputs tanh(c), 0 outputs zero": o,
        "cell state c": carries[layer][1],
    }


def choose_units(state: np.ndarray, count: int = 10) -> np.ndarray:
    """Units from slow to fast.

    The units are ordered by their speed and split into ``count`` groups. From each group, the unit with the
    largest variance is chosen.
    """
    variance = state.var(0)
    speed = np.square(np.diff(state, axis=0)).mean(0) / np.maximum(variance, 1e-9)
    groups = np.array_split(np.argsort(speed), min(count, len(speed)))
    return np.array([group[variance[group].argmax()] for group in groups])


def draw_units(text: str, panels: Mapping[str, np.ndarray], units: Sequence[int], title: str) -> bytes:
    """A heat map for each panel (T, units): one row per unit, one column per character of ``text``.

    The last panel is a state in [-1, 1]. The panels before it are gates in [0, 1].
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
        ticks = [_visible(character) for character in text]
        ax.set_xticks(range(len(text)), ticks, family=MONOSPACE, fontsize=11, parse_math=False)
        ax.tick_params(length=0)
        figure.colorbar(image, ax=ax, pad=0.01, aspect=12)
    axes[-1].set_xlabel("input characters (␣: space, ↵: end of line)", fontsize=11)
    return plots.png(figure)


def _visible(character: str) -> str:
    """The axis label of a character: the character itself if the font can show it."""
    shown = SHOWN_AS.get(character, character)
    font = font_manager.get_font(font_manager.findfont(MONOSPACE))
    return shown if shown.isprintable() and font.get_char_index(ord(shown)) else "□"
