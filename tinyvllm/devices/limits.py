"""What a card allows, by architecture, and the refusal of a launch that it would refuse.

Numbers: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability". Knows nothing of registers,
which only the GPU's compiler assigns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tinyvllm.device import DeviceProperties, Dim3
from tinyvllm.errors import DeviceError, KernelError

MAX_STATIC_SHARED_BYTES = 48 * 1024
"""Static shared memory of a kernel, on every architecture; also dynamic, unless more is asked for."""
_MAX_GRID = (2**31 - 1, 65535, 65535)
_MAX_BLOCK = (1024, 1024, 64)
_MAX_CLUSTER_BLOCKS = 8  # portable size; 16 is possible on some cards for a function that asks
_RESERVED_SHARED_BYTES = 1024  # that the system takes for each block


@dataclass(frozen=True, slots=True)
class _Limits:
    shared_kib_per_block: int
    shared_kib_per_sm: int
    threads_per_sm: int
    blocks_per_sm: int


_LIMITS = {
    80: _Limits(163, 164, 2048, 32),
    86: _Limits(99, 100, 1536, 16),
    89: _Limits(99, 100, 1536, 24),
    90: _Limits(227, 228, 2048, 32),
    100: _Limits(227, 228, 2048, 32),
    120: _Limits(99, 100, 1536, 24),
}


def properties_of(arch: int, num_sms: int, memory_bytes: int) -> DeviceProperties:
    """The properties of an emulated card.

    Raises:
        DeviceError: the architecture is not known.
    """
    limits = _LIMITS.get(arch)
    if limits is None:
        raise DeviceError(f"device emulator: arch {arch} is not known; one of {', '.join(map(str, _LIMITS))}")
    return DeviceProperties(
        name=f"emulator of sm_{arch}",
        arch=arch,
        num_sms=num_sms,
        max_threads_per_block=1024,
        max_threads_per_sm=limits.threads_per_sm,
        max_blocks_per_sm=limits.blocks_per_sm,
        max_shared_bytes=limits.shared_kib_per_block * 1024,
        shared_bytes_per_sm=limits.shared_kib_per_sm * 1024,
        memory_bytes=memory_bytes,
    )


def check_launch(
    what: str,
    properties: DeviceProperties,
    grid: Dim3,
    block: Dim3,
    *,
    shared_bytes: int,
    max_dynamic_shared_bytes: int,
    max_threads: int,
    cooperative: bool,
    cluster: Dim3,
) -> None:
    """Raises ``KernelError`` if the card would refuse the launch, saying which limit and by how much."""
    for axis, size, most in zip("xyz", grid, _MAX_GRID, strict=True):
        if not 1 <= size <= most:
            raise KernelError(f"{what}: grid.{axis} is {size}, a grid has 1 to {most} blocks in {axis}")
    for axis, size, most in zip("xyz", block, _MAX_BLOCK, strict=True):
        if not 1 <= size <= most:
            raise KernelError(f"{what}: block.{axis} is {size}, a block has 1 to {most} threads in {axis}")
    num_threads = math.prod(block)
    most = min(max_threads, properties.max_threads_per_block)
    if num_threads > most:
        source = "__launch_bounds__" if max_threads < properties.max_threads_per_block else "the card"
        raise KernelError(f"{what}: {num_threads} threads in a block, {source} allows {most}")
    if not 0 <= shared_bytes <= max_dynamic_shared_bytes:
        raise KernelError(
            f"{what}: {shared_bytes} bytes of dynamic shared memory, the function may use {max_dynamic_shared_bytes}; "
            "ask for more with module.function(..., max_dynamic_shared_bytes=...)"
        )
    _check_cluster(what, properties, grid, cluster)
    if cooperative:
        _check_cooperative(what, properties, grid, num_threads, shared_bytes)


def _check_cluster(what: str, properties: DeviceProperties, grid: Dim3, cluster: Dim3) -> None:
    if cluster == (1, 1, 1):
        return
    if properties.arch < 90:
        raise KernelError(f"{what}: cluster {cluster} on sm_{properties.arch}; clusters need sm_90")
    if min(cluster) < 1 or math.prod(cluster) > _MAX_CLUSTER_BLOCKS:
        raise KernelError(f"{what}: cluster {cluster}; a cluster has 1 to {_MAX_CLUSTER_BLOCKS} blocks")
    if any(blocks % size for blocks, size in zip(grid, cluster, strict=True)):
        raise KernelError(f"{what}: grid {grid} is not a whole number of clusters {cluster}")


def _check_cooperative(
    what: str, properties: DeviceProperties, grid: Dim3, num_threads: int, shared_bytes: int
) -> None:
    whole_warps = math.ceil(num_threads / 32) * 32
    fitting = min(
        properties.max_blocks_per_sm,
        properties.max_threads_per_sm // whole_warps,
        properties.shared_bytes_per_sm // (shared_bytes + _RESERVED_SHARED_BYTES),
    )
    resident, wanted = fitting * properties.num_sms, math.prod(grid)
    if wanted > resident:
        raise KernelError(
            f"{what}: a cooperative grid of {wanted} blocks, but only {resident} are resident together "
            f"({fitting} on each of {properties.num_sms} SMs)"
        )
