"""long_memory.py: its problems, the reach of the gradient, its run folder, its errors."""

import dataclasses
import json
import math
import shutil
import sys

import jax
import jax.numpy as jnp
import long_memory as program
import numpy as np
import pytest
from helpers import daily
from jax.flatten_util import ravel_pytree
from training import CELLS
from training_runs import files, read_json, rows, run

import lstm_jax

TINY = "--hidden 4 --batch 4 --steps 100 --seeds 2 --problems order --cells rnn --lags 12,10,11".split()


@pytest.fixture(scope="module")
def arguments():
    return TINY


def drawn(name, lag=20, batch=64):
    xs, target = program.PROBLEMS[name].draw(jax.random.key(3), lag, batch)
    return np.asarray(xs), np.asarray(target)


class TestProblems:
    def test_adding(self):
        xs, target = drawn("adding")
        numbers, marks = xs[..., 0], xs[..., 1]
        assert xs.shape == (20, 64, 2)
        assert (marks[:10].sum(0) == 1).all() and (marks[10:].sum(0) == 1).all()
        assert 0 <= numbers.min() and numbers.max() < 1
        np.testing.assert_allclose([n[m == 1].sum() for n, m in zip(numbers.T, marks.T, strict=True)], target)

    def test_order(self):
        xs, target = drawn("order", lag=50)
        symbols = xs.argmax(-1)
        assert xs.shape == (52, 64, 8) and (xs.sum(-1) == 1).all()
        assert (symbols[0] == 6).all() and (symbols[-1] == 7).all()
        for row, wanted in zip(symbols.T, target, strict=True):
            places = np.flatnonzero(np.isin(row[1:-1], (4, 5)))
            assert len(places) == 2 and 5 <= places[0] < 10 and 25 <= places[1] < 30
            first, second = row[1:-1][places] - 4
            assert wanted == 2 * first + second
        assert set(target) == {0, 1, 2, 3}

    def test_copy(self):
        xs, target = drawn("copy")
        symbols = xs.argmax(-1)
        assert xs.shape == (40, 64, 10) and target.shape == (40, 64)
        np.testing.assert_array_equal(target[-10:], symbols[:10])
        assert (symbols[:10] < 8).all() and (target[:30] == 8).all()
        # Between the last symbol and the first output are 19 blanks and the start signal.
        assert (symbols[29] == 9).all() and (symbols[10:29] == 8).all() and (symbols[30:] == 8).all()

    @pytest.mark.parametrize("name", daily(["adding", "order", "copy"]))
    def test_loss_without_memory(self, name):
        problem, lag = program.PROBLEMS[name], 20
        _, target = drawn(name, lag, 4096)
        if name == "adding":
            ys = np.ones((lag, 4096, 1))
        elif name == "order":
            ys = np.zeros((lag, 4096, 4))
        else:
            ys = np.full((lag + 20, 4096, 9), -50.0)
            ys[:-10, :, 8], ys[-10:, :, :8] = 50, 0
        assert float(problem.loss(jnp.asarray(ys), target)) == pytest.approx(
            problem.memoryless(lag), rel=0.05
        )
        assert problem.solved(lag) < 0.8 * problem.memoryless(lag)

    def test_sequences_depend_on_the_key_only(self):
        for name in program.PROBLEMS:
            first, again = drawn(name), drawn(name)
            assert (first[0] == again[0]).all() and (first[1] == again[1]).all()


class TestReach:
    @pytest.mark.parametrize("cell", daily(["rnn", "lstm"], "lstm"))
    @pytest.mark.slow
    def test_equals_finite_differences(self, cell):
        """Derivatives of L in the carry by finite differences, in float64."""
        with jax.enable_x64(True):
            cell = CELLS[cell](2, 3, param_dtype=jnp.float64)
            params, key = cell.init(jax.random.key(1)), jax.random.key(2)
            T = 4
            xs = jax.random.normal(jax.random.key(0), (T, 1, 2), jnp.float64)
            weight = jax.random.normal(key, (1, 3), jnp.float64)
            step = jax.jit(cell.step)

            def gradient(k):
                carry = cell.initial_carry((1,), params)
                for x in xs[: T - k]:
                    carry, _ = step(params, carry, x)
                flat, back = ravel_pytree(carry)

                def loss(flat):
                    carry = back(jnp.asarray(flat))
                    for x in xs[T - k :]:
                        carry, y = step(params, carry, x)
                    return float(jnp.sum(weight * y))

                h = 1e-6
                steps = np.eye(len(flat)) * h
                return np.linalg.norm([(loss(flat + e) - loss(flat - e)) / (2 * h) for e in steps])

            norms = np.array([gradient(k) for k in range(1, T)])
            reach = np.asarray(program.gradient_reach(cell, params, xs, key))
        np.testing.assert_allclose(reach, norms / norms[0], rtol=1e-6)

    @pytest.mark.slow
    def test_an_open_forget_gate_keeps_the_gradient(self):
        """f = 1, i = 0, and gates that do not depend on h: the gradient in the cell state is constant."""
        cell = lstm_jax.LSTM(2, 3)
        params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))
        params = params._replace(bias=params.bias.at[:3].set(-100.0).at[3:6].set(100.0))
        xs = jax.random.normal(jax.random.key(1), (30, 8, 2))
        reach = program.gradient_reach(cell, params, xs, jax.random.key(2))
        np.testing.assert_allclose(reach, np.ones(29), rtol=1e-5)


class TestRun:
    @pytest.mark.slow
    def test_files(self, finished):
        assert files(finished) == {"config.json", "metrics.jsonl", "steps_to_solve.png", "why_gates.png"}
        config = read_json(finished / "config.json")
        assert config["finished"] and config["arguments"]["lags"] == [10, 11, 12]
        assert config["weights"] == 3 * ((8 * 4 + 4 * 4 + 4) + (4 * 4 + 4))  # a cell and a readout per lag

    @pytest.mark.slow
    def test_rows(self, finished):
        measured = rows(finished)
        found = [(row["step"], row["lag"], row["cell"]) for row in measured]
        assert found == [(1, 10, "rnn"), (2, 11, "rnn"), (3, 12, "rnn")]
        for row in measured:
            assert row["problem"] == "order" and len(row["losses"]) == len(row["steps_to_solve"]) == 2
            assert all(0 < loss < 3 for losses in row["losses"] for loss in losses)
            for steps, losses in zip(row["steps_to_solve"], row["losses"], strict=True):
                assert (steps is None) == (losses[-1] >= 0.1)
                assert len(losses) * 50 == (steps or 100)
            assert ("reach_after" in row) == (row["lag"] == 12)
        assert [len(reach) for reach in measured[-1]["reach_before"]] == [13, 13]  # 14 steps
        assert measured[-1]["reach_before"][0][0] == 1

    @pytest.mark.slow
    def test_resume(self, finished, tmp_path, monkeypatch, capsys):
        """A run that is stopped in the second row and resumed has the rows of an uninterrupted run."""
        measure, calls = program.measure, []

        def stopping(*args):
            calls.append(args)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return measure(*args)

        monkeypatch.setattr(program, "measure", stopping)
        assert run(program, *TINY, "--out", tmp_path) == 130
        error = capsys.readouterr().err
        assert error == f"long_memory: stopped; resume with: python {sys.argv[0]} --resume {tmp_path}\n"
        assert len(rows(tmp_path)) == 1
        assert run(program, "--resume", tmp_path) == 0
        assert len(calls) == 4
        assert rows(tmp_path) == rows(finished)

    @pytest.mark.slow
    def test_a_deleted_line(self, finished, tmp_path):
        """A resumed run measures the deleted row and those after it again."""
        out = shutil.copytree(finished, tmp_path / "out")
        config = read_json(out / "config.json")
        (out / "config.json").write_text(json.dumps(config | {"finished": False}))
        first, _, third = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
        (out / "metrics.jsonl").write_text(first + third)
        assert run(program, "--resume", out) == 0
        assert rows(out) == rows(finished)

    @pytest.mark.slow
    def test_infinite_loss(self, tmp_path, capsys):
        """An infinite loss ends the training, and is not plotted."""
        arguments = [*TINY, "--lr", "1e38", "--clip", "1e38", "--problems", "adding", "--cells", "indrnn"]
        assert run(program, *arguments, "--lags", 10, "--out", tmp_path) == 0
        assert "unsolved" in capsys.readouterr().out
        assert rows(tmp_path)[0]["losses"] == [[None], [None]]

    def test_every_cell_with_vector_inputs_has_a_name(self):
        cells = {
            name.lower()
            for name, cell in vars(lstm_jax).items()
            if dataclasses.is_dataclass(cell)
            and not name.endswith("Variant")  # a cell that has a name, with options
            and [field.name for field in dataclasses.fields(cell)][:2] == ["input_size", "hidden_size"]
        }
        assert set(CELLS) == cells

    def test_summary(self):
        assert program.summary([None, None]) == "unsolved"
        assert program.summary([300, 100, 200]) == "200"
        assert program.summary([300, None, 200]) == "200 (2/3)"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("--cells lstm,lstn", "'lstn' is not a cell: expected rnn, gru, lstm, indrnn"),
            ("--problems xor", "'xor' is not a problem: expected adding, order, copy"),
            ("--lags 10,x", "'x' is not an integer >= 10"),
            ("--lags 9", "'9' is not an integer >= 10"),
            ("--steps 75", "not a multiple of 50"),
            ("--mesh data=2", "--mesh"),
            ("--resume nowhere", "is this a run folder?"),
        ],
    )
    def test_errors(self, fails, arguments, message):
        assert message in fails(*arguments.split())


@pytest.mark.slow
def test_lstm_remembers_more_than_rnn(tmp_path):
    """Adding at a lag of 50, in 1500 steps: the LSTM needs about 650, the RNN more than 2000."""
    arguments = "--problems adding --cells rnn,lstm --lags 50 --seeds 1 --steps 1500".split()
    assert run(program, *arguments, "--out", tmp_path) == 0
    rnn, lstm = rows(tmp_path)
    assert rnn["steps_to_solve"] == [None] and lstm["steps_to_solve"][0] <= 1500
    assert math.log10(lstm["reach_after"][0][-1] / rnn["reach_after"][0][-1]) > 0.3
