"""Forecast a time series many steps ahead, with intervals, by an ensemble of LSTMs.

    python examples/forecast.py
    python examples/forecast.py --series sunspots --out runs/sunspots
    python examples/forecast.py --csv sales.csv --column units --period 12
    python examples/forecast.py --resume runs/forecast

At each step the network's input is the last period of the series. Its output is the mean and the standard
deviation of each of the next H values (direct forecasts, without feedback). The members of the ensemble are
one program: `jax.vmap` over their weights. The intervals combine the members' standard deviations and the
differences between their means.

The first two thirds of the series are used for training. The last third is used for evaluation with a rolling
origin: a forecast is made at each of its steps from all values before, with fixed weights, and compared with
the seasonal-naive forecast, which is the value one period before. The program prints the errors and the
coverage of the intervals by horizon. It writes a run folder with the weights, the learning curve, the printed
table (result.json), a picture (forecast.png) and the forecast after the series' end (forecast.csv).

Read `predict` and `gaussian_nll` first, then `train` and `forecast`.
"""

from __future__ import annotations

import training.start  # isort: skip  # noqa: F401  (first: Ctrl-C is quiet during the slow imports)

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _forecast_data import COVERAGES, Forecasts, Problem, Series, evaluate, load, make_problem, table
from _forecast_plots import draw_forecasts
from training import (
    FRACTION,
    NONNEGATIVE,
    POSITIVE,
    Parser,
    Run,
    UserError,
    add_duration,
    add_run_arguments,
    count,
    digest,
    fit,
    integer,
    main,
    plots,
    save_weights,
    steps_of,
)

import lstm_jax

# --- the model and its loss ------------------------------------------------------------------------


def make_network(period: int, hidden: int, horizon: int, dropout: float) -> lstm_jax.Stack:
    """An LSTM, and a readout of its output and of the input (skip): two numbers for each of the H steps."""
    layers = lstm_jax.LSTM(period, hidden), lstm_jax.Readout(hidden + period, 2 * horizon)
    return lstm_jax.Stack(layers, skip=True, dropout=dropout)


def predict(network: lstm_jax.Stack, params: Any, xs: Any, key: jax.Array | None = None) -> tuple[Any, Any]:
    """Mean and standard deviation, (n, ..., H) each. Those at t depend only on the inputs up to t."""
    _, outputs = lstm_jax.unroll(network, params, xs, key=key)
    mean, raw_std = jnp.split(outputs, 2, axis=-1)
    return mean, jax.nn.softplus(raw_std) + 1e-3


def gaussian_nll(mean: jax.Array, std: jax.Array, targets: jax.Array, counted: jax.Array) -> jax.Array:
    r"""Mean nats per forecast, over the forecasts for which ``counted`` is True.

    .. math:: L = \log \sigma + (z - \mu)^2 / (2 \sigma^2) + \log(2 \pi) / 2
    """
    losses = jnp.log(std) + 0.5 * ((targets - mean) / std) ** 2 + 0.5 * np.log(2 * np.pi).astype(np.float32)
    return jnp.where(counted, losses, 0.0).sum() / counted.sum()


# --- training --------------------------------------------------------------------------------------


class Ensemble(NamedTuple):
    """The training state. The first axis of every array but ``step`` indexes the E members."""

    params: Any
    optimizer: Any
    best: Any  # each member's weights at its best evaluation so far
    best_nll: jax.Array  # (E,)
    step: jax.Array  # ()


def train(
    args: argparse.Namespace, run: Run, network: lstm_jax.Stack, problem: Problem, series: Series, known: int
) -> Any:
    """Train, and return each member's weights with the best loss on the last fifth of the known values."""
    last = known * 4 // 5
    training = problem.until < last
    validation = (problem.until < known) & ~training
    window = min(3 * series.period, last - 1)
    k_init, k_noise = jax.random.split(jax.random.key(args.seed))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(args.lr))
    xs, targets = jnp.asarray(problem.xs), jnp.asarray(problem.targets)

    def batch_of(step: int) -> np.ndarray:
        """The starts of the windows of each member, (E, B), random in every step."""
        rng = np.random.default_rng((args.seed, step))
        return rng.integers(0, last - window, (args.members, args.batch), np.int32, endpoint=True)

    def loss(params: Any, starts: jax.Array, key: jax.Array) -> jax.Array:
        times = jnp.arange(window)[:, None] + starts  # (window, B)
        k_inputs, k_dropout = jax.random.split(key)
        inputs = xs[times]  # (window, B, period)
        inputs += args.noise * jax.random.normal(k_inputs, inputs.shape, inputs.dtype)
        mean, std = predict(network, params, inputs, k_dropout)
        return gaussian_nll(mean, std, targets[times], jnp.asarray(training)[times])

    def member_step(
        params: Any, moments: Any, starts: jax.Array, key: jax.Array
    ) -> tuple[Any, Any, jax.Array]:
        """A step of one member, independent of the others."""
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
    def valid_nll(params: Any) -> jax.Array:
        return gaussian_nll(*predict(network, params, xs[:known]), targets[:known], validation[:known])

    def keep_best(state: Ensemble, rows: Sequence[Mapping[str, float]]) -> Ensemble:
        nll = valid_nll(state.params)
        better = nll < state.best_nll

        def pick(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(jnp.expand_dims(better, range(1, new.ndim)), new, old)

        best = jax.tree.map(pick, state.params, state.best)
        return state._replace(best=best, best_nll=jnp.minimum(nll, state.best_nll))

    params = jax.vmap(network.init)(jax.random.split(k_init, args.members))
    unevaluated = jnp.full((args.members,), jnp.finfo(jnp.float32).max)
    state = fit(
        step,
        Ensemble(params, jax.vmap(optimizer.init)(params), params, unevaluated, jnp.int32(0)),
        batch_of,
        run=run,
        steps=steps_of(args, 1),
        evaluate=lambda state: {"valid_nll": float(valid_nll(state.params).mean())},
        evaluate_every=20,
        after_evaluation=keep_best,
    )
    return state.best


# --- forecasts -------------------------------------------------------------------------------------


def forecast(network: lstm_jax.Stack, params: Any, problem: Problem, root: bool) -> Forecasts:
    """One Gaussian with the mean and variance of the members' mixture (Lakshminarayanan et al. 2017).

    The variance is the mean of the members' variances plus the variance of their means.
    """
    run = jax.jit(jax.vmap(lambda member: predict(network, member, problem.xs)))
    means, stds = (np.asarray(a, np.float64) for a in run(params))  # (E, n, H)
    mean, std = means.mean(0), np.sqrt((stds**2).mean(0) + means.var(0))

    def value(z: np.ndarray) -> np.ndarray:
        """Targets as values of the series."""
        values = problem.base + problem.scale * z
        return np.maximum(values, 0) ** 2 if root else values

    def interval(coverage: float) -> tuple[np.ndarray, np.ndarray]:
        half_width = NormalDist().inv_cdf(0.5 + coverage / 2) * std
        return value(mean - half_width), value(mean + half_width)

    return Forecasts(value(mean), {coverage: interval(coverage) for coverage in COVERAGES})


def future(series: Series, forecasts: Forecasts) -> str:
    """The forecast from the last value of the series, as CSV."""
    (low80, high80), (low95, high95) = (forecasts.intervals[coverage] for coverage in COVERAGES)
    columns = (low95, low80, forecasts.median, high80, high95)
    lines = [f"{series.time}s_ahead,low_95,low_80,median,high_80,high_95"]
    for h in range(forecasts.median.shape[1]):
        lines.append(",".join([str(h + 1), *(f"{column[-1, h]:.6g}" for column in columns)]))
    return "\n".join(lines) + "\n"


# --- the program -----------------------------------------------------------------------------------


def learn(args: argparse.Namespace) -> None:
    """Train, forecast, evaluate, plot."""
    series = load(args)
    n, horizon = len(series.values), args.horizon or series.period
    known = n * 2 // 3
    if known * 4 // 5 < series.period + 2 * horizon or n - known < 2 * horizon:
        size = f"a period of {series.period} and a horizon of {horizon}"
        raise UserError(
            f"{series.name} has {n} values, too few for {size}: use more data or decrease --horizon"
        )
    problem = make_problem(series, horizon, known)
    network = make_network(series.period, args.hidden, horizon, args.dropout)
    weights = args.members * count(jax.eval_shape(network.init, jax.random.key(0)))
    device = jax.devices()[0].device_kind
    print(f"{series.name}: {n} values, {known} for training; forecasts of {horizon} steps")
    print(f"{args.members} LSTMs of {args.hidden} units: {weights:,} weights, on {device}")

    data = {"series": series.name, "values": n, "known": known, "horizon": horizon, "period": series.period}
    with Run(args, data=data | {"sha256": digest(series.values)}, weights=weights) as run:
        params = train(args, run, network, problem, series, known)
        forecasts = forecast(network, params, problem, series.root)
        rows = evaluate(series.values, forecasts, problem, known, series.period)

        model = {"members": args.members, "hidden": args.hidden, "horizon": horizon}
        save_weights(run.folder, "lstm_jax/forecast/1", model, params)
        run.write_json("result.json", rows)
        run.write("forecast.csv", future(series, forecasts).encode())
        run.write("forecast.png", draw_forecasts(series, forecasts, problem.naive, rows, known))
        plots.learning_curve(
            run,
            f"{args.members} LSTMs on {series.name}",
            x=("step", "steps"),
            y="nats per forecast, mean of the members (lower is better)",
            train=("loss", "training, with dropout"),
            valid=("valid_nll", "last fifth of the known values"),
        )

    print(f"\n{table(rows, series)}\nWeights, plots and the forecast after the series' end: {args.out}/")


def make_parser() -> Parser:
    parser, size = Parser("forecast", __doc__), integer(1)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--series", choices=("co2", "sunspots"), default="co2", help="a series of statsmodels")
    add("--csv", type=Path, metavar="FILE", help="read a column of a CSV file instead")
    add = parser.add_argument
    add("--column", metavar="NAME", help="the column of --csv, by its name in the first line")
    add("--period", type=size, metavar="STEPS", help="steps per season (default: 12 months, 11 years)")
    add("--horizon", type=size, metavar="STEPS", help="H, steps to forecast (default: one period)")
    optional = argparse.BooleanOptionalAction
    help = "predict the change from one period before (default: for series with a trend, so not for sunspots)"
    add("--difference", action=optional, help=help)
    add("--root", action=optional, help="predict square roots (default: for counts, so for sunspots)")
    add_run_arguments(parser)

    add = parser.add_argument_group("ensemble").add_argument
    add("--members", type=size, default=10, help="E, networks")
    add("--hidden", type=size, default=16, help="units of each LSTM")
    add("--dropout", type=FRACTION, default=0.4, help="dropout rate of the LSTM's outputs")

    group = parser.add_argument_group("training")
    add_duration(group, steps=300)
    add = group.add_argument
    add("--batch", type=size, default=16, help="windows of three periods per step")
    help = "noise added to the inputs, in standard deviations of the series"
    add("--noise", type=NONNEGATIVE, default=0.3, help=help)
    add("--lr", type=POSITIVE, default=5e-3, help="Adam's learning rate")
    return parser


if __name__ == "__main__":
    sys.exit(main(make_parser(), learn))
