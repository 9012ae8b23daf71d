"""Forecast a time series many steps ahead, with calibrated intervals, by an ensemble of LSTMs.

    python examples/forecast.py
    python examples/forecast.py --series sunspots --out runs/sunspots
    python examples/forecast.py --csv sales.csv --column units --period 12
    python examples/forecast.py --resume runs/forecast

Read `ensemble` here and `correct`, `conformal_quantile` and `track` in `_forecast_intervals.py` first, then
`train`.

A linear autoregression predicts the next H values from the last period of the series, and each LSTM
predicts the errors of the autoregression. Both are direct forecasts, without feedback. The networks of the
ensemble are one program: `jax.vmap` over their weights. The forecast is their mean.

The first two thirds of the series are used for training and calibration. They are divided into five folds.
Each network leaves one fold out: no value of the fold is a target of its training. The errors of the
forecasts in the left-out folds calibrate the intervals, separately for each horizon (conformal prediction).
The last third is used for evaluation with a rolling origin: a forecast is made at each of its steps from all
values before, with fixed weights. At each step, the errors of the earlier forecasts whose values are known by
then correct the width of the intervals and, for a series with a trend, the forecast. The linear
autoregression alone and the seasonal-naive forecast, which is the value one period before, get intervals in
the same way.

The program prints the errors and the coverage of the intervals by horizon. It writes a run folder with the
weights, the learning curve, all metrics (result.json), a picture (forecast.png) and the forecast after the
series' end (forecast.csv).
"""

from __future__ import annotations

import training.start  # isort: skip  # noqa: F401  (first: Ctrl-C is quiet during the slow imports)

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _forecast_data import (
    FOLDS,
    Folds,
    Problem,
    Series,
    linear_autoregression,
    load,
    make_folds,
    make_problem,
)
from _forecast_intervals import COVERAGES, Forecasts, calibrate, correct, evaluate, table
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
    """An LSTM, and a readout with a number for each of the H steps ahead, 0 before training."""
    readout = lstm_jax.Readout(hidden, horizon, w_init=jax.nn.initializers.zeros)
    return lstm_jax.Stack((lstm_jax.LSTM(period, hidden), readout), dropout=dropout)


def predict(network: lstm_jax.Stack, params: Any, xs: Any, key: jax.Array | None = None) -> jax.Array:
    """Predictions, (n, ..., H). Those at t depend only on the inputs up to t."""
    return lstm_jax.unroll(network, params, xs, key=key)[1]


def absolute_error(predictions: jax.Array, targets: jax.Array, counted: jax.Array) -> jax.Array:
    """The mean over the targets for which ``counted`` is True. A median minimises it."""
    errors = jnp.abs(predictions - targets)
    return jnp.where(counted, errors, 0.0).sum() / jnp.maximum(counted.sum(), 1)


# --- training --------------------------------------------------------------------------------------


class Ensemble(NamedTuple):
    """The training state. The first axis of the weights indexes the networks."""

    params: Any
    optimizer: Any
    best: Any  # the weights at the best evaluation so far
    step: jax.Array  # ()


def train(
    args: argparse.Namespace, run: Run, network: lstm_jax.Stack, problem: Problem, folds: Folds, targets: Any
) -> Any:
    """Train the networks, and return their weights with the best mean loss on the held-out targets.

    ``targets`` are the scaled errors of the autoregression of each fold, (K, n, H).
    """
    known, K = problem.known, len(targets)
    fold = jnp.arange(args.networks * K) % K  # the fold that each network leaves out
    held_out = folds.validation & (folds.fold == np.arange(K)[:, None])[..., None]
    xs, targets, training, held_out = map(jnp.asarray, (problem.xs, targets, folds.training, held_out))
    window = min(3 * problem.xs.shape[1], known - 1)
    k_init, k_noise = jax.random.split(jax.random.key(args.seed))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(args.lr, weight_decay=0.01))

    def batch_of(step: int) -> np.ndarray:
        """The starts of the windows of each network, (E, B), random in every step."""
        rng = np.random.default_rng((args.seed, step))
        return rng.integers(0, known - window, (len(fold), args.batch), np.int32, endpoint=True)

    def loss(params: Any, starts: jax.Array, fold: jax.Array, key: jax.Array) -> jax.Array:
        times = jnp.arange(window)[:, None] + starts  # (window, B)
        k_inputs, k_dropout = jax.random.split(key)
        inputs = xs[times]  # (window, B, period)
        inputs += args.noise * jax.random.normal(k_inputs, inputs.shape, inputs.dtype)
        return absolute_error(
            predict(network, params, inputs, k_dropout), targets[fold, times], training[fold, times]
        )

    def network_step(params: Any, moments: Any, *batch: jax.Array) -> tuple[Any, Any, jax.Array]:
        """A step of one network, independent of the others."""
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, value

    def step(state: Ensemble, starts: jax.Array) -> tuple[Ensemble, dict[str, jax.Array]]:
        keys = jax.random.split(jax.random.fold_in(k_noise, state.step), len(fold))
        params, moments, values = jax.vmap(network_step)(state.params, state.optimizer, starts, fold, keys)
        state = state._replace(params=params, optimizer=moments, step=state.step + 1)
        return state, {"loss": values.mean()}

    @jax.jit
    def valid_loss(params: Any) -> jax.Array:
        def of_network(params: Any, fold: jax.Array) -> jax.Array:
            return absolute_error(predict(network, params, xs), targets[fold], held_out[fold])

        return jax.vmap(of_network)(params, fold).mean()

    def keep_best(state: Ensemble, rows: Sequence[Mapping[str, float]]) -> Ensemble:
        *before, loss = [row["valid_loss"] for row in rows if "valid_loss" in row]
        return state._replace(best=state.params) if loss < min(before, default=math.inf) else state

    params = jax.vmap(network.init)(jax.random.split(k_init, len(fold)))
    state = fit(
        step,
        Ensemble(params, jax.vmap(optimizer.init)(params), params, jnp.int32(0)),
        batch_of,
        run=run,
        steps=steps_of(args, 1),
        evaluate=lambda state: {"valid_loss": float(valid_loss(state.params))},
        evaluate_every=20,
        after_evaluation=keep_best,
    )
    return state.best


# --- forecasts -------------------------------------------------------------------------------------


def ensemble(
    network: lstm_jax.Stack, params: Any, problem: Problem, folds: Folds, linear: np.ndarray, rms: np.ndarray
) -> np.ndarray:
    """The forecast of the targets, (n, H): the autoregression plus the mean of its predicted errors.

    At an origin in a fold, only the models that left the fold out are used.
    """
    xs = jnp.asarray(problem.xs)
    outputs = jax.jit(jax.vmap(lambda params: predict(network, params, xs)))(params)
    errors = np.asarray(outputs, np.float64).reshape(-1, *linear.shape)  # (networks of a fold, K, n, H)
    return folds.held_out(linear + rms * errors.mean(0))


def future(series: Series, forecasts: Forecasts) -> str:
    """The forecast from the last value of the series, as CSV."""
    (low80, high80), (low95, high95) = (forecasts.intervals[coverage] for coverage in COVERAGES)
    columns = (low95, low80, forecasts.median, high80, high95)
    lines = [f"{series.time}s_ahead,low_95,low_80,median,high_80,high_95"]
    for h in range(forecasts.median.shape[1]):
        lines.append(",".join([str(h + 1), *(f"{column[-1, h]:.6g}" for column in columns)]))
    return "\n".join(lines) + "\n"


# --- the program -----------------------------------------------------------------------------------


def fewest_values(period: int, horizon: int) -> int:
    """The length of a series with which each fold has targets to train on, at each horizon."""
    return 3 * period + 6 * horizon + 30


def learn(args: argparse.Namespace) -> None:
    """Train, forecast, evaluate, plot."""
    series = load(args)
    n, horizon = len(series.values), args.horizon or series.period
    known = n * 2 // 3
    fewest = fewest_values(series.period, horizon)
    if n < fewest:
        size = f"a period of {series.period} and a horizon of {horizon}"
        raise UserError(
            f"{series.name} has {n} values, too few for {size}: use at least {fewest}, or decrease --horizon"
        )
    problem = make_problem(series, horizon, known)
    if (series.values[series.period : known] == series.values[: known - series.period]).all():
        raise UserError(f"{series.name} repeats itself exactly with the period {series.period}")
    folds = make_folds(problem)
    network = make_network(series.period, args.hidden, horizon, args.dropout)
    networks = args.networks * FOLDS
    weights = networks * count(jax.eval_shape(network.init, jax.random.key(0)))
    device = jax.devices()[0].device_kind
    print(f"{series.name}: {n} values, {known} for training and calibration; forecasts of {horizon} steps")
    print(f"{networks} LSTMs of {args.hidden} units: {weights:,} weights, on {device}")

    data = {"series": series.name, "values": n, "known": known, "horizon": horizon, "period": series.period}
    with Run(args, data=data | {"sha256": digest(series.values)}, weights=weights) as run:
        linear = linear_autoregression(problem, folds)
        errors = problem.targets - linear
        rms = np.sqrt((errors**2).mean(1, keepdims=True, where=folds.training))
        params = train(args, run, network, problem, folds, errors / rms)

        medians = {
            "LSTM ensemble": ensemble(network, params, problem, folds, linear, rms),
            "linear autoregression": folds.held_out(linear),
        }
        if series.difference:
            medians["seasonal-naive with drift"] = problem.naive
            medians = {method: correct(problem, median) for method, median in medians.items()}
        medians["seasonal-naive"] = problem.naive
        rows, forecasts = [], {}
        for method, median in medians.items():
            forecasts[method] = calibrate(problem, folds, median, args.rate)
            metrics = evaluate(series.values, forecasts[method], problem, series.period)
            rows += [{"method": method} | row for row in metrics]

        model = {"networks": networks, "hidden": args.hidden, "horizon": horizon}
        save_weights(run.folder, "lstm_jax/forecast/2", model, params)
        run.write_json("result.json", rows)
        run.write("forecast.csv", future(series, forecasts["LSTM ensemble"]).encode())
        run.write("forecast.png", draw_forecasts(series, forecasts, rows, known))
        plots.learning_curve(
            run,
            f"{networks} LSTMs on {series.name}",
            x=("step", "steps"),
            y="mean absolute error / RMS error of the autoregression",
            train=("loss", "training, with noise and dropout"),
            valid=("valid_loss", "left-out folds"),
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
    help = "predict changes from one period before, and correct the forecasts (default: not for sunspots)"
    add("--difference", action=optional, help=help)
    add("--root", action=optional, help="predict square roots (default: for counts, so for sunspots)")
    add_run_arguments(parser)

    add = parser.add_argument_group("ensemble").add_argument
    add("--networks", type=size, default=4, help="networks for each of the five folds")
    add("--hidden", type=size, default=32, help="units of each LSTM")
    add("--dropout", type=FRACTION, default=0.6, help="dropout rate of the LSTM's outputs")

    group = parser.add_argument_group("training")
    add_duration(group, steps=200)
    add = group.add_argument
    add("--batch", type=size, default=16, help="windows of three periods per step")
    help = "noise added to the inputs, in standard deviations of the series"
    add("--noise", type=NONNEGATIVE, default=1.5, help=help)
    add("--lr", type=POSITIVE, default=2e-3, help="Adam's learning rate")

    help = "correction of the intervals by each known value, relative to their first width (0: none)"
    parser.add_argument_group("intervals").add_argument("--rate", type=NONNEGATIVE, default=0.25, help=help)
    return parser


if __name__ == "__main__":
    sys.exit(main(make_parser(), learn))
