"""The equations of the newer cells once more: NumPy, float64, one row at a time, as in ``oracle.py``."""

import numpy as np


def indrnn(params, h, x, f=lambda a: np.maximum(a, 0)):
    total = x @ params.w_ih + params.w_hh * h
    h = f(total if params.bias is None else total + params.bias)
    return h, h


# --- exponential gates --------------------------------------------------------------------------


def slstm(params, carry, x, forget="sigmoid"):
    """Unit by unit: j is a unit's place in its head, and the row of its head's matrix."""
    h, c, n, m = carry
    blocks = params.w_hh if params.w_hh.ndim == 3 else params.w_hh[None]
    H, d = len(h), blocks.shape[1]
    after = np.zeros((4, H))
    for unit in range(H):
        head, j = divmod(unit, d)
        own = h[head * d : (head + 1) * d]
        i, f, z, o = (
            x @ params.w_ih[:, gate * H + unit]
            + own @ blocks[head, :, gate * d + j]
            + (0 if params.bias is None else params.bias[gate * H + unit])
            for gate in range(4)
        )
        kept = (f if forget == "exp" else -np.logaddexp(0, -f)) + m[unit]
        m_t = max(kept, i)
        c_t = np.exp(kept - m_t) * c[unit] + np.exp(i - m_t) * np.tanh(z)
        n_t = np.exp(kept - m_t) * n[unit] + np.exp(i - m_t)
        after[:, unit] = c_t / n_t / (1 + np.exp(-o)), c_t, n_t, m_t
    return tuple(after), after[0]


def slstm_begins(params):
    """The normaliser is empty, and the stabiliser lets the first step be all that counts."""
    nothing = np.zeros(params.w_ih.shape[1] // 4)
    return nothing if params.initial is None else params.initial, nothing, nothing, nothing - 2.0**127


def mlstm(params, carry, x, forget="sigmoid"):
    """Head by head, with the memory of values by keys."""
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
        kept = (f if forget == "exp" else -np.logaddexp(0, -f)) + m[head]
        m[head] = max(kept, i)
        C[head] = np.exp(kept - m[head]) * C[head] + np.exp(i - m[head]) * np.outer(v, k)
        n[head] = np.exp(kept - m[head]) * n[head] + np.exp(i - m[head]) * k
        h[units] = C[head] @ q / max(abs(n[head] @ q), np.exp(-m[head])) / (1 + np.exp(-o))
    return (C, n, m), h


def mlstm_begins(params, heads):
    """An empty memory, and a stabiliser as the sLSTM's."""
    d = params.w_ih.shape[1] // 4 // heads
    return np.zeros((heads, d, d)), np.zeros((heads, d)), np.full(heads, -(2.0**127))
