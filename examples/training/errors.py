"""Exceptions that end a program with one line on standard error."""

from __future__ import annotations


class UserError(Exception):
    """An error that the user can fix. :func:`training.main` prints it in one line, without a traceback."""


class Stopped(Exception):
    """The user stopped the program (Ctrl-C or SIGTERM), and its state is saved."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class Finished(Exception):
    """The run is already finished."""
