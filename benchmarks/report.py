"""A run as tables and as JSON, with the machine, versions and options that it used."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import lstm_jax
from benchmarks import files, summary
from benchmarks.cases import MODES, Case, Setting
from benchmarks.contestants import ALWAYS_MEASURED, LSTM_JAX
from benchmarks.contestants.contestant import Contestant
from benchmarks.contestants.torch_ import cores
from benchmarks.files import number
from benchmarks.measure import Measurement, Row
from benchmarks.memory import Long


@dataclass
class Report:
    """All results of a run so far."""

    about: dict[str, Any]
    matmul_rates: dict[str, float] = field(default_factory=dict)
    cases: list[Measurement] = field(default_factory=list)
    curves: dict[str, list[Measurement]] = field(
        default_factory=dict
    )  # by the letter of the size that varies
    memory: list[Measurement] = field(default_factory=list)
    long: list[Long] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return {
            "about": self.about,
            "matmul_rates": self.matmul_rates,
            "geometric_means": [mean._asdict() for mean in summary.means(self.cases)],
            "verdicts": [verdict._asdict() for verdict in summary.verdicts(self.cases)],
            "cases": [m.as_json() for m in self.cases],
            "curves": {letter: [m.as_json() for m in curve] for letter, curve in self.curves.items()},
            "memory": [m.as_json() for m in self.memory],
            "long": [row._asdict() | {"case": row.case.as_json()} for row in self.long],
        }

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Report:
        """The inverse of :meth:`as_json`."""
        read = Measurement.from_json
        return cls(
            tree["about"],
            tree["matmul_rates"],
            [read(m) for m in tree["cases"]],
            {letter: [read(m) for m in curve] for letter, curve in tree["curves"].items()},
            [read(m) for m in tree["memory"]],
            [Long(**row | {"case": Case(**row["case"])}) for row in tree["long"]],
        )

    @property
    def troubled(self) -> list[str]:
        """Contestants that failed or returned other results, one line each."""
        everything = [*self.cases, *self.memory, *(m for curve in self.curves.values() for m in curve)]
        return [
            f"{name} {row.status} in {m.case}, {m.mode}: {row.note}"
            for m in everything
            for name, row in m.rows.items()
            if row.status in ("fails", "differs")
        ]


def machine(setting: Setting, contestants: Sequence[Contestant], options: dict[str, Any]) -> dict[str, Any]:
    """The machine, versions, time and options of a run."""
    return where(setting.platform, ("jax", "jaxlib", "numpy", *(c.package for c in contestants))) | {
        "dtype": setting.dtype,
        "tf32": setting.tf32,
        "options": options,
        "contestants": {c.name: c.how for c in contestants},
        "absent": {c.name: why for c in contestants if (why := c.absent())},
    }


def where(platform_name: str, packages: Sequence[str]) -> dict[str, Any]:
    """The machine, the versions of packages, and the time."""
    versions = {name: version(name) for name in dict.fromkeys(packages)} | {"lstm_jax": lstm_jax.__version__}
    return {
        "device": jax.devices(platform_name)[0].device_kind,
        "platform": platform_name,
        "processor": processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "malloc": {
            n: a for n, a in sorted(os.environ.items()) if n.startswith(("MALLOC_", "GLIBC_TUNABLES"))
        },
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The model name of the processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def stem(about: dict[str, Any]) -> str:
    """A file name of the device, the dtype and the date."""
    device = about["processor"] if about["platform"] == "cpu" else about["device"]
    words = [about["platform"], device, about["dtype"], *(["tf32"] if about["tf32"] else [])]
    words += ["malloc"] if about.get("malloc") else []
    return files.stem(*words, about["date"][:16].replace(":", ""))


def write_json(path: Path, report: Report) -> None:
    """Write all figures."""
    files.write(path, files.dumps(report.as_json()) + "\n")


def headline(about: dict[str, Any]) -> str:
    """Machine, precision and versions in one line."""
    place = about["processor"] if about["platform"] == "cpu" else f"{about['device']}, {about['processor']}"
    libraries = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
    kind = about["dtype"]
    if about["platform"] == "gpu" and kind == "float32":
        kind += f" (TF32 {'on' if about['tf32'] else 'off'})"
    kind += "".join(f"; {name}={value}" for name, value in about.get("malloc", {}).items())
    return f"{place}, {about['cores']} cores; {kind}; Python {about['python']}, {libraries}; {about['date']}"


# --- on the terminal ----------------------------------------------------------------------------


def block(measurement: Measurement) -> str:
    """One case and mode, with a line for each contestant."""
    width = max(len(name) for name in measurement.rows)
    calls = f"samples of {measurement.repeats} calls" if measurement.repeats > 1 else "samples of one call"
    heads = f"{'min ms':>10}{'median ms':>11}{'ratio':>8}{'compile s':>11}{'temp MB':>10}{'of matmul':>11}"
    lines = [f"{measurement.case}, {measurement.mode} ({calls})", f"  {'':{width}}{heads}"]
    for name, row in measurement.rows.items():
        lines.append(f"  {name:{width}}{figures(row)}".rstrip())
    return "\n".join(lines)


def figures(row: Row) -> str:
    """The numbers of a contestant, or the reason why there are none."""
    if row.status != "timed":
        return f"  {row.status}: {row.note}"
    compile_s = number(row.compile_s, ".2f")
    temporary = number(row.temporary_bytes, ".3f", 1e-6)
    fraction = number(row.matmul_fraction, ".1%")
    numbers = f"{row.min_s * 1e3:10.3f}{row.median_s * 1e3:11.3f}{row.ratio:8.2f}"
    return f"{numbers}{compile_s:>11}{temporary:>10}{fraction:>11}  {row.note}"


def closing(report: Report) -> str:
    """Geometric means, and the cases in which another library is faster."""
    lines = [
        f"geometric mean over {m.cases} case{'s' * (m.cases > 1)}: {m.what}: {m.value:.2f}"
        for m in summary.means(report.cases)
    ]
    slower = [v for v in summary.verdicts(report.cases) if v.slower]
    lines += [
        f"slower than {v.best} by more than the noise: "
        f"{v.title}, {v.mode}: {v.ratio:.2f} (noise {v.noise:.2f})"
        for v in slower
    ]
    return "\n".join([*lines, *report.troubled])


def long_line(row: Long) -> str:
    """The results of one very long sequence."""
    time = "not run" if row.call_s is None else f"{row.call_s:.1f} s"
    temporary = number(row.temporary_bytes, ".2f", 1e-6)
    return (
        f"{row.case}, gradients for weights, loss {row.loss}, checkpoint={row.checkpoint!r}: "
        f"{temporary} MB temporary, one call {time}, compiled in {row.compile_s:.2f} s"
    )


# --- as Markdown --------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """All tables of a run."""
    parts = [headline(report.about)]
    for mode in MODES:
        chosen = [m for m in report.cases if m.mode == mode]
        if chosen:
            parts += [
                f"**{mode}**: median of lstm_jax; the others as multiples of it",
                ratios(chosen),
            ]
    both = [m for m in report.cases if m.mode == MODES[1]]
    if both:
        parts += [
            f"**{MODES[1]}**: temporary memory, MB",
            cells(both, lambda row: number(row.temporary_bytes, ".2f", 1e-6)),
            f"**{MODES[1]}**: compile time, s",
            cells(both, lambda row: number(row.compile_s, ".2f")),
            f"**{MODES[1]}**: fraction of the rate of a square matrix product in the same run "
            f"({rates(report.matmul_rates)})",
            cells(both, lambda row: number(row.matmul_fraction, ".1%")),
        ]
    if report.memory:
        parts += ["**time against memory**", policies(report.memory)]
    if report.long:
        parts += ["**very long sequences**", "\n".join(f"- {long_line(row)}" for row in report.long)]
    if closed := closing(report):
        parts += ["**summary**", "\n".join(f"- {line}" for line in closed.splitlines())]
    notes = sorted(
        {
            f"- {name}: {row.note}"
            for m in report.cases
            for name, row in m.rows.items()
            if row.note and row.status != "absent"
        }
    )
    notes += [f"- {name} is absent: {why}" for name, why in report.about["absent"].items()]
    parts += ["**notes**", "\n".join(notes)] if notes else []
    return "\n\n".join(parts) + "\n"


def rates(by_library: dict[str, float]) -> str:
    """The rates of square matrix products."""
    return ", ".join(f"{name} {rate / 1e9:.1f} GFLOP/s" for name, rate in by_library.items())


def ratios(measurements: Sequence[Measurement]) -> str:
    """The median of lstm_jax in milliseconds, and those of the others as multiples of it."""

    def text(row: Row) -> str:
        return f"{row.ratio:.2f}" if row.ratio is not None else row.status

    return cells(measurements, text, lead=lambda m: f"{m.rows[LSTM_JAX.name].median_s * 1e3:.3f} ms")


def policies(measurements: Sequence[Measurement]) -> str:
    """Time and memory of each policy."""
    lines = [
        (m.case, name, number(row.median_s, ".3f", 1e3), number(row.temporary_bytes, ".3f", 1e-6))
        for m in measurements
        for name, row in m.rows.items()
    ]
    heads = "| B,T,D,H | | median ms | temporary MB |\n| --- | --- | ---: | ---: |"
    return "\n".join([heads, *("| " + " | ".join(map(str, line)) + " |" for line in lines)])


def cells(measurements: Sequence[Measurement], text: Any, lead: Any = None) -> str:
    """A row for each case and a column for each contestant that ran at least one of them."""
    names = list(dict.fromkeys(name for m in measurements for name in m.rows))
    out = ("absent", "declines")
    present = [n for n in names if any(n in m.rows and m.rows[n].status not in out for m in measurements)]
    lines = []
    for m in measurements:
        words = [text(m.rows[n]) if n in m.rows else "" for n in present]
        if lead is not None:
            words[present.index(LSTM_JAX.name)] = lead(m)
        lines.append([m.case, *words])
    return files.table(["B,T,D,H", *present], lines)


def introduction(report: Report, contestants: Sequence[Contestant]) -> str:
    """What will be measured, and which contestants are absent."""
    peers = [c.name for c in contestants if c not in ALWAYS_MEASURED and c.name not in report.about["absent"]]
    lines = [
        headline(report.about),
        f"compared with lstm_jax and the plain scan: {', '.join(peers) or 'none'}",
    ]
    lines += [f"absent: {name} ({why})" for name, why in report.about["absent"].items()]
    return "\n".join(lines)
