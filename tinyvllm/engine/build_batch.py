"""From a schedule to the arrays of a step. Reads the table and the tokens, changes neither."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinyvllm.batch import Batch, Int32
from tinyvllm.engine.sequence_table import SequenceTable
from tinyvllm.engine.validate import CheckedSchedule
from tinyvllm.sequence import SequenceTokens


def build_batch(
    table: SequenceTable, tokens_of: Callable[[int], SequenceTokens], schedule: CheckedSchedule, slots: Int32
) -> Batch:
    """The arrays of a step that computes the scheduled tokens of each row, from where it stands.

    Args:
        table: the rows are running and hold blocks for what they compute.
        tokens_of: the tokens of a row.
        schedule: rows in order of slots.
        slots: ``[B]``, theirs.
    Returns:
        a batch that is valid for this step: ``block_tables`` may be a view of the table.
    """
    num_tokens, starts = schedule.num_tokens, schedule.starts
    num_rows, total = len(slots), int(num_tokens.sum())
    ends: Int32 = starts + num_tokens
    positions: Int32
    if total == num_rows:  # one token each: the usual step, worth its own line
        cu_seqlens_q = np.arange(num_rows + 1, dtype=np.int32)
        owners, positions = slots, starts
    elif num_rows == 1:  # a prompt by itself: its way to the device should be short
        cu_seqlens_q = np.array([0, total], np.int32)
        owners, positions = slots, np.arange(starts[0], ends[0], dtype=np.int32)
    else:
        cu_seqlens_q = np.zeros(num_rows + 1, np.int32)
        np.cumsum(num_tokens, out=cu_seqlens_q[1:])
        gaps: Int32 = starts - cu_seqlens_q[:-1]
        positions = np.arange(total, dtype=np.int32)
        positions += np.repeat(gaps, num_tokens)
        owners = np.repeat(slots, num_tokens)
    blocks = table.tables[owners, positions // table.block_size]
    return Batch(
        token_ids=_token_ids(table, tokens_of, schedule, cu_seqlens_q),
        positions=positions,
        cu_seqlens_q=cu_seqlens_q,
        context_lens=ends,
        block_tables=_block_tables(table, slots, schedule.rows),
        slot_mapping=blocks * table.block_size + positions % table.block_size,
        last_token_index=cu_seqlens_q[1:] - 1,
    )


def _block_tables(table: SequenceTable, slots: Int32, rows: Int32) -> Int32:
    """``[B, M]``; no copy where the slots are the first ``B``, so that long contexts cost nothing."""
    width = int(np.maximum.reduce(table.num_blocks.take(rows)))
    if slots[-1] == len(slots) - 1:
        return table.tables[: len(slots), :width]
    return table.tables[slots, :width]


def _token_ids(
    table: SequenceTable, tokens_of: Callable[[int], SequenceTokens], schedule: CheckedSchedule, cu_seqlens_q: Int32
) -> Int32:
    newest: Int32 = table.last_token.take(schedule.rows)  # the input of a decode
    is_chunk = schedule.starts + 1 < schedule.known
    if len(newest) == cu_seqlens_q[-1] and not is_chunk.any():
        return newest
    token_ids = np.empty(cu_seqlens_q[-1], np.int32)
    token_ids[cu_seqlens_q[:-1]] = newest
    for b in np.flatnonzero(is_chunk).tolist():
        start = schedule.starts[b]
        known = tokens_of(int(schedule.rows[b])).all
        token_ids[cu_seqlens_q[b] : cu_seqlens_q[b + 1]] = known[start : start + schedule.num_tokens[b]]
    return token_ids
