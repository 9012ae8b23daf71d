"""char_lm.py: its evaluation, its samples, its baselines, its run folder, its errors."""

import math
from pathlib import Path

import _char_model as models
import _char_plots as char_plots
import _char_text as texts
import char_lm as program
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from training import UserError, adam_with_warmup, python_help
from training_runs import files, read_json, rows, run, weights

import lstm_jax

TINY = "--hidden 8 --layers 2 --window 10 --batch 4 --lr 0.02 --length 30".split()
FILES = {"config.json", "gates.png", "inside", "learning_curve.png", "metrics.jsonl", "weights.safetensors"}


@pytest.fixture(scope="module")
def text():
    return python_help()[:3000]


@pytest.fixture(scope="module")
def text_file(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(scope="module")
def arguments(text_file):
    return *TINY, "--steps", 100, "--text", text_file


class TestRun:
    @pytest.mark.slow
    def test_files(self, finished):
        assert files(finished) == FILES
        config = read_json(finished / "config.json")
        assert config["arguments"]["hidden"] == 8 and config["versions"]["jax"] == jax.__version__

    @pytest.mark.slow
    def test_loss_decreases(self, finished):
        first, *_, last = measured = rows(finished)
        assert last["step"] == 100 and last["train_bits"] < first["train_bits"] - 0.5
        assert sum("valid_bits" in row for row in measured) == 10
        assert last["valid_bits"] == pytest.approx(last["valid_nats"] / math.log(2), abs=1e-4)

    @pytest.mark.slow
    def test_weights_have_flat_names(self, finished):
        model, _ = models.load(finished)
        V = len(model.vocabulary)
        assert {name: array.shape for name, array in weights(finished).items()} == {
            "layers.0.w_ih": (V, 32),
            "layers.0.w_hh": (8, 32),
            "layers.0.bias": (32,),
            "layers.1.w_ih": (8, 32),
            "layers.1.w_hh": (8, 32),
            "layers.1.bias": (32,),
            "layers.2.w": (8, V),
            "layers.2.bias": (V,),
        }

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "more",
        [
            "--cell gru --embedding 6 --layers 1 --dropout 0",
            "--cell rnn --layers 1 --epochs 0.1",
        ],
    )
    def test_other_networks(self, text_file, tmp_path, more, capsys):
        length = [] if "--epochs" in more else ["--steps", 3]
        assert run(program, *TINY, *more.split(), *length, "--text", text_file, "--out", tmp_path) == 0
        assert files(tmp_path) == FILES
        capsys.readouterr()
        assert run(program, "--sample-from", tmp_path, "--length", 5) == 0
        assert len(capsys.readouterr().out) == 5 + 1

    def test_demo_changes_defaults(self, monkeypatch):
        seen = []
        monkeypatch.setattr(program, "learn", seen.append)
        assert run(program, "--demo", "--hidden", 7) == 0
        assert seen[0].out == Path("runs/demo") and seen[0].hidden == 7 and seen[0].text is None


@pytest.mark.slow
class TestSampling:
    def sample(self, capsys, folder, *more):
        capsys.readouterr()
        assert run(program, "--sample-from", folder, "--length", 40, *more) == 0
        return capsys.readouterr().out.removesuffix("\n")

    def test_depends_on_the_seed(self, capsys, finished):
        first, again, other = (self.sample(capsys, finished, "--seed", seed) for seed in "112")
        assert first == again != other
        assert len(first) == 40

    def test_starts_with_the_prompt(self, capsys, finished):
        drawn = self.sample(capsys, finished, "--prompt", "The as")
        assert drawn.startswith("The as") and len(drawn) == 46

    def test_needs_only_the_weights(self, capsys, finished, tmp_path):
        (tmp_path / "weights.safetensors").write_bytes((finished / "weights.safetensors").read_bytes())
        assert self.sample(capsys, tmp_path) == self.sample(capsys, finished)

    def test_low_temperature_takes_the_most_probable_character(self, finished):
        """The logits of single steps equal those of one unroll."""
        model, params = models.load(finished)
        network, ids = model.network(), texts.encode("The ", model.vocabulary)
        drawn = np.asarray(models.sample(network, params, jax.random.key(0), ids, 20, 1e-6))
        xs = models.features(network, params, np.concatenate([ids, drawn]))
        logits = lstm_jax.unroll(network, params["layers"], xs)[1]
        assert np.argmax(logits[3:-1], -1).tolist() == drawn.tolist()


class TestTraining:
    def test_windows_continue_each_other(self):
        data = texts.windows(np.arange(100), batch=3, window=8)
        assert data.shape == (4, 9, 3)  # 4 windows of 8 characters and the next one, 3 streams
        assert (data[1:, 0] == data[:-1, -1]).all()
        streams = np.concatenate([data[:, :-1].transpose(2, 0, 1).reshape(3, -1), data[-1, -1:].T], axis=1)
        assert (np.diff(streams) == 1).all()
        assert streams[:, 0].tolist() == [0, 32, 64]

    def test_compiles_once(self, text):
        vocabulary = "".join(sorted(set(text)))
        model = models.Model(vocabulary, "lstm", 8, 1, 0, 0.1)
        network, params = model.network(), model.init(jax.random.key(0))
        optimizer = adam_with_warmup(0.01, 10, clip=1.0)
        train_step = jax.jit(program.make_train_step(network, optimizer, jax.random.key(1), 5))
        data = texts.windows(texts.encode(text, vocabulary), 4, 10)
        carry = network.initial_carry((4,), params["layers"])
        state = program.State(params, optimizer.init(params), carry, jnp.int32(0))
        for window in data[:3]:
            state, _ = train_step(state, window)
        assert train_step._cache_size() == 1
        assert int(state.step) == 3

    @pytest.mark.parametrize(
        ("cell", "length"), [("lstm", 30), pytest.param("gru", 9, marks=pytest.mark.slow), ("rnn", 8)]
    )
    def test_evaluation_counts_every_character_once(self, cell, length):
        model = models.Model("abcdef", cell, 5, 2, 0, 0.3)
        network, params = model.network(), model.init(jax.random.key(0))
        ids = np.random.default_rng(0).integers(0, 6, length).astype(np.int32)
        logits = lstm_jax.unroll(network, params["layers"], jax.nn.one_hot(ids[:-1], 6))[1]
        logits = np.asarray(logits, np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        direct = -log_p[np.arange(length - 1), ids[1:]].mean()
        assert float(models.evaluate(network, params, ids, 8)) == pytest.approx(direct, rel=1e-5)


class TestPlots:
    @pytest.mark.parametrize("length", [2, 50, 100, 5000])
    def test_the_excerpt_starts_with_a_line(self, length):
        text = ("a line of text\n" * 400)[:length]
        beginning, last = char_plots.excerpt(text)
        assert text.startswith(beginning)
        assert len(beginning) < 600 and last == min(72, length)
        assert beginning[-last:].startswith("a line"[:last])

    def test_units_are_ordered_from_slow_to_fast(self):
        t = np.arange(72)[:, None]
        periods = np.random.default_rng(0).permutation([3, 5, 9, 13, 21, 33, 40, 50, 60, 72])
        units = char_plots.choose_units(np.sin(2 * np.pi * t / periods), count=5)
        assert len(units) == 5
        assert (np.diff(periods[units]) < 0).all()


class TestBaselines:
    TRAIN = np.array([0, 1, 2, 0, 1, 3, 0, 1, 2, 2, 1, 0, 1, 2])  # character 4 of the five does not occur

    def test_unigram_is_the_entropy_of_smoothed_counts(self):
        held_out = np.array([0, 1, 1, 4])
        n, u, V = len(self.TRAIN), 4, 5
        p = (np.bincount(self.TRAIN, minlength=V) + u / V) / (n + u)
        q = np.bincount(held_out, minlength=V) / len(held_out)
        expected = -(q * np.log2(p)).sum()
        assert texts.bits(texts.witten_bell(self.TRAIN, held_out, V, 1)) == pytest.approx(expected)

    @pytest.mark.parametrize("order", [1, 2, 3, 5])
    @pytest.mark.parametrize("history", [[0, 1], [2, 2, 1, 0], [4, 0, 1], [4, 4, 4], []], ids=str)
    def test_probabilities_sum_to_one(self, order, history):
        each = [texts.witten_bell(self.TRAIN, np.array([*history, x]), 5, order)[-1] for x in range(5)]
        assert sum(each) == pytest.approx(1)
        assert min(each) > 0

    @pytest.mark.parametrize("order", [2, 3, 4])
    def test_ngrams_follow_the_definition(self, order):
        rng = np.random.default_rng(1)
        train, held_out = rng.integers(0, 4, 60), rng.integers(0, 5, 40)
        text = [*train, *held_out]

        def p(history, x):
            """Count in the text, for each length of the history."""
            value = 1 / 5
            for k in range(len(history) + 1):
                h = history[len(history) - k :]
                after = [train[i + k] for i in range(60 - k) if list(train[i : i + k]) == h]
                if after:
                    u = len(set(after))
                    value = (after.count(x) + u * value) / (len(after) + u)
            return value

        expected = [p(text[t - order + 1 : t], text[t]) for t in range(60, 100)]
        assert texts.witten_bell(train, held_out, 5, order) == pytest.approx(expected)

    def test_paragraphs_are_unique(self):
        paragraphs = python_help().split("\n\n")
        assert len(paragraphs) == len(set(paragraphs)) > 1000


class TestErrors:
    def test_text(self, fails, tmp_path):
        def read(name, data=None):
            if data is not None:
                (tmp_path / name).write_bytes(data)
            return fails("--text", tmp_path / name, "--out", tmp_path / "out")

        assert "No such file" in read("missing.txt")
        assert "directory" in read(".")
        assert "is empty" in read("empty.txt", b"")
        assert "byte 3 (0xff)" in read("latin.txt", b"abc\xff")
        assert not (tmp_path / "out").exists()

    def test_short_text(self, fails, tmp_path):
        """The error contains the smallest sufficient length."""
        (tmp_path / "text.txt").write_bytes(b"abcdef" * 7)
        error = fails(*TINY, "--text", tmp_path / "text.txt", "--out", tmp_path / "out")
        assert "has 42 characters" in error
        needed = int(error.split(" need ")[1].split(";")[0])
        train, held_out = texts.split(np.zeros(needed, np.int32), 0.05, batch=4, window=10)
        assert len(train) == 41 and len(held_out) == 2
        with pytest.raises(UserError):
            texts.split(np.zeros(needed - 1, np.int32), 0.05, batch=4, window=10)

    @pytest.mark.slow
    def test_run_folder(self, fails, tmp_path, finished):
        path = tmp_path / "weights.safetensors"

        def sample(folder=tmp_path):
            return fails("--sample-from", folder)

        assert "weights.safetensors" in sample()
        assert "weights.safetensors" in sample(tmp_path / "missing")
        path.write_bytes(b"not this")
        assert "damaged" in sample()
        with safetensors.safe_open(finished / "weights.safetensors", "numpy") as file:
            complete = file.metadata()
        for metadata, message in [
            (None, "not written by this program"),
            ({"format": "lstm_jax/char_lm/1"}, "damaged"),
            (complete, "damaged"),
        ]:
            safetensors.numpy.save_file({"w": np.zeros(3)}, path, metadata)
            assert message in sample()

    @pytest.mark.slow
    def test_prompt_with_unknown_characters(self, fails, finished):
        assert "'Ä', 'Ö'" in fails("--sample-from", finished, "--prompt", "The ÄÖ")

    @pytest.mark.parametrize(
        "arguments",
        [
            "--hidden 0", "--layers -1", "--window 2.5", "--batch none", "--epochs 0", "--epochs nan",
            "--lr inf", "--dropout 1", "--valid-fraction 0", "--valid-fraction 1", "--temperature 0",
            "--length 0", "--seed -1", "--clip -1", "--steps 0", "--cell lstm2", "--epochs 1 --steps 1",
            "--unknown", "--embedding x",
        ],
    )  # fmt: skip
    def test_options(self, fails, arguments):
        assert arguments.split()[0] in fails(*arguments.split())

    def test_out_is_a_file(self, fails, text_file):
        assert "run folder" in fails(*TINY, "--text", text_file, "--out", text_file)

    def test_infinite_loss(self, fails, text_file, tmp_path):
        error = fails(*TINY, "--lr", "1e38", "--steps", 30, "--text", text_file, "--out", tmp_path)
        assert "at step" in error and "--lr 3.3e+37" in error
        assert not (tmp_path / "weights.safetensors").exists()
