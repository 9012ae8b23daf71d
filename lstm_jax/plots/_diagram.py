"""The LSTM cell as lecture notes draw it, with the values of one step on its wires."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_jax._errors import tree_text, value_error
from lstm_jax._types import Array
from lstm_jax.cells.lstm import LSTMGates
from lstm_jax.diagnostics import Gates
from lstm_jax.plots import _figure as common

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OWNER = "cell_diagram"
#: Relative to the largest cell state; low-precision carries are rounded.
_TOLERANCE = 0.02
_GATE_X = {"f": 3.0, "i": 4.5, "g": 6.0, "o": 7.6}
_C, _H, _GATES, _PRODUCT, _OUTPUT = 5.2, 1.2, 2.1, 3.7, 3.0  # heights of the lines, boxes and products
_OUT = 9.1  # x of the output's tanh and product
_LEFT, _RIGHT = 0.2, 11.8
#: Values beside upright wires; the others are above their wires.
_LEFT_OF_WIRE, _RIGHT_OF_WIRE = ("f", "i"), ("g", "added", "tanh_c")


def cell_diagram(
    gates: Gates,
    carries: tuple[Array, Array],
    *,
    step: int,
    unit: int | None = None,
    tokens: Sequence[str] | None = None,
    initial: tuple[Array, Array] | None = None,
    row: int | tuple[int, ...] | None = None,
    width: float = 6.5,
) -> Figure:
    r"""An LSTM cell at one step: the cell state on top, the gates and the candidate below it.

    .. math::
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        h_t &= o_t \odot \tanh(c_t)

    Each wire has the value that it carries as a number. Its width and colour show the value, too: wide for
    large, blue for positive and orange for negative values.

    Args:
        gates: of one LSTM, from :func:`lstm_jax.diagnostics.gates`.
        carries: (h, c) after each step, (T, *batch, H) each, as ``unroll(..., return_carries=True)`` returns
            them for this layer.
        step: index of a valid step.
        unit: index of a unit; None: the mean of each value over all units. The means of products are not
            the products of the means.
        tokens: T strings, the inputs; the diagram shows the one of this step.
        initial: the carry (h, c) before the first step, which step 0 reads; None: zeros.
        row: index in the batch axes; None: the first row.
        width: of the figure, in inches. One column of a paper has about 3.3.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: an argument has a wrong type or shape, or the carries do not follow from the gates: they
            are those of another layer, run in reverse, restart at this step, or belong to a variant with
            other equations.

    >>> import jax, jax.numpy as jnp, lstm_jax
    >>> from lstm_jax import diagnostics, plots
    >>> cell = lstm_jax.LSTM(3, 8)
    >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((5, 3))
    >>> found = diagnostics.gates(cell, params, xs)
    >>> _, (_, carries) = lstm_jax.unroll(cell, params, xs, return_carries=True)
    >>> plots.cell_diagram(found, carries, step=4, unit=0).axes[0].get_title(loc="left")
    'step 4, unit 0'
    """
    values = _values(gates, carries, step, unit, initial, row)
    tokens = common.check_tokens(_OWNER, tokens, len(gates.valid))
    figure = common.new_figure(_OWNER, width, 0.53 * width)
    ax: Any = figure.add_subplot()
    ax.set(xlim=(0, 12), ylim=(0, 6.1), aspect="equal")
    ax.axis("off")
    size = float(np.clip(1.25 * width, 6, 10))
    from matplotlib.patches import FancyBboxPatch

    body: dict[str, Any] = {
        "boxstyle": "round,pad=0,rounding_size=0.3",
        "facecolor": "#F4F4F4",
        "edgecolor": common.GREY,
    }
    ax.add_patch(FancyBboxPatch((1.8, 0.65), 8.6, 5.15, linewidth=0.8, zorder=0, **body))
    _draw_wires(ax, values, size)
    _draw_operations(ax, size)
    token = "" if tokens is None else f" = {common.visible(tokens[step])}"
    ax.text(2.45, 0.28, f"$x_t${token}", fontsize=size, va="center")
    what = f"mean of {np.shape(carries[1])[-1]} units" if unit is None else f"unit {unit}"
    ax.set_title(f"step {step}, {what}", fontsize=size, loc="left")
    return figure


def _values(
    gates: Gates, carries: Any, step: int, unit: int | None, initial: Any, row: Any
) -> dict[str, float]:
    """The value on each wire, by its formula."""
    common.check_record(_OWNER, "gates", gates, Gates)
    if not isinstance(gates.gates, LSTMGates):
        got = type(gates.gates).__name__
        raise value_error(f"{_OWNER} got {got}", "LSTMGates", "The diagram shows an LSTM; use gate_map.")
    valid, shape = np.asarray(gates.valid), np.shape(gates.gates.f)
    _, *index = common.row_index(_OWNER, row, valid)
    for name, pair, axes in (("carries", carries, shape), ("initial", initial, shape[1:])):
        if pair is None and name == "initial":
            continue
        shapes = [np.shape(a) for a in pair] if isinstance(pair, (tuple, list)) else []
        if shapes != [axes, axes]:
            raise value_error(
                f"{_OWNER} got {name} {tree_text(pair)} for gates of shape {shape}",
                f"(h, c) of shape {axes} each",
                "Give the states of this layer from unroll(..., return_carries=True).",
            )
    whole = isinstance(step, (int, np.integer)) and not isinstance(step, bool) and 0 <= step < len(valid)
    if not whole or not valid[(step, *index)]:
        raise value_error(
            f"{_OWNER} got step={step!r} of {len(valid)}", "the index of a valid step", "Choose another step."
        )
    at = {
        name: common.numbers(a)[(step, *index)].reshape(-1).astype(np.float64)
        for name, a in gates.gates._asdict().items()
    }
    before = [np.zeros(shape[1:])] * 2 if initial is None else initial
    if step > 0:
        before = [common.numbers(a)[step - 1] for a in carries]
    at["h_before"], at["c_before"] = (common.numbers(a)[tuple(index)].reshape(-1) for a in before)
    at["h"], at["c"] = (common.numbers(a)[(step, *index)].reshape(-1).astype(np.float64) for a in carries)
    at["kept"], at["added"], at["tanh_c"] = at["f"] * at["c_before"], at["i"] * at["g"], np.tanh(at["c"])
    error = max(
        np.max(np.abs(at["kept"] + at["added"] - at["c"])), np.max(np.abs(at["o"] * at["tanh_c"] - at["h"]))
    )
    if not error <= _TOLERANCE * max(1.0, np.max(np.abs(at["c"]))):
        raise value_error(
            f"{_OWNER} got carries that differ by {error:.2g} from f c + i g and o tanh(c) of the gates",
            "the carries of the same layer, run forward, without a restart at this step",
            "Choose the same layer in both, and give initial if the first carry is not zero.",
        )
    if unit is not None:
        unit = common.check_unit(_OWNER, unit, len(at["c"]))
    return {name: float(np.mean(a) if unit is None else a[unit]) for name, a in at.items()}


def _draw_wires(ax: Any, values: dict[str, float], size: float) -> None:
    """Lines with the values on them. The wires' ids are the names of the values."""
    gates = _GATE_X
    states = max(1.0, *(abs(values[name]) for name in ("c_before", "kept", "added", "c")))
    # Points of the line, then the place of its text.
    wires: dict[str, tuple[list[tuple[float, float]], tuple[float, float], str]] = {
        "h_before": ([(_LEFT, _H), (gates["o"], _H)], (0.9, _H + 0.32), "$h_{t-1}$"),
        "c_before": ([(_LEFT, _C), (gates["f"], _C)], (0.9, _C + 0.32), "$c_{t-1}$"),
        "kept": ([(gates["f"], _C), (gates["g"], _C)], (4.5, _C + 0.3), ""),
        "f": ([(gates["f"], _GATES), (gates["f"], _C)], (gates["f"] - 0.12, 3.4), "$f_t$"),
        "i": ([(gates["i"], _GATES), (gates["i"], _PRODUCT), (gates["g"], _PRODUCT)], (4.38, 3.15), "$i_t$"),
        "g": ([(gates["g"], _GATES), (gates["g"], _PRODUCT)], (gates["g"] + 0.12, 2.85), "$g_t$"),
        "added": ([(gates["g"], _PRODUCT), (gates["g"], _C)], (gates["g"] + 0.12, 4.45), ""),
        "c": ([(gates["g"], _C), (_RIGHT, _C)], (11.15, _C + 0.32), "$c_t$"),
        "tanh_c": ([(_OUT, 4.1), (_OUT, _OUTPUT)], (_OUT + 0.12, 3.52), ""),
        "o": ([(gates["o"], _GATES), (gates["o"], _OUTPUT), (_OUT, _OUTPUT)], (8.25, _OUTPUT + 0.3), "$o_t$"),
        "h": ([(_OUT, _OUTPUT), (_OUT, _H), (_RIGHT, _H)], (11.15, _H + 0.32), "$h_t$"),
    }
    black: dict[str, Any] = {"color": common.BLACK, "linewidth": 0.8, "zorder": 1}
    ax.plot([2.2, 2.2], [0.1, _H], **black)
    for x in gates.values():
        ax.plot([x, x], [_H, _GATES], **black)
    for name, (points, place, symbol) in wires.items():
        value, scale = values[name], states if name in ("c_before", "kept", "added", "c") else 1.0
        colour, line = _look(value / scale)
        ax.plot(*zip(*points, strict=True), color=colour, linewidth=line * size / 8, gid=name, zorder=2)
        upright = name in _LEFT_OF_WIRE + _RIGHT_OF_WIRE
        side = "right" if name in _LEFT_OF_WIRE else "left" if upright else "center"
        gap = "\n" if upright else " "
        number = f"{value:z.2f}".replace("-", "−")
        text = f"{symbol}{gap}{number}" if symbol else number
        ax.text(*place, text, fontsize=size, ha=side, va="center", zorder=4, gid=name)
    colour, line = _look(values["c"] / states)
    ax.plot([_OUT, _OUT], [_C, 4.1], color=colour, linewidth=line * size / 8, zorder=2)
    for y, name, scale in ((_C, "c", states), (_H, "h", 1.0)):
        ax.plot(_RIGHT, y, ">", color=_look(values[name] / scale)[0], markersize=0.9 * size, zorder=2)


def _look(value: float) -> tuple[tuple[float, float, float], float]:
    """Colour and line width of a wire for a value relative to its scale."""
    from matplotlib.colors import to_rgb

    strength = float(min(abs(value), 1.0))
    colour = to_rgb(common.BLUE if value >= 0 else common.VERMILLION)
    grey = to_rgb("#C4C4C4")
    mixed = [(1 - strength**0.5) * a + strength**0.5 * b for a, b in zip(grey, colour, strict=True)]
    return (mixed[0], mixed[1], mixed[2]), 0.8 + 3.2 * strength


def _draw_operations(ax: Any, size: float) -> None:
    """Boxes of the gates, the candidate and the output's tanh; circles of the products and the sum."""
    box: dict[str, Any] = {
        "boxstyle": "round,pad=0.25",
        "facecolor": "#FFE9A8",
        "edgecolor": common.BLACK,
        "linewidth": 0.8,
    }
    for name, x in _GATE_X.items():
        text = "tanh" if name == "g" else "σ"
        ax.text(x, _GATES, text, fontsize=size, ha="center", va="center", bbox=box, zorder=3)
    round_box = box | {"boxstyle": "round4,pad=0.3", "facecolor": "#F7CFC9"}
    ax.text(_OUT, 4.2, "tanh", fontsize=size, ha="center", va="center", bbox=round_box, zorder=3)
    places = {
        (_GATE_X["f"], _C): "×",
        (_GATE_X["g"], _PRODUCT): "×",
        (_GATE_X["g"], _C): "+",
        (_OUT, _OUTPUT): "×",
    }
    circle = box | {"boxstyle": "circle,pad=0.1", "facecolor": "#F7CFC9"}
    for (x, y), symbol in places.items():
        ax.text(x, y, symbol, fontsize=1.25 * size, ha="center", va="center", bbox=circle, zorder=3)
