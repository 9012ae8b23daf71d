"""Figures of a layer as a dynamical system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lstm_jax._errors import value_error
from lstm_jax._types import Carry, is_float
from lstm_jax.diagnostics import FixedPoints, Jacobians, Lyapunov
from lstm_jax.plots import _figure as common

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    >>> import jax, lstm_jax
    >>> from lstm_jax import diagnostics, plots
    >>> cell = lstm_jax.LSTM(3, 8)
    >>> params = cell.init(jax.random.key(0))
    >>> xs = jax.random.normal(jax.random.key(1), (20, 4, 3))
    >>> figure = plots.eigenvalues(diagnostics.jacobians(cell, params, xs))
    >>> len(figure.axes)
    1
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
        ax.scatter(x, y, color=colour, label=f"{np.sum(flag):,} {name}", **common.marker(len(finite)))
    extent = 1.1 * max(1.0, np.max(np.abs([finite.real, finite.imag]), initial=0))
    counted = label.format(len(values), int(np.sum(kept)))
    common.style(ax, f"real part\n({counted})", "imaginary part")
    ax.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
    common.legend(ax, handletextpad=0.1)
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

    >>> import jax, lstm_jax
    >>> from lstm_jax import diagnostics, plots
    >>> cell = lstm_jax.GRU(3, 8)
    >>> params = cell.init(jax.random.key(0))
    >>> xs = jax.random.normal(jax.random.key(1), (50, 3))
    >>> found = diagnostics.lyapunov_exponents(cell, params, xs, count=4)
    >>> figure = plots.lyapunov_spectrum(found)
    >>> figure.axes[0].get_ylabel()
    'Lyapunov exponent (1 / step)'
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
    marker = "o" if len(index) <= common.FEW_POINTS else ""
    if len(shown) > 1:
        ax.plot(index, shown.T, color=common.SKY, linewidth=0.7, alpha=max(0.1, min(1, 8 / len(shown))))
    ax.plot(
        index, mean, color=common.BLUE, linewidth=1.5, marker=marker, markersize=3.5, label="mean over rows"
    )
    ax.axhline(0, color=common.BLACK, linewidth=0.8, linestyle="--")
    if len(shown) > 1:
        ax.plot([], [], color=common.SKY, linewidth=0.7, label="one row")
        common.legend(ax)
    missing = int(np.sum(~finite))
    title = f"{missing:,} of {exponents.size:,} exponents are not finite and not shown" if missing else ""
    common.style(ax, "index of the exponent", "Lyapunov exponent (1 / step)", title)
    common.whole_numbers(ax.xaxis)
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

    >>> import jax, lstm_jax
    >>> from lstm_jax import diagnostics, plots
    >>> cell = lstm_jax.GRU(3, 8)
    >>> params = cell.init(jax.random.key(0))
    >>> xs = jax.random.normal(jax.random.key(1), (50, 2, 3))
    >>> _, (_, carries) = lstm_jax.unroll(cell, params, xs, return_carries=True)
    >>> figure = plots.state_space(carries)
    >>> len(figure.axes)  # the plane and the colour bar
    2
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
    covariance = (known - centre).T @ (known - centre)
    variances, components = np.linalg.eigh(covariance)  # in ascending order
    share = np.append(variances[::-1], 0.0)[:2] / max(np.trace(covariance), np.finfo(np.float64).tiny)
    plane = np.zeros((states.shape[-1], 2))
    plane[:, : components.shape[1]] = components[:, ::-1][:, :2]

    figure = common.new_figure(owner, width, 0.8 * width)
    ax: Any = figure.add_subplot()
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import MaxNLocator

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
    common.colour_bar(figure, lines, ax, "step", ticks=MaxNLocator("auto", integer=True))
    if fixed_points is not None:
        _fixed_points(ax, fixed_points, centre, plane)
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
        common.legend(ax, handletextpad=0.1)
