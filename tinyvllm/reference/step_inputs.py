"""Tokens that the host has not seen, and new entries of block tables."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]


def step_inputs(token_ids: Int32, block_tables: Int32, sampled: Int32, updates: Int32) -> tuple[Int32, Int32]:
    """Both arrays completed.

    Args:
        token_ids: ``[T]``, int32; ``-1 - i`` stands for ``sampled[i]``.
        block_tables: ``[B, M]``, int32.
        sampled: ``[S]``, int32, what the step before chose; below zero where it could not.
        updates: ``[n, 3]``, int32: row, column and block of each new entry, no place twice.
    Returns:
        token ids ``[T]``, none below zero (0 stands for what could not be chosen), and block tables ``[B, M]``.
    """
    is_known = token_ids >= 0
    completed = np.where(is_known, token_ids, np.maximum(sampled[np.where(is_known, 0, -1 - token_ids)], 0))
    tables = block_tables.copy()
    tables[updates[:, 0], updates[:, 1]] = updates[:, 2]
    return completed.astype(np.int32), tables
