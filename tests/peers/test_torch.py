"""Comparison with PyTorch in float64: values, gradients, stacked layers, both directions, ragged lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

import lstm_jax  # noqa: E402
from benchmarks import weights  # noqa: E402
from lstm_jax import GRU, LSTM, RNN, Bidirectional, LSTMVariant, Stack  # noqa: E402

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("x64")]

CASES = {
    "lstm": (torch.nn.LSTM, {}, LSTM, {}),
    "lstm_projected": (torch.nn.LSTM, {"proj_size": 2}, LSTMVariant, {"proj_size": 2}),
    "gru": (torch.nn.GRU, {}, GRU, {}),
    "rnn_tanh": (torch.nn.RNN, {"nonlinearity": "tanh"}, RNN, {"activation": jnp.tanh}),
    "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}, RNN, {"activation": jax.nn.relu}),
}


def networks(name, D, H, layers, both):
    """A PyTorch module with random weights and biases, and the equal network of this library."""
    module_class, module_options, cell_class, cell_options = CASES[name]
    module = module_class(D, H, num_layers=layers, bidirectional=both, dtype=torch.float64, **module_options)
    cells = []
    for layer in range(layers):
        size = D if layer == 0 else cells[-1].output_size
        cell = cell_class(size, H, param_dtype="float64", **cell_options)
        cells.append(Bidirectional(cell) if both else cell)
    return module, Stack(tuple(cells))


def parameters(module, read):
    suffixes = ("", "_reverse") if module.bidirectional else ("",)
    layers = []
    for layer in range(module.num_layers):
        directions = tuple(weights.from_torch(module, layer, suffix, read) for suffix in suffixes)
        layers.append(directions if module.bidirectional else directions[0])
    return tuple(layers)


def as_carry(module, states):
    """The carry of nested tuples for one or two PyTorch arrays of shape (layers * directions, B, H)."""
    rows = list(zip(*states, strict=True)) if len(states) == 2 else list(states[0])
    if not module.bidirectional:
        return tuple(rows)
    return tuple(zip(rows[::2], rows[1::2], strict=True))


def weighted(arrays):
    """A weighted sum of all numbers, each with a different weight, of PyTorch or JAX arrays."""
    total = 0.0
    for array in arrays:
        count = int(np.prod(array.shape))
        weight = np.cos(np.arange(count)).reshape(tuple(array.shape))
        total = (
            total + (array * (torch.from_numpy(weight) if isinstance(array, torch.Tensor) else weight)).sum()
        )
    return total


def assert_close(found, expected):
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, np.asarray(b), rtol=1e-9, atol=1e-11)


def compare(name, seed, *, layers, both, ragged, implementation="auto"):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    T, B, D, H = (int(n) for n in rng.integers((2, 1, 1, 3), (8, 5, 6, 7)))
    module, network = networks(name, D, H, layers, both)
    xs = rng.normal(size=(T, B, D))
    lengths = rng.integers(1, T + 1, B) if ragged else None
    count = 2 if name.startswith("lstm") else 1
    sizes = [module.proj_size or H, H][:count]
    first = [rng.normal(size=(layers * (1 + both), B, size)) for size in sizes]

    torch_xs = torch.tensor(xs, requires_grad=True)
    torch_first = [torch.tensor(a, requires_grad=True) for a in first]
    given = torch_xs
    if ragged:
        pack = torch.nn.utils.rnn.pack_padded_sequence
        given = pack(torch_xs, torch.from_numpy(lengths), enforce_sorted=False)
    torch_ys, last = module(given, tuple(torch_first) if count == 2 else torch_first[0])
    if ragged:
        torch_ys, _ = torch.nn.utils.rnn.pad_packed_sequence(torch_ys, total_length=T)
    torch_last = list(last) if count == 2 else [last]
    weighted([torch_ys, *torch_last]).backward()

    @jax.jit
    def run(params, xs, carry):
        def loss(params, xs, carry):
            carry, ys = lstm_jax.unroll(
                network, params, xs, carry, lengths=lengths, implementation=implementation
            )
            pairs = [leaf for layer in carry for leaf in (layer if both else (layer,))]
            states = [jnp.stack(part) for part in (zip(*pairs, strict=True) if count == 2 else [pairs])]
            return weighted([ys, *states]), (carry, ys)

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, xs, carry)

    carry = as_carry(module, [jnp.asarray(a) for a in first])
    params = parameters(module, weights.value_of)
    (_, (jax_last, jax_ys)), (dparams, dxs, dcarry) = run(params, jnp.asarray(xs), carry)
    assert_close(jax_ys, torch_ys.detach())
    assert_close(jax_last, as_carry(module, [a.detach().numpy() for a in torch_last]))
    assert_close(dparams, parameters(module, weights.gradient_of))
    assert_close(dxs, torch_xs.grad)
    assert_close(dcarry, as_carry(module, [a.grad.numpy() for a in torch_first]))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, both, ragged, seed):
    compare(name, 10 * seed + 5 * both + 2 * ragged, layers=1 + seed, both=both, ragged=ragged)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_the_plain_scan(name):
    compare(name, 31, layers=1, both=False, ragged=True, implementation="scan")


@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
def test_three_layers(both):
    compare("lstm", 77, layers=3, both=both, ragged=True)


def test_torch_init_has_the_distribution_of_torch():
    """Sorted weights are close, so the distributions are equal. PyTorch's two biases are summed."""
    H = 256
    module = torch.nn.LSTM(20, H)
    expected = weights.from_torch(module, 0, "", weights.value_of)
    cell = LSTM(20, H, w_hh_init=jax.nn.initializers.zeros)
    found = lstm_jax.torch_init(cell, jax.random.key(0))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.sort(np.ravel(a)), np.sort(np.ravel(b))
        assert np.max(np.abs(a - b)) < 0.2 * H**-0.5
