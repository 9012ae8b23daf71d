"""The figures of ``look_inside.py``: one layer of a character model, as PNG bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _char_model import Model, Params, features
from _char_plots import LayerStates, excerpt, gate_map
from _char_text import encode
from training import plots as files

import lstm_jax
from lstm_jax import diagnostics, plots

LAG, ROWS = 100, 16  # of the gradients: characters per row, and rows
MAPPED = 48  # characters of the memory map
STEPS = 300  # of the trajectory and the Lyapunov exponents
EXPONENTS = 20
#: Bounds on the time: products of S x S matrices, and the states of a cell whose fixed points are computed.
PRODUCTS, MOST_STATES = 4e8, 600


def draw_figures(
    model: Model, params: Params, layer: LayerStates, text: str, index: int, unit: int | None
) -> Iterator[tuple[str, bytes]]:
    """``(file name, PNG bytes)`` of each figure that the layer's cell has. ``unit`` is shown in detail."""
    cell, weights = layer.cell, layer.params
    beginning, shown = excerpt(text)
    start = len(beginning) - shown
    tokens = text[start : start + shown]
    xs = layer.xs[start : start + shown]
    before = layer.carry_before(start)
    size = sum(a.shape[-1] for a in jax.tree.leaves(layer.carries))

    def finish(name: str, figure: Any) -> tuple[str, bytes]:
        return f"{name}.png", files.png(figure)

    if layer.gates is not None:
        yield finish("gates", gate_map(layer, text, start, start + shown))
        yield finish("saturation", plots.saturation_scatter(diagnostics.saturation(cell, weights, layer.xs)))
        found = diagnostics.memory(cell, weights, xs[:MAPPED], before, average=True)
        yield finish("memory", plots.memory_map(found, tokens[:MAPPED], width=6.5))
        constants = diagnostics.time_constants(cell, weights, layer.xs)
        yield finish("time_constants", plots.time_constants(constants))
        if isinstance(layer.gates.gates, lstm_jax.LSTMGates):
            gates, after = jax.tree.map(lambda a: a[start : start + shown], (layer.gates, layer.carries))
            step = shown // 2
            figure = plots.cell_diagram(gates, after, step=step, unit=unit, tokens=tokens, initial=before)
            yield finish("cell", figure)

    flows = gradient_flows(model, params, text, index)
    if flows:
        yield finish("gradients", plots.gradient_norms(flows))
    steps = int(np.clip(PRODUCTS / size**3, 2, shown))
    found = diagnostics.jacobians(cell, weights, xs[:steps], before)
    yield finish("eigenvalues", plots.eigenvalues(found))
    count = min(EXPONENTS, size)
    found = diagnostics.lyapunov_exponents(cell, weights, layer.xs[:STEPS], count=count)
    yield finish("lyapunov", plots.lyapunov_spectrum(found))
    trajectory = jax.tree.map(lambda a: a[:STEPS], layer.carries)
    points = None
    if size <= MOST_STATES:
        number = int(np.clip(PRODUCTS / 2 / size**3, 2, 16))
        places = np.linspace(0, len(layer.xs) - 1, number).astype(int)
        candidates = jax.tree.map(lambda a: a[places], layer.carries)
        points = diagnostics.fixed_points(cell, weights, layer.xs.mean(axis=0), candidates, iterations=60)
    yield finish("state_space", plots.state_space(trajectory, points))


def gradient_flows(
    model: Model, params: Params, text: str, index: int
) -> dict[str, diagnostics.GradientFlow]:
    """How far the gradient of a character's loss reaches back in the layer, with trained and new weights."""
    lag = min(LAG, len(text) - 1)
    rows = min(ROWS, (len(text) - 1) // lag)
    ids = encode(text[: rows * lag + 1], model.vocabulary)
    inputs, targets = ids[:-1].reshape(rows, lag).T, ids[lag::lag]
    network = model.network()

    def loss(logits: jax.Array) -> jax.Array:
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits[-1], targets))

    weights = {"after training": params, "before training": model.init(jax.random.key(0))}
    return {
        name: diagnostics.gradient_flow(loss, network, w["layers"], features(network, w, inputs))[str(index)]
        for name, w in weights.items()
    }
