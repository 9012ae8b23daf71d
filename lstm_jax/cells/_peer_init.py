"""Default initial parameters of PyTorch and Keras."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax._errors import check_key, value_error
from lstm_jax._types import Array, Params
from lstm_jax.cells._init import glorot_uniform, orthogonal
from lstm_jax.cells.gru import GRUParams
from lstm_jax.cells.gru_variant import GRUVariantParams
from lstm_jax.cells.lstm import LSTMParams
from lstm_jax.cells.lstm_variant import LSTMVariantParams
from lstm_jax.cells.readout import ReadoutParams
from lstm_jax.cells.rnn import RNNParams

_LSTMS = (LSTMParams, LSTMVariantParams)
_GRUS = (GRUParams, GRUVariantParams)


def torch_init(network: Any, key: Array) -> Params:
    r"""Parameters with PyTorch's default distributions, for a cell or a network.

    Every weight and each of PyTorch's two biases is uniform in :math:`\pm 1/\sqrt{H}`; ``bias`` is the sum of
    the two. The parameters of a readout are uniform in :math:`\pm 1/\sqrt{fan_{in}}`, as in PyTorch's
    ``Linear``. There is no forget bias. (Source: ``torch.nn.RNNBase.reset_parameters``, ``torch.nn.Linear``.)

    Args:
        network: a cell or network of this library.
        key: one PRNG key.

    Returns:
        Parameters in the structure of ``network.init(key)``.

    Raises:
        ValueError: the parameters are not those of RNN, LSTM, GRU or Readout.

    >>> import lstm_jax
    >>> params = torch_init(lstm_jax.LSTM(3, 4), jax.random.key(0))
    >>> bool(jnp.all(jnp.abs(params.w_hh) <= 0.5)), bool(jnp.all(jnp.abs(params.bias) <= 1.0))
    (True, True)
    """
    return _redrawn("torch_init", _torch_values, network, key)


def keras_init(network: Any, key: Array) -> Params:
    """Parameters with Keras's default distributions, for a cell or a network.

    ``w_ih`` is Glorot-uniform and ``w_hh`` orthogonal, each drawn as one matrix for all gates
    (``network.init`` draws each gate separately). Biases are zero, except for an LSTM's forget gate, whose
    bias is 1. The weights of a readout are Glorot-uniform. (Source: ``keras.layers.LSTM``'s default
    arguments.)

    Args:
        network: a cell or network of this library.
        key: one PRNG key.

    Returns:
        Parameters in the structure of ``network.init(key)``.

    Raises:
        ValueError: the parameters are not those of RNN, LSTM, GRU or Readout.

    >>> import lstm_jax
    >>> params = keras_init(lstm_jax.LSTM(3, 2), jax.random.key(0))
    >>> params.bias.tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    return _redrawn("keras_init", _keras_values, network, key)


def _redrawn(owner: str, values: Any, network: Any, key: Array) -> Params:
    check_key(owner, key)
    known = (RNNParams, *_LSTMS, *_GRUS, ReadoutParams)
    params = network.init(key)
    sets, structure = jax.tree.flatten(params, is_leaf=lambda node: isinstance(node, known))
    for node in sets:
        if not isinstance(node, known):
            raise value_error(
                f"{owner} got a network with parameters of type {type(node).__name__}",
                "a network of RNN, LSTM, GRU and Readout",
                "Use cell.init for the other cells.",
            )
    keys = jax.random.split(key, len(sets))
    return jax.tree.unflatten(structure, [values(node, k) for node, k in zip(sets, keys, strict=True)])


def _torch_values(params: Any, key: Array) -> Any:
    fan = params.w.shape[0] if isinstance(params, ReadoutParams) else params.w_hh.shape[0]

    def uniform(value: Array, salt: int) -> Array:
        k = jax.random.fold_in(key, salt)
        return jax.random.uniform(k, value.shape, value.dtype, -(fan**-0.5), fan**-0.5)

    names = [name for name in params._fields if name != "initial" and getattr(params, name) is not None]
    drawn = {name: uniform(getattr(params, name), salt) for salt, name in enumerate(names)}
    if "bias" in drawn and not isinstance(params, ReadoutParams):
        second = uniform(params.bias, len(names))
        if isinstance(params, _GRUS) and params.bias_hn is not None:
            second = second.at[2 * fan :].set(0)  # the candidate's second bias is bias_hn
        drawn["bias"] = drawn["bias"] + second
    return params._replace(**drawn)


def _keras_values(params: Any, key: Array) -> Any:
    k_in, k_recurrent = jax.random.split(key)
    if isinstance(params, ReadoutParams):
        drawn = {"w": glorot_uniform(k_in, params.w.shape, params.w.dtype)}
    else:
        drawn = {
            "w_ih": glorot_uniform(k_in, params.w_ih.shape, params.w_ih.dtype),
            "w_hh": orthogonal(k_recurrent, params.w_hh.shape, params.w_hh.dtype),
        }
    for name in ("bias", "bias_hn"):
        if getattr(params, name, None) is not None:
            drawn[name] = jnp.zeros_like(getattr(params, name))
    if isinstance(params, _LSTMS) and params.bias is not None:
        H = params.w_hh.shape[0]
        drawn["bias"] = drawn["bias"].at[H : 2 * H].set(1)
    return params._replace(**drawn)
