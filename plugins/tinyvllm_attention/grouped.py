"""Attention for speed: decode rows padded to a common length in a few groups, chunks one sequence at a time.

The last bits of a row depend on its company, because matrix products of other sizes round differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvllm.plugin import AttentionCall, BatchTensors
from tinyvllm.shapes import Float32, Int32

# A group's shortest row has at least this share of the longest one's positions, so padding is bounded;
# below _SHORT positions one more call costs more than the padding it saves.
_MIN_FILL = 0.75
_SHORT = 128
# Elements of keys or values that are gathered at once for several sequences: 2 MB stay in the second-level cache
# until they are multiplied.
_GATHERED = 1 << 19
# Queries of a chunk are taken so many at a time that their scores stay near this many elements a KV head.
_SCORES = 1 << 18

Intp = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences of similar length that compute one token each.

    Attributes:
        tokens: their rows of the query: ``[n]``, or a slice.
        positions: ``[n]``.
        vectors: ``[n, K, S]``, where the key of each KV head and position lies among the ``[D]`` vectors of the cache.
            Behind a sequence's end its last position is repeated: what lies there may be anything, NaN included.
        hidden: ``[n, S]``, what is behind the end; None if nothing is.
    """

    tokens: Int32 | slice
    positions: Int32
    vectors: Intp
    hidden: NDArray[np.bool_] | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """One sequence that computes several tokens.

    Attributes:
        start: row of the query of the first.
        positions: ``[t]``, ascending.
        vectors: ``[K, S]``, as in :class:`DecodeGroup`.
    """

    start: int
    positions: Int32
    vectors: Intp


@dataclass(frozen=True, slots=True)
class Groups:
    """A step's work."""

    decode: tuple[DecodeGroup, ...]
    chunks: tuple[Chunk, ...]


class Scratch:
    """Memory that gathers write into, used again by every layer and step; it grows with the longest sequence."""

    def __init__(self) -> None:
        self._memory: Float32 = np.empty(_GATHERED, np.float32)

    def gather(self, cache: Float32, vectors: Intp) -> Float32:
        """``[..., D]``: the vectors of the cache at ``[...]``, valid until the next call."""
        head_dim = cache.shape[-1]
        size = vectors.size * head_dim
        if size > len(self._memory):
            self._memory = np.empty(size, np.float32)
        out = self._memory[:size].reshape(*vectors.shape, head_dim)
        # "clip" writes straight into out; "raise" would go through a buffer. No index is out of range.
        return cache.reshape(-1, head_dim).take(vectors, axis=0, out=out, mode="clip")


def plan_groups(step: BatchTensors, block_size: int, num_kv_heads: int, head_dim: int) -> Groups:
    """The rows of a step in groups."""
    batch: Any = step  # of NumPy arrays
    num_queries = np.diff(batch.cu_seqlens_q)
    decode = np.flatnonzero(num_queries == 1).astype(np.int32)
    chunks = []
    for b in np.flatnonzero(num_queries > 1).tolist():
        start, stop = int(batch.cu_seqlens_q[b]), int(batch.cu_seqlens_q[b + 1])
        at = np.arange(int(batch.context_lens[b]), dtype=np.int32)
        vectors = _vectors(batch.block_tables[b : b + 1], at, block_size, num_kv_heads)[0]
        chunks.append(Chunk(start, batch.positions[start:stop], vectors))
    groups = []
    for rows in _similar(decode, batch.context_lens, num_kv_heads * head_dim):
        lengths = batch.context_lens[rows]
        shortest, longest = int(lengths.min()), int(lengths.max())
        at, hidden = np.arange(longest, dtype=np.int32), None
        if shortest < longest:
            hidden = at >= lengths[:, None]
            at = np.minimum(at, lengths[:, None] - 1)
        vectors = _vectors(batch.block_tables[rows], at, block_size, num_kv_heads)
        tokens = rows if isinstance(rows, slice) else batch.cu_seqlens_q[rows]
        groups.append(DecodeGroup(tokens, lengths - 1, vectors, hidden))
    return Groups(tuple(groups), tuple(chunks))


def _similar(rows: Int32, lengths: Int32, elements: int) -> list[Int32 | slice]:
    """The rows in groups of similar length, no more of them than are gathered at once; a slice where that is all."""
    if not len(rows):
        return []
    own = lengths[rows]
    longest = int(own.max())
    is_one = int(own.min()) >= _shortest(longest) and len(rows) * longest * elements <= _GATHERED
    if is_one and len(rows) == len(lengths):
        return [slice(0, len(rows))]
    order = np.argsort(-own, kind="stable")
    rows, descending = rows[order], -own[order]
    groups: list[Int32 | slice] = []
    start = 0
    while start < len(rows):
        longest = -int(descending[start])
        stop = int(np.searchsorted(descending, -_shortest(longest), side="right"))
        stop = min(stop, start + max(1, _GATHERED // (longest * elements)))
        groups.append(rows[start:stop])
        start = stop
    return groups


def _shortest(longest: int) -> int:
    """The fewest positions of a row that shares a group with one of ``longest``."""
    return 1 if longest <= _SHORT else int(longest * _MIN_FILL)


def _vectors(tables: Int32, at: Int32, block_size: int, num_kv_heads: int) -> Intp:
    """``[n, K, S]`` from block tables ``[n, M]`` and positions ``[S]`` or ``[n, S]``, for the cache's layout HND."""
    blocks, offsets = at // block_size, at % block_size
    owned = tables[:, blocks] if at.ndim == 1 else np.take_along_axis(tables, blocks, axis=1)
    first = owned.astype(np.intp) * (num_kv_heads * block_size) + offsets  # of head 0
    return first[:, None] + np.arange(0, num_kv_heads * block_size, block_size)[:, None]


def attend_in_groups(call: AttentionCall, plan: Groups, scratch: Scratch) -> None:
    """Write every query's attention to ``call.out``."""
    out: Any = call.out
    unscaled: Any = call.query
    query = unscaled * np.float32(call.spec.scale)
    for group in plan.decode:
        out[group.tokens] = _attend_decode(call, query[group.tokens], group, scratch)
    for chunk in plan.chunks:
        _attend_chunk(call, query, chunk, out)


def _attend_decode(call: AttentionCall, query: Float32, group: DecodeGroup, scratch: Scratch) -> Float32:
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads = call.cache.key.shape[1]
    vectors, hidden = group.vectors, group.hidden
    if call.spec.sliding_window is not None:
        first = _first_seen(call.spec.sliding_window, int(group.positions.min()))
        vectors = vectors[:, :, first:]
        at = np.arange(first, first + vectors.shape[2], dtype=np.int32)
        is_past = at <= group.positions[:, None] - np.int32(call.spec.sliding_window)
        hidden = is_past if hidden is None else is_past | hidden[:, first:]
    query = query.reshape(num_rows, num_kv_heads, -1, head_dim)  # [n, K, G, D]
    scores: Float32 = query @ scratch.gather(call.cache.key, vectors).swapaxes(-1, -2)  # [n, K, G, S]
    if hidden is not None:
        np.copyto(scores, -np.inf, where=hidden[:, None, None])
    total = _exponentials(scores)
    mixed: Float32 = scores @ scratch.gather(call.cache.value, vectors)
    mixed /= total
    return mixed.reshape(num_rows, num_heads, head_dim)


def _attend_chunk(call: AttentionCall, query: Float32, chunk: Chunk, out: Float32) -> None:
    num_kv_heads, head_dim = call.cache.key.shape[1], call.cache.key.shape[3]
    group_size = query.shape[1] // num_kv_heads
    first = 0 if call.spec.sliding_window is None else _first_seen(call.spec.sliding_window, int(chunk.positions[0]))
    vectors = chunk.vectors[:, first:]
    key, value = (cache.reshape(-1, head_dim).take(vectors, axis=0) for cache in (call.cache.key, call.cache.value))
    at = np.arange(first, first + vectors.shape[1], dtype=np.int32)
    step = max(1, _SCORES // (len(at) * group_size))
    for start in range(0, len(chunk.positions), step):
        positions = chunk.positions[start : start + step]
        seen = int(positions[-1]) + 1 - first
        rows = slice(chunk.start + start, chunk.start + start + len(positions))
        by_head = query[rows].reshape(len(positions), num_kv_heads, group_size, head_dim).transpose(1, 2, 0, 3)
        heads = by_head.reshape(num_kv_heads, -1, head_dim)  # [K, G * t, D]
        scores: Float32 = heads @ key[:, :seen].swapaxes(-1, -2)
        hidden = at[:seen] > positions[:, None]
        if call.spec.sliding_window is not None:
            hidden |= at[:seen] <= positions[:, None] - np.int32(call.spec.sliding_window)
        np.copyto(scores.reshape(num_kv_heads, group_size, len(positions), seen), -np.inf, where=hidden)
        total = _exponentials(scores)
        mixed: Float32 = scores @ value[:, :seen]
        mixed /= total
        by_head = mixed.reshape(num_kv_heads, group_size, len(positions), head_dim).transpose(2, 0, 1, 3)
        out[rows] = by_head.reshape(len(positions), -1, head_dim)


def _first_seen(window: int, position: int) -> int:
    """The first position that a query at ``position`` or later sees."""
    return max(0, position - window + 1)


def _exponentials(scores: Float32) -> Float32:
    """Overwrite scores by the terms of their softmax; what each row must be divided by, ``[..., 1]``.

    Every row has something finite.
    """
    scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    total: Float32 = np.add.reduce(scores, axis=-1, keepdims=True)
    return total
