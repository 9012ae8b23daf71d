"""Forecasts of a series, many steps ahead and with intervals, by an ensemble of LSTMs.

    python examples/forecast.py
    python examples/forecast.py --series sunspots --out runs/sunspots
    python examples/forecast.py --csv sales.csv --column units --period 12
    python examples/forecast.py --resume runs/forecast

The network reads a series step by step, at each of them the last period; from the carry after it, the
read-out says mean and spread of each of the next H steps at once (direct forecasts: nothing is fed back). The
members of the ensemble are one program, vmap over their weights; what they say of themselves and how far they
disagree make the intervals.

They learn from the first two thirds. The last third is walked through with a rolling origin: each step in it
is forecast from all that lies before it, by weights that stay as they are, and compared with the
seasonal-naive forecast: what was observed a period ago. The run folder then holds the weights, the learning
curve, the table by horizon (result.json), a picture, and the forecast of the future.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _forecast_plots import draw_forecasts
from _forecast_problem import COVERS, Forecasts, Problem, evaluate, make_problem, table
from _series import Series, load
from training import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Parser,
    Placement,
    Run,
    UserError,
    add_duration,
    add_run_arguments,
    count,
    digest,
    fit,
    main as run_main,
    plots,
    save_weights,
    steps_of,
    whole,
)

import lstm_jax

# --- the model and its loss ------------------------------------------------------------------------


def make_network(period: int, hidden: int, horizon: int, dropout: float) -> lstm_jax.Stack:
    """An LSTM; a read-out of it and of the last period itself (skip): two numbers for each of the H steps."""
    layers = lstm_jax.LSTM(period, hidden), lstm_jax.Readout(hidden + period, 2 * horizon)
    return lstm_jax.Stack(layers, skip=True, dropout=dropout)


def predict(network: lstm_jax.Stack, params: Any, xs: Any, key: jax.Array | None = None) -> tuple[Any, Any]:
    """Mean and standard deviation, (n, ..., H) each; those of t know what was read up to t, and no more."""
    _, said = lstm_jax.unroll(network, params, xs, key=key)
    mean, spread = jnp.split(said, 2, axis=-1)
    return mean, jax.nn.softplus(spread) + 1e-3


def gaussian_nll(mean: jax.Array, std: jax.Array, targets: jax.Array, counted: jax.Array) -> jax.Array:
    r"""Nats a forecast, over those that count.

    .. math:: L = \log \sigma + (z - \mu)^2 / (2 \sigma^2) + \log(2 \pi) / 2
    """
    losses = jnp.log(std) + 0.5 * ((targets - mean) / std) ** 2 + 0.5 * np.log(2 * np.pi).astype(np.float32)
    return jnp.where(counted, losses, 0.0).sum() / counted.sum()


# --- training --------------------------------------------------------------------------------------


class Ensemble(NamedTuple):
    """What is handed on from step to step; every array begins with an axis for the E members."""

    params: Any
    optimizer: Any
    best: Any  # each member's weights at its best evaluation so far
    best_nll: jax.Array  # (E,)
    step: jax.Array  # ()


def train(
    args: argparse.Namespace, run: Run, network: lstm_jax.Stack, problem: Problem, series: Series, known: int
) -> Any:
    """Each member's weights where they were best on the last fifth of what is known."""
    last = known * 4 // 5
    learned = problem.until < last
    chosen = (problem.until < known) & ~learned
    window = min(3 * series.period, last - 1)
    k_init, k_noise = jax.random.split(jax.random.key(args.seed))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(args.lr))
    xs, targets = jnp.asarray(problem.xs), jnp.asarray(problem.targets)

    def batch_of(step: int) -> np.ndarray:
        """(E, B): where the windows begin that each member learns from: no two steps are the same."""
        rng = np.random.default_rng((args.seed, step))
        return rng.integers(0, last - window, (args.members, args.batch), np.int32, endpoint=True)

    def loss(params: Any, starts: jax.Array, key: jax.Array) -> jax.Array:
        times = jnp.arange(window)[:, None] + starts  # (window, B)
        k_inputs, k_dropout = jax.random.split(key)
        inputs = xs[times]  # (window, B, period)
        inputs += args.noise * jax.random.normal(k_inputs, inputs.shape)
        mean, std = predict(network, params, inputs, k_dropout)
        return gaussian_nll(mean, std, targets[times], jnp.asarray(learned)[times])

    def member_step(
        params: Any, moments: Any, starts: jax.Array, key: jax.Array
    ) -> tuple[Any, Any, jax.Array]:
        """A step of one network; it knows nothing of the others."""
        value, grads = jax.value_and_grad(loss)(params, starts, key)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, value

    def step(state: Ensemble, starts: jax.Array) -> tuple[Ensemble, dict[str, jax.Array]]:
        keys = jax.random.split(jax.random.fold_in(k_noise, state.step), args.members)
        params, moments, values = jax.vmap(member_step)(state.params, state.optimizer, starts, keys)
        state = state._replace(params=params, optimizer=moments, step=state.step + 1)
        return state, {"loss": values.mean()}

    @jax.jit
    @jax.vmap
    def judge(params: Any) -> jax.Array:
        return gaussian_nll(*predict(network, params, xs[:known]), targets[:known], chosen[:known])

    def keep_best(state: Ensemble, rows: Sequence[Mapping[str, float]]) -> Ensemble:
        nll = judge(state.params)
        better = nll < state.best_nll

        def pick(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        best = jax.tree.map(pick, state.params, state.best)
        return state._replace(best=best, best_nll=jnp.minimum(nll, state.best_nll))

    params = jax.vmap(network.init)(jax.random.split(k_init, args.members))
    unseen = jnp.full((args.members,), jnp.finfo(jnp.float32).max)
    state = fit(
        step,
        Ensemble(params, jax.vmap(optimizer.init)(params), params, unseen, jnp.int32(0)),
        batch_of,
        run=run,
        steps=steps_of(args, 1),
        evaluate=lambda state: {"valid_nll": float(judge(state.params).mean())},
        evaluate_every=20,
        after_evaluation=keep_best,
        advice=f"try --lr {args.lr / 3:.2g} (it was {args.lr:g})",
        placement=Placement.of(args),
    )
    return state.best


# --- what the ensemble says ------------------------------------------------------------------------


def forecast(network: lstm_jax.Stack, params: Any, problem: Problem, root: bool) -> Forecasts:
    """The members' Gaussians as one, with their mean and variance (Lakshminarayanan et al. 2017).

    The variance is what the members say of themselves, plus how far their means lie apart.
    """
    run = jax.jit(jax.vmap(lambda member: predict(network, member, problem.xs)))
    means, stds = (np.asarray(a, np.float64) for a in run(params))  # (E, n, H)
    mean, std = means.mean(0), np.sqrt((stds**2).mean(0) + means.var(0))

    def value(z: np.ndarray) -> np.ndarray:
        worked = problem.base + problem.scale * z
        return np.maximum(worked, 0) ** 2 if root else worked

    def interval(cover: float) -> tuple[np.ndarray, np.ndarray]:
        reach = NormalDist().inv_cdf(0.5 + cover / 2) * std
        return value(mean - reach), value(mean + reach)

    return Forecasts(value(mean), {cover: interval(cover) for cover in COVERS})


# --- the program -----------------------------------------------------------------------------------


def learn(args: argparse.Namespace) -> None:
    """Read, train, judge, draw."""
    series = load(args)
    n, horizon = len(series.values), args.horizon or series.period
    known = n * 2 // 3
    if known * 4 // 5 < series.period + 2 * horizon or n - known < 2 * horizon:
        need = f"a period of {series.period} and a horizon of {horizon}"
        raise UserError(f"{series.name} has {n} values, too few for {need}: shorten --horizon, or find more")
    problem, network = (
        make_problem(series, horizon, known),
        make_network(series.period, args.hidden, horizon, args.dropout),
    )
    weights = args.members * count(jax.eval_shape(network.init, jax.random.key(0)))
    print(f"{series.name}: {n} values, {known} to learn from, then a rolling origin; {horizon} steps ahead")
    print(
        f"{args.members} LSTMs of {args.hidden} units: {weights:,} weights, on {jax.devices()[0].device_kind}"
    )

    about = {"series": series.name, "values": n, "known": known, "horizon": horizon, "period": series.period}
    with Run(args, data=about | {"sha256": digest(series.values)}, weights=weights) as run:
        params = train(args, run, network, problem, series, known)
        forecasts = forecast(network, params, problem, series.root)
        rows = evaluate(series.values, forecasts, problem, known, series.period)

        model = {"members": args.members, "hidden": args.hidden, "horizon": horizon}
        save_weights(run.folder, "lstm_jax/forecast/1", model, params)
        run.write("result.json", (json.dumps(rows, indent=2) + "\n").encode())
        run.write("forecast.csv", future(series, forecasts).encode())
        run.write("learning_curve.png", draw_curve(run.rows, f"{args.members} LSTMs on {series.name}"))
        run.write("forecast.png", draw_forecasts(series, forecasts, problem.naive, rows, known))

    print(f"\n{table(rows, series)}\nWeights, pictures and the forecast of the future: {args.out}/")


def future(series: Series, forecasts: Forecasts) -> str:
    """From the last value of all on, as CSV."""
    (low80, high80), (low95, high95) = (forecasts.intervals[cover] for cover in COVERS)
    columns = (low95, low80, forecasts.median, high80, high95)
    lines = [f"{series.time}s_ahead,low_95,low_80,median,high_80,high_95"]
    for h in range(forecasts.median.shape[1]):
        lines.append(",".join([str(h + 1), *(f"{column[-1, h]:.6g}" for column in columns)]))
    return "\n".join(lines) + "\n"


def draw_curve(rows: Sequence[Mapping[str, float]], title: str) -> bytes:
    return plots.learning_curve(
        rows,
        x="step",
        train="loss",
        valid="valid_nll",
        x_label="step",
        y_label="nats a forecast, mean of the members (lower is better)",
        title=title,
        labels=("in training, with dropout", "last fifth of what is known"),
    )


def make_parser() -> argparse.ArgumentParser:
    parser, size = Parser("forecast", __doc__), whole(1)
    add = parser.add_mutually_exclusive_group().add_argument
    help = "of statsmodels (default: %(default)s)"
    add("--series", choices=("co2", "sunspots"), default="co2", help=help)
    add("--csv", type=Path, metavar="FILE", help="your own series: a column of a CSV file")
    add = parser.add_argument
    add("--column", metavar="NAME", help="of --csv, as its first line has it")
    add("--period", type=size, metavar="STEPS", help="of a season (default: 12 months, 11 years)")
    add("--horizon", type=size, metavar="STEPS", help="H, how far ahead (default: a period)")
    yes_or_no = argparse.BooleanOptionalAction
    help = "learn the change against a period before (default: not for sunspots, which have no trend)"
    add("--difference", action=yes_or_no, help=help)
    add("--root", action=yes_or_no, help="learn the square roots (default: for sunspots, which are counts)")
    add_run_arguments(parser)

    add = parser.add_argument_group("the ensemble").add_argument
    add("--members", type=size, default=10, help="E, networks (default: %(default)s)")
    add("--hidden", type=size, default=16, help="units of each (default: %(default)s)")
    add("--dropout", type=SHARE, default=0.4, help="share of the LSTM's outputs (default: %(default)s)")

    group = parser.add_argument_group("training")
    add_duration(group, steps=300)
    add = group.add_argument
    add("--batch", type=size, default=16, help="windows of three periods a step (default: %(default)s)")
    help = "on what is read, in standard deviations of the series (default: %(default)s)"
    add("--noise", type=NOT_NEGATIVE, default=0.3, help=help)
    add("--lr", type=POSITIVE, default=5e-3, help="Adam's learning rate (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The program; 0 if all went well, 2 after an error that was told in one line."""
    return run_main(make_parser(), learn, argv)


if __name__ == "__main__":
    sys.exit(main())
