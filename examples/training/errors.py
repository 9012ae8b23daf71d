"""What can end a program other than success."""

from __future__ import annotations


class UserError(Exception):
    """What the person at the keyboard can mend: told in one line, without a traceback."""


class Stopped(Exception):
    """Somebody asked the program to stop (Ctrl-C, SIGTERM), and what there was is saved."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class Finished(Exception):
    """There is nothing left to do."""
