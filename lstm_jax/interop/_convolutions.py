"""The convolutional LSTM of Flax and Haiku: two convolutions, gates i g f o, 1 added to f at every step."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstm_jax import ConvLSTM, ConvLSTMParams
from lstm_jax._errors import value_error
from lstm_jax.interop._entries import Entries, UnbuiltLayer
from lstm_jax.interop._gates import add_to_gate, reorder_gates, zeros
from lstm_jax.interop._networks import Direction, fields_of


def read_conv_lstm(entries: Entries, inputs: tuple[str, str], hidden: tuple[str, str]) -> UnbuiltLayer | None:
    """A ``ConvLSTM`` from two convolutions with gates i, g, f, o, each with a bias or neither.

    Args:
        entries: the weights.
        inputs: names of the input convolution's kernel (*kernel, C, 4F) and bias (4F,).
        hidden: names of the recurrent convolution's kernel (*kernel, F, 4F) and bias.

    >>> given = {"x": np.ones((3, 2, 4)), "h": np.ones((3, 1, 4))}
    >>> from lstm_jax.interop._entries import Faults
    >>> layer = read_conv_lstm(Entries(Faults("f"), given), ("x", "b"), ("h", "c"))
    >>> cell, params = layer.build(layer.arrays, np.float32, (8, 2))
    >>> cell.kernel_size, params.bias.tolist()
    ((3,), [0.0, 1.0, 0.0, 0.0])
    """
    C, F = entries.size((inputs[0], -2)), entries.size((hidden[0], -2))
    kernel = (entries.shape(inputs[0]) or entries.shape(hidden[0]))[:-2]
    if not 1 <= len(kernel) <= 3:
        entries.unreadable(
            f"{inputs[0]} (*kernel, C, 4F), {hidden[0]} (*kernel, F, 4F) with 1 to 3 kernel sizes"
        )
        return None
    biased = inputs[1] in entries or hidden[1] in entries
    arrays = {
        "w_ih": entries.take(inputs[0], (*kernel, C, 4 * F)),
        "w_hh": entries.take(hidden[0], (*kernel, F, 4 * F)),
    }
    if biased:
        arrays |= {name: entries.take(name, (4 * F,)) for name in (inputs[1], hidden[1])}
    entries.done()

    def build(arrays: dict[str, Any], dtype: np.dtype, input_shape: Any) -> tuple[Any, Any]:
        w_ih, w_hh = (reorder_gates(arrays[name], "igfo", "ifgo") for name in ("w_ih", "w_hh"))
        b_ih, b_hh = (arrays[n] if biased else zeros((4 * F,), w_ih) for n in (inputs[1], hidden[1]))
        # The 1 is added to the bias that write_conv_lstm takes it from, so that the way back is exact.
        bias = reorder_gates(b_ih + add_to_gate(b_hh, "igfo", "f", 1), "igfo", "ifgo")
        fits = isinstance(input_shape, (tuple, list)) and len(input_shape) == len(kernel) + 1
        if not fits or input_shape[-1] != C:
            raise value_error(
                f"{entries.faults.owner} got input_shape={input_shape!r}",
                f"({'size, ' * len(kernel)}{C}), because the input's kernel has shape {w_ih.shape}",
                "Give the sizes of space, then the channels.",
            )
        cell = ConvLSTM(tuple(input_shape), F, kernel, param_dtype=dtype)
        return cell, ConvLSTMParams(w_ih, w_hh, bias)

    return UnbuiltLayer(arrays, build)


def write_conv_lstm(owner: str, direction: Direction, target: str) -> dict[str, tuple[Any, Any]]:
    """Kernel and bias of the convolutions ih and hh, gates i, g, f, o. The bias of hh subtracts the added 1.

    >>> import jax
    >>> cell = ConvLSTM((8, 3), 1, (3,))
    >>> direction = Direction("", cell, cell.init(jax.random.key(0)))
    >>> [bias.tolist() for _, bias in write_conv_lstm("f", direction, "ConvLSTMCell").values()]
    [[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, -1.0, 0.0]]
    """
    cell, fields = direction.cell, fields_of(direction)
    same = cell.padding == "SAME" or set(cell.kernel_size) == {1}
    if set(cell.strides) != {1} or not same:
        raise value_error(
            f"{owner} got ConvLSTM(strides={cell.strides}, padding={cell.padding!r})",
            f'strides of 1 and padding="SAME", because {target} uses the same for both of its convolutions, '
            "and the recurrent one must keep the size",
            "Train with strides of 1.",
        )
    fields.setdefault("bias", zeros((4 * cell.features,), fields["w_ih"]))
    w_ih, w_hh, bias = (reorder_gates(fields[name], "ifgo", "igfo") for name in ("w_ih", "w_hh", "bias"))
    return {"ih": (w_ih, bias), "hh": (w_hh, add_to_gate(zeros(bias.shape, bias), "igfo", "f", -1))}
