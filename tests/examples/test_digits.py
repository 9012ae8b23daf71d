"""examples/digits.py: its sequences, what it writes, and what it refuses."""

import importlib
import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import lstm_jax

PROGRAM = "digits"
TINY = "--hidden 6 --batch 8 --steps 60 --lr 0.05 --dropout 0".split()


pytestmark = pytest.mark.usefixtures("as_users_have_it", "all_quick")


@pytest.fixture(scope="module")
def data(program):
    return importlib.import_module("_digits_data")


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    """A file of 60 images, 3 x 3: the label is the row that has ink."""
    labels = np.arange(60) % 3
    images = np.zeros((60, 3, 3))
    images[np.arange(60), labels] = 200
    path = tmp_path_factory.mktemp("bars") / "bars.npz"
    np.savez(path, images=images, labels=labels)
    return path


class TestData:
    def test_lengths_end_with_the_last_ink(self, data):
        images = np.zeros((3, 2, 3), np.float32)
        images[0, 0, 1], images[1, 1, 2] = 0.1, 1
        assert data.lengths_of(images).tolist() == [2, 6, 0]

    def test_split_leaves_nobody_out(self, data):
        images = data.Images(np.arange(100.0)[:, None, None], np.arange(100))
        parts = data.split(images, seed=3)
        assert [len(part.labels) for part in parts] == [70, 15, 15]
        assert sorted(np.concatenate([part.labels for part in parts])) == list(range(100))
        assert all((part.images[:, 0, 0] == part.labels).all() for part in parts)
        again, other = data.split(images, seed=3), data.split(images, seed=4)
        assert (again[2].labels == parts[2].labels).all() and (other[2].labels != parts[2].labels).any()

    def test_shifts(self, data):
        """A dot in the middle comes to all nine places, and to no other."""
        images = np.zeros((500, 5, 5), np.float32)
        images[:, 2, 2] = 1
        moved = data.shifted(images, 1, np.random.default_rng(0))
        assert (moved.sum((1, 2)) == 1).all()
        assert set(np.flatnonzero(moved.sum(0))) == {6, 7, 8, 11, 12, 13, 16, 17, 18}
        assert (data.shifted(images, 0, np.random.default_rng(0)) == images).all()

    def test_sequences(self, data):
        images = data.Images(np.arange(12.0, dtype=np.float32).reshape(2, 2, 3), np.array([4, 5], np.int32))
        images.images[0, 1, 1:] = 0
        batch = data.batch_from(images, ragged=False)
        assert batch["x"][1, :, 0].tolist() == [6, 7, 8, 9, 10, 11] and batch["lengths"].tolist() == [6, 6]
        assert data.batch_from(images, ragged=True)["lengths"].tolist() == [4, 6]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_answer_is_that_of_the_image_cut_at_its_length(program, cell):
    network = lstm_jax.Stack((program.CELLS[cell](1, 4), lstm_jax.Readout(4, 3)), dropout=0.5)
    params = network.init(jax.random.key(0))
    x = np.random.default_rng(0).random((3, 6, 1), np.float32)
    lengths = np.array([6, 2, 0], np.int32)
    logits = program.logits_of(network, params, {"x": x, "lengths": lengths})
    for row, length in enumerate(lengths[:2]):
        _, ys = lstm_jax.unroll(network, params, x[row, :length])
        np.testing.assert_allclose(logits[row], ys[-1], rtol=1e-5, atol=1e-6)
    assert (np.asarray(logits[2]) == 0).all()


@pytest.fixture(scope="module")
def folder(program, bars, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    arguments = [*TINY, "--ragged", "--shift", "0", "--images", str(bars), "--out", str(folder)]
    assert program.main(arguments) == 0
    return folder


@pytest.mark.slow
class TestRun:
    def test_files(self, folder):
        pictures = {"learning_curve.png", "confusion.png", "misread.png"}
        texts = {"config.json", "metrics.jsonl", "result.json", "weights.safetensors"}
        assert {path.name for path in folder.iterdir()} == pictures | texts
        for name in pictures:
            assert (folder / name).read_bytes().startswith(b"\x89PNG")

    def test_learns_where_the_ink_is(self, folder):
        """With lengths each class has its own: 3, 6 or 9 pixels, so few steps are enough."""
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
        result = json.loads((folder / "result.json").read_text())
        assert result["test_images"] == 9
        assert result["test_accuracy"] == pytest.approx(result["test_right"] / 9)

    def test_the_result_is_that_of_the_weights(self, program, data, folder, bars):
        arrays = safetensors.numpy.load_file(folder / "weights.safetensors")
        network = lstm_jax.Stack((lstm_jax.LSTM(1, 6), lstm_jax.Readout(6, 3)))
        leaves, tree = jax.tree.flatten_with_path(network.init(jax.random.key(9)))
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
        params = jax.tree.unflatten(tree, [jnp.asarray(arrays[name]) for name in names])
        test = data.split(data.read_images(bars), seed=0)[2]
        said = program.logits_of(network, params, data.batch_from(test, True)).argmax(-1)
        right = json.loads((folder / "result.json").read_text())["test_right"]
        assert int((np.asarray(said) == test.labels).sum()) == right


class TestErrors:
    def refused(self, program, capsys, *arguments):
        capsys.readouterr()
        assert program.main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("digits: ") and said.count("\n") == 1
        return said

    def test_files(self, program, capsys, tmp_path):
        def read(**arrays):
            np.savez(tmp_path / "some.npz", **arrays)
            return self.refused(program, capsys, "--images", tmp_path / "some.npz")

        assert "No such file" in self.refused(program, capsys, "--images", tmp_path / "none.npz")
        (tmp_path / "text.npz").write_text("text")
        assert "text.npz" in self.refused(program, capsys, "--images", tmp_path / "text.npz")
        np.save(tmp_path / "one.npy", np.zeros(3))
        assert "one.npy" in self.refused(program, capsys, "--images", tmp_path / "one.npy")
        (tmp_path / "cut.npz").write_bytes((tmp_path / "one.npy").read_bytes()[:0])
        assert "cut.npz" in self.refused(program, capsys, "--images", tmp_path / "cut.npz")
        ones, labels = np.ones((20, 4, 4)), np.zeros(20, int)
        assert "'images' and 'labels'" in read(images=ones)
        assert "(20, 4, 4) and labels (19,)" in read(images=ones, labels=labels[1:])
        assert "float64" in read(images=ones, labels=labels / 1)
        assert "ink" in read(images=ones * np.nan, labels=labels)
        assert "ink" in read(images=ones * 0, labels=labels)
        assert "labels from 0" in read(images=ones, labels=labels - 1)
        assert "'images' and 'labels'" in read(images=ones.astype(object), labels=labels)
        assert "10 are needed" in read(images=ones[:3], labels=labels[:3])

    @pytest.mark.parametrize("arguments", ["--cell lstm2", "--shift -1", "--dropout 1", "--epochs 0"])
    def test_arguments(self, program, capsys, arguments):
        assert arguments.split()[0] in self.refused(program, capsys, *arguments.split())

    def test_without_scikit_learn(self, program, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        assert "pip install 'lstm_jax[examples]'" in self.refused(program, capsys)


HAS_DIGITS = importlib.util.find_spec("sklearn") is not None


@pytest.mark.skipif(not HAS_DIGITS, reason="the digits are in scikit-learn: pip install 'lstm_jax[examples]'")
class TestDigits:
    def test_are_what_the_docstring_says(self, data):
        images, labels = data.read_images(None)
        assert images.shape == (1797, 8, 8) and images.min() == 0 and images.max() == 1
        assert set(labels) == set(range(10))

    @pytest.mark.slow
    def test_lstm_reads_them(self, program, tmp_path):
        """The program's default takes 100 epochs and gets more; 30 have to give 93 %."""
        assert program.main(["--epochs", "30", "--out", str(tmp_path)]) == 0
        assert json.loads((tmp_path / "result.json").read_text())["test_accuracy"] > 0.93
