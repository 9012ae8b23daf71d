"""``reset_to``: packed segments equal separate segments with given initial carries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_raises, assert_same, daily, random_like

import lstm_jax
from lstm_jax import GRU, LSTM, RNN, Bidirectional, MinGRU, Stack

pytestmark = pytest.mark.usefixtures("x64")

T, B, D, H = 9, 3, 3, 2
WIDE = {"param_dtype": "float64"}
CELLS = {
    "lstm": LSTM(D, H, **WIDE),
    "gru_reset_before": lstm_jax.GRUVariant(D, H, reset_after=False, **WIDE),
    "mingru": MinGRU(D, H, **WIDE),
    "slstm": lstm_jax.SLSTM(D, H, **WIDE),
    "stack": Stack((LSTM(D, H, **WIDE), GRU(H, H, **WIDE))),
}
IMPLEMENTATIONS = {
    "lstm": ["scan", "fused"],
    "mingru": ["scan", "fused", "parallel"],
    "gru_reset_before": ["scan"],
    "slstm": ["fused"],
    "stack": ["fused"],
}
CASES = [(which, name) for which, names in IMPLEMENTATIONS.items() for name in names]


class Case:
    """A network with parameters, inputs, resets, mask, and carries to restart from."""

    def __init__(self, cell, seed=0):
        rng = np.random.default_rng(seed)
        self.cell = cell
        self.params = random_like(rng, jax.eval_shape(cell.init, jax.random.key(0)))
        own = jax.eval_shape(lambda p: cell.initial_carry((B,), p), self.params)
        self.carry = self._states(rng, own)
        timed = jax.tree.map(lambda a: jax.ShapeDtypeStruct((T, *a.shape), a.dtype), own)
        self.reset_to = self._states(rng, timed)
        self.xs = rng.normal(size=(T, B, D))
        self.resets = rng.random((T, B)) < 0.4
        self.mask = rng.random((T, B)) < 0.75
        # Entries without a reset, or at an invalid step, are never read.
        read = self.resets & self.mask
        self.reset_to = jax.tree.map(
            lambda a: np.where(read.reshape(T, B, *[1] * (a.ndim - 2)), a, np.nan), self.reset_to
        )
        self.xs = np.where(self.mask[..., None], self.xs, np.nan)

    @staticmethod
    def _states(rng, shapes):
        return jax.tree.map(lambda a: 1 + rng.random(a.shape), shapes)  # a normaliser is 1 or more

    def run(self, **options):
        given = {"resets": self.resets, "mask": self.mask, "reset_to": self.reset_to}
        return lstm_jax.unroll(self.cell, self.params, self.xs, self.carry, **given | options)

    def stepped(self, reverse):
        """The results from calls of ``cell.step``, row by row."""
        order = range(T)[::-1] if reverse else range(T)
        ys, carries = [], []
        for row in range(B):
            carry = jax.tree.map(lambda a, row=row: a[row], self.carry)
            outputs = {}
            last_start = None  # in reverse: the first step of the segment that was read last
            for t in order:
                if not self.mask[t, row]:
                    continue
                if reverse and last_start is not None:
                    carry = jax.tree.map(lambda a, at=(last_start, row): a[at], self.reset_to)
                if not reverse and self.resets[t, row]:
                    carry = jax.tree.map(lambda a, at=(t, row): a[at], self.reset_to)
                last_start = t if self.resets[t, row] else None
                carry, outputs[t] = self.cell.step(self.params, carry, self.xs[t, row])
            size = self.cell.output_size
            ys.append(np.stack([outputs.get(t, np.zeros(size)) for t in range(T)]))
            carries.append(carry)
        return jax.tree.map(lambda *rows: np.stack(rows), *carries), np.stack(ys, axis=1)


@pytest.mark.parametrize("which, implementation", CASES)
@pytest.mark.parametrize("reverse", daily([False, True], True))
def test_restarts_from_given_carries(which, implementation, reverse):
    case = Case(CELLS[which])
    assert (case.resets & case.mask).sum() > 4
    found = case.run(reverse=reverse, implementation=implementation)
    assert_same(jax.device_get(found), case.stepped(reverse))


@pytest.mark.parametrize("options", [{"checkpoint": 4}, {"checkpoint": "sqrt"}, {"truncate": 3}], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_checkpoint_and_truncate_change_no_value(options, reverse):
    case = Case(CELLS["lstm"])
    assert_same(case.run(reverse=reverse, **options), case.run(reverse=reverse))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("which", ["lstm", "mingru"])
def test_only_carries_that_are_read_have_gradients(which, reverse):
    case = Case(CELLS[which])

    def loss(params, reset_to, implementation):
        network = dict(resets=case.resets, mask=case.mask, reset_to=reset_to, reverse=reverse)
        (_, ys) = lstm_jax.unroll(
            case.cell, params, case.xs, case.carry, implementation=implementation, **network
        )
        return jnp.sum(jnp.sin(ys))

    found, expected = (
        jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)(case.params, case.reset_to, name)
        for name in ("auto", "scan")
    )
    assert_same(found, expected)
    read = case.resets & case.mask
    for grads in jax.tree.leaves(found[1]):
        assert np.all(np.asarray(grads)[~read] == 0) and np.all(np.isfinite(grads))
    first = np.asarray(jax.tree.leaves(found[1])[0])
    assert np.any(first != 0)


def test_windows_equal_the_whole_sequence():
    """A window that begins with a reset reads its entry of ``reset_to``, not the given carry."""
    case = Case(CELLS["lstm"])
    expected, ys = case.run()
    carry, parts = case.carry, []
    for begin, end in ((0, 4), (4, 5), (5, T)):
        at = slice(begin, end)
        carry, part = lstm_jax.unroll(
            case.cell,
            case.params,
            case.xs[at],
            carry,
            resets=case.resets[at],
            mask=case.mask[at],
            reset_to=jax.tree.map(lambda a, at=at: a[at], case.reset_to),
            start=begin,
        )
        parts.append(part)
    assert_same((carry, jnp.concatenate(parts)), (expected, ys))


def test_a_bidirectional_network_takes_a_pair():
    cell = LSTM(D, H, **WIDE)
    forward, backward = Case(cell, seed=1), Case(cell, seed=2)
    for name in ("xs", "resets", "mask"):
        setattr(backward, name, getattr(forward, name))
    read = forward.resets & forward.mask
    backward.reset_to = jax.tree.map(
        lambda a: np.where(read[..., None], np.full((T, B, H), 0.5), np.nan), backward.reset_to
    )
    _, ys = lstm_jax.unroll(
        Bidirectional(cell),
        (forward.params, backward.params),
        forward.xs,
        (forward.carry, backward.carry),
        resets=forward.resets,
        mask=forward.mask,
        reset_to=(forward.reset_to, backward.reset_to),
    )
    expected = [forward.stepped(False)[1], backward.stepped(True)[1]]
    assert_same(np.asarray(ys), np.concatenate(expected, axis=-1))


def test_stored_carries_reproduce_a_run():
    """Recurrent replay: packed parts of a long sequence, each with the stored carry before it."""
    cell = LSTM(D, H, **WIDE)
    case = Case(cell)
    xs = np.random.default_rng(3).normal(size=(20, 1, D))
    _, (ys, carries) = lstm_jax.unroll(cell, case.params, xs, return_carries=True)
    starts, length = [12, 3, 8], 4
    packed = np.concatenate([xs[s : s + length] for s in starts])
    resets = np.arange(len(packed))[:, None] % length == 0
    stored = jax.tree.map(
        lambda a: np.concatenate([np.repeat(a[s - 1][None], length, axis=0) for s in starts]), carries
    )
    _, found = lstm_jax.unroll(cell, case.params, packed, resets=resets, reset_to=stored)
    assert_same(np.asarray(found), np.concatenate([ys[s : s + length] for s in starts]))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"resets": None}, "reset_to without resets; expected both"),
        ({"reset_to": (np.zeros((T, B, H)),)}, "unroll got reset_to (float64[9,3,2]"),
        ({"reset_to": (np.zeros((B, H)),) * 2}, "reset_to[0] of shape (3, 2); expected shape (9, 3, 2)"),
    ],
    ids=["no resets", "half a carry", "no time axis"],
)
def test_errors(options, words):
    case = Case(CELLS["lstm"])
    assert_raises(lambda: case.run(**options), words)


def test_the_default_is_the_initial_carry():
    cell = RNN(D, H, learn_initial_carry=True, **WIDE)
    case = Case(cell)
    zeros = jnp.broadcast_to(case.params.initial, (T, B, H))
    assert_same(case.run(reset_to=zeros), case.run(reset_to=None))
