"""Which KV blocks are free, and who else holds the others. Knows nothing of sequences or what is in a block."""

from __future__ import annotations

import numpy as np

from tinyvllm.batch import Int32
from tinyvllm.errors import CapacityError


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
            raise CapacityError(f"{count} KV blocks wanted, {self._num_free} of {self.num_blocks} are free")
        self._num_free -= count
        blocks = self._free[self._num_free : self._num_free + count][::-1].copy()
        self._references[blocks] = 1
        return blocks

    def share(self, blocks: Int32) -> None:
        """Add a reference to each of these blocks, all of them held by somebody."""
        assert np.all(self._references[blocks] > 0), "a free block cannot be shared"
        self._references[blocks] += 1
        self._num_shared += len(blocks)

    def release(self, blocks: Int32) -> None:
        """Drop one reference to each of these blocks, no block twice; those without any become free."""
        references = self._references[blocks] - 1
        assert np.all(references >= 0), "a block was released twice"
        self._references[blocks] = references
        freed = blocks[references == 0]
        self._num_shared -= len(blocks) - len(freed)
        self._free[self._num_free : self._num_free + len(freed)] = freed
        self._num_free += len(freed)

    def freed_by(self, blocks: Int32) -> int:
        """Blocks that would become free if each entry (a block may occur several times) lost one reference."""
        if self._num_shared == 0:
            return len(blocks)
        unique, counts = np.unique(blocks, return_counts=True)
        return int(np.count_nonzero(self._references[unique] == counts))

    def check(self, held: Int32) -> None:
        """Return if every block is free or referenced, never both, and as often as in ``held``.

        Args:
            held: every entry of every live block table.
        Raises:
            AssertionError: what does not add up.
        """
        free = self._free[: self._num_free]
        references = np.bincount(held, minlength=self.num_blocks)
        assert len(np.unique(free)) == len(free), "a block is on the free stack twice"
        assert np.array_equal(references, self._references), "reference counts differ from the block tables"
        assert not self._references[free].any(), "a free block is referenced"
        assert self._num_free + np.count_nonzero(references) == self.num_blocks, "blocks leaked"
        assert self._num_shared == int(np.maximum(references - 1, 0).sum()), "the count of shared references is off"
