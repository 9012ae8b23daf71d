"""Pages for exploring a trained network. They need nothing but JAX, NumPy and a browser."""

from lstm_jax.plots.viewer import write_viewer as write_viewer
