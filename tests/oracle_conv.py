"""The equations of the convolutional LSTM for one row, pixel by pixel."""

from itertools import product

import numpy as np
from oracle import sigmoid


def sizes_after(space, kernel, strides, padding):
    """The numbers of positions of the window."""
    if padding == "SAME":
        return tuple(len(range(0, n, s)) for n, s in zip(space, strides, strict=True))
    return tuple(len(range(0, n - k + 1, s)) for n, k, s in zip(space, kernel, strides, strict=True))


def convolve(x, w, strides, padding):
    """Cross-correlation of x (*space, C) and w (*kernel, C, O)."""
    space, kernel = x.shape[:-1], w.shape[:-2]
    out = sizes_after(space, kernel, strides, padding)
    if padding == "SAME":  # pad with zeros up to the end of the last window; an odd zero goes to the end
        missing = [
            max((o - 1) * s + k - n, 0) for o, s, k, n in zip(out, strides, kernel, space, strict=True)
        ]
        x = np.pad(x, [(m // 2, m - m // 2) for m in missing] + [(0, 0)])
    y = np.zeros((*out, w.shape[-1]))
    for pixel in product(*map(range, out)):
        for offset in product(*map(range, kernel)):
            at = tuple(p * s + q for p, s, q in zip(pixel, strides, offset, strict=True))
            y[pixel] += x[at] @ w[offset]
    return y


def conv_lstm(params, carry, x, strides=None, padding="SAME"):
    h, c = carry
    axes, F = x.ndim - 1, h.shape[-1]
    ones = (1,) * axes
    z = convolve(x, params.w_ih, strides or ones, padding) + convolve(h, params.w_hh, ones, "SAME")
    if params.bias is not None:
        z = z + params.bias
    i, f, g, o = (z[..., gate * F : (gate + 1) * F] for gate in range(4))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (h, c), h


def zeros(*shape):
    """A carry of zeros in this shape."""
    return lambda params: (np.zeros(shape), np.zeros(shape))


def learned(*space):
    """The learned carry, at every pixel."""
    return lambda params: tuple(np.broadcast_to(a, (*space, len(a))) for a in params.initial)
