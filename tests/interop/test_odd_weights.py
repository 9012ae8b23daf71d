"""Conversions raise only ValueError, with a short message, whatever is in the mapping."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_peers import to_linen, to_nnx, without_bias_hn

from lstm_jax import GRU, LSTM, RNN, Bidirectional, ConvLSTM, GRUVariant, Stack
from lstm_jax.interop import (
    from_cudnn,
    from_equinox,
    from_flax,
    from_haiku,
    from_haste,
    from_keras,
    from_torch,
    to_cudnn,
    to_equinox,
    to_haiku,
    to_keras,
    to_torch,
)

#: The limit of a message.
LONGEST = 1000


def written(write, network, change=lambda params: params):
    return write(network, change(helpers.random_params(network)))


def haste():
    shapes = {"kernel": (3, 8), "recurrent_kernel": (2, 8), "bias": (8,)}
    shapes |= {"gamma": (2, 8), "gamma_h": (2,), "beta_h": (2,)}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


CONV = ConvLSTM((4, 3), 2, (3,))
RESET_BEFORE = GRUVariant(3, 2, reset_after=False)
#: Conversion functions, valid weights for them, and their arguments.
GOOD = {
    "torch": (from_torch, written(to_torch, Stack((GRU(3, 2), GRU(2, 2)))), {}),
    "torch rnn": (from_torch, written(to_torch, Bidirectional(RNN(3, 2))), {"activation": "tanh"}),
    "keras": (from_keras, written(to_keras, GRU(3, 2)), {"activation": "relu"}),
    "keras stack": (
        from_keras,
        written(to_keras, Stack((Bidirectional(LSTM(3, 2)), LSTM(4, 2)))),
        {"merge": "concat"},
    ),
    "keras conv": (from_keras, written(to_keras, CONV), {"input_shape": (4, 3), "padding": "same"}),
    "keras names": (
        from_keras,
        dict(zip(("kernel", "recurrent_kernel", "bias"), written(to_keras, LSTM(3, 2)), strict=True)),
        {},
    ),
    "linen": (from_flax, written(to_linen, Bidirectional(LSTM(3, 2))), {}),
    "linen conv": (from_flax, written(to_linen, CONV), {"input_shape": (4, 3)}),
    "nnx": (from_flax, [written(to_nnx, GRU(3, 2), without_bias_hn), written(to_nnx, RNN(2, 2))],
            {"activation": ["tanh", "relu"]}),
    "haiku": (from_haiku, written(to_haiku, LSTM(3, 2)), {}),
    "haiku stack": (
        from_haiku,
        written(to_haiku, Stack((RESET_BEFORE, RNN(2, 2, activation=jax.nn.relu)))),
        {"layers": ("gru", "vanilla_rnn")},
    ),
    "equinox": (from_equinox, written(to_equinox, Stack((LSTM(3, 2), GRU(2, 2)))), {}),
    "haste": (from_haste, haste(), {}),
}  # fmt: skip


class Raises:
    """An object whose conversion to an array raises."""

    def __array__(self, *arguments, **options):
        raise KeyError("no array here")


class RaisingKey:
    def __str__(self):
        raise RuntimeError("no name here")


class RaisingMapping(dict):
    def items(self):
        raise OSError("the file is closed")


def itself():
    mapping = {}
    mapping["params"] = mapping["cell"] = mapping
    return mapping


def odd_arrays(rng):
    """Values that are not arrays of floats, or of unexpected shapes."""
    deleted = jnp.ones(2)
    deleted.delete()
    return [
        None, 0, 1.5, "abc", b"abc", object(), Raises(), set(), [1, [2, 3]], [], (), [[]], {},
        {"a": {}}, range(3),
        float("nan"), np.longdouble(1), np.ones((8, 2), np.longdouble), np.ones((8, 2), complex),
        np.ones((2, 8), int), np.ones((8, 2), bool), np.array(["x"]), np.array([object()]), np.ones(()),
        np.ones((0, 2), np.float32), np.ones((2,) * 9, np.float32), np.ones((8, 2), ">f4"),
        np.ma.masked_array(np.ones((8, 2), np.float32), mask=True), np.ones(3, [("a", "f4")]),
        np.array("2020", "datetime64"),
        jax.ShapeDtypeStruct((8, 2), jnp.float32), jax.random.key(0), deleted, jnp.ones((8, 2), jnp.bfloat16),
        np.ones(tuple(rng.integers(0, 9, rng.integers(0, 5))), np.float32), np.float32, np, iter(()),
        itself(),
        RaisingMapping(a=1), {RaisingKey(): np.ones(2)}, "x" * 5000, {"x" * 5000: np.ones(2)},
    ]  # fmt: skip


def odd_name(rng, names):
    name = str(rng.choice([name for name in names if isinstance(name, str)] or ["a"]))
    odd = ["", "/", ".", "//", "weight_hh_l99999999999", "weight_hh_l0_g", "weight_hh_l0_raw", "linear", "\0",
           "parametrizations.weight_hh_l0.original0", "gamma", "forward", "params", "é" * 200,
           f"{name}_reverse", f"{name}/kernel", f"{name}_raw", name.upper(), name[::-1], 7, None, (1, 2),
           b"kernel",           RaisingKey()]  # fmt: skip
    return odd[rng.integers(len(odd))]


def changed(rng, weights):
    """Weights with one entry replaced, removed, added, nested deeper or renamed."""
    if isinstance(weights, (list, tuple)):
        weights = list(weights)
        index = int(rng.integers(len(weights))) if weights else 0
        action = rng.integers(4)
        if action == 0 or not weights:
            weights.insert(index, pick(rng))
        elif action == 1:
            del weights[index]
        else:
            weights[index] = changed(rng, weights[index])
        return weights
    if not isinstance(weights, dict) or not weights:
        return pick(rng)
    weights = dict(weights)
    names = list(weights)
    name = names[rng.integers(len(names))]
    action = rng.integers(6)
    if action == 0:
        del weights[name]
    elif action == 1:
        weights[odd_name(rng, names)] = pick(rng)
    elif action == 2:
        weights[odd_name(rng, names)] = weights.pop(name)
    elif action == 3:
        weights = {"params": weights} if rng.random() < 0.5 else [weights, weights]
    else:
        weights[name] = changed(rng, weights[name])
    return weights


def pick(rng):
    odd = odd_arrays(rng)
    return odd[rng.integers(len(odd))]


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("seeds", [range(400), helpers.slow(range(400, 4000))])
def test_fuzzed(name, seeds):
    """Weights with one to three changes raise, or are read as arrays of floats."""
    read, good, options = GOOD[name]
    read(good, **options)
    raised = 0
    for seed in seeds:
        rng = np.random.default_rng([seed, sum(map(ord, name))])
        weights = good
        for _ in range(rng.integers(1, 4)):
            weights = changed(rng, weights)
        try:
            _, params = read(weights, **(options if rng.random() < 0.8 else {}), dtype="float32")
        except ValueError as error:
            raised += 1
            assert " got " in str(error), seed
            assert len(str(error)) < LONGEST, seed
        else:
            assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(params)), seed
    assert raised > 0.7 * len(seeds)


@pytest.mark.parametrize("count", [1000, helpers.slow(100_000)])
@pytest.mark.parametrize("name", [name for name in GOOD if isinstance(GOOD[name][1], dict)])
def test_many_odd_entries(name, count):
    read, good, options = GOOD[name]
    many = {f"an odd entry with the number {number}": np.ones(2) for number in range(count)}
    for odd in (many, {**good, **many}, {**many, "more": many}, dict.fromkeys(many, object())):
        with pytest.raises(ValueError) as error:
            read(odd, **options)
        assert len(str(error.value)) < LONGEST
        assert "an odd entry" in str(error.value) or "no entry" in str(error.value)


@pytest.mark.parametrize("read", [from_keras, from_flax, from_equinox])
def test_many_odd_layers(read):
    for layer in ({}, {"kernel": object()}, np.ones(2), [np.ones((2, 2))], None):
        with pytest.raises(ValueError) as error:
            read([layer, {}] * 2000)
        assert read.__name__ in str(error.value) and len(str(error.value)) < LONGEST


def test_entries_are_named():
    weights = dict(GOOD["torch"][1])
    for value, words in (
        (Raises(), "weight_hh_l1 of type Raises, which NumPy cannot read (KeyError"),
        (np.ones((6, 2), np.longdouble), f"weight_hh_l1 of dtype {np.dtype(np.longdouble)}"),
        ("abc", "weight_hh_l1 of dtype <U3"),
        (np.ma.masked_array(np.ones((6, 2)), mask=True), "weight_hh_l1 with masked values"),
        (jax.ShapeDtypeStruct((6, 2), jnp.float32), "weight_hh_l1 of type ShapeDtypeStruct"),
    ):
        with pytest.raises(ValueError) as error:
            from_torch(weights | {"weight_hh_l1": value})
        assert words in str(error.value)
    with pytest.raises(ValueError, match=r"from_haiku[^;]*\n.*linear/w \(0, 8\), expected \(\?, 8\)"):
        from_haiku({"lstm/linear": {"w": np.ones((0, 8), np.float32), "b": np.ones(8, np.float32)}})
    with pytest.raises(ValueError, match="two entries named ii/kernel"):
        from_flax({"ii": {"kernel": np.ones((2, 2))}, "ii/kernel": np.ones((2, 2))})
    with pytest.raises(ValueError, match="nested deeper than"):
        from_torch(itself())


@pytest.mark.parametrize(
    "vector", [Raises(), object(), None, "abc", [1.0] * 56, np.ones(56, int), np.ones(())]
)
def test_odd_vectors(vector):
    with pytest.raises(ValueError, match="from_cudnn"):
        from_cudnn(vector, 3, 2)


@pytest.mark.parametrize("write", [to_torch, to_keras, to_cudnn, to_linen, to_nnx, to_haiku, to_equinox])
def test_odd_networks_and_parameters(write):
    """Each field of the parameters replaced by each odd value; values that are not networks."""
    rng = np.random.default_rng(0)
    cell = LSTM(3, 2)
    params = helpers.random_params(cell)
    for value in odd_arrays(rng):
        for field in params._fields:
            if value is None and field == "initial":
                continue
            with pytest.raises(ValueError, match=field) as error:
                write(cell, params._replace(**{field: value}))
            assert len(str(error.value)) < LONGEST
        for network, given in (
            (cell, value),
            (value, params),
            (Stack((cell,)), (value,)),
            (Stack((cell,)), value),
        ):
            with pytest.raises(ValueError) as error:
                write(network, given)
            assert len(str(error.value)) < LONGEST
