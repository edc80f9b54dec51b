"""The rows of a step with what the engine's columns hold for them: gathered once while the same rows go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyvllm.engine.completion import Completion
from tinyvllm.engine.sequence_table import SequenceTable
from tinyvllm.sequence import SequenceTokens
from tinyvllm.shapes import Int32


@dataclass(slots=True, eq=False)
class StepRows:
    """The rows of a step, in order of slots; every array is ``[B]`` and a copy.

    The launcher keeps these values for the next step: where that has the same rows, nothing is gathered again. They are
    those of the columns as long as ``version`` is the table's. No array is written in place.

    Attributes:
        version: of the table when the columns were gathered.
        requested: the same rows as the scheduler named them, in its order.
        rows: indices of the columns.
        slots: ascending.
        num_computed, num_tokens, max_tokens, arrival: of the columns of these names.
        completions: of the rows.
        tokens: of the completions.
        watched: places of those rows whose completion takes every token when it is read back.
        stop_ids: ``[B, n]``, the stop tokens that are compared as columns; None: there are none.
        blocks: what depends on the blocks that the rows hold; None after a row got one.
    """

    version: int
    requested: Int32
    rows: Int32
    slots: Int32
    num_computed: Int32
    num_tokens: Int32
    max_tokens: Int32
    arrival: NDArray[np.int64]
    completions: list[Completion]
    tokens: list[SequenceTokens]
    watched: list[int]
    stop_ids: Int32 | None
    blocks: RowBlocks | None = None

    @classmethod
    def gather(
        cls,
        table: SequenceTable,
        requested: Int32,
        rows: Int32,
        completions: Mapping[int, Completion],
        tokens: Mapping[int, SequenceTokens],
    ) -> StepRows:
        """What the columns hold for ``rows``.

        Args:
            table: the rows are running.
            requested: the same rows in the scheduler's order.
            rows: in order of slots.
            completions, tokens: by row.
        """
        listed = rows.tolist()
        stop_ids = table.stop_ids.take(rows, axis=0)
        width = int(np.count_nonzero(np.maximum.reduce(stop_ids, axis=0) >= 0))  # they begin in the first column
        return cls(
            version=table.version,
            requested=requested if requested is table.running else requested.copy(),
            rows=rows,
            slots=table.slot.take(rows),
            num_computed=table.num_computed.take(rows),
            num_tokens=table.num_tokens.take(rows),
            max_tokens=table.max_tokens.take(rows),
            arrival=table.arrival.take(rows),
            completions=list(map(completions.__getitem__, listed)),
            tokens=list(map(tokens.__getitem__, listed)),
            watched=table.is_watched.take(rows).nonzero()[0].tolist(),
            stop_ids=stop_ids[:, :width] if width else None,
        )

    def is_as_requested(self, rows: object) -> bool:
        """Whether a scheduler names these rows, in the order of the last time."""
        if rows is self.requested:  # the table's own array, which nobody can write
            return True
        return (
            isinstance(rows, np.ndarray)
            and rows.dtype == np.int32
            and rows.shape == self.requested.shape
            and not np.count_nonzero(rows != self.requested)
        )

    def blocks_in(self, table: SequenceTable) -> RowBlocks:
        """What depends on the blocks that the rows hold now."""
        if self.blocks is None:
            self.blocks = RowBlocks.gather(table, self)
        return self.blocks


@dataclass(slots=True, eq=False)
class RowBlocks:
    """The blocks of the rows of a step.

    Attributes:
        capacity: ``[B]``, tokens for which the blocks of a row have room.
        width: the largest number of blocks of a row.
        offset: ``[B]``, what is added to the position of a row's next token for its place in the cache. It is right
            while that token lies in the row's last block, since a row gets a block only when a token needs it.
    """

    capacity: Int32
    width: int
    offset: Int32

    @classmethod
    def gather(cls, table: SequenceTable, rows: StepRows) -> RowBlocks:
        """What the table holds now."""
        num_blocks = table.num_blocks.take(rows.rows)
        last = np.maximum(num_blocks - 1, 0)
        offset = (table.tables[rows.slots, last] - last) * table.block_size
        return cls(num_blocks * table.block_size, int(np.maximum.reduce(num_blocks)), offset)
