"""The KV cache of a model."""

from __future__ import annotations

from collections.abc import Sequence

from tinyvllm.batch import LayerCache
from tinyvllm.device import Device
from tinyvllm.interfaces import AttentionSpec


def allocate_caches(device: Device, specs: Sequence[AttentionSpec], num_blocks: int) -> list[LayerCache]:
    """Key and value blocks of every layer, ``[num_blocks, K, block_size, D]`` each, as the device computes.

    On the CPU the system hands out the memory when a block is first written.

    Args:
        device: where the model is.
        specs: of each layer.
        num_blocks: in each.
    """
    caches = []
    for spec in specs:
        shape = (num_blocks, spec.num_kv_heads, spec.block_size, spec.head_dim)
        key, value = (device.memory.alloc(shape, device.activation_dtype) for _ in range(2))
        caches.append(LayerCache(key, value))
    return caches
