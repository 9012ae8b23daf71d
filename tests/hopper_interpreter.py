"""Pallas' interpreter for GPUs, taught what it lacks: the shared memory of other blocks of a cluster.

It runs the blocks of a cluster side by side, each with its own buffers, whose keys name the block: another
block's buffer is the same key with that block's number. Race detection goes by the keys, so it sees all.
"""

import contextlib
import functools
import inspect
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.pallas.mosaic_gpu import core
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks, interpret_pallas_call, jaxpr_interpret
from jax.experimental.pallas import mosaic_gpu as plgpu


@functools.cache
def block_of_key():
    """Where a key says which block a buffer belongs to."""
    key = gpu_callbacks.HostAllocationKey(
        memory_space_id=0, device_id=0, block_id=7, thread_id=0, initial_ref_count=1, buffer_id=0
    )
    return list(key).index(7)


def split(transforms):
    """What is left of transforms of a reference, and the block that they name."""
    blocks = [t.idxs[0] for t in transforms if isinstance(t, core.ClusterRefTransform)]
    assert len(blocks) <= 1
    return tuple(t for t in transforms if not isinstance(t, core.ClusterRefTransform)), *blocks


def elsewhere(key, transforms):
    transforms, *block = split(transforms)
    return (key.at[..., block_of_key()].set(block[0]) if block else key), transforms


def resolve_ref(aval, key, transforms):
    assert not isinstance(aval, core.AbstractRefUnion)
    return elsewhere(key, transforms)


def barrier_key(keys, treedef, leaves, plain=jaxpr_interpret._get_barrier_allocation_key_from_inval):
    transforms = () if treedef is None else jax.tree.unflatten(treedef, leaves)
    keys, transforms = elsewhere(keys, transforms)
    leaves, treedef = jax.tree.flatten(transforms)
    return plain(keys, treedef, leaves)


def async_store_smem(value, ref, barrier, *, cluster_idx, cluster_dim, optimized):
    """As if the store took no time: the value is there, then the receiver's barrier counts it."""
    plgpu.cluster_ref(ref, {cluster_dim: cluster_idx})[...] = value
    plgpu.barrier_arrive(plgpu.cluster_ref(barrier, {cluster_dim: jnp.int32(cluster_idx)}))


def wgmma(*, plain, **options):
    """The product, whose first operand may also be an array in registers, instead of a buffer's key."""
    a = options["a_allocation_key_as_array"]
    if a.ndim == 1:
        return plain(**options)
    memory, thread = gpu_callbacks._get_shared_memory(), options["thread"]
    info = gpu_callbacks.memory.GPULoggingInfo(options["mesh_location"], thread, options["source_info"])

    def place(name):
        key = gpu_callbacks.HostAllocationKey.from_array(options[f"{name}_allocation_key_as_array"])
        transforms = gpu_callbacks._remove_noop_transforms(options[f"{name}_transforms"])
        return key, memory.access(key, jax.tree.map(int, transforms))

    b, acc = (memory.get_buffer_content(*place(name), thread, logging_info=info)[0] for name in ("b", "acc"))
    total = acc + np.matmul(a, b, dtype=acc.dtype)
    memory.store_buffer_content(*place("acc"), total, thread, logging_info=info)
    return options["token"]


def patient(access, seconds=60):
    """An access that waits for another block's buffers to be there: a GPU's clusters begin as one.

    What is still not there after a while has been left: the access is wrong, and says so.
    """
    parameters = inspect.signature(access)

    @functools.wraps(access)
    def wrapper(*args, **options):
        given = parameters.bind(*args, **options).arguments
        key = gpu_callbacks.HostAllocationKey.from_array(given["allocation_key_as_array"])
        last = time.monotonic() + seconds
        while key not in gpu_callbacks._get_shared_memory().mem and time.monotonic() < last:
            time.sleep(0.001)
        return access(*args, **options)

    return wrapper


@contextlib.contextmanager
def clusters():
    """Within it, kernels are traced and run with the shared memory of whole clusters."""
    changes = [
        (jaxpr_interpret, "resolve_ref", resolve_ref),
        (jaxpr_interpret, "_get_barrier_allocation_key_from_inval", barrier_key),
        (plgpu, "async_store_smem", async_store_smem),
    ]
    product = functools.partial(wgmma, plain=gpu_callbacks.wgmma)
    changes += [(gpu_callbacks, "wgmma", gpu_callbacks.fail_on_exception(product))]
    accesses = "_get", "_swap", "_barrier_arrive"
    changes += [(gpu_callbacks, name, patient(getattr(gpu_callbacks, name))) for name in accesses]
    with contextlib.ExitStack() as stack:
        for change in changes:
            stack.enter_context(mock.patch.object(*change))
        yield


def races_found():
    """Whether the kernel that ran last had races."""
    return interpret_pallas_call.get_races().races_found


def reset():
    """After a kernel that failed."""
    interpret_pallas_call.reset_gpu_interpret_mode_state()
