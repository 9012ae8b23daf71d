"""The two pictures of ``recurrent_policy.py``, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from _t_maze import LEFT, RIGHT, Maze, TMaze
from matplotlib.figure import Figure
from training.plots import BLACK, BLUE, GREEN, GREY, ORANGE, png

import lstm_jax

CUES, COLOURS = ("left", "right"), (BLUE, ORANGE)
LINE = {"linewidth": 1.8, "marker": "o", "markersize": 4}


def draw_curves(rows: Sequence[Mapping[str, float]], cell: str, title: str) -> bytes:
    """Share of successful episodes against steps in the maze, with and without memory."""
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
        "the most that any policy can reach without memory: 50 %",
        ha="right",
        fontsize=11,
        color=GREY,
    )
    ax.set(xlim=(0, thousands[-1]), ylim=(0, 103))
    ax.set_xlabel("thousand steps in the maze, of each agent", fontsize=12)
    ax.set_ylabel("episodes that end in the correct arm (%)", fontsize=12)
    _finish(ax, title)
    return png(figure)


def draw_memory(rules: TMaze, agent: Any, params: Any, memory: Any, steps: Any) -> bytes:
    """The unit that tells the cues apart best: in a row of packed episodes, and in a longer corridor.

    ``steps`` is what followed on ``memory`` in a rollout; ``agent`` and ``params`` are those who acted.
    """
    _, learned = walk(rules, agent, params)
    unit = int(np.abs(learned[:, LEFT] - learned[:, RIGHT]).min(0).argmax())  # apart at every place
    logits, farther = walk(TMaze(2 * rules.length), agent, params)
    row = int(np.abs(np.mean(steps.cue, 0) - 0.5).argmin())  # with episodes of either cue
    packed, without = (
        remembered(agent, params, memory, steps.seen, resets)[:, row, unit] for resets in (steps.first, None)
    )

    figure = Figure(figsize=(9, 6.6), layout="constrained")
    above, below = figure.subplots(2)
    above.set_xlabel("step of the row", fontsize=12)
    _draw_packed(above, packed, without, np.asarray(steps.first[:, row]), np.asarray(steps.cue[:, row]))
    _finish(above, "A row as learning sees it: episodes one after another, a reset where each begins")
    _draw_walks(below, farther[:, :, unit], jax.nn.softmax(logits[-1]))
    below.set_xlabel("place; between its ends the corridor looks the same everywhere", fontsize=12)
    _finish(below, "An episode of each cue, in a corridor twice as long as that of the training")
    for ax in (above, below):
        kind = "cell state c" if isinstance(agent.core, lstm_jax.LSTM) else "state h"
        ax.set_ylabel(f"{kind} of unit {unit}", fontsize=12)
    return png(figure)


def walk(rules: TMaze, agent: Any, params: Any) -> tuple[jax.Array, np.ndarray]:
    """Straight to the junction after either cue: logits (places, 2, A), and the states (places, 2, H)."""
    place, cue = np.meshgrid(np.arange(rules.length + 1), [LEFT, RIGHT], indexing="ij")
    seen = jax.vmap(jax.vmap(rules.observe))(Maze(cue, place, place))
    memory = agent.core.initial_carry((2,), params["core"])
    _, logits, _ = agent.replay(params, memory, seen, place == 0)
    return logits, remembered(agent, params, memory, seen, None)


def remembered(agent: Any, params: Any, memory: Any, seen: jax.Array, resets: Any) -> np.ndarray:
    """The core's state after each step, (T, B, H): c of an LSTM, h of the others."""
    _, (_, carries) = lstm_jax.unroll(
        agent.core, params["core"], seen, memory, resets=resets, return_carries=True
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
    if not first[0]:
        ax.set_xlabel("step of the row, whose first episode goes on from the row before", fontsize=12)
    ax.set_xlim(-0.5, len(first) - 0.5)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=11, frameon=False)


def _draw_walks(ax: Any, state: np.ndarray, policy: jax.Array) -> None:
    end = len(state) - 1
    for cue, (name, colour) in enumerate(zip(CUES, COLOURS, strict=True)):
        ax.plot(state[:, cue], color=colour, **LINE)
        said = f"{name} cue:\nturns {name}\nwith {policy[cue, cue]:.1%}"
        ax.text(
            1.015,
            state[-1, cue],
            said,
            color=colour,
            fontsize=11,
            va="center",
            transform=ax.get_yaxis_transform(),
        )
    ticks = [*range(0, end, max(1, end // 10)), end]
    names = {0: "0\ncue", end: f"{end}\njunction"}
    ax.set_xticks(ticks, [names.get(tick, str(tick)) for tick in ticks])
    ax.set_xlim(-0.5, end + 0.5)


def _finish(ax: Any, title: str) -> None:
    ax.set_title(title, fontsize=12)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
