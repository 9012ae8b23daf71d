"""forecast.py: its series, its targets, its forecasts, its run folder, its errors."""

import csv
import math
import sys
from fractions import Fraction

import forecast as program
import jax
import numpy as np
import pytest
from _forecast_data import FOLDS, linear_autoregression, make_folds, make_problem, seasonal_naive
from _forecast_intervals import COVERAGES, calibrate, conformal_quantile, correct, evaluate, track
from training import UserError, load_weights
from training_runs import files, read_json, run

TINY = "--networks 1 --hidden 3 --batch 2 --horizon 3 --steps 25".split()
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


def networks_of(horizon=3, period=4, networks=2):
    """A network, and weights of an ensemble with readouts that differ from their initial zeros."""
    network = program.make_network(period, 3, horizon, 0.4)
    params = jax.vmap(network.init)(jax.random.split(jax.random.key(0), networks * FOLDS))
    rng = np.random.default_rng(0)
    return network, jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype(leaf.dtype), params)


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
        """Rows of four methods for three horizons and all of them."""
        rows = read_json(finished / "result.json")
        assert len(rows) == 4 * 4
        assert [row["horizon"] for row in rows[:4]] == ["1", "2", "3", "all"]
        assert [row["forecasts"] for row in rows[:4]] == [20, 19, 18, 57]
        methods = ["LSTM ensemble", "linear autoregression", "seasonal-naive with drift", "seasonal-naive"]
        assert [row["method"] for row in rows[::4]] == methods
        assert all(row["inside_80%"] <= row["inside_95%"] for row in rows)
        problem = make_problem(made_up(), 3, 40)
        linear = linear_autoregression(problem, make_folds(problem))
        corrected = problem.value(correct(problem, make_folds(problem).held_out(linear)))
        errors = [abs(corrected[t, 2] - made_up().values[t + 3]) for t in range(39, 57)]
        assert rows[6]["mae"] == pytest.approx(np.mean(errors))

    def test_future(self, finished):
        with open(finished / "forecast.csv") as file:
            rows = [{name: float(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
        assert [row["steps_ahead"] for row in rows] == [1, 2, 3]
        for row in rows:
            assert row["low_95"] < row["low_80"] < row["median"] < row["high_80"] < row["high_95"]

    def test_networks_of_the_ensemble_differ(self, finished):
        init, keys = program.make_network(4, 3, 3, 0.4).init, jax.random.split(jax.random.key(0), FOLDS)
        shapes = jax.eval_shape(jax.vmap(init), keys)
        _, params = load_weights(finished, "lstm_jax/forecast/2", lambda model: shapes)
        for leaf in jax.tree.leaves(params):
            assert leaf.shape[0] == FOLDS and bool((leaf[0] != leaf[1]).any())


def test_the_forecast_after_the_end_is_that_of_the_last_origin():
    median = np.arange(12.0).reshape(4, 3)
    intervals = {0.80: (median - 1, median + 1), 0.95: (median - 2, median + 2)}
    lines = program.future(made_up(), program.Forecasts(median, intervals)).splitlines()
    assert lines[0] == "steps_ahead,low_95,low_80,median,high_80,high_95"
    assert lines[1:] == ["1,7,8,9,10,11", "2,8,9,10,11,12", "3,9,10,11,12,13"]


class TestProblem:
    def test_seasonal_naive(self):
        naive = seasonal_naive(np.arange(10.0), horizon=7, period=3)
        assert naive[5].tolist() == [3, 4, 5, 3, 4, 5, 3]
        assert naive[0].tolist() == [0] * 7  # there is no value before the first one

    @pytest.mark.parametrize("difference", [True, False])
    @pytest.mark.parametrize("root", [True, False])
    def test_targets_can_be_inverted(self, difference, root):
        series = made_up(difference=difference, root=root)
        problem = make_problem(series, 3, 40)
        back = problem.value(problem.targets)
        np.testing.assert_allclose(problem.value(problem.naive), seasonal_naive(series.values, 3, 4))
        for t in (5, 30, 56):
            np.testing.assert_allclose(back[t], series.values[t + 1 : t + 4], rtol=1e-5)
        assert not problem.targets[-1].any()


class TestFolds:
    def test_every_known_origin_is_in_one_fold_whose_models_do_not_train_on_its_targets(self):
        problem = make_problem(made_up(), 3, 40)
        folds = make_folds(problem)
        assert folds.fold[:7].tolist() == [-1] * 7 and folds.fold[39:].tolist() == [-1] * 21
        assert set(folds.fold[7:39]) == set(range(FOLDS))
        assert folds.validation.sum(0).tolist() == [32, 31, 30]
        for k in range(FOLDS):
            held_out = folds.validation & (folds.fold == k)[:, None]
            trained = folds.training[k]
            assert trained.any() and (problem.until[trained] < 40).all()
            assert not set(problem.until[trained]) & set(problem.until[held_out])

    @pytest.mark.parametrize("difference", [True, False])
    @pytest.mark.parametrize(("period", "horizon"), [(1, 1), (4, 20), (20, 4), (20, 20)])
    def test_the_fewest_values_are_enough(self, period, horizon, difference):
        """Each fold has targets to train on, and scores for an interval of 95 %, at each horizon."""
        n = program.fewest_values(period, horizon)
        folds = make_folds(make_problem(made_up(n, period, difference=difference), horizon, n * 2 // 3))
        assert folds.training.any(axis=1).all() and folds.validation.sum(0).min() >= 19
        assert n - n * 2 // 3 >= 2 * horizon

    def test_held_out_predictions(self):
        problem = make_problem(made_up(), 3, 40)
        folds = make_folds(problem)
        by_fold = np.random.default_rng(0).normal(size=(FOLDS, 60, 3))
        predictions = folds.held_out(by_fold)
        for t in (7, 20, 38):
            np.testing.assert_array_equal(predictions[t], by_fold[folds.fold[t], t])
        np.testing.assert_allclose(predictions[45], sum(by_fold[:, 45]) / FOLDS)

    def test_autoregression(self):
        """It recovers the coefficients of an autoregression, and does not use the targets of its fold."""
        rng, values = np.random.default_rng(0), [0.0, 0.0]
        for noise in rng.normal(size=2000):
            values.append(1.2 * values[-1] - 0.6 * values[-2] + noise)
        series = made_up(n=2002, period=2, difference=False)._replace(values=np.array(values))
        problem = make_problem(series, 2, 1500)
        folds = make_folds(problem)
        linear = linear_autoregression(problem, folds)
        expected = 1.2 * series.values - 0.6 * np.roll(series.values, 1)
        error = problem.base[1600:, 0] + problem.scale * linear[0, 1600:, 0] - expected[1600:]
        assert np.abs(error).mean() < 0.1  # the standard deviation of the noise is 1
        held_out = folds.validation & (folds.fold == 0)[:, None]
        other = problem._replace(targets=np.where(held_out, 99.0, problem.targets))
        changed = linear_autoregression(other, folds)
        np.testing.assert_array_equal(linear[0], changed[0])
        assert (linear[1:] != changed[1:]).any(axis=(1, 2)).all()

    @pytest.mark.slow
    def test_networks_do_not_train_on_the_targets_of_their_fold(self, monkeypatch):
        def steps(step, state, batch_of, **_):
            for i in range(3):
                state, _ = step(state, batch_of(i))
            return state._replace(best=state.params)

        monkeypatch.setattr(program, "fit", steps)
        args = program.make_parser().parse_args([*TINY, "--batch", "16"])
        problem = make_problem(made_up(), 3, 40)
        folds, network = make_folds(problem), program.make_network(4, 3, 3, 0.4)
        targets = np.repeat(problem.targets[None], FOLDS, axis=0)
        held_out = folds.validation & (folds.fold == 0)[:, None]
        one, two = (
            program.train(args, None, network, problem, folds, t)
            for t in (targets, np.where(held_out | (problem.until >= 40), -targets, targets))
        )
        biases = [params[1].bias for params in (one, two)]
        np.testing.assert_array_equal(biases[0][0], biases[1][0])
        assert (biases[0][1:] != biases[1][1:]).any(axis=1).all()

    def train(self, monkeypatch, fit, *words):
        """``program.train`` with another ``fit``, on the series of these tests."""
        monkeypatch.setattr(program, "fit", fit)
        args = program.make_parser().parse_args([*TINY, *words])
        problem, network = make_problem(made_up(), 3, 40), program.make_network(4, 3, 3, 0.4)
        targets = np.repeat(problem.targets[None], FOLDS, axis=0)
        return program.train(args, None, network, problem, make_folds(problem), targets)

    def test_the_weights_of_the_best_evaluation_are_returned(self, monkeypatch):
        def fit(step, state, batch_of, *, after_evaluation, **_):
            rows = []
            for loss in (3.0, 1.0, 2.0):
                params = jax.tree.map(lambda leaf, loss=loss: np.full_like(leaf, loss), state.params)
                rows += [{"loss": 0.0}, {"loss": 0.0, "valid_loss": loss}]
                state = after_evaluation(state._replace(params=params), rows)
            return state

        assert all((leaf == 1).all() for leaf in jax.tree.leaves(self.train(monkeypatch, fit)))

    @pytest.mark.slow
    def test_evaluations_use_the_targets_of_the_left_out_fold(self, monkeypatch):
        problem, (network, params) = make_problem(made_up(), 3, 40), networks_of(networks=1)
        folds, losses = make_folds(problem), []
        for k in range(FOLDS):
            of_fold = jax.tree.map(lambda leaf, k=k: leaf[k], params)
            errors = np.abs(program.predict(network, of_fold, problem.xs) - problem.targets)
            losses.append(errors[folds.validation & (folds.fold == k)[:, None]].mean())

        def fit(step, state, batch_of, *, evaluate, **_):
            assert evaluate(state._replace(params=params))["valid_loss"] == pytest.approx(np.mean(losses))
            return state

        self.train(monkeypatch, fit)

    @pytest.mark.slow
    def test_seeds_and_steps_change_all_random_numbers(self, monkeypatch):
        found = []

        def fit(step, state, batch_of, **_):
            params = jax.tree.map(lambda leaf: leaf + 0.1, state.params)  # the readout's are 0 at first
            states = (state._replace(params=params, step=i) for i in (0, 1))
            one, two = (step(state, batch_of(0))[1]["loss"] for state in states)
            assert one != two  # only the noise differs
            assert (batch_of(0) != batch_of(1)).any()
            found.append((batch_of(0), state.params[0].w_ih))
            return state

        for seed in ("0", "1"):
            self.train(monkeypatch, fit, "--seed", seed, "--batch", "16")
        for one, two in zip(*found, strict=True):
            assert (one != two).any()

    def test_targets_of_training_have_unit_variance(self, monkeypatch, tmp_path, arguments):
        """They are divided by the RMS of the errors in the targets that the networks of a fold train on."""

        def train(args, run, network, problem, folds, targets):
            rms = np.sqrt((targets**2).mean(1, where=folds.training))
            np.testing.assert_allclose(rms, 1.0)
            raise UserError("enough")

        monkeypatch.setattr(program, "train", train)
        assert run(program, *arguments, "--out", tmp_path) == 2

    @pytest.mark.slow
    def test_ensemble_follows_the_definition(self):
        """The networks of all folds after the known values; those of the origin's fold before, in float64."""
        problem = make_problem(made_up(), 3, 40)
        folds, (network, params) = make_folds(problem), networks_of()
        rng = np.random.default_rng(0)
        linear, rms = rng.normal(size=(FOLDS, 60, 3)), rng.uniform(1, 2, size=(FOLDS, 1, 3))
        forecast = program.ensemble(network, params, problem, folds, linear, rms)
        each_params = [jax.tree.map(lambda leaf, e=e: leaf[e], params) for e in range(2 * FOLDS)]
        outputs = [np.asarray(program.predict(network, one, problem.xs), float) for one in each_params]
        for t in (7, 20, 38, 50):
            chosen = [e for e in range(2 * FOLDS) if t > 39 or e % FOLDS == folds.fold[t]]
            each = [linear[e % FOLDS, t] + rms[e % FOLDS, 0] * outputs[e][t] for e in chosen]
            np.testing.assert_allclose(forecast[t], sum(each) / len(each), rtol=1e-5, atol=1e-6)

    def test_loss_follows_the_definition(self):
        rng = np.random.default_rng(0)
        predictions, targets = rng.normal(size=(2, 5, 3))
        counted = rng.random((5, 3)) < 0.5
        expected = np.mean([abs(p - z) for p, z in zip(predictions[counted], targets[counted], strict=True)])
        loss = program.absolute_error(predictions, np.where(counted, targets, np.inf), counted)
        assert float(loss) == pytest.approx(expected, rel=1e-6)
        assert float(program.absolute_error(predictions, targets, np.zeros((5, 3), bool))) == 0


class TestCorrection:
    def test_correction_follows_the_definition(self):
        """The weighted mean of the errors of the forecasts for t and before, by an explicit sum."""
        problem = make_problem(made_up(), 3, 40)
        median = np.random.default_rng(0).normal(size=(60, 3))
        corrected = correct(problem, median, periods=2.0)
        decay = 0.5 ** (1 / 8)
        for t, h in ((7, 1), (8, 1), (9, 3), (10, 3), (39, 2), (59, 3)):
            errors = [problem.targets[s, h - 1] - median[s, h - 1] for s in range(7, t - h + 1)]
            weights = (1 - decay) * decay ** np.arange(len(errors))[::-1]
            assert corrected[t, h - 1] - median[t, h - 1] == pytest.approx(weights @ errors)

    def test_correction_removes_a_constant_error(self):
        """After n known errors of 1, an error of decay^n remains."""
        problem = make_problem(made_up(), 3, 40)
        error = problem.targets - correct(problem, problem.targets - 1, periods=1.0)
        np.testing.assert_allclose(error[7:57, 0], 0.5 ** (np.arange(50) / 4))


class TestIntervals:
    @pytest.mark.parametrize("coverage", COVERAGES)
    @pytest.mark.parametrize("n", [19, 20, 39, 100])
    def test_quantile_covers_an_exchangeable_score_exactly(self, n, coverage):
        """Each of n + 1 scores is equally likely to be the new one: r of them are at most the quantile."""
        scores = np.random.default_rng(n).exponential(size=n + 1)
        inside = sum(scores[i] <= conformal_quantile(np.delete(scores, i), coverage) for i in range(n + 1))
        assert inside == math.ceil((n + 1) * Fraction(str(coverage)))

    @pytest.mark.parametrize("coverage", COVERAGES)
    def test_quantile_covers_new_scores(self, coverage):
        """The fraction of new scores inside, within four standard deviations of the binomial law."""
        rng, repeats = np.random.default_rng(0), 4000
        scores = rng.gamma(0.5, size=(repeats, 40))
        inside = np.mean([row[-1] <= conformal_quantile(row[:-1], coverage) for row in scores])
        assert abs(inside - coverage) < 4 * math.sqrt(coverage * (1 - coverage) / repeats)

    def test_too_few_scores(self):
        assert conformal_quantile(np.arange(18.0), 0.95) == np.inf
        assert conformal_quantile(np.arange(19.0), 0.95) == 18

    @pytest.mark.parametrize("rate", [0.1, 0.5])
    def test_coverage_of_tracked_quantiles_follows_the_law(self, rate):
        """For scores that double: coverage - c = (first q - last q) / (rate first q N), at every horizon."""
        n, H, start, coverage = 150, 4, 30, 0.8
        scores = np.random.default_rng(0).exponential(size=(n, H)) * np.linspace(1, 2, n)[:, None]
        first = np.array([1.0, 1.2, 1.4, 1.6])
        quantiles = track(scores, first, start, coverage, rate)
        np.testing.assert_array_equal(quantiles[start], first)
        for h in range(1, H + 1):
            origins = np.arange(start, n - h)
            inside = (scores[origins, h - 1] <= quantiles[origins, h - 1]).mean()
            gap = (first[h - 1] - quantiles[-1, h - 1]) / (rate * first[h - 1] * len(origins))
            assert inside - coverage == pytest.approx(gap, abs=1e-12)

    def test_quantiles_do_not_depend_on_later_scores(self):
        """At t only the scores of forecasts for t and before are known."""
        n, H, start, now = 60, 3, 30, 45
        scores = np.random.default_rng(0).exponential(size=(n, H))
        known = np.arange(n)[:, None] + np.arange(1, H + 1) <= now
        later = np.where(known, scores, 99.0)
        one, two = (track(s, np.ones(H), start, 0.8, 0.2) for s in (scores, later))
        np.testing.assert_array_equal(one[: now + 1], two[: now + 1])
        assert (one[now + 1] != two[now + 1]).any()
        assert (track(scores, np.ones(H), start, 0.8, 0.0)[start:] == 1).all()

    def test_intervals_of_smaller_coverage_are_inside_the_others(self):
        """Errors between the first two quantiles increase the 80 % quantiles and decrease the others."""
        problem = make_problem(made_up(), 3, 40)
        errors = np.random.default_rng(0).normal(size=(60, 3))
        problem = problem._replace(targets=np.where(np.arange(60)[:, None] < 37, errors, 1.5))
        intervals = calibrate(problem, make_folds(problem), np.zeros((60, 3)), 0.5).intervals
        (low80, high80), (low95, high95) = (intervals[coverage] for coverage in COVERAGES)
        assert (low95[39:] <= low80[39:]).all() and (high80[39:] <= high95[39:]).all()

    def test_no_interval_is_negative(self):
        """After enough values inside, the quantiles of the test part would be negative."""
        problem = make_problem(made_up(), 3, 40)
        errors = np.random.default_rng(0).normal(size=(60, 3))
        problem = problem._replace(targets=np.where(np.arange(60)[:, None] < 37, errors, 1e-6))
        intervals = calibrate(problem, make_folds(problem), np.zeros((60, 3)), 1.0).intervals
        widths = [(high - low)[39:] for low, high in intervals.values()]
        assert all((width >= 0).all() for width in widths) and (widths[0] == 0).any()

    @pytest.mark.parametrize("corrected", [False, True])
    @pytest.mark.parametrize("rate", [0.0, 0.2])
    def test_intervals_do_not_depend_on_later_values(self, rate, corrected):
        """Different values from step 45 on, in the test part, change no interval of an earlier origin."""
        series = made_up(difference=corrected)
        values = np.where(np.arange(60) < 45, series.values, 99.0)
        network, params = networks_of()

        def forecasts(series):
            problem = make_problem(series, 3, 40)
            folds = make_folds(problem)
            linear = linear_autoregression(problem, folds)
            median = program.ensemble(network, params, problem, folds, linear, np.ones((FOLDS, 1, 3)))
            return calibrate(problem, folds, correct(problem, median) if corrected else median, rate)

        one, two = forecasts(series), forecasts(series._replace(values=values))
        np.testing.assert_array_equal(one.median[:45], two.median[:45])
        assert (one.median[45:] != two.median[45:]).all()
        for coverage in COVERAGES:
            for end, other in zip(one.intervals[coverage], two.intervals[coverage], strict=True):
                np.testing.assert_array_equal(end[39:45], other[39:45])
            widths = [high[39:] - low[39:] for low, high in (f.intervals[coverage] for f in (one, two))]
            if rate == 0:  # calibrated on the known values only
                np.testing.assert_allclose(*widths, rtol=1e-9)

    def test_calibration(self):
        """Half of a fixed interval is the conformal quantile of the held-out errors of its horizon."""
        problem = make_problem(made_up(), 3, 40)
        folds = make_folds(problem)
        median = problem.targets + np.random.default_rng(0).normal(size=(60, 3))
        low, high = calibrate(problem, folds, median, 0.0).intervals[0.80]
        for h in (1, 2, 3):
            errors = sorted(abs(median[t, h - 1] - problem.targets[t, h - 1]) for t in range(7, 40 - h))
            q = errors[math.ceil(0.8 * (len(errors) + 1)) - 1]
            np.testing.assert_allclose(high[39:, h - 1] - low[39:, h - 1], 2 * problem.scale * q)

    def test_metrics_follow_the_definition(self):
        series = made_up(n=30)
        problem = make_problem(series, 2, 20)
        rng = np.random.default_rng(0)
        median = series.values[np.minimum(problem.until, 29)] + rng.normal(size=(30, 2))
        intervals = {0.80: (median - 1.0, median + 1.0), 0.95: (median - 2.0, median + 2.0)}
        rows = evaluate(series.values, program.Forecasts(median, intervals), problem, 4)
        y = series.values
        unit = np.mean([abs(y[t] - y[t - 4]) for t in range(4, 20)])
        for h in (1, 2):
            errors = np.array([abs(median[t, h - 1] - y[t + h]) for t in range(19, 30 - h)])
            row = rows[h - 1]
            assert row["mae"] == pytest.approx(errors.mean())
            assert row["mase"] == pytest.approx(errors.mean() / unit)
            assert row["inside_80%"] == pytest.approx((errors <= 1).mean())
            assert row["width_95%"] == pytest.approx(4)
            assert row["score_80%"] == pytest.approx(np.mean([2 + 10 * max(e - 1, 0) for e in errors]))
            assert row["forecasts"] == 11 - h


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
        assert "--column needs --csv" in fails("--column", "sold")
        write_csv(path, range(20))
        assert "20 values, too few for a period of 4 and a horizon of 4: use at least 66" in read()
        assert "20 values, too few for a period of 30" in read("--period", 30)
        write_csv(path, range(119))
        assert "use at least 120" in read("--period", 10, "--horizon", 10)
        write_csv(path, [1, 2, 3, 4] * 20)
        assert "repeats itself exactly with the period 4" in read()
        write_csv(path, range(-1, 80))
        assert "--root needs values >= 0" in read("--root")
        assert not (tmp_path / "out").exists()

    def test_gaps_are_interpolated(self, tmp_path):
        path = write_csv(tmp_path / "series.csv", ["", 1, "", 3, "nan", "NA", 6, "", ""])
        args = program.make_parser().parse_args(["--csv", str(path), "--column", "sold", "--period", "2"])
        series = program.load(args)
        assert series.values.tolist() == series.times.tolist() == [1, 2, 3, 4, 5, 6]

    def test_without_statsmodels(self, fails, monkeypatch):
        monkeypatch.setitem(sys.modules, "statsmodels", None)
        assert "pip install 'lstm_jax[examples]'" in fails()

    @pytest.mark.parametrize(
        "arguments", ["--noise -1", "--networks 0", "--rate -1", "--series moon", "--period 0"]
    )
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
    def test_co2(self, tmp_path):
        """At most half of the seasonal-naive error (a complete run has less than a third), and coverage."""
        pytest.importorskip("statsmodels", reason="the series need statsmodels")
        assert run(program, "--networks", 1, "--steps", 60, "--out", tmp_path) == 0
        rows = read_json(tmp_path / "result.json")
        lstm, naive = (
            [row for row in rows if row["method"] == method] for method in ("LSTM ensemble", "seasonal-naive")
        )
        assert len(lstm) == 13
        for row, baseline in zip(lstm, naive, strict=True):
            assert row["mae"] < 0.5 * baseline["mae"]
            assert abs(row["inside_80%"] - 0.80) < 0.04 and abs(row["inside_95%"] - 0.95) < 0.07
