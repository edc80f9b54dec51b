"""Launches ``step_inputs.cu``: what a step needs beside what the host knows of it, or has told already."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyvllm.devices.interface import Buffer, Device
from tinyvllm.kernels.launch import INT32, ceil_div, check_buffer, source

_THREADS = 256
HEADER_SIZE = 2
"""Integers before the updates: whether the step is the one before once more, and how many updates follow."""


@dataclass(frozen=True, slots=True)
class StepArrays:
    """The arrays of a step on a device, int32 each.

    Attributes:
        token_ids: ``[T]``; those below zero, ``-1 - i``, become what the step before chose for its ``i``-th row.
        positions, slot_mapping: ``[T]``; slot -1 for padding.
        context_lens: ``[B]``.
        new_positions: ``[S]``, positions that the sampled tokens will have.
        block_tables: ``[B, M]``.
        updates: ``[2 + 3 U]``, the header, then row, column and block of each update.
    """

    token_ids: Buffer
    positions: Buffer
    slot_mapping: Buffer
    context_lens: Buffer
    new_positions: Buffer
    block_tables: Buffer
    updates: Buffer


class StepInputs:
    """Completes the arrays of a step.

    Args:
        device: where it runs.
        block_size: tokens in a block of the KV cache.
    """

    def __init__(self, device: Device, *, block_size: int) -> None:
        self._device, self._block_size = device, block_size
        self._function = device.compile(source("step_inputs.cu"), {"THREADS": _THREADS}).function("step_inputs")

    def __call__(self, arrays: StepArrays, sampled: Buffer, *, is_decode: bool) -> None:
        """Queue it; never as a dependent launch.

        Args:
            arrays: completed in place.
            sampled: ``[S]``, int32: what the step before chose.
            is_decode: whether every sequence has one token, all of them sampled. Only then may the header say that it
                is the step before once more; and afterwards it says so of the next one.
        Raises:
            ShapeError: a buffer has another shape or dtype.
        """
        num_tokens = arrays.token_ids.shape[0]
        num_sequences = num_tokens if is_decode else None
        for name, shape in (
            ("token_ids", (num_tokens,)),
            ("positions", (num_tokens,)),
            ("slot_mapping", (num_tokens,)),
            ("context_lens", (num_sequences,)),
            ("new_positions", (num_sequences,)),
            ("block_tables", (num_sequences, None)),
            ("updates", (None,)),
        ):
            check_buffer(f"step_inputs {name}", getattr(arrays, name), shape, INT32)
        check_buffer("step_inputs sampled", sampled, (None,), INT32)
        max_blocks = arrays.block_tables.shape[1]
        sizes = (np.int32(num_tokens), np.int32(max_blocks), np.int32(self._block_size), np.int32(is_decode))
        num_blocks = 1 if is_decode else ceil_div(num_tokens, _THREADS)
        self._device.launch(
            self._function, (num_blocks, 1, 1), (_THREADS, 1, 1),
            (
                arrays.token_ids, arrays.positions, arrays.slot_mapping, arrays.context_lens, arrays.new_positions,
                arrays.block_tables, sampled, arrays.updates, *sizes,
            ),
        )  # fmt: skip
