"""Measure how many steps back recurrent cells remember, and how far back their gradients reach.

Read `quickstart.py` first for the training loop, then `_memory_problems.py`, and `measure` and
`gradient_reach` in this file.

    python examples/long_memory.py
    python examples/long_memory.py --cells lstm,gru,indrnn,mingru --problems adding --lags 100,200,400
    python examples/long_memory.py --resume runs/long_memory

Three problems depend on an input of up to T steps before (the lag):

    adding   the sum of the two marked numbers among T; solved at a squared error of 0.01 (guessing: 0.167)
    order    the order of X and Y among T symbols; solved at 0.1 nats (guessing: 1.386)
    copy     10 symbols, to be repeated after T steps; solved at 3/4 of guessing, which is 10 ln 8 / (T + 20)

Each cell is trained on each problem at each lag, on new random sequences in every step, until the mean loss
of 50 steps is below the threshold or the maximum number of steps is reached. The program prints the number of
steps until solved. It writes a run folder with metrics.jsonl (for each line of the table: the steps, the
losses, the reach of the gradient) and two pictures, steps_to_solve.png and why_gates.png. With the default
options it takes a few minutes on two CPU cores.
"""

from __future__ import annotations

import training.start  # isort: skip  # noqa: F401  (first: Ctrl-C is quiet during the slow imports)

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median_low
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _memory_plots import draw_steps, draw_why
from _memory_problems import PROBLEMS, Problem
from tqdm import tqdm
from training import CELLS, POSITIVE, Parser, Run, add_run_arguments, count, integer, main

import lstm_jax

TOGETHER = 50  # steps compiled into one loop; their mean loss is compared with the threshold
REACH_BATCH = 256  # sequences on which the reach of the gradient is measured

Row = dict[str, Any]  # of metrics.jsonl
Progress = Callable[[int, float], None]  # is called with a number of completed steps and their loss

# --- training on one problem -----------------------------------------------------------------------


def make_steps(
    network: lstm_jax.Stack, problem: Problem, lag: int, batch: int, optimizer: optax.GradientTransformation
) -> Callable[..., Any]:
    """``steps(params, moments, key, first) -> (params, moments, loss)``: 50 steps in one program."""

    def loss(params: Any, key: jax.Array) -> jax.Array:
        xs, target = problem.draw(key, lag, batch)
        _, ys = lstm_jax.unroll(network, params, xs)
        return problem.loss(ys, target)

    @jax.jit
    def steps(params: Any, moments: Any, key: jax.Array, first: jax.Array) -> Any:
        def step(state: Any, number: jax.Array) -> Any:
            params, moments = state
            # The sequences depend only on the seed and the step number.
            value, grads = jax.value_and_grad(loss)(params, jax.random.fold_in(key, number))
            updates, moments = optimizer.update(grads, moments, params)
            return (optax.apply_updates(params, updates), moments), value

        (params, moments), losses = jax.lax.scan(step, (params, moments), first + jnp.arange(TOGETHER))
        return params, moments, losses.mean()

    return steps


def train(
    steps: Callable[..., Any],
    params: Any,
    moments: Any,
    key: jax.Array,
    solved: float,
    limit: int,
    progress: Progress,
) -> tuple[Any, list[float]]:
    """Train until a loss is below ``solved``, or for ``limit`` steps: ``(params, losses)``, a loss per 50.

    A NaN or infinite loss also stops the training.
    """
    losses: list[float] = []
    for first in range(0, limit, TOGETHER):
        params, moments, value = steps(params, moments, key, jnp.int32(first))
        losses.append(float(value))
        progress(TOGETHER, losses[-1])
        if losses[-1] < solved or not math.isfinite(losses[-1]):
            break
    return params, losses


def measure(args: argparse.Namespace, name: str, lag: int, cell_name: str, progress: Progress) -> Row:
    """Train a cell on a problem at one lag, once for each seed."""
    problem, network = PROBLEMS[name], network_of(args, name, cell_name)
    solved = problem.solved(lag)
    optimizer = optax.chain(optax.clip_by_global_norm(args.clip), optax.adam(args.lr))
    steps = make_steps(network, problem, lag, args.batch, optimizer)
    reach = jax.jit(partial(gradient_reach, network.layers[0]))

    row: Row = {"problem": name, "lag": lag, "cell": cell_name, "steps_to_solve": [], "losses": []}
    if lag == max(args.lags):  # the reach is plotted for this lag
        row |= {"reach_before": [], "reach_after": []}
    for seed in range(args.seed, args.seed + args.seeds):
        k_init, k_data, k_reach = jax.random.split(jax.random.key(seed), 3)
        first = network.init(k_init)
        last, losses = train(steps, first, optimizer.init(first), k_data, solved, args.steps, progress)
        done = len(losses) * TOGETHER
        progress(args.steps - done, losses[-1])
        row["steps_to_solve"].append(done if losses[-1] < solved else None)
        row["losses"].append(to_json(losses))
        if "reach_before" in row:
            xs, _ = problem.draw(k_reach, lag, REACH_BATCH)
            row["reach_before"].append(to_json(reach(first[0], xs, k_reach).tolist()))
            row["reach_after"].append(to_json(reach(last[0], xs, k_reach).tolist()))
    return row


def network_of(args: argparse.Namespace, name: str, cell_name: str) -> lstm_jax.Stack:
    """One recurrent layer and a readout."""
    problem = PROBLEMS[name]
    cell = CELLS[cell_name](problem.inputs, args.hidden)
    return lstm_jax.Stack((cell, lstm_jax.Readout(args.hidden, problem.outputs)))


def to_json(values: list[float]) -> list[float | None]:
    """Numbers for a JSON file: four digits, and null for NaN and infinity."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]


# --- the reach of the gradient ---------------------------------------------------------------------


def gradient_reach(cell: Any, params: Any, xs: jax.Array, key: jax.Array) -> jax.Array:
    """The norm of the gradient in the carry, k steps before the last step, for k = 1, 2, ...; (T - 1,).

    Let s_t be the carry after step t (h; for an LSTM h and c), and L a scalar function of the last output,
    here a random projection. The gradient is propagated backwards through one step at a time,

        dL/ds_{t-1} = J_t^T dL/ds_t,   J_t = ds_t/ds_{t-1}.

    The result is its norm divided by the norm at k = 1, as a geometric mean over the batch.
    """
    _, (ys, carries) = lstm_jax.unroll(cell, params, xs, return_carries=True)
    before = jax.tree.map(lambda s: s[:-1], carries)  # the carry before step t, for t > 0
    last = jax.tree.map(lambda s: s[-1], before)
    _, vjp = jax.vjp(lambda carry: cell.step(params, carry, xs[-1])[1], last)
    (delta,) = vjp(jax.random.normal(key, ys.shape[1:], ys.dtype))

    def backward(delta: Any, step: Any) -> Any:
        x, carry = step
        _, vjp = jax.vjp(lambda carry: cell.step(params, carry, x)[0], carry)
        return vjp(delta)[0], norm(delta)

    # delta is the gradient before step T - 1. J_t follows for t = T - 2, ..., 1.
    steps = xs[1:-1], jax.tree.map(lambda s: s[:-1], before)
    delta, norms = jax.lax.scan(backward, delta, steps, reverse=True)
    norms = jnp.concatenate([norms[::-1], norm(delta)[None]])
    return jnp.exp(jnp.mean(jnp.log(norms / norms[0] + 1e-30), axis=1))


def norm(tree: Any) -> jax.Array:
    """The Euclidean norm of a carry's gradient, for each row of the batch."""
    leaves = jax.tree.leaves(tree)
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in leaves))


# --- the program -----------------------------------------------------------------------------------


def learn(args: argparse.Namespace) -> None:
    """Measure every cell on every problem at every lag. A resumed run continues after its last row."""
    wanted = [(name, lag, cell) for name in args.problems for lag in args.lags for cell in args.cells]
    shapes = [
        jax.eval_shape(network_of(args, name, cell).init, jax.random.key(0)) for name, _, cell in wanted
    ]
    thresholds = {name: [PROBLEMS[name].solved(lag) for lag in args.lags] for name in args.problems}
    with Run(args, data={"solved_below": thresholds}, weights=count(shapes)) as run:
        rows = run.rows_until(len(wanted)) if args.resume else []
        # If a line was deleted, the lines after it are dropped, because their numbers no longer match.
        run.reset_rows([row for number, row in enumerate(rows, 1) if row["step"] == number])
        done, each = len(run.rows), args.steps * args.seeds
        with tqdm(total=each * len(wanted), initial=each * done, unit="step", disable=None) as bar:

            def progress(steps: int, loss: float) -> None:
                bar.set_postfix_str(f"{name}, lag {lag}, {cell}: loss {loss:.3g}", refresh=False)
                bar.update(steps)

            for number, (name, lag, cell) in enumerate(wanted[done:], done + 1):
                row = measure(args, name, lag, cell, progress)
                run.log({"step": number, **row})
                bar.write(f"{name:8s} lag {lag:<5d} {cell:14s} {summary(row['steps_to_solve'])}")
        run.write("steps_to_solve.png", draw_steps(run.rows, args.steps))
        run.write("why_gates.png", draw_why(run.rows, args.problems[0], args.steps))
    print_table(run.rows, args)
    print(f"Metrics and plots: {args.out}/")


def summary(steps: Sequence[int | None]) -> str:
    """The (lower) median of the seeds that solved the problem, and their number if it is not all."""
    solved = [value for value in steps if value is not None]
    if not solved:
        return "unsolved"
    fraction = f" ({len(solved)}/{len(steps)})" if len(solved) < len(steps) else ""
    return f"{median_low(solved)}{fraction}"


def print_table(rows: Sequence[Row], args: argparse.Namespace) -> None:
    seeds = f"{args.seeds} seeds" if args.seeds > 1 else "one seed"
    print(
        f"\nSteps until solved, of at most {args.steps}: median of those of {seeds} that solved the problem"
    )
    print(f"{'problem':10s}{'cell':14s}" + "".join(f"{f'lag {lag}':>14s}" for lag in args.lags))
    for name in args.problems:
        for cell in args.cells:
            found = {row["lag"]: row for row in rows if (row["problem"], row["cell"]) == (name, cell)}
            cells = [summary(found[lag]["steps_to_solve"]) for lag in args.lags]
            print(f"{name:10s}{cell:14s}" + "".join(f"{word:>14s}" for word in cells))


# --- the command line ------------------------------------------------------------------------------


def names_of(names: Sequence[str], what: str) -> Callable[[str], list[str]]:
    """An argparse type: distinct names, separated by commas."""

    def read(words: str) -> list[str]:
        found = list(dict.fromkeys(word.strip().lower() for word in words.split(",")))
        for word in found:
            if word not in names:
                raise argparse.ArgumentTypeError(f"{word!r} is not a {what}: expected {', '.join(names)}")
        return found

    return read


def lags(words: str) -> list[int]:
    """An argparse type: lags, separated by commas. They are sorted."""
    return sorted({integer(10)(word.strip()) for word in words.split(",")})


def multiple(word: str) -> int:
    """An argparse type: a number of steps that is a multiple of ``TOGETHER``."""
    steps = integer(TOGETHER)(word)
    if steps % TOGETHER:
        raise argparse.ArgumentTypeError(f"{word!r} is not a multiple of {TOGETHER}")
    return steps


def make_parser() -> Parser:
    parser = Parser("long_memory", __doc__)
    add = add_run_arguments(parser, fit=False).add_argument
    add("--seeds", type=integer(1), default=3, help="trainings of each cell, with seeds SEED, SEED + 1, ...")

    add = parser.add_argument_group("measurements").add_argument
    cells, problems = list(CELLS), list(PROBLEMS)
    help = f"separated by commas, of {', '.join(cells)} (default: rnn,gru,lstm)"
    add("--cells", type=names_of(cells, "cell"), default=["rnn", "gru", "lstm"], metavar="NAMES", help=help)
    help = f"separated by commas, of {', '.join(problems)} (default: all)"
    add("--problems", type=names_of(problems, "problem"), default=problems, metavar="NAMES", help=help)
    help = "T, in steps, at least 10, separated by commas (default: 10,20,50,100)"
    add("--lags", type=lags, default=[10, 20, 50, 100], metavar="NUMBERS", help=help)

    add = parser.add_argument_group("training").add_argument
    add("--steps", type=multiple, default=2000, help=f"maximum number, a multiple of {TOGETHER}")
    add("--hidden", type=integer(1), default=64, help="units of the cell")
    add("--batch", type=integer(1), default=32, help="sequences per step")
    add("--lr", type=POSITIVE, default=5e-3, help="Adam's learning rate")
    add("--clip", type=POSITIVE, default=1.0, help="maximum norm of the gradient")
    return parser


if __name__ == "__main__":
    sys.exit(main(make_parser(), learn))
