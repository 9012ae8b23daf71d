"""Train a word-level language model by the recipes of two papers.

Read `quickstart.py` first for the training loop, then `_word_model.py` (the network) and `_word_step.py` (the
recipes' training step).

    python examples/word_lm.py
    python examples/word_lm.py --data ptb/ --preset zaremba-medium --out runs/medium
    python examples/word_lm.py --data wikitext-2/ --preset awd
    python examples/word_lm.py --resume runs/medium
    python examples/word_lm.py --data ptb/ --reference torch
    python examples/word_lm.py --mesh data=4,model=2

--data is a folder in the format of Penn Treebank (ptb.train.txt, ptb.valid.txt, ptb.test.txt) or of WikiText
(wiki.train.tokens, ...), or a plain text file. Without it, the model is trained on Python's built-in help
pages. The presets:

    zaremba-small, -medium, -large   Zaremba et al. 2014, "Recurrent Neural Network Regularization"
    awd                              Merity et al. 2018, "Regularizing and Optimizing LSTM Language Models"

The program prints the perplexity on the test part. It writes a run folder with the weights, the vocabulary,
the learning curve, the metrics and the configuration. The validation part is evaluated in as many streams as
the training part, and words that do not fill them are left out. The test part is evaluated as one stream, and
each of its words after the first is counted once.
"""

from __future__ import annotations

import training.start  # isort: skip  # noqa: F401  (first: Ctrl-C is quiet during the slow imports)

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from _word_model import Model, Params, evaluate
from _word_step import (
    Window,
    first_state,
    learning_rate,
    make_step,
    start_averaging,
    state_shardings,
    window_maker,
)
from _word_text import Corpus, Plan, Windows, read_corpus
from _word_torch import compare
from training import (
    FRACTION,
    NONNEGATIVE,
    POSITIVE,
    Parser,
    Placement,
    Run,
    State,
    add_duration,
    add_run_arguments,
    count,
    fit,
    integer,
    load_weights,
    main,
    plots,
    save_weights,
    streams,
)

FORMAT = "lstm_jax/word_lm/1"
MODEL_FIELDS = Model.__dataclass_fields__.keys() - {"vocabulary", "mesh", "rows"}  # set by options
WINDOW = 100  # words per stream in each window of an evaluation

# --- recipes ---------------------------------------------------------------------------------------

#: The loss is a sum over the window, as in Zaremba's code and TensorFlow's; lr and clip are of that scale.
ZAREMBA = {"layers": 2, "batch": 20, "lr": 1.0, "sum_over_time": True}
PRESETS: dict[str, dict[str, Any]] = {
    "zaremba-small": ZAREMBA
    | {"hidden": 200, "embedding": 200, "window": 20, "init": 0.1, "clip": 5.0}
    | {"epochs": 13, "decay": 0.5, "decay_after": 4},
    "zaremba-medium": ZAREMBA
    | {"hidden": 650, "embedding": 650, "window": 35, "init": 0.05, "clip": 5.0, "dropout": 0.5}
    | {"epochs": 39, "decay": 0.8, "decay_after": 6},
    "zaremba-large": ZAREMBA
    | {"hidden": 1500, "embedding": 1500, "window": 35, "init": 0.04, "clip": 10.0, "dropout": 0.65}
    | {"epochs": 55, "decay": 1 / 1.15, "decay_after": 14},
    "awd": {"awd": True, "layers": 3, "hidden": 1150, "embedding": 400, "window": 70, "batch": 20}
    | {"lr": 30.0, "clip": 0.25, "weight_decay": 1.2e-6, "epochs": 500, "nonmono": 5}
    | {"alpha": 2.0, "beta": 1.0, "dropout": 0.4, "dropout_hidden": 0.25, "dropout_input": 0.4}
    | {"dropout_words": 0.1, "weight_drop": 0.5},
}


# --- the program -----------------------------------------------------------------------------------


def learn(args: argparse.Namespace) -> None:
    """Train and evaluate; with ``--reference`` compare the losses with PyTorch's."""
    corpus = read_corpus(args.data, args.vocabulary)
    windows = Windows(corpus.train, args.batch, args.window, args.seed if args.awd else None)
    plan = windows.plan(args.epochs, args.steps)
    window_of = window_maker(windows, plan, args)
    model = Model(len(corpus.vocabulary), **{name: getattr(args, name) for name in MODEL_FIELDS})
    k_init, k_noise = jax.random.split(jax.random.key(args.seed))
    params = model.init_params(k_init)
    print(f"{corpus.name}: {len(corpus.train):,} training words, vocabulary of {len(corpus.vocabulary):,}")
    print(f"LSTM {args.layers} x {args.hidden}: {count(params):,} weights, {len(plan.starts):,} windows")
    if args.reference:
        return compare(args, model, params, window_of, len(plan.starts))

    with Run(args, data=corpus.about(), weights=count(params)) as run:
        run.write("vocabulary.txt", "\n".join([*corpus.vocabulary, ""]).encode())
        train(args, run, model, params, corpus, plan, window_of, k_noise)
        test = run.rows[-1]["test_perplexity"]
        plots.learning_curve(
            run,
            f"{args.preset} on {corpus.name}",
            x=("epoch", "epochs"),
            y="perplexity (lower is better)",
            train=("perplexity", "training"),
            valid=("valid_perplexity", "validation"),
            log=True,
        )
    print(f"Test perplexity: {test:.2f}. Weights and plots: {args.out}/")


def train(
    args: argparse.Namespace,
    run: Run,
    model: Model,
    params: Params,
    corpus: Corpus,
    plan: Plan,
    window_of: Callable[[int], Window],
    key: jax.Array,
) -> None:
    """Train and evaluate. The run folder contains the last weights; with ``--nonmono``, the best ones."""
    shapes, steps = jax.eval_shape(lambda: params), len(plan.starts)
    placement = Placement.of(args, shardings=lambda mesh, state: state_shardings(trained, mesh, state))
    trained = model.sharded(placement.mesh)
    evaluated = model.sharded(placement.mesh, rows=None)  # works for any number of rows
    fields = {name: getattr(model, name) for name in ("vocabulary", *sorted(MODEL_FIELDS))}
    valid = streams(corpus.valid, min(args.batch, len(corpus.valid) // 2))

    def evaluate_and_save(state: State) -> dict[str, float]:
        weights = state.optimizer.params if state.optimizer else state.params
        value = float(evaluate(evaluated, weights, valid, WINDOW))
        if not args.nonmono or value <= min(run.values("valid_nats"), default=math.inf):
            save_weights(run.folder, FORMAT, fields, weights)
        row = {"valid_nats": value, "valid_perplexity": perplexity(value)}
        if int(state.step) == steps:
            _, kept = load_weights(run.folder, FORMAT, lambda _: shapes)
            test = float(evaluate(evaluated, kept, corpus.test[:, None], WINDOW))
            row |= {"test_nats": test, "test_perplexity": perplexity(test)}
        return row

    def report(step: int, means: Mapping[str, float]) -> dict[str, float]:
        done = float(plan.done[step - 1])
        lr = learning_rate(args, math.ceil(done) - 1)
        return {"epoch": done, "lr": lr, "loss": means["loss"], "perplexity": perplexity(means["loss"])}

    fit(
        make_step(trained, args, key),
        first_state(model, args, params),
        window_of,
        run=run,
        steps=steps,
        evaluate=evaluate_and_save,
        evaluate_every=plan.ends(),
        after_evaluation=lambda state, rows: start_averaging(args, state, rows),
        report=report,
        placement=placement,
    )


def perplexity(nats: float) -> float:
    return math.exp(min(nats, 700))


def make_parser() -> Parser:
    parser = Parser("word_lm", __doc__, presets=lambda args: PRESETS[args.preset])
    add, size = parser.add_argument, integer(1)
    help = "folder of a corpus, or a text file (default: Python's help pages)"
    add("--data", type=Path, metavar="PATH", help=help)
    add("--preset", choices=PRESETS, default="zaremba-small", help="defaults of the options below")
    help = "vocabulary size; rarer words become <unk> (default: all words of a corpus, 2000 of a text)"
    add("--vocabulary", type=integer(3), metavar="V", help=help)
    help = "train without dropout here and in PyTorch, and print both losses; no run folder is written"
    add("--reference", choices=("torch",), help=help)
    add_run_arguments(parser)

    add = parser.add_argument_group("network (defaults: the preset's)").add_argument
    add("--layers", type=size, help="LSTM layers")
    add("--hidden", type=size, help="units per layer")
    add("--embedding", type=size, help="features per word")
    add("--init", type=POSITIVE, default=0.1, help="initial weights are uniform in plus or minus this")
    help = "one dropout mask per window, tied softmax, windows of random length"
    add("--awd", action="store_true", help=help)
    help = "dropout rate before the softmax; without --awd also of the inputs of every layer"
    add("--dropout", type=FRACTION, default=0.0, help=help)
    add("--dropout-hidden", type=FRACTION, default=0.0, help="with --awd: dropout rate between layers")
    add("--dropout-input", type=FRACTION, default=0.0, help="with --awd: dropout rate of embedding features")
    add("--dropout-words", type=FRACTION, default=0.0, help="with --awd: dropout rate of whole words")
    add("--weight-drop", type=FRACTION, default=0.0, help="with --awd: dropout rate of recurrent weights")

    group = parser.add_argument_group("training (defaults: the preset's)")
    add = group.add_argument
    add_duration(group)
    add("--window", type=size, help="T, words per step; gradients stop at its beginning")
    add("--batch", type=size, help="B, parallel streams")
    add("--lr", type=POSITIVE, help="SGD's learning rate")
    add("--decay", type=POSITIVE, default=1.0, help="factor of the learning rate in each later epoch")
    help = "epochs before the decay starts"
    add("--decay-after", type=integer(0), default=0, metavar="EPOCHS", help=help)
    add("--clip", type=POSITIVE, help="maximum norm of the gradient")
    add("--sum-over-time", action="store_true", help="the loss is a sum over the window, not a mean")
    add("--weight-decay", type=NONNEGATIVE, default=0.0, help="coefficient of the weight decay")
    add("--alpha", type=NONNEGATIVE, default=0.0, help="weight of the activation regularization (AR)")
    add("--beta", type=NONNEGATIVE, default=0.0, help="weight of the temporal one (TAR)")
    help = "epochs without improvement before weights are averaged; 0: never"
    add("--nonmono", type=integer(0), default=0, help=help)
    return parser


if __name__ == "__main__":
    sys.exit(main(make_parser(), learn))
