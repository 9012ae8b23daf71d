"""A policy that has to remember, learned by reinforcement: an LSTM in a T-maze.

    python examples/recurrent_policy.py
    python examples/recurrent_policy.py --corridor 20 --cell gru --out runs/longer
    python examples/recurrent_policy.py --resume runs/recurrent_policy

A cue at the start of a corridor tells which way to turn at its end, where it is not seen any more. Without
memory, no policy turns the correct way more than half of the time (_t_maze.py says why); one that has a
feed-forward layer in place of the recurrent one is trained beside it, with the same budget, and shows it.

Actor and critic learn by advantages (A2C with generalised advantage estimation). Acting is one step of the
network after the other; learning unrolls it over the same rows of steps, in which one episode follows
another: `resets` says where each begins. The run folder then holds both learning curves, what the network
remembers in a picture, and how well it does in corridors longer than it has seen.
"""

from __future__ import annotations

import argparse
import json
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
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Parser,
    Placement,
    Run,
    State,
    UserError,
    add_run_arguments,
    count,
    fit,
    main,
    save_weights,
    whole,
)

import lstm_jax

Array = jax.Array


def feed_forward(inputs: int, hidden: int) -> lstm_jax.Readout:
    """The layer without memory: tanh(x V + b), a cell whose carry is empty."""
    return lstm_jax.Readout(inputs, hidden, activation=jnp.tanh)


FORMAT = "lstm_jax/recurrent_policy/1"
EPISODES = 4000  # of a test: a success rate of a half is then known to 1.6 % (two sigma)
FARTHER = (1, 2, 5, 10)  # corridors for the last test, as multiples of the one that was learned in
CELLS = {"lstm": lstm_jax.LSTM, "gru": lstm_jax.GRU, "rnn": lstm_jax.RNN, "min_gru": lstm_jax.MinGRU}

# --- the agent -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agent:
    """A core, and two read-outs of its output: the policy's logits, and the return that it expects."""

    core: Any

    @property
    def actor(self) -> lstm_jax.Readout:
        return lstm_jax.Readout(self.core.output_size, ACTIONS)

    @property
    def critic(self) -> lstm_jax.Readout:
        return lstm_jax.Readout(self.core.output_size, 1)

    def init(self, key: Array) -> dict[str, Any]:
        keys = jax.random.split(key, 3)
        members = {"core": self.core, "actor": self.actor, "critic": self.critic}
        return {name: member.init(k) for k, (name, member) in zip(keys, members.items(), strict=True)}

    def act(self, params: Any, memory: Any, seen: Array, first: Array) -> tuple[Any, Array, Array]:
        """One step, for acting: ``(memory, logits, value)`` of seen (B, D); first (B,) begins an episode."""
        fresh = self.core.initial_carry(first.shape, params["core"])
        memory = jax.tree.map(lambda new, old: jnp.where(first[:, None], new, old), fresh, memory)
        memory, h = self.core.step(params["core"], memory, seen)
        return memory, *self._read_out(params, h)

    def replay(self, params: Any, memory: Any, seen: Array, first: Array) -> tuple[Any, Array, Array]:
        """The same over (T, B) steps at once, for learning, through which gradients flow."""
        memory, hs = lstm_jax.unroll(self.core, params["core"], seen, memory, resets=first)
        return memory, *self._read_out(params, hs)

    def _read_out(self, params: Any, h: Array) -> tuple[Array, Array]:
        return self.actor(params["actor"], h), self.critic(params["critic"], h)[..., 0]


# --- acting ----------------------------------------------------------------------------------------


class Steps(NamedTuple):
    """What happened, (T, B) each: rows of T steps, in which one episode follows another."""

    cue: Array  # for pictures: agents do not see it
    seen: Array  # (T, B, D)
    first: Array  # this step begins an episode
    action: Array
    logits: Array  # (T, B, A)
    value: Array
    reward: Array
    ended: Array  # the episode, by this action
    success: Array


@partial(jax.jit, static_argnums=(0, 1, 6))
def rollout(
    rules: TMaze, agent: Agent, params: Any, mazes: Maze, memory: Any, key: Array, length: int
) -> tuple[Maze, Any, Steps]:
    """Act for ``length`` steps in each of B mazes: ``(mazes, memory, steps)``."""

    def step(carry: tuple[Maze, Any], key: Array) -> tuple[tuple[Maze, Any], Steps]:
        mazes, memory = carry
        k_action, k_maze = jax.random.split(key)
        cue, seen, first = mazes.cue, jax.vmap(rules.observe)(mazes), mazes.age == 0
        memory, logits, value = agent.act(params, memory, seen, first)
        action = jax.random.categorical(k_action, logits)
        keys = jax.random.split(k_maze, len(action))
        mazes, reward, ended, success = jax.vmap(rules.step)(keys, mazes, action)
        return (mazes, memory), Steps(cue, seen, first, action, logits, value, reward, ended, success)

    (mazes, memory), steps = jax.lax.scan(step, (mazes, memory), jax.random.split(key, length))
    return mazes, memory, steps


# --- learning --------------------------------------------------------------------------------------


def advantages(steps: Steps, last: Array, discount: float, trace: float) -> Array:
    r"""How much better each action was than expected (GAE, Schulman et al. 2016); (T, B).

    .. math:: A_t = \delta_t + \gamma \lambda A_{t+1}, \quad \delta_t = r_t + \gamma V_{t+1} - V_t

    where V and A after the end of an episode are zero; ``last`` (B,) is the value after the last step.
    """
    goes_on = discount * ~steps.ended
    errors = steps.reward + goes_on * jnp.concatenate([steps.value[1:], last[None]]) - steps.value

    def back(later: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        error, goes_on = at
        now = error + goes_on * trace * later
        return now, now

    return jax.lax.scan(back, jnp.zeros_like(last), (errors, goes_on), reverse=True)[1]


def loss(
    params: Any, agent: Agent, memory: Any, steps: Steps, advantage: Array, entropy_weight: float
) -> tuple[Array, Array]:
    r"""Advantage actor-critic, the mean over all steps; and how far the replay is from what was acted.

    .. math:: -A_t \log \pi(a_t) + \tfrac12 (A_t + V^{old}_t - V_t)^2 - \beta H(\pi)
    """
    _, logits, value = agent.replay(params, memory, steps.seen, steps.first)
    log_policy = jax.nn.log_softmax(logits)
    log_action = jnp.take_along_axis(log_policy, steps.action[..., None], -1)[..., 0]
    entropy = -(jnp.exp(log_policy) * log_policy).sum(-1)
    terms = -advantage * log_action + 0.5 * (advantage + steps.value - value) ** 2 - entropy_weight * entropy
    return terms.mean(), jnp.abs(logits - steps.logits).max()


def begin(args: argparse.Namespace, rules: TMaze, agent: Agent, key: Array) -> State:
    """An agent that knows nothing, at the start of `--batch` mazes."""
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
    """Act for a window of steps, and learn from them.

    It begins in the middle of episodes, where the window before left off: with the memory that was left then,
    which comes as a value, so that no gradient flows into that window.
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
    """For ``--mesh data=N``: mazes and memories split by row, the weights on every device."""
    devices, (mazes, _) = mesh.shape.get("data", 1), states["none"].carry
    if len(mazes.cue) % devices:
        raise UserError(f"--batch {len(mazes.cue)} does not divide over --mesh data={devices}")
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec("data")) if devices > 1 else whole

    def of(state: State) -> State:
        return jax.tree.map(lambda _: whole, state)._replace(carry=jax.tree.map(lambda _: rows, state.carry))

    return {name: of(state) for name, state in states.items()}


# --- the program -----------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=(0, 1, 4))
def success_rate(rules: TMaze, agent: Agent, params: Any, key: Array, episodes: int) -> Array:
    """Share of new episodes that end in the cue's arm; every other one has a right cue."""
    k_mazes, k_act = jax.random.split(key)
    mazes = jax.vmap(rules.begin)(jax.random.split(k_mazes, episodes))
    mazes = mazes._replace(cue=jnp.arange(episodes, dtype=jnp.int32) % 2)
    memory = agent.core.initial_carry((episodes,), params["core"])
    *_, steps = rollout(rules, agent, params, mazes, memory, k_act, rules.limit)
    of_the_first = jnp.cumsum(steps.ended, 0) - steps.ended == 0  # rows go on with another episode
    return (steps.success & of_the_first).any(0).mean()


def learn(args: argparse.Namespace) -> None:
    """Train both agents, compare them, draw."""
    rules = TMaze(args.corridor)
    agents = {
        args.cell: Agent(CELLS[args.cell](FEATURES, args.hidden)),
        "none": Agent(feed_forward(FEATURES, args.hidden)),
    }
    k_begin, k_act, k_test, k_picture = jax.random.split(jax.random.key(args.seed), 4)

    def step(states: dict[str, State], _: Any) -> tuple[dict[str, State], dict[str, Array]]:
        """Of both agents, who have nothing in common but the budget."""
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
            lambda step: (),  # the data are what the agents do
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
        run.write("corridors.json", (json.dumps(farther, indent=2) + "\n").encode())
        title = f"T-maze, a corridor of {args.corridor} steps: {args.cell.upper()} of {args.hidden} units"
        run.write("learning_curve.png", draw_curves(run.rows, args.cell, title))
        state, agent = states[args.cell], agents[args.cell]
        *_, steps = rollout(rules, agent, state.params, *state.carry, k_picture, args.window)
        run.write("memory.png", draw_memory(rules, agent, state.params, state.carry[1], steps))

    print(f"\nEpisodes that end in the correct arm, of {EPISODES:,} in each corridor:")
    print(f"{'corridor':>10}{args.cell.upper():>10}{'without memory':>18}")
    for row in farther:
        print(f"{row['corridor']:>10}{row[f'{args.cell}_test']:>10.1%}{row['none_test']:>18.1%}")
    print(f"Weights and pictures: {args.out}/")


def make_parser() -> Parser:
    parser = Parser("recurrent_policy", __doc__)
    size = whole(1)
    add = parser.add_argument
    add("--corridor", type=size, default=10, help="steps from cue to junction (default: %(default)s)")

    add = parser.add_argument_group("the network").add_argument
    add("--cell", choices=CELLS, default="lstm", help="what remembers (default: %(default)s)")
    add("--hidden", type=size, default=32, help="units, also without memory (default: %(default)s)")

    add = parser.add_argument_group("training").add_argument
    add("--steps", type=size, default=1000, help="windows to act in and learn from (default: %(default)s)")
    add("--batch", type=size, default=64, help="B, mazes walked side by side (default: %(default)s)")
    help = (
        "T, steps of acting before each of learning, and how far back gradients reach (default: %(default)s)"
    )
    add("--window", type=size, default=40, help=help)
    add("--lr", type=POSITIVE, default=3e-3, help="Adam's learning rate (default: %(default)s)")
    add("--clip", type=POSITIVE, default=0.5, help="highest norm of the gradients (default: %(default)s)")
    add("--discount", type=SHARE, default=0.95, help="gamma, of rewards a step later (default: %(default)s)")
    add("--trace", type=SHARE, default=0.95, help="lambda of the advantages (default: %(default)s)")
    help = "beta, what trying everything is worth (default: %(default)s)"
    add("--entropy", type=NOT_NEGATIVE, default=0.02, help=help)
    add_run_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main(make_parser(), learn))
