"""The batch first and carries as (c, h): what both Flax modules are made of, without Flax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_case import D, H
from helpers import slow

import lstm_jax
from lstm_jax import GRU, LSTM, Bidirectional, Stack
from lstm_jax._flax import is_random, layers, swap_carry_order, unroll_module

pytestmark = pytest.mark.usefixtures("quick_compiles")

T, B = 5, 3


def test_carries_are_turned_round_wherever_an_lstm_stands():
    lstm = LSTM(D, H)
    for network in (lstm, lstm_jax.ConvLSTM((4, 4, D), H, (3, 3)), lstm_jax.Zoneout(lstm, 0.5)):
        assert swap_carry_order(network, ("h", "c")) == ("c", "h")
    for network in (lstm_jax.FullGateLSTM(D, H), lstm_jax.MLSTM(D, H), GRU(D, H)):
        assert swap_carry_order(network, ("h", "c", "n")) == ("h", "c", "n")
    stack = Stack((Bidirectional(lstm), LSTM(2 * H, H), GRU(H, H)))
    nested = ((("h0", "c0"), ("h1", "c1")), ("h2", "c2"), "h3")
    turned = ((("c0", "h0"), ("c1", "h1")), ("c2", "h2"), "h3")
    assert swap_carry_order(stack, nested) == turned and swap_carry_order(stack, turned) == nested


@pytest.mark.parametrize(
    ("network", "random"),
    [
        (LSTM(D, H), False),
        slow(lstm_jax.LeakyRNN(D, H, learn_initial_carry=True), False),
        (lstm_jax.LeakyRNN(D, H, noise=0.1), True),
        (lstm_jax.WeightDrop(LSTM(D, H), 0.5), True),
        slow(Bidirectional(lstm_jax.Zoneout(GRU(D, H), 0.5)), True),
        (Stack((GRU(D, H), GRU(H, H))), False),
        (Stack((GRU(D, H), GRU(H, H)), dropout=0.5), True),
    ],
)
def test_what_makes_noise(network, random):
    params, xs = network.init(jax.random.key(0)), jnp.ones((T, B, D))
    run = lstm_jax.unroll(network, params, xs, key=jax.random.key(1))[1]
    assert is_random(network) == random == bool(jnp.any(run != lstm_jax.unroll(network, params, xs)[1]))


def test_equal_layers():
    cells = [Bidirectional(LSTM(size, H, use_bias=False)) for size in (D, 2 * H, 2 * H)]
    assert layers(LSTM, D, H, num_layers=3, bidirectional=True, dropout=0.1, use_bias=False) == Stack(
        tuple(cells), dropout=0.1
    )
    assert layers(GRU, D, H, use_bias=False) == GRU(D, H, use_bias=False)


@pytest.mark.parametrize("batch", [(), (B,), (2, B)])
@pytest.mark.parametrize("time_major", [False, True])
def test_a_walk_is_unroll_with_time_moved(batch, time_major):
    network, at = Stack((LSTM(D, H), GRU(H, H))), 0 if time_major else len(batch)
    params, rng = network.init(jax.random.key(0)), np.random.default_rng(0)
    xs = jnp.asarray(rng.normal(size=(T, *batch, D)), jnp.float32)
    mask, resets = (rng.random((T, *batch)) < share for share in (0.7, 0.3))
    lengths = rng.integers(0, T + 1, size=batch)
    ((h, c), s), (ys, ((hs, cs), ss)) = lstm_jax.unroll(
        network, params, xs, lengths=lengths, mask=mask, resets=resets, return_carries=True
    )
    inputs, mask, resets, ys, cs, hs, ss = (
        jnp.moveaxis(a, 0, at) for a in (xs, mask, resets, ys, cs, hs, ss)
    )
    out = unroll_module(
        "a test",
        network,
        params,
        inputs,
        ((jnp.zeros((*batch, H)), jnp.zeros((*batch, H))), jnp.zeros((*batch, H))),
        time_major=time_major,
        seq_lengths=lengths,
        mask=mask,
        resets=resets,
        return_carries=True,
    )
    jax.tree.map(np.testing.assert_array_equal, out, (((c, h), s), (ys, ((cs, hs), ss))))
