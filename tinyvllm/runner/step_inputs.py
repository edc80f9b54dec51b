"""Launches ``step_inputs.cu``: tokens that the host has not seen yet, and what is new in the block tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyvllm.device import INT32, Buffer, Gpu
from tinyvllm.ops.buffers import beside, ceil_div, check_buffer

_THREADS = 256
HEADER_SIZE = 1
"""Integers before the updates: how many follow."""


@dataclass(frozen=True, slots=True)
class StepArrays:
    """The arrays of a step that are completed on the device, int32 each.

    Attributes:
        token_ids: ``[T]``; those below zero, ``-1 - slot``, become the newest token of that slot.
        block_tables: ``[B, M]``.
        updates: ``[1 + 3 U]``, how many updates follow, then row, column and block of each.
    """

    token_ids: Buffer
    block_tables: Buffer
    updates: Buffer


class StepInputs:
    """Completes the arrays of a step.

    Args:
        device: where it runs.
    """

    def __init__(self, device: Gpu) -> None:
        self._device = device
        self._function = device.compile(beside(__file__, "step_inputs.cu"), {"THREADS": _THREADS}).function(
            "step_inputs"
        )

    def __call__(self, arrays: StepArrays, newest: Buffer, *, is_decode: bool) -> None:
        """Queue it; never as a dependent launch.

        Args:
            arrays: completed in place.
            newest: ``[S]``, int32, by slot: the newest token of the sequence there.
            is_decode: whether every sequence has one token; the layers may then start before this has ended.
        Raises:
            ShapeError: a buffer has another shape or dtype.
        """
        num_tokens = arrays.token_ids.shape[0]
        check_buffer("step_inputs token_ids", arrays.token_ids, (num_tokens,), INT32)
        check_buffer("step_inputs block_tables", arrays.block_tables, (None, None), INT32)
        check_buffer("step_inputs updates", arrays.updates, (None,), INT32)
        check_buffer("step_inputs newest", newest, (None,), INT32)
        sizes = (np.int32(num_tokens), np.int32(arrays.block_tables.shape[1]), np.int32(is_decode))
        num_blocks = 1 if is_decode else ceil_div(num_tokens, _THREADS)
        arguments = (arrays.token_ids, arrays.block_tables, newest, arrays.updates, *sizes)
        self._device.launch(self._function, (num_blocks, 1, 1), (_THREADS, 1, 1), arguments)
