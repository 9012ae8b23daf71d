"""Figures of a run: ratios as bars, cost as curves, and time against memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import summary
from benchmarks.cases import MODES
from benchmarks.contestants import AGAIN, ALWAYS_MEASURED, LSTM_JAX, SCAN
from benchmarks.measure import Measurement
from benchmarks.report import Report

# Okabe and Ito's palette, which is distinguishable with all kinds of colour vision.
LSTM_JAX_COLOUR, SCAN_COLOUR = "#0072B2", "#8C8C8C"
OTHERS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LETTERS = {"T": "steps T", "B": "rows B", "H": "units H (as many features)"}


def draw(report: Report, stem: Path) -> list[Path]:
    """Write a PNG file for each kind of figure that has data, and return the paths."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit(f'The figures require matplotlib ({error}): pip install ".[bench]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10}
    pictures: list[tuple[str, Any, Callable[..., Any]]] = [
        ("ratios", report.cases, bars),
        ("curves", report.curves, curves),
        ("memory", report.memory, memory),
    ]
    paths = []
    for name, there, make in pictures:
        if not there:
            continue
        with plt.rc_context(style):
            figure = make(plt, report)
            path = stem.with_name(f"{stem.name}-{name}.png")
            part = path.with_name(path.name + ".part")
            try:
                figure.savefig(part, format="png", dpi=144)
                part.replace(path)
            finally:
                plt.close(figure)
                part.unlink(missing_ok=True)
        paths.append(path)
    return paths


def subtitle(report: Report) -> str:
    """Machine, precision and version."""
    about = report.about
    where = about["processor"] if about["platform"] == "cpu" else about["device"]
    tf32 = (
        f", TF32 {'on' if about['tf32'] else 'off'}"
        if about["platform"] == "gpu" and about["dtype"] == "float32"
        else ""
    )
    return f"{where}, {about['cores']} cores, {about['dtype']}{tf32}, jax {about['versions']['jax']}"


def plain_log(axis: Any, subs: tuple[float, ...] = (1, 2, 5)) -> None:
    """A log axis with few ticks, labelled in decimal notation."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(10, subs=subs))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


# --- ratios -------------------------------------------------------------------------------------


def bars(plt: Any, report: Report) -> Any:
    """A bar for each contestant, the geometric mean over the plain cases, and a dot for each case."""
    modes = [mode for mode in MODES if any(m.mode == mode for m in report.cases)]
    timed = {name for m in report.cases for name, row in m.rows.items() if row.status == "timed"}
    names = [
        n for m in report.cases[:1] for n in m.rows if n in timed and n not in (LSTM_JAX.name, AGAIN.name)
    ]
    figure, axes = plt.subplots(
        1,
        len(modes),
        figsize=(1.5 + 4 * len(modes), 1.7 + 0.36 * len(names)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, mode in zip(axes[0], modes, strict=True):
        one_panel_of_bars(ax, [m for m in report.cases if m.mode == mode], names)
        ax.set_title(mode)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].invert_yaxis()
    figure.suptitle(
        f"Time as a multiple of lstm_jax's (bars: geometric mean of plain cases)\n{subtitle(report)}",
        fontsize=10,
    )
    handles, labels = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def one_panel_of_bars(ax: Any, measurements: list[Measurement], names: list[str]) -> None:
    plain = [m for m in measurements if summary.is_plain(m)]
    others = [m for m in measurements if not summary.is_plain(m)]
    always = {c.name for c in ALWAYS_MEASURED}
    for y, name in enumerate(names):
        dots = ratios_of(plain, name)
        if dots:
            mean = statistics.geometric_mean(dots)
            colour = SCAN_COLOUR if name == SCAN.name else LSTM_JAX_COLOUR if name in always else OTHERS[4]
            ax.barh(y, mean - 1, left=1, height=0.66, color=colour, zorder=2)
            ax.annotate(
                f"{mean:.2f}", (1, y), xycoords=ax.get_yaxis_transform(), fontsize=8, ha="left", va="center"
            )
        ax.scatter(
            dots, [y] * len(dots), s=14, color="#222222", zorder=4, label="plain case" if y == 0 else None
        )
        more = ratios_of(others, name)
        ax.scatter(
            more,
            [y] * len(more),
            s=16,
            facecolors="white",
            edgecolors="#D55E00",
            marker="D",
            linewidths=1,
            zorder=3,
            label="options (layers, ragged, ...) and other cells" if y == 0 else None,
        )
    ax.set_xscale("log")
    plain_log(ax.xaxis, (1, 1.5, 2, 3, 5, 7))
    noises = [s for m in measurements if (s := summary.noise(m)) is not None]
    if noises:
        ax.axvspan(
            1 / max(noises),
            max(noises),
            color="#F0E442",
            alpha=0.5,
            lw=0,
            zorder=0,
            label="noise: lstm_jax measured twice",
        )
    ax.axvline(1, color="#222222", lw=1, zorder=5)
    ax.set_xlabel("faster than lstm_jax  ←  1  →  slower than lstm_jax")
    ax.grid(axis="x", color="#DDDDDD", lw=0.6, zorder=1)


def ratios_of(measurements: list[Measurement], name: str) -> list[float]:
    """The ratios of one contestant in the cases in which it was timed."""
    rows = [m.rows[name] for m in measurements if name in m.rows]
    return [row.ratio for row in rows if row.ratio is not None]


# --- curves -------------------------------------------------------------------------------------


def curves(plt: Any, report: Report) -> Any:
    """Milliseconds over T, B and H, with a row of panels for each mode."""
    modes = [mode for mode in MODES if any(m.mode == mode for c in report.curves.values() for m in c)]
    figure, axes = plt.subplots(
        len(modes),
        len(report.curves),
        figsize=(1 + 2.9 * len(report.curves), 1 + 2.5 * len(modes)),
        squeeze=False,
        layout="constrained",
    )
    names = list(dict.fromkeys(n for c in report.curves.values() for m in c for n in m.rows))
    others = [name for name in names if name not in (LSTM_JAX.name, SCAN.name)]
    look = {name: (OTHERS[i % 5], "svD^P"[i % 5]) for i, name in enumerate(others)}
    look |= {LSTM_JAX.name: (LSTM_JAX_COLOUR, "o"), SCAN.name: (SCAN_COLOUR, "x")}
    for row, mode in zip(axes, modes, strict=True):
        for ax, (letter, measurements) in zip(row, report.curves.items(), strict=True):
            chosen = [m for m in measurements if m.mode == mode]
            for name in names:
                points = [
                    (getattr(m.case, letter), 1e3 * seconds)
                    for m in chosen
                    if (seconds := summary.median(m, name)) is not None
                ]
                colour, marker = look[name]
                if points:
                    front = 4 if name == LSTM_JAX.name else 3
                    ax.plot(
                        *zip(*points, strict=True),
                        color=colour,
                        marker=marker,
                        ms=4.5,
                        lw=1.6,
                        label=name,
                        zorder=front,
                    )
            label_curve(ax, letter, mode, chosen)
        row[0].set_ylabel("milliseconds")
    figure.suptitle(f"Cost of one layer\n{subtitle(report)}", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def label_curve(ax: Any, letter: str, mode: str, measurements: list[Measurement]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    sizes = [getattr(m.case, letter) for m in measurements]
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    plain_log(ax.yaxis)
    ax.set_xlabel(LETTERS[letter])
    case = measurements[0].case
    fixed = [name for name in "TBH" if name != letter]
    ax.set_title(f"{mode}, {', '.join(f'{name}={getattr(case, name)}' for name in fixed)}", fontsize=9)
    ax.grid(color="#DDDDDD", lw=0.6)


# --- memory -------------------------------------------------------------------------------------


def memory(plt: Any, report: Report) -> Any:
    """Time over temporary memory, with a panel for each case and a marker for each policy."""
    figure, axes = plt.subplots(
        1,
        len(report.memory),
        figsize=(1 + 4 * len(report.memory), 4),
        squeeze=False,
        layout="constrained",
    )
    for ax, measurement in zip(axes[0], report.memory, strict=True):
        for index, (name, row) in enumerate(measurement.rows.items()):
            if row.median_s is None or not row.temporary_bytes:
                continue
            colour, marker = ((LSTM_JAX_COLOUR, *OTHERS)[index % 6], "osv^DP"[index % 6])
            if name == SCAN.name:
                colour, marker = SCAN_COLOUR, "X"
            at = row.temporary_bytes / 1e6, 1e3 * row.median_s
            ax.plot(*at, marker, color=colour, ms=9, alpha=0.9, label=name, zorder=3)
        ax.set_xscale("log")
        ax.margins(0.15, 0.15)
        ax.set_ylim(bottom=0)
        plain_log(ax.xaxis)
        ax.set_xlabel("temporary memory, MB")
        ax.set_ylabel("milliseconds")
        ax.set_title(f"{measurement.mode}, B,T,D,H = {measurement.case}", fontsize=9)
        ax.grid(color="#DDDDDD", lw=0.6)
    title = "Time against memory, by checkpoint policy"
    figure.suptitle(f"{title}\n{subtitle(report)}", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure
