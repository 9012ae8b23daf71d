"""A character-level language model, trained by one command.

    python examples/char_lm.py --demo
    python examples/char_lm.py --text my_corpus.txt --epochs 20 --out runs/mine
    python examples/char_lm.py --resume runs/mine
    python examples/char_lm.py --sample-from runs/mine --prompt "Once " --temperature 0.7

Without --text it learns the English of Python's own help pages, so nothing is downloaded. The last
part of the text is held out; the network is judged by its bits per character there, beside what
counting n-grams gives on the same characters. The run folder then holds the weights, the learning
curve, a picture of the gates at work, and what was run.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _char_model import CELLS, Model, Params, evaluate, features, load, nats, sample, save
from _char_plots import draw_units
from _char_text import bits, encode, split, windows, witten_bell
from training import (
    POSITIVE,
    SHARE,
    Parser,
    Run,
    State,
    UserError,
    add_duration,
    add_run_arguments,
    digest,
    fit,
    main as run_main,
    plots,
    python_help,
    read_text,
    real,
    steps_of,
    whole,
)

import lstm_jax

NGRAM_ORDER = 5  # on texts of about a million characters, 6 is worse
PICTURE_FROM, PICTURE_OF = 500, 72  # characters of the held-out text: read before the picture, and in it
DEMO = {"batch": 25, "out": Path("runs/demo")}


# --- training --------------------------------------------------------------------------------------


def make_optimizer(lr: float, clip: float, steps: int) -> optax.GradientTransformation:
    """Adam on clipped gradients; the learning rate climbs for a twentieth of the run, then falls (cosine)."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, max(1, steps // 20), steps + 1, lr / 100)
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule))


def make_train_step(
    network: lstm_jax.Stack, optimizer: optax.GradientTransformation, key: jax.Array, per_epoch: int
) -> Callable[[State, np.ndarray], tuple[State, dict[str, jax.Array]]]:
    """One window of truncated backpropagation through time."""

    def loss(params: Params, carry: Any, ids: jax.Array, start: jax.Array) -> tuple[jax.Array, Any]:
        # The carry comes in as a value: no gradient flows into the window before.
        carry, losses = nats(network, params, carry, ids, key=key, start=start)
        return losses.mean(), carry

    def train_step(state: State, ids: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        # An epoch begins at the beginning of the streams, and remembers nothing.
        fresh = network.initial_carry((ids.shape[1],), state.params["layers"])
        begins = state.step % per_epoch == 0
        carry = jax.tree.map(lambda new, old: jnp.where(begins, new, old), fresh, state.carry)
        start = state.step * (len(ids) - 1)  # the place in time, so that no dropout mask comes twice
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, carry), grads = gradient(state.params, carry, ids, start)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, moments, carry, state.step + 1), {"loss": value}

    return train_step


def train(args: argparse.Namespace, run: Run, model: Model, text: np.ndarray, held_out: np.ndarray) -> Params:
    """The weights after the last step; what was measured is in ``run.rows``."""
    network, data = model.network(), windows(text, args.batch, args.window)
    steps = steps_of(args, len(data))
    characters = args.batch * args.window  # of a step
    k_init, k_noise = jax.random.split(jax.random.key(args.seed))
    optimizer = make_optimizer(args.lr, args.clip, steps)
    params = model.init(k_init)
    carry = network.initial_carry((args.batch,), params["layers"])

    def report(step: int, means: Mapping[str, float]) -> dict[str, float]:
        seen = {"characters": step * characters, "epoch": step / len(data)}
        return seen | {"train_bits": means["loss"] / math.log(2)}

    def judge(state: State) -> dict[str, float]:
        value = float(evaluate(network, state.params, held_out))
        save(run.folder, model, state.params)  # to sample from while the run goes on
        return {"valid_nats": value, "valid_bits": value / math.log(2)}

    state = fit(
        make_train_step(network, optimizer, k_noise, len(data)),
        State(params, optimizer.init(params), carry, jnp.int32(0)),
        lambda step: data[step % len(data)],
        run=run,
        steps=steps,
        evaluate=judge,
        evaluate_every=min(len(data), math.ceil(steps / 10)),  # an epoch, or less where the run is short
        report=report,
        advice=f"try --lr {args.lr / 3:.2g} (it was {args.lr:g}), or a smaller --clip (it was {args.clip:g})",
    )
    return state.params


# --- what is shown ---------------------------------------------------------------------------------


def sample_text(model: Model, params: Params, args: argparse.Namespace) -> str:
    """The prompt and what the network makes of it; without a prompt, it begins as on a new line."""
    vocabulary = model.vocabulary
    unknown = sorted(set(args.prompt) - set(vocabulary))
    if unknown:
        raise UserError(f"--prompt has characters the network does not know: {', '.join(map(repr, unknown))}")
    prompt = encode(args.prompt or ("\n" if "\n" in vocabulary else vocabulary[0]), vocabulary)
    key = jax.random.key(args.seed)
    drawn = sample(model.network(), params, key, prompt, args.length, args.temperature)
    return args.prompt + "".join(vocabulary[index] for index in np.asarray(drawn))


def activity(model: Model, params: Params, ids: np.ndarray) -> dict[str, jax.Array]:
    """What the units of the upper recurrent layer do at each character: (T, H) each, the state last."""
    network, layer = model.network(), model.layers - 1
    xs = features(network, params, ids)
    _, (_, carries) = lstm_jax.unroll(network, params["layers"], xs, return_carries=True)
    if model.cell != "lstm":
        return {"hidden state h": carries[layer]}
    # The gates of step t read what step t - 1 left, and what the layer below says at step t.
    first = network.initial_carry((), params["layers"])[layer]
    read = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), first, carries[layer])
    below = carries[layer - 1][0] if layer else xs
    i, f, _, o = lstm_jax.lstm_gates(params["layers"][layer], read, below)
    return {
        "forget gate f: 1 keeps the cell state, 0 forgets it": f,
        "input gate i: 1 lets the new in, 0 keeps it out": i,
        "output gate o: 1 shows the cell state, 0 hides it": o,
        "cell state c: what is remembered": carries[layer][1],
    }


def picture_of_units(model: Model, params: Params, text: str, last: int) -> bytes:
    """A few units while the network reads the ``last`` characters of ``text``."""
    everything = activity(model, params, encode(text, model.vocabulary))
    *gates, (name, state) = [(name, np.asarray(values)[-last:]) for name, values in everything.items()]
    state = state / np.abs(state).max(0)
    units = choose_units(state)
    panels = [*gates, (f"{name} (each unit in shares of its largest value here)", state)]
    shown = {name: values[:, units] for name, values in panels}
    kind = f"{model.cell.upper()}, layer {model.layers}"
    return draw_units(
        text[-last:], shown, units, f"{kind}, reading held-out text: slow units on top, fast ones below"
    )


def choose_units(state: np.ndarray, count: int = 10) -> np.ndarray:
    """From units that change slowly to units that change fast: of each tenth of them, the liveliest."""
    variance = state.var(0)
    haste = np.square(np.diff(state, axis=0)).mean(0) / np.maximum(variance, 1e-9)
    groups = np.array_split(np.argsort(haste), min(count, len(haste)))
    return np.array([group[variance[group].argmax()] for group in groups])


def stretch(text: str) -> tuple[str, int]:
    """The beginning of the text, and how many characters at its end to look at, from a new line on."""
    at_most = max(0, min(PICTURE_FROM, len(text) - PICTURE_OF))
    begin = text.rfind("\n", 0, at_most) + 1
    text = text[: begin + PICTURE_OF]
    return text, len(text) - begin


def learn(args: argparse.Namespace) -> None:
    """Read, train, compare, draw, sample."""
    text = read_text(args.text) if args.text else python_help()
    source = args.text.name if args.text else "Python's help pages"
    vocabulary = "".join(sorted(set(text)))  # of the whole text, so that none is unknown in the held-out part
    ids, held_out = split(encode(text, vocabulary), args.valid_share, args.batch, args.window)
    model = Model(vocabulary, args.cell, args.hidden, args.layers, args.embedding, args.dropout)
    name = f"{args.cell.upper()} {args.layers} x {args.hidden}"
    print(f"{source}: {len(ids):,} characters to learn, {len(held_out):,} held out, {len(vocabulary)} kinds")
    print(f"{name}: {model.size():,} weights, on {jax.devices()[0].device_kind}")
    baselines = {
        f"{order}-gram" if order > 1 else "unigram": bits(witten_bell(ids, held_out, len(vocabulary), order))
        for order in (1, NGRAM_ORDER)
    }

    about = {"characters": len(text), "sha256": digest(text)}
    # The last character of the training part is read first, so that every held-out one is predicted.
    held_out = np.concatenate([ids[-1:], held_out])
    with Run(args, data=about, weights=model.size()) as run:
        params = train(args, run, model, ids, held_out)
        run.write("learning_curve.png", draw_curve(run.rows, baselines, f"{name} on {source}"))
        run.write("gates.png", picture_of_units(model, params, *stretch(text[-len(held_out) + 1 :])))

    last = run.rows[-1]
    print(f"\n{sample_text(model, params, args)}\n\nBits per character on the held-out text:")
    for label, value in {**baselines, name: last["valid_bits"]}.items():
        print(f"  {label:16s}{value:7.3f}")
    print(f"Held-out loss: {last['valid_nats']:.4f} nats a character. Weights and pictures: {args.out}/")


def draw_curve(rows: Sequence[Mapping[str, float]], baselines: Mapping[str, float], title: str) -> bytes:
    """Bits per character against characters seen."""
    return plots.learning_curve(
        rows,
        x="characters",
        train="train_bits",
        valid="valid_bits",
        x_label="characters seen in training",
        y_label="bits per character (lower is better)",
        title=title,
        baselines=baselines,
        labels=("on the text it learns from", "held out"),
    )


# --- the command line ------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    parser, size = Parser("char_lm", __doc__), whole(1)
    preset = " ".join(f"--{name} {value}" for name, value in DEMO.items())

    add = parser.add_argument
    add("--demo", action="store_true", help=f"a preset of about a minute on two cores: {preset}")
    add("--text", type=Path, metavar="FILE", help="a UTF-8 text to learn from (default: Python's help pages)")
    share = real(lambda x: 0 < x < 1, "above 0 and below 1")
    add("--valid-share", type=share, default=0.05, help="share held out, at the end (default: %(default)s)")

    add_run_arguments(parser)
    add = parser.add_argument_group("the network").add_argument
    add("--cell", choices=CELLS, default="lstm", help="(default: %(default)s)")
    add("--hidden", type=size, default=128, help="units of a layer (default: %(default)s)")
    add("--layers", type=size, default=2, help="recurrent layers (default: %(default)s)")
    help = "learned features of a character; 0 is one-hot, fast for small vocabularies (default: %(default)s)"
    add("--embedding", type=whole(0), default=0, metavar="D", help=help)
    add("--dropout", type=SHARE, default=0.1, help="above each layer (default: %(default)s)")

    group = parser.add_argument_group("training")
    add = group.add_argument
    add_duration(group, epochs=10.0)
    add(
        "--window",
        type=size,
        default=50,
        help="T, characters that gradients flow through (default: %(default)s)",
    )
    add("--batch", type=size, default=50, help="B, streams read side by side (default: %(default)s)")
    add("--lr", type=POSITIVE, default=8e-3, help="Adam's highest learning rate (default: %(default)s)")
    add("--clip", type=POSITIVE, default=1.0, help="highest norm of the gradients (default: %(default)s)")

    add = parser.add_argument_group("sampling").add_argument
    add("--sample-from", type=Path, metavar="RUNFOLDER", help="print a sample of that run; train nothing")
    add("--temperature", type=POSITIVE, default=0.8, help="lower is more cautious (default: %(default)s)")
    add("--prompt", default="", help="what the sample goes on from (default: a new line)")
    add("--length", type=size, default=600, help="characters (default: %(default)s)")
    return parser


def run_program(args: argparse.Namespace) -> None:
    if args.sample_from:
        print(sample_text(*load(args.sample_from), args))
    else:
        learn(args)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; 0 if all went well, 2 after an error that was told in one line."""
    return run_main(make_parser(), run_program, argv, presets=lambda args: DEMO if args.demo else {})


if __name__ == "__main__":
    sys.exit(main())
