"""The shared suite of all implementations, as a result file: ``python -m benchmarks.suite``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.cases import Setting
from benchmarks.sheet import Sheet

FILES = ("tests/unrolling/test_registry.py", "tests/unrolling/test_cudnn.py")


class Recorder:
    """A plugin of pytest's: one row a test, written when the test is over."""

    def __init__(self, folder: Path, platform: str) -> None:
        self.folder, self.platform = folder, platform
        self.sheet: Sheet | None = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Of a test's set-up, call and tear-down those that say how it went."""
        if report.when != "call" and report.passed:
            return
        if self.sheet is None:  # not before the tests' own settings have made jax's devices
            self.sheet = opened(self.folder, self.platform)
        told = report.longrepr[2] if report.skipped else report.longreprtext if report.failed else ""
        why = (told.strip().splitlines() or [""])[-1][:300].replace("|", "/")
        self.sheet.begin(test=report.nodeid)
        self.sheet.end(outcome=report.outcome, seconds=report.duration, why=why)


def opened(folder: Path, platform: str) -> Sheet:
    about = report.machine(Setting(platform), (), {})
    return Sheet(folder, "suite", "The shared suite", ("test", "outcome", "seconds", "why"), about)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    parser.add_argument(
        "--device", choices=("cpu", "gpu", "tpu"), default="cpu", help="(default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="(default: %(default)s)")
    parser.add_argument("-k", default="", help="a part of the tests, as for pytest")
    args = parser.parse_args(argv)
    try:
        import pytest
    except ImportError:
        parser.error('the suite needs pytest: pip install "lstm_jax[test]"')
    expected = [] if args.device == "cpu" else ["--device", args.device]
    words = ["-q", "-p", "no:cacheprovider", *expected, *(["-k", args.k] if args.k else []), *FILES]
    return int(pytest.main(words, plugins=[Recorder(args.out, args.device)]))


if __name__ == "__main__":
    sys.exit(main())
