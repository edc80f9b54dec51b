"""The rows that wait for a slot, in order of arrival."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyvllm.shapes import Int32

_MIN_ROOM = 64


class WaitingQueue:
    """A row joins at the end or leaves at the head without moving the others."""

    def __init__(self) -> None:
        self._rows = np.zeros(_MIN_ROOM, np.int32)  # the queue is _rows[_head:_tail]
        self._head = self._tail = 0

    def __len__(self) -> int:
        return self._tail - self._head

    @property
    def rows(self) -> Int32:
        """``[num_waiting]``, by arrival; a view."""
        return self._rows[self._head : self._tail]

    def add(self, row: int, arrival: NDArray[np.int64]) -> None:
        """Put a row in its place.

        Args:
            row: not in the queue.
            arrival: the column.
        """
        if self._tail == len(self._rows):
            self.replace(self.rows)
        place = self._tail
        if place > self._head and arrival[self._rows[place - 1]] > arrival[row]:  # it was here before
            place = self._head + int(np.searchsorted(arrival[self.rows], arrival[row]))
            self._rows[place + 1 : self._tail + 1] = self._rows[place : self._tail].copy()
        self._rows[place] = row
        self._tail += 1

    def remove(self, row: int) -> None:
        """Take a row out."""
        if self._rows[self._head] == row:
            self._head += 1
            return
        place = self._head + int(np.flatnonzero(self.rows == row)[0])
        self._rows[place : self._tail - 1] = self._rows[place + 1 : self._tail].copy()
        self._tail -= 1

    def replace(self, rows: Int32) -> None:
        """Let these rows, in order of arrival, be all that wait."""
        self._rows = np.concatenate([rows, np.zeros(max(_MIN_ROOM, len(rows)), np.int32)])
        self._head, self._tail = 0, len(rows)
