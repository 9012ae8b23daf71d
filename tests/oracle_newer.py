"""IndRNN, sLSTM and mLSTM in NumPy, for one row, as in ``oracle.py``."""

import numpy as np


def indrnn(params, h, x, f=lambda a: np.maximum(a, 0)):
    total = x @ params.w_ih + params.w_hh * h
    h = f(total if params.bias is None else total + params.bias)
    return h, h


# --- exponential gates --------------------------------------------------------------------------


def slstm(params, carry, x, forget="sigmoid"):
    """Unit by unit; j is the index of a unit within its head."""
    h, c, n, m = carry
    blocks = params.w_hh if params.w_hh.ndim == 3 else params.w_hh[None]
    H, d = len(h), blocks.shape[1]
    after = np.zeros((4, H))
    for unit in range(H):
        head, j = divmod(unit, d)
        h_head = h[head * d : (head + 1) * d]
        i, f, z, o = (
            x @ params.w_ih[:, gate * H + unit]
            + h_head @ blocks[head, :, gate * d + j]
            + (0 if params.bias is None else params.bias[gate * H + unit])
            for gate in range(4)
        )
        old = (f if forget == "exp" else -np.logaddexp(0, -f)) + m[unit]
        m_t = max(old, i)
        c_t = np.exp(old - m_t) * c[unit] + np.exp(i - m_t) * np.tanh(z)
        n_t = np.exp(old - m_t) * n[unit] + np.exp(i - m_t)
        after[:, unit] = c_t / n_t / (1 + np.exp(-o)), c_t, n_t, m_t
    return tuple(after), after[0]


def slstm_initial(params):
    zeros = np.zeros(params.w_ih.shape[1] // 4)
    return zeros if params.initial is None else params.initial, zeros, zeros, zeros - 2.0**127


def mlstm(params, carry, x, forget="sigmoid"):
    """Head by head; C has the shape (values, keys)."""
    C, n, m = (part.copy() for part in carry)
    heads, d = n.shape
    H = heads * d
    four, two = x @ params.w_ih, x @ params.w_gates
    if params.bias is not None:
        four, two = four + params.bias, two + params.bias_gates
    h = np.zeros(H)
    for head in range(heads):
        units = slice(head * d, (head + 1) * d)
        q, k, v, o = (four[gate * H : (gate + 1) * H][units] for gate in range(4))
        k = k / d**0.5
        i, f = two[head], two[heads + head]
        old = (f if forget == "exp" else -np.logaddexp(0, -f)) + m[head]
        m[head] = max(old, i)
        C[head] = np.exp(old - m[head]) * C[head] + np.exp(i - m[head]) * np.outer(v, k)
        n[head] = np.exp(old - m[head]) * n[head] + np.exp(i - m[head]) * k
        h[units] = C[head] @ q / max(abs(n[head] @ q), np.exp(-m[head])) / (1 + np.exp(-o))
    return (C, n, m), h


def mlstm_initial(params, heads):
    d = params.w_ih.shape[1] // 4 // heads
    return np.zeros((heads, d, d)), np.zeros((heads, d)), np.full(heads, -(2.0**127))
