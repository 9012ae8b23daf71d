"""The cells of a network with what each of them reads and returns over a sequence."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax._errors import is_number, value_error
from lstm_jax._types import Array, Carry, Params
from lstm_jax.cells._base import Network, UserCell, as_base_cell, compute_form
from lstm_jax.cells._named import leaf_name
from lstm_jax.networks.bidirectional import Bidirectional
from lstm_jax.regularizers._wrapper import Wrapper
from lstm_jax.sharding.cell import Sharded
from lstm_jax.unrolling import validation
from lstm_jax.unrolling.carries import given_carry, own_carry
from lstm_jax.unrolling.run import Options, Steps, Unrolled, prepare, run, step_flags
from lstm_jax.unrolling.steps import expand_flag, select


class Sequence(NamedTuple):
    """The arguments of ``unroll`` that describe the data."""

    xs: Array
    carry: Carry | None = None
    lengths: Any = None
    mask: Array | None = None
    resets: Array | None = None
    reset_to: Carry | None = None


class Layer(NamedTuple):
    """One cell of a network over a sequence. Time is the first axis of all arrays."""

    cell: Any
    params: Params
    xs: Array  # (T, *batch, *event) inputs of the cell
    before: Carry  # the carry that each step reads
    after: Carry  # the carry after each step
    ys: Array  # outputs
    valid: Array  # (T, *batch) bool
    restart: Array  # (T, *batch) bool: the carry restarts before the step, in the order of the loop
    reverse: bool  # the loop runs from the last step to the first

    def scan(self, body: Callable[[Any, Any], tuple[Any, Any]], init: Any, xs: Any) -> tuple[Any, Any]:
        """``lax.scan`` over the steps in the order of the layer's loop."""
        return jax.lax.scan(body, init, xs, reverse=self.reverse)

    def count_valid(self, *, after: bool) -> Array:
        """The number of valid steps that the loop runs before, or after, each step: (T, *batch) int32."""
        valid = self.valid.astype(jnp.int32)
        return jax.lax.cumsum(valid, axis=0, reverse=self.reverse != after) - valid


def visit_cells(
    visit: Callable[..., Unrolled],
    name: str,
    network: Any,
    options: Options,
    params: Params,
    xs: Array,
    carry: Carry | None,
    reset_to: Carry | None,
    steps: Steps,
) -> Unrolled:
    """Run the network ``name``, with ``visit(name, cell, options, ...)`` in place of ``run`` for each cell.

    Names are the prefixes of the parameters' names in ``flatten_params``, for instance ``1.forward``.
    """
    cell = as_base_cell(network.cell if isinstance(network, Sharded) else network)
    if not isinstance(cell, Network):
        return visit(name, cell, options, params, xs, carry, reset_to, steps)
    both = isinstance(cell, Bidirectional)
    names: Iterator[Any] = iter(("forward", "backward")) if both else itertools.count()

    def run_layer(layer: Any, *arguments: Any) -> Unrolled:
        return visit_cells(visit, f"{name}.{next(names)}".lstrip("."), layer, *arguments)

    run_layers = cell.run_separately if isinstance(cell, Bidirectional) else cell.run_layers
    return run_layers(run_layer, options, params, xs, carry, reset_to, steps)


def start(
    network: Any, params: Params, sequence: Sequence, reverse: bool
) -> tuple[Options, Params, Array, Carry | None, Carry | None, Steps]:
    """The checked arguments of ``unroll`` after the network, as ``visit_cells`` and ``run`` take them."""
    xs, carry, lengths, mask, resets, reset_to = sequence
    xs, steps = prepare(network, xs, lengths, mask, resets, None, 0)
    carry, reset_to = validation.check_carries(network, params, xs, carry, reset_to, resets)
    return Options(reverse=reverse, return_carries=True), params, xs, carry, reset_to, steps


def layers(network: Any, params: Params, sequence: Sequence, reverse: bool) -> OrderedDict[str, Layer]:
    """The cells of a network by name, in the order in which they run."""
    found: OrderedDict[str, Layer] = OrderedDict()

    def visit(name: str, *arguments: Any) -> Unrolled:
        out = run(*arguments)
        found[name] = _layer(out, *arguments)
        return out

    visit_cells(visit, "", network, *start(network, params, sequence, reverse))
    return found


def _layer(
    out: Unrolled,
    cell: Any,
    options: Options,
    params: Params,
    xs: Array,
    carry: Carry | None,
    reset_to: Carry | None,
    steps: Steps,
) -> Layer:
    T, batch = xs.shape[0], tuple(xs.shape[1 : xs.ndim - cell.event_ndim])
    flags, stored = step_flags(T, options, steps, reset_to)
    initial = own_carry(cell, params, xs, batch)
    first = initial if carry is None else given_carry(cell, params, xs, batch, carry)

    def shift(first: Array, after: Array) -> Array:
        first = first[None].astype(after.dtype)
        return jnp.concatenate([after[1:], first] if options.reverse else [first, after[:-1]])

    before = jax.tree.map(shift, first, out.carries) if T else out.carries
    restart = jnp.zeros((T, *batch), bool)
    if flags.restart is not None:
        restart = flags.restart
        if stored is None:
            stored = jax.tree.map(lambda a: jnp.broadcast_to(a[None], (T, *a.shape)), initial)
        before = select(restart, jax.tree.map(lambda a, b: a.astype(b.dtype), stored, before), before)
    valid = jnp.ones((T, *batch), bool) if flags.valid is None else flags.valid
    return Layer(cell, params, xs, before, out.carries, out.ys, valid, restart, options.reverse)


def numbers(owner: str, **values: Any) -> dict[str, float]:
    """The values as floats; each must be a number."""
    for name, value in values.items():
        if not is_number(value):
            raise value_error(
                f"{owner} got {name}={value!r}",
                "a number",
                f"Give {name} as a Python float, or leave it out.",
            )
    return {name: float(value) for name, value in values.items()}


def per_layer(
    owner: str,
    compute: Callable[..., Any],
    supports: Callable[[Any], bool],
    expected: str,
    network: Any,
    params: Params,
    sequence: Sequence,
    reverse: bool = False,
    arrays: tuple[Array, ...] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """``compute(layer, *arrays, **options)`` for a cell, or for the cells of a network that have a result.

    ``supports(cell)`` says whether a cell has one, and ``expected`` describes such cells in errors.
    Returns the result for a cell, and an ``OrderedDict`` from names to results for a network.
    """
    lengths = validation.check_static(owner, network, Options(), sequence.xs, sequence.lengths, 0)
    static = (owner, compute, supports, expected, compute_form(network), bool(reverse))
    sequence = sequence._replace(lengths=lengths)
    return _per_layer(*static, tuple(sorted(options.items())), params, sequence, arrays)


@partial(jax.jit, static_argnums=tuple(range(7)))
def _per_layer(
    owner: str,
    compute: Callable[..., Any],
    supports: Callable[[Any], bool],
    expected: str,
    network: Any,
    reverse: bool,
    options: tuple[tuple[str, Any], ...],
    params: Params,
    sequence: Sequence,
    arrays: tuple[Array, ...],
) -> Any:
    found = layers(network, params, sequence, reverse)
    results = OrderedDict(
        (name, compute(layer, *arrays, **dict(options)))
        for name, layer in found.items()
        if supports(layer.cell)
    )
    return result_of(owner, network, results, expected)


def result_of(owner: str, network: Any, results: OrderedDict[str, Any], expected: str) -> Any:
    """The result for a cell, or the results for a network; raises an error if there are none."""
    if not results:
        raise value_error(
            f"{owner} got {network!r}",
            expected,
            "Use another network, or another function of lstm_jax.diagnostics.",
        )
    return results[""] if "" in results else results


# --- properties of cells ------------------------------------------------------------------------


def has_state(cell: Any) -> bool:
    """Whether the cell has a carry."""
    return cell.has_state


def wrappers(cell: Any) -> Iterator[Wrapper]:
    """The wrappers around a cell, from the outermost to the innermost."""
    while isinstance(cell, Wrapper):
        yield cell
        cell = cell.inner


def unwrapped(cell: Any) -> Any:
    """The cell inside all wrappers."""
    for wrapper in wrappers(cell):
        cell = wrapper.inner
    return cell


def state_names(cell: Any, carry: Carry) -> list[str]:
    """Names of the leaves of a carry: ``h``, ``c``, ...; the paths in the carry of a user's cell."""
    cell = unwrapped(cell)
    if isinstance(cell, UserCell):
        return [leaf_name(path) for path, _ in jax.tree.leaves_with_path(carry)]
    return list(cell.state_shapes)


# --- sums over valid steps ----------------------------------------------------------------------


def mean_over_valid(valid: Array, a: Array) -> Array:
    """The mean over valid steps of all rows: (T, *batch, *units) to (*units,); 0 without valid steps."""
    axes = tuple(range(valid.ndim))
    kept = jnp.where(expand_flag(valid, a), a, jnp.zeros((), a.dtype))
    return jnp.sum(kept, axes) / jnp.maximum(jnp.sum(valid), 1).astype(a.dtype)
