"""Tokens that the host has not seen, new entries of block tables, and the step before once more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class StepState:
    """The arrays of a step, int32.

    Attributes:
        token_ids: ``[T]``; ``-1 - i`` stands for what the step before chose for its ``i``-th row.
        positions, slot_mapping: ``[T]``; slot -1 for padding.
        context_lens, new_positions: ``[B]``.
        block_tables: ``[B, M]``.
    """

    token_ids: Int32
    positions: Int32
    slot_mapping: Int32
    context_lens: Int32
    new_positions: Int32
    block_tables: Int32


def step_inputs(state: StepState, sampled: Int32, updates: Int32, *, is_next: bool, block_size: int) -> StepState:
    """The arrays, completed.

    Args:
        state: as the host sent them, or as they were in the step before.
        sampled: ``[S]``, int32, what the step before chose; below zero where it could not.
        updates: ``[n, 3]``, int32: row, column and block of each new entry, no place twice.
        is_next: whether the step is the one before once more, each of its ``T = B`` sequences one token further.
        block_size: tokens in a block.
    Returns:
        the arrays, no token id below zero (0 stands for what could not be chosen).
    """
    tables = state.block_tables.copy()
    tables[updates[:, 0], updates[:, 1]] = updates[:, 2]
    token_ids = -1 - np.arange(len(state.token_ids)) if is_next else state.token_ids
    is_known = token_ids >= 0
    completed = np.where(is_known, token_ids, np.maximum(sampled[np.where(is_known, 0, -1 - token_ids)], 0))
    if not is_next:
        return StepState(
            completed.astype(np.int32), state.positions, state.slot_mapping, state.context_lens, state.new_positions,
            tables,
        )  # fmt: skip
    is_row = state.slot_mapping >= 0
    positions = state.positions + is_row
    blocks = tables[np.arange(len(positions)), np.where(is_row, positions // block_size, 0)]
    slots = np.where(is_row, blocks * block_size + positions % block_size, -1)
    return StepState(
        completed.astype(np.int32),
        positions.astype(np.int32),
        slots.astype(np.int32),
        np.where(is_row, positions + 1, state.context_lens).astype(np.int32),
        np.where(is_row, positions + 1, state.new_positions).astype(np.int32),
        tables,
    )
