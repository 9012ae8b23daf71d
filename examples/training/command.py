"""The command line: argument types, options that programs share, ``--resume``, one-line error messages.

A program calls :func:`main`. The exit status is 0 on success, 1 if a file cannot be read or written, 2 after
another error that the user can fix, and 128 plus the signal's number after a signal (130 after Ctrl-C).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from training import start
from training.distributed import exit_on_peer_failure, initialise, is_first
from training.errors import Finished, Stopped, UserError
from training.runs import differences, read_config

# --- argument types --------------------------------------------------------------------------------


def integer(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """An argparse type: an integer in [low, high]."""

    def read(word: str) -> int:
        if word.isdecimal() and low <= int(word) <= high:
            return int(word)
        expected = f"from {low} to {high}" if high < 2**31 - 1 else f">= {low}"
        raise argparse.ArgumentTypeError(f"{word!r} is not an integer {expected}")

    return read


def number(test: Callable[[float], bool], expected: str) -> Callable[[str], float]:
    """An argparse type: a number for which ``test`` returns True."""

    def read(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if test(value):
            return value
        raise argparse.ArgumentTypeError(f"{word!r} is not a number {expected}")

    return read


POSITIVE = number(lambda x: 0 < x < math.inf, "> 0")
NONNEGATIVE = number(lambda x: 0 <= x < math.inf, ">= 0")
FRACTION = number(lambda x: 0 <= x < 1, ">= 0 and < 1")

# --- the parser ------------------------------------------------------------------------------------


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Prints the description unchanged, and appends each option's default to its help text."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unset = action.default is None or action.default is False or action.default == ""
        return action.help if unset or "default:" in str(action.help) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises :class:`UserError`.

    Args:
        prog: the program's name.
        description: shown by ``--help`` as written.
        presets: ``presets(args)`` returns defaults that replace the parser's. Options on the command line
            override them.
    """

    def __init__(
        self,
        prog: str,
        description: str | None,
        presets: Callable[[argparse.Namespace], Mapping[str, Any]] | None = None,
    ):
        super().__init__(prog, description=description, formatter_class=_HelpFormatter)
        self.presets = presets
        self.set_defaults(program=prog)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def add_run_arguments(parser: Parser, fit: bool = True) -> Any:
    """Add the options that :class:`training.Run` reads, and return their argument group.

    ``--out``, ``--resume`` and ``--seed``; with ``fit`` also the options of :func:`training.fit`:
    ``--checkpoint-every``, ``--mesh`` and ``--tensorboard``.
    """
    group = parser.add_argument_group("the run")
    folder, add = group.add_mutually_exclusive_group().add_argument, group.add_argument
    default = Path("runs") / parser.prog
    folder("--out", type=Path, metavar="RUNFOLDER", default=default, help="folder for the results")
    folder("--resume", type=Path, metavar="RUNFOLDER", help="resume that run with its own arguments")
    add("--seed", type=integer(0), default=0, help="seed of all random numbers")
    if not fit:
        parser.set_defaults(tensorboard=False)
        return group
    help = "steps between checkpoints (default: one at each evaluation)"
    add("--checkpoint-every", type=integer(1), metavar="STEPS", help=help)
    help = "devices; data=4 splits each batch over 4 (default: one device, or all of several processes)"
    add("--mesh", metavar="AXES", default="", help=help)
    add("--tensorboard", action="store_true", help="also write the metrics for TensorBoard")
    return group


def add_duration(parser: Any, epochs: float | None = None, steps: int | None = None) -> None:
    """Add ``--epochs`` and ``--steps``, which exclude each other. At most one of them has a default."""
    add = parser.add_mutually_exclusive_group().add_argument
    help = "passes over the training data"
    add("--epochs", action=_replaces("steps"), type=POSITIVE, default=epochs, help=help)
    help = "training steps, instead of --epochs"
    add("--steps", action=_replaces("epochs"), type=integer(1), default=steps, help=help)


def steps_of(args: argparse.Namespace, per_epoch: int) -> int:
    """The number of training steps that ``--steps`` or ``--epochs`` specifies."""
    return int(args.steps or max(1, round(args.epochs * per_epoch)))


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line.

    With ``--resume``, the arguments are those of the resumed run. The command line must not contradict them.
    """
    args = parser.parse_args(argv)
    if args.resume:
        config = read_config(args.resume)
        saved = config["arguments"]
        if saved.get("program") != parser.prog:
            raise UserError(f"{args.resume} contains a run of another program, {saved.get('program')}")
        # argparse checks defaults that are strings as it checks options.
        words = {name: str(value) if type(value) in (int, float) else value for name, value in saved.items()}
        parser.set_defaults(**(words | {"resume": None, "out": args.resume}))
        args = parser.parse_args(argv)
        args.out = args.resume
        differ = differences(saved, vars(args))
        if differ:
            raise UserError(f"the run in {args.resume} has other arguments: {'; '.join(differ)}")
        if config.get("finished"):
            raise Finished(f"the run in {args.resume} is already finished")
    elif parser.presets:
        parser.set_defaults(**parser.presets(args))
        args = parser.parse_args(argv)
    return args


def _replaces(other: str) -> type[argparse.Action]:
    """An action that stores its value and clears the default of the option ``other``."""

    class Replace(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, value: Any, option: Any = None) -> None:
            setattr(namespace, self.dest, value)
            setattr(namespace, other, None)

    return Replace


# --- the program -----------------------------------------------------------------------------------


def main(
    parser: Parser, program: Callable[[argparse.Namespace], None], argv: Sequence[str] | None = None
) -> int:
    """Run ``program(args)`` and return the exit status. Only the first of several processes prints."""
    start.resume_command = ""
    try:
        args = parse(parser, argv)
        initialise()
        with exit_on_peer_failure(f"--resume {args.out}"), _first_process_prints():
            program(args)
        sys.stdout.flush()
    except Finished as finished:
        print(f"{parser.prog}: {finished}")
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{parser.prog}: {stopped}", file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        print(f"{parser.prog}: {start.stopped()}", file=sys.stderr)
        return 130
    except OSError as error:
        _discard_unwritable_output()
        place = error.filename or "the output of this program"
        then = f", then resume with: {start.resume_command}" if start.resume_command else ""
        print(f"{parser.prog}: {place}: {error.strerror or error}; correct this{then}", file=sys.stderr)
        return 1
    return 0


def _discard_unwritable_output() -> None:
    """Prevent a second error at exit, when Python flushes an output that is a full disk or a closed pipe."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _first_process_prints() -> Iterator[None]:
    """Discard the standard output of all processes but the first."""
    with open(os.devnull, "w") as discard, nullcontext() if is_first() else redirect_stdout(discard):
        yield
