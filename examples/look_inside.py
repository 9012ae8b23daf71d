"""Show what the units of a trained character model do.

Read `_inside_findings.py` first for how a finding is tested, then `_inside_figures.py` for the calls of
`lstm_jax.diagnostics` and `lstm_jax.plots`.

    python examples/char_lm.py --demo
    python examples/look_inside.py runs/demo
    python examples/look_inside.py runs/demo --layer 1

The program reads the run folder of `char_lm.py`, and the held-out part of its text. It writes into the folder
`inside` of the run folder:

    viewer.html     a page for exploring all units over the text, in a browser
    findings.txt    units that follow the position in the line, quotes, brackets, ..., in words
    *.png           gates, saturation, memory, time constants, gradients, eigenvalues, Lyapunov exponents,
                    trajectories with fixed points, and the cell with its values at one step
"""

from __future__ import annotations

import training.start  # isort: skip  # noqa: F401  (first: Ctrl-C is quiet during the slow imports)

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from _char_model import Model, load
from _char_plots import read_layer, write_page
from _char_text import encode, load_text, split
from _inside_features import text_features
from _inside_figures import draw_figures
from _inside_findings import find_units
from training import Parser, UserError, digest, integer, main
from training.runs import check_same_data, read_config

from lstm_jax.interop._writing import write_whole


def held_out_text(folder: Path, model: Model) -> str:
    """The held-out part of the text that the run was trained on."""
    config = read_config(folder)
    arguments: dict[str, Any] = config["arguments"]
    if arguments.get("program") != "char_lm":
        raise UserError(f"{folder} contains a run of another program, {arguments.get('program')}")
    text, _ = load_text(Path(arguments["text"]) if arguments["text"] else None)
    now = {"characters": len(text), "sha256": digest(text)}
    check_same_data(folder, config["data"], now)
    ids = encode(text, model.vocabulary)
    sizes = [arguments[name] for name in ("valid_fraction", "batch", "window")]
    return text[-len(split(ids, *sizes)[1]) :]


def learn(args: argparse.Namespace) -> None:
    """Write the page, the findings and the figures, and print the findings."""
    model, params = load(args.folder)
    number = args.layer or model.layers
    if number > model.layers:
        raise UserError(
            f"--layer {number}: the network has {model.layers} recurrent layer{'s' * (model.layers > 1)}"
        )
    text = held_out_text(args.folder, model)
    layer = read_layer(model, params, text, number - 1)
    inside = args.folder / "inside"
    name = f"{model.cell.upper()} of {model.hidden} units, layer {number} of {model.layers}"
    write_page(inside / "viewer.html", layer, text, f"{name}, on held-out text")

    half = len(text) // 2
    findings = find_units(np.asarray(layer.memory), text_features(text), np.random.default_rng(0))
    state = "c" if model.cell == "lstm" else "h"
    heading = (
        f"{name}, state {state} over {len(text):,} characters of held-out text.\n"
        f"Each unit is chosen on the first {half:,} characters and checked on the others. By chance: the\n"
        "largest score of any unit with the same feature, shifted against the text.\n"
    )
    lines = [str(finding) for finding in findings] or ["The text is too short to compare its halves."]
    report = "\n".join([heading, *lines]) + "\n"
    print(report)
    write_whole(inside / "findings.txt", report.encode())

    found = [finding.unit for finding in findings if finding.holds]
    for file, image in draw_figures(model, params, layer, text, number - 1, found[0] if found else None):
        write_whole(inside / file, image)
    print(f"Figures: {inside}/\nOpen in a browser: {inside / 'viewer.html'}")


def make_parser() -> Parser:
    parser = Parser("look_inside", __doc__)
    parser.set_defaults(resume=None, out=None)
    add = parser.add_argument
    add("folder", type=Path, metavar="RUNFOLDER", help="of char_lm.py")
    add("--layer", type=integer(1), metavar="N", help="recurrent layer, from 1 (default: the last one)")
    return parser


if __name__ == "__main__":
    sys.exit(main(make_parser(), learn))
