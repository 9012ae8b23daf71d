"""The command line that all programs share: argument types, arguments, going on with a run, errors.

A program's ``main`` is one call of :func:`main`; it returns 0 where all went well, 2 after an error that
was told in one line, 130 after Ctrl-C.
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

from training.distributed import first, initialise, together
from training.errors import Finished, Stopped, UserError
from training.runs import differences, read_config

Presets = Callable[[argparse.Namespace], Mapping[str, Any]]

# --- argument types --------------------------------------------------------------------------------


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """An argparse type: a whole number, the ends included."""

    def read(word: str) -> int:
        if word.isdecimal() and low <= int(word) <= high:
            return int(word)
        limit = f" to {high}" if high < 2**31 - 1 else ""
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from {low}{limit}")

    return read


def real(test: Callable[[float], bool], what: str) -> Callable[[str], float]:
    """An argparse type: a number that passes the test."""

    def read(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if test(value):
            return value
        raise argparse.ArgumentTypeError(f"{word!r} is not a number {what}")

    return read


POSITIVE = real(lambda x: 0 < x < math.inf, "above 0")
NOT_NEGATIVE = real(lambda x: 0 <= x < math.inf, "from 0")
SHARE = real(lambda x: 0 <= x < 1, "from 0 to below 1")

# --- the parser ------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, like every other error here; its description is shown as written."""

    def __init__(self, prog: str, description: str | None):
        super().__init__(prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """``--out --resume --seed --checkpoint-every --mesh --tensorboard``: what :class:`training.Run` reads."""
    parser.set_defaults(program=parser.prog)
    group = parser.add_argument_group("the run")
    place, add = group.add_mutually_exclusive_group().add_argument, group.add_argument
    folder = Path("runs") / parser.prog
    place("--out", type=Path, metavar="RUNFOLDER", default=folder, help="(default: %(default)s)")
    place("--resume", type=Path, metavar="RUNFOLDER", help="go on with that run, with its arguments")
    add("--seed", type=whole(0), default=0, help="of all that is random (default: %(default)s)")
    help = "steps between checkpoints (default: at each evaluation)"
    add("--checkpoint-every", type=whole(1), metavar="STEPS", help=help)
    help = "devices: data=4 gives each its rows of every batch (default: one device, or all of all processes)"
    add("--mesh", metavar="AXES", default="", help=help)
    add("--tensorboard", action="store_true", help="also write the measurements for TensorBoard")


def add_duration(parser: Any, epochs: float | None = None, steps: int | None = None) -> None:
    """``--epochs`` or ``--steps``, one of which has a default; both None where neither has."""
    add = parser.add_mutually_exclusive_group().add_argument
    default = "" if epochs is None else " (default: %(default)s)"
    add(
        "--epochs",
        action=_instead_of("steps"),
        type=POSITIVE,
        default=epochs,
        help="times through the data" + default,
    )
    default = "" if steps is None else " (default: %(default)s)"
    add(
        "--steps",
        action=_instead_of("epochs"),
        type=whole(1),
        default=steps,
        help="batches, instead of --epochs" + default,
    )


def steps_of(args: argparse.Namespace, per_epoch: int) -> int:
    """How many steps ``--steps`` or else ``--epochs`` ask for."""
    return int(args.steps or max(1, round(args.epochs * per_epoch)))


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, presets: Presets | None = None
) -> argparse.Namespace:
    """The arguments; with ``--resume`` those of the run, which the command line must not contradict.

    ``presets(args)`` gives other defaults: what is said on the command line beside them wins.
    """
    args = parser.parse_args(argv)
    if args.resume:
        config = read_config(args.resume)
        saved = config["arguments"]
        parser.set_defaults(**(saved | {"resume": None, "out": args.resume}))
        args = parser.parse_args(argv)
        args.out = args.resume
        differ = differences(saved, vars(args))
        if differ:
            raise UserError(f"{args.resume} was begun with other arguments: {'; '.join(differ)}")
        if config.get("finished"):
            raise Finished(f"the run in {args.resume} is finished: there is nothing to go on with")
    elif presets:
        parser.set_defaults(**presets(args))
        args = parser.parse_args(argv)
    return args


def _instead_of(other: str) -> type[argparse.Action]:
    """Of two arguments that say the same, the one that is given puts out the other's default."""

    class Instead(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, value: Any, option: Any = None) -> None:
            setattr(namespace, self.dest, value)
            setattr(namespace, other, None)

    return Instead


# --- the program -----------------------------------------------------------------------------------


def main(
    parser: argparse.ArgumentParser,
    program: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
    presets: Presets | None = None,
) -> int:
    """Run ``program(args)``, and say how it ended. Of several processes, the first one speaks."""
    try:
        args = parse(parser, argv, presets)
        initialise()
        with together(f"--resume {args.out}"), _quiet_but_first():
            program(args)
    except Finished as finished:
        print(f"{parser.prog}: {finished}")
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{parser.prog}: {stopped}", file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped; the run folder holds the last checkpoint, if any", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _quiet_but_first() -> Iterator[None]:
    """What is printed is printed once."""
    with open(os.devnull, "w") as nowhere, nullcontext() if first() else redirect_stdout(nowhere):
        yield
