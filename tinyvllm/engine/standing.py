"""A decision that stands, carried out step after step: every row grows by one token, so little has to be worked out.

Blocks are handed out and arrays computed for several steps at once; a step is then one row of them. Meanwhile the
columns that count tokens are behind; ``settle`` brings them up to date. Whoever ends the decision, or looks at those
columns, settles first.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import Batch, Int32, Sampled, SamplingRows
from tinyvllm.engine.completion import Completion
from tinyvllm.engine.runner import Pending, Step, TableUpdates
from tinyvllm.engine.table import SequenceTable
from tinyvllm.sequence import SequenceTokens

_NOTHING_NEW = TableUpdates(*[np.zeros(0, np.int32)] * 3)
_SPARE_COLUMNS = 8
"""Of copied block tables, so that they need not be copied again at the next block."""
_MOST_PLANNED = 16
"""Steps planned at once; never so many that a row would need two blocks."""
_SHARE_AHEAD = 4
"""Blocks are handed out ahead of need while this leaves three quarters of the free ones."""
_POSITIONS, _CONTEXT_LENS, _SLOT_MAPPING, _KNOWN = range(4)


class StandingRun:
    """What was decided, and how far it was carried out.

    Args:
        table: the columns, up to date.
        rows: ``[B]``, in order of slots; each computes its newest token, step after step.
        slots: ``[B]``, theirs.
        sampling: parameters of the rows.
        completions, tokens: of the rows.
        pending: the step that was launched last.
        late_tokens: ``[B]``, what stands for tokens that the host has not seen; see ``Step``.
        follows: whether that step was one of just these rows.
        is_all: whether the rows are all there is to run and none waits.

    Attributes:
        rows, slots, completions, tokens: as above.
        is_all: as above. Then a row that ends leaves the others to go on; otherwise the decision stands no longer.
        leaving: ``[B]``, which rows are not in the next step; None: all are.
        has_ended: whether one of them has given up its slot already.
    """

    def __init__(
        self,
        table: SequenceTable,
        rows: Int32,
        slots: Int32,
        *,
        sampling: SamplingRows,
        completions: list[Completion],
        tokens: list[SequenceTokens],
        pending: Pending,
        late_tokens: Int32,
        follows: bool,
        is_all: bool,
    ) -> None:
        self.rows, self.slots, self.completions, self.tokens, self.is_all = rows, slots, completions, tokens, is_all
        self.leaving: NDArray[np.bool_] | None = None
        self.has_ended = False
        self._table, self._late_tokens, self._newest = table, late_tokens, pending
        self._token_ids, self._are_late = table.last_token.take(rows), False
        self._unplanned: Int32 = table.num_computed.take(rows)  # positions of the first step that is not planned
        self._planned = np.empty((0, 4, len(rows)), np.int32)
        self._at = -1  # the step of the plan that was launched last
        self._now = np.empty((3, len(rows)), np.int32)  # the arrays of a step: its row of the plan
        self._step = self._first_step(sampling)
        self._follows = follows
        left = table.most_tokens.take(rows) - table.num_tokens.take(rows)
        self._steps_left = int(np.minimum.reduce(left))
        if self._steps_left == 0 and is_all:
            self.leaving = left == 0
        stop_ids = table.stop_ids.take(rows, axis=0)
        self._stop_ids = stop_ids if (stop_ids >= 0).any() else None
        self._watched: NDArray[np.bool_] | None = None
        self._watch_changes = -1
        self._changes = self._seen_changes()
        self._num_launched = self._num_read = 0  # that the columns do not count yet

    @property
    def stands(self) -> bool:
        """Whether nothing has happened that the scheduler must be asked about."""
        return self._seen_changes() == self._changes

    def holds(self, row: int) -> bool:
        """Whether it is one of the rows."""
        return bool((self.rows == row).any())

    def leave(self, row: int) -> None:
        """A row has ended: the next step goes on without it."""
        if self.leaving is None:
            self.leaving = np.zeros(len(self.rows), bool)
        self.leaving |= self.rows == row
        self.has_ended = True

    def going_on(
        self, staying: NDArray[np.intp], slots: Int32, sampling: SamplingRows, late_tokens: Int32
    ) -> StandingRun:
        """The rest of a settled decision, without the rows that leave; what was planned for the others holds.

        Args:
            staying: places of the rows that stay.
            slots, sampling, late_tokens: of those rows.
        """
        completions, tokens = self.completions.copy(), self.tokens.copy()
        if self.leaving is not None:
            for i in reversed(np.flatnonzero(self.leaving).tolist()):
                del completions[i], tokens[i]
        rest = StandingRun(
            self._table, self.rows.take(staying), slots, sampling=sampling, completions=completions, tokens=tokens,
            pending=self._newest, late_tokens=late_tokens, follows=False, is_all=self.is_all,
        )  # fmt: skip
        rest._unplanned = self._unplanned.take(staying)
        rest._planned = self._planned[self._at + 1 :, :, staying]
        return rest

    def next_step(self) -> Step | None:
        """The step after the last one; None if the decision stands no longer, and then nothing has changed."""
        if self._steps_left == 0 or not self.stands:
            return None
        self._at += 1
        updates = _NOTHING_NEW
        if self._at == len(self._planned):
            planned = self._plan()
            if planned is None:
                self._at -= 1
                return None
            updates = planned
        self._now[...] = self._planned[self._at, :_KNOWN]
        if not self._follows:
            self._follows = True
            return replace(self._step, table_updates=None, is_next=False)
        return replace(self._step, table_updates=updates) if len(updates.rows) else self._step

    def launched(self, pending: Pending) -> tuple[Int32, NDArray[np.bool_] | None, bool]:
        """Count a step.

        Returns:
            ``[B]`` tokens of each row once it is read back; which rows can take no more then, or None; and whether
            its tokens are in the store already.
        """
        self._num_launched += 1
        self._steps_left -= 1
        self._newest = pending
        known: Int32 = self._planned[self._at, _KNOWN]
        sampled = pending.wait().sampled if pending.is_done else None
        if sampled is not None:
            self._table.write(self.slots, sampled.token_ids, known)
            self._token_ids[:] = sampled.token_ids
            self._are_late = False
        elif not self._are_late:
            self._token_ids[:] = self._late_tokens
            self._are_late = True
        if self._steps_left:
            return known, None, sampled is not None
        are_last: NDArray[np.bool_] = known >= self._table.most_tokens.take(self.rows)
        if self.is_all:
            self.leaving = are_last
        else:
            self.settle()
        self._table.running_changed()
        return known, are_last, sampled is not None

    def read(self, pending: Pending, sampled: Sampled, known: Int32, *, is_stored: bool) -> NDArray[np.bool_] | None:
        """Take a step's tokens: ``[B]``, which of them may end something or are news to somebody; None: none."""
        table, token_ids = self._table, sampled.token_ids
        self._num_read += 1
        if not is_stored:
            table.write(self.slots, token_ids, known)
            if pending is self._newest:
                self._token_ids[:] = token_ids
                self._are_late = False
        if self._watch_changes != table.watch_changes:
            watched: NDArray[np.bool_] = table.is_watched.take(self.rows)
            self._watched = watched if watched.any() else None
            self._watch_changes = table.watch_changes
        if self._stop_ids is None:
            return None if self._watched is None else self._watched.copy()
        looked_at: NDArray[np.bool_] = (self._stop_ids == token_ids[:, None]).any(axis=1)
        if self._watched is not None:
            looked_at |= self._watched
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

    def _seen_changes(self) -> int:
        return self._table.arrivals if self.is_all else self._table.changes

    def _first_step(self, sampling: SamplingRows) -> Step:
        """The step whose arrays change from one to the next."""
        num_rows, now = len(self.rows), self._now
        cu_seqlens_q = np.arange(num_rows + 1, dtype=np.int32)
        batch = Batch(
            token_ids=self._token_ids,
            positions=now[_POSITIONS],
            cu_seqlens_q=cu_seqlens_q,
            context_lens=now[_CONTEXT_LENS],
            block_tables=block_tables_of(self._table, self.slots, self.rows),
            slot_mapping=now[_SLOT_MAPPING],
            last_token_index=cu_seqlens_q[:-1],
        )
        # The new token's position is the number of tokens before it.
        sampling = replace(sampling, position=now[_CONTEXT_LENS])
        return Step(
            batch, np.arange(num_rows), self.slots, sampling, self.tokens, table_updates=_NOTHING_NEW, is_next=True
        )

    def _plan(self) -> TableUpdates | None:
        """Blocks and arrays of some more steps; what is new in the block tables. None: blocks are short."""
        table, first = self._table, self._unplanned
        num_steps = min(_MOST_PLANNED, table.block_size)
        room = table.num_blocks.take(self.rows) * table.block_size - first
        left = table.most_tokens.take(self.rows) - 1 - first  # who reaches its most tokens leaves before the plan ends
        lacking = np.flatnonzero(room < np.minimum(left, num_steps))
        if _SHARE_AHEAD * len(lacking) > table.num_free_blocks:
            num_steps = 1
            lacking = np.flatnonzero(room < 1)
            if len(lacking) > table.num_free_blocks:
                return None
        updates = self._extended(lacking) if len(lacking) else _NOTHING_NEW
        self._planned = planned = np.empty((num_steps, 4, len(first)), np.int32)
        positions = planned[:, _POSITIONS]
        np.add(first, np.arange(num_steps, dtype=np.int32)[:, None], out=positions)
        np.add(positions, 1, out=planned[:, _CONTEXT_LENS])
        np.add(positions, 2, out=planned[:, _KNOWN])
        columns, offsets = np.divmod(positions, table.block_size)
        np.minimum(columns, table.tables.shape[1] - 1, out=columns)
        np.add(table.tables[self.slots, columns] * table.block_size, offsets, out=planned[:, _SLOT_MAPPING])
        self._unplanned = first + num_steps
        self._at = 0
        return updates

    def _extended(self, lacking: NDArray[np.intp]) -> TableUpdates:
        """Gives a block to each of the rows that lack one."""
        table, batch = self._table, self._step.batch
        columns, blocks = table.extend_by_one(self.rows.take(lacking))
        if int(np.maximum.reduce(columns)) < batch.block_tables.shape[1]:
            batch.block_tables[lacking, columns] = blocks  # where it is a view of the table, it is there already
        else:
            tables = block_tables_of(table, self.slots, self.rows)
            self._step = replace(self._step, batch=replace(batch, block_tables=tables))
        return TableUpdates(lacking.astype(np.int32), columns, blocks)


def block_tables_of(table: SequenceTable, slots: Int32, rows: Int32) -> Int32:
    """``[B, M]`` for a batch; no copy where the slots are the first ``B``, so that long contexts cost nothing."""
    width = min(int(np.maximum.reduce(table.num_blocks.take(rows))) + _SPARE_COLUMNS, table.tables.shape[1])
    if slots[-1] == len(slots) - 1:
        return table.tables[: len(slots), :width]
    return table.tables[slots, :width]
