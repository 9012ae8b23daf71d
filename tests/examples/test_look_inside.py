"""look_inside.py: features of a text, findings, its files, its errors."""

import shutil

import _inside_features as features
import _inside_findings as findings
import char_lm
import jax
import look_inside as program
import numpy as np
import pytest
from _char_model import Model
from _char_plots import read_layer
from training import python_help
from training_runs import files, run

import lstm_jax

TINY = "--hidden 6 --layers 2 --window 10 --batch 4 --length 5 --steps 2 --valid-fraction 0.3".split()
FIGURES = {"eigenvalues.png", "gradients.png", "lyapunov.png", "state_space.png"}
GATED = FIGURES | {"gates.png", "memory.png", "saturation.png", "time_constants.png"}
TEXTS = {"viewer.html", "findings.txt"}


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(python_help()[:3000], "utf-8")
    return path


@pytest.fixture(scope="module")
def finished(text_file, tmp_path_factory):
    """The run folder of a tiny character model."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(char_lm, *TINY, "--text", text_file, "--out", folder) == 0
    return folder


class TestFeatures:
    TEXT = '\tif a("b c")[\n  x2: É\n\n"open\n\n«d»'

    def feature(self, name):
        return features.text_features(self.TEXT)[name].tolist()

    def at(self, name):
        """The characters at which a flag is 1."""
        return "".join(c for c, flag in zip(self.TEXT, self.feature(name), strict=True) if flag)

    def test_numbers(self):
        first, second, *rest = self.TEXT.splitlines(keepends=True)
        counted = [*range(1, len(first) + 1), *range(1, len(second) + 1), 1, *range(1, 7), 1, 1, 2, 3]
        assert self.feature("position in line") == counted
        assert len(rest) == 4
        indentation = self.feature("indentation")
        assert indentation[: len(first)] == [4] * len(first)
        assert indentation[len(first) :] == [1] + [2] * (len(second) - 1) + [0] * (1 + 6 + 1 + 3)
        assert self.feature("position in word")[:5] == [0, 1, 2, 0, 1]

    def test_flags(self):
        assert self.at("inside quotes") == '"b c"open\n«d'[:4] + '"open\n«d'
        assert self.at("inside brackets") == '("b c"[\n  x2: É\n\n"open\n\n«d»'
        assert self.at("is space") == "\t     "
        assert self.at("is line break") == "\n" * 5
        assert self.at("is capital") == "É"
        assert self.at("is vowel") == "iaÉoe"
        assert self.at("is digit") == "2"
        assert self.at("is punctuation") == '("")[:"«»'

    def test_closing_without_opening(self):
        assert features.text_features("a)(b")["inside brackets"].tolist() == [0, 0, 1, 1]


class TestFindings:
    T = 4000

    def states(self, rng, count=20):
        """Slow random units."""
        steps = rng.normal(size=(self.T, count))
        return np.cumsum(steps, axis=0) - 0.95 * np.cumsum(np.pad(steps, ((1, 0), (0, 0)))[:-1], axis=0)

    def find(self, states, **columns):
        return findings.find_units(states, columns, np.random.default_rng(1))

    def test_units_that_follow_a_feature_are_found(self):
        rng = np.random.default_rng(0)
        states, position = self.states(rng), np.arange(self.T) % 37
        flag = (rng.random(self.T) < 0.2).astype(float)
        states[:, 7] = -np.exp(position / 5) + 0.1 * rng.normal(size=self.T)
        states[:, [3, 4]] = flag[:, None] + 0.5 * rng.normal(size=(self.T, 2))
        found = {
            finding.feature: finding
            for finding in self.find(states, **{"position": position, "is digit": flag})
        }
        assert found["position"].unit == 7 and found["position"].holds
        assert found["position"].score < -0.9 and found["position"].check < -0.9
        assert found["is digit"].unit in (3, 4) and found["is digit"].holds and found["is digit"].others == 1
        assert not found["position"].is_flag and found["is digit"].is_flag

    def test_scores_follow_their_definitions(self):
        from scipy.stats import mannwhitneyu, spearmanr

        rng = np.random.default_rng(0)
        states, number, flag = (
            rng.normal(size=(200, 3)).round(1),
            rng.integers(0, 5, 200),
            rng.integers(0, 2, 200),
        )
        correlation, separation = self.find(states, **{"number": number, "is digit": flag})
        if correlation.is_flag:
            correlation, separation = separation, correlation
        for finding, part in ((correlation, slice(0, 100)), (correlation, slice(100, 200))):
            expected = spearmanr(states[part, finding.unit], number[part]).statistic
            assert (finding.score, finding.check)[part.start // 100] == pytest.approx(expected)
        high, low = (states[:100, separation.unit][flag[:100] == k] for k in (1, 0))
        auc = mannwhitneyu(high, low).statistic / (len(high) * len(low))
        assert (1 + separation.score) / 2 == pytest.approx(auc)

    def test_unrelated_features_are_no_findings(self):
        """Slow units and a slow feature have large scores by chance, which the shifts show."""
        rng = np.random.default_rng(2)
        states = np.cumsum(rng.normal(size=(self.T, 50)), axis=0)
        slow = np.cumsum(rng.normal(size=self.T))
        (finding,) = self.find(states, indentation=slow)
        assert abs(finding.score) > 0.5 and not finding.holds
        assert finding.chance > 0.5
        assert "not above chance on both halves" in str(finding)

    def test_a_unit_must_follow_the_feature_on_both_halves(self):
        rng = np.random.default_rng(0)
        states, position = self.states(rng), np.arange(self.T) % 37
        states[: self.T // 2, 7] = position[: self.T // 2]
        (finding,) = self.find(states, position=position)
        assert finding.unit == 7 and finding.score > 0.99 and not finding.holds

    def test_constant_features_are_left_out(self):
        assert self.find(self.states(np.random.default_rng(0)), flag=np.zeros(self.T)) == []
        for only_one_half in (np.arange(self.T) > 3000, np.arange(self.T) < 1000):
            assert self.find(self.states(np.random.default_rng(0)), flag=only_one_half.astype(float)) == []

    def test_constant_units_have_no_score(self):
        states = np.zeros((self.T, 2))
        (finding,) = self.find(states, position=np.arange(self.T) % 7)
        assert finding.score == finding.check == finding.chance == 0 and not finding.holds

    def test_sentences(self):
        finding = findings.Finding("is digit", True, 4, -0.8, -0.7, 0.3, 2)
        assert str(finding) == (
            "Unit 4 is low at digits: AUC 0.90, on the other half 0.85, by chance 0.65. "
            "Above chance: 2 other units."
        )
        finding = findings.Finding("indentation", False, 4, -0.8, -0.7, 0.3, 0)
        assert str(finding) == (
            "Unit 4 falls with the indentation: correlation −0.80, on the other half −0.70, by chance 0.30."
        )

    def test_units_are_counted_although_the_best_one_fails_the_check(self):
        """The unit with the largest score of the first half does not follow the feature in the second one."""
        rng = np.random.default_rng(0)
        states, position = self.states(rng), np.arange(self.T) % 37
        states[: self.T // 2, 7] = position[: self.T // 2]
        states[:, 3] = position + 2 * rng.normal(size=self.T)
        (finding,) = self.find(states, **{"position in line": position})
        assert finding.unit == 7 and not finding.holds and finding.others == 1
        assert str(finding).startswith("Unit 7 rises with the position in the line, but not above chance")
        assert str(finding).endswith(" Above chance: 1 other unit.")

    def test_every_flag_is_described(self):
        flags = {name for name in features.text_features("a") if name.startswith(("is ", "inside "))}
        assert flags == set(findings.PLACES)


class TestLayer:
    @pytest.mark.parametrize("index", [0, 1])
    def test_a_layer_alone_has_the_states_of_the_network(self, index):
        model = Model("abc", "lstm", 4, 2, 0, 0.1)
        params = model.init(jax.random.key(0))
        layer = read_layer(model, params, "abcabba", index)
        xs = jax.nn.one_hot(np.array([0, 1, 2, 0, 1, 1, 0]), 3)
        _, (_, carries) = lstm_jax.unroll(model.network(), params["layers"], xs, return_carries=True)
        np.testing.assert_allclose(layer.memory, carries[index][1], rtol=1e-6)
        _, ys = lstm_jax.unroll(layer.cell, layer.params, layer.xs[3:], layer.carry_before(3))
        np.testing.assert_allclose(ys, carries[index][0][3:], atol=1e-6)
        i, f, g, _ = layer.gates.gates
        before = np.pad(layer.memory, ((1, 0), (0, 0)))[:-1]
        np.testing.assert_allclose(f * before + i * g, layer.memory, atol=1e-6)


class TestRun:
    @pytest.mark.slow
    def test_files_and_output(self, finished, capsys):
        shutil.rmtree(finished / "inside")
        capsys.readouterr()
        assert run(program, finished, "--layer", 1) == 0
        assert files(finished / "inside") == GATED | TEXTS | {"cell.png"}
        for name in GATED:
            assert (finished / "inside" / name).read_bytes().startswith(b"\x89PNG")
        printed = capsys.readouterr().out
        assert (finished / "inside" / "findings.txt").read_text("utf-8") in printed
        assert "layer 1 of 2" in printed and "over 900 characters" in printed
        assert printed.rstrip().endswith(str(finished / "inside" / "viewer.html"))

    @pytest.mark.slow
    @pytest.mark.parametrize(("cell", "expected"), [("gru", GATED), ("rnn", FIGURES)])
    def test_other_cells(self, text_file, tmp_path, cell, expected):
        arguments = [*TINY, "--cell", cell, "--layers", 1, "--embedding", 3]
        assert run(char_lm, *arguments, "--text", text_file, "--out", tmp_path) == 0
        assert run(program, tmp_path) == 0
        assert files(tmp_path / "inside") == expected | TEXTS


class TestErrors:
    def test_no_run_folder(self, fails, tmp_path):
        assert "weights.safetensors" in fails(tmp_path)

    @pytest.mark.slow
    def test_layer(self, fails, finished):
        assert "2 recurrent layers" in fails(finished, "--layer", 3)
        assert "--layer" in fails(finished, "--layer", 0)

    @pytest.mark.slow
    def test_other_text(self, fails, finished, text_file):
        text = text_file.read_text("utf-8")
        text_file.write_text(text[:-1] + "\n", "utf-8")
        assert "the data differ" in fails(finished)
        text_file.write_text(text, "utf-8")

    @pytest.mark.slow
    def test_weights_alone_are_not_enough(self, fails, finished, tmp_path):
        shutil.copy(finished / "weights.safetensors", tmp_path)
        assert "config.json" in fails(tmp_path)
