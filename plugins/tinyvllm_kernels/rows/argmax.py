"""Launches ``argmax.cu``: the most likely token of each row."""

from __future__ import annotations

import numpy as np

from tinyvllm.device import FLOAT32, INT32
from tinyvllm.ops.buffers import beside, check_buffer
from tinyvllm.ops.row_tiles import RowTiles, check_rows, check_sampled
from tinyvllm.plugin import Buffer, Gpu, SampledBuffers


class Argmax:
    """Greedy sampling: the largest logit, the lowest id of equals.

    Args:
        device: where it runs.
        vocab_size: ``V``.
        max_rows: maximum number of rows of a call.
        threads: of a block. loads: groups of four tokens that each has under way.
        num_blocks: of a call; None: what the device holds at once.
        pdl: the launch may overlap the end of its predecessor.
    """

    def __init__(
        self,
        device: Gpu,
        *,
        vocab_size: int,
        max_rows: int,
        threads: int = 256,
        loads: int = 4,
        num_blocks: int | None = None,
        pdl: bool = True,
    ) -> None:
        self._device, self._vocab_size, self._max_rows, self._threads, self._pdl = (
            device, vocab_size, max_rows, threads, pdl,
        )  # fmt: skip
        self._tiles = RowTiles.of(device, vocab_size, threads, loads, num_blocks)
        module = device.compile(beside(__file__, "argmax.cu"), self._tiles.defines)
        self._function = module.function("argmax_rows")
        self._partial = device.memory.alloc((max_rows, self._tiles.most), np.uint64)
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
        check_sampled("argmax", out, num_rows)
        check_buffer("argmax logits", logits, (num_rows, self._vocab_size), FLOAT32)
        check_buffer("argmax slots", slots, (num_rows,), INT32)
        num_tiles, tile_size = self._tiles.cut(num_rows)
        arguments = (
            out.token_ids, out.is_corrupt, self._partial, self._counters, logits, slots,
            np.int32(self._vocab_size), np.int32(tile_size),
        )  # fmt: skip
        grid = (num_tiles, num_rows, 1)
        self._device.launch(self._function, grid, (self._threads, 1, 1), arguments, pdl=self._pdl)
