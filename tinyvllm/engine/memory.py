"""How many KV blocks there is room for."""

from __future__ import annotations

import os
from pathlib import Path

from tinyvllm.config.schema import CacheConfig
from tinyvllm.errors import CapacityError
from tinyvllm.interfaces import PluginContext
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


def num_kv_blocks(
    cache: CacheConfig, context: PluginContext, element_bytes: int, *, free_bytes: int, share_bytes: int
) -> int:
    """Number of KV blocks: as many as every running sequence at full length needs, within what memory allows.

    Args:
        cache: ``num_blocks_override`` is that number; otherwise ``kv_bytes``, or ``share_bytes``, is the limit.
        context: for the sizes of the model and of the engine.
        element_bytes: of a number in the cache.
        free_bytes: memory that is there.
        share_bytes: what ``gpu_memory_utilization`` leaves of it for the cache.
    Raises:
        CapacityError: not one block fits, or not as many as were asked for.
    """
    size = block_bytes(context.model, cache.block_size, element_bytes)
    useful = context.max_num_seqs * -(-context.max_model_len // cache.block_size)
    if cache.num_blocks_override is not None:
        asked, num_blocks = f"cache.num_blocks_override is {cache.num_blocks_override}", cache.num_blocks_override
    elif cache.kv_bytes is not None:
        asked, num_blocks = f"cache.kv_bytes is {cache.kv_bytes}", min(useful, cache.kv_bytes // size)
    else:
        asked = f"cache.gpu_memory_utilization is {cache.gpu_memory_utilization}"
        num_blocks = min(useful, share_bytes // size)
    a_block = f"a block of {cache.block_size} tokens takes {size} bytes"
    if num_blocks < 1:
        raise CapacityError(
            f"no room for the KV cache: {a_block}, {free_bytes} bytes are free and {asked}; raise it, free some memory "
            "or lower cache.block_size or scheduler.max_num_batched_tokens"
        )
    if num_blocks * size > free_bytes:
        raise CapacityError(
            f"no room for the KV cache: {asked}, {a_block}, {num_blocks} take {num_blocks * size / 2**30:.1f} GiB, and "
            f"{free_bytes / 2**30:.1f} GiB are free; lower it"
        )
    return num_blocks
