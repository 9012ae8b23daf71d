"""Extends Pallas' GPU interpreter with access to the shared memory of other blocks of a cluster.

The interpreter runs the blocks of a cluster concurrently. Each block has its own buffers, whose keys contain
the block's index. The key of another block's buffer is the same key with that block's index. Race detection
works by key, so it also covers these accesses.
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
    """The position of the block index in a buffer's key."""
    key = gpu_callbacks.HostAllocationKey(
        memory_space_id=0, device_id=0, block_id=7, thread_id=0, initial_ref_count=1, buffer_id=0
    )
    return list(key).index(7)


def split_transforms(transforms):
    """The transforms of a reference without the cluster transform, then its block index, if any."""
    blocks = [t.idxs[0] for t in transforms if isinstance(t, core.ClusterRefTransform)]
    assert len(blocks) <= 1
    return tuple(t for t in transforms if not isinstance(t, core.ClusterRefTransform)), *blocks


def key_of_block(key, transforms):
    """The key of the buffer in the block that the transforms name, and the other transforms."""
    transforms, *block = split_transforms(transforms)
    return (key.at[..., block_of_key()].set(block[0]) if block else key), transforms


def resolve_ref(aval, key, transforms):
    assert not isinstance(aval, core.AbstractRefUnion)
    return key_of_block(key, transforms)


def barrier_key(keys, treedef, leaves, original=jaxpr_interpret._get_barrier_allocation_key_from_inval):
    transforms = () if treedef is None else jax.tree.unflatten(treedef, leaves)
    keys, transforms = key_of_block(keys, transforms)
    leaves, treedef = jax.tree.flatten(transforms)
    return original(keys, treedef, leaves)


def async_store_smem(value, ref, barrier, *, cluster_idx, cluster_dim, optimized):
    """A synchronous store, followed by an arrival at the receiver's barrier."""
    plgpu.cluster_ref(ref, {cluster_dim: cluster_idx})[...] = value
    plgpu.barrier_arrive(plgpu.cluster_ref(barrier, {cluster_dim: jnp.int32(cluster_idx)}))


def wgmma(*, original, **options):
    """The product. Its first operand may be an array in registers instead of a buffer's key."""
    a = options["a_allocation_key_as_array"]
    if a.ndim == 1:
        return original(**options)
    memory, thread = gpu_callbacks._get_shared_memory(), options["thread"]
    info = gpu_callbacks.memory.GPULoggingInfo(options["mesh_location"], thread, options["source_info"])

    def locate(name):
        key = gpu_callbacks.HostAllocationKey.from_array(options[f"{name}_allocation_key_as_array"])
        transforms = gpu_callbacks._remove_noop_transforms(options[f"{name}_transforms"])
        return key, memory.access(key, jax.tree.map(int, transforms))

    b, acc = (memory.get_buffer_content(*locate(name), thread, logging_info=info)[0] for name in ("b", "acc"))
    result = acc + np.matmul(a, b, dtype=acc.dtype)
    memory.store_buffer_content(*locate("acc"), result, thread, logging_info=info)
    return options["token"]


def wait_for_buffer(access, seconds=60):
    """Make an access wait until the buffer exists. On a GPU, all blocks of a cluster start together.

    If the buffer does not exist after ``seconds``, its block has exited, and the access itself raises.
    """
    parameters = inspect.signature(access)

    @functools.wraps(access)
    def wrapper(*args, **options):
        arguments = parameters.bind(*args, **options).arguments
        key = gpu_callbacks.HostAllocationKey.from_array(arguments["allocation_key_as_array"])
        deadline = time.monotonic() + seconds
        while key not in gpu_callbacks._get_shared_memory().mem and time.monotonic() < deadline:
            time.sleep(0.001)
        return access(*args, **options)

    return wrapper


@contextlib.contextmanager
def clusters():
    """Context in which kernels are traced and run with access to the shared memory of the whole cluster."""
    changes = [
        (jaxpr_interpret, "resolve_ref", resolve_ref),
        (jaxpr_interpret, "_get_barrier_allocation_key_from_inval", barrier_key),
        (plgpu, "async_store_smem", async_store_smem),
    ]
    product = functools.partial(wgmma, original=gpu_callbacks.wgmma)
    changes += [(gpu_callbacks, "wgmma", gpu_callbacks.fail_on_exception(product))]
    accesses = "_get", "_swap", "_barrier_arrive"
    changes += [(gpu_callbacks, name, wait_for_buffer(getattr(gpu_callbacks, name))) for name in accesses]
    with contextlib.ExitStack() as stack:
        for change in changes:
            stack.enter_context(mock.patch.object(*change))
        yield


def races_found():
    """Whether the interpreter found races in the last kernel."""
    return interpret_pallas_call.get_races().races_found


def reset():
    """Reset the interpreter after a kernel that raised."""
    interpret_pallas_call.reset_gpu_interpret_mode_state()
