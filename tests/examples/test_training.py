"""examples/training: command line, run folder, data, placement, training loop."""

import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_program as program
from training import Placement, Run, State, UserError, command, data, distributed, fit, window_step
from training_runs import files, read_json, rows, run


def new_run(folder, **more):
    given = {"out": folder, "resume": None, "mesh": "", "tensorboard": False, "checkpoint_every": None}
    return Run(SimpleNamespace(**given | more), data={}, weights=0)


def descend(state, batch):
    """A step that takes its loss from the batch, and multiplies the state by the batch's factor."""
    return state * batch["factor"], {"loss": batch["loss"]}


def batches(losses, factors=None):
    factors = [1.0] * len(losses) if factors is None else factors
    return lambda step: {"loss": np.float32(losses[step]), "factor": np.float32(factors[step])}


class TestRun:
    def test_files(self, tmp_path, capsys):
        assert run(program, "--steps", 20, "--out", tmp_path) == 0
        assert files(tmp_path) == {
            "config.json", "learning_curve.png", "metrics.jsonl", "weights.safetensors",
        }  # fmt: skip
        config = read_json(tmp_path / "config.json")
        assert config["arguments"]["hidden"] == 8 and config["arguments"]["program"] == "tiny"
        assert config["weights"] == 4 * 8 * 10 + 9 and config["finished"] and "sha256" in config["data"]
        assert {"jax", "optax", "python"} <= set(config["versions"])
        assert [row["step"] for row in rows(tmp_path)] == [10, 16, 20]
        assert ["valid_loss" in row for row in rows(tmp_path)] == [False, True, True]
        assert "step 16/20" in capsys.readouterr().out

    def test_a_row_is_the_mean_of_its_steps(self, tmp_path):
        losses = np.arange(1.0, 26)
        with new_run(tmp_path) as run:
            state = fit(descend, jnp.float32(1), batches(losses), run=run, steps=25, log_every=10)
        assert float(state) == 1.0
        assert [row["loss"] for row in rows(tmp_path)] == [5.5, 15.5, 23.0]

    def test_the_mean_of_a_row_is_weighted(self, tmp_path):
        def step(state, batch):
            return descend(state, batch)[0], {"loss": batch["loss"], "weight": batch["factor"]}

        with new_run(tmp_path) as run:
            fit(step, jnp.float32(1), batches([1, 2, 7, 4], [1, 1, 2, 4]), run=run, steps=4, log_every=3)
        assert [(row["loss"], row.keys()) for row in rows(tmp_path)] == [
            (17 / 4, {"step", "loss"}),
            (4, {"step", "loss"}),
        ]

    def test_evaluations_at_given_steps_may_change_the_state(self, tmp_path):
        with new_run(tmp_path) as run:
            state = fit(
                descend, jnp.float32(1), batches(np.ones(9)), run=run, steps=9, evaluate_every={2, 7},
                evaluate=lambda state: {"valid": float(state)},
                after_evaluation=lambda state, rows: state + 10 * len(rows),
            )  # fmt: skip
        assert [(row["step"], row["valid"]) for row in rows(tmp_path)] == [(2, 1), (7, 11), (9, 31)]
        assert float(state) == 61

    def test_a_failed_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        run = new_run(tmp_path)
        run.write("file", b"old")
        before = sorted(tmp_path.iterdir())
        monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("no")))
        with pytest.raises(OSError):
            run.write("file", b"new")
        assert (tmp_path / "file").read_bytes() == b"old" and sorted(tmp_path.iterdir()) == before

    def test_tensorboard_is_optional(self, tmp_path):
        try:
            import tensorboardX  # noqa: F401
        except ImportError:
            with pytest.raises(UserError, match=r"pip install 'lstm_jax\[tensorboard\]'"):
                new_run(tmp_path, tensorboard=True)


def test_a_window_step_passes_the_carry_on_without_its_gradient():
    """Two steps of gradient descent, calculated by hand. The key depends on the number of the step."""

    def loss(w, carry, x, key):
        return w * (carry + x) + jax.random.normal(key), carry + w * x

    key = jax.random.key(0)
    noise = [jax.random.normal(jax.random.fold_in(key, step)) for step in (5, 6)]
    step = window_step(loss, optax.sgd(1.0), key)
    state = State(jnp.float32(2), optax.sgd(1.0).init(jnp.float32(2)), jnp.float32(3), jnp.int32(5))
    state, metrics = step(state, 1.0)
    assert (float(state.params), float(state.carry), int(state.step)) == (2 - (3 + 1), 3 + 2 * 1, 6)
    assert metrics["loss"] == pytest.approx(2 * (3 + 1) + noise[0])
    state, metrics = step(state, 4.0)
    assert (float(state.params), float(state.carry), int(state.step)) == (-2 - (5 + 4), 5 - 2 * 4, 7)
    assert metrics["loss"] == pytest.approx(-2 * (5 + 4) + noise[1])


class TestNotFinite:
    """A loss, a metric or a weight that is not finite stops the run, and the error names the likely cause."""

    def error(self, folder, losses, factors=None, **more):
        steps = len(losses)
        with pytest.raises(UserError) as caught, new_run(folder, checkpoint_every=4) as run:
            fit(descend, jnp.float32(1), batches(losses, factors), run=run, steps=steps, **more)
        return str(caught.value)

    def test_loss(self, tmp_path):
        error = self.error(tmp_path, [1, 1, 1, 1, 1, 1, np.nan, 1, 1, 1])
        assert error.startswith("the loss is nan at step 7: ") and "try a smaller learning rate" in error
        assert "the last good checkpoint is of step 4" in error
        assert read_json(tmp_path / "config.json").get("finished") is None

    def test_increasing_loss(self, tmp_path):
        error = self.error(tmp_path, [1, 2, 8, np.inf])
        assert "the loss is inf at step 4: the loss increased from 1 to 8" in error
        assert "there is no earlier checkpoint" in error

    def test_first_loss(self, tmp_path):
        assert "check the data and the initial weights" in self.error(tmp_path, [np.nan, 1])

    def test_weights_after_a_finite_loss(self, tmp_path):
        error = self.error(tmp_path, [1] * 8, [1, 1, 1, 1, 1, 1, np.inf, 1])
        assert "is not finite after step 8" in error and "of step 4" in error

    def test_evaluation(self, tmp_path):
        error = self.error(tmp_path, [1, 1], evaluate=lambda state: {"valid_loss": np.nan})
        assert "the valid loss is nan at step 2" in error


class TestData:
    def test_each_epoch_is_another_permutation(self):
        numbers = np.arange(12)
        batch_of, per_epoch = data.shuffled({"x": numbers, "y": -numbers}, 4, seed=3)
        assert per_epoch == 3
        epochs = [[*np.concatenate([batch_of(3 * e + k)["x"] for k in range(3)])] for e in range(3)]
        assert all(sorted(epoch) == [*range(12)] for epoch in epochs)
        assert len(set(map(tuple, epochs))) == 3
        again, _ = data.shuffled({"x": numbers, "y": -numbers}, 4, seed=3)
        assert [*again(7)["x"]] == [*batch_of(7)["x"]] == [*-again(7)["y"]]  # without the previous batches
        other, _ = data.shuffled({"x": numbers}, 4, seed=4)
        assert [*other(0)["x"]] != [*batch_of(0)["x"]]
        with pytest.raises(UserError, match="fewer than a batch of 13"):
            data.shuffled({"x": numbers}, 13, seed=0)

    def test_streams_are_columns(self):
        assert data.streams(np.arange(11), 3).tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]

    def test_digest_differs(self):
        different = ["ab", b"ab\n", np.arange(3), np.arange(3.0), np.arange(3)[:, None]]
        assert len({data.digest(part) for part in different}) == len(different)
        assert data.digest("a", "b") != data.digest("ab") and data.digest("ab") == data.digest(b"ab")

    def test_prefetch_raises_errors_of_the_thread(self):
        def batch_of(step):
            if step == 2:
                raise UserError("no batch 2")
            return step

        taken = []
        with pytest.raises(UserError, match="no batch 2"):
            for batch in data.prefetch(batch_of, range(5), lambda batch: 10 * batch):
                taken.append(batch)
        assert taken == [0, 10]

    def test_prefetch_is_bounded_and_ends(self):
        made = []
        batches = data.prefetch(lambda step: made.append(step) or step, range(1000), lambda b: b, ahead=2)
        assert next(batches) == 0
        batches.close()
        assert len(made) <= 1 + 2 + 1  # one taken, two in the queue, one in progress
        assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


class TestPlacement:
    @pytest.mark.parametrize(
        "axes, message",
        [
            ("rows=2", "'rows=2' is not data=N or model=N"),
            ("data=0", "'data=0' is not"),
            ("data=2,data=2", "'data=2' is not"),
            ("data=64", "needs 64 devices, but there are 4"),
        ],
    )
    def test_invalid_meshes(self, axes, message):
        with pytest.raises(UserError, match=message):
            distributed.parse_mesh(axes)

    def test_indivisible_rows(self):
        with pytest.raises(UserError, match="a batch of 3 rows is not divisible by --mesh data=2"):
            Placement(distributed.parse_mesh("data=2"), batch_axis=0).batch(np.zeros((3, 4)))

    def test_a_batch_is_split(self):
        placed = Placement(distributed.parse_mesh("data=4"), batch_axis=1).batch(
            {"x": np.zeros((5, 8)), "n": 3}
        )
        assert placed["x"].addressable_shards[0].data.shape == (5, 2)
        assert placed["n"].sharding.is_fully_replicated

    def test_the_initial_state_is_not_donated(self, tmp_path):
        initial = jnp.ones(3)
        with new_run(tmp_path) as run:
            fit(descend, initial, batches(np.ones(2)), run=run, steps=2)
        assert initial.tolist() == [1, 1, 1]

    @pytest.mark.slow
    def test_a_mesh_gives_the_losses_of_one_device(self, tmp_path):
        for mesh in ("", "data=4"):
            assert run(program, "--steps", 16, "--out", tmp_path / f"m{mesh}", "--mesh", mesh) == 0
        one, four = (rows(tmp_path / f"m{mesh}") for mesh in ("", "data=4"))
        for a, b in zip(one, four, strict=True):
            assert a == pytest.approx(b, rel=1e-4)


class TestCommand:
    @pytest.mark.parametrize(
        "words, message",
        [
            (["--steps", "0"], "'0' is not an integer >= 1"),
            (["--lr", "nan"], "'nan' is not a number > 0"),
            (["--epochs", "1", "--steps", "1"], "not allowed with"),
            (["--out", "a", "--resume", "b"], "not allowed with"),
            (["--resume", "nowhere"], "cannot read nowhere/config.json: No such file"),
            (["--batch", "500"], "there are 256 examples, fewer than a batch of 500"),
        ],
        ids=lambda words: "-".join(words) if isinstance(words, list) else "message",
    )
    def test_errors(self, fails, words, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert message in fails(*words)
        assert not list(tmp_path.iterdir())

    def test_presets_replace_defaults(self):
        parser = program.make_parser()
        parser.presets = lambda args: {"hidden": 3, "lr": 0.5}
        args = command.parse(parser, ["--lr", "2"])
        assert (args.hidden, args.lr, args.batch) == (3, 2.0, 16)
