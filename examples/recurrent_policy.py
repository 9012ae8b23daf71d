"""Train a recurrent policy by reinforcement learning in a T-maze, which cannot be solved without memory.

Read `quickstart.py` first for the training loop, then `_t_maze.py`, and `Agent` and `improve` in this file.

    python examples/recurrent_policy.py
    python examples/recurrent_policy.py --corridor 20 --cell gru --out runs/longer
    python examples/recurrent_policy.py --resume runs/recurrent_policy

A cue at the start of a corridor shows the correct turn at its end, where the cue is no longer visible.
Without memory, no policy turns correctly more than half of the time (`_t_maze.py` contains the proof). For
comparison, a policy with a feed-forward layer instead of the recurrent one is trained with the same number of
steps.

The algorithm is A2C (advantage actor-critic) with generalised advantage estimation. Acting calls `cell.step`.
Learning calls `unroll` on the same rows of steps, which contain consecutive episodes; `resets` marks their
starts. The program prints the success rates in the training corridor and in longer ones. It writes a run
folder with the weights, the learning curves, a picture of the network's state (memory.png) and the success
rates (corridors.json).
"""

from __future__ import annotations

import training.start  # isort: skip  # noqa: F401  (first: Ctrl-C is quiet during the slow imports)

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from _policy_plots import draw_curves, draw_memory
from _t_maze import ACTIONS, FEATURES, Maze, TMaze
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from training import (
    FRACTION,
    NONNEGATIVE,
    POSITIVE,
    Parser,
    Placement,
    Run,
    State,
    UserError,
    add_run_arguments,
    count,
    fit,
    integer,
    main,
    save_weights,
)

import lstm_jax

Array = jax.Array


def feed_forward(inputs: int, hidden: int) -> lstm_jax.Readout:
    """A layer without memory, tanh(x V + b), as a cell with an empty carry."""
    return lstm_jax.Readout(inputs, hidden, activation=jnp.tanh)


FORMAT = "lstm_jax/recurrent_policy/1"
EPISODES = 4000  # per test; two standard deviations of a success rate of 1/2 are then 1.6 %
FARTHER = (1, 2, 5, 10)  # lengths of the test corridors, as multiples of the training corridor
CELLS = {"lstm": lstm_jax.LSTM, "gru": lstm_jax.GRU, "rnn": lstm_jax.RNN, "min_gru": lstm_jax.MinGRU}

# --- the agent -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agent:
    """A recurrent core with two readouts: the policy's logits (actor) and the expected return (critic)."""

    core: Any

    @property
    def actor(self) -> lstm_jax.Readout:
        return lstm_jax.Readout(self.core.output_size, ACTIONS)

    @property
    def critic(self) -> lstm_jax.Readout:
        return lstm_jax.Readout(self.core.output_size, 1)

    def init(self, key: Array) -> dict[str, Any]:
        keys = jax.random.split(key, 3)
        parts = {"core": self.core, "actor": self.actor, "critic": self.critic}
        return {name: part.init(k) for k, (name, part) in zip(keys, parts.items(), strict=True)}

    def act(self, params: Any, memory: Any, obs: Array, first: Array) -> tuple[Any, Array, Array]:
        """One step: ``(memory, logits, value)`` of obs (B, D). first (B,) marks starts of episodes."""
        memory = lstm_jax.reset_carry(self.core, params["core"], memory, first)
        memory, h = self.core.step(params["core"], memory, obs)
        return memory, *self._read_out(params, h)

    def replay(self, params: Any, memory: Any, obs: Array, first: Array) -> tuple[Any, Array, Array]:
        """The same for (T, B) steps at once, differentiable."""
        memory, hs = lstm_jax.unroll(self.core, params["core"], obs, memory, resets=first)
        return memory, *self._read_out(params, hs)

    def _read_out(self, params: Any, h: Array) -> tuple[Array, Array]:
        return self.actor(params["actor"], h), self.critic(params["critic"], h)[..., 0]


# --- acting ----------------------------------------------------------------------------------------


class Steps(NamedTuple):
    """A rollout, (T, B) each: rows of T steps, which contain consecutive episodes."""

    cue: Array  # only for plots; the agent does not observe it
    obs: Array  # (T, B, D)
    first: Array  # whether this is the first step of an episode
    action: Array
    logits: Array  # (T, B, A)
    value: Array
    reward: Array
    ended: Array  # whether the episode ended after this action
    success: Array


@partial(jax.jit, static_argnums=(0, 1, 6))
def rollout(
    rules: TMaze, agent: Agent, params: Any, mazes: Maze, memory: Any, key: Array, length: int
) -> tuple[Maze, Any, Steps]:
    """Act for ``length`` steps in each of B mazes: ``(mazes, memory, steps)``."""

    def step(carry: tuple[Maze, Any], key: Array) -> tuple[tuple[Maze, Any], Steps]:
        mazes, memory = carry
        k_action, k_maze = jax.random.split(key)
        cue, obs, first = mazes.cue, jax.vmap(rules.observe)(mazes), mazes.age == 0
        memory, logits, value = agent.act(params, memory, obs, first)
        action = jax.random.categorical(k_action, logits)
        keys = jax.random.split(k_maze, len(action))
        mazes, reward, ended, success = jax.vmap(rules.step)(keys, mazes, action)
        return (mazes, memory), Steps(cue, obs, first, action, logits, value, reward, ended, success)

    (mazes, memory), steps = jax.lax.scan(step, (mazes, memory), jax.random.split(key, length))
    return mazes, memory, steps


# --- learning --------------------------------------------------------------------------------------


def advantages(steps: Steps, last: Array, discount: float, trace: float) -> Array:
    r"""Advantages by generalised advantage estimation (Schulman et al. 2016), (T, B).

    .. math:: A_t = \delta_t + \gamma \lambda A_{t+1}, \quad \delta_t = r_t + \gamma V_{t+1} - V_t

    V and A after the end of an episode are zero. ``last`` (B,) is the value after the last step.
    """
    continues = discount * ~steps.ended
    errors = steps.reward + continues * jnp.concatenate([steps.value[1:], last[None]]) - steps.value

    def back(later: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        error, continues = at
        now = error + continues * trace * later
        return now, now

    return jax.lax.scan(back, jnp.zeros_like(last), (errors, continues), reverse=True)[1]


def loss(
    params: Any, agent: Agent, memory: Any, steps: Steps, advantage: Array, entropy_weight: float
) -> tuple[Array, Array]:
    r"""The A2C loss, mean over all steps; and the largest difference of the logits from those when acting.

    .. math:: -A_t \log \pi(a_t) + \tfrac12 (A_t + V^{old}_t - V_t)^2 - \beta H(\pi)
    """
    _, logits, value = agent.replay(params, memory, steps.obs, steps.first)
    log_policy = jax.nn.log_softmax(logits)
    log_action = jnp.take_along_axis(log_policy, steps.action[..., None], -1)[..., 0]
    entropy = -(jnp.exp(log_policy) * log_policy).sum(-1)
    terms = -advantage * log_action + 0.5 * (advantage + steps.value - value) ** 2 - entropy_weight * entropy
    return terms.mean(), jnp.abs(logits - steps.logits).max()


def begin(args: argparse.Namespace, rules: TMaze, agent: Agent, key: Array) -> State:
    """The initial state of an agent at the start of `--batch` mazes."""
    k_init, k_mazes = jax.random.split(key)
    params = agent.init(k_init)
    mazes = jax.vmap(rules.begin)(jax.random.split(k_mazes, args.batch))
    memory = agent.core.initial_carry((args.batch,), params["core"])
    return State(params, make_optimizer(args).init(params), (mazes, memory), jnp.int32(0))


def make_optimizer(args: argparse.Namespace) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(args.clip), optax.adam(args.lr))


def improve(
    args: argparse.Namespace, rules: TMaze, agent: Agent, state: State, key: Array
) -> tuple[State, dict[str, Array]]:
    """Act for a window of steps, and update the weights once.

    The window continues the previous one: it starts in the middle of episodes, with the carry after that
    window. The carry is an input, so no gradient reaches the previous window.
    """
    mazes, memory = state.carry
    after, memory_after, steps = rollout(rules, agent, state.params, mazes, memory, key, args.window)
    *_, last = agent.act(state.params, memory_after, jax.vmap(rules.observe)(after), after.age == 0)
    advantage = advantages(steps, last, args.discount, args.trace)

    gradient = jax.value_and_grad(loss, has_aux=True)
    (value, replay_error), grads = gradient(state.params, agent, memory, steps, advantage, args.entropy)
    updates, moments = make_optimizer(args).update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    measured = {"loss": value, "replay_error": replay_error}
    measured |= {"ended": steps.ended.sum(), "success": steps.success.sum()}
    return State(params, moments, (after, memory_after), state.step + 1), measured


def rows_over_devices(mesh: Mesh, states: dict[str, State]) -> dict[str, State]:
    """Shardings for ``--mesh data=N``: rows of mazes and carries are split, weights are replicated."""
    devices, (mazes, _) = mesh.shape.get("data", 1), states["none"].carry
    if len(mazes.cue) % devices:
        raise UserError(f"--batch {len(mazes.cue)} is not divisible by --mesh data={devices}")
    replicated = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec("data")) if devices > 1 else replicated

    def of(state: State) -> State:
        carry = jax.tree.map(lambda _: rows, state.carry)
        return jax.tree.map(lambda _: replicated, state)._replace(carry=carry)

    return {name: of(state) for name, state in states.items()}


# --- the program -----------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=(0, 1, 4))
def success_rate(rules: TMaze, agent: Agent, params: Any, key: Array, episodes: int) -> Array:
    """The fraction of new episodes that end in the cue's arm. Half of the cues are left, half are right."""
    k_mazes, k_act = jax.random.split(key)
    mazes = jax.vmap(rules.begin)(jax.random.split(k_mazes, episodes))
    mazes = mazes._replace(cue=jnp.arange(episodes, dtype=jnp.int32) % 2)
    memory = agent.core.initial_carry((episodes,), params["core"])
    *_, steps = rollout(rules, agent, params, mazes, memory, k_act, rules.limit)
    of_the_first = jnp.cumsum(steps.ended, 0) - steps.ended == 0  # a row may continue with another episode
    return (steps.success & of_the_first).any(0).mean()


def learn(args: argparse.Namespace) -> None:
    """Train both agents, compare them, plot."""
    rules = TMaze(args.corridor)
    agents = {
        args.cell: Agent(CELLS[args.cell](FEATURES, args.hidden)),
        "none": Agent(feed_forward(FEATURES, args.hidden)),
    }
    k_begin, k_act, k_test, k_picture = jax.random.split(jax.random.key(args.seed), 4)

    def step(states: dict[str, State], _: Any) -> tuple[dict[str, State], dict[str, Array]]:
        """A step of both agents, which are independent."""
        after, measured = {}, {}
        for name, agent in agents.items():
            key = jax.random.fold_in(k_act, states[name].step)
            after[name], values = improve(args, rules, agent, states[name], key)
            measured |= {f"{name}_{what}": value for what, value in values.items()}
        return after, measured | {"loss": measured[f"{args.cell}_loss"]}

    def report(step: int, means: Mapping[str, float]) -> dict[str, float]:
        row = {"environment_steps": step * args.batch * args.window, "loss": means["loss"]}
        for name in agents:
            row[f"{name}_success"] = means[f"{name}_success"] / max(means[f"{name}_ended"], 1e-9)
        return row | {"replay_error": means[f"{args.cell}_replay_error"]}

    def test(states: dict[str, State], corridor: int) -> dict[str, float]:
        key = jax.random.fold_in(k_test, states["none"].step)
        return {
            f"{name}_test": float(success_rate(TMaze(corridor), agent, states[name].params, key, EPISODES))
            for name, agent in agents.items()
        }

    begin_all = jax.jit(lambda key: {name: begin(args, rules, agent, key) for name, agent in agents.items()})
    states = begin_all(k_begin)
    with Run(args, data={}, weights=count([state.params for state in states.values()])) as run:
        states = fit(
            step,
            states,
            lambda step: (),  # no batches: the data come from acting
            run=run,
            steps=args.steps,
            evaluate=lambda states: test(states, args.corridor),
            evaluate_every=max(1, args.steps // 10),
            report=report,
            placement=Placement.of(args, shardings=rows_over_devices),
        )
        model = {"cell": args.cell, "hidden": args.hidden}
        save_weights(run.folder, FORMAT, model, {name: state.params for name, state in states.items()})
        farther = [{"corridor": n * args.corridor, **test(states, n * args.corridor)} for n in FARTHER]
        run.write_json("corridors.json", farther)
        title = f"T-maze with a corridor of {args.corridor} steps: {args.cell.upper()} of {args.hidden} units"
        run.write("learning_curve.png", draw_curves(run.rows, args.cell, title))
        state, agent = states[args.cell], agents[args.cell]
        *_, steps = rollout(rules, agent, state.params, *state.carry, k_picture, args.window)
        run.write("memory.png", draw_memory(rules, agent, state.params, state.carry[1], steps))

    print(f"\nSuccessful episodes, of {EPISODES:,} in each corridor:")
    print(f"{'corridor':>10}{args.cell.upper():>10}{'without memory':>18}")
    for row in farther:
        print(f"{row['corridor']:>10}{row[f'{args.cell}_test']:>10.1%}{row['none_test']:>18.1%}")
    print(f"Weights and plots: {args.out}/")


def make_parser() -> Parser:
    parser, size = Parser("recurrent_policy", __doc__), integer(1)
    parser.add_argument("--corridor", type=size, default=10, help="steps from the cue to the junction")
    add_run_arguments(parser)

    add = parser.add_argument_group("network").add_argument
    add("--cell", choices=CELLS, default="lstm", help="recurrent cell")
    add("--hidden", type=size, default=32, help="units, also of the policy without memory")

    add = parser.add_argument_group("training").add_argument
    add("--steps", type=size, default=1000, help="training steps, of one window each")
    add("--batch", type=size, default=64, help="B, parallel mazes")
    add("--window", type=size, default=40, help="T, environment steps per training step")
    add("--lr", type=POSITIVE, default=3e-3, help="Adam's learning rate")
    add("--clip", type=POSITIVE, default=0.5, help="maximum norm of the gradient")
    add("--discount", type=FRACTION, default=0.95, help="gamma, the discount factor of rewards")
    add("--trace", type=FRACTION, default=0.95, help="lambda of the advantage estimation")
    add("--entropy", type=NONNEGATIVE, default=0.02, help="beta, the weight of the policy's entropy")
    return parser


if __name__ == "__main__":
    sys.exit(main(make_parser(), learn))
