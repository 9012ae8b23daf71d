"""Handwritten digits, read one pixel after the other: a cell has 64 steps to see what was written.

    python examples/digits.py
    python examples/digits.py --ragged --seed 1
    python examples/digits.py --cell gru --hidden 64 --epochs 200 --out runs/digits-gru
    python examples/digits.py --images mine.npz

The data are the 1,797 images of 8 x 8 pixels inside scikit-learn, so nothing is downloaded; --images takes
others (an .npz file with images (N, height, width) and labels (N,)). Each image is read row by row, from the
top left; what the cell says after the last pixel tells which digit it was. With --ragged the blank pixels
after the last ink are not read: each sequence has a length of its own.

In training each image is moved by at most one pixel either way (--shift 0: never), nine images of one. Of
all images 70 % are learned from, 15 % validate (choose your arguments by these), and 15 % test the last
weights, once. The run folder then holds the weights, result.json, the learning curve, a table of what was
taken for what, and the digits that were misread.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _cells import CELLS
from _digits_data import Images, batch_from, read_images, shifted, split
from _digits_plots import draw_confusion, draw_misread
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
    digest,
    fit,
    main as run_main,
    plots,
    save_weights,
    shuffled,
    steps_of,
    whole,
)

import lstm_jax

FORMAT = "lstm_jax/digits/1"

# --- the network -----------------------------------------------------------------------------------


def logits_of(network: lstm_jax.Stack, params: Any, batch: Any, key: jax.Array | None = None) -> jax.Array:
    """(N, classes): what the network says at the last pixel of each sequence; zeros if it has no pixel."""
    xs, lengths = batch["x"].swapaxes(0, 1), batch["lengths"]  # time first
    _, ys = lstm_jax.unroll(network, params, xs, lengths=lengths, key=key)
    return ys[lengths - 1, jnp.arange(len(lengths))]  # outputs from a sequence's length on are zero


# --- training --------------------------------------------------------------------------------------


def learn(args: argparse.Namespace) -> None:
    """Read, train, judge, draw."""
    data = read_images(args.images)
    classes = int(data.labels.max()) + 1
    train, valid, test = split(data, args.seed)
    rows_of, per_epoch = shuffled(np.arange(len(train.labels)), args.batch, args.seed)
    steps = steps_of(args, per_epoch)
    layers = CELLS[args.cell](1, args.hidden), lstm_jax.Readout(args.hidden, classes)
    network = lstm_jax.Stack(layers, dropout=args.dropout)
    k_init, k_noise = jax.random.split(jax.random.key(args.seed))
    params = network.init(k_init)
    # The learning rate climbs for a twentieth of the run, then falls as a cosine.
    schedule = optax.warmup_cosine_decay_schedule(0.0, args.lr, max(1, steps // 20), steps + 1, args.lr / 100)
    adam = optax.adamw(schedule, weight_decay=args.decay)
    optimizer = optax.chain(optax.clip_by_global_norm(args.clip), adam)

    def batch_of(step: int) -> dict[str, np.ndarray]:
        images, labels = train.take(rows_of(step))
        moved = shifted(images, args.shift, np.random.default_rng((args.seed, step)))
        return batch_from(Images(moved, labels), args.ragged)

    def loss(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        """-ln p(label), mean over the images."""
        logits = logits_of(network, params, batch, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    def step(state: State, batch: dict[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(k_noise, state.step)
        value, grads = jax.value_and_grad(loss)(state.params, batch, key)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, moments, (), state.step + 1), {"loss": value}

    judged = batch_from(valid, args.ragged)

    @jax.jit
    def judge(params: Any) -> dict[str, jax.Array]:
        logits = logits_of(network, params, judged)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, judged["label"])
        return {"valid_loss": losses.mean(), "valid_accuracy": (logits.argmax(-1) == judged["label"]).mean()}

    sizes = [len(part.labels) for part in (train, valid, test)]
    print(f"{sizes[0]} images to learn from, {sizes[1]} to validate, {sizes[2]} to test")
    name = f"{args.cell.upper()} {args.hidden}"
    print(f"{name}: {count(params):,} weights, {in_words(judged['lengths'])} an image")
    about = {"images": len(data.labels), "sha256": digest(*data)}
    with Run(args, data=about, weights=count(params)) as run:
        state = fit(
            step,
            State(params, optimizer.init(params), (), jnp.int32(0)),
            batch_of,
            run=run,
            steps=steps,
            evaluate=lambda state: {name: float(value) for name, value in judge(state.params).items()},
            evaluate_every=-(-steps // 20),
            log_every=per_epoch,
            report=lambda step, means: {"epoch": step / per_epoch, **means},
            advice=f"try --lr {args.lr / 3:.2g} (it was {args.lr:g})",
            placement=Placement.of(args, batch_axis=0),
        )
        predicted = np.asarray(logits_of(network, state.params, batch_from(test, args.ragged)).argmax(-1))
        right = predicted == test.labels
        result = {
            "test_images": len(right),
            "test_right": int(right.sum()),
            "test_accuracy": float(right.mean()),
        }
        run.write("result.json", (json.dumps(result) + "\n").encode())
        model = {"cell": args.cell, "hidden": args.hidden, "classes": classes}
        save_weights(run.folder, FORMAT, model, state.params)
        title = f"{name}: {right.mean():.1%} of {len(right)} test images read right"
        run.write("learning_curve.png", draw_curve(run.rows, title))
        run.write("confusion.png", draw_confusion(test.labels, predicted, classes, title))
        wrong = test.take(~right)
        run.write("misread.png", draw_misread(wrong.images, wrong.labels, predicted[~right], title))
    print(f"Test: {right.sum()} of {len(right)} right, {right.mean():.2%}. Weights and pictures: {args.out}/")


def in_words(lengths: np.ndarray) -> str:
    low, high = lengths.min(), lengths.max()
    return f"{high} steps" if low == high else f"{low} to {high} steps (mean {lengths.mean():.1f})"


def draw_curve(rows: Sequence[dict[str, float]], title: str) -> bytes:
    return plots.learning_curve(
        rows,
        x="epoch",
        train="loss",
        valid="valid_loss",
        x_label="epochs (each image once)",
        y_label="cross-entropy (nats an image)",
        title=title,
        labels=("in training, moved images", "validation"),
        log=True,
    )


# --- the command line ------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    parser = Parser("digits", __doc__)
    add = parser.add_argument_group("the data").add_argument
    add("--images", type=Path, metavar="FILE", help="an .npz file (default: scikit-learn's digits)")
    add("--ragged", action="store_true", help="leave out the blank pixels after the last ink")
    help = "pixels that images move in training, at most (default: %(default)s)"
    add("--shift", type=whole(0, 100), default=1, help=help)
    add_run_arguments(parser)
    add = parser.add_argument_group("the network").add_argument
    help = f"of {', '.join(CELLS)} (default: %(default)s)"
    add("--cell", choices=list(CELLS), default="lstm", metavar="NAME", help=help)
    add("--hidden", type=whole(1), default=128, help="units of the cell (default: %(default)s)")
    add("--dropout", type=SHARE, default=0.2, help="of what the read-out reads (default: %(default)s)")
    group = parser.add_argument_group("training")
    add_duration(group, epochs=100.0)
    add = group.add_argument
    add("--batch", type=whole(1), default=32, help="images in a step (default: %(default)s)")
    add("--lr", type=POSITIVE, default=4e-3, help="Adam's highest learning rate (default: %(default)s)")
    add("--decay", type=NOT_NEGATIVE, default=1e-3, help="of the weights (AdamW; default: %(default)s)")
    add("--clip", type=POSITIVE, default=1.0, help="highest norm of the gradients (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The program; 0 if all went well, 2 after an error that was told in one line."""
    return run_main(make_parser(), learn, argv)


if __name__ == "__main__":
    sys.exit(main())
