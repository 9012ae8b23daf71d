"""The training loop that all programs share: ``fit``."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from training.checkpoints import Checkpoints
from training.data import prefetch
from training.distributed import any_of, first as is_first
from training.errors import Stopped, UserError
from training.placement import Placement
from training.runs import Row, Run
from training.weights import by_name

Means = Mapping[str, float]


class State(NamedTuple):
    """What most programs hand on from step to step; any pytree of arrays will do."""

    params: Any
    optimizer: Any
    carry: Any
    step: jax.Array  # (), int32: how many steps were made; noise is drawn from it


def fit(
    step: Callable[[Any, Any], tuple[Any, Mapping[str, jax.Array]]],
    state: Any,
    batch_of: Callable[[int], Any],
    *,
    run: Run,
    steps: int,
    evaluate: Callable[[Any], Means] | None = None,
    evaluate_every: int | Container[int] = 0,
    after_evaluation: Callable[[Any, Sequence[Row]], Any] | None = None,
    log_every: int = 10,
    report: Callable[[int, Means], Means] = lambda step, means: means,
    advice: str = "try a smaller learning rate",
    placement: Placement | None = None,
) -> Any:
    """The state after ``steps`` steps, from where the run's last checkpoint left off if it is resumed.

    Args:
        step: ``step(state, batch) -> (state, {"loss": ...})``, a pure function; it is compiled here, and
            the old state's memory is used again. The measurements are scalars.
        state: the first state: a pytree of arrays, all of them finite.
        batch_of: the batch of step 0, 1, ...: a pure function, called ahead on a thread.
        run: where the measurements, the checkpoints and ``--mesh`` are.
        steps: how many steps the whole run has.
        evaluate: measurements of a state on held-out data, joined to the row of their step.
        evaluate_every: steps between evaluations, or the numbers of the steps that have one; the last
            step has one anyway.
        after_evaluation: ``(state, rows) -> state``, for what a recipe changes then (its learning rate,
            say, if the state has it). All it may look at is the state and the rows.
        log_every: steps in a row of ``metrics.jsonl``; their measurements are averaged, and fetched from
            the device together, so that it is not waited for at each step.
        report: ``(step, means) -> row``: other names and units than the step's own.
        advice: what to try if the loss is no number any more.
        placement: which axis of a batch counts rows, and where the state lies (:class:`Placement`).

    Raises:
        UserError: a loss is no number; a checkpoint is not of this run.
        Stopped: Ctrl-C or SIGTERM came; the state is saved.
    """
    placement = placement or Placement.of(run.args)
    state = placement.state(state)
    evaluated, saved = _every(evaluate_every), _every(run.args.checkpoint_every or evaluate_every)
    with closing(Checkpoints(run.checkpoints, run.identity)) as checkpoints, _signals() as signals:
        first, pending, earlier = 0, [], 0.0
        if run.args.resume and (found := checkpoints.restore(state)):
            first, state, note = found
            pending, earlier = note["pending"], note["seconds"]
        run.keep_rows(run.rows_until(first))
        began = time.perf_counter() - earlier
        compiled = placement.compile(step, state)
        batches = prefetch(batch_of, range(first, steps), placement.batch)
        bar = tqdm(total=steps, initial=first, unit="step", disable=None if is_first() else True)
        with closing(batches), closing(bar):
            for done, batch in enumerate(batches, first + 1):
                state, measured = compiled(state, batch)
                pending.append(measured)

                last = done == steps
                evaluating = evaluate is not None and (last or evaluated(done))
                due = last or evaluating or len(pending) >= log_every
                stopping = any_of(bool(signals)) if due or jax.process_count() == 1 else False
                saving = last or stopping or saved(done)
                if due or saving:
                    pending = _fetch(pending)
                    _check(pending, done, run, checkpoints, advice)
                if due:
                    means = {name: float(np.mean([row[name] for row in pending])) for name in pending[0]}
                    row = {"step": done, **report(done, means)}
                    if evaluate is not None and evaluating:
                        row |= evaluate(state)
                    row["seconds"] = time.perf_counter() - began
                    _check([row], done, run, checkpoints, advice)
                    run.log({name: _shorter(value) for name, value in row.items()})
                    pending = []
                    bar.update(done - bar.n)
                    bar.set_postfix_str(f"loss {means['loss']:.4g}", refresh=False)
                if evaluating:
                    bar.write(_sentence(run.rows[-1], steps))
                    if after_evaluation is not None:
                        state = placement.state(after_evaluation(state, run.rows))
                if saving:
                    _check_state(state, done, run, checkpoints, advice)
                    checkpoints.save(done, state, pending=pending, seconds=time.perf_counter() - began)
                if stopping:
                    raise Stopped(
                        f"stopped after step {done}, which is saved; go on: {run.go_on}", signals[0]
                    )
    return state


def _every(steps: int | Container[int]) -> Callable[[int], bool]:
    """Whether something is due after a step."""
    if isinstance(steps, int):
        return lambda done: steps > 0 and done % steps == 0
    return lambda done: done in steps


# --- what is measured ------------------------------------------------------------------------------


def _fetch(pending: list[Any]) -> list[dict[str, float]]:
    """Measurements on the host; those that a checkpoint kept are there already."""
    return [{name: float(value) for name, value in row.items()} for row in jax.device_get(pending)]


def _shorter(value: float) -> float:
    """A float32 keeps its value in nine digits; steps stay whole."""
    return value if isinstance(value, int) else float(f"{value:.9g}")


def _sentence(row: Row, steps: int) -> str:
    """A row for the eye."""
    values = [f"{name} {value:.4g}" for name, value in row.items() if name not in ("step", "seconds")]
    return f"step {row['step']}/{steps}  {'  '.join(values)}  {row['seconds']:.0f} s"


# --- numbers that are none -------------------------------------------------------------------------


def _check(rows: Sequence[Row], done: int, run: Run, checkpoints: Checkpoints, advice: str) -> None:
    """Stop where a measurement left the numbers; the last of the rows is of step ``done``."""
    for step, row in enumerate(rows, done - len(rows) + 1):
        for name, value in row.items():
            if not math.isfinite(value):
                before = [r["loss"] for r in [*run.rows, *rows[: step - done - 1]] if "loss" in r]
                where = f"the {name.replace('_', ' ')} is {value} at step {step}"
                _refuse(where, _likely_cause(step, before), checkpoints, advice)


def _check_state(state: Any, done: int, run: Run, checkpoints: Checkpoints, advice: str) -> None:
    """A loss can be a number when the weights after its step are none."""
    for name, leaf in by_name(state).items():
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
            cause = _likely_cause(done, [row["loss"] for row in run.rows if "loss" in row])
            _refuse(f"{name} is not finite after step {done}", cause, checkpoints, advice)


def _likely_cause(step: int, losses: Sequence[float]) -> str:
    if step == 1:
        return "the first step has it already, so look at the data and at the initial weights"
    if losses and losses[-1] > 1.5 * min(losses):
        return (
            f"the loss had grown from {min(losses):.4g} to {losses[-1]:.4g}, so the learning rate is too high"
        )
    return "most likely the learning rate is too high, or one gradient too large"


def _refuse(where: str, cause: str, checkpoints: Checkpoints, advice: str) -> NoReturn:
    steps = checkpoints.steps
    kept = f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint before it"
    raise UserError(f"{where}: {cause}; {advice} ({kept})")


# --- signals ---------------------------------------------------------------------------------------


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that asked the program to stop; a second one stops it at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        print("\nfinishing the step, and saving; once more ends it at once", file=sys.stderr)
        signal.signal(number, before[number])

    kinds = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {kind: signal.getsignal(kind) for kind in kinds}
    try:
        for kind in kinds:
            signal.signal(kind, note)
        yield received
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
