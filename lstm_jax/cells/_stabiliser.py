"""The exponential gates of the sLSTM and the mLSTM, and the stabiliser that keeps them finite.

An exponential gate has no upper bound, so the cell state and the normaliser of the definition overflow. Both
cells store these states times exp(-m), where m is the stabiliser. The output is a quotient of the two, which
does not depend on m.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lstm_jax._types import Array

FORGET_GATES = ("sigmoid", "exp")
#: m_0, below the pre-activations of every input gate. A power of two is exact in every dtype that has this
#: range. In float16 it is minus infinity, which also works.
INITIAL_STABILISER = -(2.0**127)


def stabilised_gates(forget_gate: str, i: Array, f: Array, m: Array) -> tuple[Array, Array, Array]:
    """``(i', f', m_t)`` from the pre-activations of both gates and m_{t-1}; the larger of i' and f' is 1.

    i' is exp(i - m_t) and f' is exp(log f + m_{t-1} - m_t) with m_t = max(log f + m_{t-1}, i).
    """
    old = (jax.nn.log_sigmoid(f) if forget_gate == "sigmoid" else f) + m
    m_t = jnp.maximum(old, i)
    return jnp.exp(i - m_t), jnp.exp(old - m_t), m_t
