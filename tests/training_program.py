"""A small program that uses examples/training: an LSTM classifies whether random numbers have a sum > 0."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from training import (
    POSITIVE,
    Parser,
    Placement,
    Run,
    State,
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


def make_parser():
    parser = Parser("tiny", __doc__)
    add_run_arguments(parser)
    add_duration(parser, steps=100)
    parser.add_argument("--hidden", type=integer(1), default=8)
    parser.add_argument("--lr", type=POSITIVE, default=1e-2)
    parser.add_argument("--batch", type=integer(1), default=16)
    return parser


def learn(args):
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(320, 6, 1)).astype(np.float32)
    data = {"x": xs, "y": (xs.sum((1, 2)) > 0).astype(np.float32)}
    train, held_out = {k: v[:256] for k, v in data.items()}, {k: v[256:] for k, v in data.items()}
    batch_of, per_epoch = shuffled(train, args.batch, args.seed)

    network = lstm_jax.Stack((lstm_jax.LSTM(1, args.hidden), lstm_jax.Readout(args.hidden, 1)), dropout=0.1)
    optimizer = optax.adam(args.lr)
    k_init, k_noise = jax.random.split(jax.random.key(args.seed))
    params = network.init(k_init)

    def loss(params, batch, key):
        _, ys = lstm_jax.unroll(network, params, batch["x"].swapaxes(0, 1), key=key)
        return optax.sigmoid_binary_cross_entropy(ys[-1, :, 0], batch["y"]).mean()

    evaluate_loss = jax.jit(lambda params: loss(params, held_out, None))
    with Run(args, data={"sha256": digest(*data.values())}, weights=count(params)) as run:
        state = fit(
            gradient_step(loss, optimizer, k_noise),
            State(params, optimizer.init(params), (), jnp.int32(0)),
            batch_of,
            run=run,
            steps=steps_of(args, per_epoch),
            evaluate_every=per_epoch,
            evaluate=lambda state: {"valid_loss": float(evaluate_loss(state.params))},
            placement=Placement.of(args, batch_axis=0),
        )
        save_weights(run.folder, "lstm_jax/tiny/1", {"hidden": args.hidden}, state.params)
        plots.learning_curve(
            run,
            "tiny",
            x=("step", "steps"),
            y="nats",
            train=("loss", "training"),
            valid=("valid_loss", "held out"),
        )


if __name__ == "__main__":
    sys.exit(main(make_parser(), learn))
