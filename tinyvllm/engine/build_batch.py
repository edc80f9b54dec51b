"""From a schedule to the arrays of a step. Reads the table and the tokens, changes neither."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinyvllm.batch import Batch, Int32
from tinyvllm.engine.table import SequenceTable
from tinyvllm.sequence import SequenceTokens


def build_batch(
    table: SequenceTable, tokens_of: Callable[[int], SequenceTokens], rows: Int32, num_tokens: Int32
) -> Batch:
    """The arrays of a step that computes ``num_tokens[b]`` tokens of ``rows[b]``, from where each row stands.

    Args:
        table: rows are running and hold blocks for what they compute.
        tokens_of: the token store of a row.
        rows: ``[B]``, ordered by slot.
        num_tokens: ``[B]``, at least 1 each.
    Returns:
        a batch that is valid for this step: ``block_tables`` may be a view of the table.
    """
    starts = table.num_computed[rows]
    cu_seqlens_q = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(num_tokens, out=cu_seqlens_q[1:])
    firsts = cu_seqlens_q[:-1]
    owners = np.repeat(np.arange(len(rows)), num_tokens)
    positions = (starts - firsts)[owners] + np.arange(cu_seqlens_q[-1], dtype=np.int32)
    token_ids = np.empty(len(positions), np.int32)
    token_ids[firsts] = table.last_token[rows]  # right for decodes, whose input is the newest token
    for b in np.flatnonzero(starts + 1 < table.num_tokens[rows]).tolist():
        known = tokens_of(int(rows[b])).all
        token_ids[firsts[b] : cu_seqlens_q[b + 1]] = known[starts[b] : starts[b] + num_tokens[b]]
    slots = table.slot[rows]
    block_tables = _tables(table, slots, int(table.num_blocks[rows].max()))
    blocks = block_tables[owners, positions // table.block_size]
    return Batch(
        token_ids=token_ids,
        positions=positions,
        cu_seqlens_q=cu_seqlens_q,
        context_lens=starts + num_tokens,
        block_tables=block_tables,
        slot_mapping=blocks * np.int32(table.block_size) + positions % table.block_size,
        last_token_index=cu_seqlens_q[1:] - 1,
    )


def _tables(table: SequenceTable, slots: Int32, width: int) -> Int32:
    """``[B, width]``; no copy where the slots are the first ``B``, so that long contexts cost nothing."""
    if int(slots[-1]) == len(slots) - 1:
        return table.tables[: len(slots), :width]
    return table.tables[slots, :width]
