"""Helpers of the tests of the example programs: running a program, and reading its run folder."""

import json
import os
import sys
from pathlib import Path

import safetensors.numpy

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))
PATHS = [str(EXAMPLES), str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]
#: The environment of programs that run in another process.
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(PATHS), "JAX_PLATFORMS": "cpu"}

import training  # noqa: E402


def run(program, *words):
    """Run a program in this process, and return its exit status."""
    return training.main(program.make_parser(), program.learn, [str(word) for word in words])


def files(folder):
    """The names of the entries of a folder, without empty files."""
    return {path.name for path in folder.iterdir() if path.stat().st_size}


def read_json(path):
    return json.loads(path.read_text())


def change_arguments(folder, **arguments):
    """Change arguments in ``config.json``, and its checksum."""
    config = read_json(folder / "config.json")
    config["arguments"] |= arguments
    identity = {part: config[part] for part in ("arguments", "data")}
    config["sha256"] = training.digest(json.dumps(identity))
    (folder / "config.json").write_text(json.dumps(config))


def rows(folder):
    """The rows of ``metrics.jsonl`` without the elapsed time."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def weights(folder):
    return safetensors.numpy.load_file(folder / "weights.safetensors")


def outcome(folder):
    """The metrics and the bits of the weights, which an interruption must not change."""
    return rows(folder), {name: array.tobytes() for name, array in weights(folder).items()}
