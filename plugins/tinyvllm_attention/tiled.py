"""Attention bit-equal in any company: fixed tiles of 64 absolute positions, and eight query rows at a time.

Every product has the shape ``[8, D] @ [D, 64]`` or ``[8, 64] @ [64, D]``, whatever the batch, the chunk or the block
size; a row's online softmax (Milakov & Gimelshein 2018) meets the tiles in order of position. A tile that a row
cannot see changes nothing in it, to the bit: the weights are zeros and the running maximum stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvllm.plugin import AttentionCall, BatchTensors, LayerCache
from tinyvllm.reference.linear import ROW_TILE
from tinyvllm.shapes import Float32, Int32

KEY_TILE = 64
# Items are taken so many at a time that the keys gathered for them stay near this many elements.
_GATHERED = 1 << 22


@dataclass(frozen=True, slots=True)
class Items:
    """Groups of eight query rows (a row is a token and one of the query heads of a KV head).

    Attributes:
        rows: ``[n, 8]`` index ``token * G + head_in_group``; padding repeats the item's first row.
        positions: ``[n, 8]`` of each row's token; -1 for padding, which sees nothing.
        tables: ``[n, M]`` block ids.
        lengths: ``[n]`` positions of the sequence that hold something.
        last: ``[n]`` the last position that any row of the item sees. Items are sorted by it, descending.
    """

    rows: NDArray[np.int64]
    positions: Int32
    tables: Int32
    lengths: Int32
    last: Int32


def plan_tiles(step: BatchTensors, group_size: int) -> Items:
    """The rows of a step in items of eight; no item holds rows of two sequences."""
    batch: Any = step  # of NumPy arrays
    rows, owners = [], []
    for b in range(len(batch.context_lens)):
        first, stop = int(batch.cu_seqlens_q[b]) * group_size, int(batch.cu_seqlens_q[b + 1]) * group_size
        num_items = -(-(stop - first) // ROW_TILE)
        rows.append(np.arange(first, first + num_items * ROW_TILE).reshape(-1, ROW_TILE))
        owners.append(np.full(num_items, b))
    row, owner = np.concatenate(rows), np.concatenate(owners)
    is_padding = row >= batch.cu_seqlens_q[owner + 1][:, None] * group_size
    row = np.where(is_padding, row[:, :1], row)
    positions = np.where(is_padding, np.int32(-1), batch.positions[row // group_size])
    order = np.argsort(-positions.max(axis=1), kind="stable")
    row, owner, positions = row[order], owner[order], positions[order]
    return Items(row, positions, batch.block_tables[owner], batch.context_lens[owner], positions.max(axis=1))


def attend_in_tiles(call: AttentionCall, items: Items) -> None:
    """Write every query's attention to ``call.out``."""
    by_token: Any = call.query
    target: Any = call.out
    num_tokens, num_heads, head_dim = by_token.shape
    num_kv_heads = call.cache.key.shape[1]
    group_size = num_heads // num_kv_heads
    query = by_token.reshape(num_tokens, num_kv_heads, group_size, head_dim).swapaxes(1, 2)
    query = query.reshape(num_tokens * group_size, num_kv_heads, head_dim)  # row = token * G + head in group
    out: Float32 = np.empty_like(query)
    step = max(1, _GATHERED // (num_kv_heads * KEY_TILE * head_dim))
    for start in range(0, len(items.rows), step):
        part = slice(start, start + step)
        mixed = _attend_items(call, query[items.rows[part]].swapaxes(1, 2), items, part)  # [n, K, 8, D]
        real = items.positions[part] >= 0
        out[items.rows[part][real]] = mixed.swapaxes(1, 2)[real]
    out = out.reshape(num_tokens, group_size, num_kv_heads, head_dim).swapaxes(1, 2)
    target.reshape(num_tokens, num_kv_heads, group_size, head_dim)[...] = out


def _attend_items(call: AttentionCall, query: Float32, items: Items, part: slice) -> Float32:
    query = np.ascontiguousarray(query)
    positions, last = items.positions[part], items.last[part]
    best = np.full((*query.shape[:3], 1), -np.inf, np.float32)
    total = np.zeros_like(best)
    mixed: Float32 = np.zeros_like(query)
    first_tile = 0
    if call.spec.sliding_window is not None:
        lowest = np.where(positions < 0, np.iinfo(np.int32).max, positions).min()
        first_tile = max(0, int(lowest) - call.spec.sliding_window + 1) // KEY_TILE
    for tile in range(first_tile, int(last[0]) // KEY_TILE + 1):
        n = int(np.searchsorted(-last, -tile * KEY_TILE, side="right"))  # items that reach this tile come first
        columns = np.arange(tile * KEY_TILE, (tile + 1) * KEY_TILE, dtype=np.int32)
        key, value = _gather_tile(call, items.tables[part][:n], items.lengths[part][:n], columns)
        hidden = columns > positions[:n, :, None]  # [n, 8, 64]
        if call.spec.sliding_window is not None:
            hidden |= columns <= positions[:n, :, None] - np.int32(call.spec.sliding_window)
        scores = query[:n] @ key.swapaxes(-1, -2)
        scores *= np.float32(call.spec.scale)
        np.copyto(scores, -np.inf, where=hidden[:, None])
        higher = np.maximum(best[:n], np.maximum.reduce(scores, axis=-1, keepdims=True))
        finite = np.where(np.isneginf(higher), np.float32(0.0), higher)  # a row that has seen nothing yet
        scores -= finite
        np.exp(scores, out=scores)
        shrink = np.exp(best[:n] - finite)
        total[:n] = total[:n] * shrink + np.add.reduce(scores, axis=-1, keepdims=True)
        mixed[:n] = mixed[:n] * shrink + scores @ value
        best[:n] = higher
    total[total == 0.0] = 1.0  # padding rows have seen nothing
    mixed /= total
    return mixed


def _gather_tile(call: AttentionCall, tables: Int32, lengths: Int32, columns: Int32) -> tuple[Float32, Float32]:
    """Keys and values at ``columns`` of each sequence, ``[n, K, 64, D]``; zeros behind the sequence's end."""
    block_size = call.cache.block_size
    wanted = columns[::block_size] // block_size
    owned = (lengths[:, None] - 1) // block_size
    blocks = np.take_along_axis(tables, np.minimum(wanted, owned), axis=1)
    key, value = _gather(call.cache, blocks)
    hidden = columns >= lengths[:, None]
    if hidden.any():
        key.swapaxes(1, 2)[hidden] = 0.0
        value.swapaxes(1, 2)[hidden] = 0.0
    return key, value


def _gather(cache: LayerCache, tables: Int32) -> tuple[Float32, Float32]:
    """Keys and values of whole blocks, ``[n, K, m * block_size, D]`` each, in one copy."""
    num_kv_heads, block_size, head_dim = cache.key.shape[1:]
    # Blocks of one KV head are contiguous in HND, so rows of the flattened cache are (block, head) pairs.
    index = tables[:, None, :] * np.int32(num_kv_heads) + np.arange(num_kv_heads, dtype=np.int32)[:, None]
    shape = (len(tables), num_kv_heads, tables.shape[1] * block_size, head_dim)
    flat = (-1, block_size * head_dim)
    key = cache.key.reshape(flat).take(index, axis=0).reshape(shape)
    value = cache.value.reshape(flat).take(index, axis=0).reshape(shape)
    return key, value
