"""Layout, carry order and options of the Flax modules, without Flax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cell_case import D, H
from helpers import assert_same, brief, random_like, random_params, slow

import lstm_jax
from lstm_jax import GRU, LSTM, RNN, Bidirectional, GRUVariant, LSTMVariant, Stack
from lstm_jax._flax import draw_params, make_cell, make_layers, swap_carry_order, unroll_module
from lstm_jax.cells._base import as_base_cell

T, B = 5, 3


# --- carries -------------------------------------------------------------------------------------


def test_carry_order_is_swapped_wherever_an_lstm_is():
    lstm = LSTM(D, H)
    for network in (lstm, lstm_jax.ConvLSTM((4, 4, D), H, (3, 3)), lstm_jax.Zoneout(lstm, 0.5)):
        assert swap_carry_order(network, ("h", "c")) == ("c", "h")
    for network in (lstm_jax.FullGateLSTM(D, H), lstm_jax.MLSTM(D, H), GRU(D, H)):
        assert swap_carry_order(network, ("h", "c", "n")) == ("h", "c", "n")
    stack = Stack((Bidirectional(lstm), LSTM(2 * H, H), GRU(H, H)))
    library = ((("h0", "c0"), ("h1", "c1")), ("h2", "c2"), "h3")
    flax = ((("c0", "h0"), ("c1", "h1")), ("c2", "h2"), "h3")
    assert swap_carry_order(stack, library) == flax and swap_carry_order(stack, flax) == library


# --- options -------------------------------------------------------------------------------------


def test_layers_have_equal_options():
    cells = [Bidirectional(LSTM(size, H, use_bias=False)) for size in (D, 2 * H, 2 * H)]
    made = make_layers("LSTM", LSTM, D, H, {"use_bias": False}, num_layers=3, bidirectional=True, dropout=0.1)
    assert made == Stack(tuple(cells), dropout=0.1)
    assert make_layers("GRU", GRU, D, H, {"use_bias": False}) == GRU(D, H, use_bias=False)


INIT = jax.nn.initializers.normal()


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        (LSTM, {"kernel_init": INIT}, LSTM(D, H, w_ih_init=INIT)),
        (GRU, {"recurrent_kernel_init": INIT}, GRU(D, H, w_hh_init=INIT)),
        (RNN, {"activation_fn": jax.nn.relu}, RNN(D, H, activation=jax.nn.relu)),
        (LSTM, {"activation_fn": jax.nn.relu}, LSTMVariant(D, H, activation=jax.nn.relu)),
        (
            GRU,
            {"gate_fn": jax.nn.hard_sigmoid, "use_bias": False},
            GRUVariant(D, H, recurrent_activation="hard_sigmoid", use_bias=False),
        ),
        (LSTM, {"gate_fn": jax.nn.sigmoid, "activation_fn": jnp.tanh}, LSTM(D, H)),
        (RNN, {"residual": False, "carry_init": None, "keep_rngs": False}, RNN(D, H)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, type) else None,
)
def test_flax_s_option_names(kind, options, expected):
    assert make_cell("a test", kind, D, H, options) == expected


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (LSTM, {"kernel_init": INIT, "w_ih_init": INIT}, "kernel_init and w_ih_init"),
        (RNN, {"gate_fn": jnp.tanh}, "got gate_fn; expected options of lstm_jax.RNN"),
        (RNN, {"residual": True}, "Add the identity to the recurrent weights"),
        (LSTM, {"promote_dtype": jnp.asarray}, "dtype="),
        (GRU, {"carry_init": INIT}, "initial_carry="),
        (LSTM, {"keep_rngs": True}, "rngs="),
        (LSTM, {"peepholes": True}, r"Use Cell\(lstm_jax.LSTMVariant\(peepholes=...\)\)"),
        (GRU, {"kernel_size": 3}, "The options are activation, .*gate_fn, .*kernel_init"),
    ],
)
def test_options_without_an_equal(kind, options, message):
    with pytest.raises(ValueError, match=message):
        make_cell("a test", kind, D, H, options)


# --- parameters ----------------------------------------------------------------------------------


class Box:
    def __init__(self, value, names):
        self.value, self.names = value, names


def boxed(*names):
    return lambda key, shape, dtype: Box(INIT(key, shape, dtype), names)


def test_boxes_of_initialisers_belong_to_whole_parameters():
    """In stacks, both directions and wrappers, for every array that the initialiser draws."""

    def network(kernel, bias):
        first = Bidirectional(GRU(D, H, w_ih_init=kernel, bias_init=bias))
        last = lstm_jax.Zoneout(LSTMVariant(2 * H, H, proj_size=2, w_ih_init=kernel), 0.1)
        return Stack((first, lstm_jax.Readout(2 * H, 2 * H, w_init=bias), last))

    key = jax.random.key(1)
    params, boxes = draw_params(
        network(boxed(None, "model"), boxed("bias")),
        key,
        lambda value: (value.value, value) if isinstance(value, Box) else (value, None),
    )
    assert_same(params, network(INIT, INIT).init(key))
    assert {name: box.names for name, box in boxes.items()} == {
        **{f"0.{way}.w_ih": (None, "model") for way in ("forward", "backward")},
        **{f"0.{way}.{name}": ("bias",) for way in ("forward", "backward") for name in ("bias", "bias_hn")},
        "1.w": ("bias",),
        "2.w_ih": (None, "model"),
        "2.w_hr": (None, "model"),
    }


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (LSTM(D, H), False),
        slow(lstm_jax.LeakyRNN(D, H, learn_initial_carry=True), False),
        (lstm_jax.LeakyRNN(D, H, noise=0.1), True),
        (lstm_jax.WeightDrop(LSTM(D, H), 0.5), True),
        slow(Bidirectional(lstm_jax.Zoneout(GRU(D, H), 0.5)), True),
        (Stack((GRU(D, H), GRU(H, H))), False),
        (Stack((GRU(D, H), GRU(H, H)), dropout=0.5), True),
    ],
    ids=brief,
)
def test_networks_with_noise(network, expected):
    """``has_noise``, which decides whether a module needs a stream, agrees with what a key changes."""
    params, xs = network.init(jax.random.key(0)), jnp.ones((T, B, D))
    ys = lstm_jax.unroll(network, params, xs, key=jax.random.key(1))[1]
    changed = not jnp.allclose(ys, lstm_jax.unroll(network, params, xs)[1], atol=1e-5)
    assert as_base_cell(network).has_noise == expected == changed


# --- running -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (B,), (2, B)])
@pytest.mark.parametrize("time_major", [False, True])
def test_unroll_module_is_unroll_with_time_moved(batch, time_major):
    network, axis = Stack((LSTM(D, H), GRU(H, H))), 0 if time_major else len(batch)
    params, rng = network.init(jax.random.key(0)), np.random.default_rng(0)
    xs = jnp.asarray(rng.normal(size=(T, *batch, D)), jnp.float32)
    mask, resets = (rng.random((T, *batch)) < rate for rate in (0.7, 0.3))
    lengths = rng.integers(0, T + 1, size=batch)
    ((h, c), s), (ys, ((hs, cs), ss)) = lstm_jax.unroll(
        network, params, xs, lengths=lengths, mask=mask, resets=resets, return_carries=True
    )
    inputs, mask, resets, ys, cs, hs, ss = (
        jnp.moveaxis(a, 0, axis) for a in (xs, mask, resets, ys, cs, hs, ss)
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


@pytest.mark.parametrize("batch", [(), (B,), (2, B)])
@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_restarts_go_back_to_given_carries(batch, time_major, bidirectional):
    """``reset_to`` as a list of NumPy arrays in Flax's layout."""
    cell, axis = LSTM(D, H), 0 if time_major else len(batch)
    network = Bidirectional(cell) if bidirectional else cell
    params, rng = random_params(network), np.random.default_rng(0)
    xs, resets = np.float32(rng.normal(size=(T, *batch, D))), rng.random((T, *batch)) < 0.4
    stored = jax.eval_shape(lambda: network.initial_carry((T, *batch)))
    stored = random_like(rng, stored)
    carry, ys = lstm_jax.unroll(network, params, xs, resets=resets, reset_to=stored)
    moved = jax.tree.map(lambda a: np.moveaxis(a, 0, axis), swap_carry_order(network, stored))
    out = unroll_module(
        "a test",
        network,
        params,
        jnp.moveaxis(xs, 0, axis),
        time_major=time_major,
        resets=np.moveaxis(resets, 0, axis),
        reset_to=list(moved),
        return_carry=True,
    )
    assert_same(out, (swap_carry_order(network, carry), jnp.moveaxis(ys, 0, axis)))


def run(network=None, **options):
    network = LSTM(D, H) if network is None else network
    return unroll_module("a test", network, random_params(network), jnp.ones((B, T, D)), **options)


def test_carries_may_be_lists():
    h, c = np.ones((B, H), np.float32), np.zeros((B, H), np.float32)
    assert_same(run(carry=[c, h]), run(carry=(c, h)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"carry": jnp.zeros((B, H))}, r"a test got initial_carry float32\[3,\d+\]; expected \(float32"),
        ({"carry": (jnp.zeros((B, H)), jnp.zeros(H))}, r"initial_carry\[1\] of shape .*\(c, h\)"),
        ({"reset_to": (jnp.zeros((B, T, H)),) * 2}, "without resets"),
        (
            {"resets": np.ones((B, T), bool), "reset_to": (jnp.zeros((T, B, H)),) * 2},
            r"a test got reset_to\[0\] of shape \(5, 3, \d+\); expected shape \(3, 5, \d+\)",
        ),
        ({"resets": np.ones((T, B), bool)}, r"resets of shape \(5, 3\) .*shape \(3, 5\)"),
        ({"reverse": True, "keep_order": False}, "keep_order"),
    ],
)
def test_error_messages(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_dropout_needs_two_layers():
    with pytest.raises(ValueError, match="between layers"):
        make_layers("LSTM", LSTM, D, H, {}, dropout=0.5)
