"""Attention for speed: decode rows padded to a common length in a few groups, chunks one sequence at a time.

The last bits of a row depend on its company, because matrix products of other sizes round differently.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import Batch, Float32, Int32, LayerCache
from tinyvllm.interfaces import AttentionCall

# A group's shortest row has at least this share of the longest one's blocks, so padding is bounded;
# below _SMALL blocks one more call costs more than the padding it saves.
_MIN_FILL = 0.75
_SMALL_BLOCKS = 8
# Queries of a chunk are taken so many at a time that their scores stay near this many elements a KV head.
_SCORES = 1 << 18


@dataclass(frozen=True, slots=True)
class Group:
    """Decode rows of similar length, or one chunk.

    Attributes:
        tokens: ``[n]`` rows of the query, or for a chunk the slice of its rows.
        positions: ``[n]`` of those queries.
        tables: ``[n, m]`` block ids from position ``starts`` on; padding repeats a block of the row itself.
        lengths: ``[n]`` positions that exist.
    """

    tokens: Int32
    positions: Int32
    tables: Int32
    lengths: Int32


@dataclass(frozen=True, slots=True)
class Groups:
    """A step's work: decode groups, and chunks."""

    decode: tuple[Group, ...]
    chunks: tuple[Group, ...]


def plan_groups(batch: Batch, block_size: int) -> Groups:
    """The rows of a step in groups."""
    num_queries = np.diff(batch.cu_seqlens_q)
    decode = np.flatnonzero(num_queries == 1)
    chunks = tuple(_chunk(batch, int(b), block_size) for b in np.flatnonzero(num_queries > 1))
    if not len(decode):
        return Groups((), chunks)
    num_blocks = -(-batch.context_lens[decode] // block_size)
    order = decode[np.argsort(-num_blocks, kind="stable")]
    groups, start = [], 0
    descending = -np.sort(-num_blocks)
    while start < len(order):
        longest = int(descending[start])
        fill = 1 if longest <= _SMALL_BLOCKS else int(longest * _MIN_FILL)
        stop = start + int(np.searchsorted(-descending[start:], -fill, side="right"))
        groups.append(_decode_group(batch, order[start:stop], longest, block_size))
        start = stop
    return Groups(tuple(groups), chunks)


def _decode_group(batch: Batch, rows: NDArray[np.int64], longest: int, block_size: int) -> Group:
    lengths = batch.context_lens[rows]
    last = -(-lengths // block_size) - 1
    columns = np.minimum(np.arange(longest, dtype=np.int32), last[:, None])
    tokens = batch.cu_seqlens_q[rows]
    return Group(
        tokens=tokens,
        positions=batch.positions[tokens],
        tables=np.take_along_axis(batch.block_tables[rows], columns, axis=1),
        lengths=lengths,
    )


def _chunk(batch: Batch, b: int, block_size: int) -> Group:
    start, stop = int(batch.cu_seqlens_q[b]), int(batch.cu_seqlens_q[b + 1])
    length = int(batch.context_lens[b])
    return Group(
        tokens=np.arange(start, stop, dtype=np.int32),
        positions=batch.positions[start:stop],
        tables=batch.block_tables[b : b + 1, : -(-length // block_size)],
        lengths=np.array([length], np.int32),
    )


def attend_in_groups(call: AttentionCall, plan: Groups) -> Float32:
    """``[T, H, D]``: every query's attention."""
    out: Float32 = np.empty_like(call.query)
    for group in plan.decode:
        out[group.tokens] = _attend_decode(call, group)
    for group in plan.chunks:
        _attend_chunk(call, group, out)
    return out


def gather(cache: LayerCache, tables: Int32) -> tuple[Float32, Float32]:
    """Keys and values of whole blocks, ``[n, K, m * block_size, D]`` each, in one copy."""
    num_kv_heads, block_size, head_dim = cache.key.shape[1:]
    # Blocks of one KV head are contiguous in HND, so rows of the flattened cache are (block, head) pairs.
    index = tables[:, None, :] * np.int32(num_kv_heads) + np.arange(num_kv_heads, dtype=np.int32)[:, None]
    shape = (len(tables), num_kv_heads, tables.shape[1] * block_size, head_dim)
    flat = (-1, block_size * head_dim)
    key = cache.key.reshape(flat).take(index, axis=0).reshape(shape)
    value = cache.value.reshape(flat).take(index, axis=0).reshape(shape)
    return key, value


def _attend_decode(call: AttentionCall, group: Group) -> Float32:
    num_kv_heads, block_size, head_dim = call.cache.key.shape[1:]
    first = _first_block(call, int(group.positions.min()))
    query = call.query[group.tokens].reshape(len(group.tokens), num_kv_heads, -1, head_dim)  # [n, K, G, D]
    key, value = gather(call.cache, group.tables[:, first:])
    scores = query @ key.swapaxes(-1, -2)  # [n, K, G, S]
    scores *= np.float32(call.scale)
    columns = np.arange(first * block_size, first * block_size + key.shape[2], dtype=np.int32)
    hidden = columns >= group.lengths[:, None]  # [n, S]
    if hidden.any():
        # What lies behind the end of a sequence may be anything, NaN included: it must not even meet a zero.
        value.swapaxes(1, 2)[hidden] = 0.0
    if call.sliding_window is not None:
        hidden |= columns <= group.positions[:, None] - np.int32(call.sliding_window)
    np.copyto(scores, -np.inf, where=hidden[:, None, None])
    return _softmax_times(scores, value).reshape(len(query), -1, head_dim)


def _attend_chunk(call: AttentionCall, group: Group, out: Float32) -> None:
    num_kv_heads, block_size, head_dim = call.cache.key.shape[1:]
    length, group_size = int(group.lengths[0]), call.query.shape[1] // num_kv_heads
    first = _first_block(call, int(group.positions[0]))
    key, value = (a[0, :, : length - first * block_size] for a in gather(call.cache, group.tables[:, first:]))
    step = max(1, _SCORES // (key.shape[1] * group_size))
    for start in range(0, len(group.tokens), step):
        positions = group.positions[start : start + step]
        seen = int(positions[-1]) + 1 - first * block_size
        rows = slice(int(group.tokens[0]) + start, int(group.tokens[0]) + start + len(positions))
        query = call.query[rows].reshape(len(positions), num_kv_heads, group_size, head_dim)
        query = query.transpose(1, 2, 0, 3).reshape(num_kv_heads, -1, head_dim)  # [K, G * t, D]
        scores = query @ key[:, :seen].swapaxes(-1, -2)
        scores *= np.float32(call.scale)
        columns = np.arange(first * block_size, first * block_size + seen, dtype=np.int32)
        hidden = columns > positions[:, None]
        if call.sliding_window is not None:
            hidden |= columns <= positions[:, None] - np.int32(call.sliding_window)
        scores = scores.reshape(num_kv_heads, group_size, len(positions), seen)
        np.copyto(scores, -np.inf, where=hidden)
        mixed = _softmax_times(scores.reshape(num_kv_heads, -1, seen), value[:, :seen])
        mixed = mixed.reshape(num_kv_heads, group_size, len(positions), head_dim)
        out[rows] = mixed.transpose(2, 0, 1, 3).reshape(len(positions), -1, head_dim)


def _first_block(call: AttentionCall, position: int) -> int:
    """The first block of which a query at ``position`` or later sees anything."""
    if call.sliding_window is None:
        return 0
    return max(0, position - call.sliding_window + 1) // call.cache.block_size


def _softmax_times(scores: Float32, value: Float32) -> Float32:
    """``softmax(scores) @ value``; every row has something finite. Overwrites ``scores``."""
    scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    total = np.add.reduce(scores, axis=-1, keepdims=True)
    out: Float32 = scores @ value
    out /= total
    return out
