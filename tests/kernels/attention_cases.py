"""Ragged batches over a paged cache where everything that no query sees is NaN, and how far a kernel may be off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tinyvllm.batch import Batch, LayerCache
from tinyvllm.device import Array, Buffer, Gpu
from tinyvllm.reference.paged_attention import paged_attention
from tinyvllm_attention.gpu.attention_decode import AttentionDecode
from tinyvllm_attention.gpu.attention_prefill import AttentionPrefill
from tinyvllm_attention.gpu.attention_sizes import AttentionSizes

from .support import BF16, BF16_ROUNDOFF, F32_ROUNDOFF, Float64, bf16, f64, get, once, poisoned, put

ADVANCE = Path(__file__).with_name("advance.cu")
MAX_BATCH, MAX_CONTEXT = 8, 1024
# Every head size, block size and ratio of heads once or more; (H, K, D, block_size).
LAYOUTS = (
    (8, 2, 64, 16), (2, 2, 16, 8), (16, 2, 128, 64), (4, 2, 32, 32), (6, 2, 80, 16), (7, 1, 96, 8), (5, 1, 64, 64),
    (6, 1, 128, 32),
)  # fmt: skip
_EXP2_ERROR = 2.0**-22


def sizes_of(
    layout: tuple[int, int, int, int], window: int | None = None, batch_invariant: bool = False
) -> AttentionSizes:
    """The static sizes of one layout."""
    return AttentionSizes(*layout, MAX_BATCH, MAX_CONTEXT, sliding_window=window, batch_invariant=batch_invariant)


make_decode = once(AttentionDecode)
make_prefill = once(AttentionPrefill)


@dataclass(frozen=True, slots=True)
class Case:
    """One call's arrays, on the host."""

    sizes: AttentionSizes
    query: Array
    key_cache: Array
    value_cache: Array
    block_tables: Array
    context_lens: Array
    cu_seqlens_q: Array

    @property
    def num_queries(self) -> Array:
        """``[B]``."""
        return np.diff(self.cu_seqlens_q)

    def expected(self, value_cache: Array | None = None) -> Float64:
        """The definition, in float64 on the same bfloat16 values."""
        positions = [np.arange(n - q, n) for n, q in zip(self.context_lens, self.num_queries, strict=True)]
        batch = Batch(
            token_ids=np.zeros(len(self.query), np.int32),
            positions=np.concatenate(positions).astype(np.int32),
            cu_seqlens_q=self.cu_seqlens_q,
            context_lens=self.context_lens,
            block_tables=self.block_tables,
            slot_mapping=np.zeros(len(self.query), np.int32),
        )
        value = f64(self.value_cache if value_cache is None else value_cache)
        scale = self.sizes.scale or self.sizes.head_dim**-0.5
        cache = LayerCache(f64(self.key_cache), value)
        return f64(paged_attention(f64(self.query), cache, batch, scale, self.sizes.sliding_window))  # type: ignore[arg-type]

    def error(self) -> Float64:
        """Most that a kernel may be off before it rounds its result to bfloat16, ``[T, H, D]``."""
        d, longest = self.sizes.head_dim, int(self.context_lens.max(initial=1))
        scale = self.sizes.scale or d**-0.5
        norms = np.nan_to_num(np.linalg.norm(f64(self.key_cache), axis=-1)).max(axis=(0, 2))  # [K]
        largest = np.linalg.norm(f64(self.query), axis=-1) * np.repeat(norms, self.sizes.group_size)  # [T, H]
        # A score is a sum of D products (a tensor core truncates: twice the bound), scaled and shifted.
        score_error = scale * largest * (2 * d + 4) * F32_ROUNDOFF
        # Weights and their sum have that error each, those of exp2, of rescaling once a tile, and of summation;
        # the weights are rounded to bfloat16 besides.
        rescalings = 2 + longest / 16
        relative = 2 * score_error + 2 * rescalings * _EXP2_ERROR + 3 * longest * F32_ROUNDOFF + BF16_ROUNDOFF
        grown: Float64 = np.expm1(relative)[..., None] * self.expected(np.abs(self.value_cache))
        return grown

    def rows(self, sequence: int) -> slice:
        """The rows of one sequence."""
        return slice(int(self.cu_seqlens_q[sequence]), int(self.cu_seqlens_q[sequence + 1]))

    def only(self, sequences: Sequence[int]) -> Case:
        """The same with some of its sequences, over the same cache."""
        picked = list(sequences)
        ends = np.cumsum([0, *self.num_queries[picked]]).astype(np.int32)
        return replace(
            self,
            query=np.concatenate([self.query[self.rows(b)] for b in picked]),
            block_tables=self.block_tables[picked],
            context_lens=self.context_lens[picked],
            cu_seqlens_q=ends,
        )

    def last_queries(self, count: int) -> Case:
        """The same with only the last ``count`` queries of each sequence."""
        taken = np.minimum(self.num_queries, count)
        rows = [np.arange(end - n, end) for end, n in zip(self.cu_seqlens_q[1:], taken, strict=True)]
        ends = np.cumsum([0, *taken]).astype(np.int32)
        return replace(self, query=self.query[np.concatenate(rows)], cu_seqlens_q=ends)

    def put(self, device: Gpu) -> tuple[Buffer, Buffer, Buffer, Buffer, Buffer]:
        """Query, caches, block tables and context lengths on the device, in the order of the kernels' parameters."""
        held = -(-self.context_lens // self.sizes.block_size)
        is_behind = np.arange(self.block_tables.shape[1]) >= held[:, None]
        given = np.where(is_behind, np.iinfo(np.int32).max, self.block_tables)  # what no position needs is no block
        arrays = (self.query, self.key_cache, self.value_cache, given.astype(np.int32), self.context_lens)
        query, key, value, tables, lens = (put(device, array) for array in arrays)
        return query, key, value, tables, lens


def make_case(
    sizes: AttentionSizes, context_lens: Sequence[int], num_queries: Sequence[int], seed: int, peak: float = 2.0
) -> Case:
    """Random values with peaked softmaxes (scores of a spread of ``2 * peak``); NaN wherever no query may look."""
    rng = np.random.default_rng(seed)
    lens, counts = np.asarray(context_lens, np.int32), np.asarray(num_queries, np.int32)
    used = -(-lens // sizes.block_size)
    max_blocks = MAX_CONTEXT // sizes.block_size
    num_blocks = int(used.sum()) + 3
    order = rng.permutation(num_blocks)
    unused, order = order[0], order[1:]
    shape = (num_blocks, sizes.num_kv_heads, sizes.block_size, sizes.head_dim)
    key = np.full(shape, np.nan, BF16)
    value = np.full(shape, np.nan, BF16)
    tables = np.full((len(lens), max_blocks), unused, np.int32)
    for b, length in enumerate(lens):
        blocks, order = order[: used[b]], order[used[b] :]
        first = 0
        if sizes.sliding_window is not None:
            first = max(0, int(length) - int(counts[b]) - sizes.sliding_window + 1)
        seen = np.arange(first, length)
        tables[b, np.unique(seen // sizes.block_size)] = blocks[np.unique(seen // sizes.block_size)]
        place = (blocks[seen // sizes.block_size], slice(None), seen % sizes.block_size)
        filled = (len(seen), sizes.num_kv_heads, sizes.head_dim)
        key[place] = bf16(rng.standard_normal(filled) * 2)
        value[place] = bf16(rng.standard_normal(filled))
    query = bf16(rng.standard_normal((int(counts.sum()), sizes.num_heads, sizes.head_dim)) * peak)
    ends = np.cumsum([0, *counts]).astype(np.int32)
    return Case(sizes, query, key, value, tables, lens, ends)


def padding_of(sizes: AttentionSizes, num_sequences: int, num_tokens: int) -> Case:
    """A step of padding alone: no context, no queries; all of the cache is NaN, and no table entry is a block."""
    case = make_case(sizes, [0] * num_sequences, [0] * num_sequences, seed=0)
    query = bf16(np.random.default_rng(0).standard_normal((num_tokens, sizes.num_heads, sizes.head_dim)))
    return replace(case, query=query)


def permuted(case: Case, seed: int) -> Case:
    """The same with its blocks in other places."""
    order = np.random.default_rng(seed).permutation(len(case.key_cache))
    where = np.argsort(order).astype(np.int32)
    return replace(
        case,
        key_cache=case.key_cache[order],
        value_cache=case.value_cache[order],
        block_tables=where[case.block_tables],
    )


def decode(device: Gpu, case: Case, kernel: AttentionDecode | None = None) -> Array:
    """Attention of one query a sequence by the decode kernel, into a poisoned buffer."""
    out = poisoned(device, case.query.shape)
    (kernel or make_decode(device, sizes=case.sizes))(out, *case.put(device))
    return get(device, out)


def prefill(device: Gpu, case: Case, kernel: AttentionPrefill | None = None) -> Array:
    """Attention by the prefill kernel, into a poisoned buffer."""
    out = poisoned(device, case.query.shape)
    (kernel or make_prefill(device, sizes=case.sizes))(out, *case.put(device), put(device, case.cu_seqlens_q))
    return get(device, out)


def bits(array: Array) -> Array:
    """For comparisons to the bit."""
    return array.view(np.uint16)
