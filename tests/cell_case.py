"""One row of the table of cells and networks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import oracle

#: Features of inputs, and units. They differ, so that a mistaken axis is noticed.
D, H = 3, 2


class CellCase(NamedTuple):
    """A cell or network, and its oracle.

    ``make test`` runs the oracle over all cases, and the laws over those of ``cell_cases.DAILY``;
    ``make test-slow`` runs the rest.
    """

    name: str
    #: ``build(**dtypes)`` makes it, called with ``param_dtype`` and, in tests of low precision, ``dtype``.
    build: Callable[..., Any]
    #: An ``oracle.Cell``, ``oracle.Stack`` or ``oracle.Bidirectional`` with the same equations.
    oracle: Any
    #: What ``implementation="auto"`` takes; ``"fused+scan"`` where layers differ.
    implementation: str = "fused"
    #: The case differs from another in its equations alone, so that the laws pass it over.
    variant: bool = False
    #: The oracle runs one of the two directions every day, and the other in ``make test-slow``.
    alternate: bool = False
    #: The shape of one input.
    event: tuple[int, ...] = (D,)
    #: Turns random arrays into a carry that the cell could have come to.
    carry: Callable[[Any], Any] = lambda carry: carry

    @property
    def causal(self) -> bool:
        """No output depends on a later input, so that single steps and windows give the same."""
        return not _has_bidirectional(self.oracle)


def _has_bidirectional(network):
    if isinstance(network, oracle.Stack):
        return any(map(_has_bidirectional, network.layers))
    return isinstance(network, oracle.Bidirectional)
