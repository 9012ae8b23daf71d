"""Gates and states of a layer over a text: the picture ``gates.png``, and the page ``inside/viewer.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from _char_model import Model, Params, features
from _char_text import encode
from matplotlib import font_manager
from matplotlib.figure import Figure
from training import plots
from training.distributed import is_first

import lstm_jax
from lstm_jax import diagnostics
from lstm_jax.plots import write_viewer

BEFORE, SHOWN = 500, 72  # characters: read before the picture, shown in it
PAGE = 10_000  # characters on the page, about 5 MB with 128 units
MONOSPACE = "DejaVu Sans Mono"  # included in matplotlib
SHOWN_AS = {" ": "␣", "\n": "↵", "\t": "→"}


def draw_gates(model: Model, params: Params, text: str) -> bytes:
    """A few units while the network reads a line near the beginning of ``text``, as PNG bytes."""
    text, last = excerpt(text)
    values = panels_of(read_layer(model, params, text, model.layers - 1))
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


class LayerStates(NamedTuple):
    """A recurrent layer over a text of T characters."""

    cell: Any
    params: Any
    xs: jax.Array  # (T, D) inputs of the layer
    gates: diagnostics.Gates | None  # None for a cell without gates
    carries: Any  # after each character, (T, H) each
    initial: Any  # the carry before the first character

    @property
    def memory(self) -> jax.Array:
        """The state that the layer passes on: c of an LSTM, h of other cells."""
        return self.carries[1] if isinstance(self.carries, tuple) else self.carries

    @property
    def outputs(self) -> jax.Array:
        return self.carries[0] if isinstance(self.carries, tuple) else self.carries

    def carry_before(self, t: int) -> Any:
        return jax.tree.map(lambda a: a[t - 1], self.carries) if t else self.initial


def read_layer(model: Model, params: Params, text: str, index: int) -> LayerStates:
    """Run the network over a text."""
    network = model.network()
    xs = features(network, params, encode(text, model.vocabulary))
    _, (_, carries) = lstm_jax.unroll(network, params["layers"], xs, return_carries=True)
    cell, weights = network.layers[index], params["layers"][index]
    if index:
        before = carries[index - 1]
        xs = before[0] if isinstance(before, tuple) else before
    gates = None if model.cell == "rnn" else diagnostics.gates(cell, weights, xs)
    initial = cell.initial_carry((), weights)
    return LayerStates(cell, weights, xs, gates, carries[index], initial)


def write_page(path: Path, layer: LayerStates, text: str, title: str) -> None:
    """Write the viewer page of a layer over at most ``PAGE`` characters. Its folder is created.

    Every process computes the values, and the first one writes them.
    """
    values = {"hidden state": layer.outputs}
    if layer.gates is not None:
        if isinstance(layer.carries, tuple):
            values = {"forget gate": layer.gates.gates.f, "cell state": layer.memory} | values
        else:
            values = {"update gate": layer.gates.gates.z} | values
    arrays = {name: np.asarray(a)[:PAGE] for name, a in values.items()}
    if is_first():
        path.parent.mkdir(exist_ok=True)
        write_viewer(path, text[:PAGE], arrays, title=title)


def panels_of(layer: LayerStates) -> dict[str, jax.Array]:
    """Gates and state of a layer at each character, (T, H) each. The state comes last."""
    if layer.gates is None or not isinstance(layer.carries, tuple):
        return {"hidden state h": layer.outputs}
    i, f, _, o = layer.gates.gates
    return {
        "forget gate f: 1 keeps the cell state, 0 erases it": f,
        "input gate i: 1 adds the new value, 0 ignores it": i,
        "output gate o: 1 outputs tanh(c), 0 outputs zero": o,
        "cell state c": layer.memory,
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
