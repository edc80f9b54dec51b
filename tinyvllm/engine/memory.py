"""How many KV blocks there is room for."""

from __future__ import annotations

import os
from pathlib import Path

from tinyvllm.errors import CapacityError
from tinyvllm.shapes import ModelShape

_FLOAT32_BYTES = 4


def free_memory_bytes() -> int:
    """Memory that a process on this machine can still take, without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def block_bytes(shape: ModelShape, block_size: int, element_bytes: int = _FLOAT32_BYTES) -> int:
    """Bytes of one KV block over all layers, keys and values."""
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * block_size * element_bytes


def num_cpu_blocks(
    shape: ModelShape, *, block_size: int, max_model_len: int, max_num_seqs: int, utilization: float
) -> int:
    """Blocks for every running sequence at full length, or as many as ``utilization`` of the free memory holds.

    Raises:
        CapacityError: not even one sequence of one block fits.
    """
    useful = max_num_seqs * -(-max_model_len // block_size)
    free = free_memory_bytes()
    affordable = int(free * utilization) // block_bytes(shape, block_size)
    if affordable < 1:
        raise CapacityError(
            f"no room for the KV cache: a block of {block_size} tokens takes {block_bytes(shape, block_size)} bytes, "
            f"{free} bytes are free and cache.gpu_memory_utilization is {utilization}; free some memory or lower "
            "cache.block_size"
        )
    return min(useful, affordable)
