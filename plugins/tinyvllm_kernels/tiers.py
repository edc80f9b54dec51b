"""Which version of a kernel serves so many rows."""

from __future__ import annotations

from collections.abc import Sequence

from tinyvllm.plugin import BindContext
from tinyvllm_kernels.projection.tiling import BATCH_ROWS, SHARING_ROWS, Tiling, invariant_tiling, smallest_holding

FUSED_ROWS = (1, 8, 16, 32)
"""Capacity, in rows, of each version of the fused kernels; more rows go to the library's matrix products."""
FUSED_HEAD_ROWS = (1,)
"""Capacity of the fused kernel of the vocabulary, whose product is long enough for the library from two rows on."""

_INVARIANT_ROWS = (8, 16, 32, 64, SHARING_ROWS)
"""Capacity of each version that sums in one order, but for the last, which takes any number of rows."""


class Tiers:
    """Which version of a kernel serves a number of rows.

    Args:
        context: of the engine.
        fused_rows: the capacities that there are.
    """

    def __init__(self, context: BindContext, fused_rows: Sequence[int] = FUSED_ROWS) -> None:
        limits = context.limits
        self._fused_rows = fused_rows
        self._is_invariant = limits.batch_invariant
        self._arch = context.gpu.properties.arch
        self.max_tokens = limits.max_tokens
        self._max_head_rows = max(limits.max_logits_rows, limits.max_seqs)

    @property
    def has_products(self) -> bool:
        """Whether a step can have so many rows that the library's matrix products take them."""
        return self.rows(self.max_tokens) is None

    @property
    def has_head_products(self) -> bool:
        """Whether a step can sample so many rows that the library's product with the vocabulary takes them."""
        return self.fused_head_rows(self._max_head_rows) is None

    def rows(self, num_rows: int) -> int | None:
        """Capacity of the smallest version that holds ``num_rows``; None: the library's products are faster."""
        return self._rows(num_rows, self.max_tokens)

    def head_rows(self, num_rows: int) -> int | None:
        """Capacity of the smallest version of the vocabulary's projection that holds ``num_rows``, or None."""
        return self._rows(num_rows, max(self._max_head_rows, num_rows))

    def fused_head_rows(self, num_rows: int) -> int | None:
        """As :meth:`head_rows`, where norm and projection are one kernel: there is none for many rows."""
        return self.head_rows(num_rows) if num_rows <= BATCH_ROWS[-1] else None

    def _rows(self, num_rows: int, max_rows: int) -> int | None:
        if self._is_invariant:
            return smallest_holding(num_rows, _INVARIANT_ROWS) or max_rows
        return smallest_holding(num_rows, self._fused_rows)

    def tiling(self, max_rows: int, size_k: int, num_outputs: int, *, may_split: bool = True) -> Tiling | None:
        """How a kernel of that capacity cuts its product; None: as its launcher thinks best.

        With ``batch_invariant`` the cut of K is the same for any number of rows, one included. Without it, many rows
        come here only where the library lacks something: it adds no bias.
        """
        if not self._is_invariant and max_rows <= BATCH_ROWS[-1]:
            return None
        return invariant_tiling(self._arch, size_k, max_rows, num_outputs=num_outputs, may_split=may_split)
