"""Gates and states of a layer over a text: the picture ``gates.png``, and the page ``inside/viewer.html``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from _char_model import Model, Params, features
from _char_text import encode
from training.distributed import is_first
from training.plots import png

import lstm_jax
from lstm_jax import diagnostics, plots

BEFORE, SHOWN = 500, 72  # characters: read before the picture, shown in it
PAGE = 10_000  # characters on the page, about 5 MB with 128 units


def draw_gates(model: Model, params: Params, text: str) -> bytes:
    """A few units while the network reads a line near the beginning of ``text``, as PNG bytes."""
    text, last = excerpt(text)
    layer = read_layer(model, params, text, model.layers - 1)
    start = len(text) - last
    figure = gate_map(layer, text, start, len(text), choose_units(scaled(layer.memory[start:])))
    title = f"{model.cell.upper()}, layer {model.layers}, on held-out text: units from slow to fast"
    figure.suptitle(title, fontsize=9)
    return png(figure)


def gate_map(layer: LayerStates, text: str, start: int, end: int, units: np.ndarray | None = None) -> Any:
    """The figure of the gates and the state from character ``start`` to ``end``; units None: all."""
    gates = jax.tree.map(lambda a: a[start:end], layer.gates)
    name = "cell state c" if isinstance(layer.carries, tuple) else "hidden state h"
    states = {f"{name} (each unit divided by its largest absolute value)": scaled(layer.memory[start:end])}
    return plots.gate_map(gates, text[start:end], states=states, units=units, width=7.5)


def scaled(state: jax.Array) -> np.ndarray:
    """Each unit of a state (T, H) divided by its largest absolute value."""
    state = np.asarray(state)
    return state / np.maximum(np.abs(state).max(axis=0), np.finfo(state.dtype).tiny)


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
        plots.write_viewer(path, text[:PAGE], arrays, title=title)


def choose_units(state: np.ndarray, count: int = 10) -> np.ndarray:
    """Units from slow to fast.

    The units are ordered by their speed and split into ``count`` groups. From each group, the unit with the
    largest variance is chosen.
    """
    variance = state.var(0)
    speed = np.square(np.diff(state, axis=0)).mean(0) / np.maximum(variance, 1e-9)
    groups = np.array_split(np.argsort(speed), min(count, len(speed)))
    return np.array([group[variance[group].argmax()] for group in groups])
