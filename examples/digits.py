"""Classify images of handwritten digits, read pixel by pixel as a sequence.

Read `quickstart.py` first for the training loop, then `logits_of` and `learn` in this file.

    python examples/digits.py
    python examples/digits.py --ragged --seed 1
    python examples/digits.py --cell gru --hidden 64 --epochs 200 --out runs/digits-gru
    python examples/digits.py --images mine.npz

The data are scikit-learn's 1,797 images of 8 x 8 pixels, so nothing is downloaded. --images reads others: an
.npz file with images (N, height, width) and labels (N,). Each image is one sequence of pixels, row by row
from the top left. The output at the last pixel is the prediction. With --ragged, each sequence ends at its
last pixel with ink, so the sequences have different lengths.

In training, each image is shifted by at most one pixel vertically and horizontally (--shift 0 disables this).
70 % of the images are used for training, 15 % for validation (use these to choose options), and 15 % for one
test of the last weights. The program prints the test accuracy. It writes a run folder with the weights,
result.json, the learning curve, the confusion matrix (confusion.png) and misread digits (misread.png).
"""

from __future__ import annotations

import training.start  # isort: skip  # noqa: F401  (first: Ctrl-C is quiet during the slow imports)

import argparse
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _digits_images import Images, batch_from, draw_confusion, draw_misread, read_images, shifted, split
from training import (
    CELLS,
    FRACTION,
    NONNEGATIVE,
    POSITIVE,
    Parser,
    Placement,
    Run,
    State,
    adam_with_warmup,
    add_duration,
    add_run_arguments,
    count,
    digest,
    fit,
    gradient_step,
    integer,
    main,
    plots,
    save_weights,
    shuffled,
    steps_of,
)

import lstm_jax

FORMAT = "lstm_jax/digits/1"


def logits_of(network: lstm_jax.Stack, params: Any, batch: Any, key: jax.Array | None = None) -> jax.Array:
    """The outputs at the last pixel of each sequence, (N, classes); zeros for an empty sequence."""
    xs, lengths = batch["x"].swapaxes(0, 1), batch["lengths"]  # time first
    _, ys = lstm_jax.unroll(network, params, xs, lengths=lengths, key=key)
    return ys[lengths - 1, jnp.arange(len(lengths))]  # outputs in the padding are zero


def learn(args: argparse.Namespace) -> None:
    """Train, evaluate, plot."""
    data = read_images(args.images)
    classes = int(data.labels.max()) + 1
    train, valid, test = split(data, args.seed)
    rows_of, per_epoch = shuffled(np.arange(len(train.labels)), args.batch, args.seed)
    steps = steps_of(args, per_epoch)
    layers = CELLS[args.cell](1, args.hidden), lstm_jax.Readout(args.hidden, classes)
    network = lstm_jax.Stack(layers, dropout=args.dropout)
    k_init, k_noise = jax.random.split(jax.random.key(args.seed))
    params = network.init(k_init)
    optimizer = adam_with_warmup(args.lr, steps, clip=args.clip, weight_decay=args.decay)

    def batch_of(step: int) -> dict[str, np.ndarray]:
        images, labels = train.take(rows_of(step))
        moved = shifted(images, args.shift, np.random.default_rng((args.seed, step)))
        return batch_from(Images(moved, labels), args.ragged)

    def loss(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        """-ln p(label), mean over the images."""
        logits = logits_of(network, params, batch, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    valid_batch = batch_from(valid, args.ragged)

    @jax.jit
    def evaluate(params: Any) -> dict[str, jax.Array]:
        logits, labels = logits_of(network, params, valid_batch), valid_batch["label"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {"valid_loss": losses.mean(), "valid_accuracy": (logits.argmax(-1) == labels).mean()}

    sizes = [len(part.labels) for part in (train, valid, test)]
    print(f"{sizes[0]} training images, {sizes[1]} for validation, {sizes[2]} for the test")
    name = f"{args.cell.upper()} {args.hidden}"
    print(f"{name}: {count(params):,} weights, {describe(valid_batch['lengths'])} per image")
    with Run(args, data={"images": len(data.labels), "sha256": digest(*data)}, weights=count(params)) as run:
        state = fit(
            gradient_step(loss, optimizer, k_noise),
            State(params, optimizer.init(params), (), jnp.int32(0)),
            batch_of,
            run=run,
            steps=steps,
            evaluate=lambda state: {name: float(value) for name, value in evaluate(state.params).items()},
            evaluate_every=-(-steps // 20),
            log_every=per_epoch,
            report=lambda step, means: {"epoch": step / per_epoch, **means},
            placement=Placement.of(args, batch_axis=0),
        )
        predicted = np.asarray(logits_of(network, state.params, batch_from(test, args.ragged)).argmax(-1))
        right = predicted == test.labels
        accuracy = float(right.mean())
        run.write_json(
            "result.json",
            {"test_images": len(right), "test_right": int(right.sum()), "test_accuracy": accuracy},
        )
        model = {"cell": args.cell, "hidden": args.hidden, "classes": classes}
        save_weights(run.folder, FORMAT, model, state.params)
        title = f"{name}: {accuracy:.1%} of {len(right)} test images correct"
        plots.learning_curve(
            run,
            title,
            x=("epoch", "epochs (each image once)"),
            y="cross-entropy (nats per image)",
            train=("loss", "training, shifted images"),
            valid=("valid_loss", "validation"),
            log=True,
        )
        run.write("confusion.png", draw_confusion(test.labels, predicted, classes, title))
        run.write("misread.png", draw_misread(*test.take(~right), predicted[~right], title))
    print(f"Test: {right.sum()} of {len(right)} correct, {accuracy:.2%}. Weights and plots: {args.out}/")


def describe(lengths: np.ndarray) -> str:
    low, high = lengths.min(), lengths.max()
    return f"{high} steps" if low == high else f"{low} to {high} steps (mean {lengths.mean():.1f})"


def make_parser() -> Parser:
    parser = Parser("digits", __doc__)
    add = parser.add_argument_group("data").add_argument
    add("--images", type=Path, metavar="FILE", help="an .npz file (default: scikit-learn's digits)")
    add("--ragged", action="store_true", help="omit the pixels after the last one with ink")
    add("--shift", type=integer(0, 100), default=1, help="maximum shift of training images, in pixels")
    add_run_arguments(parser)
    add = parser.add_argument_group("network").add_argument
    add("--cell", choices=list(CELLS), default="lstm", metavar="NAME", help=f"one of {', '.join(CELLS)}")
    add("--hidden", type=integer(1), default=128, help="units of the cell")
    add("--dropout", type=FRACTION, default=0.2, help="dropout rate of the readout's inputs")
    group = parser.add_argument_group("training")
    add_duration(group, epochs=100.0)
    add = group.add_argument
    add("--batch", type=integer(1), default=32, help="images per step")
    add("--lr", type=POSITIVE, default=4e-3, help="AdamW's maximum learning rate")
    add("--decay", type=NONNEGATIVE, default=1e-3, help="AdamW's weight decay")
    add("--clip", type=POSITIVE, default=1.0, help="maximum norm of the gradient")
    return parser


if __name__ == "__main__":
    sys.exit(main(make_parser(), learn))
