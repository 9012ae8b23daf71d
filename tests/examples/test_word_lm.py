"""word_lm.py: its corpora, windows, recipes and losses, its run folder, its errors, PyTorch's losses."""

import math
import re
from functools import partial

import _word_model as models
import _word_step as steps
import _word_text as text
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import word_lm as program
from helpers import daily
from training import UserError, command
from training_runs import files, read_json, rows, run

SMALL = "--hidden 6 --embedding 6 --window 5 --batch 3".split()


def arguments(*words):
    return command.parse(program.make_parser(), [str(word) for word in words])


@pytest.fixture
def treebank(tmp_path):
    """A corpus in the format of Penn Treebank, in which every line starts and ends with a space."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "ptb"
    folder.mkdir()
    for part, lines in (("train", 60), ("valid", 12), ("test", 9)):
        words = rng.choice(["the", "<unk>", "N", "cat", "sat", "on"], (lines, 6))
        (folder / f"ptb.{part}.txt").write_text("".join(f" {' '.join(line)} \n" for line in words))
    return folder


class TestCorpus:
    def test_penn_treebank(self, treebank):
        corpus = text.read_corpus(treebank, None)
        assert (corpus.name, len(corpus.train), len(corpus.valid), len(corpus.test)) == (
            "Penn Treebank", 60 * 7, 12 * 7, 9 * 7,
        )  # fmt: skip
        first = (treebank / "ptb.test.txt").read_text().split("\n")[0].split()
        assert [corpus.vocabulary[i] for i in corpus.test[:7]] == [*first, "<eos>"]
        assert sorted(corpus.vocabulary) == sorted({"<eos>", "<unk>", "N", "the", "cat", "sat", "on"})

    def test_wikitext(self, tmp_path):
        for part in text.PARTS:
            (tmp_path / f"wiki.{part}.tokens").write_text(" \n = Title = \n \n one <unk> two \n")
        corpus = text.read_corpus(tmp_path, None)
        words = " ".join(corpus.vocabulary[i] for i in corpus.train)
        assert words == "<eos> = Title = <eos> <eos> one <unk> two <eos>"

    def test_plain_text_keeps_frequent_words(self, tmp_path):
        (tmp_path / "a.txt").write_text("A a, a b b.\n\n" * 30 + "rare\n" * 10)
        corpus = text.read_corpus(tmp_path / "a.txt", 4)
        assert corpus.vocabulary == ["<eos>", "<unk>", "a", "b"]
        words = " ".join(corpus.vocabulary[i] for i in corpus.train[:8])
        assert words == "a a <unk> a b b <unk> <eos>"
        assert [len(part) for part in (corpus.valid, corpus.test)] == [4, 4]

    @pytest.mark.parametrize(
        "part, content, message",
        [
            ("valid", None, "cannot read .*ptb.valid.txt: No such file"),
            ("test", b"", "ptb.test.txt is empty"),
            ("test", b"\n\n", "the test part .* has no words"),
            ("train", b"caf\xe9", r"not UTF-8: byte 3 \(0xe9\)"),
            ("train", b"the cat\n", "words that are not in its training part .*--vocabulary"),
        ],
        ids=["missing", "empty", "blank", "encoding", "unknown"],
    )
    def test_invalid_corpus(self, treebank, part, content, message):
        file = treebank / f"ptb.{part}.txt"
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            text.read_corpus(treebank, None)

    def test_empty_folder(self, tmp_path):
        with pytest.raises(UserError, match="contains no corpus: expected ptb"):
            text.read_corpus(tmp_path, None)


class TestWindows:
    def test_fixed_length(self):
        """Penn Treebank's training part has 929,589 words: 2,323 windows of 20 words in 20 streams."""
        windows = text.Windows(np.zeros(929_589, np.int32), 20, 20)
        assert len(windows.lengths(0)) == 2323
        plan = windows.plan(13.0, None)
        assert len(plan.starts) == 13 * 2323
        assert plan.ends() == {2323 * epoch for epoch in range(1, 14)}
        assert (plan.starts[2322], plan.starts[2323], plan.lengths.min()) == (2322 * 20, 0, 20)

    @pytest.mark.parametrize("seed", [None, 5])
    def test_windows_continue_each_other(self, seed):
        windows = text.Windows(np.arange(1, 3001, dtype=np.int32), 3, 30, seed)
        plan = windows.plan(2.5, None)
        per_epoch = sorted(plan.ends())[0]
        for step in range(per_epoch - 1):
            assert plan.starts[step + 1] == plan.starts[step] + plan.lengths[step]
        window, length = windows.cut(plan.starts[1], plan.lengths[1]), plan.lengths[1]
        assert window.shape == (windows.longest + 1, 3)
        assert (np.diff(window[: length + 1], axis=0) == 1).all()
        assert (window[length + 1 :] == 0).all()
        assert [*window[0] - window[0, 0]] == [0, 1000, 2000]
        assert plan.done[-1] == pytest.approx(2.5, abs=0.03) and len(plan.ends()) == 2

    def test_random_lengths(self):
        windows = text.Windows(np.zeros(400_000, np.int32), 2, 70, 0)
        lengths = windows.lengths(0)
        assert lengths.sum() == 200_000 - 1  # every word after the first is a target exactly once
        assert (lengths == windows.lengths(0)).all() and len(windows.lengths(1)) != len(lengths)
        usual = lengths[:-1]
        assert usual.min() >= 5 and usual.max() <= windows.longest
        assert 0.03 < (usual < 52).mean() < 0.07
        assert usual[usual >= 52].mean() == pytest.approx(69.5, abs=0.5)
        assert usual[usual >= 52].std() == pytest.approx(5, abs=0.5)

    def test_steps_instead_of_epochs(self):
        windows = text.Windows(np.arange(500, dtype=np.int32), 2, 20, 1)
        plan = windows.plan(None, 40)
        assert len(plan.starts) == len(plan.lengths) == len(plan.done) == 40

    def test_too_short(self):
        with pytest.raises(UserError, match="has 50 words, but 10 streams of 5 words need 60"):
            text.Windows(np.zeros(50, np.int32), 10, 5)


class TestRecipe:
    @pytest.mark.parametrize(
        "preset, rates",
        [
            ("zaremba-small", [1, 1, 1, 1, 0.5, 0.25]),
            ("zaremba-medium", [1, 1, 1, 1, 1, 1, 0.8, 0.64]),
            ("zaremba-large", [*[1] * 14, 1 / 1.15, 1 / 1.15**2]),
            ("awd", [30] * 20),
        ],
    )
    def test_learning_rates(self, preset, rates):
        args = arguments("--preset", preset)
        assert [steps.learning_rate(args, epoch) for epoch in range(len(rates))] == pytest.approx(rates)

    @pytest.mark.parametrize(
        "preset, count",
        [("zaremba-small", 4_651_600), ("zaremba-medium", 19_775_200), ("zaremba-large", 66_022_000),
         ("awd", 24_210_800)],
    )  # fmt: skip
    def test_numbers_of_weights_are_the_published_ones(self, preset, count):
        args = arguments("--preset", preset)
        fields = {name: getattr(args, name) for name in program.MODEL_FIELDS}
        model = models.Model(10_000, **fields)
        shapes = jax.eval_shape(model.init_params, jax.random.key(0))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count

    def test_initial_weights_are_uniform_without_forget_bias(self):
        params = models.Model(50, 8, 8, 2, init=0.05).init_params(jax.random.key(0))
        for leaf in jax.tree.leaves(params):
            assert 0.03 < float(jnp.abs(leaf).max()) <= 0.05
        forget = params["layers"][0].bias[8:16]
        assert float(jnp.abs(forget).max()) <= 0.05

    def model(self, **more):
        return models.Model(20, 6, 6, 2, **more)

    def window(self, length, pad=0):
        ids = np.random.default_rng(1).integers(0, 20, (length + 1, 3)).astype(np.int32)
        ids = np.pad(ids, ((0, pad), (0, 0)))
        return steps.Window(ids, np.int32(length), np.bool_(True), np.float32(0.5))

    @pytest.mark.slow
    def test_the_loss_is_a_sum_over_time(self):
        """One step of SGD: lr times the clipped gradient of the sum over T and the mean over B."""
        model, window = self.model(), self.window(7)
        params = model.init_params(jax.random.key(0))
        args = arguments(*SMALL, "--clip", 0.7)
        state = steps.first_state(model, args, params)
        after, measured = steps.make_step(model, args, jax.random.key(0))(state, window)

        def summed(params):
            ids = window.ids
            _, logits, _ = models.forward(model, params, state.carry, ids[:-1])
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[1:, :, None], -1)
            return -chosen.sum() / 3

        loss, grads = jax.value_and_grad(summed)(params)
        assert float(measured["loss"]) == pytest.approx(float(loss) / 7, rel=1e-5)
        norm = math.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
        assert norm > 0.7
        for p, q, g in zip(*map(jax.tree.leaves, (params, after.params, grads)), strict=True):
            np.testing.assert_allclose(q, p - 0.5 * g * 0.7 / norm, rtol=1e-5, atol=1e-6)

    def test_padding_has_no_effect(self):
        model = self.model(awd=True)
        params = model.init_params(jax.random.key(0))
        args = arguments(*SMALL, "--preset", "awd")
        step = jax.jit(steps.make_step(model, args, jax.random.key(0)))
        state = steps.first_state(model, args, params)
        ends = [step(state, self.window(7, pad))[0] for pad in (0, 4)]
        for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def test_windows_of_different_lengths_compile_once(self):
        ids = np.arange(600, dtype=np.int32) % 20
        args = arguments(*SMALL, "--preset", "awd", "--window", 30)
        model = self.model(awd=True, dropout=0.4, dropout_words=0.1, weight_drop=0.5)
        windows = text.Windows(ids, 3, 30, 0)
        plan = windows.plan(None, 4)
        window_of = steps.window_maker(windows, plan, args)
        step = jax.jit(steps.make_step(model, args, jax.random.key(0)))
        state = steps.first_state(model, args, model.init_params(jax.random.key(0)))
        for index in range(4):
            state, _ = step(state, window_of(index))
        assert step._cache_size() == 1 and len(set(plan.lengths)) > 1
        assert window_of(0).lr == pytest.approx(30 * plan.lengths[0] / 30)

    def test_the_carry_is_reset_at_each_epoch(self):
        model, window = self.model(), self.window(7)
        args = arguments(*SMALL)
        state = steps.first_state(model, args, model.init_params(jax.random.key(0)))
        full = state._replace(carry=jax.tree.map(jnp.ones_like, state.carry))
        step = jax.jit(steps.make_step(model, args, jax.random.key(0)))
        later = window._replace(begins=np.bool_(False))
        losses = [float(step(s, w)[1]["loss"]) for s in (state, full) for w in (window, later)]
        assert losses[0] == losses[1] == losses[2] != losses[3]

    def logits(self, model, params, key):
        return models.forward(model, params, None, self.window(7).ids, key=key)[1]

    def test_dropout_is_only_active_with_a_key(self):
        for model in (self.model(dropout=0.5), self.model(awd=True, dropout=0.4, weight_drop=0.5)):
            params = model.init_params(jax.random.key(0))
            logits = partial(self.logits, model, params)
            plain = self.model(awd=model.awd)
            np.testing.assert_array_equal(logits(None), self.logits(plain, params, None))
            assert (logits(jax.random.key(0)) != logits(jax.random.key(1))).any()

    def test_averaging(self):
        values = [np.float32(x) for x in (1.0, 3.0, 8.0, 4.0)]
        average = steps.Average(jnp.bool_(False), jnp.int32(0), jnp.float32(0))
        average = steps.averaged(average, values[0])
        assert float(average.params) == 1.0 and int(average.count) == 0  # averaging has not started
        average = average._replace(on=jnp.bool_(True))
        for value in values[1:]:
            average = steps.averaged(average, value)
        assert float(average.params) == pytest.approx(5.0) and int(average.count) == 3

    def test_averaging_starts_after_epochs_without_progress(self):
        args = arguments("--preset", "awd", "--nonmono", 2)
        state = steps.State((), steps.Average(jnp.bool_(False), jnp.int32(0), ()), (), jnp.int32(0))
        started = []
        values = [
            5.0,
            4.0,
            4.5,
            4.2,
            3.9,
            4.4,
        ]  # the last is worse than 4.0, the minimum of all but the last three
        for count in range(1, len(values) + 1):
            now = steps.start_averaging(args, state, [{"valid_nats": value} for value in values[:count]])
            started.append(bool(now.optimizer.on))
        assert started == [False, False, False, False, False, True]

    @pytest.mark.parametrize("length", daily([5, 8, 13], 5, 8))
    def test_evaluation_counts_every_word_once(self, length):
        model = self.model()
        params = model.init_params(jax.random.key(0))
        ids = self.window(length).ids
        logits = np.asarray(models.forward(model, params, None, ids[:-1])[1], np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = -np.take_along_axis(log_p, ids[1:, :, None], -1).mean()
        assert float(models.evaluate(model, params, ids, 4)) == pytest.approx(expected, rel=1e-5)


class TestProgram:
    @pytest.mark.parametrize("preset", daily(["zaremba-small", "awd"]))
    def test_run(self, treebank, tmp_path, capsys, preset):
        out = tmp_path / "out"
        assert run(program, *SMALL, "--data", treebank, "--preset", preset, "--epochs", 2, "--out", out) == 0
        assert files(out) == {
            "config.json", "learning_curve.png", "metrics.jsonl", "vocabulary.txt", "weights.safetensors",
        }  # fmt: skip
        last = rows(out)[-1]
        assert last["epoch"] == 2 and last["test_perplexity"] == pytest.approx(math.exp(last["test_nats"]))
        assert last["test_perplexity"] > 1
        assert read_json(out / "config.json")["data"]["vocabulary"] == 7
        assert f"Test perplexity: {last['test_perplexity']:.2f}" in capsys.readouterr().out

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "words",
        [
            pytest.param(7, id="words replicated", marks=pytest.mark.slow),
            pytest.param(6, id="words split"),
        ],
    )
    def test_a_mesh_gives_the_losses_of_one_device(self, treebank, tmp_path, words):
        """Rows and units are split, and words if their number is divisible."""
        tiny = "--hidden 6 --embedding 6 --window 5 --batch 4 --epochs 2".split()
        for mesh in ("", "data=2,model=2"):
            more = ["--vocabulary", words, "--data", treebank, "--mesh", mesh, "--out", tmp_path / f"m{mesh}"]
            assert run(program, *tiny, *more) == 0
        one, four = (rows(tmp_path / f"m{mesh}") for mesh in ("", "data=2,model=2"))
        assert "test_nats" in one[-1]
        for a, b in zip(one, four, strict=True):
            assert a == pytest.approx(b, rel=2e-4)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("--preset awd --mesh model=2", "--mesh model=2"),
            ("--hidden 7 --mesh model=2", "--mesh model=2"),
            ("--batch 3 --mesh data=2", "is not divisible by --mesh data=2"),
        ],
    )
    def test_unsupported_meshes(self, treebank, tmp_path, fails, words, message):
        assert message in fails(*SMALL, "--data", treebank, "--out", tmp_path / "out", *words.split())

    def test_resume_with_another_vocabulary(self, treebank, tmp_path, fails, monkeypatch):
        out = tmp_path / "out"
        cut = text.Windows.cut
        monkeypatch.setattr(
            text.Windows, "cut", lambda self, start, n: cut(self, start, 1 / (start < 40) and n)
        )
        with pytest.raises(ZeroDivisionError):
            run(program, *SMALL, "--data", treebank, "--steps", 20, "--out", out, "--checkpoint-every", 3)
        train = treebank / "ptb.train.txt"
        train.write_text(train.read_text() + " a dog \n")
        error = fails("--resume", out)
        assert "the data differ" in error and "vocabulary was 7, is 9" in error


@pytest.mark.peers
@pytest.mark.parametrize("preset", ["zaremba-small", "awd"])
def test_torch_has_the_same_losses(treebank, preset, capsys):
    pytest.importorskip("torch", reason="the recipe in PyTorch")
    words = [*SMALL, "--data", treebank, "--preset", preset, "--reference", "torch", "--steps", 12]
    assert run(program, *words) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^ +\d+  ", printed, re.M)) == 12
    assert float(re.search(r"Largest difference: (\S+) nats", printed)[1]) < 1e-10
