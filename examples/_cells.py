"""The library's cells by name: those that read vectors, made as ``CELLS[name](input_size, hidden_size)``."""

from __future__ import annotations

from typing import Any

import lstm_jax

CELLS: dict[str, Any] = {
    cell.__name__.lower(): cell
    for cell in (
        lstm_jax.RNN,
        lstm_jax.GRU,
        lstm_jax.LSTM,
        lstm_jax.IndRNN,
        lstm_jax.LeakyRNN,
        lstm_jax.FullGateLSTM,
        lstm_jax.MinGRU,
        lstm_jax.MinLSTM,
        lstm_jax.MLSTM,
        lstm_jax.SLSTM,
    )
}
