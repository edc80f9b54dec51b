"""Storing the keys and values of a step in the paged cache."""

from __future__ import annotations

from tinyvllm.batch import LayerCache
from tinyvllm.shapes import Float32, Int32


def kv_append(key: Float32, value: Float32, cache: LayerCache, slot_mapping: Int32) -> None:
    """Write token ``t``'s key and value at slot ``slot_mapping[t]``, which is ``block * block_size + offset``.

    Args:
        key, value: ``[T, K, D]``.
        cache: ``[num_blocks, K, block_size, D]`` twice; changed in place.
        slot_mapping: ``[T]``, int32, no slot twice.
    """
    blocks, offsets = divmod(slot_mapping, cache.block_size)
    cache.key[blocks, :, offsets] = key
    cache.value[blocks, :, offsets] = value
