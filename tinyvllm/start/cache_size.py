"""How many KV blocks there is room for."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from tinyvllm.config.schema import CacheConfig
from tinyvllm.errors import CapacityError
from tinyvllm.interfaces import PluginContext
from tinyvllm.shapes import ModelShape

_FLOAT32_BYTES = 4


def free_memory_bytes() -> int:
    """Memory that a process on this machine can still take, without swapping."""
    return _meminfo().get("MemAvailable") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def check_weights_fit(tensors: Mapping[str, tuple[int, ...]], device: str) -> None:
    """Return if the host has memory for the weights of a model, swap included.

    The CPU holds all in float32 and the emulator in bfloat16; for a card one tensor at a time is held here.

    Raises:
        CapacityError: it has not, with the numbers and the largest tensor.
    """
    sizes = {name: math.prod(shape) for name, shape in tensors.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    needed = {"cpu": _FLOAT32_BYTES * sum(sizes.values()), "emulator": 2 * sum(sizes.values())}.get(
        device, _FLOAT32_BYTES * sizes[largest]
    )
    free = free_memory_bytes() + _meminfo().get("SwapFree", 0)
    if needed > free:
        raise CapacityError(
            f"no room for the weights: {sum(sizes.values())} numbers in {len(sizes)} tensors take {needed} bytes of "
            f"memory on device {device}, {free} bytes are free; the largest is {largest}, "
            f"{list(tensors[largest])}. Free some memory, or use a smaller model"
        )


def _meminfo() -> dict[str, int]:
    """What Linux says about memory, in bytes; empty elsewhere."""
    try:
        lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


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
