"""The live sequences of an engine: their columns, slots, block tables and order. The engine alone changes them."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from tinyvllm.engine.blocks import BlockManager, require
from tinyvllm.engine.columns import NO_ARRIVAL, NO_SLOT, Columns, State
from tinyvllm.engine.waiting_queue import WaitingQueue
from tinyvllm.shapes import Int32


class SequenceTable(Columns):
    """The columns, the block tables and the order of rows.

    Attributes:
        version: another number after a change of running rows that the launch of a step does not make by itself: of
            their slots, or of who is watched. Copies of their columns may be kept while it is the same.
        counting: ``0, 1, 2, ...``, read-only, as many as there are slots and one more.
        places: the same as indices of NumPy, ``intp``.
        zeros: read-only, as many as there are slots.

    Args:
        blocks: the free list.
        block_size: tokens in a block.
        max_num_seqs: slots: sequences that may run at once.
        max_blocks: ``M``, the largest number of blocks of one sequence.
        budget: the largest number of tokens of a step.
    """

    def __init__(
        self, blocks: BlockManager, *, block_size: int, max_num_seqs: int, max_blocks: int, budget: int
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.budget = budget
        self.tables = np.zeros((max_num_seqs, max_blocks), np.int32)  # by slot
        self.token_store = np.zeros((max_num_seqs, max_blocks * block_size), np.int32)  # by slot
        self.num_stored = np.zeros(max_num_seqs, np.int32)  # by slot; tokens of the store
        self._held_blocks: dict[int, Int32] = {}  # shared blocks of rows that have no slot yet
        self._free_slots = list(range(max_num_seqs))
        self._queue = WaitingQueue()
        self._running: Int32 | None = None
        self.version = 0
        self.counting = np.arange(max_num_seqs + 1, dtype=np.int32)
        self.counting.flags.writeable = False
        self.places = np.arange(max_num_seqs)
        self.places.flags.writeable = False
        self.zeros = np.zeros(max_num_seqs, np.int32)
        self.zeros.flags.writeable = False
        self._next_arrival = 0

    # ------------------------------------------------------------ what schedulers see (interfaces.SchedulerView)

    @property
    def waiting(self) -> Int32:
        """Rows without a slot, by arrival."""
        return self._queue.rows

    @property
    def num_waiting(self) -> int:
        """How many rows wait."""
        return len(self._queue)

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
    def num_free_blocks(self) -> int:
        """Blocks that can be handed out now."""
        return self.blocks.num_free

    @property
    def num_free_slots(self) -> int:
        """Waiting sequences that may start now."""
        return len(self._free_slots)

    def blocks_freed_by(self, rows: Sequence[int] | Int32) -> int:
        """Blocks that would become free if just these rows were preempted."""
        held = [self.block_table(int(row)) for row in dict.fromkeys(rows)]
        return self.blocks.freed_by(np.concatenate(held)) if held else 0

    # ------------------------------------------------------------ the engine's side

    def add(self, request_id: str, num_tokens: int, max_tokens: int, last_token: int) -> int:
        """A new row, last in order of arrival, and held: its index."""
        row = self._fresh_row(request_id)
        self.state[row] = State.HELD
        self.num_tokens[row] = self.num_read[row] = num_tokens
        self.max_tokens[row] = max_tokens
        self.last_token[row] = last_token
        self.arrival[row] = self._next_arrival
        self._next_arrival += 1
        return row

    def wait(self, row: int) -> None:
        """Let a row be scheduled, in its place by arrival."""
        self.state[row] = State.WAITING
        self._queue.add(row, self.arrival)

    def start(self, row: int) -> None:
        """Give a waiting row a slot."""
        self._queue.remove(row)
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
        """Hand one more block to each of these running rows: ``[n]`` places in their block tables, and the blocks."""
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
        """Take slot and blocks from a row; its tokens are kept, and it waits in its place by arrival."""
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
            self._queue.remove(row)
        self._drop(row)
        self.state[row] = State.FREE
        self.arrival[row] = NO_ARRIVAL
        self.num_tokens[row] = self.num_read[row] = 0
        self._free_rows.append(row)

    def running_changed(self) -> None:
        """Say that a row has come or gone, or may have reached its last token."""
        self._running = None
        self.version += 1

    def stop_watching(self, row: int) -> None:
        """Say that the completion of a row need not take every token when it is read back."""
        self.is_watched[row] = False
        self.version += 1

    def store(self, slots: Int32, token_ids: Int32, num_before: Int32, num_with: Int32) -> None:
        """Write one new token of each of these slots, whose sequences have so many tokens before and with it."""
        self.token_store[slots, num_before] = token_ids
        self.num_stored[slots] = num_with

    def set_last_token(self, rows: Int32, token_ids: Int32) -> None:
        """Write the tokens just read back as the last ones of their rows, except where another is in flight."""
        is_newest = self.num_read.take(rows) == self.num_tokens.take(rows)
        if np.count_nonzero(is_newest):
            self.last_token[rows[is_newest]] = token_ids[is_newest]

    def block_table(self, row: int) -> Int32:
        """Block ids that a row holds; a view."""
        if row in self._held_blocks:
            return self._held_blocks[row]
        if self.slot[row] == NO_SLOT:
            return np.zeros(0, np.int32)
        return self.tables[self.slot[row], : self.num_blocks[row]]

    def rebuild(self, live: Int32) -> None:
        """Derive free rows, free slots, queue and blocks anew from the rows of sequences that go on.

        An interrupted change has left nothing half done in these rows, so nothing of it remains. Done again after an
        interruption, it has the same result.

        Args:
            live: rows of sequences that go on; every other row becomes free.
        """
        is_live = np.zeros(len(self.state), bool)
        is_live[live] = True
        dead = ~is_live
        self.state[dead], self.arrival[dead] = State.FREE, NO_ARRIVAL
        self.slot[dead], self.num_blocks[dead] = NO_SLOT, 0
        self.num_tokens[dead] = self.num_read[dead] = 0
        is_waiting = self.state != State.RUNNING
        self._held_blocks = {row: held for row, held in self._held_blocks.items() if is_live[row] and is_waiting[row]}
        self._free_rows = np.flatnonzero(dead)[::-1].tolist()
        taken = set(self.slot[live].tolist())
        self._free_slots = [slot for slot in range(self.max_num_seqs) if slot not in taken]
        waiting = np.flatnonzero(self.state == State.WAITING).astype(np.int32)
        self._queue.replace(waiting[np.argsort(self.arrival[waiting])])
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
        require(not (self.slot[self.state != State.RUNNING] != NO_SLOT).any(), "a row that does not run has a slot")
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
        if self.slot[row] != NO_SLOT:
            heapq.heappush(self._free_slots, int(self.slot[row]))
            self.slot[row] = NO_SLOT
            self.running_changed()
        self.num_blocks[row] = 0


def unseen_token(slots: Int32) -> Int32:
    """What a step's inputs and ``last_token`` hold in place of a token that the host has not read back yet.

    ``-1 - slot``: the runner replaces it by the newest token of that slot.
    """
    return -1 - slots
