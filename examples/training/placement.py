"""Devices: where the state and the batches are placed, and how the step is compiled for them.

:mod:`training.distributed` creates the mesh and starts the processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from training.distributed import global_batch, parse_mesh


@dataclass(frozen=True)
class Placement:
    """One device, or a mesh: batches are split over its axis ``data``, the state is replicated.

    Args:
        mesh: None for one device.
        batch_axis: the axis of a batch's arrays that indexes its rows.
        shardings: ``shardings(mesh, state)`` for a state that is not replicated, such as that of a network
            whose units are split over the axis ``model`` (``lstm_jax.shard``, ``lstm_jax.shardings``).
    """

    mesh: Mesh | None = None
    batch_axis: int = 1
    shardings: Callable[[Mesh, Any], Any] | None = None

    @classmethod
    def of(cls, args: Any, **more: Any) -> Placement:
        """The placement of ``--mesh``.

        Without ``--mesh``, a single process uses one device, and several split the rows over all devices.
        """
        if args.mesh or jax.process_count() > 1:
            return cls(parse_mesh(args.mesh or f"data={jax.device_count()}"), **more)
        return cls(None, **more)

    def of_state(self, state: Any) -> Any:
        """A sharding for each array of the state; None on one device."""
        if self.mesh is None:
            return None
        if self.shardings is not None:
            return self.shardings(self.mesh, state)
        replicated = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda _: replicated, state)

    def state(self, state: Any) -> Any:
        """Copy the state to its devices. The copies can be donated to the step."""
        if self.mesh is None:
            return jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True), state)

        def place(leaf: Any, sharding: NamedSharding) -> Any:
            if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
                return leaf.copy()
            return jax.device_put(jax.device_get(leaf), sharding)

        return jax.tree.map(place, state, self.of_state(state))

    def batch(self, batch: Any) -> Any:
        """Copy a batch from the host to its devices. Arrays without a batch axis are replicated."""
        return jax.device_put(batch) if self.mesh is None else global_batch(batch, self.mesh, self.batch_axis)

    def compile(self, step: Callable[[Any, Any], tuple[Any, Any]], state: Any) -> Callable[[Any, Any], Any]:
        """Compile the step. It reuses the memory of the old state, and keeps the state's shardings."""
        if self.mesh is None:
            return jax.jit(step, donate_argnums=0)
        return jax.jit(step, donate_argnums=0, out_shardings=(self.of_state(state), None))
