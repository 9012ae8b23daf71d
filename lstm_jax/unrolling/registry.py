"""The implementations of ``unroll``: what each supports, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from lstm_jax._errors import value_error
from lstm_jax._types import Carry, Params
from lstm_jax.cells._base import FlatLayers, Network, flatten, label
from lstm_jax.unrolling.associative import associative_scan, associative_unsupported, slower_than_a_loop
from lstm_jax.unrolling.chunkwise import chunks_slower, chunkwise_scan, chunkwise_unsupported
from lstm_jax.unrolling.fused_scan import fused_scan, fused_unsupported, tiling_of
from lstm_jax.unrolling.plain_scan import always_supported, plain_scan
from lstm_jax.unrolling.steps import Flags

# ``import lstm_jax`` does not load Pallas: these import it at the call.


def _pallas_unsupported(*args: Any) -> str | None:
    from lstm_jax.unrolling.kernels.select import kernel_unsupported

    return kernel_unsupported(*args)


def _pallas_scan(*args: Any) -> tuple[Carry, Any]:
    from lstm_jax.unrolling.kernels.select import kernel_scan

    return kernel_scan(*args)


def _pallas_reason() -> str:
    from lstm_jax.unrolling.kernels.select import engine_name

    return f"the whole sequence in one kernel ({engine_name()})"


def _parallel_unsupported(cell: Any, *arguments: Any) -> str | None:
    return (chunkwise_unsupported if cell.chunks else associative_unsupported)(cell, *arguments)


def _parallel_scan(cell: Any, *arguments: Any) -> tuple[Carry, Any]:
    return (chunkwise_scan if cell.chunks else associative_scan)(cell, *arguments)


def _parallel_slower(cell: Any, xs: Any) -> str | None:
    return chunks_slower(cell, xs) if cell.chunks else slower_than_a_loop()


@dataclass(frozen=True)
class Implementation:
    """One implementation of ``unroll`` and what it supports, in words."""

    name: str  # for unroll(..., implementation=name)
    what: str  # what it does
    devices: str  # where it runs
    dtypes: str  # of the parameters and inputs
    cells: str  # which cells and networks it runs
    unsupported: str  # the options of unroll with which it raises
    transforms: str  # which transforms of JAX it supports
    auto: str  # when "auto" chooses it, and the measurements behind that
    #: Why it cannot run a cell: ``(cell, options, params, carry, xs, flags) -> str | None``.
    why_not: Callable[..., str | None] = field(default=always_supported, repr=False)
    #: ``(cell, options, params, key, initial, carry, xs, flags) -> (carry, (ys, carries, ...))``.
    #: The fused scan also depends on its tiling; ``choose`` makes it.
    scan: Callable[..., tuple[Carry, Any]] = field(default=plain_scan, repr=False)
    #: A description for ``explain``.
    reason: Callable[[], str] = field(default=str, repr=False)

    def __str__(self) -> str:
        columns = {name: getattr(self, name) for name in COLUMNS}
        lines = "\n".join(f"  {name + ':':<12} {text}" for name, text in columns.items())
        return f"{self.name}: {self.what}\n{lines}"


#: The columns of the table of implementations.
COLUMNS = ("devices", "dtypes", "cells", "unsupported", "transforms", "auto")

NAMED = {
    row.name: row
    for row in (
        Implementation(
            "scan",
            "the plain scan of cell.step, differentiated by JAX",
            devices="all",
            dtypes="all floats",
            cells="all",
            unsupported="nothing",
            transforms="all",
            auto="for everything that no other implementation runs",
            reason=lambda: "the plain scan of cell.step",
        ),
        Implementation(
            "fused",
            "the loop with its own derivative rule: weight gradients in one product after the loop",
            devices="all",
            dtypes="all floats",
            cells="those that split into project, recur and update (SplitCell) with recur affine in "
            "the carry",
            unsupported="nothing",
            transforms="all",
            auto="wherever it can run. On a CPU it takes 0.80 of the plain scan's time forward and 0.67 with "
            "gradients (mean of 8 cases). It was not measured on GPUs and TPUs",
            why_not=fused_unsupported,
            reason=lambda: "the cell splits into project, recur and update: weight gradients in one product",
        ),
        Implementation(
            "parallel",
            "many steps at once: all by an associative scan, or chunks of time by matrix products",
            devices="all",
            dtypes="all floats; sums in float32 or wider",
            cells="scan: those with a linear recurrence (ParallelCell), MinGRU and MinLSTM; chunks: MLSTM",
            unsupported="truncate; an unknown number of steps; in chunks also return_carries",
            transforms="all",
            auto="MLSTM: from 16 steps and 8 units per head (measured on a CPU). MinGRU, MinLSTM: on GPUs "
            "and TPUs, where 2 log2(T) rounds replace T steps (not measured); not on CPUs, where the loop "
            "took 0.2 to 1.4 times the time of the associative scan",
            why_not=_parallel_unsupported,
            scan=_parallel_scan,
            reason=lambda: "the recurrence is linear in the state: many steps at once",
        ),
        Implementation(
            "pallas",
            "one kernel for the whole sequence, with the recurrent weights on the chip",
            devices="TPUs, NVIDIA Hopper GPUs",
            dtypes="on TPUs float32 and bfloat16, on GPUs bfloat16 and float16",
            cells="LSTM, GRU",
            unsupported="resets, truncate; weights that do not fit on the chip; unknown sizes; explicit "
            "meshes (use shard_map)",
            transforms="all; vmap over weights runs plain JAX",
            auto="never: compiled for both devices, measured on neither",
            why_not=_pallas_unsupported,
            scan=_pallas_scan,
            reason=_pallas_reason,
        ),
        Implementation(
            "cudnn",
            "cuDNN through jax.experimental.rnn: all layers and both directions in one call",
            devices="NVIDIA GPUs",
            dtypes="float32; TF32 unless jax.default_matmul_precision is 'highest' or 'float32'",
            cells="LSTM, a Bidirectional of LSTMs, a Stack of equal layers",
            unsupported="mask, resets, truncate, checkpoint, return_carries; unknown or zero steps or rows",
            transforms="all; jvp, second derivatives, vmap of gradients and vmap over weights run the fused "
            "scan",
            auto="never: not measured on a GPU",
        ),
    )
}
#: Whether "auto" chooses cuDNN for each network that it supports. Set this once measurements on a GPU show
#: that cuDNN is right and faster than the fused scan.
AUTO_CUDNN = False
#: The order in which "auto" tries the others for a cell; the last one supports every call.
AUTO = ("parallel", "fused", "scan")
#: What ``unroll`` accepts.
IMPLEMENTATIONS = ("auto", *NAMED)


class Table(tuple[Implementation, ...]):
    """All implementations. It prints as a table of what each supports."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def implementations() -> Table:
    """The named implementations of :func:`lstm_jax.unroll`, and what each supports.

    Returns:
        A tuple of :class:`Implementation`, which prints as a table.

    >>> [row.name for row in implementations()]
    ['scan', 'fused', 'parallel', 'pallas', 'cudnn']
    >>> print(implementations()[0])
    scan: the plain scan of cell.step, differentiated by JAX
      devices:     all
      dtypes:      all floats
      cells:       all
      unsupported: nothing
      transforms:  all
      auto:        for everything that no other implementation runs
    """
    return Table(NAMED.values())


# --- the choice ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerPlan:
    """The implementation of one cell of a network."""

    cell: str  # the cell with its sizes
    implementation: str  # its name
    reason: str  # why this implementation was chosen
    tiling: str = ""  # how the fused scan divides the work

    def __str__(self) -> str:
        return f"{self.implementation:<5}  {self.reason}" + (f" ({self.tiling})" if self.tiling else "")


#: ``explain`` collects the choices of ``unroll`` here while it traces.
_plans: ContextVar[list[LayerPlan] | None] = ContextVar("plans", default=None)


def record(cell: Any, implementation: str, reason: str, tiling: str = "") -> None:
    """Record the implementation of a cell for ``explain``."""
    plans = _plans.get()
    if plans is not None:
        description = cell if isinstance(cell, str) else cell.describe()
        plans.append(LayerPlan(description, implementation, reason, tiling))


def choose(
    cell: Any,
    name: str,
    options: Any,
    params: Params,
    carry: Carry,
    xs: Any,
    flags: Flags,
    window: int | None,
    noisy: bool,
) -> Callable[..., tuple[Carry, Any]]:
    """The scan of this cell, a function of ``(params, key, initial, carry, xs, flags)``.

    Raises:
        ValueError: a named implementation cannot run the cell.
    """
    arguments = cell, options, params, carry, xs, flags
    if name != "auto":
        row = NAMED[name]
        reason = row.why_not(*arguments)
        if reason is not None:
            raise_unsupported(name, cell, reason)
        why = f"requested by name: {row.reason()}"
    else:
        rejected = ""
        for name in AUTO:
            row = NAMED[name]
            if name == "parallel" and not (cell.linear_recurrence or cell.chunks):
                continue
            reason = _parallel_slower(cell, xs) if name == "parallel" else None
            reason = reason or row.why_not(*arguments)
            if reason is None:
                break
            rejected += f"; not {name}: {reason}"
        why = row.reason() + rejected
    if row.name == "fused":
        tiling = tiling_of(cell, params, carry, xs, window, noisy)
        record(cell, row.name, why, str(tiling))
        return fused_scan(cell, options, tiling)
    record(cell, row.name, why)
    return partial(row.scan, cell, options)


def choose_whole_network(
    network: Any, name: str, params: Params, xs: Any, carry: Carry | None, options: Any, steps: Any
) -> bool:
    """Whether one call runs the whole network; False if each cell chooses an implementation."""
    if name != "cudnn" and not (name == "auto" and AUTO_CUDNN):
        return False
    from lstm_jax.unrolling.cudnn import cudnn_reason, cudnn_unsupported

    reason = cudnn_unsupported(network, params, xs, carry, options, steps)
    if reason is None:
        layers = flatten(network, noisy=steps.key is not None)
        assert isinstance(layers, FlatLayers)
        first, *others = layers.cells
        more = [f"{len(layers.cells)} layers"] * bool(others) + ["both directions"] * (layers.directions == 2)
        description = ", ".join([first.describe(), *more])
        record(description, "cudnn", "requested by name: " * (name == "cudnn") + cudnn_reason())
        return True
    if name == "auto" or not network.has_state or (isinstance(network, Network) and network.layers_choose):
        return False
    raise_unsupported(name, network, reason)


def raise_unsupported(name: str, network: Any, reason: str) -> NoReturn:
    """Raise the reason why a named implementation cannot run."""
    row = NAMED[name]
    raise value_error(
        f"unroll got implementation={name!r} for {label(network)}, which cannot run it: {reason}",
        f"cells: {row.cells}; devices: {row.devices}; without {row.unsupported}",
        "Use implementation='auto' or 'scan'.",
    )


@contextmanager
def recording() -> Iterator[list[LayerPlan]]:
    """Collect the choices of ``unroll`` while it is traced."""
    plans: list[LayerPlan] = []
    token = _plans.set(plans)
    try:
        yield plans
    finally:
        _plans.reset(token)
