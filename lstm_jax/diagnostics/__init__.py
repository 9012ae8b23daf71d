"""What happens inside a network: gates, memory, gradients, dynamics.

Every function takes a cell or a network, its parameters and a sequence, and returns arrays. For a cell the
result is one NamedTuple, for a network an ``OrderedDict`` from names of layers to NamedTuples. The network
does not change.
"""

from lstm_jax.cells.minimal import MinGRUGates as MinGRUGates, MinLSTMGates as MinLSTMGates
from lstm_jax.cells.mlstm import MLSTMGates as MLSTMGates
from lstm_jax.cells.slstm import SLSTMGates as SLSTMGates
from lstm_jax.diagnostics._dynamics import (
    FixedPoints as FixedPoints,
    Jacobians as Jacobians,
    Lyapunov as Lyapunov,
    fixed_points as fixed_points,
    jacobians as jacobians,
    lyapunov_exponents as lyapunov_exponents,
)
from lstm_jax.diagnostics._gates import (
    Activity as Activity,
    Gates as Gates,
    Saturation as Saturation,
    activity as activity,
    gates as gates,
    saturation as saturation,
)
from lstm_jax.diagnostics._gradients import (
    Attribution as Attribution,
    Decomposition as Decomposition,
    GradientFlow as GradientFlow,
    decomposition as decomposition,
    gradient_flow as gradient_flow,
    gradient_times_input as gradient_times_input,
    integrated_gradients as integrated_gradients,
)
from lstm_jax.diagnostics._memory import (
    Memory as Memory,
    TimeConstants as TimeConstants,
    memory as memory,
    time_constants as time_constants,
)
from lstm_jax.diagnostics._nonfinite import NonFinite as NonFinite, first_nonfinite as first_nonfinite
