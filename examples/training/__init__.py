"""Code shared by the example programs: command line, run folder, data, checkpoints, training loop, plots.

Every program has the same structure: arguments, data, model, loss, :func:`fit`, plots.

==================  ==============================================================================
Module              Contents
==================  ==============================================================================
`start`             the first import: a quiet Ctrl-C during the imports, and memory that stays mapped
`command`           argument types, shared options, ``--resume``, one-line error messages
`runs`              the run folder: ``config.json``, ``metrics.jsonl``, TensorBoard
`data`              texts; batches as a function of the step; prefetching on a thread
`networks`          cells by name; the loss of a long stream; continuing a sequence
`placement`         devices: placing the state and the batches, compiling the step
`distributed`       the device mesh; several processes: starting them, and exiting when one fails
`loop`              ``fit``: steps, metrics, evaluations, checkpoints, signals, NaN checks; the optimizer
`checkpoints`       the training state on disk
`weights`           weights in a safetensors file
`plots`             the learning curve; colours and axis style
==================  ==============================================================================
"""

from training import start as start  # isort: skip  (before the slow imports)

from training import plots as plots
from training.command import (
    FRACTION as FRACTION,
    NONNEGATIVE as NONNEGATIVE,
    POSITIVE as POSITIVE,
    Parser as Parser,
    add_duration as add_duration,
    add_run_arguments as add_run_arguments,
    integer as integer,
    main as main,
    number as number,
    steps_of as steps_of,
)
from training.data import (
    digest as digest,
    permutation as permutation,
    python_help as python_help,
    read_text as read_text,
    shuffled as shuffled,
    streams as streams,
)
from training.errors import Stopped as Stopped, UserError as UserError
from training.loop import (
    State as State,
    adam_with_warmup as adam_with_warmup,
    fit as fit,
    gradient_step as gradient_step,
    window_step as window_step,
)
from training.networks import CELLS as CELLS, generate as generate, stream_loss as stream_loss
from training.placement import Placement as Placement
from training.runs import Run as Run
from training.weights import count as count, load_weights as load_weights, save_weights as save_weights
