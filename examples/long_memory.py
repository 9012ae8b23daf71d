"""How far back does a recurrent network remember? The notes' claim about the cell state, measured.

    python examples/long_memory.py
    python examples/long_memory.py --cells lstm,gru,indrnn,mingru --problems adding --lags 100,200,400
    python examples/long_memory.py --resume runs/long_memory

Three problems ask for something that was read up to T steps ago (the lag):

    adding   add the two marked numbers among T; solved at a squared error of 0.01 (guessing: 0.167)
    order    in which order did X and Y come among T symbols? solved at 0.1 nats (guessing: 1.386)
    copy     repeat 10 symbols after T steps; solved at 3/4 of what guessing gets, 10 ln 8 / (T + 20)

Each cell learns each of them at each lag, on fresh random sequences, until the mean loss of 50 steps says
"solved" or the steps run out. The run folder then holds metrics.jsonl (a line for each training: the steps
to solve, the losses, the gradient's reach) and two pictures: why_gates.png, steps_to_solve.png. Without
arguments it takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median_low
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _cells import CELLS
from _memory_plots import draw_steps, draw_why
from _memory_problems import PROBLEMS, Problem
from tqdm import tqdm
from training import POSITIVE, Parser, Run, Stopped, count, main as run_main, whole

import lstm_jax

TOGETHER = 50  # steps compiled into one loop; their mean loss decides whether the problem is solved
SHOWN = 256  # sequences on which the gradient's reach is measured

Row = dict[str, Any]  # of metrics.jsonl
Tell = Callable[[int, float], None]  # of so many steps more, and of the loss

# --- learning one problem --------------------------------------------------------------------------


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
            # The sequences are decided by the seed and the step's number.
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
    tell: Tell,
) -> tuple[Any, list[float]]:
    """``(params, losses)`` when a loss is below ``solved``, or after ``limit`` steps; a loss for each 50."""
    losses: list[float] = []
    for first in range(0, limit, TOGETHER):
        params, moments, value = steps(params, moments, key, jnp.int32(first))
        losses.append(float(value))
        tell(TOGETHER, losses[-1])
        if losses[-1] < solved or not math.isfinite(losses[-1]):
            break
    return params, losses


def learn(args: argparse.Namespace, name: str, lag: int, cell_name: str, tell: Tell) -> Row:
    """One problem at one lag, learned by one kind of cell, once for each seed."""
    problem, network = PROBLEMS[name], network_of(args, name, cell_name)
    solved = problem.solved(lag)
    optimizer = optax.chain(optax.clip_by_global_norm(args.clip), optax.adam(args.lr))
    steps = make_steps(network, problem, lag, args.batch, optimizer)
    reach = jax.jit(partial(gradient_reach, network.layers[0]))

    row: Row = {"problem": name, "lag": lag, "cell": cell_name, "steps_to_solve": [], "losses": []}
    if lag == max(args.lags):  # the reach is drawn there
        row |= {"reach_before": [], "reach_after": []}
    for seed in range(args.seed, args.seed + args.seeds):
        k_init, k_data, k_reach = jax.random.split(jax.random.key(seed), 3)
        first = network.init(k_init)
        last, losses = train(steps, first, optimizer.init(first), k_data, solved, args.steps, tell)
        took = len(losses) * TOGETHER
        tell(args.steps - took, losses[-1])
        row["steps_to_solve"].append(took if losses[-1] < solved else None)
        row["losses"].append(numbers(losses))
        if "reach_before" in row:
            xs, _ = problem.draw(k_reach, lag, SHOWN)
            row["reach_before"].append(numbers(reach(first[0], xs, k_reach).tolist()))
            row["reach_after"].append(numbers(reach(last[0], xs, k_reach).tolist()))
    return row


def network_of(args: argparse.Namespace, name: str, cell_name: str) -> lstm_jax.Stack:
    """One layer of the cell, and a read-out."""
    problem = PROBLEMS[name]
    cell = CELLS[cell_name](problem.inputs, args.hidden)
    return lstm_jax.Stack((cell, lstm_jax.Readout(args.hidden, problem.outputs)))


def numbers(values: list[float]) -> list[float | None]:
    """As JSON has them: four digits, and null for what is no number."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]


# --- how far the gradient reaches ------------------------------------------------------------------


def gradient_reach(cell: Any, params: Any, xs: jax.Array, key: jax.Array) -> jax.Array:
    """How much of the gradient is left k steps before the last one, (T - 1,), for k = 1, 2, ...

    Let s_t be the carry after step t (h; for an LSTM h and c), and L any function of the last output. What
    L tells s_t goes backwards through one step after the other,

        dL/ds_{t-1} = J_t^T dL/ds_t,   J_t = ds_t/ds_{t-1},

    and its norm, in shares of the first one, is the reach. L is a random projection of the output here.
    """
    _, (ys, carries) = lstm_jax.unroll(cell, params, xs, return_carries=True)
    read = jax.tree.map(lambda s: s[:-1], carries)  # the carry that step t reads, for t > 0
    last = jax.tree.map(lambda s: s[-1], read)
    _, back = jax.vjp(lambda carry: cell.step(params, carry, xs[-1])[1], last)
    (delta,) = back(jax.random.normal(key, ys.shape[1:], ys.dtype))

    def walk(delta: Any, step: Any) -> Any:
        x, carry = step
        _, back = jax.vjp(lambda carry: cell.step(params, carry, x)[0], carry)
        return back(delta)[0], norm(delta)

    # Step T - 1 is behind us; J_t for t = T - 2, ..., 1 follow.
    steps = xs[1:-1], jax.tree.map(lambda s: s[:-1], read)
    delta, norms = jax.lax.scan(walk, delta, steps, reverse=True)
    norms = jnp.concatenate([norms[::-1], norm(delta)[None]])
    return jnp.exp(jnp.mean(jnp.log(norms / norms[0] + 1e-30), axis=1))


def norm(tree: Any) -> jax.Array:
    """The Euclidean norm of a carry's gradient, for each row of the batch."""
    leaves = jax.tree.leaves(tree)
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in leaves))


# --- all of them -----------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> None:
    """Every cell on every problem at every lag; a resumed run goes on where it was."""
    wanted = [(name, lag, cell) for name in args.problems for lag in args.lags for cell in args.cells]
    shapes = [
        jax.eval_shape(network_of(args, name, cell).init, jax.random.key(0)) for name, _, cell in wanted
    ]
    about = {
        "solved_below": {name: [PROBLEMS[name].solved(lag) for lag in args.lags] for name in args.problems}
    }
    with Run(args, data=about, weights=count(shapes)) as run:
        run.keep_rows(run.rows_until(len(wanted)) if args.resume else [])
        done, each = len(run.rows), args.steps * args.seeds
        with tqdm(total=each * len(wanted), initial=each * done, unit="step", disable=None) as bar:

            def tell(steps: int, loss: float) -> None:
                bar.set_postfix_str(f"{name}, lag {lag}, {cell}: loss {loss:.3g}", refresh=False)
                bar.update(steps)

            for number, (name, lag, cell) in enumerate(wanted[done:], done + 1):
                try:
                    row = learn(args, name, lag, cell, tell)
                except KeyboardInterrupt:
                    message = f"stopped; {number - 1} of {len(wanted)} lines are kept; go on: {run.go_on}"
                    raise Stopped(message, signal.SIGINT) from None
                run.log({"step": number, **row})
                bar.write(f"{name:8s} lag {lag:<5d} {cell:14s} {in_words(row['steps_to_solve'])}")
        run.write("steps_to_solve.png", draw_steps(run.rows, args.steps))
        run.write("why_gates.png", draw_why(run.rows, args.problems[0], args.steps))
    print_table(run.rows, args)
    print(f"Measurements and pictures: {args.out}/")


def in_words(steps: Sequence[int | None]) -> str:
    """The middle one of the seeds, and how many of them solved it, where not all did."""
    solved = [value for value in steps if value is not None]
    if not solved:
        return "unsolved"
    share = f" ({len(solved)}/{len(steps)})" if len(solved) < len(steps) else ""
    return f"{median_low(solved)}{share}"


def print_table(rows: Sequence[Row], args: argparse.Namespace) -> None:
    seeds = f"{args.seeds} seeds" if args.seeds > 1 else "one seed"
    print(f"\nSteps until solved, of {args.steps} at most: the middle of those of {seeds} that did it")
    print(f"{'problem':10s}{'cell':14s}" + "".join(f"{f'lag {lag}':>14s}" for lag in args.lags))
    for name in args.problems:
        for cell in args.cells:
            found = {row["lag"]: row for row in rows if (row["problem"], row["cell"]) == (name, cell)}
            words = [in_words(found[lag]["steps_to_solve"]) for lag in args.lags]
            print(f"{name:10s}{cell:14s}" + "".join(f"{word:>14s}" for word in words))


# --- the command line ------------------------------------------------------------------------------


def names_of(names: Sequence[str], what: str) -> Callable[[str], list[str]]:
    """An argument type: names with commas between them, each of them once."""

    def read(words: str) -> list[str]:
        found = list(dict.fromkeys(word.strip().lower() for word in words.split(",")))
        for word in found:
            if word not in names:
                raise argparse.ArgumentTypeError(f"{word!r} is no {what}; there are {', '.join(names)}")
        return found

    return read


def lags(words: str) -> list[int]:
    """An argument type: lags with commas between them, in order."""
    return sorted({whole(10)(word.strip()) for word in words.split(",")})


def make_parser() -> argparse.ArgumentParser:
    parser = Parser("long_memory", __doc__)
    parser.set_defaults(program=parser.prog, tensorboard=False)
    group, folder = parser.add_argument_group("the run"), Path("runs/long_memory")
    place, add = group.add_mutually_exclusive_group().add_argument, group.add_argument
    place("--out", type=Path, metavar="RUNFOLDER", default=folder, help="(default: %(default)s)")
    place("--resume", type=Path, metavar="RUNFOLDER", help="go on with that run, with its arguments")
    add("--seed", type=whole(0), default=0, help="the first seed (default: %(default)s)")
    help = "how many trainings of each kind, with seeds in a row (default: %(default)s)"
    add("--seeds", type=whole(1), default=3, help=help)

    add = parser.add_argument_group("what is measured").add_argument
    cells, problems = list(CELLS), list(PROBLEMS)
    help = f"with commas between them, of {', '.join(cells)} (default: rnn,gru,lstm)"
    add("--cells", type=names_of(cells, "cell"), default=["rnn", "gru", "lstm"], metavar="NAMES", help=help)
    help = f"of {', '.join(problems)} (default: all)"
    add("--problems", type=names_of(problems, "problem"), default=problems, metavar="NAMES", help=help)
    help = "T, in steps, from 10 (default: 10,20,50,100)"
    add("--lags", type=lags, default=[10, 20, 50, 100], metavar="NUMBERS", help=help)

    add = parser.add_argument_group("training").add_argument
    help = f"at most, a multiple of {TOGETHER} (default: %(default)s)"
    add("--steps", type=multiple, default=2000, help=help)
    add("--hidden", type=whole(1), default=64, help="units of the cell (default: %(default)s)")
    add("--batch", type=whole(1), default=32, help="sequences in a step (default: %(default)s)")
    add("--lr", type=POSITIVE, default=5e-3, help="Adam's learning rate (default: %(default)s)")
    add("--clip", type=POSITIVE, default=1.0, help="highest norm of the gradients (default: %(default)s)")
    return parser


def multiple(word: str) -> int:
    """An argument type: a number of steps that whole loops make."""
    steps = whole(TOGETHER)(word)
    if steps % TOGETHER:
        raise argparse.ArgumentTypeError(f"{word!r} is not a multiple of {TOGETHER}")
    return steps


def main(argv: Sequence[str] | None = None) -> int:
    """The program; 0 if all went well, 2 after an error that was told in one line."""
    return run_main(make_parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
