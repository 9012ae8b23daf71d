"""Queries about devices, meshes and the sharding of arrays."""

from __future__ import annotations

from typing import Any

import jax


def is_single_cpu_device() -> bool:
    """Whether the only device is one CPU, so that no array can be distributed over devices."""
    return jax.device_count() == 1 and jax.default_backend() == "cpu"


def varying_axes(aval: Any) -> frozenset[Any]:
    """The mesh axes inside ``shard_map`` over which an array differs between devices."""
    kind = getattr(aval, "manual_axis_type", None)
    return frozenset() if kind is None else frozenset(kind.varying)


def vary_over(a: jax.Array, axes: frozenset[Any]) -> jax.Array:
    """The array with a type that varies over these mesh axes, too."""
    missing = axes - varying_axes(jax.typeof(a))
    return jax.lax.pcast(a, tuple(missing), to="varying") if missing else a


def is_explicit(aval: Any) -> bool:
    """Whether a type contains a sharding over an explicit mesh."""
    mesh = getattr(aval.sharding, "mesh", None)
    return mesh is not None and jax.sharding.AxisType.Explicit in getattr(mesh, "axis_types", ())
