"""Weights of Flax's own cells, read by ``from_flax``, in the modules for Flax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

nnx = pytest.importorskip("flax.nnx", reason="reads Flax's cells")

from flax import linen as nn  # noqa: E402

import lstm_jax.linen  # noqa: E402
import lstm_jax.nnx  # noqa: E402
from lstm_jax.interop import from_flax  # noqa: E402

pytestmark = pytest.mark.peers

B, T, D, H = 2, 5, 3, 4
XS = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
#: Options that the weights do not determine.
OPTIONS = {"SimpleCell": {"activation": "tanh"}}
NAMES = ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell"]


@pytest.mark.parametrize("name", NAMES)
def test_nnx(name):
    flax = getattr(nnx, name)(D, H, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(0))
    cell, params = from_flax(nnx.to_pure_dict(nnx.state(flax, nnx.Param)), **OPTIONS.get(name, {}))
    expected = nnx.RNN(flax)(jnp.asarray(XS))
    for module in (
        nnx.RNN(lstm_jax.nnx.Cell(cell, params=params)),
        lstm_jax.nnx.Recurrent(cell, params=params),
    ):
        np.testing.assert_allclose(module(jnp.asarray(XS)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_linen(name):
    flax = nn.RNN(getattr(nn, name)(features=H))
    expected, variables = flax.init_with_output(jax.random.key(0), XS)
    cell, params = from_flax(variables["params"]["cell"], **OPTIONS.get(name, {}))
    module = lstm_jax.linen.Recurrent(cell)
    ys = module.apply({"params": lstm_jax.linen.to_variables(params)}, XS)
    np.testing.assert_allclose(ys, expected, rtol=1e-5, atol=1e-6)
