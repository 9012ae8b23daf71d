"""Where arrays lie: the one place that knows of devices.

Everything that a program computes passes through here once: the state and the batches are placed, and the
step is compiled for where they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from training.errors import UserError


@dataclass(frozen=True)
class Placement:
    """On one device, or over a mesh: batches split over its axis ``data``, the state on every device.

    Args:
        mesh: None for one device.
        batch_axis: of the arrays of a batch, the axis that counts its rows.
        shardings: ``shardings(mesh, state)``, for a state that does not lie whole on every device.
    """

    mesh: Mesh | None = None
    batch_axis: int = 1
    shardings: Callable[[Mesh, Any], Any] | None = None

    @classmethod
    def of(cls, args: Any, **more: Any) -> Placement:
        """By ``--mesh``."""
        return cls(make_mesh(args.mesh), **more)

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
        state = jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True), state)
        return state if self.mesh is None else jax.device_put(state, self.of_state(state))

    def batch(self, batch: Any) -> Any:
        """A batch from the host where it belongs. Arrays without a batch axis go to every device."""
        if self.mesh is None:
            return jax.device_put(batch)
        return jax.tree.map(lambda leaf: jax.device_put(leaf, self._of_batch(leaf)), batch)

    def _of_batch(self, leaf: Any) -> NamedSharding:
        assert self.mesh is not None
        if np.ndim(leaf) <= self.batch_axis or "data" not in self.mesh.shape:
            return NamedSharding(self.mesh, PartitionSpec())
        rows, devices = np.shape(leaf)[self.batch_axis], self.mesh.shape["data"]
        if rows % devices:
            raise UserError(f"a batch of {rows} rows does not divide over --mesh data={devices}")
        return NamedSharding(self.mesh, PartitionSpec(*[None] * self.batch_axis, "data"))

    def compile(self, step: Callable[[Any, Any], tuple[Any, Any]], state: Any) -> Callable[[Any, Any], Any]:
        """The step, compiled: the old state's memory is used again, the new state lies where the old did."""
        if self.mesh is None:
            return jax.jit(step, donate_argnums=0)
        return jax.jit(step, donate_argnums=0, out_shardings=(self.of_state(state), None))


def make_mesh(axes: str) -> Mesh | None:
    """The mesh of ``--mesh``: ``data=4`` or ``data=4,model=2``; None of an empty text."""
    if not axes:
        return None
    sizes: dict[str, int] = {}
    for part in axes.split(","):
        name, _, size = part.partition("=")
        if name not in ("data", "model") or name in sizes or not size.isdecimal() or int(size) < 1:
            raise UserError(f"--mesh {axes}: {part!r} is not data=N or model=N")
        sizes[name] = int(size)
    count, devices = math.prod(sizes.values()), jax.devices()
    if count > len(devices):
        raise UserError(f"--mesh {axes} needs {count} devices, and there are {len(devices)}")
    return Mesh(np.array(devices[:count]).reshape(tuple(sizes.values())), tuple(sizes))
