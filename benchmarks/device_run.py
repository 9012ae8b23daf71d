"""One job on a device: its deadline, and the lines of JSON that it prints for the parent process."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any, NamedTuple

from benchmarks.cases import Setting

#: Threads that compile programs.
THREADS = 8


class Run(NamedTuple):
    """Platform, deadline and size of a job."""

    platform: str
    deadline: float  # of time.monotonic; nothing new begins after it
    quick: bool = False  # tiny sizes
    #: The platform whose Pallas kernels are interpreted; "": kernels run on the device.
    interpreted: str = ""

    def setting(self, dtype: str, tf32: bool = False) -> Setting:
        return Setting(self.platform, dtype, tf32 and self.platform == "gpu")

    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def kernels(self) -> Any:
        """The context in which kernels are run."""
        if not self.interpreted:
            return contextlib.nullcontext()
        import lstm_jax.experimental

        return lstm_jax.experimental.interpret(self.interpreted)


def emit(**message: Any) -> None:
    """Report to the parent process."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def begin(*words: Any) -> None:
    emit(begin=", ".join(str(word) for word in words if word))


def row(status: str, note: str = "", **values: Any) -> None:
    emit(row={"status": status, "note": note} | {name: v for name, v in values.items() if v is not None})
