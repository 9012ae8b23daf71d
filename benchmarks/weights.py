"""Conversions of parameters between this library and others, one function for each layout.

``from_torch`` reads a torch module. The others convert parameters of lstm_jax to another library's layout
with JAX operations, so that gradients can be mapped back. The benchmark and the tests use them.
"""

import jax.numpy as jnp
import numpy as np

from lstm_jax import GRUParams, GRUVariantParams, LSTMParams, LSTMVariantParams, RNNParams

GRU_PARAMS = GRUParams, GRUVariantParams


def gates(array, count):
    return jnp.split(array, count, axis=-1)


def side_by_side(*parts):
    return jnp.concatenate(parts, axis=-1)


# --- torch: transposed weights, two biases --------------------------------------------------------------


def from_torch(module, layer, suffix, read):
    """Parameters of one layer and direction, where ``read`` returns the value or the gradient of a tensor.

    The gradient with respect to the sum of two biases equals the gradient with respect to either bias, so
    only values are added.
    """
    values = {
        name: read(getattr(module, f"{name}_l{layer}{suffix}"))
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    w_ih, w_hh = values["weight_ih"].T, values["weight_hh"].T
    b_ih, b_hh = values["bias_ih"], values["bias_hh"]
    is_value = read is value_of
    kind, H = type(module).__name__, w_hh.shape[0]
    if kind == "GRU":
        outside = np.concatenate([b_hh[: 2 * H], np.zeros(H)])
        return GRUParams(w_ih, w_hh, b_ih + outside if is_value else b_ih, b_hh[2 * H :])
    bias = b_ih + b_hh if is_value else b_ih
    params = (LSTMParams if kind == "LSTM" else RNNParams)(w_ih, w_hh, bias)
    if getattr(module, "proj_size", 0):
        w_hr = read(getattr(module, f"weight_hr_l{layer}{suffix}")).T
        return LSTMVariantParams(w_ih, w_hh, bias, w_hr=w_hr)
    return params


def to_torch(params):
    """The tensors of one layer and direction of ``torch.nn.LSTM`` or ``torch.nn.GRU``, by name."""
    bias_hh = jnp.zeros_like(params.bias)
    if isinstance(params, GRU_PARAMS) and params.bias_hn is not None:
        bias_hh = bias_hh.at[-params.bias_hn.size :].set(params.bias_hn)
    return {
        "weight_ih": params.w_ih.T,
        "weight_hh": params.w_hh.T,
        "bias_ih": params.bias,
        "bias_hh": bias_hh,
    }


def value_of(tensor):
    return tensor.detach().numpy()


def gradient_of(tensor):
    return tensor.grad.numpy()


# --- jax.experimental.rnn: torch's tensors in one flat vector, weights first, then biases ------


def to_cudnn(cells):
    """``cells``: the parameters of each layer and direction, in order of layers."""
    tensors = [to_torch(params) for params in cells]
    order = [(t["weight_ih"], t["weight_hh"]) for t in tensors]
    order += [(t["bias_ih"], t["bias_hh"]) for t in tensors]
    return jnp.concatenate([jnp.ravel(a) for pair in order for a in pair])


# --- flax linen: one kernel per gate; recurrent biases (LSTM) or input biases (GRU, RNN) ----


def to_linen_lstm(params):
    flax = {}
    for name, w, r, b in zip(
        "ifgo", gates(params.w_ih, 4), gates(params.w_hh, 4), gates(params.bias, 4), strict=True
    ):
        flax |= {f"i{name}": {"kernel": w}, f"h{name}": {"kernel": r, "bias": b}}
    return flax


def to_linen_gru(params):
    flax = {}
    for name, w, r, b in zip(
        "rzn", gates(params.w_ih, 3), gates(params.w_hh, 3), gates(params.bias, 3), strict=True
    ):
        flax |= {f"i{name}": {"kernel": w, "bias": b}, f"h{name}": {"kernel": r}}
    flax["hn"]["bias"] = params.bias_hn
    return flax


def to_linen_rnn(params):
    return {"i": {"kernel": params.w_ih, "bias": params.bias}, "h": {"kernel": params.w_hh}}


# --- flax nnx: linen's layout, or one kernel for all gates --------------------------


def to_nnx_lstm(params):
    return {("if_" if name == "if" else name): leaf for name, leaf in to_linen_lstm(params).items()}


def to_nnx_optimized_lstm(params):
    return {"dense_i": {"kernel": params.w_ih}, "dense_h": {"kernel": params.w_hh, "bias": params.bias}}


def to_nnx_gru(params):
    """nnx has no bias inside the product with the reset gate."""
    assert params.bias_hn is None
    return {"dense_i": {"kernel": params.w_ih, "bias": params.bias}, "dense_h": {"kernel": params.w_hh}}


def to_nnx_rnn(params):
    return {"dense_i": {"kernel": params.w_ih, "bias": params.bias}, "dense_h": {"kernel": params.w_hh}}


# --- haiku: gates i g f o, rows [x; h], 1 added to the forget gate in the step -------------------


def to_haiku_lstm(params):
    i, f, g, o = gates(jnp.concatenate([params.w_ih, params.w_hh]), 4)
    b_i, b_f, b_g, b_o = gates(params.bias, 4)
    return {"lstm/linear": {"w": side_by_side(i, g, f, o), "b": side_by_side(b_i, b_g, b_f - 1, b_o)}}


def to_haiku_gru(params):
    """Gates z r a. Haiku's z weighs the new state, lstm_jax's the old one; sigmoid(-x) = 1 - sigmoid(x)."""

    def reordered(array):
        r, z, n = gates(array, 3)
        return side_by_side(-z, r, n)

    return {
        "gru": {
            "w_i": reordered(params.w_ih),
            "w_h": reordered(params.w_hh),
            "b": reordered(params.bias),
        }
    }


def to_haiku_rnn(params):
    return {
        "vanilla_rnn/linear": {"w": params.w_ih, "b": params.bias},
        "vanilla_rnn/linear_1": {"w": params.w_hh, "b": jnp.zeros_like(params.bias)},
    }


# --- equinox: transposed, torch's order ---------------------------------------------------------


def to_equinox(params):
    fields = {"weight_ih": params.w_ih.T, "weight_hh": params.w_hh.T, "bias": params.bias}
    return fields | ({"bias_n": params.bias_hn} if isinstance(params, GRU_PARAMS) else {})


# --- keras: a list of arrays; GRU gates z r h, with two biases if reset_after -----------------


def to_keras(params):
    if not isinstance(params, GRU_PARAMS):
        return [params.w_ih, params.w_hh, params.bias]

    def reordered(array):
        r, z, n = gates(array, 3)
        return side_by_side(z, r, n)

    bias = reordered(params.bias)
    if params.bias_hn is not None:
        inside = jnp.concatenate([jnp.zeros(2 * params.bias_hn.size, bias.dtype), params.bias_hn])
        bias = jnp.stack([bias, inside])
    return [reordered(params.w_ih), reordered(params.w_hh), bias]
