"""The implementations of the walk over time: one table of what each can do, and the choice among them.

``unroll`` asks :func:`choose` what runs, ``explain`` tells it, the README prints the table. One more
implementation is a module with an obstacle (why it cannot run this, or None) and a walk
(``steps.scan`` of a cell), and a row here; what ``"auto"`` may take stands in ``AUTO`` too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import jax

from lstm_jax._errors import value_error
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import Cell
from lstm_jax.unrolling.associative import associative_scan, associative_unsupported
from lstm_jax.unrolling.cudnn import cudnn_reason, cudnn_run, cudnn_unsupported
from lstm_jax.unrolling.fused_scan import fused_scan, fused_unsupported
from lstm_jax.unrolling.kernels.select import engine_name, kernel_scan, kernel_unsupported
from lstm_jax.unrolling.plain_scan import always_supported, plain_scan
from lstm_jax.unrolling.steps import Flags, Scanned
from lstm_jax.unrolling.tiling import parallel_loss


@dataclass(frozen=True)
class Implementation:
    """One row of the table: what an implementation is, and what it supports.

    The table is for people; what counts at a call is the obstacle, which knows shapes and options.
    """

    name: str
    what: str  # it is
    devices: str
    dtypes: str
    cells: str
    declines: str  # of the time contract
    transforms: str  # that it keeps
    auto: str  # when "auto" takes it, and on which evidence
    #: Why it runs, where it does.
    reason: Callable[[], str] = field(default=str, repr=False)
    #: Why it cannot run a cell: ``unsupported_reason(cell, params, carry, xs, flags)``.
    unsupported_reason: Callable[[Any, Params, Carry, Any, Flags], str | None] | None = field(
        default=None, repr=False
    )
    #: As :func:`lstm_jax.unrolling.plain_scan.plain_scan`.
    scan: Callable[..., Scanned] | None = field(default=None, repr=False)
    #: Why another is faster on this machine, though it could run: asked by ``"auto"`` alone.
    loss: Callable[[], str | None] = field(default=lambda: None, repr=False)
    #: Cells of whom ``"auto"`` asks it at all.
    concerns: Callable[[Any], bool] = field(default=lambda cell: True, repr=False)
    #: Instead of obstacle and walk, of one that runs a whole network in one call.
    whole: Whole | None = field(default=None, repr=False)

    def __str__(self) -> str:
        columns = {name: getattr(self, name) for name in COLUMNS}
        return f"{self.name}: {self.what}\n" + "\n".join(f"  {a + ':':<11} {b}" for a, b in columns.items())


class Whole(NamedTuple):
    """How a whole network is run in one call; all three are given ``unroll``'s Options and Times."""

    unsupported_reason: Callable[[Any, Params, Any, Carry | None, Any, Any], str | None]
    run: Callable[[Any, Params, Any, Carry | None, Any, Any], tuple[Carry, Array]]
    reason: Callable[[], str]


#: What the table tells of each.
COLUMNS = ("devices", "dtypes", "cells", "declines", "transforms", "auto")

ROWS = (
    Implementation(
        "scan",
        "the plain loop over cell.step, differentiated as it stands",
        devices="all",
        dtypes="all floats",
        cells="all",
        declines="nothing",
        transforms="all",
        auto="last: what nothing else takes",
        unsupported_reason=always_supported,
        scan=plain_scan,
        reason=lambda: "the plain scan of cell.step",
    ),
    Implementation(
        "fused",
        "the loop with its own derivative rule: weight gradients in one product after it",
        devices="all",
        dtypes="all floats",
        cells="those that split into project, recur and update (SplitCell), recur being affine in the carry",
        declines="nothing",
        transforms="all",
        auto="wherever it can run: 0.83 of the plain scan's time forward and 0.65 with gradients, the mean "
        "of 8 cases on a CPU; not measured on GPUs and TPUs",
        unsupported_reason=fused_unsupported,
        scan=fused_scan,
        reason=lambda: "the cell splits into project, recur and update: weight gradients in one product",
    ),
    Implementation(
        "parallel",
        "all steps at once, joined as a tree over time",
        devices="all",
        dtypes="all floats; sums in float32 or wider",
        cells="those whose recurrence is linear (ParallelCell): MinGRU, MinLSTM",
        declines="truncate; an unknown number of steps",
        transforms="all",
        auto="on GPUs and TPUs, for 2 log2(T) rounds instead of T steps (not measured); never on CPUs, where "
        "the loop took 0.2 to 1.4 times its time",
        unsupported_reason=associative_unsupported,
        scan=associative_scan,
        reason=lambda: "the recurrence is linear in the state: all steps at once",
        loss=parallel_loss,
        concerns=lambda cell: hasattr(cell, "coefficients"),
    ),
    Implementation(
        "pallas",
        "one kernel for the whole sequence, with the recurrent weights on the chip",
        devices="TPUs, NVIDIA Hopper GPUs",
        dtypes="on TPUs float32 and bfloat16, on GPUs bfloat16 and float16",
        cells="LSTM without options; GRU (reset_after=True) without heads",
        declines="resets, truncate; weights larger than the chip holds; unknown sizes; explicit meshes (each "
        "device runs its own in shard_map)",
        transforms="all; under vmap over weights it is plain JAX",
        auto="never: compiled for both devices, measured on neither",
        unsupported_reason=kernel_unsupported,
        scan=kernel_scan,
        reason=lambda: f"the whole sequence in one kernel ({engine_name()})",
    ),
    Implementation(
        "cudnn",
        "cuDNN by jax.experimental.rnn: all layers and both directions in one call",
        devices="NVIDIA GPUs",
        dtypes="float32; TF32 unless jax.default_matmul_precision is 'highest' or 'float32'",
        cells="LSTM without options, Bidirectional of it, Stack of equal ones",
        declines="mask, resets, truncate, checkpoint, return_carries; unknown or zero steps or rows",
        transforms="jit, grad (once, in reverse mode); vmap, jvp and second derivatives raise",
        auto="never: it does not keep every transform",
        whole=Whole(cudnn_unsupported, cudnn_run, cudnn_reason),
    ),
)
NAMED = {row.name: row for row in ROWS}
#: The order in which "auto" asks them; the last takes everything.
AUTO = ("parallel", "fused", "scan")
#: What ``unroll`` takes.
IMPLEMENTATIONS = ("auto", *NAMED)


class Table(tuple[Implementation, ...]):
    """All implementations; printing it shows what each can do."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    @property
    def markdown(self) -> str:
        """The table as the README has it: a row for each."""
        head = "| | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1)
        rows = [
            f'| `"{row.name}"`: {row.what} | ' + " | ".join(getattr(row, name) for name in COLUMNS) + " |"
            for row in self
        ]
        return "\n".join([head, *rows])


def implementations() -> Table:
    """What :func:`lstm_jax.unroll` knows by name, and what each supports.

    Returns:
        A tuple of :class:`Implementation`, which prints as a table.

    >>> [row.name for row in implementations()]
    ['scan', 'fused', 'parallel', 'pallas', 'cudnn']
    >>> print(implementations()[0])
    scan: the plain loop over cell.step, differentiated as it stands
      devices:    all
      dtypes:     all floats
      cells:      all
      declines:   nothing
      transforms: all
      auto:       last: what nothing else takes
    """
    return Table(ROWS)


# --- the choice ----------------------------------------------------------------------------------


class Choice(NamedTuple):
    """An implementation and the reason for it."""

    implementation: str
    reason: str


def choose(cell: Cell, params: Params, carry: Carry, xs: Array, implementation: str, flags: Flags) -> Choice:
    """What runs for this cell; a named implementation that cannot run raises with its reason."""
    if implementation != "auto":
        row = NAMED[implementation]
        assert row.unsupported_reason is not None  # of one that runs whole networks, choose_whole was asked
        if (reason := row.unsupported_reason(cell, params, carry, xs, flags)) is not None:
            _raise_unsupported(row, cell, reason)
        return Choice(row.name, f"asked for by name: {row.reason()}")
    passed = ""
    for row in (NAMED[name] for name in AUTO):
        assert row.unsupported_reason is not None
        if not row.concerns(cell):
            continue
        reason = row.loss() or row.unsupported_reason(cell, params, carry, xs, flags)
        if reason is None:
            return Choice(row.name, row.reason() + passed)
        passed += f"; not {row.name}: {reason}"
    raise AssertionError("the last of AUTO takes everything")


def choose_whole(
    network: Any, params: Params, xs: Any, carry: Carry | None, options: Any, times: Any
) -> Choice | None:
    """The choice where a whole network is run in one call; None where its cells are asked, one by one."""
    if options.implementation == "auto" or (row := NAMED[options.implementation]).whole is None:
        return None
    reason = row.whole.unsupported_reason(network, params, xs, carry, options, times)
    if reason is None:
        return Choice(row.name, f"asked for by name: {row.whole.reason()}")
    if hasattr(network, "layers") or _stateless(network, params):
        return None
    _raise_unsupported(row, network, reason)


def _raise_unsupported(row: Implementation, network: Any, reason: str) -> NoReturn:
    raise value_error(
        f"unroll got implementation={row.name!r} for {type(network).__name__}, which cannot run it: {reason}",
        f"cells: {row.cells}; devices: {row.devices}; without {row.declines}",
        "Use implementation='auto' or 'scan'.",
    )


def _stateless(network: Any, params: Params) -> bool:
    """Whether there is nothing to walk with (a read-out)."""
    return not jax.tree.leaves(jax.eval_shape(lambda p: network.initial_carry((), p), params))
