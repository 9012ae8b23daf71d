"""The pictures of ``recurrent_policy.py``: learning curves, and the state of one unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from _t_maze import LEFT, RIGHT, Maze, TMaze
from matplotlib.figure import Figure
from training.plots import BLACK, BLUE, GREEN, GREY, ORANGE, png, style

import lstm_jax

CUES, COLOURS = ("left", "right"), (BLUE, ORANGE)
LINE = {"linewidth": 1.8, "marker": "o", "markersize": 4}


def draw_curves(rows: Sequence[Mapping[str, float]], cell: str, title: str) -> bytes:
    """Fraction of successful episodes against environment steps, with and without memory."""
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    ax = figure.add_subplot()
    thousands = [row["environment_steps"] / 1000 for row in rows]
    for name, label, colour in ((cell, cell.upper(), GREEN), ("none", "without memory", BLACK)):
        success = [100 * row[f"{name}_success"] for row in rows]
        ax.plot(thousands, success, color=colour, linewidth=1.8)
        label = f"{label}\n{100 * rows[-1][f'{name}_test']:.1f} % in the test"
        ax.annotate(
            label,
            (1.015, success[-1]),
            xycoords=ax.get_yaxis_transform(),
            color=colour,
            fontsize=12,
            va="center",
        )
    ax.axhline(50, color=GREY, linestyle="--", linewidth=1.3, zorder=0)
    ax.text(
        thousands[-1],
        53,
        "upper bound without memory: 50 %",
        ha="right",
        fontsize=11,
        color=GREY,
    )
    ax.set(xlim=(0, thousands[-1]), ylim=(0, 103))
    ax.set_title(title, fontsize=12)
    style(ax, "thousand environment steps of each agent", "successful episodes (%)")
    return png(figure)


def draw_memory(rules: TMaze, agent: Any, params: Any, memory: Any, steps: Any) -> bytes:
    """The state of the unit that differs most between the cues, in a training row and in a longer corridor.

    ``steps`` are those of a rollout of ``agent`` with ``params`` that started with the carry ``memory``.
    """
    _, learned = straight_path(rules, agent, params)
    difference = np.abs(learned[:, LEFT] - learned[:, RIGHT]).min(0)  # the smallest one over the places
    unit = int(difference.argmax())
    logits, farther = straight_path(TMaze(2 * rules.length), agent, params)
    row = int(np.abs(np.mean(steps.cue, 0) - 0.5).argmin())  # a row with episodes of both cues
    with_resets, without = (
        states(agent, params, memory, steps.obs, resets)[:, row, unit] for resets in (steps.first, None)
    )

    figure = Figure(figsize=(9, 6.6), layout="constrained")
    above, below = figure.subplots(2)
    kind = "cell state c" if isinstance(agent.core, lstm_jax.LSTM) else "state h"
    y = f"{kind} of unit {unit}"
    first = np.asarray(steps.first[:, row])
    _draw_packed(above, with_resets, without, first, np.asarray(steps.cue[:, row]))
    above.set_title("A training row: consecutive episodes, with a reset at the start of each", fontsize=12)
    style(above, "step" if first[0] else "step (the first episode started in the previous row)", y)
    _draw_paths(below, farther[:, :, unit], jax.nn.softmax(logits[-1]))
    below.set_title("An episode of each cue, in a corridor twice as long as in training", fontsize=12)
    style(below, "place (all places between the ends have the same observation)", y)
    return png(figure)


def straight_path(rules: TMaze, agent: Any, params: Any) -> tuple[jax.Array, np.ndarray]:
    """Move straight to the junction after either cue: logits (places, 2, A) and states (places, 2, H)."""
    place, cue = np.meshgrid(np.arange(rules.length + 1), [LEFT, RIGHT], indexing="ij")
    obs = jax.vmap(jax.vmap(rules.observe))(Maze(cue, place, place))
    memory = agent.core.initial_carry((2,), params["core"])
    _, logits, _ = agent.replay(params, memory, obs, place == 0)
    return logits, states(agent, params, memory, obs, None)


def states(agent: Any, params: Any, memory: Any, obs: jax.Array, resets: Any) -> np.ndarray:
    """The core's state after each step, (T, B, H): c of an LSTM, h of other cells."""
    _, (_, carries) = lstm_jax.unroll(
        agent.core, params["core"], obs, memory, resets=resets, return_carries=True
    )
    return np.asarray(jax.tree.leaves(carries)[-1])


def _draw_packed(ax: Any, state: np.ndarray, without: np.ndarray, first: np.ndarray, cue: np.ndarray) -> None:
    begins = np.flatnonzero(first)
    for begin in begins:
        ax.axvline(begin - 0.5, color=BLACK, linewidth=1, label="reset" if begin == begins[0] else None)
    ax.plot(without, color=GREY, linestyle=":", linewidth=1.6, label="without resets")
    starts = np.union1d([0], begins)
    for start, end in zip(starts, [*starts[1:], len(first)], strict=True):
        ax.plot(range(start, end), state[start:end], color=COLOURS[cue[start]], **LINE)
    for name, colour in zip(CUES, COLOURS, strict=True):
        ax.plot([], color=colour, label=f"{name} cue", **LINE)
    ax.set_xlim(-0.5, len(first) - 0.5)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=11, frameon=False)


def _draw_paths(ax: Any, state: np.ndarray, policy: jax.Array) -> None:
    end = len(state) - 1
    for cue, (name, colour) in enumerate(zip(CUES, COLOURS, strict=True)):
        ax.plot(state[:, cue], color=colour, **LINE)
        label = f"{name} cue:\nP(turn {name})\n= {policy[cue, cue]:.1%}"
        ax.text(
            1.015,
            state[-1, cue],
            label,
            color=colour,
            fontsize=11,
            va="center",
            transform=ax.get_yaxis_transform(),
        )
    ticks = [*range(0, end, max(1, end // 10)), end]
    names = {0: "0\ncue", end: f"{end}\njunction"}
    ax.set_xticks(ticks, [names.get(tick, str(tick)) for tick in ticks])
    ax.set_xlim(-0.5, end + 0.5)
