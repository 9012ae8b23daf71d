"""Train a character-level language model, and sample text from it.

Read `quickstart.py` first for the training loop, then `train` in this file, and `_char_model.py` for the
network and its loss.

    python examples/char_lm.py --demo
    python examples/char_lm.py --text my_corpus.txt --epochs 20 --out runs/mine
    python examples/char_lm.py --resume runs/mine
    python examples/char_lm.py --sample-from runs/mine --prompt "Once " --temperature 0.7

The text is a file, or, without --text, Python's built-in help pages, so nothing is downloaded. The last part
of the text is held out. The program prints a sample and the bits per character on the held-out text, for the
network and for n-gram models. It writes a run folder with the weights, the learning curve, a picture of the
gates (gates.png), a page for exploring the units in a browser (inside/viewer.html), the metrics and the
configuration. `look_inside.py` draws figures of them.
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
import jax.numpy as jnp
import numpy as np
import optax
from _char_model import Model, Params, evaluate, load, nats, sample, save
from _char_plots import PAGE, draw_gates, read_layer, write_page
from _char_text import bits, encode, load_text, split, windows, witten_bell
from training import (
    FRACTION,
    POSITIVE,
    Parser,
    Run,
    State,
    UserError,
    adam_with_warmup,
    add_duration,
    add_run_arguments,
    digest,
    fit,
    integer,
    main,
    number,
    plots,
    steps_of,
)

import lstm_jax

NGRAM_ORDER = 5  # on texts of about a million characters, 6 is worse
DEMO = {"batch": 25, "out": Path("runs/demo")}


# --- training --------------------------------------------------------------------------------------


def make_train_step(
    network: lstm_jax.Stack, optimizer: optax.GradientTransformation, key: jax.Array, per_epoch: int
) -> Callable[[State, np.ndarray], tuple[State, dict[str, jax.Array]]]:
    """A step on one window, by truncated backpropagation through time."""

    def loss(params: Params, carry: Any, ids: jax.Array, start: jax.Array) -> tuple[jax.Array, Any]:
        # The carry is an input of the gradient, so no gradient reaches the previous window.
        carry, losses = nats(network, params, carry, ids, key=key, start=start)
        return losses.mean(), carry

    def train_step(state: State, ids: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        # Each epoch starts at the beginning of the streams with a fresh carry.
        fresh = network.initial_carry((ids.shape[1],), state.params["layers"])
        begins = state.step % per_epoch == 0
        carry = jax.tree.map(lambda new, old: jnp.where(begins, new, old), fresh, state.carry)
        start = state.step * (len(ids) - 1)  # the time of the first input, so that dropout masks never repeat
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, carry), grads = gradient(state.params, carry, ids, start)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, moments, carry, state.step + 1), {"loss": value}

    return train_step


def train(args: argparse.Namespace, run: Run, model: Model, text: np.ndarray, held_out: np.ndarray) -> Params:
    """Train, and return the weights after the last step. The metrics are in ``run.rows``."""
    network, data = model.network(), windows(text, args.batch, args.window)
    steps = steps_of(args, len(data))
    k_init, k_noise = jax.random.split(jax.random.key(args.seed))
    optimizer = adam_with_warmup(args.lr, steps, clip=args.clip)
    params = model.init(k_init)
    carry = network.initial_carry((args.batch,), params["layers"])

    def report(step: int, means: Mapping[str, float]) -> dict[str, float]:
        seen = {"characters": step * args.batch * args.window, "epoch": step / len(data)}
        return seen | {"train_bits": means["loss"] / math.log(2)}

    def evaluate_and_save(state: State) -> dict[str, float]:
        value = float(evaluate(network, state.params, held_out))
        save(run.folder, model, state.params)  # --sample-from works while the run continues
        return {"valid_nats": value, "valid_bits": value / math.log(2)}

    state = fit(
        make_train_step(network, optimizer, k_noise, len(data)),
        State(params, optimizer.init(params), carry, jnp.int32(0)),
        lambda step: data[step % len(data)],
        run=run,
        steps=steps,
        evaluate=evaluate_and_save,
        evaluate_every=min(len(data), math.ceil(steps / 10)),  # each epoch, or more often in a short run
        report=report,
    )
    return state.params


# --- the program -----------------------------------------------------------------------------------


def sample_text(model: Model, params: Params, args: argparse.Namespace) -> str:
    """The prompt and its continuation. Without a prompt, the sample starts as on a new line."""
    vocabulary = model.vocabulary
    unknown = sorted(set(args.prompt) - set(vocabulary))
    if unknown:
        listed = ", ".join(map(repr, unknown))
        raise UserError(f"--prompt has characters that are not in the vocabulary: {listed}")
    prompt = encode(args.prompt or ("\n" if "\n" in vocabulary else vocabulary[0]), vocabulary)
    key = jax.random.key(args.seed)
    drawn = sample(model.network(), params, key, prompt, args.length, args.temperature)
    return args.prompt + "".join(vocabulary[index] for index in np.asarray(drawn))


def learn(args: argparse.Namespace) -> None:
    """Train, evaluate, plot and sample; with ``--sample-from`` only sample."""
    if args.sample_from:
        print(sample_text(*load(args.sample_from), args))
        return
    text, source = load_text(args.text)
    vocabulary = "".join(sorted(set(text)))  # includes the characters of the held-out part
    ids, held_out = split(encode(text, vocabulary), args.valid_fraction, args.batch, args.window)
    model = Model(vocabulary, args.cell, args.hidden, args.layers, args.embedding, args.dropout)
    name = f"{args.cell.upper()} {args.layers} x {args.hidden}"
    print(
        f"{source}: {len(ids):,} training characters, {len(held_out):,} held out, "
        f"{len(vocabulary)} different characters"
    )
    print(f"{name}: {model.size():,} weights, on {jax.devices()[0].device_kind}")
    baselines = {
        f"{order}-gram" if order > 1 else "unigram": bits(witten_bell(ids, held_out, len(vocabulary), order))
        for order in (1, NGRAM_ORDER)
    }

    # The last training character is the first input, so every held-out character is predicted.
    predicted = np.concatenate([ids[-1:], held_out])
    with Run(args, data={"characters": len(text), "sha256": digest(text)}, weights=model.size()) as run:
        params = train(args, run, model, ids, predicted)
        plots.learning_curve(
            run,
            f"{name} on {source}",
            x=("characters", "training characters seen"),
            y="bits per character (lower is better)",
            train=("train_bits", "training text"),
            valid=("valid_bits", "held-out text"),
            baselines=baselines,
        )
        unseen = text[-len(held_out) :]
        run.write("gates.png", draw_gates(model, params, unseen))
        page = args.out / "inside" / "viewer.html"
        layer = read_layer(model, params, unseen[:PAGE], model.layers - 1)
        write_page(page, layer, unseen, f"{name}, last layer, on held-out text")

    last = run.rows[-1]
    print(f"\n{sample_text(model, params, args)}\n\nBits per character on the held-out text:")
    for label, value in {**baselines, name: last["valid_bits"]}.items():
        print(f"  {label:16s}{value:7.3f}")
    print(f"Held-out loss: {last['valid_nats']:.4f} nats per character. Weights and plots: {args.out}/")
    print(f"Figures of its units: python examples/look_inside.py {args.out}")
    print(f"Explore its units in a browser: {page}")


def make_parser() -> Parser:
    parser = Parser("char_lm", __doc__, presets=lambda args: DEMO if args.demo else {})
    size = integer(1)
    demo = " ".join(f"--{name} {value}" for name, value in DEMO.items())

    add = parser.add_argument
    add("--demo", action="store_true", help=f"a preset of about one minute on two CPU cores: {demo}")
    add("--text", type=Path, metavar="FILE", help="UTF-8 text to train on (default: Python's help pages)")
    fraction = number(lambda x: 0 < x < 1, "> 0 and < 1")
    add("--valid-fraction", type=fraction, default=0.05, help="fraction held out, at the end of the text")

    add_run_arguments(parser)
    add = parser.add_argument_group("network").add_argument
    add("--cell", choices=("rnn", "lstm", "gru"), default="lstm", help="recurrent cell")
    add("--hidden", type=size, default=128, help="units per layer")
    add("--layers", type=size, default=2, help="recurrent layers")
    help = "learned features per character; 0 is one-hot, which is fast for small vocabularies"
    add("--embedding", type=integer(0), default=0, metavar="D", help=help)
    add("--dropout", type=FRACTION, default=0.1, help="dropout rate of the outputs of each recurrent layer")

    group = parser.add_argument_group("training")
    add_duration(group, epochs=10.0)
    add = group.add_argument
    add("--window", type=size, default=50, help="T, characters per step; gradients stop at its beginning")
    add("--batch", type=size, default=50, help="B, parallel streams")
    add("--lr", type=POSITIVE, default=8e-3, help="Adam's maximum learning rate")
    add("--clip", type=POSITIVE, default=1.0, help="maximum norm of the gradient")

    add = parser.add_argument_group("sampling").add_argument
    add("--sample-from", type=Path, metavar="RUNFOLDER", help="print a sample of that run, without training")
    add("--temperature", type=POSITIVE, default=0.8, help="lower values give more probable characters")
    add("--prompt", default="", help="text to continue (default: a new line)")
    add("--length", type=size, default=600, help="characters to sample")
    return parser


if __name__ == "__main__":
    sys.exit(main(make_parser(), learn))
