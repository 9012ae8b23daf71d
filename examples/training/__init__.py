"""What the programs share: their command line, run folder, data, checkpoints and training loop.

A program reads as: arguments, data, model, loss, :func:`fit`, pictures.

==================  ==============================================================================
Module              What
==================  ==============================================================================
`command`           argument types, shared arguments, ``--resume``, errors in one line
`runs`              the run folder: ``config.json``, ``metrics.jsonl``, TensorBoard
`data`              texts; batches as a function of the step; the thread that makes them ahead
`placement`         devices: where the state and the batches lie, and the step's compilation
`distributed`       the mesh; several processes: joining them, and a clear end when one dies
`loop`              ``fit``: steps, measurements, evaluations, checkpoints, signals, NaN
`checkpoints`       the state on the disk (orbax)
`weights`, `plots`  the weights in a safetensors file; the learning curve
==================  ==============================================================================
"""

from training import plots as plots
from training.command import (
    NOT_NEGATIVE as NOT_NEGATIVE,
    POSITIVE as POSITIVE,
    SHARE as SHARE,
    Parser as Parser,
    add_duration as add_duration,
    add_run_arguments as add_run_arguments,
    main as main,
    real as real,
    steps_of as steps_of,
    whole as whole,
)
from training.data import (
    digest as digest,
    order_of as order_of,
    python_help as python_help,
    read_text as read_text,
    shuffled as shuffled,
    streams as streams,
)
from training.errors import Stopped as Stopped, UserError as UserError
from training.loop import State as State, fit as fit
from training.placement import Placement as Placement, mesh_of as mesh_of
from training.runs import Run as Run
from training.weights import count as count, load_weights as load_weights, save_weights as save_weights
