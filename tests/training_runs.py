"""What the tests of the training module share: a small program to run, and what a run leaves."""

import json
import sys
from pathlib import Path

import safetensors.numpy

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import _word_model as model_of  # noqa: E402, F401
import _word_step as steps  # noqa: E402, F401
import _word_text as text  # noqa: E402, F401
import training_program as program  # noqa: E402
import word_lm as word_lm  # noqa: E402
from training import (  # noqa: E402
    Placement as Placement,
    Run as Run,
    State as State,
    UserError as UserError,
    command as command,
    data as data,
    distributed as distributed,
    fit as fit,
)
from training.checkpoints import Checkpoints as Checkpoints  # noqa: E402


def main(*words):
    return program.main(program.make_parser(), program.learn, [str(word) for word in words])


def rows(folder):
    """The measurements, without what the clock said."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def outcome(folder):
    """All that has to be the same after an interruption, to the bit."""
    arrays = safetensors.numpy.load_file(folder / "weights.safetensors")
    return rows(folder), {name: array.tobytes() for name, array in arrays.items()}
