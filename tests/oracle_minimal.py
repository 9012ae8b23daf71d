"""The minimal cells in NumPy, for one row, from the sequential form of Feng et al. 2024."""

import numpy as np
from oracle import Cell, sigmoid


def part(params, index, count, x):
    """x W + b, the columns of one gate out of ``count``."""
    H = params.w_ih.shape[1] // count
    columns = slice(index * H, (index + 1) * H)
    total = x @ params.w_ih[:, columns]
    return total if params.bias is None else total + params.bias[columns]


def positive(a):
    return np.array([v + 0.5 if v >= 0 else sigmoid(v) for v in a])


def min_gru(params, h, x):
    z = sigmoid(part(params, 0, 2, x))
    candidate = positive(part(params, 1, 2, x))
    h = (1 - z) * h + z * candidate
    return h, h


def min_lstm(params, h, x):
    f = sigmoid(part(params, 0, 3, x))
    i = sigmoid(part(params, 1, 3, x))
    candidate = positive(part(params, 2, 3, x))
    h = f / (f + i) * h + i / (f + i) * candidate
    return h, h


def learned(params):
    return params.initial


MIN_GRU = Cell(min_gru, lambda params: np.zeros(params.w_ih.shape[1] // 2))
MIN_LSTM = Cell(min_lstm, lambda params: np.zeros(params.w_ih.shape[1] // 3))
MIN_GRU_LEARNED = Cell(min_gru, learned)
MIN_LSTM_LEARNED = Cell(min_lstm, learned)
