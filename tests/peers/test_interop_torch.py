"""Conversions live against PyTorch in float64: outputs and gradients of its weights, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

import lstm_jax  # noqa: E402
from lstm_jax.interop import from_torch, to_torch  # noqa: E402

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("x64")]

KINDS = {
    "lstm": (torch.nn.LSTM, {}),
    "lstm_projected": (torch.nn.LSTM, {"proj_size": 2}),
    "gru": (torch.nn.GRU, {}),
    "rnn_tanh": (torch.nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
}


def made(kind, layers, both, bias, seed):
    """A module with weights of its own, what from_torch asks for, and inputs."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    T, B, D, H = (int(n) for n in rng.integers((2, 1, 1, 3), (7, 4, 6, 7)))
    theirs, options = KINDS[kind]
    module = theirs(D, H, layers, bidirectional=both, bias=bias, dtype=torch.float64, **options)
    asked = {"activation": options["nonlinearity"]} if "nonlinearity" in options else {}
    return module, asked, rng.normal(size=(T, B, D))


def weights_of(array):
    """So that every number of an output matters differently."""
    return np.cos(np.arange(array.size)).reshape(array.shape)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_from_torch(kind, both, bias):
    layers = 2 if both else 1 + bias
    module, asked, xs = made(kind, layers, both, bias, seed=7 * layers + both)
    ys, _ = module(torch.from_numpy(xs))
    expected = ys.detach().numpy()
    (ys * torch.from_numpy(weights_of(expected))).sum().backward()
    state_dict = {name: jnp.asarray(tensor.numpy()) for name, tensor in module.state_dict().items()}

    @jax.jit
    def loss(state_dict):
        network, params = from_torch(state_dict, **asked)
        _, ys = lstm_jax.unroll(network, params, jnp.asarray(xs))
        return jnp.sum(ys * weights_of(expected)), ys

    gradients, ours = jax.grad(loss, has_aux=True)(state_dict)
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-12)
    named = dict(module.named_parameters())
    assert gradients.keys() == named.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, named[name].grad.numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_ours_in_torch(kind, both, bias):
    """Our own weights, loaded strictly, give our outputs; they come back to the bit."""
    module, asked, xs = made(kind, 2, both, bias, seed=3 + both)
    network, params = from_torch(module.state_dict(), **asked)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.5), params)
    _, ys = jax.jit(lambda params: lstm_jax.unroll(network, params, jnp.asarray(xs)))(params)
    state_dict = {name: torch.from_numpy(array) for name, array in to_torch(network, params).items()}
    module.load_state_dict(state_dict, strict=True)
    with torch.no_grad():
        theirs, _ = module(torch.from_numpy(xs))
    np.testing.assert_allclose(ys, theirs.numpy(), rtol=1e-10, atol=1e-12)
    again, back = from_torch(module.state_dict(), **asked)
    assert again == network
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(back), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells_of_one_step(kind):
    module = getattr(torch.nn, kind)(3, 4, dtype=torch.float64)
    asked = {"activation": "tanh"} if kind == "RNNCell" else {}
    cell, params = from_torch(module.state_dict(), **asked)
    x, h, c = (np.random.default_rng(n).normal(size=(2, size)) for n, size in enumerate((3, 4, 4)))
    carry = (h, c) if kind == "LSTMCell" else h
    theirs = module(torch.from_numpy(x), jax.tree.map(torch.from_numpy, carry))
    ours, _ = cell.step(params, jax.tree.map(jnp.asarray, carry), jnp.asarray(x))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_a_part_of_a_larger_module():
    """By its prefix; the parameters do not change with the module afterwards."""
    module = torch.nn.ModuleDict({"encoder": torch.nn.GRU(3, 4), "head": torch.nn.Linear(4, 2)})
    cell, params = from_torch(module.state_dict(), prefix="encoder")
    before = jax.tree.map(np.array, params)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.zero_()
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    mine = to_torch(cell, params, prefix="encoder")
    missing, unexpected = module.load_state_dict(
        {name: torch.from_numpy(array) for name, array in mine.items()}, strict=False
    )
    assert missing == ["head.weight", "head.bias"] and not unexpected


def test_half_precision_tensors_are_told_how_to_come():
    with pytest.raises(ValueError, match=r"\.float\(\)\.numpy\(\)"):
        from_torch(torch.nn.LSTM(2, 3, dtype=torch.bfloat16).state_dict())


def test_the_two_lines_that_convert_a_pt_file(tmp_path):
    """They are what the refusal says, and they run."""
    module = torch.nn.LSTM(2, 3)
    torch.save(module.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="weights_only=True") as error:
        lstm_jax.interop.load(tmp_path / "model.pt")
    lines = str(error.value).split("\n\n")[1]
    assert len(lines.splitlines()) == 2
    exec(lines, {})
    found = lstm_jax.interop.load(tmp_path / "model.safetensors")
    assert {name: array.shape for name, array in found.items()} == {
        name: tuple(tensor.shape) for name, tensor in module.state_dict().items()
    }


def test_a_pt_file_by_another_name(tmp_path):
    torch.save(torch.nn.LSTM(2, 3).state_dict(), tmp_path / "model.npz")
    with pytest.raises(ValueError, match=r"nothing but arrays"):
        lstm_jax.interop.load(tmp_path / "model.npz")
