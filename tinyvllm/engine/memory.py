"""How many KV blocks there is room for."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from tinyvllm.errors import CapacityError
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
