"""music.py: its data, its losses, its continuation and MIDI file, its run folder, its errors."""

import os
import struct
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import music as program
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from _music_data import baselines, generate, pack, read_mat, shifted, windows
from _music_output import midi_file
from training import UserError, load_weights
from training_runs import files, read_json, rows, run

import lstm_jax

TINY = "--hidden 4 --layers 2 --batch 2 --window 6 --prompt 4 --length 6".split()
FILES = {
    "config.json", "continuation.mid", "continuation.png", "learning_curve.png", "metrics.jsonl",
    "result.json", "weights.safetensors",
}  # fmt: skip


def write_mat(path, lengths=((5, 9, 3, 7), (6, 4), (8, 2, 5)), seed=0):
    """Write a file in the format of the JSB Chorales and Nottingham."""
    rng = np.random.default_rng(seed)

    def cells(lengths):
        cell = np.empty((1, len(lengths)), object)
        for i, length in enumerate(lengths):
            cell[0, i] = (rng.random((length, 88)) < 0.05).astype(np.uint8)
        return cell

    contents = dict(zip(("traindata", "validdata", "testdata"), map(cells, lengths), strict=True))
    scipy.io.savemat(path, contents)
    return contents


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.mat"
    write_mat(path)
    return path


@pytest.fixture(scope="module")
def arguments(corpus_file):
    return *TINY, "--steps", 4, "--data", corpus_file


@pytest.fixture(scope="module")
def network():
    return program.make_network(program.make_parser().parse_args(TINY))


class TestRun:
    @pytest.mark.slow
    def test_files(self, finished):
        assert files(finished) == FILES
        data = read_json(finished / "config.json")["data"]
        assert data["source"] == "corpus.mat" and data["pieces"] == {"train": 4, "valid": 2, "test": 3}

    @pytest.mark.slow
    def test_the_result_is_that_of_the_best_weights(self, finished, corpus_file, network):
        """Computed again in float64, piece by piece, without padding."""
        result = read_json(finished / "result.json")
        assert result["valid_nll"] == min(row["valid_nll"] for row in rows(finished) if "valid_nll" in row)
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        _, params = load_weights(finished, "lstm_jax/music/1", lambda model: shapes)
        contents = scipy.io.loadmat(corpus_file)
        test = result["test_nll"]["LSTM 2 x 4"]
        for name, expected in (("validdata", result["valid_nll"]), ("testdata", test)):
            nats, frames = 0.0, 0
            for roll in contents[name].ravel():
                x = roll.astype(np.float32)
                logits = np.asarray(lstm_jax.unroll(network, params, x[:-1])[1], np.float64)
                p = 1 / (1 + np.exp(-logits))
                losses = -np.log(np.where(x[1:] == 1, p, 1 - p)).sum(1)
                nats, frames = nats + losses.sum(), frames + len(losses)
            assert nats / frames == pytest.approx(expected, rel=1e-5)

    @pytest.mark.slow
    def test_the_source_of_generated_pieces_is_named(self, tmp_path, monkeypatch):
        small = generate(seed=0, train=2, valid=1, test=1)
        monkeypatch.setattr(program, "generate_corpus", lambda seed: small)
        assert run(program, *TINY, "--steps", 1, "--transpose", 3, "--out", tmp_path) == 0
        assert read_json(tmp_path / "config.json")["data"]["source"] == "generated chorales"


class TestData:
    @pytest.mark.parametrize("rows", [1, 3, 7])
    def test_packed_rows_contain_every_piece_once(self, rows):
        """Rows differ by one piece at most, and frames without a piece are silent and begin."""
        rng = np.random.default_rng(0)
        lengths = rng.integers(2, 9, 20)
        pieces = [np.full((n, 88), i + 1, np.uint8) for i, n in enumerate(lengths)]
        orders = []
        for shuffle in (None, np.random.default_rng(1), np.random.default_rng(2)):
            frames, first = pack(pieces, rows, shuffle)
            assert frames.shape == (len(first), rows, 88) and first[0].all() and first[-1].all()
            assert first[frames[..., 0] == 0].all() and not frames[-1].any()
            found = []
            for row, begins in zip(frames[..., 0].T, first.T, strict=True):
                found += [part for part in np.split(row, np.flatnonzero(begins)) if part.any()]
            assert sorted((part[0], len(part)) for part in found) == [
                (i + 1, n) for i, n in enumerate(lengths)
            ]
            assert all((part == part[0]).all() for part in found)
            ends = (frames[..., 0] > 0).sum(0)
            assert len(frames) == ends.max() + 1 and ends.max() - ends.min() <= lengths.max()
            orders.append([part[0] for part in found])
        assert orders[1] != orders[2]

    def test_matrices_of_any_type_and_size(self, tmp_path, capsys):
        """Logical, double and sparse matrices, a column of cells; pieces with nothing to predict."""
        contents = write_mat(tmp_path / "a.mat", lengths=((5, 1, 9, 7, 0, 0), (6, 4), (8, 2)))
        given = contents["traindata"]
        expected = [given[0, i].copy() for i in (0, 2, 3)]
        given[0, 0] = given[0, 0].astype(float)
        given[0, 2] = given[0, 2].astype(bool)
        given[0, 3] = scipy.sparse.csc_matrix(given[0, 3].astype(float))
        given[0, 5] = np.zeros((0, 0))
        contents["validdata"] = contents["validdata"].T.copy()
        scipy.io.savemat(tmp_path / "a.mat", contents)
        corpus = read_mat(tmp_path / "a.mat")
        assert "traindata left out, of fewer than two frames: 3" in capsys.readouterr().out
        assert [len(piece) for piece in corpus.valid] == [6, 4]
        for piece, roll in zip(corpus.train, expected, strict=True):
            assert piece.dtype == np.uint8 and (piece == roll).all()

    @pytest.mark.parametrize(("rows", "window"), [(2, 10), (2, 2), (7, 63)])
    def test_windows_repeat_the_packed_rows(self, rows, window):
        """Each epoch has all pieces. A window ends with the first frame of the next one.

        The longest piece has 64 frames. Alone in its row, it is one window of 63 frames and the one after.
        """
        pieces = generate(seed=1, train=7, valid=1, test=1).train
        window_of, per_epoch = windows(pieces, rows, window, semitones=0, seed=3)
        sums = []
        for epoch in (0, 1):
            cut = [window_of(epoch * per_epoch + step) for step in range(per_epoch)]
            assert {part.frames.shape for part in cut} == {(window + 1, rows, 88)} and cut[0].first[0].all()
            assert all((~part.first[1:]).any() for part in cut)
            for before, after in pairwise(cut):
                assert (before.frames[-1] == after.frames[0]).all()
                assert (before.first[-1] == after.first[0]).all()
            frames = np.concatenate([*(part.frames[:-1] for part in cut), cut[-1].frames[-1:]])
            sums.append(frames.sum((0, 1)))
            assert sum((~part.first[1:]).sum() for part in cut) == sum(len(piece) - 1 for piece in pieces)
        assert (sums[0] == sums[1]).all() and (sums[0] == np.concatenate(pieces).sum(0)).all()
        orders = {
            windows(pieces, rows, window, semitones=0, seed=seed)[0](epoch * per_epoch).frames.tobytes()
            for seed, epoch in ((3, 0), (3, 1), (4, 0))
        }
        assert len(orders) == 3
        again = windows(pieces, rows, window, semitones=0, seed=3)[0](per_epoch)  # a resumed run
        assert all((a == b).all() for a, b in zip(again, window_of(per_epoch), strict=True))

    def test_windows_with_the_carry_have_the_losses_of_whole_pieces(self, network):
        """All losses of single frames are equal, in the order of their size."""
        pieces = generate(seed=1, train=5, valid=1, test=1).train
        params = network.init(jax.random.key(0))
        window_of, per_epoch = windows(pieces, rows=2, window=9, semitones=0, seed=0)
        carry, found = network.initial_carry((2,), params), []
        for step in range(per_epoch):
            window = window_of(step)
            _, nlls = program.frame_nlls(network, params, carry, window)
            mean, carry = program.mean_nll(network, params, carry, window)
            assert not nlls[window.first[1:]].any()
            found += nlls[~window.first[1:]].tolist()
            assert mean == pytest.approx(float(nlls.sum()) / (~window.first[1:]).sum())
        expected = []
        for piece in pieces:
            x = jnp.asarray(piece, jnp.float32)
            p = jax.nn.sigmoid(lstm_jax.unroll(network, params, x[:-1])[1])
            expected += (-jnp.log(jnp.where(x[1:] == 1, p, 1 - p)).sum(1)).tolist()
        np.testing.assert_allclose(sorted(found), sorted(expected), rtol=1e-5)

    def test_generated_pieces_follow_the_rules(self):
        corpus = generate(seed=2, train=3, valid=2, test=1)
        assert [len(part) for part in corpus] == [3, 2, 1]
        for part in corpus:
            for frames in part:
                assert len(frames) % 16 == 0
                chords = [np.flatnonzero(frame) + 21 for frame in frames[::2]]
                assert {len(chord) for chord in chords} == {4}  # four different notes
                assert (chords[-1][0] - chords[-2][0]) % 12 == 5  # V I
        again = generate(seed=2, train=3, valid=2, test=1)
        for part, same in zip(corpus, again, strict=True):
            assert all((a == b).all() for a, b in zip(part, same, strict=True))

    def test_shifted(self):
        roll = np.zeros((3, 88), np.uint8)
        roll[:, [0, 40]] = 1
        rng = np.random.default_rng(7)
        moved = [shifted(roll, 2, rng) for _ in range(50)]
        places = [np.flatnonzero(row[0]).tolist() for row in moved]
        assert all((row == row[0]).all() for row in moved)
        # Shifted down, the lowest note is outside the keyboard.
        assert {tuple(p) for p in places} == {(38,), (39,), (0, 40), (1, 41), (2, 42)}
        assert (shifted(roll, 0, rng) == roll).all()

    def test_baselines_follow_the_definition(self):
        corpus = generate(seed=3, train=2, valid=1, test=1)
        rolls = [roll.astype(int) for roll in corpus.train]
        test = corpus.test[0].astype(int)
        for by_last, found in zip((False, True), baselines(corpus).values(), strict=True):
            total = 0.0
            for before, now in pairwise(test):
                for k in range(88):
                    pairs = [(a[k], b[k]) for roll in rolls for a, b in pairwise(roll)]
                    seen = [b for a, b in pairs if not by_last or a == before[k]]
                    p = (sum(seen) + 0.5) / (len(seen) + 1)
                    total -= np.log(p if now[k] else 1 - p)
            assert found == pytest.approx(total / (len(test) - 1))


class TestTraining:
    def test_initial_weights(self, tmp_path, monkeypatch, corpus_file):
        """The initial probability of a key is its frequency in the training pieces."""
        found = []

        def train(args, run, network, params, corpus, key):
            found.append((params, corpus.train, key))
            raise UserError("enough")

        monkeypatch.setattr(program, "train", train)
        for seed in (0, 1):
            words = *TINY, "--data", corpus_file, "--seed", seed, "--out", tmp_path / str(seed)
            assert run(program, *words) == 2
        (one, pieces, key), (two, _, other_key) = found
        often = (np.concatenate(pieces).sum(0) + 0.5) / (sum(map(len, pieces)) + 1)
        np.testing.assert_allclose(jax.nn.sigmoid(one[-1].bias), often, rtol=1e-5)
        assert (one[0].w_ih != two[0].w_ih).all() and key != other_key

    def test_windows_and_their_weights(self, network, monkeypatch):
        """The weight is the number of predicted frames, so that logged losses are means over frames."""
        corpus, frames = generate(seed=1, train=5, valid=1, test=1), []
        args = program.make_parser().parse_args([*TINY, *"--epochs 1 --transpose 2 --seed 5".split()])
        expected, per_epoch = windows(corpus.train, rows=2, window=6, semitones=2, seed=5)

        def fit(step, state, window_of, *, steps, **_):
            assert steps == per_epoch
            for i in range(steps):
                window = window_of(i)
                assert all((a == b).all() for a, b in zip(window, expected(i), strict=True))
                frames.append((~window.first[1:]).sum())
                assert step(state, window)[1]["weight"] == frames[-1]

        monkeypatch.setattr(program, "window_step", lambda *_: lambda state, rows: (state, {"loss": 0.0}))
        monkeypatch.setattr(program, "fit", fit)
        monkeypatch.setattr(program, "load_weights", lambda *_: (None, None))
        params, run = network.init(jax.random.key(0)), SimpleNamespace(folder=None)
        program.train(args, run, network, params, corpus, jax.random.key(2))
        assert len(set(frames)) > 1 and sum(frames) == sum(len(piece) - 1 for piece in corpus.train)

    def test_the_weights_of_the_best_evaluation_are_returned(self, network, monkeypatch, tmp_path):
        corpus, values = generate(seed=1, train=2, valid=1, test=1), []

        def fit(step, state, window_of, *, evaluate, **_):
            for scale in (3.0, 1.0, 2.0):
                params = jax.tree.map(lambda leaf, scale=scale: jnp.full_like(leaf, scale), state.params)
                values.append(evaluate(state._replace(params=params))["valid_nll"])

        # Its value is the scale of the weights.
        monkeypatch.setattr(program, "evaluation", lambda *_: lambda params: float(params[-1].bias[0]))
        monkeypatch.setattr(program, "fit", fit)
        args = program.make_parser().parse_args(TINY)
        run = SimpleNamespace(folder=tmp_path, values=lambda name: values)
        params = program.train(args, run, network, network.init(jax.random.key(0)), corpus, jax.random.key(2))
        assert values == [3, 1, 2] and all((leaf == 1).all() for leaf in jax.tree.leaves(params))

    @pytest.mark.parametrize("rates", ["--dropout 0 --weight-drop 0.5", "--dropout 0.5 --weight-drop 0"])
    def test_noise_of_training(self, rates):
        """Both kinds of dropout change the loss with a key, and another key changes it again."""
        network = program.make_network(program.make_parser().parse_args([*TINY, *rates.split()]))
        params = network.init(jax.random.key(0))
        packed = pack(generate(seed=1, train=2, valid=1, test=1).train, 2)
        keys = (None, jax.random.key(1), jax.random.key(2))
        carry = network.initial_carry((2,), params)
        assert len({float(program.mean_nll(network, params, carry, packed, key)[0]) for key in keys}) == 3


class TestContinuation:
    def test_probabilities_equal_those_of_one_unroll(self, network):
        params = network.init(jax.random.key(0))
        prompt = generate(seed=4, train=1, valid=1, test=1).train[0][:5]
        frames, p = program.continuation(network, params, prompt, 7, jax.random.key(1))
        assert set(np.unique(frames)) == {0, 1}
        whole = jnp.concatenate([jnp.asarray(prompt, jnp.float32), frames])
        logits = lstm_jax.unroll(network, params, whole)[1][4:-1]
        np.testing.assert_allclose(p, jax.nn.sigmoid(logits), atol=1e-5)


def parse_midi(data):
    """(division, tempo, notes) by the definitions of the standard. Notes are (note, on, off) in ticks."""
    kind, size, form, tracks, division = struct.unpack(">4sIHHH", data[:14])
    assert (kind, size, form, tracks) == (b"MThd", 6, 0, 1)
    assert data[14:18] == b"MTrk" and struct.unpack(">I", data[18:22])[0] == len(data) - 22
    place, now, tempo, sounding, notes = 22, 0, None, {}, []
    while place < len(data):
        delta = 0
        while True:
            byte = data[place]
            place, delta = place + 1, delta << 7 | byte & 0x7F
            if byte < 0x80:
                break
        now += delta
        status, first = data[place], data[place + 1]
        if status == 0xFF:
            length = data[place + 2]
            if first == 0x51:
                tempo = int.from_bytes(data[place + 3 : place + 6], "big")
            if first == 0x2F:
                assert place + 3 == len(data)
            place += 3 + length
        elif status == 0xC0:
            place += 2
        else:
            if status == 0x90:
                assert first not in sounding and data[place + 2]
                sounding[first] = now
            else:
                assert status == 0x80
                notes.append((first, sounding.pop(first), now))
            place += 3
    assert not sounding
    return division, tempo, notes


class TestMidi:
    def test_round_trip(self):
        roll = np.random.default_rng(0).random((400, 88)) < 0.02
        roll[::3] = False  # with long rests
        roll[30:360] = False
        division, tempo, notes = parse_midi(midi_file(roll, 90.0))
        assert tempo == round(60e6 / 90)
        again = np.zeros_like(roll)
        for note, on, off in notes:
            assert on % division == off % division == 0 and on < off
            again[on // division : off // division, note - 21] = True
        assert (again == roll).all()

    @pytest.mark.slow
    def test_continuation(self, finished):
        _, tempo, notes = parse_midi((finished / "continuation.mid").read_bytes())
        assert tempo == 600_000 and notes  # 100 frames per minute


class TestErrors:
    def test_files(self, fails, tmp_path):
        path = tmp_path / "corpus.mat"

        def read():
            return fails("--data", path, "--out", tmp_path / "out")

        assert "No such file" in read()
        path.write_bytes(b"a text, not a MATLAB file" * 12)
        assert "not a .mat file" in read()
        scipy.io.savemat(path, {"x": np.zeros(3)})
        assert "no traindata: it contains x" in read()
        contents = write_mat(path)
        contents["validdata"][0, 1] = np.zeros((5, 87), np.uint8)
        scipy.io.savemat(path, contents)
        assert "validdata{2} has shape (5, 87)" in read()
        contents["validdata"][0, 1] = np.full((5, 88), 2, np.uint8)
        scipy.io.savemat(path, contents)
        assert "neither 0 nor 1" in read()
        contents["validdata"] = np.zeros((2, 88))
        scipy.io.savemat(path, contents)
        assert "not a cell array" in read()
        write_mat(path, lengths=((5, 4), (1, 0), (6,)))
        assert "validdata has no piece of two or more frames" in read()
        path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(100))
        assert "MATLAB 7.3" in read()
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "arguments", ["--dropout 1", "--weight-drop -1", "--transpose 12", "--tempo 0", "--window 1"]
    )
    def test_options(self, fails, arguments):
        assert arguments.split()[0] in fails(*arguments.split())


@pytest.mark.slow
def test_generated_pieces_are_learned(tmp_path):
    """The loss is far below the baselines (8.47). A complete run of 30 epochs has a lower one."""
    assert run(program, *"--hidden 64 --epochs 12 --lr 0.01".split(), "--out", tmp_path) == 0
    *counts, lstm = read_json(tmp_path / "result.json")["test_nll"].values()
    assert lstm < min(counts) - 1


@pytest.mark.slow
@pytest.mark.skipif(
    "LSTM_JAX_DATA" not in os.environ, reason="LSTM_JAX_DATA names no folder with JSB_Chorales.mat"
)
def test_chorales(tmp_path):
    """The published LSTM has 8.45 (Bai et al. 2018)."""
    path = Path(os.environ["LSTM_JAX_DATA"]) / "JSB_Chorales.mat"
    assert run(program, "--data", path, "--out", tmp_path) == 0
    assert read_json(tmp_path / "result.json")["test_nll"]["LSTM 2 x 300"] < 8.3
