"""What the launchers of the fused projections share: compiled for sizes, a grid chosen, scratch memory kept.

``y = norm(x) W^T`` for few rows, by ``projection.cuh``; each launcher adds the epilogue's arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tinyvllm.devices.interface import Argument, Buffer, Device
from tinyvllm.errors import ShapeError
from tinyvllm.kernels.launch import BFLOAT16, WARP_SIZE, ceil_div, check_buffer, source
from tinyvllm.kernels.tiling import Tiling


class Projection:
    """One compiled projection.

    Args:
        device: where it runs.
        name: of the source and, unless ``function`` says otherwise, of the kernel.
        size_k: length of a row of x.
        num_outputs: weight rows.
        tiling: how it is cut up.
        max_rows: most rows of x in a call; memory for partial sums is allocated for them.
        has_norm: the kernel normalises x.
        pdl: the launch may overlap the end of its predecessor.
        function: name of the kernel.
        defines: further macros.

    Raises:
        ShapeError: x does not fit in the card's shared memory, or ``split`` is asked for where it cannot be.
    """

    def __init__(
        self,
        device: Device,
        name: str,
        *,
        size_k: int,
        num_outputs: int,
        tiling: Tiling,
        max_rows: int,
        has_norm: bool,
        pdl: bool,
        function: str | None = None,
        defines: Mapping[str, str | int] | None = None,
    ) -> None:
        self._device, self._name, self._pdl = device, name, pdl
        self.size_k, self.num_outputs, self.tiling, self.max_rows = size_k, num_outputs, tiling, max_rows
        if has_norm and tiling.split > 1:
            raise ShapeError(f"{name}: the mean square needs a whole row, split is {tiling.split}")
        self.num_tiles = ceil_div(num_outputs, tiling.tile_rows)
        per_sm = tiling.blocks_per_sm
        self.num_blocks = self.num_tiles if per_sm is None else min(self.num_tiles, per_sm * device.properties.num_sms)
        static_bytes = static_shared_bytes(tiling)
        if static_bytes > 48 * 1024:
            raise ShapeError(f"{name}: {tiling} takes {static_bytes} bytes of static shared memory, 49152 are allowed")
        self._shared_bytes = tiling.staged_bytes(size_k) if has_norm else 0
        most = device.properties.max_shared_bytes - static_bytes
        if self._shared_bytes > most:
            raise ShapeError(
                f"{name}: {tiling.batch_rows} rows of {size_k} take {self._shared_bytes} bytes of shared memory, the "
                f"card has {most} left; use fewer rows"
            )
        module = device.compile(source(f"{name}.cu"), {**tiling.defines(size_k, num_outputs), **(defines or {})})
        self._function = module.function(function or name, max_dynamic_shared_bytes=self._shared_bytes)
        self.num_row_tiles = ceil_div(max_rows, tiling.batch_rows)
        self.workspace: Buffer | None = None
        self.counters: Buffer | None = None
        if tiling.split > 1:
            num_jobs = self.num_row_tiles * self.num_tiles
            sums = (num_jobs, tiling.split, tiling.tile_rows, tiling.batch_rows)
            self.workspace = device.memory.alloc(sums, np.float32)
            self.counters = zeros(device, num_jobs)

    def check_rows(self, x: Buffer) -> int:
        """The number of rows of ``x``, which must be ``[T, K]`` bfloat16 with ``T`` up to ``max_rows``.

        Raises:
            ShapeError: it is not.
        """
        check_buffer(f"{self._name} x", x, (None, self.size_k), BFLOAT16)
        num_rows = x.shape[0]
        if not 1 <= num_rows <= self.max_rows:
            raise ShapeError(f"{self._name} x has {num_rows} rows, this launcher takes 1 to {self.max_rows}")
        return num_rows

    def launch(self, num_rows: int, arguments: Sequence[Argument]) -> None:
        """Queues the kernel for so many rows of x."""
        self._device.launch(
            self._function,
            (self.num_blocks, self.tiling.split, ceil_div(num_rows, self.tiling.batch_rows)),
            (self.tiling.threads, 1, 1),
            arguments,
            shared_bytes=self._shared_bytes,
            pdl=self._pdl,
        )


def static_shared_bytes(tiling: Tiling) -> int:
    """An upper bound of the static shared memory of a kernel with this tiling: sums in two buffers, squares, flags."""
    if tiling.batch_rows == 1:
        return 1024
    num_warps = tiling.threads // WARP_SIZE
    return 1024 + num_warps * tiling.batch_rows * 4 * (2 * tiling.tile_rows + 1)


def zeros(device: Device, count: int) -> Buffer:
    """Counters at zero, as the first launch expects them; every launch leaves them so."""
    buffer = device.memory.alloc((count,), np.uint32)
    device.memory.fill(buffer, 0)
    return buffer
