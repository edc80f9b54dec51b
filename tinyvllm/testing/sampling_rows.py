"""Sampling parameters of some rows, for tests and benchmarks of what chooses tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyvllm.batch import SamplingRows


def rows_of(num_rows: int, **columns: Any) -> SamplingRows:
    """The default parameters of ``num_rows`` rows, row ``i`` at position ``i``, but for some columns.

    Args:
        num_rows: ``B``.
        columns: of ``SamplingRows``, each a scalar for all rows or ``[B]``.
    """
    return SamplingRows.of(num_rows, **({"position": np.arange(num_rows)} | columns))
