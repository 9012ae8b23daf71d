"""Bidirectional networks: two different cells, and errors. The oracle covers values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_raises,
    assert_same,
    random_arrays,
    random_params,
    several_devices,
    zero_params,
)

import lstm_jax
from lstm_jax import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    GRUVariant,
    LSTMVariant,
    MinGRU,
    Readout,
    Stack,
    WeightDrop,
    Zoneout,
    unroll,
)
from lstm_jax._flax import swap_carry_order
from lstm_jax.cells._base import compute_form, flatten
from lstm_jax.interop import from_flax, to_cudnn, to_flax, to_keras, to_torch

T, B, D, H = 5, 3, 3, 2
TWO = Bidirectional(LSTM(D, H), backward=GRU(D, 4))


def test_each_direction_is_its_own_cell():
    params = random_params(TWO)
    (xs,) = random_arrays((T, B, D))
    (forward, backward), ys = unroll(TWO, params, xs)
    each = unroll(LSTM(D, H), params.forward, xs), unroll(GRU(D, 4), params.backward, xs, reverse=True)
    for (carry, part), got, columns in zip(
        each, (forward, backward), (slice(H), slice(H, None)), strict=True
    ):
        assert_same(got, carry, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ys[..., columns], part, rtol=1e-6, atol=1e-6)


def test_sizes_and_repr():
    assert (TWO.input_size, TWO.output_size) == (D, H + 4)
    assert Bidirectional(LSTM(D, H), merge="sum", backward=GRU(D, H)).output_size == H
    assert repr(TWO).endswith("backward=GRU(input_size=3, hidden_size=4))")
    assert TWO.optional_params == ("backward.bias_hn",)
    assert Stack((TWO, LSTM(H + 4, H))).output_size == H


def test_equal_cells_make_equal_networks():
    one = Bidirectional(LSTM(D, H))
    assert Bidirectional(LSTM(D, H), backward=LSTM(D, H)) == one
    assert one != TWO
    assert one.backward is None
    start = Bidirectional(LSTM(D, H), backward=LSTM(D, H, forget_bias=0.0))
    assert start != one
    assert compute_form(start) == compute_form(one)
    assert compute_form(TWO).backward == GRU(D, 4)


def test_init_uses_each_cell():
    key = jax.random.key(0)
    network = Bidirectional(LSTM(D, H), backward=LSTM(D, H, forget_bias=3.0))
    params = network.init(key)
    assert (params.forward.bias[H], params.backward.bias[H]) == (1, 3)
    assert [a.shape for a in jax.tree.leaves(TWO.initial_carry((B,)))] == [(B, H), (B, H), (B, 4)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bidirectional(LSTM(3, H), backward=LSTM(4, H)), "input_size=3 forward and 4 backward"),
        (
            lambda: Bidirectional(LSTM(D, 2), merge="mean", backward=LSTM(D, 4)),
            "output_size=2 forward and 4 backward with merge='mean'",
        ),
        (lambda: Bidirectional(LSTM(D, H), backward=3), "Bidirectional got 3 without init"),
        (
            lambda: Bidirectional(
                lstm_jax.ConvLSTM((4, D), H, (3,)), backward=lstm_jax.ConvLSTM((4, D), H, (3,), strides=(2,))
            ),
            r"output_shape=\(4, 2\) forward and \(2, 2\) backward",
        ),
        (
            lambda: Bidirectional(
                lstm_jax.ConvLSTM((4, D), H, (3,)), backward=lstm_jax.ConvLSTM((5, D), H, (3,))
            ),
            r"input_shape=\(4, 3\) forward and \(5, 3\) backward",
        ),
    ],
    ids=["inputs", "outputs", "no_cell", "output_images", "input_images"],
)
def test_errors_name_what_differs(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_cells_of_vectors_and_of_images():
    with pytest.raises(ValueError, match="event_ndim=1 forward and 2 backward"):
        Bidirectional(LSTM(D, H), backward=lstm_jax.ConvLSTM((4, D), H, (3,)))


@pytest.mark.parametrize(
    ("backward", "rows"),
    [
        (GRU(D, 4), ["LSTM(3 -> 2) forward, GRU(3 -> 4) backward"]),
        (GRUVariant(D, H, reset_after=False), ["LSTM(3 -> 2)", "GRUVariant(3 -> 2)"]),
        (MinGRU(D, H), ["LSTM(3 -> 2)", "MinGRU(3 -> 2)"]),
        (None, ["LSTM(3 -> 2), both directions"]),
    ],
    ids=["both_fused", "scan", "parallel", "one_cell"],
)
def test_explain_shows_which_loops_run(backward, rows):
    network = Bidirectional(LSTM(D, H), backward=backward)
    plan = lstm_jax.explain(network, random_params(network), jnp.ones((T, B, D)))
    assert [layer.cell for layer in plan.layers] == rows


def test_noise_in_one_direction():
    """The noisy cell draws; the other one does not."""
    network = Bidirectional(LSTM(D, H), backward=WeightDrop(LSTM(D, H), 0.5))
    params = random_params(network)
    (xs,) = random_arrays((T, B, D))
    quiet = unroll(network, params, xs)[1]
    noisy = unroll(network, params, xs, key=jax.random.key(0))[1]
    np.testing.assert_allclose(quiet[..., :H], noisy[..., :H], rtol=1e-6, atol=1e-6)
    assert network.has_noise
    assert np.abs(quiet[..., H:] - noisy[..., H:]).max() > 0.01


@pytest.mark.parametrize(
    ("backward", "words"),
    [
        (LSTMVariant(D, H, activation="relu"), "LSTM and LSTMVariant with activation=relu"),
        (Zoneout(LSTM(D, H), 0.5), "LSTM and Zoneout"),
        (LSTM(D, H, use_bias=False), "use_bias=True and False"),
    ],
)
def test_the_fields_in_which_two_cells_differ(backward, words):
    network = Bidirectional(LSTM(D, H), backward=backward)
    assert flatten(network, False) == f"its two directions have different cells: {words}"


def test_cudnn_gives_its_reason():
    assert flatten(TWO, False) == "its two directions have different cells: LSTM and GRU"
    with pytest.raises(ValueError, match="different cells: LSTM and GRU"):
        unroll(TWO, random_params(TWO), jnp.ones((T, B, D)), implementation="cudnn")


def test_carry_order_of_flax():
    assert swap_carry_order(TWO, (("h", "c"), "s")) == (("c", "h"), "s")


@several_devices
def test_over_a_mesh():
    network = Bidirectional(LSTM(D, 4), backward=GRU(D, 2))
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    params = random_params(network)
    (xs,) = random_arrays((T, 4, D))
    sharded = lstm_jax.shard(network, mesh)
    assert sharded.backward.cell == GRU(D, 2)
    placed = jax.device_put(params, lstm_jax.shardings(sharded, params))
    each = [lstm_jax.shard(cell, mesh) for cell in network.cells]
    sent = [lstm_jax.communication(cell, p, 4).forward for cell, p in zip(each, params, strict=True)]
    assert lstm_jax.communication(sharded, params, 4).forward == sum(sent) > 0
    assert_same(unroll(sharded, placed, xs), unroll(network, params, xs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("write", [to_torch, to_keras, to_cudnn])
def test_exporters_without_two_cells(write):
    network = Bidirectional(LSTM(D, H), backward=LSTM(D, H, use_bias=False))
    with pytest.raises(ValueError, match="different cells: use_bias=True and False"):
        write(network, random_params(network))


def test_there_and_back_through_flax():
    params = random_params(TWO)
    network, back = from_flax(to_flax(TWO, params, api="linen"))
    assert network == TWO
    assert_same(jax.tree.map(np.asarray, back), params, rtol=0, atol=0)


def test_a_stack_on_one_side():
    network = Bidirectional(
        Stack((RNN(D, H), Readout(H, 1))), merge="sum", backward=Stack((GRU(D, H), Readout(H, 1)))
    )
    params = random_params(network)
    (xs,) = random_arrays((T, B, D))
    ys = unroll(network, params, xs)[1]
    backward = unroll(network.backward, params.backward, xs, reverse=True)[1]
    np.testing.assert_allclose(
        ys, unroll(network.cell, params.forward, xs)[1] + backward, rtol=1e-6, atol=1e-6
    )


# --- errors -------------------------------------------------------------------------------------

LSTM_CELL = LSTM(D, H)
LSTM_PARAMS = zero_params(LSTM_CELL)
XS = np.zeros((5, 4, D), np.float32)
X = XS[0]
STATE = np.zeros((4, H), np.float32)
CARRY = (STATE, STATE)


def call(cell, params):
    return lambda: lstm_jax.unroll(cell, params, XS)


#: A call, and words of its error message: the given and the expected value.
ERRORS = {
    # cells
    "Bidirectional.step": (
        lambda: Bidirectional(LSTM_CELL).step((LSTM_PARAMS,) * 2, (CARRY,) * 2, X),
        "Bidirectional.step",
        "a whole sequence",
        "unroll",
    ),
    "a step of a stack with both directions": (
        lambda: Stack((Bidirectional(LSTM_CELL),)).step(((LSTM_PARAMS,) * 2,), ((CARRY,) * 2,), X),
        "Bidirectional.step",
        "a whole sequence",
    ),
    # params
    "one direction's params": (
        call(Bidirectional(LSTM_CELL), (LSTM_PARAMS,)),
        "Bidirectional",
        "1 entries",
        "tuple of 2",
    ),
    # constructors
    "init of both directions without a key": (
        lambda: Bidirectional(LSTM_CELL).init(1.0),
        "key=1.0",
        "one PRNG key",
    ),
    "a class in a Bidirectional": (lambda: Bidirectional(LSTM), "Bidirectional got <class", "a cell"),
    "None in a Bidirectional": (lambda: Bidirectional(None), "without init, initial_carry, step", "a cell"),
    "an unknown merge": (
        lambda: Bidirectional(LSTM_CELL, merge="max"),
        "merge='max'",
        "'concat', 'sum', 'mean', 'product'",
    ),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors(what):
    assert_raises(*ERRORS[what])
