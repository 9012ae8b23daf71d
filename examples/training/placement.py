"""Where arrays lie: the one place that knows of devices.

Everything that a program computes passes through here once: the state and the batches are placed, and the
step is compiled for where they are. :mod:`training.distributed` has the mesh and the processes.
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
    """On one device, or over a mesh: batches split over its axis ``data``, the state on every device.

    Args:
        mesh: None for one device.
        batch_axis: of the arrays of a batch, the axis that counts its rows.
        shardings: ``shardings(mesh, state)``, for a state that does not lie whole on every device: of a
            network over the axis ``model``, say (``lstm_jax.shard``, ``lstm_jax.shardings``).
    """

    mesh: Mesh | None = None
    batch_axis: int = 1
    shardings: Callable[[Mesh, Any], Any] | None = None

    @classmethod
    def of(cls, args: Any, **more: Any) -> Placement:
        """By ``--mesh``; without it, one device, or the rows over the devices of all processes."""
        return cls(mesh_of(args), **more)

    def of_state(self, state: Any) -> Any:
        """A sharding for each array of the state; None on one device."""
        if self.mesh is None:
            return None
        if self.shardings is not None:
            return self.shardings(self.mesh, state)
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda _: whole, state)

    def state(self, state: Any) -> Any:
        """The state where it belongs, in arrays of its own: the step will write over their memory."""
        if self.mesh is None:
            return jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True), state)

        def placed(leaf: Any, sharding: NamedSharding) -> Any:
            if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
                return leaf.copy()
            return jax.device_put(jax.device_get(leaf), sharding)

        return jax.tree.map(placed, state, self.of_state(state))

    def batch(self, batch: Any) -> Any:
        """A batch from the host where it belongs. Arrays without a batch axis go to every device."""
        return jax.device_put(batch) if self.mesh is None else global_batch(batch, self.mesh, self.batch_axis)

    def compile(self, step: Callable[[Any, Any], tuple[Any, Any]], state: Any) -> Callable[[Any, Any], Any]:
        """The step, compiled: the old state's memory is used again, the new state lies where the old did."""
        if self.mesh is None:
            return jax.jit(step, donate_argnums=0)
        return jax.jit(step, donate_argnums=0, out_shardings=(self.of_state(state), None))


def mesh_of(args: Any) -> Mesh | None:
    """The mesh of ``--mesh``; None where there is one device to compute on."""
    if args.mesh or jax.process_count() > 1:
        return parse_mesh(args.mesh or f"data={jax.device_count()}")
    return None
