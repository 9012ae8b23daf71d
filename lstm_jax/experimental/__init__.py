"""Kernels that have not been measured on their device (see NOTES.md)."""

from lstm_jax.unrolling.kernels.select import interpret as interpret
