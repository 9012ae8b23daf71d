"""The options of the LSTM in NumPy, for one row, from the equations of the papers."""

import numpy as np
from oracle import sigmoid


def block_diagonal(w, gates):
    """w_hh as one matrix, with zeros between heads."""
    if w.ndim == 2:
        return w
    heads, rows, columns = w.shape
    wide = columns // gates
    whole = np.zeros((heads * rows, gates, heads * wide))
    for head in range(heads):
        for gate in range(gates):
            block = w[head, :, gate * wide : (gate + 1) * wide]
            whole[head * rows : (head + 1) * rows, gate, head * wide : (head + 1) * wide] = block
    return whole.reshape(heads * rows, gates * heads * wide)


def with_heads(step, gates):
    """The step of a cell with heads, from that of a cell without."""
    return lambda params, carry, x: step(params._replace(w_hh=block_diagonal(params.w_hh, gates)), carry, x)


def zeros_of(sizes):
    """An initial carry with one state for each size."""
    return lambda params: tuple(np.zeros(size) for size in sizes)


def layer_norm(a, scale, epsilon):
    return scale * (a - np.mean(a)) / np.sqrt(np.var(a) + epsilon)


def lstm(
    params, carry, x, *, coupled=False, without=None, clip=np.inf, cell_clip=np.inf, norm=None, epsilon=None
):
    """``without``: an ablation, by its name in Greff et al. 2017 (NIG, NFG, NOG, NIAF, NOAF)."""
    h, c = carry
    H = len(c)
    order = [g for g in "ifgo" if not (coupled and g == "f") and f"N{g.upper()}G" != without]
    w_hh = block_diagonal(params.w_hh, len(order))
    xs, hs = x @ params.w_ih, h @ w_hh
    if norm:
        xs, hs = layer_norm(xs, params.norm.x, epsilon), layer_norm(hs, params.norm.h, epsilon)
    z = xs + hs + (0 if params.bias is None else params.bias)
    z = {gate: z[k * H : (k + 1) * H] for k, gate in enumerate(order)}
    p = dict.fromkeys("ifo", np.zeros(H))
    if getattr(params, "peepholes", None) is not None:
        gates = [gate for gate in order if gate != "g"]
        p |= {gate: params.peepholes[k * H : (k + 1) * H] for k, gate in enumerate(gates)}

    def clip_to(a, limit):
        return np.minimum(np.maximum(a, -limit), limit)

    i = sigmoid(clip_to(z["i"] + p["i"] * c, clip)) if "i" in z else 1
    f = 1 - i if coupled else sigmoid(clip_to(z["f"] + p["f"] * c, clip)) if "f" in z else 1
    g = clip_to(z["g"], clip)
    c = f * c + i * (g if without == "NIAF" else np.tanh(g))
    if norm == "carried":
        c = layer_norm(c, params.norm.c, epsilon) + params.norm.c_offset
    c = clip_to(c, cell_clip)
    o = sigmoid(clip_to(z["o"] + p["o"] * c, clip)) if "o" in z else 1
    visible = layer_norm(c, params.norm.c, epsilon) + params.norm.c_offset if norm == "output" else c
    h = o * (visible if without == "NOAF" else np.tanh(visible))
    if getattr(params, "w_hr", None) is not None:
        h = h @ params.w_hr
    return (h, c), h


def full_gate_lstm(params, carry, x):
    """Greff et al. 2017, FGR, with nine more matrices."""
    h, c, gates = carry
    H = len(h)
    before = dict(zip("ifo", np.split(gates, 3), strict=True))
    blocks = {
        (source, target): params.w_gates[a * H : (a + 1) * H, b * H : (b + 1) * H]
        for a, source in enumerate("ifo")
        for b, target in enumerate("ifo")
    }
    z = {}
    for k, gate in enumerate("ifgo"):
        columns = slice(k * H, (k + 1) * H)
        z[gate] = x @ params.w_ih[:, columns] + h @ params.w_hh[:, columns]
        z[gate] = z[gate] + (0 if params.bias is None else params.bias[columns])
        if gate != "g":
            z[gate] = z[gate] + sum(before[source] @ blocks[source, gate] for source in "ifo")
    p_i, p_f, p_o = np.split(params.peepholes, 3)
    i, f = sigmoid(z["i"] + p_i * c), sigmoid(z["f"] + p_f * c)
    c = f * c + i * np.tanh(z["g"])
    o = sigmoid(z["o"] + p_o * c)
    h = o * np.tanh(c)
    return (h, c, np.concatenate([i, f, o])), h


def zoneout(step, rates):
    """Zoneout without a key, of a cell with the carry (h, c) and the output h."""

    def zoneout_step(params, carry, x):
        new, _ = step(params, carry, x)
        carry = tuple(r * old + (1 - r) * s for r, old, s in zip(rates, carry, new, strict=True))
        return carry, carry[0]

    return zoneout_step
