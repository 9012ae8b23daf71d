"""One row of the table of cells and networks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import oracle

#: Features of inputs, and units. They differ, so that a mistaken axis is noticed.
D, H = 3, 2


class CellCase(NamedTuple):
    """A cell or network, and its oracle.

    ``make test`` compares all cases with the oracle, and checks the laws for those of ``cell_cases.DAILY``.
    ``make test-slow`` runs the other tests.
    """

    name: str
    #: ``build(**dtypes)`` returns it; called with ``param_dtype`` and, in tests of low precision, ``dtype``.
    build: Callable[..., Any]
    #: An ``oracle.Cell``, ``oracle.Stack`` or ``oracle.Bidirectional`` with the same equations.
    oracle: Any
    #: The choice of ``implementation="auto"``; ``"fused+scan"`` if layers differ.
    implementation: str = "fused"
    #: The case differs from another only in its equations, so the laws are not checked for it.
    variant: bool = False
    #: The shape of one input.
    event: tuple[int, ...] = (D,)
    #: Converts random arrays to a valid carry.
    carry: Callable[[Any], Any] = lambda carry: carry

    @property
    def causal(self) -> bool:
        """Whether no output depends on a later input, so that single steps and windows are possible."""
        return not _has_bidirectional(self.oracle)


def _has_bidirectional(network):
    if isinstance(network, oracle.Stack):
        return any(map(_has_bidirectional, network.layers))
    return isinstance(network, oracle.Bidirectional)
