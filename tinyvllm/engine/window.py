"""The scheduler's window on the engine's columns: the same memory, marked read-only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyvllm.batch import read_only
from tinyvllm.engine.sequence_table import SequenceTable
from tinyvllm.shapes import Int32


def _column(name: str, doc: str) -> property:
    def read(self: SchedulerWindow) -> Any:
        return self._table.read_only[name]

    return property(read, doc=doc)


_NO_ROWS = np.zeros(0, np.int32)
_NO_ROWS.flags.writeable = False


class SchedulerWindow:
    """What :class:`~tinyvllm.interfaces.SchedulerView` promises, over one :class:`SequenceTable`."""

    def __init__(self, table: SequenceTable) -> None:
        self._table = table

    num_tokens = _column("num_tokens", "Known tokens and those in flight.")
    num_computed = _column("num_computed", "Tokens whose K and V are in the cache.")
    num_blocks = _column("num_blocks", "KV blocks held.")
    arrival = _column("arrival", "Order of arrival.")
    priority = _column("priority", "Lower is sooner.")
    deadline = _column("deadline", "Seconds on the clock of now.")

    @property
    def waiting(self) -> Int32:
        """Rows without a slot, by arrival."""
        return read_only(self._table.waiting) if self._table.num_waiting else _NO_ROWS

    @property
    def running(self) -> Int32:
        """Rows with a slot that have something left to compute, by arrival."""
        return self._table.running

    @property
    def num_in_flight(self) -> Int32:
        """Sampled tokens not yet read back."""
        return read_only(self._table.num_in_flight)

    @property
    def now(self) -> float:
        """Seconds, monotonic."""
        return time.monotonic()

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self._table.block_size

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be handed out now."""
        return self._table.num_free_blocks

    @property
    def budget(self) -> int:
        """Maximum number of tokens of this step."""
        return self._table.budget

    @property
    def max_num_seqs(self) -> int:
        """Maximum number of sequences that run at once."""
        return self._table.max_num_seqs

    @property
    def num_free_slots(self) -> int:
        """Waiting sequences that may start now."""
        return self._table.num_free_slots

    def request_id(self, row: int) -> str:
        """The request that a row belongs to."""
        return self._table.request_ids[row]

    def blocks_freed_by(self, rows: Sequence[int] | Int32) -> int:
        """Blocks that would become free if just these rows were preempted."""
        return self._table.blocks_freed_by(rows)
