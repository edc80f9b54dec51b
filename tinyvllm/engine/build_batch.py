"""From a schedule to the arrays of a step. Reads the table and the tokens, changes neither."""

from __future__ import annotations

import numpy as np

from tinyvllm.batch import Batch
from tinyvllm.engine.sequence_table import SequenceTable
from tinyvllm.engine.step_rows import StepRows
from tinyvllm.shapes import Int32


def build_batch(table: SequenceTable, rows: StepRows, num_tokens: Int32, *, is_decode: bool) -> Batch:
    """The arrays of a step in which each row computes its next ``num_tokens`` tokens.

    Args:
        table: the rows are running and hold blocks for what they compute.
        rows: in order of slots.
        num_tokens: ``[B]``.
        is_decode: whether each row computes its newest token and no other.
    Returns:
        a batch that is valid for this step: ``block_tables`` may be a view of the table.
    """
    counting = table.counting
    if is_decode:  # the usual step: most of its arrays are kept from the step before
        num_rows = len(rows.rows)
        return Batch(
            token_ids=table.last_token.take(rows.rows),
            positions=rows.num_computed,
            cu_seqlens_q=counting[: num_rows + 1],
            context_lens=rows.num_tokens,
            block_tables=_block_tables(table, rows),
            slot_mapping=rows.num_computed + rows.blocks_in(table).offset,
        )
    starts, total = rows.num_computed, int(num_tokens.sum())
    ends: Int32 = starts + num_tokens
    positions: Int32
    if len(num_tokens) == 1:  # a prompt by itself: its way to the device should be short
        cu_seqlens_q = np.array([0, total], np.int32)
        owners, positions = rows.slots, np.arange(starts[0], ends[0], dtype=np.int32)
    else:
        cu_seqlens_q = np.zeros(len(num_tokens) + 1, np.int32)
        np.cumsum(num_tokens, out=cu_seqlens_q[1:])
        gaps: Int32 = starts - cu_seqlens_q[:-1]
        positions = np.arange(total, dtype=np.int32)
        positions += np.repeat(gaps, num_tokens)
        owners = np.repeat(rows.slots, num_tokens)
    blocks = table.tables[owners, positions // table.block_size]
    return Batch(
        token_ids=_token_ids(table, rows, num_tokens, cu_seqlens_q),
        positions=positions,
        cu_seqlens_q=cu_seqlens_q,
        context_lens=ends,
        block_tables=_block_tables(table, rows),
        slot_mapping=blocks * table.block_size + positions % table.block_size,
    )


def _block_tables(table: SequenceTable, rows: StepRows) -> Int32:
    """``[B, M]``; no copy where the slots are the first ``B``, so that long contexts cost nothing."""
    num_rows, width = len(rows.slots), rows.blocks_in(table).width
    if rows.slots[-1] == num_rows - 1:
        return table.tables[:num_rows, :width]
    return table.tables[rows.slots, :width]


def _token_ids(table: SequenceTable, rows: StepRows, num_tokens: Int32, cu_seqlens_q: Int32) -> Int32:
    token_ids = np.empty(cu_seqlens_q[-1], np.int32)
    token_ids[cu_seqlens_q[:-1]] = table.last_token.take(rows.rows)  # the input of a decode
    for b in np.flatnonzero(rows.num_computed + 1 < rows.num_tokens).tolist():
        start = rows.num_computed[b]
        token_ids[cu_seqlens_q[b] : cu_seqlens_q[b + 1]] = rows.tokens[b].all[start : start + num_tokens[b]]
    return token_ids
