"""recurrent_policy.py: the maze, acting and learning on the same steps, its run folder, its errors."""

import itertools
import signal

import _t_maze as t_maze
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrent_policy as program
from _t_maze import FORWARD, LEFT, RIGHT, Maze, TMaze
from helpers import daily
from training_runs import files, outcome, read_json, rows, run, weights

TINY = "--cell rnn --corridor 2 --hidden 4 --batch 4 --window 16".split()
FILES = "config.json corridors.json learning_curve.png memory.png metrics.jsonl weights.safetensors".split()


# --- the maze --------------------------------------------------------------------------------------


def play(length, actions, cue=LEFT):
    """The maze after some actions, and (reward, ended, success) of each."""
    step = jax.jit(TMaze(length).step)
    maze, given = Maze(*jnp.array([cue, 0, 0], jnp.int32)), []
    for action in actions:
        maze, reward, ended, success = step(jax.random.key(0), maze, jnp.int32(action))
        given.append((round(float(reward), 3), bool(ended), bool(success)))
    return maze, given


class TestMaze:
    @pytest.mark.parametrize("cue", [LEFT, RIGHT])
    def test_success_is_the_arm_of_the_cue(self, cue):
        for turn, last in ((cue, (1.0, True, True)), (1 - cue, (-0.1, True, False))):
            maze, given = play(2, [FORWARD, FORWARD, turn], cue)
            assert given == [(0.0, False, False), (0.0, False, False), last]
            assert int(maze.age) == int(maze.place) == 0  # the start of a new episode

    def test_walls(self):
        maze, given = play(1, [LEFT, RIGHT, FORWARD, FORWARD])
        assert [reward for reward, _, _ in given] == [-0.1, -0.1, 0.0, -0.1]
        assert (int(maze.place), int(maze.age)) == (1, 4)

    def test_episode_limit(self):
        _, given = play(1, [RIGHT] * 8)
        assert given[-2:] == [(-0.1, False, False), (-0.1, True, False)]

    def test_cues_are_random(self):
        keys = jax.random.split(jax.random.key(0), 2000)
        at_the_limit = Maze(*jnp.array([LEFT, 0, 7], jnp.int32))
        begun = [jax.vmap(TMaze(1).begin)(keys)]
        begun += [jax.vmap(lambda key: TMaze(1).step(key, at_the_limit, RIGHT)[0])(keys)]
        for mazes in begun:
            assert float(mazes.cue.mean()) == pytest.approx(0.5, abs=0.04)
            assert not mazes.place.any() and not mazes.age.any()

    def test_without_memory_the_success_rate_is_at_most_one_half(self):
        """All deterministic policies and many random ones, over all states of the maze, in float64."""
        rules = TMaze(3)
        places, ages = rules.length + 1, rules.limit
        cue, place, age, action = map(np.ravel, np.indices((2, places, ages, 3), dtype=np.int32))
        keys = jax.random.split(jax.random.key(0), len(cue))
        after, _, ended, success = jax.jit(jax.vmap(rules.step))(keys, Maze(cue, place, age), action)
        obs = np.asarray(jax.vmap(rules.observe)(Maze(cue, place, age))).argmax(-1)
        shape = (2, places, ages, 3)
        next_place, ended, success, obs = (
            np.asarray(a).reshape(shape) for a in (after.place, ended, success, obs)
        )

        def succeeds(policy):
            """The probability of success from the start, given the probabilities policy[observation]."""
            later = np.zeros((2, places))
            for age in reversed(range(ages)):
                continues = np.take_along_axis(later, next_place[:, :, age].reshape(2, -1), 1).reshape(
                    2, places, 3
                )
                gain = np.where(ended[:, :, age], success[:, :, age], continues)
                later = (policy[obs[:, :, age, 0]] * gain).sum(-1)
            return later[:, 0]  # for each cue

        deterministic = [np.eye(3)[list(choice)] for choice in itertools.product(range(3), repeat=4)]
        random = np.random.default_rng(0).dirichlet([0.3] * 3, size=(300, 4))
        rates = [succeeds(policy).mean() for policy in (*deterministic, *random)]
        assert max(rates[: len(deterministic)]) == 0.5 and max(rates) <= 0.5 + 1e-12
        # A policy that knows the cue at the junction always succeeds.
        for cue in (LEFT, RIGHT):
            assert succeeds(np.eye(3)[[FORWARD, FORWARD, FORWARD, cue]])[cue] == 1


# --- acting and learning ---------------------------------------------------------------------------


def agent_of(cell):
    core = program.feed_forward if cell == "none" else program.CELLS[cell]
    return program.Agent(core(t_maze.FEATURES, 8))


@pytest.fixture(scope="module")
def second_window():
    """``of(cell)``: an agent and its second window of steps, which starts in the middle of episodes."""

    def of(cell):
        agent, rules = agent_of(cell), TMaze(2)
        params = agent.init(jax.random.key(0))
        # Large weights, so that the outputs depend on the carry.
        params = jax.tree.map(lambda leaf: 2 * leaf, params)
        mazes = jax.vmap(rules.begin)(jax.random.split(jax.random.key(1), 6))
        memory = agent.core.initial_carry((6,), params["core"])

        @jax.jit
        def act(mazes, memory, key):
            return program.rollout(rules, agent, params, mazes, memory, key, 30)

        mazes, memory, _ = act(mazes, memory, jax.random.key(2))
        *_, steps = act(mazes, memory, jax.random.key(3))
        return agent, params, memory, steps

    return of


class TestReplay:
    @pytest.mark.parametrize("cell", daily([*program.CELLS, "none"], "lstm", "none"))
    def test_replay_equals_acting(self, second_window, cell):
        agent, params, memory, steps = second_window(cell)
        # Every row has several episodes. Some of them started in the first window.
        assert np.asarray(steps.first).sum(0).min() >= 2 and not steps.first[0].all()
        _, logits, value = agent.replay(params, memory, steps.obs, steps.first)
        np.testing.assert_allclose(logits, steps.logits, atol=1e-5)
        np.testing.assert_allclose(value, steps.value, atol=1e-5)

    @pytest.mark.slow
    def test_replay_without_resets_or_carry_differs(self, second_window):
        agent, params, memory, steps = second_window("lstm")
        advantage = jnp.ones(steps.reward.shape)

        def replay_error(memory, first):
            steps_so = steps._replace(first=first)
            return float(program.loss(params, agent, memory, steps_so, advantage, 0.0)[1])

        empty = jax.tree.map(jnp.zeros_like, memory)
        assert replay_error(memory, steps.first) < 1e-5
        assert replay_error(memory, jnp.zeros_like(steps.first)) > 0.01
        assert replay_error(memory, jnp.roll(steps.first, 1, 0)) > 0.01
        assert replay_error(empty, steps.first) > 0.01

    def test_no_gradient_crosses_a_reset(self, second_window):
        """The logits at the last step do not depend on observations of previous episodes."""
        agent, params, memory, steps = second_window("lstm")

        def last_logits(obs):
            return agent.replay(params, memory, obs, steps.first)[1][-1].sum()

        gradient = np.abs(jax.jit(jax.grad(last_logits))(steps.obs)).max(-1)  # (T, B)
        for row in range(gradient.shape[1]):
            start = int(np.flatnonzero(steps.first[:, row])[-1])
            assert not gradient[:start, row].any() and gradient[start:, row].all()


class TestLearning:
    def test_advantages_follow_the_definition(self):
        """The sum of (gamma lambda)^k delta_{t+k} to the end of the episode, in float64."""
        rng = np.random.default_rng(0)
        T, B, discount, trace = 12, 5, 0.9, 0.8
        reward, value = rng.normal(size=(2, T, B))
        ended, last = rng.random((T, B)) < 0.25, rng.normal(size=B)
        assert ended.any() and not ended.all()
        expected = np.zeros((T, B))
        for b in range(B):
            for t in range(T):
                for k, at in enumerate(range(t, T)):
                    following = value[at + 1, b] if at + 1 < T else last[b]
                    delta = reward[at, b] + discount * (not ended[at, b]) * following - value[at, b]
                    expected[t, b] += (discount * trace) ** k * delta
                    if ended[at, b]:
                        break
        steps = program.Steps(*[None] * 5, jnp.float32(value), jnp.float32(reward), jnp.asarray(ended), None)
        got = program.advantages(steps, jnp.float32(last), discount, trace)
        np.testing.assert_allclose(got, expected, atol=1e-5)

    def test_loss_follows_its_equation(self, second_window):
        agent, params, memory, steps = second_window("lstm")
        advantage = jax.random.normal(jax.random.key(0), steps.reward.shape)
        got, _ = program.loss(params, agent, memory, steps, advantage, 0.3)
        logits, old, A = (np.float64(a) for a in (steps.logits, steps.value, advantage))
        policy = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        chosen = np.take_along_axis(policy, np.asarray(steps.action)[..., None], -1)[..., 0]
        entropy = -(policy * np.log(policy)).sum(-1)
        expected = -A * np.log(chosen) + 0.5 * (A + old - old) ** 2 - 0.3 * entropy
        assert float(got) == pytest.approx(expected.mean(), abs=1e-5)

    @pytest.mark.slow
    def test_a_window_continues_the_previous_one(self):
        args = program.make_parser().parse_args(TINY)
        agent, rules, key = agent_of("rnn"), TMaze(2), jax.random.key(1)
        state = program.begin(args, rules, agent, jax.random.key(0))
        mazes, memory, _ = program.rollout(rules, agent, state.params, *state.carry, key, args.window)
        after, measured = jax.jit(lambda state: program.improve(args, rules, agent, state, key))(state)
        assert mazes.age.any() and int(after.step) == 1 and float(measured["replay_error"]) < 1e-5
        jax.tree.map(np.testing.assert_array_equal, after.carry[0], mazes)
        np.testing.assert_allclose(after.carry[1], memory, atol=1e-6)

    def test_the_success_rate_counts_one_episode_per_row(self):
        """An agent that never turns has no success. One that turns left succeeds after left cues."""
        agent = agent_of("none")
        params = jax.tree.map(jnp.zeros_like, agent.init(jax.random.key(0)))
        forward = jnp.array([0.0, 0.0, 100.0])
        params["actor"] = params["actor"]._replace(bias=forward)
        rate = program.success_rate(TMaze(2), agent, params, jax.random.key(1), 100)
        assert float(rate) == 0
        core = params["core"]._replace(w=jnp.zeros((4, 8)).at[t_maze.JUNCTION, 0].set(100.0))
        actor = params["actor"]._replace(w=jnp.zeros((8, 3)).at[0, LEFT].set(200.0))
        params |= {"core": core, "actor": actor}
        rate = program.success_rate(TMaze(2), agent, params, jax.random.key(1), 100)
        assert float(rate) == 0.5


# --- the program -----------------------------------------------------------------------------------


@pytest.fixture
def few_episodes(monkeypatch):
    monkeypatch.setattr(program, "EPISODES", 50)
    monkeypatch.setattr(program, "FARTHER", (1, 2))


class TestProgram:
    @pytest.mark.slow
    def test_resume(self, few_episodes, tmp_path, monkeypatch):
        """A run that is stopped and resumed has the metrics and the weights of an uninterrupted run."""
        whole, stopped = tmp_path / "whole", tmp_path / "stopped"
        assert run(program, *TINY, "--steps", 4, "--out", whole) == 0
        assert files(whole) == set(FILES)
        assert [row["corridor"] for row in read_json(whole / "corridors.json")] == [2, 4]
        assert rows(whole)[-1]["environment_steps"] == 4 * 4 * 16

        tested, rate = [], program.success_rate

        def stop_in_the_middle(*args):
            tested.append(args)
            if len(tested) == 3:
                signal.raise_signal(signal.SIGTERM)
            return rate(*args)

        monkeypatch.setattr(program, "success_rate", stop_in_the_middle)
        assert run(program, *TINY, "--steps", 4, "--out", stopped) == 128 + signal.SIGTERM
        assert len(rows(stopped)) < 4
        assert run(program, "--resume", stopped) == 0
        assert outcome(stopped) == outcome(whole)

    @pytest.mark.slow
    def test_rows_over_devices(self, few_episodes, tmp_path):
        for name, mesh in (("one", ""), ("two", "data=2")):
            assert run(program, *TINY, "--steps", 2, "--out", tmp_path / name, "--mesh", mesh) == 0
        one, two = (weights(tmp_path / name) for name in ("one", "two"))
        for name, expected in one.items():
            np.testing.assert_allclose(two[name], expected, atol=1e-5, err_msg=name)

    @pytest.mark.parametrize(
        "words, message",
        [
            (["--corridor", "0"], "'0' is not an integer >= 1"),
            (["--cell", "transformer"], "invalid choice: 'transformer'"),
            (["--discount", "1"], "'1' is not a number >= 0 and < 1"),
            (["--resume", "nowhere"], "cannot read nowhere/config.json"),
            ([*TINY, "--mesh", "data=3"], "--batch 4 is not divisible by --mesh data=3"),
        ],
    )
    def test_errors(self, fails, words, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert message in fails(*words)


@pytest.mark.slow
def test_memory_is_needed(tmp_path):
    """Above 95 % with memory, and 50 % without (4 % is five standard deviations)."""
    assert run(program, "--out", tmp_path, "--seed", 1) == 0
    last = rows(tmp_path)[-1]
    assert last["lstm_test"] > 0.95 and last["none_test"] == pytest.approx(0.5, abs=0.04)
    assert last["replay_error"] < 1e-4
    twice = read_json(tmp_path / "corridors.json")[1]
    assert twice["corridor"] == 20 and twice["lstm_test"] > 0.95
