"""digits.py: its sequences, its run folder, its errors."""

import importlib.util
import sys

import _digits_images as data
import digits as program
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_runs import files, read_json, rows, run, weights

import lstm_jax

TINY = "--hidden 6 --batch 8 --steps 60 --lr 0.05 --dropout 0".split()


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    """A file of 60 images, 3 x 3. The label is the row with ink."""
    labels = np.arange(60) % 3
    images = np.zeros((60, 3, 3))
    images[np.arange(60), labels] = 200
    path = tmp_path_factory.mktemp("bars") / "bars.npz"
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(scope="module")
def arguments(bars):
    return *TINY, "--ragged", "--shift", 0, "--images", bars


class TestData:
    def test_lengths_end_at_the_last_ink(self):
        images = np.zeros((3, 2, 3), np.float32)
        images[0, 0, 1], images[1, 1, 2] = 0.1, 1
        assert data.lengths_of(images).tolist() == [2, 6, 0]

    def test_split_is_a_partition(self):
        images = data.Images(np.arange(100.0)[:, None, None], np.arange(100))
        parts = data.split(images, seed=3)
        assert [len(part.labels) for part in parts] == [70, 15, 15]
        assert sorted(np.concatenate([part.labels for part in parts])) == list(range(100))
        assert all((part.images[:, 0, 0] == part.labels).all() for part in parts)
        again, other = data.split(images, seed=3), data.split(images, seed=4)
        assert (again[2].labels == parts[2].labels).all() and (other[2].labels != parts[2].labels).any()

    def test_shifts(self):
        """A dot in the middle is shifted to all nine places, and to no other."""
        images = np.zeros((500, 5, 5), np.float32)
        images[:, 2, 2] = 1
        moved = data.shifted(images, 1, np.random.default_rng(0))
        assert (moved.sum((1, 2)) == 1).all()
        assert set(np.flatnonzero(moved.sum(0))) == {6, 7, 8, 11, 12, 13, 16, 17, 18}
        assert (data.shifted(images, 0, np.random.default_rng(0)) == images).all()

    def test_sequences(self):
        images = data.Images(np.arange(12.0, dtype=np.float32).reshape(2, 2, 3), np.array([4, 5], np.int32))
        images.images[0, 1, 1:] = 0
        batch = data.batch_from(images, ragged=False)
        assert batch["x"][1, :, 0].tolist() == [6, 7, 8, 9, 10, 11] and batch["lengths"].tolist() == [6, 6]
        assert data.batch_from(images, ragged=True)["lengths"].tolist() == [4, 6]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_prediction_is_the_output_at_the_length(cell):
    network = lstm_jax.Stack((program.CELLS[cell](1, 4), lstm_jax.Readout(4, 3)), dropout=0.5)
    params = network.init(jax.random.key(0))
    x = np.random.default_rng(0).random((3, 6, 1), np.float32)
    lengths = np.array([6, 2, 0], np.int32)
    logits = program.logits_of(network, params, {"x": x, "lengths": lengths})
    for row, length in enumerate(lengths[:2]):
        _, ys = lstm_jax.unroll(network, params, x[row, :length])
        np.testing.assert_allclose(logits[row], ys[-1], rtol=1e-5, atol=1e-6)
    assert (np.asarray(logits[2]) == 0).all()


@pytest.mark.slow
class TestRun:
    def test_files(self, finished):
        plots = {"learning_curve.png", "confusion.png", "misread.png"}
        assert files(finished) == plots | {
            "config.json", "metrics.jsonl", "result.json", "weights.safetensors",
        }  # fmt: skip

    def test_loss_decreases(self, finished):
        """Each class has its own length (3, 6 or 9 pixels), so few steps are sufficient."""
        first, *_, last = rows(finished)
        assert last["loss"] < 0.7 * first["loss"]
        result = read_json(finished / "result.json")
        assert result["test_images"] == 9
        assert result["test_accuracy"] == pytest.approx(result["test_right"] / 9)

    def test_the_result_is_that_of_the_weights(self, finished, bars):
        arrays = weights(finished)
        network = lstm_jax.Stack((lstm_jax.LSTM(1, 6), lstm_jax.Readout(6, 3)))
        leaves, tree = jax.tree.flatten_with_path(network.init(jax.random.key(9)))
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
        params = jax.tree.unflatten(tree, [jnp.asarray(arrays[name]) for name in names])
        test = data.split(data.read_images(bars), seed=0)[2]
        predicted = program.logits_of(network, params, data.batch_from(test, True)).argmax(-1)
        right = int((np.asarray(predicted) == test.labels).sum())
        assert right == read_json(finished / "result.json")["test_right"]


class TestErrors:
    def test_files(self, fails, tmp_path):
        def read(**arrays):
            np.savez(tmp_path / "some.npz", **arrays)
            return fails("--images", tmp_path / "some.npz")

        assert "No such file" in fails("--images", tmp_path / "none.npz")
        (tmp_path / "text.npz").write_text("text")
        np.save(tmp_path / "one.npy", np.zeros(3))
        (tmp_path / "empty.npz").write_bytes(b"")
        for name in ("text.npz", "one.npy", "empty.npz"):
            assert name in fails("--images", tmp_path / name)
        ones, labels = np.ones((20, 4, 4)), np.zeros(20, int)
        assert "'images' and 'labels'" in read(images=ones)
        assert "(20, 4, 4) and labels (19,)" in read(images=ones, labels=labels[1:])
        assert "float64" in read(images=ones, labels=labels / 1)
        assert "pixels" in read(images=ones * np.nan, labels=labels)
        assert "pixels" in read(images=ones * 0, labels=labels)
        assert "labels >= 0" in read(images=ones, labels=labels - 1)
        assert "'images' and 'labels'" in read(images=ones.astype(object), labels=labels)
        assert "10 are needed" in read(images=ones[:3], labels=labels[:3])

    @pytest.mark.parametrize("arguments", ["--cell lstm2", "--shift -1", "--dropout 1", "--epochs 0"])
    def test_options(self, fails, arguments):
        assert arguments.split()[0] in fails(*arguments.split())

    def test_without_scikit_learn(self, fails, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        assert "pip install 'lstm_jax[examples]'" in fails()


HAS_DIGITS = importlib.util.find_spec("sklearn") is not None


@pytest.mark.skipif(not HAS_DIGITS, reason="the digits need scikit-learn")
class TestDigits:
    def test_scikit_learn_digits(self):
        images, labels = data.read_images(None)
        assert images.shape == (1797, 8, 8) and images.min() == 0 and images.max() == 1
        assert set(labels) == set(range(10))

    @pytest.mark.slow
    def test_accuracy(self, tmp_path):
        """30 epochs reach 93 %. The default, 100 epochs, reaches more."""
        assert run(program, "--epochs", 30, "--out", tmp_path) == 0
        assert read_json(tmp_path / "result.json")["test_accuracy"] > 0.93
