"""forecast.py: its series, its targets, its forecasts, its run folder, its errors."""

import csv
import sys
from statistics import NormalDist

import forecast as program
import jax
import numpy as np
import pytest
from _forecast_data import seasonal_naive
from training import load_weights
from training_runs import files, read_json, run

TINY = "--members 2 --hidden 3 --batch 2 --horizon 3 --steps 25".split()
FILES = {
    "config.json", "forecast.csv", "forecast.png", "learning_curve.png", "metrics.jsonl", "result.json",
    "weights.safetensors",
}  # fmt: skip


def made_up(n=60, period=4, **options):
    """A series with a season, a trend and noise."""
    t = np.arange(n)
    values = 20 + 0.3 * t + 5 * np.sin(2 * np.pi * t / period) + np.random.default_rng(0).normal(size=n)
    looks = {"difference": True, "root": False} | options
    return program.Series("made up", "things", "step", t.astype(float), values, period, **looks)


def write_csv(path, values, column="sold"):
    lines = [f"when,{column}", *(f"{i},{value}" for i, value in enumerate(values))]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    path = write_csv(tmp_path_factory.mktemp("csv") / "series.csv", made_up().values)
    return *TINY, "--csv", path, "--column", "sold", "--period", 4


@pytest.mark.slow
class TestRun:
    def test_files(self, finished):
        assert files(finished) == FILES
        data = read_json(finished / "config.json")["data"]
        assert data["known"] == 40 and data["horizon"] == 3

    def test_table(self, finished):
        rows = read_json(finished / "result.json")
        assert [row["horizon"] for row in rows] == ["1", "2", "3", "all"]
        assert [row["forecasts"] for row in rows] == [20, 19, 18, 57]
        assert all(row["inside_80%"] <= row["inside_95%"] for row in rows)

    def test_future(self, finished):
        with open(finished / "forecast.csv") as file:
            rows = [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
        assert [row["steps_ahead"] for row in rows] == [1, 2, 3]
        for row in rows:
            assert row["low_95"] < row["low_80"] < row["median"] < row["high_80"] < row["high_95"]

    def test_networks_of_the_ensemble_differ(self, finished):
        init, keys = program.make_network(4, 3, 3, 0.4).init, jax.random.split(jax.random.key(0), 2)
        shapes = jax.eval_shape(jax.vmap(init), keys)
        _, params = load_weights(finished, "lstm_jax/forecast/1", lambda model: shapes)
        for leaf in jax.tree.leaves(params):
            assert leaf.shape[0] == 2 and bool((leaf[0] != leaf[1]).any())


class TestProblem:
    def test_seasonal_naive(self):
        naive = seasonal_naive(np.arange(10.0), horizon=7, period=3)
        assert naive[5].tolist() == [3, 4, 5, 3, 4, 5, 3]
        assert naive[0].tolist() == [0] * 7  # there is no value before the first one

    @pytest.mark.parametrize("difference", [True, False])
    @pytest.mark.parametrize("root", [True, False])
    def test_targets_can_be_inverted(self, difference, root):
        series = made_up(difference=difference, root=root)
        problem = program.make_problem(series, 3, 40)
        back = problem.base + problem.scale * problem.targets
        back = back**2 if root else back
        for t in (5, 30, 56):
            np.testing.assert_allclose(back[t], series.values[t + 1 : t + 4], rtol=1e-5)
        assert not problem.targets[-1].any()

    @pytest.mark.slow
    def test_forecasts_do_not_depend_on_later_values(self):
        """Different values from step 45 on change no forecast made before step 45."""
        series = made_up()
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
    @pytest.mark.slow
    def test_intervals_follow_the_definition(self):
        """Mean and variance of an equal mixture of the members' Gaussians, in float64."""
        problem = program.make_problem(made_up(), 3, 40)
        network = program.make_network(4, 3, 3, 0.4)
        params = jax.vmap(network.init)(jax.random.split(jax.random.key(1), 3))
        forecasts = program.forecast(network, params, problem, root=False)
        members = [jax.tree.map(lambda leaf, e=e: leaf[e], params) for e in range(3)]
        each = [tuple(np.asarray(a, float) for a in program.predict(network, p, problem.xs)) for p in members]
        mean = sum(m for m, _ in each) / 3
        std = np.sqrt(sum(s**2 + m**2 for m, s in each) / 3 - mean**2)
        np.testing.assert_allclose(forecasts.median, problem.base + problem.scale * mean, rtol=1e-5)
        low, high = forecasts.intervals[0.95]
        width = 2 * NormalDist().inv_cdf(0.975) * std * problem.scale
        np.testing.assert_allclose(high - low, width, rtol=1e-4)

    def test_table_follows_the_definition(self):
        series = made_up(n=30)
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

    def test_loss_follows_the_definition(self):
        rng = np.random.default_rng(0)
        mean, targets, std = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), rng.uniform(0.5, 2, (5, 3))
        counted = rng.random((5, 3)) < 0.5
        pdf = [
            NormalDist(m, s).pdf(z)
            for m, s, z in zip(mean[counted], std[counted], targets[counted], strict=True)
        ]
        loss = program.gaussian_nll(*(a.astype(np.float32) for a in (mean, std, targets)), counted)
        assert float(loss) == pytest.approx(-np.log(pdf).mean(), rel=1e-5)


class TestErrors:
    def test_files(self, fails, tmp_path):
        path = tmp_path / "series.csv"

        def read(*more):
            return fails("--csv", path, "--column", "sold", "--period", 4, "--out", tmp_path / "out", *more)

        assert "No such file" in read()
        assert "needs --column NAME and --period N" in fails("--csv", path)
        path.write_text("")
        assert "no rows" in read()
        path.write_bytes(b"sold\n\xff\n")
        assert "not a CSV file in UTF-8" in read()
        write_csv(path, [1, 2, 3], column="bought")
        assert "no column 'sold': it has 'when', 'bought'" in read()
        write_csv(path, [1, "two", 3])
        assert "line 3: 'two' is not a number" in read()
        write_csv(path, ["", "NA"])
        assert "contains no numbers" in read()
        write_csv(path, range(20))
        assert "20 values, too few" in read()
        write_csv(path, range(-1, 60))
        assert "--root needs values >= 0" in read("--root")
        assert not (tmp_path / "out").exists()

    def test_gaps_are_interpolated(self, tmp_path):
        path = write_csv(tmp_path / "series.csv", [1, "", 3, "nan", "NA", 6])
        args = program.make_parser().parse_args(["--csv", str(path), "--column", "sold", "--period", "2"])
        assert program.load(args).values.tolist() == [1, 2, 3, 4, 5, 6]

    def test_without_statsmodels(self, fails, monkeypatch):
        monkeypatch.setitem(sys.modules, "statsmodels", None)
        assert "pip install 'lstm_jax[examples]'" in fails()

    @pytest.mark.parametrize("arguments", ["--noise -1", "--members 0", "--series moon", "--period 0"])
    def test_options(self, fails, arguments):
        assert arguments.split()[0] in fails(*arguments.split())


@pytest.mark.filterwarnings("default")  # other packages raise warnings when they are imported
class TestRealSeries:
    @pytest.mark.parametrize(
        ("name", "n", "ends"), [("co2", 526, (316.1, 371.0)), ("sunspots", 309, (5.0, 2.9))]
    )
    def test_series(self, name, n, ends):
        pytest.importorskip("statsmodels", reason="the series need statsmodels")
        series = program.load(program.make_parser().parse_args(["--series", name]))
        assert len(series.values) == len(series.times) == n and np.isfinite(series.values).all()
        assert (series.values[[0, -1]].round(1) == ends).all()

    @pytest.mark.slow
    def test_co2_is_better_than_seasonal_naive_at_every_horizon(self, tmp_path):
        """At most half of its error (a complete run has less than a third), and plausible intervals."""
        pytest.importorskip("statsmodels", reason="the series need statsmodels")
        assert run(program, "--members", 5, "--steps", 150, "--out", tmp_path) == 0
        rows = read_json(tmp_path / "result.json")
        assert all(row["mae"] < 0.5 * row["naive_mae"] for row in rows)
        assert abs(rows[-1]["inside_80%"] - 0.80) < 0.15 and abs(rows[-1]["inside_95%"] - 0.95) < 0.1
