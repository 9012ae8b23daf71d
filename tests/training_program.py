"""A small program over examples/training: an LSTM learns whether random numbers sum to more than zero."""

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
    main,
    plots,
    save_weights,
    shuffled,
    steps_of,
    whole,
)

import lstm_jax


def make_parser():
    parser = Parser("tiny", __doc__)
    add_run_arguments(parser)
    add_duration(parser, steps=100)
    parser.add_argument("--hidden", type=whole(1), default=8)
    parser.add_argument("--lr", type=POSITIVE, default=1e-2)
    parser.add_argument("--batch", type=whole(1), default=16)
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

    def step(state, batch):
        key = jax.random.fold_in(k_noise, state.step)
        value, grads = jax.value_and_grad(loss)(state.params, batch, key)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, moments, (), state.step + 1), {"loss": value}

    evaluate_loss = jax.jit(lambda params: loss(params, held_out, None))
    with Run(args, data={"sha256": digest(*data.values())}, weights=count(params)) as run:
        state = State(params, optimizer.init(params), (), jnp.int32(0))
        state = fit(
            step,
            state,
            batch_of,
            run=run,
            steps=steps_of(args, per_epoch),
            evaluate_every=per_epoch,
            evaluate=lambda state: {"valid_loss": float(evaluate_loss(state.params))},
            placement=Placement.of(args, batch_axis=0),
        )
        save_weights(run.folder, "lstm_jax/tiny/1", {"hidden": args.hidden}, state.params)
        run.write(
            "learning_curve.png",
            plots.learning_curve(
                run.rows,
                x="step",
                train="loss",
                valid="valid_loss",
                x_label="steps",
                y_label="nats",
                title="tiny",
            ),
        )


if __name__ == "__main__":
    sys.exit(main(make_parser(), learn))
