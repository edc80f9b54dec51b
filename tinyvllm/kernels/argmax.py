"""Launches ``argmax.cu``: the most likely token of each row."""

from __future__ import annotations

import numpy as np

from tinyvllm.devices.interface import Buffer, Device
from tinyvllm.errors import ShapeError
from tinyvllm.kernels.launch import FLOAT32, INT32, ceil_div, check_buffer, source
from tinyvllm.kernels.sample_columns import SampledBuffers


class Argmax:
    """Greedy sampling: the largest logit, the lowest id of equals.

    Args:
        device: where it runs.
        vocab_size: ``V``.
        max_rows: most rows of a call.
        threads: of a block. per_thread: tokens, a multiple of 4. Together the tile of a block; 4096 spreads one row
            of 128k over 32 blocks.
        pdl: the launch may overlap the end of its predecessor.
    """

    def __init__(
        self,
        device: Device,
        *,
        vocab_size: int,
        max_rows: int,
        threads: int = 256,
        per_thread: int = 16,
        pdl: bool = True,
    ) -> None:
        self._device, self._vocab_size, self._max_rows, self._threads, self._pdl = (
            device, vocab_size, max_rows, threads, pdl,
        )  # fmt: skip
        self._num_tiles = ceil_div(vocab_size, threads * per_thread)
        module = device.compile(source("argmax.cu"), {"THREADS": threads, "PER_THREAD": per_thread})
        self._function = module.function("argmax_rows")
        self._partial = device.memory.alloc((max_rows, self._num_tiles), np.uint64)
        self._counters = device.memory.alloc((max_rows,), np.uint32)
        device.memory.fill(self._counters, 0)

    def __call__(self, out: SampledBuffers, logits: Buffer, slots: Buffer) -> None:
        """Queue it.

        Args:
            out: ``B`` rows; nothing is written for rows without a slot.
            logits: ``[B, V]``, float32.
            slots: ``[B]``, int32; negative where a row samples nothing.
        Raises:
            ShapeError: a buffer has another shape or dtype, or there are more rows than announced.
        """
        num_rows = logits.shape[0]
        check_rows("argmax", num_rows, self._max_rows)
        out.check("argmax", num_rows)
        check_buffer("argmax logits", logits, (num_rows, self._vocab_size), FLOAT32)
        check_buffer("argmax slots", slots, (num_rows,), INT32)
        arguments = (
            out.token_ids, out.is_corrupt, out.slot_tokens, self._partial, self._counters, logits, slots,
            np.int32(self._vocab_size),
        )  # fmt: skip
        grid = (self._num_tiles, num_rows, 1)
        self._device.launch(self._function, grid, (self._threads, 1, 1), arguments, pdl=self._pdl)


def check_rows(op: str, num_rows: int, max_rows: int) -> None:
    """Return if there is workspace for ``num_rows``.

    Raises:
        ShapeError: there is not, or there is no row.
    """
    if not 1 <= num_rows <= max_rows:
        raise ShapeError(f"{op} has {num_rows} rows, the launcher was made for 1 to {max_rows}")
