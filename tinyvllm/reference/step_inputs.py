"""Tokens that the host has not seen, and new entries of block tables."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]


def step_inputs(token_ids: Int32, block_tables: Int32, newest: Int32, updates: Int32) -> tuple[Int32, Int32]:
    """The inputs of a step, completed.

    Args:
        token_ids: ``[T]``, int32; ``-1 - slot`` stands for the newest token of the sequence in that slot.
        block_tables: ``[B, M]``, int32.
        newest: ``[S]``, int32, by slot, none below zero.
        updates: ``[n, 3]``, int32: row, column and block of each new entry of the tables, no place twice.
    Returns:
        the token ids, none below zero, and the tables.
    """
    tables = block_tables.copy()
    tables[updates[:, 0], updates[:, 1]] = updates[:, 2]
    is_known = token_ids >= 0
    completed = np.where(is_known, token_ids, newest[np.where(is_known, 0, -1 - token_ids)])
    return completed.astype(np.int32), tables
