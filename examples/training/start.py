"""The start of a program: Ctrl-C without a traceback from the first import on, and memory that stays mapped.

The package imports this module first. It imports only quick modules of the standard library, so that Ctrl-C
is quiet during the slow imports that follow.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from types import FrameType

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of <malloc.h>

#: The command that resumes the run; empty without an unfinished run. :class:`training.Run` sets it.
resume_command = ""


def stopped() -> str:
    """The line that Ctrl-C prints."""
    return f"stopped; resume with: {resume_command}" if resume_command else "stopped"


def stop(number: int, frame: FrameType | None) -> None:
    """A signal handler: print one line, and exit with the status 128 + number.

    There is no KeyboardInterrupt, which inside an import or a callback could be lost or printed as a
    traceback. Every file of a run folder is written so that a kill does no harm.
    """
    try:
        sys.stdout.flush()
    except (OSError, RuntimeError, ValueError):  # the signal interrupted another flush, or stdout is closed
        pass
    line_break = "\n" if sys.stderr.isatty() else ""  # after a progress bar
    os.write(2, f"{line_break}{Path(sys.argv[0]).stem}: {stopped()}\n".encode())
    os._exit(128 + number)


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; return whether the C library supports it (glibc).

    By default, glibc returns blocks above 32 MiB to the operating system when they are freed, and so do the
    arenas of threads, in which XLA computes. Each training step then allocates its large arrays anew, and the
    kernel clears every page at the first access. With these settings there is one arena, and its pages are
    reused. Call this before the first computation.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  (only glibc has it)
        mallopt = libc.mallopt
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return False
    settings = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1))
    return all([mallopt(name, value) for name, value in settings])


def _is_program() -> bool:
    """Whether Python was started with one of the programs next to this package."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return file is not None and Path(file).resolve().parent == Path(__file__).resolve().parents[1]


if _is_program():
    keep_freed_memory()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # background jobs ignore it
        signal.signal(signal.SIGINT, stop)
