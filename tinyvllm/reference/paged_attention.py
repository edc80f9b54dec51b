"""Causal attention over a paged KV cache: the definition, one query at a time.

Slow and obvious on purpose: what the CPU runs is the ``paged`` attention plugin, and that is compared with this.
"""

from __future__ import annotations

import numpy as np

from tinyvllm.batch import Batch, LayerCache
from tinyvllm.shapes import Float32


def paged_attention(
    query: Float32, cache: LayerCache, batch: Batch, scale: float, sliding_window: int | None = None
) -> Float32:
    """``softmax(scale * q k^T) v`` for every query over the positions it may see (Vaswani et al. 2017).

    A query at position ``p`` sees ``0 .. p``, or ``p - sliding_window + 1 .. p``. Query head ``h`` reads KV head
    ``h // (H / K)`` (grouped-query attention, Ainslie et al. 2023). Position ``s`` of a sequence lies in block
    ``block_table[s // block_size]`` at offset ``s % block_size`` (Kwon et al. 2023).

    Args:
        query: ``[T, H, D]``, float32.
        cache: keys and values of every visible position, ``[num_blocks, K, block_size, D]``.
        batch: the step.
        scale: usually ``1 / sqrt(D)``.
        sliding_window: None for full attention.
    Returns:
        ``[T, H, D]``, float32.
    """
    group = query.shape[1] // cache.key.shape[1]
    out = np.empty_like(query)
    for b in range(batch.num_sequences):
        for t in range(batch.cu_seqlens_q[b], batch.cu_seqlens_q[b + 1]):
            position = int(batch.positions[t])
            first = 0 if sliding_window is None else max(0, position - sliding_window + 1)
            seen = np.arange(first, position + 1)
            blocks, offsets = batch.block_tables[b, seen // cache.block_size], seen % cache.block_size
            for h in range(query.shape[1]):
                key = cache.key[blocks, h // group, offsets]  # [S, D]
                value = cache.value[blocks, h // group, offsets]
                scores = (key @ query[t, h]) * np.float32(scale)
                weights = np.exp(scores - scores.max())
                out[t, h] = (weights @ value) / weights.sum()
    return out
