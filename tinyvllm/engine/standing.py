"""A decision that stands, carried out step after step: every row grows by one token, so little has to be worked out.

While it lasts, the columns of its rows that count tokens are behind; ``settle`` brings them up to date. Whoever ends
it, or looks at those columns, settles first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import Int32, Sampled
from tinyvllm.engine.completion import Completion
from tinyvllm.engine.runner import Pending, Step, TableUpdates
from tinyvllm.engine.table import SequenceTable

_NOTHING_NEW = TableUpdates(*[np.zeros(0, np.int32)] * 3)
_SPARE_COLUMNS = 8
"""Of copied block tables, so that they need not be copied again at the next block."""


class StandingRun:
    """What was decided, and how far it was carried out.

    Args:
        table: the columns.
        rows: ``[B]``, in order of slots; each computes its newest token, step after step.
        slots: ``[B]``, theirs.
        step: the first of these steps. Its arrays become this object's, and change from step to step.
        pending: that step, just launched.
        completions: of the rows.
        in_flight: ``[B]``, what stands for tokens that the host has not seen; see ``Step``.

    Attributes:
        rows, completions: as above.
    """

    def __init__(
        self,
        table: SequenceTable,
        rows: Int32,
        slots: Int32,
        step: Step,
        pending: Pending,
        completions: Sequence[Completion],
        in_flight: Int32,
    ) -> None:
        batch, sampling = step.batch, step.sampling
        assert sampling is not None
        self.rows, self.completions = rows, completions
        self._table, self._slots, self._in_flight = table, slots, in_flight
        self._positions, self._slot_mapping = batch.positions.copy(), batch.slot_mapping
        self._context_lens, self._new_positions = batch.context_lens, sampling.position.copy()
        self._token_ids = table.last_token.take(rows)
        arrays = {"token_ids": self._token_ids, "positions": self._positions}
        self._step = replace(
            step,
            batch=replace(batch, **arrays),
            sampling=replace(sampling, position=self._new_positions),
            started=None,
            table_updates=_NOTHING_NEW,
        )
        self._room = table.num_blocks.take(rows) * table.block_size - self._context_lens
        self._steps_left = int((table.most_tokens.take(rows) - table.num_tokens.take(rows)).min())
        stop_ids = table.stop_ids.take(rows, axis=0)
        self._stop_ids = stop_ids if (stop_ids >= 0).any() else None
        self._changes = table.changes
        self._num_launched = self._num_read = 0  # that the columns do not count yet
        self._newest = pending

    def next_step(self) -> Step | None:
        """The step after the last one; None if the decision stands no longer, and then nothing has changed."""
        table, step = self._table, self._step
        if self._steps_left == 0 or table.changes != self._changes:
            return None
        self._room -= 1
        if int(np.minimum.reduce(self._room)) < 0:
            lacking = np.flatnonzero(self._room < 0)
            if len(lacking) > table.num_free_blocks:
                self._room += 1
                return None
            step = self._extended(lacking)
        else:
            self._slot_mapping += 1
        self._positions += 1
        self._context_lens += 1
        self._new_positions += 1
        return step

    def launched(self, pending: Pending) -> tuple[Int32, NDArray[np.bool_] | None, bool]:
        """Count a step.

        Returns:
            ``[B]`` tokens of each row once it is read back; which rows can take no more then, or None; and whether
            its tokens are in the store already.
        """
        self._num_launched += 1
        self._steps_left -= 1
        self._newest = pending
        sampled = pending.wait().sampled if pending.is_done else None
        if sampled is None:
            self._token_ids[:] = self._in_flight
        else:
            self._table.write(self._slots, sampled.token_ids)
            self._token_ids[:] = sampled.token_ids
        known = self._new_positions + 1
        if self._steps_left:
            return known, None, sampled is not None
        are_last: NDArray[np.bool_] = known >= self._table.most_tokens.take(self.rows)
        self.settle()
        self._table.running_changed()
        return known, are_last, sampled is not None

    def read(self, pending: Pending, sampled: Sampled, *, is_stored: bool) -> NDArray[np.bool_] | None:
        """Take a step's tokens: ``[B]``, which of them may end something or are news to somebody; None: none."""
        self._num_read += 1
        token_ids = sampled.token_ids
        if not is_stored:
            self._table.write(self._slots, token_ids)
            if pending is self._newest:
                self._token_ids[:] = token_ids
        looked_at = self._table.is_watched.take(self.rows)
        if self._stop_ids is not None:
            looked_at |= (self._stop_ids == token_ids[:, None]).any(axis=1)
        return looked_at if np.count_nonzero(looked_at) else None

    def settle(self) -> None:
        """Bring the columns up to date."""
        table, rows, num_launched, num_read = self._table, self.rows, self._num_launched, self._num_read
        if not (num_launched or num_read):
            return
        table.num_tokens[rows] += num_launched
        table.num_computed[rows] += num_launched
        table.num_in_flight[rows] += num_launched - num_read
        table.last_token[rows] = self._token_ids
        self._num_launched = self._num_read = 0

    def _extended(self, lacking: NDArray[np.intp]) -> Step:
        """Gives a block to each of the rows that lack one; the step with what is new in the block tables."""
        table, batch = self._table, self._step.batch
        rows, slots = self.rows.take(lacking), self._slots.take(lacking)
        columns = table.num_blocks.take(rows)
        table.extend(rows, np.ones(len(rows), np.int32))
        blocks = table.tables[slots, columns]
        self._room[lacking] = table.block_size - 1
        self._slot_mapping += 1
        self._slot_mapping[lacking] = blocks * table.block_size
        if int(np.maximum.reduce(columns)) < batch.block_tables.shape[1]:
            batch.block_tables[lacking, columns] = blocks  # where it is a view of the table, it is there already
            return replace(self._step, table_updates=TableUpdates(lacking.astype(np.int32), columns, blocks))
        tables = block_tables_of(table, self._slots, self.rows)
        self._step = replace(self._step, batch=replace(batch, block_tables=tables))
        return replace(self._step, table_updates=None)


def block_tables_of(table: SequenceTable, slots: Int32, rows: Int32) -> Int32:
    """``[B, M]`` for a batch; no copy where the slots are the first ``B``, so that long contexts cost nothing."""
    width = min(int(np.maximum.reduce(table.num_blocks.take(rows))) + _SPARE_COLUMNS, table.tables.shape[1])
    if slots[-1] == len(slots) - 1:
        return table.tables[: len(slots), :width]
    return table.tables[slots, :width]
