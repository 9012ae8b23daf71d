"""A character-level language model, trained by one command.

    python examples/char_lm.py --demo
    python examples/char_lm.py --text my_corpus.txt --epochs 20 --out runs/mine
    python examples/char_lm.py --sample-from runs/mine --prompt "Once " --temperature 0.7

Without --text it learns the English of Python's own help pages, so nothing is downloaded. The last
part of the text is held out; the network is judged by its bits per character there, beside what
counting n-grams gives on the same characters. The run folder then holds the weights, the learning
curve, a picture of the gates at work, and what was run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _char_model import CELLS, Model, Params, evaluate, features, load, nats, sample, save, write_whole
from _char_plots import draw_curve, draw_units
from _char_text import UserError, bits, encode, python_help, read_text, split, windows, witten_bell
from tqdm import tqdm

import lstm_jax

NGRAM_ORDER = 5  # on texts of about a million characters, 6 is worse
PICTURE_FROM, PICTURE_OF = 500, 72  # characters of the held-out text: read before the picture, and in it
DEMO = {"batch": 25, "out": Path("runs/demo")}

Row = dict[str, float]


# --- training --------------------------------------------------------------------------------------


class State(NamedTuple):
    """What training hands on from window to window."""

    params: Params
    optimizer: Any
    carry: Any
    step: jax.Array


def make_optimizer(lr: float, clip: float, steps: int) -> optax.GradientTransformation:
    """Adam on clipped gradients; the learning rate climbs for a twentieth of the run, then falls (cosine)."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, max(1, steps // 20), steps + 1, lr / 100)
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule))


def make_train_step(
    network: lstm_jax.Stack, optimizer: optax.GradientTransformation, key: jax.Array
) -> Callable[[State, np.ndarray], tuple[State, jax.Array]]:
    """One window of truncated backpropagation through time; the old state's memory is used again."""

    def loss(params: Params, carry: Any, ids: jax.Array, start: jax.Array) -> tuple[jax.Array, Any]:
        # The carry comes in as a value: no gradient flows into the window before.
        carry, losses = nats(network, params, carry, ids, key=key, start=start)
        return losses.mean(), carry

    @partial(jax.jit, donate_argnums=0)
    def train_step(state: State, ids: jax.Array) -> tuple[State, jax.Array]:
        start = state.step * (len(ids) - 1)  # the place in time, so that no dropout mask comes twice
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, carry), grads = gradient(state.params, state.carry, ids, start)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), moments, carry, state.step + 1), value

    return train_step


def train(
    args: argparse.Namespace,
    model: Model,
    text: np.ndarray,
    held_out: np.ndarray,
    keep: Callable[[Params, list[Row]], None],
) -> tuple[Params, list[Row]]:
    """The weights and all that was measured, also handed to ``keep`` at every evaluation."""
    network, data = model.network(), windows(text, args.batch, args.window)
    steps = args.steps or max(1, round(args.epochs * len(data)))
    evaluate_every = min(len(data), math.ceil(steps / 10))  # an epoch, or less where the run is short
    characters = args.batch * args.window  # of a step

    k_init, k_noise = jax.random.split(jax.random.key(args.seed))
    optimizer = make_optimizer(args.lr, args.clip, steps)
    train_step = make_train_step(network, optimizer, k_noise)
    params = model.init(k_init)
    state = State(params, optimizer.init(params), None, jnp.int32(0))

    rows: list[Row] = []
    losses: list[jax.Array] = []  # on the device: waiting for each of them would cost time
    began = time.perf_counter()
    with tqdm(total=steps * characters, unit="char", unit_scale=True, disable=None) as bar:
        for step in range(1, steps + 1):
            window = (step - 1) % len(data)
            if window == 0:  # an epoch begins at the beginning of the streams, and remembers nothing
                state = state._replace(carry=network.initial_carry((args.batch,), state.params["layers"]))
            state, loss = train_step(state, data[window])
            losses.append(loss)

            evaluating = step % evaluate_every == 0 or step == steps
            if not evaluating and len(losses) < 10:
                continue
            values = np.array(jax.device_get(losses))
            check_finite(values, step, args)
            row = {"step": step, "characters": step * characters, "epoch": step / len(data)}
            row["train_bits"] = float(values.mean()) / math.log(2)
            if evaluating:
                row["valid_nats"] = float(evaluate(network, state.params, held_out))
                row["valid_bits"] = row["valid_nats"] / math.log(2)
            row["seconds"] = time.perf_counter() - began
            rows.append({name: round(value, 5) for name, value in row.items()})
            losses = []

            bar.set_postfix_str(f"{row['train_bits']:.3f} bits/char", refresh=False)
            bar.update(len(values) * characters)
            if evaluating:
                keep(state.params, rows)
                bar.write(
                    f"epoch {row['epoch']:5.2f}  step {step:6d}  bits per character: {row['train_bits']:.3f} "
                    f"in training, {row['valid_bits']:.3f} held out  {row['seconds']:4.0f} s"
                )
    return state.params, rows


def check_finite(losses: np.ndarray, step: int, args: argparse.Namespace) -> None:
    """Stop where the loss left the numbers; ``step`` is the step of the last one."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise UserError(
            f"the loss is {losses[bad[0]]} at step {step - len(losses) + 1 + bad[0]}: most likely the "
            f"learning rate is too high; try --lr {args.lr / 3:.2g} (it was {args.lr:g}), "
            f"or a smaller --clip (it was {args.clip:g})"
        )


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
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder {args.out}: {error.strerror}") from None
    print(f"{source}: {len(ids):,} characters to learn, {len(held_out):,} held out, {len(vocabulary)} kinds")
    print(f"{name}: {model.size():,} weights, on {jax.devices()[0].device_kind}")
    baselines = {
        f"{order}-gram" if order > 1 else "unigram": bits(witten_bell(ids, held_out, len(vocabulary), order))
        for order in (1, NGRAM_ORDER)
    }

    def keep(params: Params, rows: list[Row]) -> None:
        write_whole(args.out / "config.json", describe_run(args, model, text))
        save(args.out / "weights.safetensors", model, params)
        write_whole(args.out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    # The last character of the training part is read first, so that every held-out one is predicted.
    params, rows = train(args, model, ids, np.concatenate([ids[-1:], held_out]), keep)
    last = rows[-1]
    write_whole(args.out / "learning_curve.png", draw_curve(rows, baselines, f"{name} on {source}"))
    write_whole(args.out / "gates.png", picture_of_units(model, params, *stretch(text[-len(held_out) :])))

    print(f"\n{sample_text(model, params, args)}\n\nBits per character on the held-out text:")
    for label, value in {**baselines, name: last["valid_bits"]}.items():
        print(f"  {label:16s}{value:7.3f}")
    print(f"Held-out loss: {last['valid_nats']:.4f} nats a character. Weights and pictures: {args.out}/")


def describe_run(args: argparse.Namespace, model: Model, text: str) -> bytes:
    """What was run, on what, with what."""
    packages = ("lstm_jax", "jax", "jaxlib", "numpy", "optax", "safetensors")
    arguments = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    run = {
        "arguments": arguments,
        "text": {"characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()},
        "weights": model.size(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "device": jax.devices()[0].device_kind,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return (json.dumps(run, indent=2) + "\n").encode()


# --- the command line ------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, like every other error here."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


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


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="char_lm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    positive, size = real(lambda x: 0 < x < math.inf, "above 0"), whole(1)
    preset = " ".join(f"--{name} {value}" for name, value in DEMO.items())

    add = parser.add_argument
    add("--demo", action="store_true", help=f"a preset of about a minute on two cores: {preset}")
    add("--text", type=Path, metavar="FILE", help="a UTF-8 text to learn from (default: Python's help pages)")
    add("--out", type=Path, metavar="RUNFOLDER", default=Path("runs/char_lm"), help="(default: %(default)s)")
    add("--seed", type=whole(0), default=0, help="of weights, dropout and sampling (default: %(default)s)")
    share = real(lambda x: 0 < x < 1, "above 0 and below 1")
    add("--valid-share", type=share, default=0.05, help="share held out, at the end (default: %(default)s)")

    add = parser.add_argument_group("the network").add_argument
    add("--cell", choices=CELLS, default="lstm", help="(default: %(default)s)")
    add("--hidden", type=size, default=128, help="units of a layer (default: %(default)s)")
    add("--layers", type=size, default=2, help="recurrent layers (default: %(default)s)")
    help = "learned features of a character; 0 is one-hot, fast for small vocabularies (default: %(default)s)"
    add("--embedding", type=whole(0), default=0, metavar="D", help=help)
    share = real(lambda x: 0 <= x < 1, "from 0 to below 1")
    add("--dropout", type=share, default=0.1, help="above each layer (default: %(default)s)")

    group = parser.add_argument_group("training")
    duration, add = group.add_mutually_exclusive_group().add_argument, group.add_argument
    duration("--epochs", type=positive, default=10.0, help="times through the text (default: %(default)s)")
    duration("--steps", type=size, help="windows, instead of --epochs")
    add(
        "--window",
        type=size,
        default=50,
        help="T, characters that gradients flow through (default: %(default)s)",
    )
    add("--batch", type=size, default=50, help="B, streams read side by side (default: %(default)s)")
    add("--lr", type=positive, default=8e-3, help="Adam's highest learning rate (default: %(default)s)")
    add("--clip", type=positive, default=1.0, help="highest norm of the gradients (default: %(default)s)")

    add = parser.add_argument_group("sampling").add_argument
    add("--sample-from", type=Path, metavar="RUNFOLDER", help="print a sample of that run; train nothing")
    add("--temperature", type=positive, default=0.8, help="lower is more cautious (default: %(default)s)")
    add("--prompt", default="", help="what the sample goes on from (default: a new line)")
    add("--length", type=size, default=600, help="characters (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The program; 0 if all went well, 2 after an error that was told in one line."""
    parser = make_parser()
    try:
        args = parser.parse_args(argv)
        if args.demo:  # other defaults: what is said beside --demo wins
            parser.set_defaults(**DEMO)
            args = parser.parse_args(argv)
        if args.sample_from:
            print(sample_text(*load(args.sample_from), args))
        else:
            learn(args)
    except UserError as error:
        print(f"char_lm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("char_lm: stopped; the run folder holds the last evaluation, if there was one", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
