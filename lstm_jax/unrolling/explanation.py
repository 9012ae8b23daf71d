"""``explain``: which implementation ``unroll`` would take, why, and how much memory that needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from lstm_jax._types import Array, Carry, Params
from lstm_jax.networks.bidirectional import Pair
from lstm_jax.regularizers._wrapper import Wrapper
from lstm_jax.unrolling import validation
from lstm_jax.unrolling.fused_scan import tiling_of
from lstm_jax.unrolling.layers import Layers, layers_of
from lstm_jax.unrolling.memory import MemoryEstimate, memory_estimate, one_window
from lstm_jax.unrolling.registry import NAMED, Implementation, choose_whole
from lstm_jax.unrolling.run import (
    Options,
    Times,
    Unrolled,
    begin,
    flags_of,
    prepare,
    run_cell,
    run_whole,
    window_length,
)
from lstm_jax.unrolling.tiling import Tiling


@dataclass(frozen=True)
class LayerPlan:
    """What runs for one cell of a network."""

    cell: str
    implementation: str
    reason: str
    #: How the fast path is cut (``lstm_jax.unrolling.tiling``).
    schedule: Tiling | None = None
    #: Expected temporary memory (``lstm_jax.unrolling.memory``); None where shapes do not tell it.
    memory: MemoryEstimate | None = None

    def __str__(self) -> str:
        more = [str(part) for part in (self.schedule, self.memory) if part is not None]
        return f"{self.implementation:<5}  {self.reason}" + (f" ({'; '.join(more)})" if more else "")


@dataclass(frozen=True)
class Plan:
    """What :func:`explain` found; printing it shows a table, and what its implementations can do."""

    layers: tuple[LayerPlan, ...]

    @property
    def rows(self) -> tuple[Implementation, ...]:
        """What :func:`lstm_jax.implementations` says of those that run."""
        names = dict.fromkeys(layer.implementation for layer in self.layers)
        return tuple(NAMED[name] for name in names if name in NAMED)

    @property
    def unseen(self) -> str:
        """What shapes and options do not show."""
        some = [row.name for row in self.rows if row.transforms != "all"]
        under = f"{' and '.join(some)}: see its transforms. The others give" if some else "All of these give"
        return (
            f"Not seen from here: an enclosing vmap or derivative. {under} the right answer under both. "
            "Memory: expected, beside arguments and results."
        )

    @property
    def implementation(self) -> str:
        """The implementation of all layers that loop, or their names joined by ``+`` where they differ."""
        names = dict.fromkeys(layer.implementation for layer in self.layers if layer.implementation != "vmap")
        return "+".join(names) or "vmap"

    def __str__(self) -> str:
        width = max(len(layer.cell) for layer in self.layers)
        rows = [f"{layer.cell:<{width}}  {layer}" for layer in self.layers]
        return "\n".join([*rows, self.unseen, *map(str, self.rows)])


def explain(
    cell: Any,
    params: Params,
    xs: Array | jax.ShapeDtypeStruct,
    carry: Carry | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
    reverse: bool = False,
    checkpoint: str | int | None = None,
    truncate: int | None = None,
    key: Any = None,
    start: Any = 0,
    return_carries: bool = False,
    implementation: str = "auto",
) -> Plan:
    """Which implementation :func:`lstm_jax.unroll` would take for these arguments, and why.

    Takes ``unroll``'s arguments; arrays may be given as ``jax.ShapeDtypeStruct``. Nothing is
    computed: the call is traced as ``unroll`` traces it, so the answer cannot differ from the deed.

    Returns:
        A :class:`Plan`, one row for each cell that walks (both directions of a
        :class:`Bidirectional` that share a loop are one row), in the order in which they run.

    Raises:
        ValueError: what ``unroll`` would raise.

    >>> import lstm_jax
    >>> cell = lstm_jax.GRU(input_size=3, hidden_size=2, reset_after=False)
    >>> params = jax.eval_shape(cell.init, jax.random.key(0))
    >>> xs = jax.ShapeDtypeStruct((5, 4, 3), "float32")
    >>> print(lstm_jax.explain(cell, params, xs).implementation)
    scan
    """
    options = Options(bool(reverse), checkpoint, truncate, bool(return_carries), implementation)
    validation.check_network("explain", cell)
    validation.check_options(options)
    if not isinstance(start, jax.ShapeDtypeStruct):
        validation.check_start(start)
    lengths = validation.host_lengths(lengths, xs)
    layers: list[LayerPlan] = []

    def recording_run(
        network: Any, params: Any, xs: Any, carry: Any, options: Options, times: Times
    ) -> Unrolled:
        whole = choose_whole(network, params, xs, carry, options, times)
        if whole is not None:
            layers.append(LayerPlan(_short_whole(network), *whole))
            return run_whole(whole, network, params, xs, carry, options, times)
        if hasattr(network, "compose"):
            return network.compose(recording_run, params, xs, carry, options, times)
        T = jax.tree.leaves(xs)[0].shape[0]
        flags = flags_of(T, options, times)
        given, _, first, choice = prepare(network, params, xs, carry, options, times, flags)
        if choice is None:
            layers.append(LayerPlan(_short(network), "vmap", "no state: all steps at once"))
        else:
            window = window_length(T, options.checkpoint)
            memory = memory_estimate(network, given, first, xs, choice.implementation, window)
            fused = choice.implementation == "fused"
            cut = tiling_of(network, given, first, one_window(xs, window)) if fused else None
            layers.append(LayerPlan(_short(network), *choice, cut, memory))
        return run_cell(network, params, xs, carry, options, times)

    def traced(
        params: Any, xs: Any, carry: Any, lengths: Any, mask: Any, resets: Any, key: Any, start: Any
    ) -> Any:
        return begin(recording_run, cell, options, params, xs, carry, lengths, mask, resets, key, start)

    jax.eval_shape(traced, params, xs, carry, lengths, mask, resets, key, start)
    return Plan(tuple(layers))


def _short_whole(network: Any) -> str:
    layers = layers_of(network, noisy=False)
    assert isinstance(layers, Layers)
    more = [f"{len(layers.cells)} layers"] if len(layers.cells) > 1 else []
    more += ["both ways"] if layers.directions == 2 else []
    return ", ".join([_short(layers.cells[0]), *more])


def _short(cell: Any) -> str:
    if isinstance(cell, Pair):
        return f"{_short(cell.cell)}, both ways"
    if isinstance(cell, Wrapper):
        return f"{type(cell).__name__}({_short(cell.cell)})"
    sizes = []
    for side in ("input", "output"):
        size = getattr(cell, f"{side}_size", None)
        sizes.append("x".join(map(str, getattr(cell, f"{side}_shape", None) or (size,))))
    return type(cell).__name__ + ("" if "None" in sizes else f"({sizes[0]} -> {sizes[1]})")
