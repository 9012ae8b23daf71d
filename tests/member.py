"""One row of the table of members: what it needs, and what it says."""

from collections.abc import Callable
from typing import Any, NamedTuple

import oracle

D, H = 3, 2


class Member(NamedTuple):
    """One row of the table."""

    name: str
    build: Callable[..., Any]
    oracle: Any
    implementation: str = "fused"
    variant: bool = False
    family: bool = False
    event: tuple[int, ...] = (D,)
    carry: Callable[[Any], Any] = lambda carry: carry

    @property
    def causal(self) -> bool:
        """No output depends on a later input, so the member steps and takes windows."""
        return not _has_bidirectional(self.oracle)


def _has_bidirectional(network):
    if isinstance(network, oracle.Stack):
        return any(map(_has_bidirectional, network.layers))
    return isinstance(network, oracle.Bidirectional)
