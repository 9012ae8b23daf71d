"""Conversions against Flax, Haiku and Equinox in float64: weights both ways, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_peers import CASES, READ_ONLY, WITH_FUNCTIONS, filled

import lstm_jax
import lstm_jax.interop

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("x64", "default_promotion")]


def sizes(name):
    """The sizes T, batch, D and H of a case: they differ between cases, and are the same in every run."""
    rng = np.random.default_rng(sum(map(ord, name)))
    return [int(n) for n in rng.integers((1, 1, 1, 1), (6, 4, 6, 6))]


def built(name):
    peer = name.split(".")[0].split()[0]
    pytest.importorskip({"linen": "flax", "nnx": "flax"}.get(peer, peer), reason=f"compares with {peer}")
    case = (CASES | READ_ONLY | WITH_FUNCTIONS)[name]
    T, batch, D, H = sizes(name)
    shapes, run = case.peer(D, H, "float64")
    return case, D, H, jnp.asarray(case.xs(D, T, batch, dtype="float64")), shapes, run


def assert_equal(here, peer, *given):
    """Compare values, and gradients with respect to all arguments."""

    def with_gradients(run):
        def loss(*given):
            ys = run(*given)
            return jnp.sum(jnp.sin(ys) + ys**2), ys

        every = tuple(range(len(given)))
        return jax.jit(jax.value_and_grad(loss, argnums=every, has_aux=True))(*given)

    a, b = with_gradients(here), with_gradients(peer)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [*CASES, *READ_ONLY, *WITH_FUNCTIONS])
def test_weights_read_from_the_library(name):
    case, D, _, xs, shapes, peer = built(name)
    weights = jax.tree.map(jnp.asarray, filled(shapes, dtype="float64"))

    def here(weights, xs):
        return lstm_jax.unroll(*case.read(weights, D), xs)[1]

    assert_equal(here, peer, weights, xs)


@pytest.mark.parametrize("name", [*CASES, *WITH_FUNCTIONS])
def test_weights_written_for_the_library(name):
    case, D, H, xs, shapes, run = built(name)
    network = case.network(D, H)
    shapes_here = jax.eval_shape(network.init, jax.random.key(0))
    params = case.change(jax.tree.map(jnp.asarray, filled(shapes_here, dtype="float64")))
    written = case.write(network, params)
    assert jax.tree.map(jnp.shape, written) == jax.tree.map(jnp.shape, shapes)
    assert_equal(
        lambda params, xs: lstm_jax.unroll(network, params, xs)[1],
        lambda params, xs: run(case.write(network, params), xs),
        params,
        xs,
    )


def test_nnx_update_takes_what_to_flax_writes():
    pytest.importorskip("flax", reason="compares with flax")
    from flax import nnx

    cell = lstm_jax.LSTM(3, 4)
    params = cell.init(jax.random.key(0))
    peer = nnx.LSTMCell(3, 4, rngs=nnx.Rngs(1))
    nnx.update(peer, lstm_jax.interop.to_flax(cell, params, api="nnx"))
    x = jnp.ones((2, 3))
    h, c = cell.initial_carry((2,))
    (c_t, h_t), _ = peer((c + 0.5, h), x)  # Flax's carry is (c, h)
    (h_o, c_o), _ = cell.step(params, (h, c + 0.5), x)
    np.testing.assert_allclose((h_t, c_t), (h_o, c_o), rtol=1e-6)
    back = nnx.to_pure_dict(nnx.state(peer, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, lstm_jax.interop.from_flax(back)[1], params)


def test_equinox_is_read_by_vars_and_written_by_tree_at():
    eqx = pytest.importorskip("equinox", reason="compares with equinox")
    peer = eqx.nn.GRUCell(3, 4, key=jax.random.key(0))
    cell, params = lstm_jax.interop.from_equinox(vars(peer))
    x, h = jnp.ones(3), jnp.full(4, 0.3)
    np.testing.assert_allclose(cell.step(params, h, x)[1], peer(x, h), rtol=1e-9)
    doubled = jax.tree.map(lambda a: 2 * a, params)
    new = lstm_jax.interop.to_equinox(cell, doubled)
    peer = eqx.tree_at(lambda c: [getattr(c, name) for name in new], peer, list(new.values()))
    np.testing.assert_allclose(cell.step(doubled, h, x)[1], peer(x, h), rtol=1e-9)


def test_haiku_within_a_module():
    """With a scope, to_haiku writes the names that Haiku expects."""
    hk = pytest.importorskip("haiku", reason="compares with haiku")

    class Agent(hk.Module):
        def __init__(self):
            super().__init__()
            self.core = hk.DeepRNN([hk.LSTM(4), hk.LSTM(4)])

        def __call__(self, xs):
            return hk.dynamic_unroll(self.core, xs, self.core.initial_state(2))[0]

    agent = hk.without_apply_rng(hk.transform(lambda xs: Agent()(xs)))
    network = lstm_jax.Stack((lstm_jax.LSTM(3, 4), lstm_jax.LSTM(4, 4)))
    params = network.init(jax.random.key(0))
    xs = jnp.ones((5, 2, 3))
    written = lstm_jax.interop.to_haiku(network, params, scope="agent/~")
    assert set(written) == set(agent.init(jax.random.key(0), xs))
    ys = agent.apply(written, xs)
    np.testing.assert_allclose(lstm_jax.unroll(network, params, xs)[1], ys, rtol=1e-6, atol=1e-7)
    layers = ("agent/~/lstm", "agent/~/lstm_1")
    back = lstm_jax.interop.from_haiku(written, layers=layers)
    jax.tree.map(np.testing.assert_array_equal, back[1], params)


# --- without conversion: unroll inside modules of the other libraries -----------------------------


def test_a_haiku_module_calls_unroll():
    hk = pytest.importorskip("haiku", reason="compares with haiku")

    class Recurrent(hk.Module):
        """A Haiku module that contains a cell or network of lstm_jax."""

        def __init__(self, network, name=None):
            super().__init__(name=name)
            self.network = network

        def __call__(self, xs, carry=None, **options):
            init = self.network.init
            values = init(hk.next_rng_key()) if hk.running_init() else jax.eval_shape(init, jax.random.key(0))

            def parameter(path, leaf):
                name = jax.tree_util.keystr(path, simple=True, separator="_")
                return hk.get_parameter(name, leaf.shape, leaf.dtype, init=lambda *_: leaf)

            params = jax.tree_util.tree_map_with_path(parameter, values)
            return lstm_jax.unroll(self.network, params, xs, carry, **options)

    network = lstm_jax.Stack((lstm_jax.LSTM(3, 4), lstm_jax.GRU(4, 2)))
    model = hk.without_apply_rng(hk.transform(lambda xs, **options: Recurrent(network)(xs, **options)))
    xs, lengths = jnp.ones((5, 2, 3)), jnp.array([5, 2])
    weights = model.init(jax.random.key(0), xs)
    _, ys = jax.jit(model.apply)(weights, xs, lengths=lengths)
    names = ["0_w_ih", "0_w_hh", "0_bias", "1_w_ih", "1_w_hh", "1_bias", "1_bias_hn"]
    assert set(weights["recurrent"]) == set(names)
    structure = jax.tree.structure(jax.eval_shape(network.init, jax.random.key(0)))
    here = jax.tree.unflatten(structure, [weights["recurrent"][name] for name in names])
    np.testing.assert_allclose(ys, lstm_jax.unroll(network, here, xs, lengths=lengths)[1], rtol=1e-6)
    grads = jax.grad(lambda weights: jnp.sum(model.apply(weights, xs)[1] ** 2))(weights)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(grads))


def test_an_equinox_module_calls_unroll():
    eqx = pytest.importorskip("equinox", reason="compares with equinox")

    class Recurrent(eqx.Module):
        """An Equinox module that contains a cell or network of lstm_jax."""

        network: lstm_jax.LSTM = eqx.field(static=True)
        params: lstm_jax.LSTMParams

        def __init__(self, network, *, key):
            self.network, self.params = network, network.init(key)

        def __call__(self, xs, carry=None, **options):
            return lstm_jax.unroll(self.network, self.params, xs, carry, **options)

    model = Recurrent(lstm_jax.LSTM(3, 4), key=jax.random.key(0))
    xs, lengths = jnp.ones((5, 2, 3)), jnp.array([5, 2])

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(model):
        return jnp.sum(model(xs, lengths=lengths)[1] ** 2)

    value, grads = loss(model)
    _, ys = lstm_jax.unroll(model.network, model.params, xs, lengths=lengths)
    np.testing.assert_allclose(value, jnp.sum(ys**2), rtol=1e-6)
    assert grads.params.w_ih.shape == (3, 16) and np.any(grads.params.w_ih != 0)
    one = eqx.filter_vmap(model, in_axes=1, out_axes=1)(xs)[1]  # row by row, as Equinox's cells
    np.testing.assert_allclose(one, model(xs)[1], rtol=1e-6)
