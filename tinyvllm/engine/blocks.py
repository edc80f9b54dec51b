"""Which KV blocks are free, and who else holds the others. Knows nothing of sequences or what is in a block."""

from __future__ import annotations

import numpy as np

from tinyvllm.errors import CapacityError, InvariantError
from tinyvllm.shapes import Int32


class BlockManager:
    """A stack of free blocks and a reference count for each.

    A block that was freed last is handed out first: it is likeliest to be in a cache, and memory that was never
    needed is never touched.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)
        self._num_free = num_blocks
        self._references = np.zeros(num_blocks, np.int32)
        self._num_shared = 0  # references beyond the first, summed over blocks

    @property
    def num_free(self) -> int:
        """Blocks that can be handed out."""
        return self._num_free

    def allocate(self, count: int) -> Int32:
        """``count`` blocks with one reference each, ``[count]``.

        Raises:
            CapacityError: there are not so many; nothing was taken.
        """
        if count > self._num_free:
            raise CapacityError(f"{count} KV blocks needed, {self._num_free} of {self.num_blocks} are free")
        self._num_free -= count
        blocks = self._free[self._num_free : self._num_free + count][::-1].copy()
        self._references[blocks] = 1
        return blocks

    def share(self, blocks: Int32) -> None:
        """Add a reference to each of these blocks, all of them held by somebody."""
        require(bool(np.all(self._references[blocks] > 0)), "a free block cannot be shared")
        self._references[blocks] += 1
        self._num_shared += len(blocks)

    def release(self, blocks: Int32) -> None:
        """Drop one reference to each of these blocks, no block twice; those without any become free."""
        references = self._references[blocks] - 1
        require(bool(np.all(references >= 0)), "a block was released twice")
        self._references[blocks] = references
        freed = blocks[references == 0]
        self._num_shared -= len(blocks) - len(freed)
        self._free[self._num_free : self._num_free + len(freed)] = freed
        self._num_free += len(freed)

    def freed_by(self, blocks: Int32) -> int:
        """Blocks that would become free if each of these entries lost its reference; a block may be in several."""
        if self._num_shared == 0:
            return int(np.count_nonzero(np.bincount(blocks, minlength=self.num_blocks)))
        unique, counts = np.unique(blocks, return_counts=True)
        return int(np.count_nonzero(self._references[unique] == counts))

    def rebuild(self, held: Int32) -> None:
        """Forget what was handed out, and count anew.

        Args:
            held: every entry of every live block table; whatever is not among them becomes free.
        """
        self._references = np.bincount(held, minlength=self.num_blocks).astype(np.int32)
        free = np.flatnonzero(self._references == 0)[::-1].astype(np.int32)
        self._free = np.zeros(self.num_blocks, np.int32)
        self._free[: len(free)] = free
        self._num_free = len(free)
        self._num_shared = int(np.maximum(self._references - 1, 0).sum())

    def check(self, held: Int32) -> None:
        """Return if every block is free or referenced, never both, and as often as in ``held``.

        Args:
            held: every entry of every live block table.
        Raises:
            InvariantError: what does not add up.
        """
        free = np.bincount(self._free[: self._num_free], minlength=self.num_blocks)
        references = np.bincount(held, minlength=self.num_blocks)
        require(int(free.max(initial=0)) <= 1, "a block is on the free stack twice")
        require(np.array_equal(references, self._references), "reference counts differ from the block tables")
        require(not (free & (references > 0)).any(), "a free block is referenced")
        require(self._num_free + np.count_nonzero(references) == self.num_blocks, "blocks leaked")
        num_shared = int(np.maximum(references - 1, 0).sum())
        require(self._num_shared == num_shared, "the count of shared references is off")


def require(holds: bool, what: str) -> None:
    """Return if an invariant holds.

    Raises:
        InvariantError: it does not; ``what`` says which.
    """
    if not holds:
        raise InvariantError(f"{what}; this is a bug of tinyvllm's, please report it")
