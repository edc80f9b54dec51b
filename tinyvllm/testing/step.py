"""A step over a paged cache with permuted blocks: what no query may see is NaN, or huge if a window has passed it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyvllm.batch import Batch, LayerCache
from tinyvllm.layers import RotaryTable
from tinyvllm.testing.numbers import BF16, Array, bf16
from tinyvllm.testing.parameters import Parameters

_HUGE = np.float32(2.0**20)
"""Of values that a sliding window has passed: the smallest weight of one shows."""


@dataclass(frozen=True, slots=True)
class RandomStep:
    """A step on the host.

    Attributes:
        batch: of the real sequences.
        padded: the same with rows of padding: position 0, slot -1, context 0.
        cache: bfloat16; keys and values of the tokens before this step, and of this step's too if so made.
        rotary: float32.
    """

    batch: Batch
    padded: Batch
    cache: LayerCache
    rotary: RotaryTable


def random_step(parameters: Parameters, rng: np.random.Generator, *, has_step_in_cache: bool) -> RandomStep:
    """The step that ``parameters`` describe."""
    p, model = parameters, parameters.model
    counts, known = np.array(p.num_tokens), np.array(p.num_known)
    lens = known + counts
    used = -(-lens // p.block_size)
    order = rng.permutation(int(used.sum()) + 3).astype(np.int32)
    unused, order = order[0], order[1:]
    tables = np.full((len(lens) + p.num_padding, -(-p.max_context // p.block_size)), unused, np.int32)
    shape = (int(used.sum()) + 3, model.num_kv_heads, p.block_size, model.head_dim)
    key, value = np.full(shape, np.nan, BF16), np.full(shape, np.nan, BF16)
    positions, slots = [], []
    for b, length in enumerate(lens):
        tables[b, : used[b]], order = order[: used[b]], order[used[b] :]
        places = np.arange(length)
        blocks, offsets = tables[b, places // p.block_size], places % p.block_size
        positions.append(places[known[b] :])
        slots.append((blocks * p.block_size + offsets)[known[b] :])
        stop = int(length) if has_step_in_cache else int(known[b])
        filled = (stop, model.num_kv_heads, model.head_dim)
        key[blocks[:stop], :, offsets[:stop]] = bf16(rng.standard_normal(filled, np.float32) * 2)
        value[blocks[:stop], :, offsets[:stop]] = bf16(rng.standard_normal(filled, np.float32))
        if p.sliding_window is not None:  # keys and values as in an engine, finite: a weight of 0 may meet them
            passed = slice(0, max(0, int(known[b]) - p.sliding_window + 1))
            value[blocks[passed], :, offsets[passed]] = bf16(_HUGE)
    real = _batch(
        rng, model.vocab_size, np.concatenate(positions), np.concatenate(slots), lens, counts, tables[: len(lens)]
    )
    pad = np.zeros(p.num_padding, np.int32)
    padded = Batch(
        token_ids=np.concatenate([real.token_ids, pad]),
        positions=np.concatenate([real.positions, pad]),
        cu_seqlens_q=np.concatenate([real.cu_seqlens_q, real.num_tokens + 1 + np.arange(len(pad), dtype=np.int32)]),
        context_lens=np.concatenate([real.context_lens, pad]),
        block_tables=tables,
        slot_mapping=np.concatenate([real.slot_mapping, pad - 1]),
    )
    return RandomStep(real, padded, LayerCache(key, value), _rotary(p.max_context, model.head_dim))


def _batch(
    rng: np.random.Generator, vocab_size: int, positions: Array, slots: Array, lens: Array, counts: Array, tables: Array
) -> Batch:
    ends = np.cumsum([0, *counts]).astype(np.int32)
    return Batch(
        token_ids=rng.integers(0, vocab_size, len(positions)).astype(np.int32),
        positions=positions.astype(np.int32),
        cu_seqlens_q=ends,
        context_lens=lens.astype(np.int32),
        block_tables=tables,
        slot_mapping=slots.astype(np.int32),
    )


def _rotary(num_positions: int, head_dim: int) -> RotaryTable:
    half = head_dim // 2
    angles = np.arange(num_positions)[:, None] * 10000.0 ** (-np.arange(half) / half)
    return RotaryTable(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
