"""From a schedule to the arrays of a step. Reads the table and the tokens, changes neither."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinyvllm.batch import Batch, Int32
from tinyvllm.engine.table import SequenceTable
from tinyvllm.engine.validate import CheckedSchedule
from tinyvllm.sequence import SequenceTokens


def build_batch(table: SequenceTable, tokens_of: Callable[[int], SequenceTokens], schedule: CheckedSchedule) -> Batch:
    """The arrays of a step that computes the scheduled tokens of each row, from where it stands.

    Args:
        table: the rows are running and hold blocks for what they compute.
        tokens_of: the token store of a row.
        schedule: rows in order of slots.
    Returns:
        a batch that is valid for this step: ``block_tables`` may be a view of the table.
    """
    rows, num_tokens, starts = schedule.rows, schedule.num_tokens, schedule.starts
    ends: Int32 = starts + num_tokens
    num_rows, total = len(rows), int(num_tokens.sum())
    positions: Int32
    if total == num_rows:  # one token each: the usual step, worth its own line
        cu_seqlens_q = np.arange(num_rows + 1, dtype=np.int32)
        owners, positions = cu_seqlens_q[:-1], starts
    else:
        cu_seqlens_q = np.zeros(num_rows + 1, np.int32)
        np.cumsum(num_tokens, out=cu_seqlens_q[1:])
        owners = np.repeat(np.arange(num_rows, dtype=np.int32), num_tokens)
        gaps: Int32 = starts - cu_seqlens_q[:-1]
        positions = np.arange(total, dtype=np.int32)
        positions += gaps[owners]
    block_tables = _tables(table, rows)
    offsets = positions % table.block_size
    return Batch(
        token_ids=_token_ids(table, tokens_of, schedule, cu_seqlens_q),
        positions=positions,
        cu_seqlens_q=cu_seqlens_q,
        context_lens=ends,
        block_tables=block_tables,
        slot_mapping=block_tables[owners, positions // table.block_size] * table.block_size + offsets,
        last_token_index=cu_seqlens_q[1:] - 1,
    )


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


def _tables(table: SequenceTable, rows: Int32) -> Int32:
    """``[B, M]``; no copy where the slots are the first ``B``, so that long contexts cost nothing."""
    slots = table.slot.take(rows)
    width = int(np.maximum.reduce(table.num_blocks.take(rows)))
    if slots[-1] == len(slots) - 1:
        return table.tables[: len(slots), :width]
    return table.tables[slots, :width]
