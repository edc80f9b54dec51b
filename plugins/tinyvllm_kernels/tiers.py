"""Which version of a kernel serves so many rows."""

from __future__ import annotations

from collections.abc import Sequence

from tinyvllm.plugin import BindContext
from tinyvllm_kernels.projection.tiling import BATCH_ROWS, SHARING_ROWS, Tiling, invariant_tiling, smallest_holding

FUSED_ROWS = (1, 8, 16, 32)
"""Most rows of each version of the fused kernels; more rows go to the matrix products."""
FUSED_HEAD_ROWS = (1,)
"""The same of the vocabulary's projection, which is long enough for the matrix products from two rows on."""

_INVARIANT_ROWS = (8, 16, 32, 64, SHARING_ROWS)
"""Most rows of each version that sums in one order, but for the last, which takes any number."""


class Tiers:
    """Which version of a fused kernel serves so many rows."""

    def __init__(self, context: BindContext, fused_rows: Sequence[int] = FUSED_ROWS) -> None:
        limits = context.limits
        self._fused_rows = fused_rows
        self._is_invariant = limits.batch_invariant
        self._arch = context.gpu.properties.arch
        self.max_tokens = limits.max_tokens
        self._max_head_rows = max(limits.max_logits_rows, limits.max_seqs)

    @property
    def has_products(self) -> bool:
        """Whether a step of this engine can have so many rows that the matrix products take them."""
        return self.rows(self.max_tokens) is None

    @property
    def has_head_products(self) -> bool:
        """The same for the vocabulary."""
        return self.fused_head_rows(self._max_head_rows) is None

    def rows(self, num_rows: int) -> int | None:
        """Its most rows; None: the matrix products are faster."""
        return self._rows(num_rows, self.max_tokens)

    def head_rows(self, num_rows: int) -> int | None:
        """The same for the vocabulary."""
        return self._rows(num_rows, max(self._max_head_rows, num_rows))

    def fused_head_rows(self, num_rows: int) -> int | None:
        """The same for its fused kernels, of which there is none for many rows."""
        return self.head_rows(num_rows) if num_rows <= BATCH_ROWS[-1] else None

    def _rows(self, num_rows: int, most: int) -> int | None:
        if self._is_invariant:
            return smallest_holding(num_rows, _INVARIANT_ROWS) or most
        return smallest_holding(num_rows, self._fused_rows)

    def tiling(self, max_rows: int, size_k: int, num_outputs: int, *, may_split: bool = True) -> Tiling | None:
        """One cut of K for any number of rows, also for one; the launcher's own for few rows without that promise.

        Without it, many rows come here where the matrix products lack something: they add no bias.
        """
        if not self._is_invariant and max_rows <= BATCH_ROWS[-1]:
            return None
        return invariant_tiling(self._arch, size_k, max_rows, num_outputs=num_outputs, may_split=may_split)
