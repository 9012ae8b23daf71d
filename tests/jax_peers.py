"""The recurrent cells of Flax, Haiku and Equinox, each as weights and a pure function.

A library is imported when one of its cases is built, so the names are available without it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax import GRU, LSTM, RNN, Bidirectional, ConvLSTM, GRUVariant, LSTMVariant, Stack
from lstm_jax.interop import from_equinox, from_flax, from_haiku, to_equinox, to_flax, to_haiku

SPACE = (6, 5)


@dataclass(frozen=True)
class Case:
    """One module of another library.

    Args:
        network: ``(D, H) -> network`` of this library that computes the same.
        peer: ``(D, H, dtype) -> (shapes of the weights, run)``, ``run(weights, xs) -> ys`` time-major.
        read: ``(weights, H) -> (network, params)``.
        write: ``(network, params) -> weights``.
        change: removes from the parameters what the library cannot hold.
        images: whether xs are images.
    """

    network: Callable[..., Any]
    peer: Callable[..., Any]
    read: Callable[..., Any]
    write: Callable[..., Any]
    change: Callable[..., Any] = field(default=lambda params: params)
    images: int = 0

    def xs(self, D, T=4, batch=2, seed=0, dtype="float32"):
        rng = np.random.default_rng(seed)
        return rng.normal(size=(T, batch, *SPACE[: self.images], D)).astype(dtype)


def nested(name, tensors):
    """The library's nested weights, from tensors by full name."""
    tree = {}
    for path, tensor in tensors.items():
        *outer, leaf = path.rsplit("/", 1) if name.startswith("haiku") else path.split("/")
        inner = tree
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[leaf] = tensor
    return [tree[key] for key in sorted(tree)] if "0" in tree else tree


def flat(tree, prefix=""):
    """The tensors of nested weights by full name."""
    pairs = enumerate(tree) if isinstance(tree, list) else tree.items()
    for key, value in pairs:
        if isinstance(value, (dict, list)):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def filled(shapes, seed=0, dtype="float32"):
    """Weights of the given shapes with random entries, biases included."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: (rng.normal(size=a.shape) * 0.6).astype(dtype), shapes)


# --- flax ---------------------------------------------------------------------------------------


def linen(name, *options, **more):
    def peer(D, H, dtype="float32"):
        from flax import linen as nn

        network = nn.RNN(getattr(nn, name)(H, *options, param_dtype=dtype, **more), time_major=True)
        return _linen(network, (1, 1, *SPACE[: len(options[0]) if options else 0], D), inner="cell")

    return peer


def linen_bidirectional(D, H, dtype="float32"):
    from flax import linen as nn

    both = [nn.RNN(nn.LSTMCell(H, param_dtype=dtype)) for _ in range(2)]
    return _linen(nn.Bidirectional(*both, time_major=True), (1, 1, D))


def _linen(network, shape, inner=None):
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape))["params"]
    if inner is None:
        return shapes, lambda weights, xs: network.apply({"params": weights}, xs)
    return shapes[inner], lambda weights, xs: network.apply({"params": {inner: weights}}, xs)


def nnx(name, **more):
    def peer(D, H, dtype="float32"):
        from flax import nnx

        cell = getattr(nnx, name)(D, H, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0), **more)
        return _nnx(nnx.RNN(cell, time_major=True), "cell")

    return peer


def nnx_bidirectional(D, H, dtype="float32"):
    from flax import nnx

    def one():
        return nnx.RNN(nnx.GRUCell(D, H, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0)))

    return _nnx(nnx.Bidirectional(one(), one(), time_major=True, rngs=nnx.Rngs(0)))


def _nnx(network, inner=None):
    from flax import nnx

    graph, state, rest = nnx.split(network, nnx.Param, ...)

    def run(weights, xs):
        new = jax.tree.map(lambda a: a, state)
        nnx.replace_by_pure_dict(new, weights if inner is None else {inner: weights})
        return nnx.merge(graph, new, jax.tree.map(lambda a: a, rest))(xs)

    shapes = nnx.to_pure_dict(state)
    return (shapes if inner is None else shapes[inner]), run


# --- haiku --------------------------------------------------------------------------------------


def haiku(make, images=0):
    """``make(hk, D, H)`` returns a Haiku core."""

    def peer(D, H, dtype="float32"):
        import haiku as hk

        def forward(xs):
            core = make(hk, D, H)
            state = jax.tree.map(lambda a: a.astype(dtype), core.initial_state(xs.shape[1]))
            return hk.dynamic_unroll(core, xs, state)[0]

        network = hk.without_apply_rng(hk.transform(forward))
        xs = jnp.zeros((1, 1, *SPACE[:images], D), dtype)
        return dict(jax.eval_shape(network.init, jax.random.key(0), xs)), network.apply

    return peer


def deep(hk, D, H):
    return hk.DeepRNN([hk.LSTM(H), hk.LSTM(H), hk.GRU(H)])


# --- equinox ------------------------------------------------------------------------------------


def equinox(name, **options):
    def peer(D, H, dtype="float32"):
        import equinox as eqx

        cell = getattr(eqx.nn, name)(D, H, dtype=jnp.dtype(dtype), key=jax.random.key(0), **options)
        shapes = {key: a for key, a in vars(cell).items() if isinstance(a, jax.Array)}

        def run(weights, xs):
            new = eqx.tree_at(lambda c: [getattr(c, key) for key in weights], cell, list(weights.values()))
            state = jnp.zeros((xs.shape[1], H), xs.dtype)

            def step(carry, x):
                carry = jax.vmap(new)(x, carry)
                return carry, carry[0] if name == "LSTMCell" else carry

            return jax.lax.scan(step, (state, state) if name == "LSTMCell" else state, xs)[1]

        return shapes, run

    return peer


def equinox_stack(D, H, dtype="float32"):
    each = [equinox("LSTMCell")(D, H, dtype), equinox("GRUCell")(H, H, dtype)]

    def run(weights, xs):
        for (_, layer), w in zip(each, weights, strict=True):
            xs = layer(w, xs)
        return xs

    return [shapes for shapes, _ in each], run


# --- all ----------------------------------------------------------------------------------------

to_linen = functools.partial(to_flax, api="linen")
to_nnx = functools.partial(to_flax, api="nnx")


def read_flax(weights, D):
    return from_flax(weights)


def read_haiku(weights, D):
    return from_haiku(weights)


def read_equinox(weights, D):
    return from_equinox(weights)


def with_tanh(weights, D):
    return from_flax(weights, activation=jnp.tanh)


def without_bias_hn(params):
    def change(p):
        return p._replace(bias_hn=None) if hasattr(p, "bias_hn") else p

    return jax.tree.map(change, params, is_leaf=lambda p: hasattr(p, "bias_hn"))


def conv(D, F):
    return ConvLSTM((*SPACE, D), F, (3, 2))


def conv1(D, F):
    return ConvLSTM((*SPACE[:1], D), F, (4,))


def images(read):
    return lambda weights, D: read(weights, input_shape=(*SPACE, D))


def stacked(D, H):
    return Stack((LSTM(D, H), LSTM(H, H), GRUVariant(H, H, reset_after=False)))


def relu(D, H):
    return RNN(D, H, activation=jax.nn.relu)


def tanh(D, H):
    return RNN(D, H, activation=jnp.tanh)


#: Arguments of Flax's cells, and arguments of from_flax for the same activations.
FUNCTIONS = {"activation_fn": jax.nn.softplus, "gate_fn": jax.nn.hard_sigmoid}
NAMED = {"activation": "softplus", "recurrent_activation": "hard_sigmoid"}


def with_functions(weights, D):
    return from_flax(weights, **NAMED)


def variant(kind):
    return lambda D, H: kind(D, H, **NAMED)


CASES = {
    "linen.LSTMCell": Case(LSTM, linen("LSTMCell"), read_flax, to_linen),
    "linen.OptimizedLSTMCell": Case(LSTM, linen("OptimizedLSTMCell"), read_flax, to_linen),
    "linen.GRUCell": Case(GRU, linen("GRUCell"), read_flax, to_linen),
    "linen.SimpleCell": Case(tanh, linen("SimpleCell"), with_tanh, to_linen),
    "linen.ConvLSTMCell": Case(conv, linen("ConvLSTMCell", (3, 2)), images(from_flax), to_linen, images=2),
    "linen.Bidirectional": Case(
        lambda D, H: Bidirectional(LSTM(D, H)), linen_bidirectional, read_flax, to_linen
    ),
    "nnx.LSTMCell": Case(LSTM, nnx("LSTMCell"), read_flax, to_nnx),
    "nnx.OptimizedLSTMCell": Case(
        LSTM, nnx("OptimizedLSTMCell"), read_flax, functools.partial(to_nnx, optimized=True)
    ),
    "nnx.GRUCell": Case(GRU, nnx("GRUCell"), read_flax, to_nnx, without_bias_hn),
    "nnx.SimpleCell": Case(tanh, nnx("SimpleCell"), with_tanh, to_nnx),
    "nnx.Bidirectional": Case(
        lambda D, H: Bidirectional(GRU(D, H)), nnx_bidirectional, read_flax, to_nnx, without_bias_hn
    ),
    "haiku.LSTM": Case(LSTM, haiku(lambda hk, D, H: hk.LSTM(H)), read_haiku, to_haiku),
    "haiku.GRU": Case(
        lambda D, H: GRUVariant(D, H, reset_after=False),
        haiku(lambda hk, D, H: hk.GRU(H)), read_haiku, to_haiku,
    ),
    "haiku.VanillaRNN": Case(relu, haiku(lambda hk, D, H: hk.VanillaRNN(H)), read_haiku, to_haiku),
    "haiku.Conv2DLSTM": Case(
        conv, haiku(lambda hk, D, H: hk.Conv2DLSTM(SPACE, H, (3, 2)), images=2),
        images(from_haiku), to_haiku, images=2,
    ),
    "haiku.DeepRNN": Case(
        stacked, haiku(deep),
        lambda weights, D: from_haiku(weights, layers=("lstm", "lstm_1", "gru")), to_haiku,
    ),
    "equinox.LSTMCell": Case(LSTM, equinox("LSTMCell"), read_equinox, to_equinox),
    "equinox.LSTMCell without bias": Case(
        lambda D, H: LSTM(D, H, use_bias=False),
        equinox("LSTMCell", use_bias=False), read_equinox, to_equinox,
    ),
    "equinox.GRUCell": Case(GRU, equinox("GRUCell"), read_equinox, to_equinox),
    "equinox list": Case(
        lambda D, H: Stack((LSTM(D, H), GRU(H, H))), equinox_stack, read_equinox, to_equinox
    ),
}  # fmt: skip

#: Without files in tests/goldens: the weights have the layout of the cells with tanh and sigmoid.
WITH_FUNCTIONS = {
    "linen.LSTMCell with functions": Case(
        variant(LSTMVariant), linen("LSTMCell", **FUNCTIONS), with_functions, to_linen
    ),
    "linen.GRUCell with functions": Case(
        variant(GRUVariant), linen("GRUCell", **FUNCTIONS), with_functions, to_linen
    ),
    "nnx.OptimizedLSTMCell with functions": Case(
        variant(LSTMVariant), nnx("OptimizedLSTMCell", **FUNCTIONS), with_functions,
        functools.partial(to_nnx, optimized=True),
    ),
    "nnx.GRUCell with functions": Case(
        variant(GRUVariant), nnx("GRUCell", **FUNCTIONS), with_functions, to_nnx, without_bias_hn
    ),
}  # fmt: skip

#: Cases that are only read: to_flax and to_haiku write the same function with other weights.
READ_ONLY = {
    "linen.ConvLSTMCell without bias": Case(
        conv1, linen("ConvLSTMCell", (4,), use_bias=False),
        lambda weights, D: from_flax(weights, input_shape=(SPACE[0], D)), to_linen, images=1,
    ),
    "haiku.VanillaRNN of one bias": Case(
        relu, haiku(lambda hk, D, H: hk.VanillaRNN(H, double_bias=False)), read_haiku, to_haiku
    ),
    "haiku.Conv1DLSTM": Case(
        conv1, haiku(lambda hk, D, H: hk.Conv1DLSTM(SPACE[:1], H, 4), images=1),
        lambda weights, D: from_haiku(weights, input_shape=(SPACE[0], D)), to_haiku, images=1,
    ),
}  # fmt: skip
