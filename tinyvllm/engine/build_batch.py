"""From a schedule to the arrays of a step. Reads the table and the tokens, changes neither."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import Batch, Int32
from tinyvllm.engine.runner import TableUpdates
from tinyvllm.engine.table import SequenceTable
from tinyvllm.engine.validate import CheckedSchedule
from tinyvllm.sequence import SequenceTokens

_NOTHING_NEW = TableUpdates(*[np.zeros(0, np.int32)] * 3)
_SPARE_COLUMNS = 8
"""Of copied block tables, so that a decision that stands need not copy them again at the next block."""


class BatchBuilder:
    """Makes the arrays of step after step; of a decision that stands, little is made anew.

    Args:
        table: the rows that are scheduled run, and hold blocks for what they compute.
        tokens_of: the tokens of a row.
    """

    def __init__(self, table: SequenceTable, tokens_of: Callable[[int], SequenceTokens]) -> None:
        self._table, self._tokens_of = table, tokens_of
        self._counting = np.arange(table.max_num_seqs + 1, dtype=np.int32)
        self._all = np.arange(table.max_num_seqs)
        self._in_flight = -1 - self._counting
        self._block_tables = table.tables[:0]

    def build(
        self, schedule: CheckedSchedule, slots: Int32, extended: NDArray[np.intp], *, goes_on: bool
    ) -> tuple[Batch, TableUpdates | None]:
        """The arrays of a step that computes the scheduled tokens of each row, from where it stands.

        Args:
            schedule: rows in order of slots.
            slots: ``[B]``, theirs.
            extended: which of the ``B`` have got more blocks for this step.
            goes_on: the step before was the same, one token shorter.
        Returns:
            a batch that is valid for this step (``block_tables`` may be a view of the table), and what is new in its
            block tables since the step before; None: anything may be.
        """
        table, num_tokens, starts = self._table, schedule.num_tokens, schedule.starts
        num_rows = len(slots)
        total = num_rows if goes_on else int(num_tokens.sum())
        updates = self._update(slots, schedule.rows, extended) if goes_on else None
        if updates is None:
            self._block_tables = self._tables_of(slots, schedule.rows)
        shift, in_block = table.block_size.bit_length() - 1, table.block_size - 1
        positions: Int32
        if total == num_rows:  # one token each: the usual step, worth its own lines
            cu_seqlens_q, positions = self._counting[: num_rows + 1], starts
            slot_mapping = table.tables[slots, positions >> shift]
            ends = starts + 1
        else:
            cu_seqlens_q = np.zeros(num_rows + 1, np.int32)
            np.cumsum(num_tokens, out=cu_seqlens_q[1:])
            owners = np.repeat(self._counting[:num_rows], num_tokens)
            gaps: Int32 = starts - cu_seqlens_q[:-1]
            positions = np.arange(total, dtype=np.int32)
            positions += gaps[owners]
            slot_mapping = table.tables[slots[owners], positions >> shift]
            ends = starts + num_tokens
        slot_mapping <<= shift
        slot_mapping += positions & in_block
        batch = Batch(
            token_ids=self._token_ids(schedule, cu_seqlens_q, total),
            positions=positions,
            cu_seqlens_q=cu_seqlens_q,
            context_lens=ends,
            block_tables=self._block_tables,
            slot_mapping=slot_mapping,
            last_token_index=cu_seqlens_q[1:] - 1,
        )
        return batch, updates

    def all_of(self, num_rows: int) -> NDArray[np.intp]:
        """``0 .. num_rows - 1``."""
        return self._all[:num_rows]

    def in_flight(self, num_rows: int) -> Int32:
        """What stands for the tokens that a step has sampled and the host has not yet read; see ``Step``."""
        return self._in_flight[:num_rows]

    def _token_ids(self, schedule: CheckedSchedule, cu_seqlens_q: Int32, total: int) -> Int32:
        newest: Int32 = self._table.last_token.take(schedule.rows)  # the input of a decode
        if schedule.stands:
            return newest
        is_chunk = schedule.starts + 1 < schedule.known
        if len(newest) == total and not is_chunk.any():
            return newest
        token_ids = np.empty(total, np.int32)
        token_ids[cu_seqlens_q[:-1]] = newest
        for b in np.flatnonzero(is_chunk).tolist():
            start = schedule.starts[b]
            known = self._tokens_of(int(schedule.rows[b])).all
            token_ids[cu_seqlens_q[b] : cu_seqlens_q[b + 1]] = known[start : start + schedule.num_tokens[b]]
        return token_ids

    def _tables_of(self, slots: Int32, rows: Int32) -> Int32:
        """``[B, M]``; no copy where the slots are the first ``B``, so that long contexts cost nothing."""
        table = self._table
        width = min(int(np.maximum.reduce(table.num_blocks.take(rows))) + _SPARE_COLUMNS, table.tables.shape[1])
        if slots[-1] == len(slots) - 1:
            return table.tables[: len(slots), :width]
        return table.tables[slots, :width]

    def _update(self, slots: Int32, rows: Int32, extended: NDArray[np.intp]) -> TableUpdates | None:
        """Brings the last step's block tables up to date; None if they are too narrow for that."""
        if len(extended) == 0:
            return _NOTHING_NEW
        columns = self._table.num_blocks.take(rows.take(extended)) - 1
        if int(np.maximum.reduce(columns)) >= self._block_tables.shape[1]:
            return None
        blocks = self._table.tables[slots.take(extended), columns]
        self._block_tables[extended, columns] = blocks  # where it is a view of the table, it is there already
        return TableUpdates(extended.astype(np.int32), columns, blocks)
