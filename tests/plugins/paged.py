"""Made-up steps over a paged cache: shuffled blocks, unused slots full of NaN."""

from __future__ import annotations

import numpy as np

from tinyvllm.batch import Batch, LayerCache
from tinyvllm.shapes import Float32


def make_step(
    seed: int, *, block_size: int, num_kv_heads: int, head_dim: int, num_heads: int, spans: list[tuple[int, int]]
) -> tuple[Batch, LayerCache, Float32]:
    """A batch, its cache and its queries.

    Args:
        spans: for each sequence how many tokens it computes, and its context length after that.
    """
    rng = np.random.default_rng(seed)
    counts = [-(-context // block_size) for _, context in spans]
    num_blocks = sum(counts) + 3
    shuffled = iter(rng.permutation(num_blocks).astype(np.int32))
    tables = np.full((len(spans), max(counts) + 1), -(10**6), np.int32)  # entries past the end are meaningless
    for b, count in enumerate(counts):
        tables[b, :count] = [next(shuffled) for _ in range(count)]
    num_queries = [queries for queries, _ in spans]
    positions = np.concatenate([np.arange(c - q, c) for q, c in spans]).astype(np.int32)
    owners = np.repeat(np.arange(len(spans)), num_queries)
    cu_seqlens_q = np.cumsum([0, *num_queries]).astype(np.int32)
    slots = tables[owners, positions // block_size] * block_size + positions % block_size
    batch = Batch(
        token_ids=np.zeros(len(positions), np.int32),
        positions=positions,
        cu_seqlens_q=cu_seqlens_q,
        context_lens=np.array([context for _, context in spans], np.int32),
        block_tables=tables,
        slot_mapping=slots.astype(np.int32),
    )
    size = (num_blocks, num_kv_heads, block_size, head_dim)
    cache = LayerCache(np.full(size, np.nan, np.float32), np.full(size, np.nan, np.float32))
    for b, (_, context) in enumerate(spans):
        at = np.arange(context)
        blocks, offsets = tables[b, at // block_size], at % block_size
        # Keys large enough that the softmax picks: over uniform noise a wrong mask would hardly show.
        cache.key[blocks, :, offsets] = 3 * rng.standard_normal((context, num_kv_heads, head_dim))
        cache.value[blocks, :, offsets] = rng.standard_normal((context, num_kv_heads, head_dim))
    query = rng.standard_normal((len(positions), num_heads, head_dim)).astype(np.float32)
    return batch, cache, query
