"""The convolutional LSTM of flax and of haiku: two convolutions, gates i g f o, 1 added at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lstm_jax
from lstm_jax._errors import value_error
from lstm_jax.interop._entries import Entries
from lstm_jax.interop._layouts import (
    apart,
    params_of,
    plus,
    reordered,
    size_of,
    together,
    unreadable_shapes,
    zeros,
)


def conv_lstm(
    entries: Entries, inputs: tuple[str, str], heard: tuple[str, str], hint: str, shape: Callable[[], Any]
) -> tuple[Any, Any]:
    """A ``ConvLSTM`` from two convolutions with gates i, g, f, o, each with a bias or neither.

    Args:
        entries: the weights.
        inputs: names of the input convolution's kernel (*kernel, C, 4F) and bias (4F,).
        heard: names of the recurrent convolution's kernel (*kernel, F, 4F) and bias.
        mend: what to say of faults.
        shape: gives input_shape, (*space, C), once the weights are found to fit.

    >>> import numpy as np
    >>> given = {"x": np.ones((3, 2, 4)), "h": np.ones((3, 1, 4))}
    >>> cell, params = conv_lstm(Entries("f", given), ("x", "b"), ("h", "c"), "", lambda: (8, 2))
    >>> cell.kernel_size, params.bias.tolist()
    ((3,), [0.0, 1.0, 0.0, 0.0])
    """
    C, F = size_of(entries, (inputs[0], -2)), size_of(entries, (heard[0], -2))
    kernel = (entries.shape(inputs[0]) or entries.shape(heard[0]))[:-2]
    if not 1 <= len(kernel) <= 3:
        expected = f"{inputs[0]} (*kernel, C, 4F), {heard[0]} (*kernel, F, 4F), the kernel of 1, 2 or 3 sizes"
        unreadable_shapes(entries, expected, hint)
    biased = inputs[1] in entries or heard[1] in entries
    w_ih = entries.take(inputs[0], (*kernel, C, 4 * F))
    w_hh = entries.take(heard[0], (*kernel, F, 4 * F))
    b_ih, b_hh = (
        entries.take(name, (4 * F,)) if biased else zeros((4 * F,), w_ih) for name in (inputs[1], heard[1])
    )
    entries.done(hint)
    # The 1 goes to the bias that to_flax took it from, so that the way back is exact.
    bias = b_ih + together(plus(apart(b_hh, "igfo"), "f", 1), "igfo")
    fields = {"w_ih": w_ih, "w_hh": w_hh, "bias": bias}
    fields = {name: reordered(array, "igfo", "ifgo") for name, array in fields.items()}
    params = params_of(lstm_jax.ConvLSTMParams, **fields)
    input_shape = shape()
    fits = isinstance(input_shape, (tuple, list)) and len(input_shape) == len(kernel) + 1
    if not fits or input_shape[-1] != C:
        raise value_error(
            f"{entries.owner} got input_shape={input_shape!r}",
            f"({'size, ' * len(kernel)}{C}), as the input's kernel {w_ih.shape} has it",
            "Give the sizes of space, then the channels.",
        )
    return lstm_jax.ConvLSTM(tuple(input_shape), F, kernel, param_dtype=params.w_ih.dtype), params


def two_convolutions(
    owner: str, cell: Any, fields: dict[str, Any], target: str
) -> dict[str, tuple[Any, Any]]:
    """Kernel and bias of ih and of hh with gates i, g, f, o; hh takes back the 1 added at every step.

    >>> import jax
    >>> cell = lstm_jax.ConvLSTM((8, 3), 1, (3,))
    >>> fields = cell.init(jax.random.key(0))._asdict()
    >>> [bias.tolist() for _, bias in two_convolutions("f", cell, fields, "ConvLSTMCell").values()]
    [[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, -1.0, 0.0]]
    """
    same = cell.padding == "SAME" or set(cell.kernel_size) == {1}
    if set(cell.strides) != {1} or not same:
        raise value_error(
            f"{owner} got ConvLSTM(strides={cell.strides}, padding={cell.padding!r})",
            f'strides of 1 and padding="SAME": {target} has one choice for both of its convolutions, '
            "and the recurrent one must keep the size",
            "Keep the cell here.",
        )
    w_ih, w_hh, bias = (reordered(fields[name], "ifgo", "igfo") for name in ("w_ih", "w_hh", "bias"))
    less = together(plus(apart(zeros(bias.shape, bias), "igfo"), "f", -1), "igfo")
    return {"ih": (w_ih, bias), "hh": (w_hh, less)}
