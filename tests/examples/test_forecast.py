"""The forecast program of examples/: its problem, its figures, what it writes, what it refuses."""

import csv
import importlib
import json
import sys
from statistics import NormalDist

import jax
import numpy as np
import pytest

PROGRAM = "forecast"
TINY = "--members 2 --hidden 3 --batch 2 --horizon 3 --steps 25".split()
FILES = {
    "config.json", "forecast.csv", "forecast.png", "learning_curve.png", "metrics.jsonl", "result.json",
    "weights.safetensors",
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("as_users_have_it", "quick_compiles")


def made_up(program, n=60, period=4, **options):
    """A season, a trend and noise."""
    t = np.arange(n)
    values = 20 + 0.3 * t + 5 * np.sin(2 * np.pi * t / period) + np.random.default_rng(0).normal(size=n)
    looks = {"difference": True, "root": False} | options
    return program.Series("made up", "things", "step", t.astype(float), values, period, **looks)


def write_csv(path, values, column="sold"):
    lines = [f"when,{column}", *(f"{i},{value}" for i, value in enumerate(values))]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def run(program, tmp_path_factory):
    """A folder with a series and a finished run."""
    folder = tmp_path_factory.mktemp("run")
    path = write_csv(folder / "series.csv", made_up(program).values)
    arguments = ["--csv", str(path), "--column", "sold", "--period", "4", "--out", str(folder / "out")]
    assert program.main([*TINY, *arguments]) == 0
    return folder


@pytest.mark.slow
class TestRun:
    def test_leaves_all_its_files_and_nothing_else(self, run):
        out = run / "out"
        assert {path.name for path in out.iterdir()} == FILES
        for name in ("learning_curve.png", "forecast.png"):
            assert (out / name).read_bytes().startswith(b"\x89PNG")
        config = json.loads((out / "config.json").read_text())
        assert config["data"]["known"] == 40 and config["data"]["horizon"] == 3

    def test_table(self, run):
        rows = json.loads((run / "out" / "result.json").read_text())
        assert [row["horizon"] for row in rows] == ["1", "2", "3", "all"]
        assert [row["forecasts"] for row in rows] == [20, 19, 18, 57]
        assert all(row["inside_80%"] <= row["inside_95%"] for row in rows)

    def test_future(self, run):
        with open(run / "out" / "forecast.csv") as file:
            rows = [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
        assert [row["steps_ahead"] for row in rows] == [1, 2, 3]
        for row in rows:
            assert row["low_95"] < row["low_80"] < row["median"] < row["high_80"] < row["high_95"]

    def test_members_are_different_networks(self, program, run):
        _, params = importlib.import_module("training").load_weights(
            run / "out",
            "lstm_jax/forecast/1",
            lambda model: jax.eval_shape(
                jax.vmap(program.make_network(4, 3, 3, 0.4).init), jax.random.split(jax.random.key(0), 2)
            ),
        )
        for leaf in jax.tree.leaves(params):
            assert leaf.shape[0] == 2 and bool((leaf[0] != leaf[1]).any())


class TestProblem:
    def test_seasonal_naive(self, program):
        naive = importlib.import_module("_forecast_problem").seasonal_naive(
            np.arange(10.0), horizon=7, period=3
        )
        assert naive[5].tolist() == [3, 4, 5, 3, 4, 5, 3]
        assert naive[0].tolist() == [0] * 7  # nothing is known before the first

    @pytest.mark.parametrize("difference", [True, False])
    @pytest.mark.parametrize("root", [True, False])
    def test_targets_give_the_values_back(self, program, difference, root):
        series = made_up(program, difference=difference, root=root)
        problem = program.make_problem(series, 3, 40)
        back = problem.base + problem.scale * problem.targets
        back = back**2 if root else back
        for t in (5, 30, 56):
            np.testing.assert_allclose(back[t], series.values[t + 1 : t + 4], rtol=1e-5)
        assert not problem.targets[-1].any()

    def test_no_forecast_knows_what_comes_later(self, program):
        """Other values from step 45 on change no input before, and no forecast made before."""
        series = made_up(program)
        other = series._replace(values=np.where(np.arange(60) < 45, series.values, 99.0))
        network = program.make_network(4, 3, 3, 0.4)
        params = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 2))
        one, two = (
            program.forecast(network, params, program.make_problem(s, 3, 40), root=False)
            for s in (series, other)
        )
        np.testing.assert_array_equal(one.median[:45], two.median[:45])
        assert (one.median[45:] != two.median[45:]).all()


class TestEnsemble:
    def test_intervals_by_the_definition(self, program):
        """Mean and variance of an equal mixture of the members' Gaussians, in float64, member by member."""
        problem = program.make_problem(made_up(program), 3, 40)
        network = program.make_network(4, 3, 3, 0.4)
        params = jax.vmap(network.init)(jax.random.split(jax.random.key(1), 3))
        said = program.forecast(network, params, problem, root=False)
        members = [jax.tree.map(lambda leaf, e=e: leaf[e], params) for e in range(3)]
        each = [tuple(np.asarray(a, float) for a in program.predict(network, p, problem.xs)) for p in members]
        mean = sum(m for m, _ in each) / 3
        std = np.sqrt(sum(s**2 + m**2 for m, s in each) / 3 - mean**2)
        np.testing.assert_allclose(said.median, problem.base + problem.scale * mean, rtol=1e-5)
        low, high = said.intervals[0.95]
        width = 2 * NormalDist().inv_cdf(0.975) * std * problem.scale
        np.testing.assert_allclose(high - low, width, rtol=1e-4)

    def test_table_by_the_definition(self, program):
        series = made_up(program, n=30)
        problem = program.make_problem(series, 2, 20)
        rng = np.random.default_rng(0)
        median = series.values[np.minimum(problem.until, 29)] + rng.normal(size=(30, 2))
        intervals = {0.80: (median - 1.0, median + 1.0), 0.95: (median - 2.0, median + 2.0)}
        rows = program.evaluate(series.values, program.Forecasts(median, intervals), problem, 20, 4)
        y = series.values
        unit = np.mean([abs(y[t] - y[t - 4]) for t in range(4, 20)])
        for h in (1, 2):
            errors = np.array([abs(median[t, h - 1] - y[t + h]) for t in range(19, 30 - h)])
            naive = np.mean([abs(y[t + h - 4] - y[t + h]) for t in range(19, 30 - h)])
            row = rows[h - 1]
            assert row["mae"] == pytest.approx(errors.mean()) and row["mase"] == pytest.approx(
                errors.mean() / unit
            )
            assert row["naive_mae"] == pytest.approx(naive)
            assert row["inside_80%"] == pytest.approx((errors <= 1).mean())
            assert row["forecasts"] == 11 - h

    def test_loss_by_the_definition(self, program):
        rng = np.random.default_rng(0)
        mean, targets, std = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), rng.uniform(0.5, 2, (5, 3))
        counted = rng.random((5, 3)) < 0.5
        pdf = [
            NormalDist(m, s).pdf(z)
            for m, s, z in zip(mean[counted], std[counted], targets[counted], strict=True)
        ]
        said = program.gaussian_nll(*(a.astype(np.float32) for a in (mean, std, targets)), counted)
        assert float(said) == pytest.approx(-np.log(pdf).mean(), rel=1e-5)


class TestErrors:
    """One line on stderr, status 2, no traceback."""

    def refused(self, program, capsys, *arguments):
        capsys.readouterr()
        assert program.main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("forecast: ") and said.count("\n") == 1
        return said

    def test_files(self, program, capsys, tmp_path):
        path = tmp_path / "series.csv"
        more = ["--column", "sold", "--period", "4", "--out", tmp_path / "out"]
        assert "No such file" in self.refused(program, capsys, "--csv", path, *more)
        assert "needs --column NAME and --period N" in self.refused(program, capsys, "--csv", path)
        path.write_text("")
        assert "no rows" in self.refused(program, capsys, "--csv", path, *more)
        path.write_bytes(b"sold\n\xff\n")
        assert "not a CSV file in UTF-8" in self.refused(program, capsys, "--csv", path, *more)
        write_csv(path, [1, 2, 3], column="bought")
        assert "no column 'sold': it has 'when', 'bought'" in self.refused(
            program, capsys, "--csv", path, *more
        )
        write_csv(path, [1, "two", 3])
        assert "line 3: 'two' is not a number" in self.refused(program, capsys, "--csv", path, *more)
        write_csv(path, ["", "NA"])
        assert "has no numbers" in self.refused(program, capsys, "--csv", path, *more)
        write_csv(path, range(20))
        assert "20 values, too few" in self.refused(program, capsys, "--csv", path, *more)
        write_csv(path, range(-1, 60))
        assert "--root needs values from 0" in self.refused(program, capsys, "--csv", path, *more, "--root")
        assert not (tmp_path / "out").exists()

    def test_gaps_are_interpolated(self, program, tmp_path):
        path = write_csv(tmp_path / "series.csv", [1, "", 3, "nan", "NA", 6])
        args = program.make_parser().parse_args(["--csv", str(path), "--column", "sold", "--period", "2"])
        assert program.load(args).values.tolist() == [1, 2, 3, 4, 5, 6]

    def test_without_statsmodels(self, program, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "statsmodels", None)
        assert "pip install 'lstm_jax[examples]'" in self.refused(program, capsys)

    @pytest.mark.parametrize("arguments", ["--noise -1", "--members 0", "--series moon", "--period 0"])
    def test_numbers(self, program, capsys, arguments):
        assert arguments.split()[0] in self.refused(program, capsys, *arguments.split())


@pytest.mark.filterwarnings("default")  # of other packages, when they are imported
class TestRealSeries:
    @pytest.mark.parametrize(
        ("name", "n", "ends"), [("co2", 526, (316.1, 371.0)), ("sunspots", 309, (5.0, 2.9))]
    )
    def test_series(self, program, name, n, ends):
        pytest.importorskip("statsmodels", reason="the series are in statsmodels")
        series = program.load(program.make_parser().parse_args(["--series", name]))
        assert len(series.values) == len(series.times) == n and np.isfinite(series.values).all()
        assert (series.values[[0, -1]].round(1) == ends).all()

    @pytest.mark.slow
    def test_co2_is_better_than_seasonal_naive_at_every_horizon(self, program, tmp_path):
        """Half of its error; the whole run has less than a third. Intervals cover within 15 of 100."""
        pytest.importorskip("statsmodels", reason="the series are in statsmodels")
        assert program.main(["--members", "5", "--steps", "150", "--out", str(tmp_path)]) == 0
        rows = json.loads((tmp_path / "result.json").read_text())
        assert all(row["mae"] < 0.5 * row["naive_mae"] for row in rows)
        assert abs(rows[-1]["inside_80%"] - 0.80) < 0.15 and abs(rows[-1]["inside_95%"] - 0.95) < 0.1
