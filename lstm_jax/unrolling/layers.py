"""Networks as layers of one kind, for implementations that run all layers in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from lstm_jax._types import Array

#: How the outputs of two directions become one.
MERGES: dict[str, Callable[[Array, Array], Array]] = {
    "concat": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "sum": jnp.add,
    "mean": lambda a, b: (a + b) / 2,
    "product": jnp.multiply,
}


class Layers(NamedTuple):
    """Layers wired one to the next, each of one cell, all in one direction or all in both."""

    cells: tuple[Any, ...]  # one a layer
    directions: int  # 1 or 2
    merge: str | None = None  # of the last layer's two directions; below it they are concatenated


def layers_of(network: Any, noisy: bool) -> Layers | str:
    """The layers, or why the network is not of this kind; ``noisy``: whether ``unroll`` has a key.

    A composition answers by its method ``as_layers``; whatever else has the face of a cell is one layer.
    """
    as_layers = getattr(network, "as_layers", None)
    return Layers((network,), 1) if as_layers is None else as_layers(noisy)


def joined(parts: list[Layers | str]) -> Layers | str:
    """Layers one upon the other, or why they do not make one."""
    cells: tuple[Any, ...] = ()
    for index, part in enumerate(parts):
        if isinstance(part, str):
            return part
        first = parts[0]
        assert isinstance(first, Layers)
        if part.directions != first.directions:
            return "some of its layers walk one way and some both ways"
        if part.merge not in (None, "concat") and index < len(parts) - 1:
            return f"a layer merges its directions by {part.merge!r} below another layer"
        cells += part.cells
    last = parts[-1]
    assert isinstance(last, Layers)
    return last._replace(cells=cells)
