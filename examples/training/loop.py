"""The training loop, ``fit``, and the two functions that most programs pass to it: optimizer and step."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from lstm_jax import flatten_params
from training.checkpoints import Checkpoints
from training.data import prefetch
from training.distributed import any_process, is_first
from training.errors import Stopped, UserError
from training.placement import Placement
from training.runs import Row, Run

Means = Mapping[str, float]
Step = Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]


class State(NamedTuple):
    """The training state of most programs. :func:`fit` accepts any pytree of arrays."""

    params: Any
    optimizer: Any
    carry: Any
    step: jax.Array  # (), int32: the number of completed steps; random keys are derived from it


def adam_with_warmup(
    lr: float, steps: int, *, clip: float, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Adam (with ``weight_decay`` AdamW) on gradients clipped to the global norm ``clip``.

    The learning rate increases to ``lr`` in the first twentieth of the steps, then follows a cosine down to
    ``lr / 100``.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, max(1, steps // 20), steps + 1, lr / 100)
    adam = optax.adamw(schedule, weight_decay=weight_decay) if weight_decay else optax.adam(schedule)
    return optax.chain(optax.clip_by_global_norm(clip), adam)


def gradient_step(
    loss: Callable[[Any, Any, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
) -> Step:
    """A step of :func:`fit` for independent batches: one update by the gradient of ``loss``.

    ``loss(params, batch, key)`` is a scalar. Its key differs in every step.
    """
    return window_step(
        lambda params, carry, batch, noise: (loss(params, batch, noise), carry), optimizer, key
    )


def window_step(
    loss: Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Any]],
    optimizer: optax.GradientTransformation,
    key: jax.Array,
) -> Step:
    """A step of :func:`fit` for windows of long sequences: truncated backpropagation through time.

    ``loss(params, carry, window, key) -> (scalar, carry)``. The next window continues from this carry, but no
    gradient reaches the window before. The key differs in every step.
    """

    def step(state: State, window: Any) -> tuple[State, dict[str, jax.Array]]:
        noise = jax.random.fold_in(key, state.step)
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, carry), grads = gradient(state.params, state.carry, window, noise)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, moments, carry, state.step + 1), {"loss": value}

    return step


def fit(
    step: Step,
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
    placement: Placement | None = None,
) -> Any:
    """Train for ``steps`` steps and return the state. A resumed run starts from its last checkpoint.

    Args:
        step: ``step(state, batch) -> (state, {"loss": ...})``, a pure function that returns scalar metrics.
            It is compiled here, and it reuses the memory of the old state.
        state: the initial state, a pytree of finite arrays.
        batch_of: returns the batch of step 0, 1, ...; a pure function, called early on a thread.
        run: receives the metrics and the checkpoints; its arguments include ``--mesh``.
        steps: the number of steps of the whole run.
        evaluate: metrics of a state on held-out data. They are added to the row of their step.
        evaluate_every: steps between evaluations, or the step numbers that have one. The last step always
            has one.
        after_evaluation: ``(state, rows) -> state``, called after each evaluation, for example to change a
            learning rate that is part of the state. It may depend only on its arguments.
        log_every: steps per row of ``metrics.jsonl``. Their metrics are averaged, and are copied from the
            device together, so that the host does not wait for every step. If ``step`` returns a metric
            "weight", the mean is weighted by it, and the row does not contain it.
        report: ``(step, means) -> row`` renames or converts the metrics of a row.
        placement: the batch axis, and the shardings of the state (:class:`Placement`).

    Raises:
        UserError: a metric or a weight is NaN or infinite; a checkpoint is of another run.
        OSError: a file cannot be written. The checkpoints before are unchanged.
        Stopped: Ctrl-C or SIGTERM was received after the first step, and the state is saved.
    """
    placement = placement or Placement.of(run.args)
    state = placement.state(state)
    evaluation_due = _every(evaluate_every)
    checkpoint_due = _every(run.args.checkpoint_every or evaluate_every)
    checkpoints = Checkpoints(run.checkpoints, run.identity)
    with ExitStack() as stack:
        first, pending, earlier = 0, [], 0.0
        signals: list[int] = []
        if run.args.resume and (found := checkpoints.restore(state)):
            first, state, note = found
            pending, earlier = note["pending"], note["seconds"]
        run.reset_rows(run.rows_until(first))
        began = time.perf_counter() - earlier
        compiled = placement.compile(step, state)
        batches = prefetch(batch_of, range(first, steps), placement.batch)
        bar = tqdm(total=steps, initial=first, unit="step", disable=None if is_first() else True)
        with closing(batches), closing(bar):
            for done, batch in enumerate(batches, first + 1):
                state, measured = compiled(state, batch)
                if done == first + 1:  # until now there is nothing to save, so a signal stops at once
                    signals = stack.enter_context(_signals())
                pending.append(measured)

                last = done == steps
                evaluating = evaluate is not None and (last or evaluation_due(done))
                logging = last or evaluating or len(pending) >= log_every
                stopping = any_process(bool(signals)) if logging or jax.process_count() == 1 else False
                saving = last or stopping or checkpoint_due(done)
                if logging or saving:
                    pending = _fetch(pending)
                    _check_rows(pending, done, run, checkpoints)
                if logging:
                    means = _means(pending)
                    row = {"step": done, **report(done, means)}
                    if evaluate is not None and evaluating:
                        row |= evaluate(state)
                    row["seconds"] = time.perf_counter() - began
                    _check_rows([row], done, run, checkpoints)
                    run.log({name: _rounded(value) for name, value in row.items()})
                    pending = []
                    bar.update(done - bar.n)
                    bar.set_postfix_str(f"loss {means['loss']:.4g}", refresh=False)
                if evaluating:
                    bar.write(_sentence(run.rows[-1], steps))
                    if after_evaluation is not None:
                        state = placement.state(after_evaluation(state, run.rows))
                if saving:
                    _check_state(state, done, run, checkpoints)
                    checkpoints.save(done, state, pending=pending, seconds=time.perf_counter() - began)
                if stopping:
                    message = f"stopped after step {done}, which is saved; resume with: {run.resume_command}"
                    raise Stopped(message, signals[0])
    return state


def _every(steps: int | Container[int]) -> Callable[[int], bool]:
    """A function that returns whether something is due after a step."""
    if isinstance(steps, int):
        return lambda done: steps > 0 and done % steps == 0
    return lambda done: done in steps


# --- metrics ---------------------------------------------------------------------------------------


def _fetch(pending: list[Any]) -> list[dict[str, float]]:
    """Copy metrics to the host. Those restored from a checkpoint are on the host already."""
    return [{name: float(value) for name, value in row.items()} for row in jax.device_get(pending)]


def _means(rows: Sequence[Means]) -> dict[str, float]:
    """The mean of each metric, weighted by the metric "weight" if there is one."""
    weights = [row.get("weight", 1.0) for row in rows]
    names = [name for name in rows[0] if name != "weight"]
    return {name: float(np.average([row[name] for row in rows], weights=weights)) for name in names}


def _rounded(value: float) -> float:
    """Nine digits, which represent a float32 exactly. Integers are unchanged."""
    return value if isinstance(value, int) else float(f"{value:.9g}")


def _sentence(row: Row, steps: int) -> str:
    """A row as a line to print."""
    values = [f"{name} {value:.4g}" for name, value in row.items() if name not in ("step", "seconds")]
    return f"step {row['step']}/{steps}  {'  '.join(values)}  {row['seconds']:.0f} s"


# --- NaN and infinity ------------------------------------------------------------------------------


def _check_rows(rows: Sequence[Row], done: int, run: Run, checkpoints: Checkpoints) -> None:
    """Stop if a metric is NaN or infinite. The last of the rows is that of step ``done``."""
    for step, row in enumerate(rows, done - len(rows) + 1):
        for name, value in row.items():
            if not math.isfinite(value):
                before = [*run.values("loss"), *(r["loss"] for r in rows[: step - done - 1] if "loss" in r)]
                what = f"the {name.replace('_', ' ')} is {value} at step {step}"
                _fail(what, _likely_cause(step, before), run.args, checkpoints)


def _check_state(state: Any, done: int, run: Run, checkpoints: Checkpoints) -> None:
    """Stop if an array of the state is not finite. The loss of the same step can still be finite."""
    for name, leaf in flatten_params(state).items():
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
            cause = _likely_cause(done, run.values("loss"))
            _fail(f"{name} is not finite after step {done}", cause, run.args, checkpoints)


def _likely_cause(step: int, losses: Sequence[float]) -> str:
    if step == 1:
        return "this is the first step, so check the data and the initial weights"
    if losses and losses[-1] > 1.5 * min(losses):
        return f"the loss increased from {min(losses):.4g} to {losses[-1]:.4g}: the learning rate is too high"
    return "the learning rate is probably too high, or one gradient is too large"


def _fail(what: str, cause: str, args: argparse.Namespace, checkpoints: Checkpoints) -> NoReturn:
    options, steps = vars(args), checkpoints.steps
    advice = "try a smaller learning rate"
    if "lr" in options:
        advice = f"try --lr {args.lr / 3:.2g} (it was {args.lr:g})"
    if "clip" in options:
        advice += f", or a smaller --clip (it was {args.clip:g})"
    kept = f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no earlier checkpoint"
    raise UserError(f"{what}: {cause}; {advice} ({kept})")


# --- signals ---------------------------------------------------------------------------------------


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The list of signals received so far that request a stop. A second one stops the program at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if sys.stderr.isatty():
            print("\nfinishing this step, then saving; a second signal stops at once", file=sys.stderr)
        signal.signal(number, before[number])

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
