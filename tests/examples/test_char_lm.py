"""The character model of examples/: its evaluation, its baselines, what it writes, what it refuses."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import lstm_jax

PROGRAM = "char_lm"
TINY = "--hidden 8 --layers 2 --window 10 --batch 4 --lr 0.02 --length 30".split()
FILES = {"config.json", "gates.png", "learning_curve.png", "metrics.jsonl", "weights.safetensors"}


pytestmark = pytest.mark.usefixtures("as_users_have_it")


@pytest.fixture(scope="module")
def char_lm(program):
    return program


@pytest.fixture(scope="module")
def text(char_lm):
    return char_lm.python_help()[:3000]


@pytest.fixture(scope="module")
def folder(text, tmp_path_factory):
    """With the text."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text(text, "utf-8")
    return folder


@pytest.fixture(scope="module")
def run(char_lm, folder):
    """The folder with a finished run, too."""
    arguments = [*TINY, "--steps", "100", "--text", str(folder / "text.txt"), "--out", str(folder / "out")]
    assert char_lm.main(arguments) == 0
    return folder


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class TestRun:
    @pytest.mark.slow
    def test_leaves_all_its_files_and_nothing_else(self, run):
        assert {path.name for path in (run / "out").iterdir()} == FILES
        for name in ("learning_curve.png", "gates.png"):
            assert (run / "out" / name).read_bytes().startswith(b"\x89PNG")
        said = json.loads((run / "out" / "config.json").read_text())
        assert said["arguments"]["hidden"] == 8 and said["versions"]["jax"] == jax.__version__

    @pytest.mark.slow
    def test_loss_goes_down(self, run):
        rows = metrics(run / "out")
        assert rows[-1]["step"] == 100
        assert rows[-1]["train_bits"] < rows[0]["train_bits"] - 0.5
        assert sum("valid_bits" in row for row in rows) == 10
        assert rows[-1]["valid_bits"] == pytest.approx(rows[-1]["valid_nats"] / math.log(2), abs=1e-4)

    @pytest.mark.slow
    def test_weights_have_flat_names(self, char_lm, run):
        arrays = safetensors.numpy.load_file(run / "out" / "weights.safetensors")
        model, _ = char_lm.load(run / "out")
        V = len(model.vocabulary)
        assert {name: array.shape for name, array in arrays.items()} == {
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
    def test_other_networks(self, char_lm, run, tmp_path, more, capsys):
        length = [] if "--epochs" in more else ["--steps", "3"]
        arguments = [*TINY, *more.split(), *length, "--text", str(run / "text.txt"), "--out", str(tmp_path)]
        assert char_lm.main(arguments) == 0
        assert {path.name for path in tmp_path.iterdir()} == FILES
        capsys.readouterr()
        assert char_lm.main(["--sample-from", str(tmp_path), "--length", "5"]) == 0
        assert len(capsys.readouterr().out) == 5 + 1

    def test_demo_is_other_defaults(self, char_lm, monkeypatch):
        seen = []
        monkeypatch.setattr(char_lm, "learn", seen.append)
        assert char_lm.main(["--demo", "--hidden", "7"]) == 0
        assert seen[0].out == Path("runs/demo") and seen[0].hidden == 7 and seen[0].text is None


@pytest.mark.slow
class TestSampling:
    def sample(self, char_lm, capsys, run, *more):
        capsys.readouterr()
        assert char_lm.main(["--sample-from", str(run / "out"), "--length", "40", *more]) == 0
        return capsys.readouterr().out.removesuffix("\n")

    def test_the_seed_decides(self, char_lm, capsys, run):
        first, again, other = (self.sample(char_lm, capsys, run, "--seed", seed) for seed in "112")
        assert first == again != other
        assert len(first) == 40

    def test_begins_with_the_prompt(self, char_lm, capsys, run):
        drawn = self.sample(char_lm, capsys, run, "--prompt", "The as")
        assert drawn.startswith("The as") and len(drawn) == 46

    def test_needs_the_weights_alone(self, char_lm, capsys, run, tmp_path):
        (tmp_path / "out").mkdir()
        data = (run / "out" / "weights.safetensors").read_bytes()
        (tmp_path / "out" / "weights.safetensors").write_bytes(data)
        assert self.sample(char_lm, capsys, tmp_path) == self.sample(char_lm, capsys, run)

    def test_cold_it_takes_the_likeliest_each_time(self, char_lm, run):
        """Streaming agrees with reading the whole at once."""
        model, params = char_lm.load(run / "out")
        network, ids = model.network(), char_lm.encode("The ", model.vocabulary)
        drawn = np.asarray(char_lm.sample(network, params, jax.random.key(0), ids, 20, 1e-6))
        xs = char_lm.features(network, params, np.concatenate([ids, drawn]))
        logits = lstm_jax.unroll(network, params["layers"], xs)[1]
        assert np.argmax(logits[3:-1], -1).tolist() == drawn.tolist()


class TestTraining:
    def test_windows_go_on_where_the_last_ended(self, char_lm):
        data = char_lm.windows(np.arange(100), batch=3, window=8)
        assert data.shape == (4, 9, 3)  # 4 windows of 8 characters and the one after, 3 streams
        assert (data[1:, 0] == data[:-1, -1]).all()
        streams = np.concatenate([data[:, :-1].transpose(2, 0, 1).reshape(3, -1), data[-1, -1:].T], axis=1)
        assert (np.diff(streams) == 1).all()
        assert streams[:, 0].tolist() == [0, 32, 64]

    def test_compiles_once(self, char_lm, text):
        vocabulary = "".join(sorted(set(text)))
        model = char_lm.Model(vocabulary, "lstm", 8, 1, 0, 0.1)
        network, params = model.network(), model.init(jax.random.key(0))
        optimizer = char_lm.make_optimizer(0.01, 1.0, 10)
        train_step = jax.jit(char_lm.make_train_step(network, optimizer, jax.random.key(1), 5))
        data = char_lm.windows(char_lm.encode(text, vocabulary), 4, 10)
        carry = network.initial_carry((4,), params["layers"])
        state = char_lm.State(params, optimizer.init(params), carry, jnp.int32(0))
        for window in data[:3]:
            state, _ = train_step(state, window)
        assert train_step._cache_size() == 1
        assert int(state.step) == 3

    @pytest.mark.parametrize(
        ("cell", "length"), [("lstm", 30), pytest.param("gru", 9, marks=pytest.mark.slow), ("rnn", 8)]
    )
    def test_evaluation_counts_every_character_once(self, char_lm, cell, length):
        model = char_lm.Model("abcdef", cell, 5, 2, 0, 0.3)
        network, params = model.network(), model.init(jax.random.key(0))
        ids = np.random.default_rng(0).integers(0, 6, length).astype(np.int32)
        logits = lstm_jax.unroll(network, params["layers"], jax.nn.one_hot(ids[:-1], 6))[1]
        logits = np.asarray(logits, np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        direct = -log_p[np.arange(length - 1), ids[1:]].mean()
        assert float(char_lm.evaluate(network, params, ids, 8)) == pytest.approx(direct, rel=1e-5)


class TestPictures:
    @pytest.mark.parametrize("length", [2, 50, 100, 5000])
    def test_the_stretch_begins_with_a_line(self, char_lm, length):
        text = ("a line of text\n" * 400)[:length]
        beginning, last = char_lm.stretch(text)
        assert text.startswith(beginning)
        assert len(beginning) < 600 and last == min(72, length)
        assert beginning[-last:].startswith("a line"[:last])

    def test_units_go_from_slow_to_fast(self, char_lm):
        t = np.arange(72)[:, None]
        periods = np.random.default_rng(0).permutation([3, 5, 9, 13, 21, 33, 40, 50, 60, 72])
        units = char_lm.choose_units(np.sin(2 * np.pi * t / periods), count=5)
        assert len(units) == 5
        assert (np.diff(periods[units]) < 0).all()


class TestBaselines:
    TRAIN = np.array([0, 1, 2, 0, 1, 3, 0, 1, 2, 2, 1, 0, 1, 2])  # of the five characters, 4 is not there

    def test_unigram_is_the_entropy_of_smoothed_counts(self, char_lm):
        held_out = np.array([0, 1, 1, 4])
        n, u, V = len(self.TRAIN), 4, 5
        p = (np.bincount(self.TRAIN, minlength=V) + u / V) / (n + u)
        q = np.bincount(held_out, minlength=V) / len(held_out)
        expected = -(q * np.log2(p)).sum()
        assert char_lm.bits(char_lm.witten_bell(self.TRAIN, held_out, V, 1)) == pytest.approx(expected)

    @pytest.mark.parametrize("order", [1, 2, 3, 5])
    @pytest.mark.parametrize("history", [[0, 1], [2, 2, 1, 0], [4, 0, 1], [4, 4, 4], []], ids=str)
    def test_probabilities_sum_to_one(self, char_lm, order, history):
        each = [char_lm.witten_bell(self.TRAIN, np.array([*history, x]), 5, order)[-1] for x in range(5)]
        assert sum(each) == pytest.approx(1)
        assert min(each) > 0

    @pytest.mark.parametrize("order", [2, 3, 4])
    def test_ngrams_by_the_definition(self, char_lm, order):
        rng = np.random.default_rng(1)
        train, held_out = rng.integers(0, 4, 60), rng.integers(0, 5, 40)
        text = [*train, *held_out]

        def p(history, x):
            """Counts by looking through the text, one history length after the other."""
            value = 1 / 5
            for k in range(len(history) + 1):
                h = history[len(history) - k :]
                after = [train[i + k] for i in range(60 - k) if list(train[i : i + k]) == h]
                if after:
                    u = len(set(after))
                    value = (after.count(x) + u * value) / (len(after) + u)
            return value

        expected = [p(text[t - order + 1 : t], text[t]) for t in range(60, 100)]
        assert char_lm.witten_bell(train, held_out, 5, order) == pytest.approx(expected)

    def test_paragraphs_come_once(self, char_lm):
        paragraphs = char_lm.python_help().split("\n\n")
        assert len(paragraphs) == len(set(paragraphs)) > 1000


def write(path, data):
    path.write_bytes(data)
    return str(path)


class TestErrors:
    """One line on stderr, status 2, no traceback."""

    def refused(self, char_lm, capsys, *arguments):
        capsys.readouterr()
        assert char_lm.main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("char_lm: ") and said.err.count("\n") == 1
        return said.err

    def test_text(self, char_lm, capsys, tmp_path):
        def read(path):
            return self.refused(char_lm, capsys, "--text", path, "--out", tmp_path / "out")

        assert "No such file" in read(tmp_path / "missing.txt")
        assert "directory" in read(tmp_path)
        assert "is empty" in read(write(tmp_path / "empty.txt", b""))
        assert "byte 3 (0xff)" in read(write(tmp_path / "latin.txt", b"abc\xff"))
        assert not (tmp_path / "out").exists()

    def test_short_text_says_what_would_do(self, char_lm, capsys, tmp_path):
        path = write(tmp_path / "text.txt", b"abcdef" * 7)
        said = self.refused(char_lm, capsys, *TINY, "--text", path, "--out", tmp_path / "out")
        assert "has 42 characters" in said
        needed = int(said.split(" need ")[1].split(";")[0])
        train, held_out = char_lm.split(np.zeros(needed, np.int32), 0.05, batch=4, window=10)
        assert len(train) == 41 and len(held_out) == 2
        with pytest.raises(char_lm.UserError):
            char_lm.split(np.zeros(needed - 1, np.int32), 0.05, batch=4, window=10)

    @pytest.mark.slow
    def test_run_folder(self, char_lm, capsys, tmp_path, run):
        path = tmp_path / "weights.safetensors"

        def sample(folder=tmp_path):
            return self.refused(char_lm, capsys, "--sample-from", folder)

        assert "weights.safetensors" in sample()
        assert "weights.safetensors" in sample(tmp_path / "missing")
        write(path, b"not this")
        assert "damaged" in sample()
        safetensors.numpy.save_file({"w": np.zeros(3)}, path)
        assert "not written by this program" in sample()
        safetensors.numpy.save_file({"w": np.zeros(3)}, path, {"format": "lstm_jax/char_lm/1"})
        assert "damaged" in sample()
        with safetensors.safe_open(run / "out" / "weights.safetensors", "numpy") as file:
            metadata = file.metadata()
        safetensors.numpy.save_file({"w": np.zeros(3)}, path, metadata)
        assert "damaged" in sample()

    @pytest.mark.slow
    def test_prompt_with_unknown_characters(self, char_lm, capsys, run):
        said = self.refused(char_lm, capsys, "--sample-from", run / "out", "--prompt", "The ÄÖ")
        assert "'Ä', 'Ö'" in said

    @pytest.mark.parametrize(
        "arguments",
        [
            "--hidden 0", "--layers -1", "--window 2.5", "--batch none", "--epochs 0", "--epochs nan",
            "--lr inf", "--dropout 1", "--valid-share 0", "--valid-share 1", "--temperature 0", "--length 0",
            "--seed -1", "--clip -1", "--steps 0", "--cell lstm2", "--epochs 1 --steps 1", "--unknown",
            "--embedding x",
        ],
    )  # fmt: skip
    def test_numbers(self, char_lm, capsys, arguments):
        said = self.refused(char_lm, capsys, *arguments.split())
        assert arguments.split()[0] in said

    def test_out_is_a_file(self, char_lm, capsys, folder):
        path = folder / "text.txt"
        said = self.refused(char_lm, capsys, *TINY, "--text", path, "--out", path)
        assert "cannot make the run folder" in said

    def test_a_loss_that_is_no_number(self, char_lm, capsys, folder, tmp_path):
        text = folder / "text.txt"
        arguments = [*TINY, "--lr", "1e38", "--steps", "30", "--text", text, "--out", tmp_path]
        said = self.refused(char_lm, capsys, *arguments)
        assert "at step" in said and "--lr 3.3e+37" in said
        assert not (tmp_path / "weights.safetensors").exists()
