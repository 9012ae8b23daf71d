"""Names and arguments of Mosaic GPU that differ between JAX versions, collected in one module.

Supports jax 0.10 to 0.12. The kernels take everything that has the same name in all of these versions
directly from ``jax.experimental.pallas.mosaic_gpu``.
"""

from __future__ import annotations

import inspect
from typing import Any

from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm

from lstm_jax._types import Array

#: The interpreter on the CPU, public since jax 0.12; earlier ones lack too many operations.
INTERPRETER = getattr(plgpu, "InterpretGPUParams", None)

_index = inspect.signature(plgpu.load).parameters.get("idx")
#: Before jax 0.11, a load requires an index in addition to the reference.
_INDEX = [()] if _index is not None and _index.default is inspect.Parameter.empty else []
#: Since jax 0.12, a store has an option that makes a memory bank conflict an error.
_store: Any = getattr(plgpu, "store", None)

#: One warpgroup executes the kernel as written. The kernel contains all synchronization explicitly.
COMPILER_PARAMS = plgpu.CompilerParams(
    lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
)


def load(ref: Any, layout: Any) -> Array:
    """Load a reference into registers, distributed over the threads by ``layout``."""
    return plgpu.load(ref, *_INDEX, layout=layout, optimized=False)


def store(ref: Any, value: Array) -> None:
    """Store registers into a reference."""
    if _store is None:
        ref[...] = value
    else:
        _store(ref, value, optimized=False)


def interpreter() -> Any:
    """The interpreter in its strictest mode: uninitialized memory is NaN, and races are detected.

    It ignores the fences.
    """
    assert INTERPRETER is not None
    return INTERPRETER(detect_races=True, uninitialized_memory="nan", inline_mgpu="ignore")


def _fence(instruction: str) -> Any:
    """One PTX instruction. The interpreter skips it, because it executes everything in program order."""

    @plgpu.inline_mgpu()
    def fence(_: Any) -> None:
        llvm.inline_asm(ir.Type.parse("!llvm.void"), [], instruction, "", has_side_effects=True)

    return fence


#: Orders this thread's earlier writes before its later ones, as seen by all blocks of the cluster.
#: Mosaic's arrival at a cluster barrier orders writes within the block only.
cluster_fence = _fence("fence.acq_rel.cluster;")
#: Makes earlier writes to global memory visible to the asynchronous copies that start afterwards.
copy_fence = _fence("fence.proxy.async;")
