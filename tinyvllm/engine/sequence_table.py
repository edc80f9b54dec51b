"""Every live sequence as one row of columns: what schedulers see, and what the engine alone may change.

Per-sequence Python objects would cost several times the whole budget of a step; columns make the bookkeeping of a
step a handful of array operations, whatever the number of sequences and the length of their contexts.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import Int32
from tinyvllm.engine.blocks import BlockManager, require

_NO_SLOT = -1
_NO_ARRIVAL = -1


class State(IntEnum):
    """Where a row is in its life."""

    FREE = 0  # the row is nobody's
    HELD = 1  # waits for its sibling to compute the prompt they share
    WAITING = 2  # may be scheduled; holds no slot
    RUNNING = 3  # holds a slot


# Columns, with dtype and the value of a fresh row.
_COLUMNS = {
    "state": (np.int8, State.FREE),
    "num_tokens": (np.int32, 0),
    "num_computed": (np.int32, 0),
    "num_read": (np.int32, 0),  # known tokens that no step in flight could take back
    "num_draft": (np.int32, 0),
    "num_blocks": (np.int32, 0),
    "arrival": (np.int64, _NO_ARRIVAL),  # tells one sequence of a row from the next
    "priority": (np.int32, 0),
    "deadline": (np.float64, np.inf),
    "slot": (np.int32, _NO_SLOT),
    "max_tokens": (np.int32, 0),  # prompt and output may not be longer than this
    "last_token": (np.int32, 0),  # the newest token, the input of the next decode step; see `unseen_token`
    "is_watched": (np.bool_, True),  # its completion takes each token when it is read back, not only the last
}
NUM_STOP_IDS = 4
"""Stop tokens of a sequence that are compared as columns; a sequence with more is watched."""
_NO_TOKEN = -1


class SequenceTable:
    """The columns, the block tables and the order of rows.

    Attributes:
        version: another number after a change of running rows that the launch of a step does not make by itself: of
            their slots, or of who is watched. Copies of their columns may be kept while it is the same.
        counting: ``0, 1, 2, ...``, read-only, as many as there are slots and one more.
        places: the same as indices of NumPy, ``intp``.

    Args:
        blocks: the free list.
        block_size: tokens in a block.
        max_num_seqs: slots: sequences that may run at once.
        max_blocks: ``M``, the largest number of blocks of one sequence.
        budget: the largest number of tokens of a step.
    """

    state: NDArray[np.int8]
    num_tokens: Int32
    num_computed: Int32
    num_read: Int32
    num_draft: Int32
    num_blocks: Int32
    arrival: NDArray[np.int64]
    priority: Int32
    deadline: NDArray[np.float64]
    slot: Int32
    max_tokens: Int32
    last_token: Int32
    is_watched: NDArray[np.bool_]
    stop_ids: Int32  # [rows, NUM_STOP_IDS]; _NO_TOKEN where there are fewer
    read_only: dict[str, NDArray[Any]]  # the columns once more, for those who may not write
    request_ids: list[str]

    def __init__(
        self, blocks: BlockManager, *, block_size: int, max_num_seqs: int, max_blocks: int, budget: int
    ) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.budget = budget
        self.tables = np.zeros((max_num_seqs, max_blocks), np.int32)  # by slot
        self.token_store = np.zeros((max_num_seqs, max_blocks * block_size), np.int32)  # by slot
        self.num_stored = np.zeros(max_num_seqs, np.int32)  # by slot; tokens of the store
        self._held_blocks: dict[int, Int32] = {}  # shared blocks of rows that have no slot yet
        self._free_rows: list[int] = []
        self._free_slots = list(range(max_num_seqs))
        self._waiting = np.zeros(64, np.int32)  # rows by arrival, from _head to _tail
        self._head = self._tail = 0
        self._running: Int32 | None = None
        self.version = 0
        self.counting = np.arange(max_num_seqs + 1, dtype=np.int32)
        self.counting.flags.writeable = False
        self.places = np.arange(max_num_seqs)
        self.places.flags.writeable = False
        self._next_arrival = 0
        self._grow(0)

    # ------------------------------------------------------------ what schedulers see (interfaces.SchedulerView)

    @property
    def waiting(self) -> Int32:
        """Rows without a slot, by arrival."""
        return self._waiting[self._head : self._tail]

    @property
    def num_waiting(self) -> int:
        """How many rows wait."""
        return self._tail - self._head

    @property
    def running(self) -> Int32:
        """Rows with a slot that have something left to compute, by arrival; one read-only array until others run."""
        if self._running is None:
            rows = np.flatnonzero(self.state == State.RUNNING).astype(np.int32)
            rows = rows[self.num_tokens[rows] < self.max_tokens[rows]]  # the rest only wait to be read back
            rows = rows[np.argsort(self.arrival[rows])]
            rows.flags.writeable = False
            self._running = rows
        return self._running

    @property
    def num_in_flight(self) -> Int32:
        """``[rows]`` sampled tokens that are not yet read back."""
        return self.num_tokens - self.num_read

    @property
    def now(self) -> float:
        """Seconds, monotonic."""
        return time.monotonic()

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be handed out now."""
        return self.blocks.num_free

    @property
    def num_free_slots(self) -> int:
        """Waiting sequences that may start now."""
        return len(self._free_slots)

    def request_id(self, row: int) -> str:
        """The request that a row belongs to."""
        return self.request_ids[row]

    def blocks_freed_by(self, rows: Sequence[int] | Int32) -> int:
        """Blocks that would become free if just these rows were preempted."""
        held = [self.block_table(int(row)) for row in dict.fromkeys(rows)]
        return self.blocks.freed_by(np.concatenate(held)) if held else 0

    # ------------------------------------------------------------ the engine's side

    def add(self, request_id: str, num_tokens: int, max_tokens: int, last_token: int) -> int:
        """A new row, last in order of arrival, and held: its index."""
        if not self._free_rows:
            self._grow(len(self.state))
        row = self._free_rows.pop()
        for name, (_, fresh) in _COLUMNS.items():
            getattr(self, name)[row] = fresh
        self.state[row] = State.HELD
        self.num_tokens[row] = self.num_read[row] = num_tokens
        self.max_tokens[row] = max_tokens
        self.last_token[row] = last_token
        self.arrival[row] = self._next_arrival
        self._next_arrival += 1
        self.request_ids[row] = request_id
        self.stop_ids[row] = _NO_TOKEN
        return row

    def wait(self, row: int) -> None:
        """Let a row be scheduled; it stands where its arrival puts it."""
        self.state[row] = State.WAITING
        if self._tail == len(self._waiting):
            self._queue(self.waiting)
        place = self._tail
        if place > self._head and self.arrival[self._waiting[place - 1]] > self.arrival[row]:  # it was here before
            place = self._head + int(np.searchsorted(self.arrival[self.waiting], self.arrival[row]))
            self._waiting[place + 1 : self._tail + 1] = self._waiting[place : self._tail].copy()
        self._waiting[place] = row
        self._tail += 1

    def start(self, row: int) -> None:
        """Give a waiting row a slot."""
        self._leave_queue(row)
        slot = heapq.heappop(self._free_slots)
        held = self._held_blocks.pop(row, None)
        if held is not None:
            self.tables[slot, : len(held)] = held
        self.slot[row] = slot
        self.state[row] = State.RUNNING
        self.running_changed()

    def extend(self, rows: Int32, num_blocks: Int32) -> None:
        """Hand ``num_blocks[i] >= 1`` more blocks to running row ``rows[i]``; the caller saw to enough free ones."""
        fresh, first = self.blocks.allocate(int(num_blocks.sum())), 0
        for row, added in zip(rows.tolist(), num_blocks.tolist(), strict=True):
            held = int(self.num_blocks[row])
            self.tables[self.slot[row], held : held + added] = fresh[first : first + added]
            self.num_blocks[row] = held + added
            first += added

    def extend_by_one(self, rows: Int32) -> tuple[Int32, Int32]:
        """Hand one more block to each of these running rows: ``[n]``, where it stands in the row's table, and which."""
        fresh, columns = self.blocks.allocate(len(rows)), self.num_blocks.take(rows)
        self.tables[self.slot.take(rows), columns] = fresh
        self.num_blocks[rows] = columns + 1
        return columns, fresh

    def share_prompt(self, source: int, row: int, num_tokens: int) -> None:
        """Let held ``row`` start from the first ``num_tokens`` of ``source``, whole blocks that both then hold."""
        count = num_tokens // self.block_size
        shared = self.block_table(source)[:count].copy()
        self.blocks.share(shared)
        self._held_blocks[row] = shared
        self.num_blocks[row] = count
        self.num_computed[row] = count * self.block_size

    def preempt(self, row: int) -> None:
        """Take slot and blocks from a row; its tokens are kept, and it waits where it stood."""
        was_running = self.state[row] == State.RUNNING
        self._drop(row)
        self.num_computed[row] = 0
        if was_running:
            self.wait(row)

    def free(self, row: int) -> None:
        """Take slot, blocks and the row itself from a sequence that has ended.

        A step in flight may still compute the sequence: whoever reads that step back compares arrivals.
        """
        if self.state[row] == State.WAITING:
            self._leave_queue(row)
        self._drop(row)
        self.state[row] = State.FREE
        self.arrival[row] = _NO_ARRIVAL
        self.num_tokens[row] = self.num_read[row] = 0
        self._free_rows.append(row)

    def running_changed(self) -> None:
        """Say that a row has come or gone, or may have reached its last token."""
        self._running = None
        self.version += 1

    def watch(self, row: int, is_watched: bool) -> None:
        """Say whether the completion of a row takes every token when it is read back."""
        if self.is_watched[row] != is_watched:
            self.is_watched[row] = is_watched
            self.version += 1

    def store(self, slots: Int32, token_ids: Int32, num_before: Int32, num_with: Int32) -> None:
        """Write one new token of each of these slots, whose sequences have so many tokens before and with it."""
        self.token_store[slots, num_before] = token_ids
        self.num_stored[slots] = num_with

    def see(self, rows: Int32, token_ids: Int32) -> None:
        """Let these tokens, just read back, be the last of their rows where no further one is in flight."""
        is_newest = self.num_read.take(rows) == self.num_tokens.take(rows)
        if np.count_nonzero(is_newest):
            self.last_token[rows[is_newest]] = token_ids[is_newest]

    def block_table(self, row: int) -> Int32:
        """Block ids that a row holds; a view."""
        if row in self._held_blocks:
            return self._held_blocks[row]
        if self.slot[row] == _NO_SLOT:
            return np.zeros(0, np.int32)
        return self.tables[self.slot[row], : self.num_blocks[row]]

    def rebuild(self, live: Int32) -> None:
        """Derive free rows, free slots, queue and blocks anew from the rows that are still somebody's.

        What an interrupted change has left half done belongs to none of these rows, so nothing of it remains. May
        be repeated: a rebuilding that was interrupted is simply done again.

        Args:
            live: rows of sequences that go on; every other row becomes free.
        """
        is_live = np.zeros(len(self.state), bool)
        is_live[live] = True
        dead = ~is_live
        self.state[dead], self.arrival[dead] = State.FREE, _NO_ARRIVAL
        self.slot[dead], self.num_blocks[dead] = _NO_SLOT, 0
        self.num_tokens[dead] = self.num_read[dead] = 0
        is_waiting = self.state != State.RUNNING
        self._held_blocks = {row: held for row, held in self._held_blocks.items() if is_live[row] and is_waiting[row]}
        self._free_rows = np.flatnonzero(dead)[::-1].tolist()
        taken = set(self.slot[live].tolist())
        self._free_slots = [slot for slot in range(self.max_num_seqs) if slot not in taken]
        waiting = np.flatnonzero(self.state == State.WAITING).astype(np.int32)
        self._queue(waiting[np.argsort(self.arrival[waiting])])
        self.running_changed()
        self.blocks.rebuild(self._all_held())

    def check(self) -> None:
        """Return if blocks, slots and queue agree with the columns.

        Raises:
            InvariantError: what does not add up.
        """
        live = np.flatnonzero(self.state != State.FREE)
        for row in live.tolist():
            require(len(self.block_table(row)) == self.num_blocks[row], f"the block count of row {row} is off")
        self.blocks.check(self._all_held())
        slots = self.slot[self.state == State.RUNNING]
        everything = list(range(self.max_num_seqs))
        require(sorted([*slots.tolist(), *self._free_slots]) == everything, "slots leaked")
        require(not (self.slot[self.state != State.RUNNING] != _NO_SLOT).any(), "a row that does not run has a slot")
        free = np.flatnonzero(self.state == State.FREE).tolist()
        require(sorted(self._free_rows) == free, "rows leaked")
        waiting = np.flatnonzero(self.state == State.WAITING).tolist()
        require(sorted(self.waiting.tolist()) == waiting, "the queue is off")
        require(bool(np.all(np.diff(self.arrival[self.waiting]) > 0)), "the queue is not in order of arrival")

    def _all_held(self) -> Int32:
        live = np.flatnonzero(self.state != State.FREE).tolist()
        return np.concatenate([np.zeros(0, np.int32), *(self.block_table(row) for row in live)])

    def _drop(self, row: int) -> None:
        self.blocks.release(self.block_table(row))
        self._held_blocks.pop(row, None)
        if self.slot[row] != _NO_SLOT:
            heapq.heappush(self._free_slots, int(self.slot[row]))
            self.slot[row] = _NO_SLOT
            self.running_changed()
        self.num_blocks[row] = 0

    def _leave_queue(self, row: int) -> None:
        if self._waiting[self._head] == row:
            self._head += 1
            return
        place = self._head + int(np.flatnonzero(self.waiting == row)[0])
        self._waiting[place : self._tail - 1] = self._waiting[place + 1 : self._tail].copy()
        self._tail -= 1

    def _queue(self, rows: Int32) -> None:
        """Let these rows, in order of arrival, be all that wait; with room for more."""
        self._waiting = np.concatenate([rows, np.zeros(max(64, len(rows)), np.int32)])
        self._head, self._tail = 0, len(rows)

    def _grow(self, old: int) -> None:
        new = max(64, 2 * old)
        grown: dict[str, NDArray[Any]] = {}
        for name, (dtype, fresh) in _COLUMNS.items():
            grown[name] = np.full(new, fresh, dtype)
            if old:
                grown[name][:old] = getattr(self, name)
        stop_ids = np.full((new, NUM_STOP_IDS), _NO_TOKEN, np.int32)
        request_ids = [""] * new
        if old:
            stop_ids[:old], request_ids[:old] = self.stop_ids, self.request_ids
        read_only = {name: column.view() for name, column in grown.items()}
        for column in read_only.values():
            column.flags.writeable = False
        free_rows = list(range(new - 1, old - 1, -1))
        # All at once: an exception leaves either the old columns or the new ones.
        vars(self).update(grown, stop_ids=stop_ids, request_ids=request_ids, read_only=read_only, _free_rows=free_rows)


def unseen_token(slots: Int32) -> Int32:
    """What stands in a step's inputs, and in ``last_token``, for a token that the host has not read back yet.

    ``-1 - slot``: the runner puts the newest token of that slot in its place.
    """
    return -1 - slots
