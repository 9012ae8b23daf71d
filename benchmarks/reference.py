"""LSTM and GRU in float64 NumPy, with gradients written by hand, to check implementations against."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray


class Problem(NamedTuple):
    """Arrays of one check, and the linear loss: the sum of outputs and last states times the weights."""

    params: dict[str, Array]  # w_ih, w_hh, bias, and bias_hn for a GRU
    xs: Array  # (T, B, D)
    carry: tuple[Array, ...]  # (h, c), or (h,) for a GRU, each (B, H)
    valid: Array  # (T, B) bool: at other steps the carry does not change and the output is zero
    resets: Array  # (T, B) bool: the carry is zero before the step
    weights_ys: Array  # (T, B, H)
    weights_carry: tuple[Array, ...]  # of the last states


class Solution(NamedTuple):
    """What an implementation should return."""

    ys: Array
    carry: tuple[Array, ...]
    d_params: dict[str, Array]
    d_xs: Array
    d_carry: tuple[Array, ...]


def solve(problem: Problem) -> Solution:
    """Outputs, last states, and gradients of the loss, in float64."""
    problem = Problem(*(_wide(part) for part in problem))
    params, xs, carry, valid, resets, weights_ys, d_carry = problem
    forward, backward = (_lstm, _lstm_backward) if len(carry) == 2 else (_gru, _gru_backward)
    us = xs @ params["w_ih"] + params["bias"]
    ys, memory = [], []
    for t in range(len(xs)):
        keep, there = ~resets[t][:, None], valid[t][:, None]
        before = tuple(keep * a for a in carry)
        after, saved = forward(params, before, us[t])
        carry = tuple(np.where(there, a, b) for a, b in zip(after, carry, strict=True))
        ys.append(there * after[0])
        memory.append((keep, there, before, saved))

    d_us, d_products = np.zeros_like(us), np.zeros_like(us)
    for t in reversed(range(len(xs))):
        keep, there, before, saved = memory[t]
        d_after = [there * a for a in d_carry]
        d_after[0] = d_after[0] + there * weights_ys[t]
        d_before, d_us[t], d_products[t] = backward(params, before, saved, d_after)
        held = [np.where(there, 0, a) for a in d_carry]
        d_carry = tuple(a + keep * b for a, b in zip(held, d_before, strict=True))
    hs = np.stack([before[0] for _, _, before, _ in memory])
    d_params = {"w_ih": _summed(xs, d_us), "w_hh": _summed(hs, d_products), "bias": d_us.sum((0, 1))}
    if "bias_hn" in params:
        d_params["bias_hn"] = d_products[..., -hs.shape[-1] :].sum((0, 1))
    return Solution(np.stack(ys), carry, d_params, d_us @ params["w_ih"].T, d_carry)


def _summed(a: Array, b: Array) -> Array:
    """The product of two sequences, summed over time and batch."""
    return a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1])


def _wide(part: Any) -> Any:
    """Numbers in float64, flags as they are."""
    if isinstance(part, dict):
        return {name: _wide(a) for name, a in part.items()}
    if isinstance(part, tuple):
        return tuple(map(_wide, part))
    return part if part.dtype == bool else np.asarray(part, np.float64)


def _sigmoid(a: Array) -> Array:
    return np.tanh(a / 2) / 2 + 0.5


def _lstm(params: dict[str, Array], carry: tuple[Array, ...], u: Array) -> tuple[tuple[Array, ...], Any]:
    h, c = carry
    zi, zf, zg, zo = np.split(u + h @ params["w_hh"], 4, axis=-1)
    i, f, g, o = _sigmoid(zi), _sigmoid(zf), np.tanh(zg), _sigmoid(zo)
    c_t = f * c + i * g
    return (o * np.tanh(c_t), c_t), (i, f, g, o, np.tanh(c_t))


def _lstm_backward(params: dict[str, Array], carry: tuple[Array, ...], saved: Any, d_after: Any) -> Any:
    (_, c), (i, f, g, o, shown), (dh, dc) = carry, saved, d_after
    dc = dc + dh * o * (1 - shown**2)
    dz = [dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2), dh * shown * o * (1 - o)]
    d_u = np.concatenate(dz, axis=-1)
    return (d_u @ params["w_hh"].T, dc * f), d_u, d_u


def _gru(params: dict[str, Array], carry: tuple[Array, ...], u: Array) -> tuple[tuple[Array, ...], Any]:
    (h,) = carry
    (ur, uz, un), (pr, pz, pn) = np.split(u, 3, axis=-1), np.split(h @ params["w_hh"], 3, axis=-1)
    r, z, q = _sigmoid(ur + pr), _sigmoid(uz + pz), pn + params["bias_hn"]
    n = np.tanh(un + r * q)
    return ((1 - z) * n + z * h,), (r, z, q, n)


def _gru_backward(params: dict[str, Array], carry: tuple[Array, ...], saved: Any, d_after: Any) -> Any:
    (h,), (r, z, q, n), (dh,) = carry, saved, d_after
    dn = dh * (1 - z) * (1 - n**2)
    dr, dz = dn * q * r * (1 - r), dh * (h - n) * z * (1 - z)
    d_u = np.concatenate([dr, dz, dn], axis=-1)
    d_products = np.concatenate([dr, dz, dn * r], axis=-1)
    return (d_products @ params["w_hh"].T + dh * z,), d_u, d_products
