"""Networks of sharded cells: construction, shardings of parameters, and communication volume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from lstm_jax._errors import check_tuple, value_error
from lstm_jax._types import Params
from lstm_jax.cells import _init
from lstm_jax.networks.bidirectional import Bidirectional
from lstm_jax.networks.stack import Stack
from lstm_jax.sharding.cell import CellShard, Sharded


def shard(network: Any, mesh: Mesh, *, data: str | None = "data", model: str = "model") -> Any:
    """The network with every cell and readout :class:`Sharded`, with the same parameters and results.

    Args:
        network: a cell, a :class:`lstm_jax.Readout`, or a :class:`lstm_jax.Stack` or
            :class:`lstm_jax.Bidirectional` of them.
        mesh, data, model: see :class:`Sharded`.

    Raises:
        ValueError: a layer cannot be sharded.

    >>> import lstm_jax
    >>> mesh = jax.make_mesh((1, 1), ("data", "model"))
    >>> network = lstm_jax.Stack((lstm_jax.LSTM(3, 8), lstm_jax.Readout(8, 10)))
    >>> params = network.init(jax.random.key(0))  # or from a checkpoint, or from another library
    >>> network = shard(network, mesh)
    >>> params = jax.device_put(params, shardings(network, params))
    >>> carry, ys = lstm_jax.unroll(network, params, jax.numpy.ones((5, 4, 3)))
    >>> ys.shape
    (5, 4, 10)
    """
    if isinstance(network, Sharded):
        return network
    if isinstance(network, Stack):
        layers = tuple(shard(layer, mesh, data=data, model=model) for layer in network.layers)
        return replace(network, layers=layers)
    if isinstance(network, Bidirectional):
        return network.replace_cells(lambda cell: shard(cell, mesh, data=data, model=model))
    return Sharded(network, mesh, data=data, model=model)


def layers_of(network: Any, params: Params) -> list[tuple[Any, Params]]:
    """Pairs of cell and parameters, in the order of the parameters' leaves."""
    if isinstance(network, Stack):
        check_tuple("Stack", params, len(network.layers))
        pairs = zip(network.layers, params, strict=True)
    elif isinstance(network, Bidirectional):
        check_tuple("Bidirectional", params, 2)
        pairs = zip(network.cells, params, strict=True)
    else:
        return [(network, params)]
    return [layer for pair in pairs for layer in layers_of(*pair)]


def shardings(network: Any, params: Params) -> Any:
    """Shardings for the parameters of a sharded network: a tree of ``NamedSharding`` in their structure.

    Pass them to ``jax.device_put``, to ``in_shardings`` and ``out_shardings`` of ``jax.jit``, or to a
    function that restores a checkpoint. The arrays keep their shapes. Layers that are not sharded are
    replicated.

    Args:
        network: the result of :func:`shard`, or any network with a :class:`Sharded` layer.
        params: its parameters, or their shapes (``jax.eval_shape(network.init, key)``).

    Raises:
        ValueError: no layer of the network is sharded.

    >>> import lstm_jax
    >>> mesh = jax.make_mesh((1, 1), ("data", "model"))
    >>> network = shard(lstm_jax.LSTM(3, 8), mesh)
    >>> shardings(network, jax.eval_shape(network.init, jax.random.key(0))).w_hh.spec == P("model")
    True
    """
    layers = layers_of(network, params)
    mesh = _sharded(network, layers)[0][0].mesh
    leaves = []
    for cell, cell_params in layers:
        if isinstance(cell, Sharded):
            leaves += jax.tree.leaves(cell.shardings(cell_params))
        else:
            leaves += [NamedSharding(mesh, P()) for _ in jax.tree.leaves(cell_params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _sharded(network: Any, layers: list[tuple[Any, Params]]) -> list[tuple[Sharded, Params]]:
    sharded = [(cell, params) for cell, params in layers if isinstance(cell, Sharded)]
    if not sharded:
        raise value_error(
            f"got a {type(network).__name__} without a Sharded layer",
            "a sharded network",
            "Use lstm_jax.shard(network, mesh).",
        )
    return sharded


# --- communication ------------------------------------------------------------------------------


class Communication(NamedTuple):
    """Bytes that each device receives."""

    forward: int  # at each time step, in the forward loops of all layers
    backward: int  # at each time step, in the backward loops of all layers
    gradients: int  # in each training step, for the sum of the parameters' gradients over the batch


def communication(network: Any, params: Params, batch: int) -> Communication:
    r"""The bytes that the devices of a sharded network exchange.

    At each step every device needs the h of B/d rows, and has one of m parts of it:

    .. math:: \text{forward} = \text{backward} = \frac{m-1}{m} \cdot \frac{B}{d} \cdot H \cdot \text{itemsize}

    for each layer and direction of time whose recurrence is not elementwise. The backward loop sends the same
    number of bytes in a reduce-scatter. After the loops, each device sums the gradients of its part of the
    parameters, G bytes, with the d - 1 other devices that have this part, in a ring that sends each byte
    twice:

    .. math:: \text{gradients} = 2 \, \frac{d-1}{d} \, G

    The result does not include operations outside of the loops that occur once per call: the gather of all h
    for the gradient of R, which is T times ``forward``; between layers, the gather of a layer's input and the
    sum of its gradient; and the all-to-all of the parameters and of their gradients, G (m-1)/m each
    (:meth:`Sharded.shardings`).

    Args:
        network: the result of :func:`shard`.
        params: its parameters, or their shapes.
        batch: B, the number of rows on all devices together.

    Raises:
        ValueError: no layer of the network is sharded.

    >>> import lstm_jax
    >>> mesh = jax.make_mesh((1, 1), ("data", "model"))
    >>> network = shard(lstm_jax.LSTM(3, 8), mesh)
    >>> communication(network, jax.eval_shape(network.init, jax.random.key(0)), batch=4)
    Communication(forward=0, backward=0, gradients=0)
    """
    layers = layers_of(network, params)
    exchanged = summed = 0
    first, _ = _sharded(network, layers)[0]
    d = 1 if first.data is None else first.mesh.shape[first.data]
    for cell, cell_params in layers:
        m = cell.parts if isinstance(cell, Sharded) else 1
        for a in jax.tree.leaves(cell_params):
            summed += a.size * a.dtype.itemsize // m
        if isinstance(cell, Sharded) and isinstance(cell.shard_cell, CellShard):
            h = _init.state_dtypes(cell.cell, cell_params)[0].itemsize * cell.output_size
            exchanged += batch // d * h * (m - 1) // m
    return Communication(exchanged, exchanged, 2 * (d - 1) * summed // d)
