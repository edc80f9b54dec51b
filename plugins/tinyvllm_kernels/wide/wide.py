"""What the launchers of Hopper's projections share, from 17 rows of x on; see ``gemm_wide_core.cuh``.

Cut for the shapes of small models on an H100: a warpgroup has 64 weight rows, a block all shared memory of its SM.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tinyvllm.device import Argument, TensorMap
from tinyvllm.errors import ShapeError
from tinyvllm.ops.buffers import HOPPER_ARCH, VECTOR, WARP_SIZE, beside, ceil_div, check_multiple, round_up
from tinyvllm.plugin import Buffer, Gpu
from tinyvllm_kernels.projection.projection import ProjectionSizes, zeros

BATCH_ROWS = (64, 128, 256)
"""Rows of x that a block can work on: the columns of a product of the tensor cores."""

_STAGE_K = 64
_GROUP_ROWS, _GROUP_THREADS = 64, 128
_STAGE_BARRIERS_BYTES = 16
_ALIGNMENT = 1024
_MIN_STAGES = 4  # of a block's part of K: less of it is not worth the exchange
_MAX_SPLIT = 8
_MAX_MAPS = 1024


def has_wide_cores(device: Gpu) -> bool:
    """Whether the card has the instructions: sm_90 alone."""
    return device.properties.arch == HOPPER_ARCH


class WideProjection(ProjectionSizes):
    """One compiled projection.

    Args:
        device: where it runs.
        name: of the source and of the kernel.
        size_k: length of a row of x.
        num_outputs: weight rows.
        batch_rows: rows of x that a block works on, one of ``BATCH_ROWS``.
        tile_rows: weight rows of a block, a multiple of 64.
        max_rows: maximum number of rows of x in a call.
        pdl: the launch may overlap the end of its predecessor.
        paired: weight rows of the first and the second half meet in a tile.
        may_split: blocks may share K, where there are too few tiles for all SMs.

    Raises:
        ShapeError: the card is no Hopper, or a size is none that the kernels serve.
    """

    def __init__(
        self,
        device: Gpu,
        name: str,
        *,
        size_k: int,
        num_outputs: int,
        batch_rows: int,
        tile_rows: int,
        max_rows: int,
        pdl: bool,
        paired: bool = False,
        may_split: bool = False,
    ) -> None:
        if not has_wide_cores(device):
            raise ShapeError(f"{name} needs sm_90, {device.properties.name} is sm_{device.properties.arch}")
        if batch_rows not in BATCH_ROWS:
            raise ShapeError(f"batch_rows is {batch_rows}, expected one of {', '.join(map(str, BATCH_ROWS))}")
        check_multiple("a row's size", size_k, VECTOR)
        super().__init__(name, size_k, num_outputs, max_rows)
        self._device, self._pdl, self._paired = device, pdl, paired
        self._batch_rows, self._tile_rows = batch_rows, tile_rows
        self._num_tiles, num_row_tiles = ceil_div(num_outputs, tile_rows), ceil_div(max_rows, batch_rows)
        num_stages = ceil_div(size_k, _STAGE_K)
        num_jobs = self._num_tiles * num_row_tiles
        self.split = _split(num_jobs, num_stages, device.properties.num_sms) if may_split else 1
        stage_bytes = 2 * _STAGE_K * (tile_rows + batch_rows) + _STAGE_BARRIERS_BYTES
        max_stages = (device.properties.max_shared_bytes - _ALIGNMENT) // stage_bytes
        # Outputs take the ring's place in the end: the fewest stages have room for them.
        self._num_ring_stages = min(max_stages, max(_MIN_STAGES, ceil_div(num_stages, self.split)))
        self._shared_bytes = round_up(self._num_ring_stages * stage_bytes, _ALIGNMENT)
        self._threads = tile_rows // _GROUP_ROWS * _GROUP_THREADS + WARP_SIZE
        defines: dict[str, str | int] = {
            "SIZE_K": size_k,
            "BATCH_ROWS": batch_rows,
            "TILE_ROWS": tile_rows,
            "THREADS": self._threads,
            "NUM_STAGES": self._num_ring_stages,
            "SHARED_BYTES": self._shared_bytes,
        }
        if may_split:
            defines["SPLIT"] = self.split
        module = device.compile(beside(__file__, f"{name}.cu"), defines)
        self._function = module.function(name, max_dynamic_shared_bytes=self._shared_bytes)
        self._maps: dict[tuple[int, tuple[int, ...]], TensorMap] = {}
        self.workspace: Buffer | None = None
        self.counters: Buffer | None = None
        if self.split > 1:
            sums = (num_jobs, self.split, tile_rows, batch_rows)
            self.workspace = device.memory.alloc(sums, np.float32)
            self.counters = zeros(device, num_jobs)

    def maps(self, weight: Buffer, x: Buffer) -> tuple[TensorMap, TensorMap]:
        """What the kernel copies from."""
        return self._map(weight, self._tile_rows, paired=self._paired), self._map(x, self._batch_rows)

    def launch(self, num_rows: int, arguments: Sequence[Argument]) -> None:
        """Queues the kernel for so many rows of x."""
        self._device.launch(
            self._function,
            (ceil_div(num_rows, self._batch_rows), self.split, self._num_tiles),
            (self._threads, 1, 1),
            arguments,
            shared_bytes=self._shared_bytes,
            pdl=self._pdl,
            cooperative=self.split > 1,  # blocks of a tile wait for each other
        )

    def _map(self, matrix: Buffer, box_rows: int, *, paired: bool = False) -> TensorMap:
        key = (matrix.pointer, matrix.shape)
        found = self._maps.get(key)
        if found is None:
            if len(self._maps) >= _MAX_MAPS:
                self._maps.clear()
            found = self._maps[key] = self._device.tensor_map(matrix, box_rows, paired=paired)
        return found


def _split(num_jobs: int, num_stages: int, num_sms: int) -> int:
    """Blocks that share K: as many as find an SM each, all at once."""
    split = 1
    while split < _MAX_SPLIT and 2 * split * num_jobs <= num_sms and num_stages >= 2 * split * _MIN_STAGES:
        split *= 2
    return split
