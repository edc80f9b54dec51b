"""What the engine knows of each live sequence as arrays, one row a sequence. Knows nothing of blocks or queues.

Per-sequence Python objects would cost several times the whole budget of a step; columns make the bookkeeping of a step
a handful of array operations, whatever the number of sequences and the length of their contexts.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvllm.batch import read_only
from tinyvllm.shapes import Int32

NO_SLOT = -1
NO_ARRIVAL = -1
_NO_TOKEN = -1
NUM_STOP_IDS = 4
"""Stop tokens of a sequence that are compared as columns; a completion with more takes every token."""


class State(IntEnum):
    """Where a row is in its life."""

    FREE = 0  # the row is nobody's
    HELD = 1  # waits for its sibling to compute the prompt they share
    WAITING = 2  # may be scheduled; holds no slot
    RUNNING = 3  # holds a slot


# Columns, with dtype and the value of a fresh row.
_COLUMNS = {
    "state": (np.int8, State.FREE),
    "num_tokens": (np.int32, 0),  # prompt and output, tokens in flight included
    "num_computed": (np.int32, 0),
    "num_read": (np.int32, 0),  # as num_tokens, without tokens in flight: no failure can take these back
    "num_blocks": (np.int32, 0),
    "arrival": (np.int64, NO_ARRIVAL),  # tells one sequence of a row from the next
    "priority": (np.int32, 0),
    "deadline": (np.float64, np.inf),
    "slot": (np.int32, NO_SLOT),
    "max_tokens": (np.int32, 0),  # prompt and output may not be longer than this
    "last_token": (np.int32, 0),  # the newest token, the input of the next decode step; see `unseen_token`
    "is_watched": (np.bool_, True),  # its completion takes each token when it is read back, not only the last
}


class Columns:
    """Arrays that grow together. Whoever owns them writes them."""

    state: NDArray[np.int8]
    num_tokens: Int32
    num_computed: Int32
    num_read: Int32
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
    _free_rows: list[int]

    def __init__(self) -> None:
        self._grow(0)

    @property
    def num_in_flight(self) -> Int32:
        """``[rows]`` sampled tokens that are not yet read back."""
        return self.num_tokens - self.num_read

    def _fresh_row(self, request_id: str) -> int:
        """The index of a row that was free, with fresh values."""
        if not self._free_rows:
            self._grow(len(self.state))
        row = self._free_rows.pop()
        for name, (_, fresh) in _COLUMNS.items():
            getattr(self, name)[row] = fresh
        self.request_ids[row] = request_id
        self.stop_ids[row] = _NO_TOKEN
        return row

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
        views = {name: read_only(column) for name, column in grown.items()}
        free_rows = list(range(new - 1, old - 1, -1))
        # All at once: an exception leaves either the old columns or the new ones.
        vars(self).update(grown, stop_ids=stop_ids, request_ids=request_ids, read_only=views, _free_rows=free_rows)
