"""A word-level language model, by the recipes of two papers.

    python examples/word_lm.py
    python examples/word_lm.py --data ptb/ --preset zaremba-medium --out runs/medium
    python examples/word_lm.py --data wikitext-2/ --preset awd
    python examples/word_lm.py --resume runs/medium
    python examples/word_lm.py --data ptb/ --reference torch
    python examples/word_lm.py --mesh data=4,model=2

--data takes a folder in the format of Penn Treebank (ptb.train.txt, ptb.valid.txt, ptb.test.txt) or of
WikiText (wiki.train.tokens, ...), or a plain text; without it, the model learns the English of Python's
own help pages. The presets:

    zaremba-small, -medium, -large   Zaremba et al. 2014, "Recurrent Neural Network Regularization"
    awd                              Merity et al. 2018, "Regularizing and Optimizing LSTM Language Models"

The validation part is read in as many streams as the training part, of which it fills whole ones; the
test part is read as one stream, and each of its words after the first is counted once.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from _word_model import Model, Params, Window, evaluate
from _word_step import begin_averaging, first_state, learning_rate, make_step, places, window_maker
from _word_text import Corpus, Plan, Windows, read_corpus
from _word_torch import compare
from training import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Parser,
    Placement,
    Run,
    State,
    add_duration,
    add_run_arguments,
    count,
    fit,
    load_weights,
    main as run_main,
    plots,
    save_weights,
    streams,
    whole,
)

FORMAT = "lstm_jax/word_lm/1"
SAID = Model.__dataclass_fields__.keys() - {"vocabulary", "mesh", "rows"}  # of a model, by arguments
READ_AT_ONCE = 100  # words of each stream, when the model is judged

# --- recipes ---------------------------------------------------------------------------------------

#: Zaremba's and TensorFlow's loss is a sum over the window, so their lr and clip are of that scale.
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
    corpus = read_corpus(args.data, args.vocabulary)
    windows = Windows(corpus.train, args.batch, args.window, args.seed if args.awd else None)
    plan = windows.plan(args.epochs, args.steps)
    window_of = window_maker(windows, plan, args)
    model = Model(len(corpus.vocabulary), **{name: getattr(args, name) for name in SAID})
    k_init, k_noise = jax.random.split(jax.random.key(args.seed))
    params = model.init_params(k_init)
    print(f"{corpus.name}: {len(corpus.train):,} words to learn, {len(corpus.vocabulary):,} kinds")
    print(f"LSTM {args.layers} x {args.hidden}: {count(params):,} weights, {len(plan.starts):,} windows")
    if args.reference:
        return compare(args, model, params, window_of, len(plan.starts))

    with Run(args, data=corpus.about(), weights=count(params)) as run:
        run.write("vocabulary.txt", "\n".join([*corpus.vocabulary, ""]).encode())
        train(args, run, model, params, corpus, plan, window_of, k_noise)
        test = run.rows[-1]["test_perplexity"]
        run.write("learning_curve.png", draw_curve(run.rows, f"{args.preset} on {corpus.name}"))
    print(f"Test perplexity: {test:.2f}. Weights and pictures: {args.out}/")


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
    """Steps and evaluations. The last evaluation's weights lie in the run folder; of AWD's, the best."""
    shapes, steps = jax.eval_shape(lambda: params), len(plan.starts)
    placement = Placement.of(args, shardings=lambda mesh, state: places(trained, mesh, state))
    trained = model.over(placement.mesh)
    judged = model.over(placement.mesh, rows=None)  # as few rows as it likes
    about = {name: getattr(model, name) for name in ("vocabulary", *sorted(SAID))}
    valid = streams(corpus.valid, min(args.batch, len(corpus.valid) // 2))

    def judge(state: State) -> dict[str, float]:
        weights = state.optimizer.params if state.optimizer else state.params
        value = float(evaluate(judged, weights, valid, READ_AT_ONCE))
        earlier = [row["valid_nats"] for row in run.rows if "valid_nats" in row]
        if not args.nonmono or value <= min(earlier, default=math.inf):
            save_weights(run.folder, FORMAT, about, weights)
        row = {"valid_nats": value, "valid_perplexity": perplexity(value)}
        if int(state.step) == steps:
            _, kept = load_weights(run.folder, FORMAT, lambda _: shapes)
            test = float(evaluate(judged, kept, corpus.test[:, None], READ_AT_ONCE))
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
        evaluate=judge,
        evaluate_every=plan.ends(),
        after_evaluation=lambda state, rows: begin_averaging(args, state, rows),
        report=report,
        placement=placement,
        advice=f"try --lr {args.lr / 3:.2g} (it was {args.lr:g}), or a smaller --clip (it was {args.clip:g})",
    )


def perplexity(nats: float) -> float:
    return math.exp(min(nats, 700))


def draw_curve(rows: Sequence[Mapping[str, float]], title: str) -> bytes:
    """Perplexity against epochs."""
    return plots.learning_curve(
        rows,
        x="epoch",
        train="perplexity",
        valid="valid_perplexity",
        x_label="epochs",
        y_label="perplexity (lower is better)",
        title=title,
        log=True,
    )


# --- the command line ------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    parser, size = Parser("word_lm", __doc__), whole(1)
    add = parser.add_argument
    add(
        "--data", type=Path, metavar="PATH", help="a corpus's folder or a text (default: Python's help pages)"
    )
    add("--preset", choices=PRESETS, default="zaremba-small", help="(default: %(default)s)")
    help = "words that are kept; rarer ones become <unk> (default: all of a corpus, 2000 of a text)"
    add("--vocabulary", type=whole(3), metavar="V", help=help)
    help = "train in torch beside us, without dropout, and print both losses; no run folder is made"
    add("--reference", choices=("torch",), help=help)
    add_run_arguments(parser)

    group = parser.add_argument_group("the network (defaults: the preset's)")
    add = group.add_argument
    add("--layers", type=size)
    add("--hidden", type=size, help="units of a layer")
    add("--embedding", type=size, help="features of a word")
    add("--init", type=POSITIVE, default=0.1, help="weights start uniform in plus or minus this")
    add("--awd", action="store_true", help="masks for whole windows, tied softmax, windows of varied length")
    add("--dropout", type=SHARE, default=0.0, help="before the softmax; without --awd also below each layer")
    add("--dropout-hidden", type=SHARE, default=0.0, help="with --awd: between layers")
    add("--dropout-input", type=SHARE, default=0.0, help="with --awd: of the embedding's features")
    add("--dropout-words", type=SHARE, default=0.0, help="with --awd: of whole words")
    add("--weight-drop", type=SHARE, default=0.0, help="with --awd: of recurrent weights")

    group = parser.add_argument_group("training (defaults: the preset's)")
    add = group.add_argument
    add_duration(group)
    add("--window", type=size, help="T, words that gradients flow through")
    add("--batch", type=size, help="B, streams read side by side")
    add("--lr", type=POSITIVE, help="SGD's learning rate")
    add("--decay", type=POSITIVE, default=1.0, help="factor of the learning rate in each later epoch")
    add("--decay-after", type=whole(0), default=0, metavar="EPOCHS", help="epochs before the decay begins")
    add("--clip", type=POSITIVE, help="highest norm of the gradients")
    add("--sum-over-time", action="store_true", help="the loss is a sum over the window, not a mean")
    add("--weight-decay", type=NOT_NEGATIVE, default=0.0)
    add("--alpha", type=NOT_NEGATIVE, default=0.0, help="weight of the activations' regularisation (AR)")
    add("--beta", type=NOT_NEGATIVE, default=0.0, help="weight of that of their changes (TAR)")
    add("--nonmono", type=whole(0), default=0, help="epochs without progress before averaging; 0: never")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The program; 0 if all went well, 2 after an error that was told in one line."""
    return run_main(make_parser(), learn, argv, presets=lambda args: PRESETS[args.preset])


if __name__ == "__main__":
    sys.exit(main())
