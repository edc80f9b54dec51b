"""Launches ``step_inputs.cu``: tokens from the last step's output, new entries of block tables."""

from __future__ import annotations

import numpy as np

from tinyvllm.devices.interface import Buffer, Device
from tinyvllm.kernels.launch import INT32, ceil_div, check_buffer, source

_THREADS = 256


class StepInputs:
    """What a step needs beside what the host knows of it.

    Args:
        device: where it runs.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._function = device.compile(source("step_inputs.cu"), {"THREADS": _THREADS}).function("step_inputs")

    def __call__(self, token_ids: Buffer, block_tables: Buffer, sampled: Buffer, updates: Buffer) -> None:
        """Queue it; never as a dependent launch.

        Args:
            token_ids: ``[T]``, int32; those below zero, ``-1 - i``, become ``sampled[i]``.
            block_tables: ``[B, M]``, int32.
            sampled: ``[S]``, int32: what the step before chose.
            updates: ``[1 + 3 U]``, int32: how many updates follow (at most ``U``), then row, column and block of each.
        Raises:
            ShapeError: a buffer has another shape or dtype.
        """
        check_buffer("step_inputs token_ids", token_ids, (None,), INT32)
        check_buffer("step_inputs block_tables", block_tables, (None, None), INT32)
        check_buffer("step_inputs sampled", sampled, (None,), INT32)
        check_buffer("step_inputs updates", updates, (None,), INT32)
        num_tokens = token_ids.shape[0]
        arguments = (
            token_ids, block_tables, sampled, updates, np.int32(num_tokens), np.int32(block_tables.shape[1]),
        )  # fmt: skip
        self._device.launch(self._function, (ceil_div(num_tokens, _THREADS), 1, 1), (_THREADS, 1, 1), arguments)
