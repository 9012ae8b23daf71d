"""Names and arguments of Mosaic GPU that differ between versions of JAX: here alone.

jax 0.10 to 0.12 are known. What all of them have under one name is taken from
``jax.experimental.pallas.mosaic_gpu`` by the kernels themselves.
"""

from __future__ import annotations

import inspect
from typing import Any

from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm

from lstm_jax._types import Array

#: The interpreter on the CPU is public since jax 0.12; before, it knows too little.
INTERPRETER = getattr(plgpu, "InterpretGPUParams", None)

_index = inspect.signature(plgpu.load).parameters.get("idx")
#: Loads had to be given an index beside the reference before jax 0.11.
_INDEX = [()] if _index is not None and _index.default is inspect.Parameter.empty else []
#: Stores that say whether a conflict between memory banks is an error came with jax 0.12.
_store: Any = getattr(plgpu, "store", None)

#: One warpgroup does what the kernels' text says; where it has to wait for itself, the text says that, too.
COMPILER_PARAMS = plgpu.CompilerParams(
    lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True
)


def load(ref: Any, layout: Any) -> Array:
    """What is in a reference, spread over the threads as ``layout`` says."""
    return plgpu.load(ref, *_INDEX, layout=layout, optimized=False)


def store(ref: Any, value: Array) -> None:
    """The way back."""
    if _store is None:
        ref[...] = value
    else:
        _store(ref, value, optimized=False)


def interpreter() -> Any:
    """The interpreter, as strict as it can be: memory that nobody wrote is NaN, races are found.

    Fences have nothing to say there.
    """
    assert INTERPRETER is not None
    return INTERPRETER(detect_races=True, uninitialized_memory="nan", inline_mgpu="ignore")


def _fence(instruction: str) -> Any:
    """One instruction; the interpreter, which orders everything as it is written, leaves it out."""

    @plgpu.inline_mgpu()
    def fence(_: Any) -> None:
        llvm.inline_asm(ir.Type.parse("!llvm.void"), [], instruction, "", has_side_effects=True)

    return fence


#: What this thread wrote is seen by all blocks of the cluster before what it writes from here on.
#: Mosaic's arrival at a barrier of the cluster orders writes within the block alone.
cluster_fence = _fence("fence.acq_rel.cluster;")
#: What threads wrote to the main memory is seen by the copies that they start from here on.
copy_fence = _fence("fence.proxy.async;")
