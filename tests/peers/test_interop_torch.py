"""Conversions against PyTorch in float64: outputs and gradients of weights, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="compares with PyTorch")

from torch.nn.utils import prune  # noqa: E402

import lstm_jax  # noqa: E402
from lstm_jax.interop import from_torch, to_torch  # noqa: E402

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("x64")]

MODULES = {
    "lstm": (torch.nn.LSTM, {}),
    "lstm_projected": (torch.nn.LSTM, {"proj_size": 2}),
    "gru": (torch.nn.GRU, {}),
    "rnn_tanh": (torch.nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
}


def made(kind, layers, both, bias, seed):
    """A module with random weights, arguments of from_torch, and inputs."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    T, B, D, H = (int(n) for n in rng.integers((2, 1, 1, 3), (7, 4, 6, 7)))
    module_type, options = MODULES[kind]
    module = module_type(D, H, layers, bidirectional=both, bias=bias, dtype=torch.float64, **options)
    arguments = {"activation": options["nonlinearity"]} if "nonlinearity" in options else {}
    return module, arguments, rng.normal(size=(T, B, D))


def weights_of(array):
    """Weights for a loss, different for every entry of an output."""
    return np.cos(np.arange(array.size)).reshape(array.shape)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("kind", MODULES)
def test_values_and_gradients_from_torch(kind, both, bias):
    layers = 2 if both else 1 + bias
    module, arguments, xs = made(kind, layers, both, bias, seed=7 * layers + both)
    ys, _ = module(torch.from_numpy(xs))
    expected = ys.detach().numpy()
    (ys * torch.from_numpy(weights_of(expected))).sum().backward()
    state_dict = {name: jnp.asarray(tensor.numpy()) for name, tensor in module.state_dict().items()}

    @jax.jit
    def loss(state_dict):
        network, params = from_torch(state_dict, **arguments)
        _, ys = lstm_jax.unroll(network, params, jnp.asarray(xs))
        return jnp.sum(ys * weights_of(expected)), ys

    gradients, found = jax.grad(loss, has_aux=True)(state_dict)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    named = dict(module.named_parameters())
    assert gradients.keys() == named.keys()
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, named[name].grad.numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("kind", MODULES)
def test_weights_written_for_torch(kind, both, bias):
    """A module with the written weights agrees with ``unroll``. Reading them returns equal parameters."""
    module, arguments, xs = made(kind, 2, both, bias, seed=3 + both)
    network, params = from_torch(module.state_dict(), **arguments)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.5), params)
    _, ys = jax.jit(lambda params: lstm_jax.unroll(network, params, jnp.asarray(xs)))(params)
    state_dict = {name: torch.from_numpy(array) for name, array in to_torch(network, params).items()}
    module.load_state_dict(state_dict, strict=True)
    with torch.no_grad():
        expected, _ = module(torch.from_numpy(xs))
    np.testing.assert_allclose(ys, expected.numpy(), rtol=1e-10, atol=1e-12)
    again, back = from_torch(module.state_dict(), **arguments)
    assert again == network
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(back), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells_of_one_step(kind):
    module = getattr(torch.nn, kind)(3, 4, dtype=torch.float64)
    arguments = {"activation": "tanh"} if kind == "RNNCell" else {}
    cell, params = from_torch(module.state_dict(), **arguments)
    x, h, c = (np.random.default_rng(n).normal(size=(2, size)) for n, size in enumerate((3, 4, 4)))
    carry = (h, c) if kind == "LSTMCell" else h
    expected = module(torch.from_numpy(x), jax.tree.map(torch.from_numpy, carry))
    found, _ = cell.step(params, jax.tree.map(jnp.asarray, carry), jnp.asarray(x))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-10, atol=1e-12)


def test_a_part_of_a_larger_module():
    """A prefix selects the part. Later changes of the module do not change the parameters."""
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


def test_bfloat16_there_and_back():
    """The code of the docstring: equal bits, and the module has the outputs of the cell."""
    module = torch.nn.LSTM(2, 3, dtype=torch.bfloat16)
    network, params = from_torch(module.state_dict())
    assert network.param_dtype == jnp.bfloat16
    for name, tensor in module.named_parameters():
        if name.startswith("weight"):
            weight = getattr(params, "w_" + name.split("_")[1])
            np.testing.assert_array_equal(weight.T.astype(np.float32), tensor.detach().float().numpy())
    changed = jax.tree.map(lambda a: -2 * a, params)
    state_dict = {
        name: torch.from_numpy(array.astype("float32")) for name, array in to_torch(network, changed).items()
    }
    module.load_state_dict(state_dict, strict=True)
    assert module.weight_hh_l0.dtype == torch.bfloat16
    jax.tree.map(np.testing.assert_array_equal, from_torch(module.state_dict())[1], changed)


def test_tensors_that_numpy_does_not_read():
    """Parameters that require gradients, and tensors inside an autograd graph."""
    module = torch.nn.GRU(2, 3)
    _, expected = from_torch(module.state_dict())
    for given in (dict(module.named_parameters()), {n: 1.0 * p for n, p in module.named_parameters()}):
        jax.tree.map(np.testing.assert_array_equal, from_torch(given)[1], expected)


@pytest.mark.parametrize("old", [False, True], ids=["parametrizations", "weight_norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm(old):
    norm = torch.nn.utils.weight_norm if old else torch.nn.utils.parametrizations.weight_norm
    torch.manual_seed(0)
    module = torch.nn.LSTM(3, 4, 2, bidirectional=True, dtype=torch.float64)
    for name in ("weight_hh_l0", "weight_ih_l1_reverse"):
        norm(module, name)
        with torch.no_grad():  # so that g is not the norm of v any more
            g = module.weight_hh_l0_g if old else module.parametrizations.weight_hh_l0.original0
            g.mul_(torch.rand_like(g) + 0.5)
    assert any("original1" in name or name.endswith("_v") for name in module.state_dict())
    xs = np.random.default_rng(0).normal(size=(5, 2, 3))
    ys = module(torch.from_numpy(xs))[0].detach().numpy()  # the older weight norm sets the weight here
    network, params = from_torch(module.state_dict())
    for name, weight in (
        ("weight_hh_l0", params[0].forward.w_hh),
        ("weight_ih_l1_reverse", params[1].backward.w_ih),
    ):
        np.testing.assert_allclose(weight.T, getattr(module, name).detach().numpy(), rtol=1e-14)
    np.testing.assert_allclose(lstm_jax.unroll(network, params, jnp.asarray(xs))[1], ys, rtol=1e-10)


@pytest.mark.parametrize("dim", [None, 0, 1])
@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l0"])
@pytest.mark.parametrize("H", [1, 4])
def test_weight_norm_along_any_axis(dim, name, H):
    module = torch.nn.RNN(1, H, dtype=torch.float64)
    torch.nn.utils.parametrizations.weight_norm(module, name, dim=dim)
    with torch.no_grad():
        module.parametrizations[name].original0.mul_(1.5)
    _, params = from_torch(module.state_dict(), activation="tanh")
    weight = params.w_hh if "hh" in name else params.w_ih
    np.testing.assert_allclose(weight.T, getattr(module, name).detach().numpy(), rtol=1e-14)


def test_weight_norm_of_a_bias():
    module = torch.nn.LSTM(3, 4)
    torch.nn.utils.parametrizations.weight_norm(module, "bias_hh_l0")
    with pytest.raises(ValueError, match=r"bias_hh_l0\.original0 \(16,\).*matrices.*remove_parametrizations"):
        from_torch(module.state_dict())


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_the_prefix_of_a_reparametrized_module(norm):
    """Without ``prefix=``, the message gives it."""
    whole = torch.nn.ModuleDict({"encoder": torch.nn.GRU(3, 4)})
    getattr(torch.nn.utils.parametrizations, norm)(whole["encoder"], "weight_hh_l0")
    with pytest.raises(ValueError, match=r"There are recurrent weights with prefix='encoder\.'"):
        from_torch(whole.state_dict())


def test_tensors_that_numpy_cannot_read():
    state_dict = torch.nn.LSTM(3, 4, device="meta").state_dict()
    with pytest.raises(ValueError, match=r"weight_hh_l0 of type Tensor, which NumPy cannot read .*no data"):
        from_torch(state_dict)


def test_other_reparametrizations():
    module = torch.nn.LSTM(3, 4)
    torch.nn.utils.parametrizations.spectral_norm(module, "weight_hh_l0")
    with pytest.raises(ValueError, match=r"parametrizations\.weight_hh_l0\.original"):
        from_torch(module.state_dict())
    module = torch.nn.LSTM(3, 4)
    prune.l1_unstructured(module, "weight_hh_l0", 0.5)
    with pytest.raises(ValueError, match=r"weight_hh_l0_orig.*prune\.remove"):
        from_torch(module.state_dict())
    prune.remove(module, "weight_hh_l0")
    assert np.mean(from_torch(module.state_dict())[1].w_hh == 0) >= 0.5


class WeightDrop(torch.nn.Module):
    """As in AWD-LSTM: the inner module has the raw weight and, after a call, the dropped one."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        weight = module.weight_hh_l0
        del module._parameters["weight_hh_l0"]
        module.register_parameter("weight_hh_l0_raw", torch.nn.Parameter(weight.data))

    def forward(self, xs):
        dropped = torch.nn.functional.dropout(self.module.weight_hh_l0_raw, 0.5, self.training)
        self.module.weight_hh_l0 = torch.nn.Parameter(dropped)
        return self.module(xs)


class WeightDropout(WeightDrop):
    """As in fastai: the wrapper has the raw weight."""

    def __init__(self, module):
        super().__init__(module)
        self.weight_hh_l0_raw = module.weight_hh_l0_raw
        del module._parameters["weight_hh_l0_raw"]

    def forward(self, xs):
        dropped = torch.nn.functional.dropout(self.weight_hh_l0_raw, 0.5, self.training)
        self.module.weight_hh_l0 = torch.nn.Parameter(dropped)
        return self.module(xs)


@pytest.mark.parametrize("wrapper", [WeightDrop, WeightDropout])
@pytest.mark.parametrize("prefix", ["", "rnns.0", "rnns.0.module."])
def test_weight_drop(wrapper, prefix):
    """Before a call, and after one, when the state dict also contains the dropped weight."""
    xs = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 2, 3)))
    module = wrapper(torch.nn.LSTM(3, 4, dtype=torch.float64))
    whole = torch.nn.ModuleDict({"rnns": torch.nn.ModuleList([module])}) if prefix else module
    before = from_torch(whole.state_dict(), prefix=prefix)
    module(xs)
    assert any(name.endswith("weight_hh_l0") for name in whole.state_dict())
    network, params = from_torch(whole.state_dict(), prefix=prefix)
    jax.tree.map(np.testing.assert_array_equal, params, before[1])
    ys = module.eval()(xs)[0].detach().numpy()
    np.testing.assert_allclose(lstm_jax.unroll(network, params, jnp.asarray(xs.numpy()))[1], ys, rtol=1e-10)


def test_the_two_lines_that_convert_a_pt_file(tmp_path, monkeypatch):
    """The lines in the error message run."""
    monkeypatch.chdir(tmp_path)
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
