"""Figures of what the functions of ``lstm_jax.diagnostics`` return for one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lstm_jax._errors import check_choice, value_error
from lstm_jax._types import Carry, is_float
from lstm_jax.diagnostics import (
    FixedPoints,
    Gates,
    GradientFlow,
    Jacobians,
    Lyapunov,
    Memory,
    Saturation,
    TimeConstants,
)
from lstm_jax.diagnostics._gates import NOT_SATURATING
from lstm_jax.plots import _figure as common

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: More units than these have no numbers beside them.
NUMBERED_UNITS = 20
#: Points that are drawn one by one without transparency.
FEW_POINTS = 50


# --- gates ----------------------------------------------------------------------------------------


def gate_map(
    gates: Gates,
    tokens: Sequence[str] | None = None,
    *,
    states: Mapping[str, Any] | None = None,
    units: Sequence[int] | None = None,
    row: int | tuple[int, ...] | None = None,
    width: float = 6.5,
) -> Figure:
    """Heat maps of the gates: one panel per gate, one row per unit, one column per valid step.

    Gates have colours from 0 to 1. Candidates, exponential gates and states have signed colours up to the
    largest absolute value of the panel.

    Args:
        gates: of one layer, from :func:`lstm_jax.diagnostics.gates`.
        tokens: T strings, the inputs. They are shown where there is space for them, else step numbers.
        states: further panels by title, arrays (T, *batch, H) such as the cell state.
        units: units from top to bottom; None: all, sorted by the mean of the forget gate f, or of the
            update gate z, the largest at the top.
        row: index in the batch axes; None: the first row.
        width: of the figure, in inches. One column of a paper has about 3.3.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: an argument has a wrong type or shape.

    >>> import jax, jax.numpy as jnp, lstm_jax
    >>> from lstm_jax import diagnostics, plots
    >>> cell = lstm_jax.LSTM(3, 8)
    >>> found = diagnostics.gates(cell, cell.init(jax.random.key(0)), jnp.ones((5, 3)))
    >>> figure = plots.gate_map(found, "hello")  # doctest: +SKIP
    >>> figure.savefig("gates.png")  # doctest: +SKIP
    """
    owner = "gate_map"
    common.check_record(owner, "gates", gates, Gates)
    valid = np.asarray(gates.valid)
    tokens = common.check_tokens(owner, tokens, len(valid))
    index: tuple[Any, ...] = (slice(None), *common.row_index(owner, row, valid.shape[1:]))
    kept = valid[index]
    signed = NOT_SATURATING.get(type(gates.gates), "")

    def panel(values: Any) -> np.ndarray:
        """(units, valid steps)."""
        values = common.numbers(values)
        if values.shape[: valid.ndim] != valid.shape:
            raise value_error(
                f"{owner} got a state of shape {values.shape}",
                f"the leading axes {valid.shape} of the gates",
                "Give states after each step: unroll(..., return_carries=True).",
            )
        return values[index].reshape(len(valid), -1)[kept].T

    panels = {_gate_title(gates.gates, name): (panel(a), name in signed) for name, a in _gates(gates).items()}
    panels |= {title: (panel(values), True) for title, values in (states or {}).items()}
    count, order, sorted_by = _unit_order(owner, gates, panels, units)
    # The gates of an mLSTM that exist per head have fewer rows than the others.
    orders = [order if len(values) == count else list(range(len(values))) for values, _ in panels.values()]
    shown = None if tokens is None else [token for token, keep in zip(tokens, kept, strict=True) if keep]

    rows = max(map(len, orders))
    height = max(0.6, 0.125 * rows) if rows <= NUMBERED_UNITS else np.clip(width / 5, 0.7, 1.4)
    figure = common.new_figure(owner, width, len(panels) * (height + 0.28) + 0.45)
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for ax, (title, (values, is_signed)), order in zip(axes, panels.items(), orders, strict=True):
        image = _gate_image(ax, values[order], is_signed)
        common.style(ax, title=title)
        common.colour_bar(figure, image, ax, "", aspect=12, ticks=None if is_signed else [0, 0.5, 1])
        ax.spines[:].set_visible(False)
        numbered = len(order) <= NUMBERED_UNITS
        ax.set_yticks(range(len(order)) if numbered else [], map(str, order) if numbered else [])
        ax.set_ylabel("unit" if numbered else f"{len(order)} units", fontsize=common.FONT_SIZE)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", length=2 if ax is axes[-1] else 0)
    labelled = common.token_ticks(axes[-1].xaxis, shown, width - 1.2)
    text = "input (␣: space, ↵: end of line)" if labelled and {" ", "\n"} & set(shown or ()) else "input"
    text = text if labelled else "step"
    axes[-1].set_xlabel(text + (f"; units sorted by the mean of {sorted_by}" if sorted_by else ""))
    axes[-1].xaxis.label.set_fontsize(common.FONT_SIZE)
    return figure


def _gates(record: Gates) -> dict[str, Any]:
    return {name: a for name, a in record.gates._asdict().items() if a is not None}


def _gate_title(gates: Any, name: str) -> str:
    """The title of a gate's panel."""
    words = {"i": "input gate", "f": "forget gate", "o": "output gate", "r": "reset gate", "z": "update gate"}
    signed = NOT_SATURATING.get(type(gates), "")
    is_candidate = name in signed and name != "i"  # the i of an xLSTM cell is an exponential gate
    return f"{'candidate' if is_candidate else words.get(name, 'gate')} {name}"


def _unit_order(owner: str, gates: Gates, panels: Any, units: Any) -> tuple[int, list[int], str]:
    """The number of units, their order from top to bottom, and the gate by whose mean they are sorted."""
    if units is not None:
        count = max(len(values) for values, _ in panels.values())
        order = [common.check_unit(owner, unit, count) for unit in units]
        if not order:
            raise value_error(f"{owner} got no units", "one unit or more", "Give units=None for all units.")
        return count, order, ""
    name = next(name for name in ("f", "z") if name in _gates(gates))
    values, _ = panels[_gate_title(gates.gates, name)]
    counted = np.isfinite(values)
    mean = np.sum(values, axis=1, where=counted) / np.maximum(counted.sum(axis=1), 1)
    return len(values), [int(unit) for unit in np.argsort(-mean, kind="stable")], name


def _gate_image(ax: Any, values: np.ndarray, is_signed: bool) -> Any:
    """A heat map (units, steps), grey where values are NaN."""
    ax.set_facecolor(common.GREY)
    if not is_signed:
        return ax.imshow(values, aspect="auto", cmap=common.SEQUENTIAL, vmin=0, vmax=1)
    largest = np.max(np.abs(values), initial=0, where=np.isfinite(values)) or 1.0
    return ax.imshow(values, aspect="auto", cmap=common.DIVERGING, vmin=-largest, vmax=largest)


def saturation_scatter(saturation: Saturation, *, width: float = 6.5) -> Figure:
    """How often each gate of each unit is nearly open, against how often it is nearly closed.

    One panel per gate and one point per unit, as in Karpathy et al. (2015), figure 2. Points in the upper
    left corner are units whose gate is almost always open, in the lower right corner almost always closed.
    On the diagonal, a gate is always one of both.

    Args:
        saturation: of one layer, from :func:`lstm_jax.diagnostics.saturation`.
        width: of the figure, in inches. One column of a paper has about 3.3.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: an argument has a wrong type.
    """
    common.check_record("saturation_scatter", "saturation", saturation, Saturation)
    low, high = saturation.low._asdict(), saturation.high._asdict()
    names = [name for name, a in low.items() if a is not None]
    figure = common.new_figure("saturation_scatter", width, (width - 0.5) / max(len(names), 2) + 0.65)
    axes = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, names, strict=True):
        x, y = (common.numbers(share[name]).reshape(-1) for share in (low, high))
        ax.plot([0, 1], [1, 0], color=common.GREY, linewidth=0.7, zorder=0)
        ax.scatter(x, y, color=common.BLUE, clip_on=False, zorder=2, **_marker(len(x)))
        common.style(ax, title=_gate_title(saturation.low, name))
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    figure.supxlabel("left-saturated (fraction of steps)", fontsize=common.FONT_SIZE)
    axes[0].set_ylabel("right-saturated\n(fraction of steps)", fontsize=common.FONT_SIZE)
    return figure


def _marker(count: int) -> dict[str, Any]:
    """Options of a scatter plot: the more points, the smaller and more transparent."""
    size, alpha = (18, 0.9) if count <= FEW_POINTS else (9, 0.5) if count <= 2000 else (3, 0.25)
    return {"s": size, "alpha": alpha, "linewidths": 0, "rasterized": count > 2000}


# --- memory ---------------------------------------------------------------------------------------


def memory_map(
    memory: Memory,
    tokens: Sequence[str] | None = None,
    *,
    unit: int | None = None,
    row: int | tuple[int, ...] | None = None,
    width: float = 4.5,
) -> Figure:
    """How much of the memory after each step comes from each step before it: a map of T x T valid steps.

    Without ``unit``, the map shows the mean absolute contribution over all units, on a logarithmic scale of
    three decades. With ``unit``, it shows the signed contributions to this unit. Where nothing contributes,
    the map is empty.

    Args:
        memory: of one layer, from :func:`lstm_jax.diagnostics.memory`.
        tokens: T strings, the inputs. They are shown where there is space for them, else step numbers.
        unit: index of a unit; None: the mean over all units.
        row: index in the batch axes; None: the first row.
        width: of the figure, in inches. One column of a paper has about 3.3.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: an argument has a wrong type, or ``unit`` is given for a memory with ``average=True``.
    """
    owner = "memory_map"
    common.check_record(owner, "memory", memory, Memory)
    valid = np.asarray(memory.valid)
    tokens = common.check_tokens(owner, tokens, len(valid))
    index: tuple[Any, ...] = (slice(None), *common.row_index(owner, row, valid.shape[1:]))
    kept = np.flatnonzero(valid[index])
    values = common.numbers(memory.contributions)[(slice(None), *index)][np.ix_(kept, kept)]
    if unit is not None:
        if values.ndim == 2:
            raise value_error(
                f"{owner} got unit={unit!r} and a mean over units",
                "contributions to each unit",
                "Call diagnostics.memory with average=False.",
            )
        values = values.reshape(*values.shape[:2], -1)
        values = values[..., common.check_unit(owner, unit, values.shape[2])]
    elif values.ndim > 2:
        values = np.mean(np.abs(values), axis=tuple(range(2, values.ndim)))
    figure = common.new_figure(owner, width, width - 0.75)
    from matplotlib.colors import LogNorm

    ax: Any = figure.add_subplot()
    largest = np.max(np.abs(values), initial=0, where=np.isfinite(values)) or 1.0
    if unit is None:
        scale: dict[str, Any] = {"cmap": common.SEQUENTIAL, "norm": LogNorm(largest / 1000, largest)}
        label = "mean absolute contribution"
    else:
        scale = {"cmap": common.DIVERGING, "vmin": -largest, "vmax": largest}
        label = f"contribution to unit {unit}"
    shown = np.ma.masked_where(~(np.abs(values) > 0), values)
    image = ax.imshow(shown, **scale)
    common.style(ax)
    common.colour_bar(figure, image, ax, label, extend="min" if unit is None else "neither", shrink=0.8)
    chosen = None if tokens is None else [tokens[step] for step in kept]
    labelled = common.token_ticks(ax.yaxis, chosen, width - 1.6) and common.token_ticks(
        ax.xaxis, chosen, width - 1.6
    )
    what = "input" if labelled else "step"
    ax.set_xlabel(f"{what} that contributes", fontsize=common.FONT_SIZE)
    ax.set_ylabel(f"memory after the {what}", fontsize=common.FONT_SIZE)
    return figure


def time_constants(constants: TimeConstants, *, width: float = 4.5) -> Figure:
    """A histogram of the units' mean time constants, on a logarithmic axis.

    Args:
        constants: of one layer, from :func:`lstm_jax.diagnostics.time_constants`.
        width: of the figure, in inches. One column of a paper has about 3.3.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: an argument has a wrong type.
    """
    owner = "time_constants"
    common.check_record(owner, "constants", constants, TimeConstants)
    tau = common.numbers(constants.mean).reshape(-1)
    shown = tau[np.isfinite(tau) & (tau > 0)]
    figure = common.new_figure(owner, width, 0.55 * width)
    ax: Any = figure.add_subplot()
    common.style(ax, "time constant (steps)", "number of units")
    ax.set_xscale("log")
    if len(shown):
        first, last = np.log10(shown.min()), np.log10(shown.max())
        margin = max(0.02 * (last - first), 0.05)
        bins = int(np.clip(np.sqrt(2 * len(shown)), 5, 30))
        edges = np.logspace(first - margin, last + margin, bins + 1)
        ax.hist(shown, edges, color=common.SKY, edgecolor="white", linewidth=0.5)
        median = float(np.median(shown))
        ax.axvline(
            median, color=common.BLACK, linewidth=1, linestyle="--", label=f"median {median:.3g} steps"
        )
        if len(shown) <= FEW_POINTS:
            ax.plot(shown, np.zeros_like(shown), "|", color=common.BLUE, markersize=9, label="one unit")
    infinite = int(np.sum(np.isinf(tau)))
    if infinite:
        ax.plot([], [], " ", label=f"{infinite} not shown: infinite")
    if ax.get_legend_handles_labels()[0]:
        common.legend(ax, ncols=2)
    _plain_log_ticks(ax)
    ax.yaxis.get_major_locator().set_params(integer=True)
    return figure


def _plain_log_ticks(ax: Any) -> None:
    """Numbers such as 1, 2, 5, 10 on a logarithmic x axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = ax.get_xlim()
    narrow = high / low < 200
    ax.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if narrow else (1,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    if narrow:
        ax.xaxis.set_minor_locator(NullLocator())


# --- gradients ------------------------------------------------------------------------------------


def gradient_norms(
    flows: Mapping[str, GradientFlow], *, state: str | None = None, width: float = 4.5
) -> Figure:
    """The norm of the gradient that reaches each state, against the lag, for several cells or layers.

    The lines are medians over rows, and the bands contain half of the rows. A line that falls shows a
    gradient that vanishes, a line that rises one that explodes.

    Args:
        flows: results of :func:`lstm_jax.diagnostics.gradient_flow` for single layers, by the names in the
            legend. The ``OrderedDict`` of a network works, too.
        state: the state, for instance ``"h"`` or ``"c"``; None: the norm over all states together.
        width: of the figure, in inches. One column of a paper has about 3.3.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: an argument has a wrong type, or a cell has no such state.
    """
    owner = "gradient_norms"
    if not isinstance(flows, Mapping) or not flows:
        raise value_error(
            f"{owner} got flows of type {type(flows).__name__}",
            "a dict with one GradientFlow or more by name",
            'Give for instance {"LSTM": flow}.',
        )
    for name, flow in flows.items():
        common.check_record(owner, f"flows[{name!r}]", flow, GradientFlow)
        if state is not None:
            check_choice(owner, "state", state, list(flow.norms))
    figure = common.new_figure(owner, width, 0.65 * width)
    ax: Any = figure.add_subplot()
    of = "the state" if state is None else state
    common.style(ax, "lag (steps before the last one)", f"norm of the gradient\nwith respect to {of}")
    ax.set_yscale("log")
    largest = 0.0
    for number, (name, flow) in enumerate(flows.items()):
        lags, lower, middle, upper = _norms_by_lag(flow, state)
        colour = common.CATEGORIES[number % len(common.CATEGORIES)]
        line = ("-", "--", ":", "-.")[number // len(common.CATEGORIES) % 4]
        ax.plot(lags, middle, line, color=colour, linewidth=1.5, label=str(name))
        if np.any(upper > lower):
            ax.fill_between(lags, lower, upper, color=colour, alpha=0.2, linewidth=0)
        largest = np.max(middle, initial=largest, where=np.isfinite(middle))
    low, high = ax.get_ylim()
    if largest:
        ax.set_ylim(max(low, 1e-20 * largest), high)  # beyond the precision of any sum of gradients
    ax.margins(x=0.02)
    ax.grid(alpha=0.25, linewidth=0.5)
    common.legend(ax, ncols=3)
    return figure


def _norms_by_lag(flow: GradientFlow, state: str | None) -> np.ndarray:
    """(4, lags): the lags, and the quartiles of the norms over rows; NaN where the median is 0."""
    norms = [common.numbers(a) for name, a in flow.norms.items() if state in (None, name)]
    norm = np.sqrt(np.sum(np.square(np.stack(norms).astype(np.float64)), axis=0))
    kept = np.asarray(flow.valid) & np.isfinite(norm)
    lag, norm = np.asarray(flow.lag)[kept], norm[kept]
    lags = np.unique(lag)
    quartiles = [np.quantile(norm[lag == each], (0.25, 0.5, 0.75)) for each in lags]
    found = np.array(quartiles).reshape(len(lags), 3).T
    return np.stack([lags, *np.where(found > 0, found, np.nan)])


# --- dynamics -------------------------------------------------------------------------------------


def eigenvalues(result: Jacobians | FixedPoints, *, width: float = 3.3) -> Figure:
    """Eigenvalues in the complex plane, with the unit circle.

    Directions with eigenvalues inside the circle shrink with each step, those outside grow.

    Args:
        result: of one layer, from :func:`lstm_jax.diagnostics.jacobians` (all valid steps of all rows), or
            from :func:`lstm_jax.diagnostics.fixed_points` (all points that are fixed and distinct).
        width: of the figure, in inches. One column of a paper has about 3.3.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: an argument has a wrong type.
    """
    owner = "eigenvalues"
    common.check_record(owner, "result", result, Jacobians, FixedPoints)
    if isinstance(result, Jacobians):
        kept = np.asarray(result.valid)
        label = "{:,} eigenvalues at {:,} steps"
    else:
        kept = np.asarray(result.fixed & result.distinct)
        label = "{:,} eigenvalues at {:,} fixed points"
    values = np.asarray(result.eigenvalues)[kept].reshape(-1)
    finite = values[np.isfinite(values)]
    figure = common.new_figure(owner, width, width)
    ax: Any = figure.add_subplot()
    from matplotlib.patches import Circle

    ax.axhline(0, color=common.GREY, linewidth=0.5, zorder=0)
    ax.axvline(0, color=common.GREY, linewidth=0.5, zorder=0)
    ax.add_patch(Circle((0, 0), 1, fill=False, color=common.BLACK, linewidth=0.8))
    outside = np.abs(finite) >= 1
    for flag, name, colour in ((~outside, "inside", common.BLUE), (outside, "outside", common.VERMILLION)):
        x, y = finite[flag].real, finite[flag].imag
        ax.scatter(x, y, color=colour, label=f"{np.sum(flag):,} {name}", **_marker(len(finite)))
    extent = 1.1 * max(1.0, np.max(np.abs([finite.real, finite.imag]), initial=0))
    counted = label.format(len(values), int(np.sum(kept)))
    common.style(ax, f"real part\n({counted})", "imaginary part")
    ax.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
    common.legend(ax, ncols=2, handletextpad=0.1)
    for handle in ax.get_legend().legend_handles:
        handle.set(alpha=1, sizes=[18])
    return figure


def lyapunov_spectrum(lyapunov: Lyapunov, *, width: float = 4.5) -> Figure:
    """The Lyapunov exponents, from the largest to the smallest.

    The line is the mean over rows. Above 0, small differences grow.

    Args:
        lyapunov: of one layer, from :func:`lstm_jax.diagnostics.lyapunov_exponents`.
        width: of the figure, in inches. One column of a paper has about 3.3.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: an argument has a wrong type.
    """
    owner = "lyapunov_spectrum"
    common.check_record(owner, "lyapunov", lyapunov, Lyapunov)
    exponents = common.numbers(lyapunov.exponents)
    exponents = exponents.reshape(-1, exponents.shape[-1])
    exponents = exponents[np.asarray(lyapunov.valid).any(axis=0).reshape(-1)]  # rows without steps have none
    finite = np.isfinite(exponents)
    shown = np.where(finite, exponents, np.nan)
    mean = np.sum(exponents, axis=0, where=finite) / np.where(finite.any(axis=0), finite.sum(axis=0), np.nan)
    figure = common.new_figure(owner, width, 0.65 * width)
    ax: Any = figure.add_subplot()
    index = np.arange(1, exponents.shape[1] + 1)
    marker = "o" if len(index) <= FEW_POINTS else ""
    if len(shown) > 1:
        ax.plot(index, shown.T, color=common.SKY, linewidth=0.7, alpha=max(0.1, min(1, 8 / len(shown))))
    ax.plot(
        index, mean, color=common.BLUE, linewidth=1.5, marker=marker, markersize=3.5, label="mean over rows"
    )
    ax.axhline(0, color=common.BLACK, linewidth=0.8, linestyle="--")
    if len(shown) > 1:
        ax.plot([], [], color=common.SKY, linewidth=0.7, label="one row")
        common.legend(ax, ncols=2)
    missing = int(np.sum(~finite))
    title = f"{missing:,} of {exponents.size:,} exponents are not finite and not shown" if missing else ""
    common.style(ax, "index of the exponent", "Lyapunov exponent (1 / step)", title)
    ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def state_space(
    carries: Carry, fixed_points: FixedPoints | None = None, *, valid: Any = None, width: float = 4.5
) -> Figure:
    """Trajectories of the state in the plane of their first two principal components, with fixed points.

    The state of a step is the whole carry as one vector. The components are those of all valid states of all
    rows. Fixed points are projected onto the same plane.

    Args:
        carries: the states after each step, (T, *batch, H) each, as ``unroll(..., return_carries=True)``
            returns them for one layer.
        fixed_points: of the same cell, from :func:`lstm_jax.diagnostics.fixed_points`. Only distinct ones
            are drawn.
        valid: (T, *batch) bool, for instance the field of that name of a result; None: all steps.
        width: of the figure, in inches. One column of a paper has about 3.3.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: an argument has a wrong type or shape.
    """
    owner = "state_space"
    leaves = [common.numbers(a) for a in jax.tree.leaves(carries)]
    leaves = [a for a in leaves if is_float(a.dtype)]
    if fixed_points is not None:
        common.check_record(owner, "fixed_points", fixed_points, FixedPoints)
    states, valid = _rows_of_states(owner, leaves, valid)
    known = states[valid & np.isfinite(states).all(axis=-1)]
    if len(known) < 2:
        raise value_error(f"{owner} got {len(known)} valid states", "two or more", "Give a longer sequence.")
    centre = known.mean(axis=0)
    _, lengths, components = np.linalg.svd(known - centre, full_matrices=False)
    share = np.square(lengths) / max(np.sum(np.square(lengths)), np.finfo(np.float64).tiny)
    plane = np.zeros((states.shape[-1], 2))
    plane[:, : len(components[:2])] = components[:2].T

    figure = common.new_figure(owner, width, 0.8 * width)
    ax: Any = figure.add_subplot()
    from matplotlib.collections import LineCollection

    points = np.where(valid[..., None], states - centre, np.nan) @ plane  # (T, rows, 2)
    segments = np.stack([points[:-1], points[1:]], axis=2)  # (T - 1, rows, 2 ends, 2)
    step = np.broadcast_to(np.arange(1, len(points))[:, None], segments.shape[:2])
    whole = np.isfinite(segments).all(axis=(2, 3))
    few = segments.shape[1] <= 10
    lines = LineCollection(
        list(segments[whole]),
        array=step[whole],
        cmap="viridis",
        linewidths=0.9 if few else 0.5,
        alpha=0.8 if few else 0.4,
        rasterized=np.sum(whole) > 2000,
    )
    ax.add_collection(lines)
    ax.autoscale_view()
    common.colour_bar(figure, lines, ax, "step")
    if fixed_points is not None:
        _fixed_points(ax, fixed_points, centre, plane)
    share = np.append(share, [0.0, 0.0])
    x, y = (f"PC {k + 1} ({share[k]:.0%} of the variance)" for k in range(2))
    common.style(ax, x, y)
    ax.margins(0.06)
    return figure


def _rows_of_states(owner: str, leaves: list[np.ndarray], valid: Any) -> tuple[np.ndarray, np.ndarray]:
    """States (T, rows, S) and valid steps (T, rows)."""
    shape = np.shape(valid) if valid is not None else leaves[0].shape[:-1] if leaves else ()
    if not shape or not all(a.shape[: len(shape)] == shape and a.ndim > len(shape) for a in leaves):
        raise value_error(
            f"{owner} got states of shapes {[a.shape for a in leaves]}"
            + ("" if valid is None else f" and valid of shape {np.shape(valid)}"),
            "arrays with the same axes (T, *batch) before the axes of units",
            "Give what unroll(..., return_carries=True) returns, of one layer.",
        )
    rows = int(np.prod(shape[1:]))
    states = np.concatenate([a.reshape(shape[0], rows, -1) for a in leaves], axis=-1).astype(np.float64)
    flags = np.ones(shape, bool) if valid is None else np.asarray(valid, bool)
    return states, flags.reshape(shape[0], rows)


def _fixed_points(ax: Any, found: FixedPoints, centre: np.ndarray, plane: np.ndarray) -> None:
    """Markers of the distinct points: stable, unstable and slow ones."""
    leaves = [common.numbers(a) for a in jax.tree.leaves(found.carry)]
    states = np.concatenate([a.reshape(len(a), -1) for a in leaves if is_float(a.dtype)], axis=-1)
    if states.shape[1] != len(centre):
        raise value_error(
            f"state_space got fixed points with {states.shape[1]} states and carries with {len(centre)}",
            "the same cell for both",
            "Give the carry of the layer whose fixed points these are.",
        )
    places = (states - centre) @ plane
    distinct, fixed, stable = (np.asarray(a) for a in (found.distinct, found.fixed, found.stable))
    for flags, name, marker, face, edge in (
        (~fixed, "slow", "^", "white", common.GREY),
        (fixed & ~stable, "unstable", "X", common.VERMILLION, "white"),
        (fixed & stable, "stable", "o", common.BLUE, "white"),
    ):
        chosen = places[flags & distinct]
        if len(chosen):
            look = {"marker": marker, "facecolors": face, "edgecolors": edge, "linewidths": 0.8}
            ax.scatter(*chosen.T, s=40, zorder=3, label=f"{name} ({len(chosen)})", **look)
    handles = ax.get_legend_handles_labels()[0]
    if handles:
        common.legend(ax, ncols=3, handletextpad=0.1)
