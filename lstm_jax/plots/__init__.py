"""Figures of what :mod:`lstm_jax.diagnostics` measures, and a page for exploring a trained network.

Each function that returns a figure takes the results for one layer and returns a new
:class:`matplotlib.figure.Figure`. It neither shows nor saves the figure, and it does not use pyplot. The
figures need matplotlib (``pip install "lstm_jax[plots]"``). The page needs nothing but JAX, NumPy and a
browser.
"""

from lstm_jax.plots._diagram import cell_diagram as cell_diagram
from lstm_jax.plots._dynamics import (
    eigenvalues as eigenvalues,
    lyapunov_spectrum as lyapunov_spectrum,
    state_space as state_space,
)
from lstm_jax.plots._gates import gate_map as gate_map, saturation_scatter as saturation_scatter
from lstm_jax.plots._gradients import gradient_norms as gradient_norms
from lstm_jax.plots._memory import memory_map as memory_map, time_constants as time_constants
from lstm_jax.plots.viewer import write_viewer as write_viewer
