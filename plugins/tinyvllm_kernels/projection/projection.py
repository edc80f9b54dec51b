"""What the launchers of the fused projections share: compiled for sizes, a grid chosen, scratch memory kept.

``y = norm(x) W^T`` by ``projection.cuh``; each launcher adds the epilogue's arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tinyvllm.device import BFLOAT16, Argument
from tinyvllm.errors import ShapeError
from tinyvllm.ops.buffers import beside, ceil_div, check_buffer
from tinyvllm.plugin import Buffer, Gpu
from tinyvllm_kernels.projection.tiling import Tiling
from tinyvllm_kernels.rows.rms_norm import NormedRows

_STATIC_BYTES = 1024
"""At most what a kernel for one row has besides: candidates of the warps, a flag."""


class ProjectionSizes:
    """What the buffers of a projection's launcher must be.

    Args:
        name: of the kernel, for messages.
        size_k: length of a row of x.
        num_outputs: weight rows.
        max_rows: maximum number of rows of x in a call.
    """

    def __init__(self, name: str, size_k: int, num_outputs: int, max_rows: int) -> None:
        self._name, self.size_k, self.num_outputs, self.max_rows = name, size_k, num_outputs, max_rows

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

    def check_layer(self, out_name: str, out: Buffer, x: Buffer, weight: Buffer, bias: Buffer | None) -> int:
        """The number of rows of a linear layer's ``[T, N]``, ``[T, K]``, ``[N, K]`` and ``[N]``, all bfloat16.

        Raises:
            ShapeError: a buffer has another shape or dtype, or ``T`` is above ``max_rows``.
        """
        num_rows = self.check_rows(x)
        check_buffer(f"{self._name} {out_name}", out, (num_rows, self.num_outputs), BFLOAT16)
        check_buffer(f"{self._name} weight", weight, (self.num_outputs, self.size_k), BFLOAT16)
        if bias is not None:
            check_buffer(f"{self._name} bias", bias, (self.num_outputs,), BFLOAT16)
        return num_rows


class Projection(ProjectionSizes):
    """One compiled projection.

    Args:
        device: where it runs.
        name: of the source and, unless ``function`` says otherwise, of the kernel.
        size_k: length of a row of x.
        num_outputs: weight rows.
        tiling: how it is cut up.
        max_rows: maximum number of rows of x in a call; memory for partial sums is allocated for them.
        pdl: the launch may overlap the end of its predecessor.
        eps: of the norm of x, if it has one.
        function: name of the kernel.
        defines: further macros.

    Raises:
        ShapeError: the tiling does not fit in the card's shared memory.
    """

    def __init__(
        self,
        device: Gpu,
        name: str,
        *,
        size_k: int,
        num_outputs: int,
        tiling: Tiling,
        max_rows: int,
        pdl: bool,
        eps: float | None = None,
        function: str | None = None,
        defines: Mapping[str, str | int] | None = None,
    ) -> None:
        super().__init__(name, size_k, num_outputs, max_rows)
        self._device, self._pdl, self.tiling = device, pdl, tiling
        self.num_tiles = ceil_div(num_outputs, tiling.tile_rows)
        self.num_jobs = ceil_div(num_outputs, tiling.block_rows)
        per_sm = tiling.blocks_per_sm
        self.num_blocks = self.num_jobs if per_sm is None else min(self.num_jobs, per_sm * device.properties.num_sms)
        shape_defines = tiling.defines(size_k, num_outputs)
        if tiling.is_large:
            ring = tiling.chunk_ring(device.properties)
        elif tiling.batch_rows > 1:
            is_one_job = self.num_blocks == self.num_jobs
            ring = tiling.ring(device.properties, is_one_job=is_one_job)
            shape_defines["ONE_JOB"] = int(is_one_job)
        else:
            max_bytes = device.properties.max_shared_bytes - _STATIC_BYTES
            ring = tiling.row_ring(size_k, max_bytes, has_norm=eps is not None)
        self._shared_bytes = ring.shared_bytes
        shape_defines |= {"NUM_STAGES": ring.num_stages, "SHARED_BYTES": ring.shared_bytes}
        module = device.compile(beside(__file__, f"{name}.cu"), {**shape_defines, **(defines or {})})
        self._function = module.function(function or name, max_dynamic_shared_bytes=self._shared_bytes)
        self.num_row_tiles = ceil_div(max_rows, tiling.batch_rows)
        self.workspace: Buffer | None = None
        self.counters: Buffer | None = None
        # One row is normalised by the kernel itself, several by a kernel before it, while the weights are on their way.
        self._normed: NormedRows | None = None
        if eps is not None and tiling.batch_rows > 1:
            self._normed = NormedRows(device, max_rows, hidden_size=size_k, eps=eps, pdl=pdl)
        if tiling.num_sharing > 1:
            num_jobs = self.num_row_tiles * self.num_jobs
            sums = (num_jobs, tiling.split, tiling.block_rows, tiling.batch_rows)
            self.workspace = device.memory.alloc(sums, np.float32)
            self.counters = zeros(device, num_jobs)

    def normalised(self, x: Buffer, norm: Buffer) -> Buffer:
        """What the kernel takes for ``x``: its rows normalised, queued here, or ``x`` if the kernel does it itself."""
        return x if self._normed is None else self._normed(x, norm)

    def launch(self, num_rows: int, arguments: Sequence[Argument]) -> None:
        """Queues the kernel for so many rows of x."""
        num_row_tiles = ceil_div(num_rows, self.tiling.batch_rows)
        if self.tiling.is_large:  # a block walks over rows of x too
            most = (self.tiling.blocks_per_sm or 1) * self._device.properties.num_sms
            num_blocks, num_row_tiles = min(self.num_jobs * num_row_tiles, most), 1
        else:
            num_blocks = self.num_blocks
        self._device.launch(
            self._function,
            (num_blocks, self.tiling.num_sharing, num_row_tiles),
            (self.tiling.threads, 1, 1),
            arguments,
            shared_bytes=self._shared_bytes,
            pdl=self._pdl,
        )


def zeros(device: Gpu, count: int) -> Buffer:
    """Counters at zero, as the first launch expects them; every launch leaves them so."""
    buffer = device.memory.alloc((count,), np.uint32)
    device.memory.fill(buffer, 0)
    return buffer
